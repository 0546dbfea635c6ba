"""A steering vector: where it acts, along what, how far, on which tokens, and which model it was made on."""

import os
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import InputError
from ..probes.subject import Edit, Site, Subject
from .edits import Ablate, Add, Clamp
from .factors import Factors, numbers_of
from .model_fit import require_fit
from .positions import Positions
from .subspace import Subspace

if TYPE_CHECKING:
    from .formats.directions import Export

EDITS = ("clamp", "add", "ablate")
PathLike = str | os.PathLike[str]
Strength = float | int | Sequence[float | int] | np.ndarray | Tensor


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SteeringVector:
    """An edit at one site with its factors; `applied` puts it on a model.

    edit: "clamp" (needs factors), "add" (needs `vector` [d], which strength multiplies) or "ablate".
    metadata: JSON values: source, settings, sha256 of the data, seed, metrics, and `fingerprint`, what the model was.
    history: a mapping a training step.
    Raises InputError where the parts do not fit together.
    """

    site: Site
    subspace: Subspace
    edit: str = "clamp"
    factors: Factors | None = None
    positions: Positions = field(default_factory=Positions)
    method: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    vector: Float[Tensor, "d"] | None = None
    allow_other_weights: bool = False  # of this object, not of its file: see `load`
    from_file: bool = False  # read by `load`, from a file that should say which model it is of

    def __post_init__(self) -> None:
        if self.edit not in EDITS:
            raise InputError(f"edit '{self.edit}': expected one of {', '.join(EDITS)}")
        if self.edit == "clamp" and self.factors is None:
            raise InputError("a clamp needs factors: what to clamp to")
        if self.factors is not None and len(self.factors.positive) != self.subspace.rank:
            raise InputError(f"{len(self.factors.positive)} factors, and a subspace of rank {self.subspace.rank}")
        if (self.edit == "add") != (self.vector is not None):
            raise InputError("an add needs its vector [d], and no other edit has one")
        if self.vector is not None and self.vector.shape != (self.subspace.width,):
            raise InputError(f"vector of shape {tuple(self.vector.shape)}: expected [{self.subspace.width}]")

    def __repr__(self) -> str:
        return f"SteeringVector({self.method or 'unnamed'}: {self.edit} at {self.site}, {self.subspace!r})"

    @classmethod
    def adding(cls, vector: Float[Tensor, "d"], site: Site, **parts: Any) -> "SteeringVector":
        """The vector that adds `vector` [d] times the strength at `site`; parts: the other fields."""
        return cls(site=site, subspace=Subspace(vector), edit="add", vector=vector.float(), **parts)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What is known of the model it was made on; empty for a file of another tool."""
        return self.metadata.get("fingerprint") or {}

    def target(self, strength: float | int, *, scale: str = "mid") -> Float[Tensor, "k"]:
        """The coordinates that a clamp of this strength sets, in the units of the hidden states; see Factors.target."""
        if self.factors is None:
            raise InputError(f"an {self.edit} has no target; only a clamp does")
        return self.factors.target(strength, scale=scale)

    def edit_for(
        self,
        strength: Strength = 1.0,
        batch: int | None = None,
        *,
        neutral: bool = False,
        scale: str = "mid",
        mode: str = "set",
    ) -> Edit:
        """The edit of a strength; of a sequence, array or tensor [n], one a row of the batch (0: left alone).

        batch: rows of prompts. Every strength then gets that many rows: strength by strength, so that one `generate` of
        the prompts repeated sweeps them all. neutral: a clamp to the middle between f+ and f-, whatever the strength.
        scale, mode: of a clamp; see Factors.target and Clamp.
        Raises InputError for strengths that are no finite numbers, and options that the edit does not know.
        """
        given = numbers_of(strength)
        strengths = given if isinstance(given, list) else [given]
        if not strengths or (batch is not None and batch < 1):
            raise InputError(f"{len(strengths)} strengths and batch={batch}: expected at least one of each")
        if self.edit != "clamp" and (neutral or scale != "mid" or mode != "set"):
            raise InputError(f"neutral, scale and mode are of a clamp, and this vector is an {self.edit}")
        if mode != "set" and self.subspace.rank > 1:
            raise InputError(f"mode '{mode}' orders coordinates, so it is for rank 1, got rank {self.subspace.rank}")
        if self.edit == "ablate" and not set(strengths) <= {0.0, 1.0}:
            raise InputError(f"an ablate is on (strength 1) or off (0), got {strength}")
        active = torch.tensor([neutral or s != 0 for s in strengths]).repeat_interleave(batch or 1)
        rows = None if bool(active.all()) else active
        if self.edit == "ablate":
            return Ablate(self.subspace, self.positions, rows)
        if self.vector is not None:
            many = len(strengths) > 1 or batch is not None
            steps = torch.tensor(strengths).repeat_interleave(batch or 1) if many else strengths[0]
            return Add(self.vector, steps, self.positions, rows)
        assert self.factors is not None
        middle = self.factors.mid
        targets = torch.stack([middle if neutral else self.target(s, scale=scale) for s in strengths])
        many = len(strengths) > 1 or batch is not None
        target = targets.repeat_interleave(batch or 1, dim=0) if many else targets[0]
        return Clamp(self.subspace, target, mode, self.positions, rows)

    def applied(
        self,
        subject: Subject,
        strength: Strength = 1.0,
        *,
        neutral: bool = False,
        scale: str = "mid",
        mode: str = "set",
        allow_other_weights: bool = False,
    ) -> AbstractContextManager[None]:
        """A context in which the model is steered. Strength 0 is off: no hook, logits equal to the bit.

        strength: +1 clamps to f+, -1 to f-; multiplies the vector of an add. A sequence, array, tensor [n]: one a row.
        neutral: clamp to the middle between f+ and f-. mode: "min" only raises a coordinate, "max" only lowers it.
        Raises InputError where the vector does not belong on this model (see `load`) or an option is unknown.

            with vector.applied(subject, 1.5):
                subject.generate(["How was your day?"])
        """
        allowed = allow_other_weights or self.allow_other_weights
        require_fit(self.site, self.subspace.width, self.fingerprint, subject, allow_other_weights=allowed)
        given = numbers_of(strength)
        edit = self.edit_for(given, neutral=neutral, scale=scale, mode=mode)
        off = not neutral and given == 0  # a list never is
        return subject.editing({} if off else {self.site: edit})

    def swap(self) -> "SteeringVector":
        """The same direction the other way round: f+ and f- exchanged, an added vector negated.

        One that was trained to elicit alone is then one that was trained to suppress alone, and says so.
        """
        from .turning import turned

        return replace(
            self,
            factors=None if self.factors is None else self.factors.swapped(),
            vector=None if self.vector is None else -self.vector,
            metadata=turned(self.metadata),
        )

    def notices(self) -> tuple[str, ...]:
        """What a user should know before trusting it: metadata["notices"], what its making left, and of the factors.

        Of one that was loaded also that its file does not say which model it is of, where that is so.
        """
        told = [*(self.metadata.get("notices") or ()), *(() if self.factors is None else self.factors.notices())]
        if self.from_file and not self.fingerprint:
            told.append(
                "the file does not say which model the vector was made on, so that nothing is checked but width and "
                "layer: make sure that it is this one"
            )
        return tuple(told)

    def save(self, path: PathLike) -> Path:
        """Write one safetensors file (the ending is added where it lacks); see steering/files.py. Returns its path."""
        from .files import save_vector

        return save_vector(self, path)

    @classmethod
    def load(
        cls, path: PathLike, subject: Subject | None = None, *, allow_other_weights: bool = False
    ) -> "SteeringVector":
        """Read what `save` wrote; with a subject, refuse it here where `applied` would.

        Raises InputError, naming the file, for a pickle, a damaged or newer file, missing tensors, a basis that is not
        orthonormal (1e-4), values that are not finite, sizes that contradict each other, a fingerprint with parts
        missing; for another hidden size, number of blocks, model type, or other weights than the model's.
        allow_other_weights: the last is a warning then, here and in `applied`. A file without any fingerprint, of a
        vector made by hand, is read with a notice.
        """
        from .files import load_vector

        vector = replace(load_vector(path), allow_other_weights=allow_other_weights)
        if subject is not None:
            require_fit(
                vector.site,
                vector.subspace.width,
                vector.fingerprint,
                subject,
                allow_other_weights=allow_other_weights,
            )
        return vector

    def to_gguf(self, path: PathLike) -> "Export":
        """Write a control vector for llama.cpp or repeng; says what was lost. See formats/control_vector.py."""
        from .formats.control_vector import write_control_vector

        return write_control_vector([self], path)

    @classmethod
    def from_gguf(cls, path: PathLike, layer: int | None = None) -> "SteeringVector":
        """An add, from a control vector; `layer` where the file holds several. SteeringSet.from_gguf reads all."""
        from .formats.control_vector import read_control_vector

        return _one(read_control_vector(path), layer, path)

    def to_svec(self, path: PathLike) -> "Export":
        """Write the JSON of activation-steering (IBM); says what was lost."""
        from .formats.svec import write_svec

        return write_svec([self], path)

    @classmethod
    def from_svec(cls, path: PathLike, layer: int | None = None) -> "SteeringVector":
        """An add, from a .svec file; `layer` where it holds several."""
        from .formats.svec import read_svec

        return _one(read_svec(path), layer, path)

    def to_steering_vectors(self, path: PathLike) -> "Export":
        """Write the dictionary of the steering-vectors package with torch.save; says what was lost."""
        from .formats.torch_files import write_layer_activations

        return write_layer_activations([self], path)

    @classmethod
    def from_steering_vectors(cls, path: PathLike, layer: int | None = None) -> "SteeringVector":
        """An add, from the dictionary of the steering-vectors package; `layer` where it holds several."""
        from .formats.torch_files import read_layer_activations

        return _one(read_layer_activations(path), layer, path)

    @classmethod
    def from_axbench(
        cls, folder: PathLike, concept: int | str | None = 0, method: str | None = None
    ) -> "SteeringVector":
        """An add, from a row of AxBench's {Method}_weight.pt [n, d]; folder: where it lies, or the file itself.

        concept: the row from 0, or the concept's text in metadata.jsonl; None: the only row. method: where the folder
        has several files. Raises InputError where that is not one row, or a file is missing or no such file.
        """
        from .formats.torch_files import read_axbench

        return read_axbench(folder, concept, method)


def _one(vectors: Sequence[SteeringVector], layer: int | None, path: PathLike) -> SteeringVector:
    found = [vector for vector in vectors if layer is None or vector.site.layer == layer]
    if len(found) != 1:
        layers = ", ".join(str(vector.site.layer) for vector in vectors)
        raise InputError(f"{os.fspath(path)}: holds directions of layers {layers}; name one of them with layer=")
    return found[0]
