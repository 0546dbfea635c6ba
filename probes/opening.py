"""Open the files of a model with transformers, and refuse what it lets pass: random, misfitting or NaN weights."""

from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..errors import InputError
from .checkpoint_files import CheckpointFiles, read_json
from .fingerprint import fingerprint, tensor_dtypes, weights_hash
from .gguf_file import alone, gguf_config, quantised_types, read_gguf, tensor_types
from .quiet import quiet_loading
from .subject import Fingerprint

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

DTYPES = {
    "float32": torch.float32,
    "float64": torch.float64,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
_DTYPE_NAMES = {"F64": "float64", "F32": "float32", "BF16": "bfloat16", "F16": "float16", "I8": "int8", "U8": "uint8"}
_LOADER_ERRORS = (OSError, ValueError, RuntimeError, ImportError, KeyError, AttributeError, TypeError)
_SHOWN = 5  # names of tensors in a message


@dataclass(frozen=True, slots=True, kw_only=True)
class Opened:
    """A model as loaded, its tokenizer, and what loading found out."""

    model: Any
    tokenizer: "PreTrainedTokenizerBase"
    fingerprints: Fingerprint
    facts: dict[str, Any]


def open_model(
    files: CheckpointFiles,
    auto_class: Any,
    *,
    dtype: str,
    device: str,
    tokenizer_from: CheckpointFiles | None = None,
    may_miss: tuple[str, ...] = (),
    **arguments: Any,
) -> Opened:
    """Load weights and tokenizer of a checkpoint folder or GGUF file, frozen, in evaluation mode.

    may_miss: tensors (by the start of their name) whose absence is the caller's business.
    Raises InputError naming file and tensor for anything missing, of another shape, damaged or not finite.
    """
    torch_dtype_of(dtype), torch_device_of(device)  # refused before minutes of reading
    if files.kind != "gguf":
        arguments |= {"use_safetensors": not files.pickled}
        return _open(files, auto_class, dtype, device, tokenizer_from or files, may_miss, files.config, arguments)
    from transformers import GgufConfig

    reader = read_gguf(files.weights[0])
    arguments |= {"gguf_file": files.weights[0].name, "quantization_config": GgufConfig(dequantize=True)}
    with alone(files.weights[0], reader) as folder:
        files = replace(files, folder=folder)
        return _open(
            files, auto_class, dtype, device, tokenizer_from or files, may_miss, gguf_config(reader), arguments
        )


def _open(
    files: CheckpointFiles,
    auto_class: Any,
    dtype: str,
    device: str,
    tokenizer_from: CheckpointFiles,
    may_miss: tuple[str, ...],
    config: dict[str, Any],
    arguments: dict[str, Any],
) -> Opened:
    stored = _stored_facts(files)
    tokenizer = open_tokenizer(tokenizer_from)
    with quiet_loading(offline=True):
        try:
            model, info = auto_class.from_pretrained(
                files.folder,
                dtype=torch_dtype_of(dtype),
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are listed then, and refused below with their names
                trust_remote_code=False,
                **arguments,
            )
        except _LOADER_ERRORS as error:
            raise InputError(f"{files.name}: transformers cannot load it: {_first_line(error)}") from error
    _refuse_damage(files.name, info, may_miss)
    model.eval().requires_grad_(False)
    require_finite(model, files.name)
    if not stored["quantization"] or files.kind == "gguf":
        model.to(torch_device_of(device))
    facts = {
        "source": "GGUF file" if files.kind == "gguf" else ("hub id" if files.hub else "checkpoint folder"),
        **({"hub": files.hub} if files.hub else {}),
        **stored,
        "dtype": str(next(model.parameters()).dtype).removeprefix("torch."),
        "unexpected_keys": sorted(info["unexpected_keys"]),
    }
    return Opened(
        model=model,
        tokenizer=tokenizer,
        fingerprints=fingerprint(weights=weights_hash(files.weights), config=config, tokenizer=tokenizer),
        facts=facts,
    )


def open_tokenizer(files: CheckpointFiles) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or GGUF file. Raises InputError where there is none, or it cannot be read."""
    from transformers import AutoTokenizer

    if not files.has_tokenizer:
        raise InputError(
            f"{files.name}: no tokenizer in {files.folder} (expected tokenizer.json, tokenizer.model or vocab.json); "
            "copy the tokenizer files of the model it was trained from into the folder"
        )
    arguments = {"gguf_file": files.weights[0].name} if files.kind == "gguf" else {}
    if (files.folder / "tokenizer.json").is_file() and files.kind != "gguf":
        read_json(files.folder / "tokenizer.json")  # tokenizers raises a bare Exception where it is damaged
    with quiet_loading(offline=True):
        try:
            tokenizer = AutoTokenizer.from_pretrained(files.folder, trust_remote_code=False, **arguments)
        except _LOADER_ERRORS as error:
            raise InputError(f"{files.name}: the tokenizer cannot be read: {_first_line(error)}") from error
    if len(tokenizer) == 0:
        raise InputError(f"{files.name}: the tokenizer in {files.folder} has no entries; copy its files again")
    return tokenizer


def require_finite(model: nn.Module, name: str) -> None:
    """Refuse NaN and infinite weights by tensor name. One pass, no copy: the extremes of a tensor carry NaN along."""
    bad = []
    for key, parameter in model.named_parameters():
        if not parameter.is_floating_point() or parameter.numel() == 0 or parameter.is_meta:
            continue
        values = parameter.detach()
        if values.element_size() == 1:  # 8-bit floats: torch knows no extremes of them
            values = values.float()
        low, high = values.aminmax()
        if not bool(torch.isfinite(low) & torch.isfinite(high)):
            n_bad = int((~torch.isfinite(values)).sum())
            bad.append(f"{key} ({n_bad} of {parameter.numel()} values)")
    if bad:
        raise InputError(
            f"{name}: NaN or infinite weights in {_shown(bad)}; training diverged, or the file is damaged: "
            "use an earlier checkpoint"
        )


def torch_dtype_of(name: str) -> torch.dtype:
    if name not in DTYPES:
        raise InputError(f"dtype '{name}' is unknown; expected one of {', '.join(DTYPES)}")
    return DTYPES[name]


def torch_device_of(name: str) -> torch.device:
    """'auto' is the first CUDA device where there is one, else the CPU."""
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise InputError(f"device '{name}' is unknown; expected auto, cpu, cuda or cuda:N") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"device '{name}': no CUDA device here; use --device cpu")
    return device


def require_known_model(files: CheckpointFiles) -> None:
    """Refuse custom code and encoder-decoders before any weight is read."""
    if files.kind != "checkpoint":
        return
    from transformers import CONFIG_MAPPING

    config = files.config
    model_type = config.get("model_type")
    if not model_type:
        raise InputError(f"{files.folder / 'config.json'}: no model_type in it; this is not a transformers checkpoint")
    if model_type not in CONFIG_MAPPING:
        custom = f" and brings its own code ({config['auto_map']})" if config.get("auto_map") else ""
        raise InputError(
            f"{files.name}: model_type '{model_type}' (architectures {architectures(config)}) is not known to the "
            f"installed transformers{custom}; code from a checkpoint is never run"
        )
    if config.get("is_encoder_decoder"):
        raise InputError(
            f"{files.name}: an encoder-decoder ({architectures(config)}); expected a decoder-only language model"
        )


def architectures(config: dict[str, Any]) -> str:
    return ", ".join(config.get("architectures") or ["none named"])


def _stored_facts(files: CheckpointFiles) -> dict[str, Any]:
    """What the files say of their own precision. Reading the headers also finds truncated files."""
    if files.kind == "gguf":
        from gguf import GGUFReader  # inside alone(): no second reading

        types = tensor_types(GGUFReader(files.weights[0]))
        rounded = quantised_types(types)
        return {
            "dtype_on_disk": ", ".join(_DTYPE_NAMES.get(name, name) for name in types),
            "tensor_types": types,
            "quantization": f"GGUF {', '.join(rounded)}, unpacked" if rounded else None,
        }
    if files.pickled:
        return {"dtype_on_disk": "unknown (pickled)", "quantization": None}
    counts = Counter(label for file in files.weights for label in tensor_dtypes(file).values())
    names = [_DTYPE_NAMES.get(label, label) for label, _ in counts.most_common()]
    scheme = (files.config.get("quantization_config") or {}).get("quant_method")
    if scheme is None and (rounded := [name for name in names if name.startswith(("F8_", "F6_", "F4"))]):
        scheme = f"{', '.join(rounded)}, unpacked"
    return {"dtype_on_disk": ", ".join(names), "quantization": scheme}


def _refuse_damage(name: str, info: dict[str, Any], may_miss: tuple[str, ...]) -> None:
    mismatched = [
        f"{key} (file {tuple(found)}, config.json {tuple(expected)})"
        for key, found, expected in sorted(info["mismatched_keys"])
        if not key.startswith(may_miss)
    ]
    if mismatched:
        raise InputError(
            f"{name}: tensors of another shape than config.json says: {_shown(mismatched)}; "
            "config and weights belong to different models"
        )
    missing = [key for key in sorted(info["missing_keys"]) if not key.startswith(may_miss)]
    if missing:
        extra = sorted(info["unexpected_keys"])
        beside = f"; the files hold instead: {_shown(extra)}" if extra else ""
        raise InputError(
            f"{name}: {len(missing)} tensors missing from the weight files: {_shown(missing)}{beside}. "
            "They would be random numbers; copy the checkpoint again, or check that config.json belongs to it"
        )
    if info.get("error_msgs"):
        raise InputError(f"{name}: transformers reports: {'; '.join(map(str, info['error_msgs'][:_SHOWN]))}")


def _shown(names: list[str]) -> str:
    return ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _first_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{lines[0] if lines else ''} ({type(error).__name__})"


def adapter_state(files: CheckpointFiles) -> dict[str, torch.Tensor]:
    """The tensors of an adapter folder. Raises InputError where the file is damaged."""
    if files.pickled:
        loaded = [torch.load(file, map_location="cpu", weights_only=True) for file in files.weights]
        return {key: value for part in loaded for key, value in part.items()}
    from safetensors.torch import load_file

    state: dict[str, torch.Tensor] = {}
    for file in files.weights:
        tensor_dtypes(file)  # refuses a damaged file with its name
        state |= load_file(Path(file))
    return state
