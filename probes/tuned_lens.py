"""A tuned lens: one affine map a layer that turns a residual into what the model's own tail can read.

h -> h + A h + b before final norm and head (Belrose et al., arXiv 2303.08112); the last layer is the identity, so its
read-out is the model's own. Trained by diagnose/lens_training.py.
"""

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from .fingerprint import state_hash
from .shards import item_key

if TYPE_CHECKING:
    from .subject import Subject

FORMAT, VERSION = "alignscope tuned lens", 1
HEADER, TENSORS = "lens.json", "lens.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TunedLens:
    """Translators of layers 0 (embeddings) to L - 1, float32; one that is not `kept` is the identity, as layer L is.

    layers: a row a translator: layer, kl_before, kl_after, gain (nats, held-out KL(last layer : lens), of the logit
        lens, of the translator, and the first minus the second; each with _low and _high), kept, n (held-out prompts).
    """

    weight: Float[Tensor, "layers d d"]
    bias: Float[Tensor, "layers d"]
    kept: tuple[bool, ...]
    model: dict[str, Any]  # name, sha256 of weights and of config, vocabulary
    layers: pd.DataFrame = field(default_factory=pd.DataFrame)
    losses: tuple[tuple[float, ...], ...] = ()  # training KL in nats, a row a step, a column a translator
    settings: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)  # source, sha256, prompts trained and held out
    warnings: tuple[str, ...] = ()

    @classmethod
    def identity(cls, subject: "Subject") -> "TunedLens":
        """The logit lens as a tuned lens: no layer is translated."""
        n, d = subject.n_layers, subject.d_model
        return cls(weight=torch.zeros(n, d, d), bias=torch.zeros(n, d), kept=(False,) * n, model=lens_model(subject))

    @property
    def fingerprint(self) -> str:
        """sha256 of the translators."""
        return item_key(state_hash(self._tensors()), list(self.kept))

    @property
    def n_layers(self) -> int:
        """L, the blocks of the model; layers go from 0 to L."""
        return len(self.weight)

    @property
    def d_model(self) -> int:
        return self.weight.shape[-1]

    def apply(self, layer: int, residual: Float[Tensor, "*batch d"]) -> Float[Tensor, "*batch d"]:
        """h + A h + b of a residual after `layer` (0..L), float32 or wider; the residual itself where not translated.

        ValueError for a layer or width that the lens does not have.
        """
        if not 0 <= layer <= self.n_layers:
            raise ValueError(f"layer {layer}: expected 0 .. {self.n_layers} (0 = embeddings)")
        if residual.shape[-1] != self.d_model:
            raise ValueError(f"residual of shape {tuple(residual.shape)}: expected a width of {self.d_model}")
        if layer == self.n_layers or not self.kept[layer]:
            return residual
        h = residual.to(torch.promote_types(residual.dtype, torch.float32))
        return translated(h, self.weight[layer].to(h), self.bias[layer].to(h))

    def translate(self, rows: Float[Tensor, "layers n d"]) -> Float[Tensor, "layers n d"]:
        """Residual rows of layers 0..L, each through its translator: what lens_steps reads in their place."""
        if len(rows) != self.n_layers + 1:
            raise ValueError(f"rows of shape {tuple(rows.shape)}: expected {self.n_layers + 1} layers (0 = embeddings)")
        return torch.stack([self.apply(layer, h).to(rows.dtype) for layer, h in enumerate(rows)])

    def require_fits(self, subject: "Subject", *, shared: bool = False) -> None:
        """Raises InputError unless trained on this model; shared: on one of the same depth, width and vocabulary."""
        here = lens_model(subject)
        sizes = (self.n_layers, self.d_model, self.model["vocabulary"])
        theirs = (subject.n_layers, subject.d_model, here["vocabulary"])
        if sizes != theirs:
            raise InputError(
                f"lens of {self.model['name']}: made for {sizes[0]} blocks, width {sizes[1]} and {sizes[2]} vocabulary "
                f"rows; {subject.name} has {theirs[0]}, {theirs[1]} and {theirs[2]}: train one (alignscope lens train)"
            )
        changed = [part for part in ("weights", "config") if self.model[part] != here[part]]
        if changed and not shared:
            raise InputError(
                f"lens of {self.model['name']}: {subject.name} has other {' and '.join(changed)} "
                f"({str(here[changed[0]])[:12]}, the lens knows {str(self.model[changed[0]])[:12]}). Train one on this "
                "model, or take --shared-lens (shared_lens=True) to read two models through the lens of one"
            )

    def to_frame(self) -> pd.DataFrame:
        return self.layers.copy()

    def summary(self) -> str:
        n = sum(self.kept)
        if not len(self.layers):
            return f"Lens of {self.model['name']}: {n} of {self.n_layers} layers translated."
        before, after = self.layers.kl_before, self.layers.kl_after.where(self.layers.kept, self.layers.kl_before)
        return (
            f"Lens of {self.model['name']}: {n} of {self.n_layers} layers translated; KL(last layer : lens), mean over "
            f"layers, {before.mean():.3g} nats before and {after.mean():.3g} after, on "
            f"{int(self.layers.n.iloc[0])} held-out prompts."
        )

    def save(self, folder: str | os.PathLike[str]) -> Path:
        """Write lens.safetensors, then lens.json, each by rename: a header that exists is whole. Returns the folder."""
        from safetensors.torch import save  # save_file would let nobody else read the file

        path, tensors = Path(folder), self._tensors()
        header = {
            "format": FORMAT,
            "version": VERSION,
            "model": self.model,
            "n_layers": self.n_layers,
            "d_model": self.d_model,
            "kept": list(self.kept),
            "data": self.data,
            "settings": self.settings,
            "layers": json.loads(self.layers.to_json(orient="records", double_precision=15)),
            "losses": [list(row) for row in self.losses],
            "warnings": list(self.warnings),
            "tensors_sha256": state_hash(tensors),
        }
        try:
            path.mkdir(parents=True, exist_ok=True)
            temporary = path / f".{TENSORS}.{os.getpid()}.tmp"
            temporary.write_bytes(save(tensors))
            temporary.replace(path / TENSORS)
            temporary = path / f".{HEADER}.{os.getpid()}.tmp"
            temporary.write_text(json.dumps(header, indent=2, allow_nan=False) + "\n", encoding="utf-8")
            temporary.replace(path / HEADER)
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        return path

    @classmethod
    def load(cls, folder: str | os.PathLike[str]) -> "TunedLens":
        """Read what `save` wrote; ask `require_fits` before it is used on a model.

        Raises InputError, naming the file, where there is none, it is damaged, of another version, or its two parts
        are not of one lens.
        """
        path = Path(folder)
        header, tensors = _read_header(path / HEADER), _read_tensors(path / TENSORS)
        if state_hash(tensors) != header.get("tensors_sha256"):
            raise InputError(f"{path / TENSORS}: not the tensors that {HEADER} describes; copy the whole folder again")
        return cls(
            weight=tensors["weight"],
            bias=tensors["bias"],
            kept=tuple(header["kept"]),
            model=header["model"],
            layers=pd.DataFrame(header["layers"]),
            losses=tuple(tuple(row) for row in header["losses"]),
            settings=header["settings"],
            data=header["data"],
            warnings=tuple(header["warnings"]),
        )

    def _tensors(self) -> dict[str, Tensor]:
        return {name: getattr(self, name).detach().float().cpu().contiguous() for name in ("weight", "bias")}


