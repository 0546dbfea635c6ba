"""Which model was it? sha256 over weights, configuration, tokenizer and chat template, each kept apart [reconstructed].

Never depends on a path, a file name or the sharding; one changed bit of one tensor changes it.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ..cache import cache_folder
from ..errors import InputError
from .subject import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# name, dtype label, shape, bytes of a tensor
NamedTensor = tuple[str, str, tuple[int, ...], memoryview]

_NOT_IDENTITY = ("_name_or_path", "transformers_version", "dtype", "torch_dtype")
_NOT_ADAPTER_IDENTITY = (*_NOT_IDENTITY, "base_model_name_or_path", "revision", "peft_version", "inference_mode")
_RACY_SECONDS = 2.0  # a file this young may still change within one tick of its time stamp: hash it, do not cache it
_SAFETENSORS_DTYPES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


def fingerprint(
    *,
    weights: str,
    config: Mapping[str, Any],
    tokenizer: "PreTrainedTokenizerBase | None",
) -> Fingerprint:
    """Join the parts; `weights` is what `weights_hash` or `state_hash` gave."""
    parts = {
        "weights": weights,
        "config": _json_hash({k: v for k, v in config.items() if k not in _NOT_IDENTITY}),
        "tokenizer": None if tokenizer is None else tokenizer_hash(tokenizer),
        "template": None if tokenizer is None else template_hash(tokenizer),
    }
    return Fingerprint(
        weights=weights,
        config=str(parts["config"]),
        tokenizer=parts["tokenizer"],
        template=parts["template"],
        combined=_json_hash(parts),
    )


def with_adapter(base: Fingerprint, *, weights: str, config: Mapping[str, Any]) -> Fingerprint:
    """Fingerprint of a base with an adapter on it: both enter, so a base with its adapter off keeps its own."""
    own = {k: v for k, v in config.items() if k not in _NOT_ADAPTER_IDENTITY}
    parts = {
        "weights": _json_hash([base.weights, weights]),
        "config": _json_hash([base.config, _json_hash(own)]),
        "tokenizer": base.tokenizer,
        "template": base.template,
    }
    return Fingerprint(
        weights=str(parts["weights"]),
        config=str(parts["config"]),
        tokenizer=base.tokenizer,
        template=base.template,
        combined=_json_hash(parts),
    )


def weights_hash(files: Iterable[Path]) -> str:
    """sha256 of the tensors in safetensors, GGUF or pickled files, kept in the cache folder by path, size and time."""
    files = sorted(files)
    stats = [(str(f.resolve()), f.stat().st_size, f.stat().st_mtime_ns, f.stat().st_ctime_ns) for f in files]
    entry = cache_folder() / "fingerprints" / f"{_json_hash(stats)}.txt"
    if entry.is_file():
        known = entry.read_text(encoding="ascii", errors="replace").strip()
        if len(known) == 64:
            return known
    value = _hash_tensors(_stored(files))
    newest = max(max(mtime, ctime) for _, _, mtime, ctime in stats) / 1e9
    if time.time() - newest > _RACY_SECONDS:
        _keep(entry, value)
    return value


def state_hash(state: Mapping[str, torch.Tensor]) -> str:
    """sha256 of tensors in memory by name; of a live model see `adapters.base_state`."""
    return _hash_tensors((name, *_described(state[name])) for name in sorted(state))


def state_mark(state: Mapping[str, torch.Tensor]) -> str:
    """A quick look at tensors in memory, to see whether they changed since: 256 values of each, spread evenly."""
    sampled = {name: tensor.detach().reshape(-1)[:: max(1, tensor.numel() // 256)] for name, tensor in state.items()}
    return state_hash(sampled)


def tokenizer_hash(tokenizer: "PreTrainedTokenizerBase") -> str:
    """sha256 of what turns text into ids: the tokenizer's own JSON and the begin and end ids.

    Padding and truncation settings and the pad token stay out: they change while a tokenizer is used.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        content = json.loads(backend.to_str())
        content = {k: v for k, v in content.items() if k not in ("padding", "truncation")}
    else:
        content = {"vocabulary": tokenizer.get_vocab(), "class": type(tokenizer).__name__}
    return _json_hash([content, tokenizer.bos_token_id, tokenizer.eos_token_id])


def template_hash(tokenizer: "PreTrainedTokenizerBase") -> str | None:
    """sha256 of the chat template; None where there is none."""
    template = getattr(tokenizer, "chat_template", None)
    return None if template is None else _json_hash(template)


def _stored(files: list[Path]) -> Iterator[NamedTensor]:
    """Every tensor of the files in sorted name order, one in memory at a time."""
    if files[0].suffix == ".gguf":
        from gguf import GGUFReader

        for tensor in sorted((t for f in files for t in GGUFReader(f).tensors), key=lambda t: t.name):
            shape = tuple(int(n) for n in tensor.shape)
            yield tensor.name, tensor.tensor_type.name, shape, memoryview(tensor.data).cast("B")
        return
    if files[0].suffix != ".safetensors":
        for file in files:  # pickled: the bytes of the file, read without running it
            yield file.name, "pickle", (file.stat().st_size,), memoryview(file.read_bytes())
        return
    from safetensors import safe_open

    where = {name: file for file in files for name in tensor_dtypes(file)}
    handles = {}
    for name in sorted(where):
        if where[name] not in handles:
            handles[where[name]] = safe_open(where[name], framework="pt")
        tensor = handles[where[name]].get_tensor(name)
        yield name, *_described(tensor)


def tensor_dtypes(file: Path) -> dict[str, str]:
    """Tensor name -> dtype label ('F32', 'BF16', ...) of a safetensors file."""
    return {name: dtype for name, (dtype, _) in _header(file).items()}


def tensor_shapes(file: Path) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a safetensors file."""
    return {name: shape for name, (_, shape) in _header(file).items()}


def _header(file: Path) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Raises InputError naming the file where the header is damaged or the tensors do not fill the file."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="pt") as handle:
            slices = {name: handle.get_slice(name) for name in handle.keys()}  # noqa: SIM118  no mapping
            return {name: (part.get_dtype(), tuple(part.get_shape())) for name, part in slices.items()}
    except (SafetensorError, OSError) as error:
        size = file.stat().st_size
        with file.open("rb") as opened:
            pointer = opened.read(23) == b"version https://git-lfs"
        cause = (
            "it is a Git LFS pointer, not the weights (run `git lfs pull`)"
            if pointer
            else f"damaged or cut short at {size} bytes ({error}); copy the file again"
        )
        raise InputError(f"{file}: not a readable safetensors file: {cause}") from error


def _described(tensor: torch.Tensor) -> tuple[str, tuple[int, ...], memoryview]:
    plain = tensor.detach().cpu().contiguous()
    label = _SAFETENSORS_DTYPES.get(plain.dtype, str(plain.dtype))
    return label, tuple(plain.shape), plain.reshape(-1).view(torch.uint8).numpy().data


def _hash_tensors(tensors: Iterable[NamedTensor]) -> str:
    whole = hashlib.sha256()
    for name, dtype, shape, content in tensors:
        whole.update(json.dumps([name, dtype, list(shape)]).encode())
        whole.update(content)
    return whole.hexdigest()


def _json_hash(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


def _keep(entry: Path, value: str) -> None:
    """A cache that cannot be written (read-only home) costs time, not the run."""
    temporary = entry.with_suffix(f".{time.monotonic_ns()}.tmp")
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(value, encoding="ascii")
        temporary.replace(entry)
    except OSError:
        return