def translated(
    h: Float[Tensor, "*batch d"], weight: Float[Tensor, "d d"], bias: Float[Tensor, "d"]
) -> Float[Tensor, "*batch d"]:
    """h + A h + b, rows of h; differentiable."""
    return h + h @ weight.T + bias


def lens_model(subject: "Subject") -> dict[str, Any]:
    """What a lens must know of its model. Its tokenizer and template may change: a lens reads residuals."""
    parts = subject.fingerprints
    return {
        "name": subject.name,
        "weights": parts.weights,
        "config": parts.config,
        "vocabulary": subject.vocab_size,
        "dtype": subject.dtype,
    }


def _read_header(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise InputError(f"{file}: no such file; expected the folder that alignscope lens train wrote")
    try:
        header = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError, OSError) as error:
        raise InputError(f"{file}: not JSON ({error}); copy the folder again") from error
    if not isinstance(header, dict) or header.get("format") != FORMAT:
        raise InputError(f"{file}: not the header of a lens; expected the folder that alignscope lens train wrote")
    if header.get("version") != VERSION:
        raise InputError(f"{file}: version {header.get('version')}, this alignscope reads {VERSION}; train it again")
    return header


def _read_tensors(file: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(file)
    except (SafetensorError, OSError) as error:
        raise InputError(f"{file}: not readable ({error}); copy the folder again") from error
