"""Several vectors on one model, each reaching its own target."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import torch

from ..errors import InputError
from ..probes.subject import Edit, Site, Subject
from .edits import Ablate, Clamp
from .factors import numbers_of
from .model_fit import require_fit
from .positions import Positions
from .subspace import DEFICIENT, Subspace
from .vector import PathLike, SteeringVector, Strength

TOO_CLOSE = 0.95  # |cos|: the joint solution amplifies by (1 + c) / (1 - c) = 39 there
LARGEST_CONDITION = (1 + TOO_CLOSE) / (1 - TOO_CLOSE)  # of W W^T, for any number of directions
CLOSE = 0.5
_SEQUENTIAL = "or joint=False (--sequential)"


@dataclass(frozen=True, slots=True, kw_only=True)
class Overlap:
    """Two vectors of a set at one site, by their numbers from 0, and the largest |cos| of a direction in each."""

    site: Site
    first: int
    second: int
    cosine: float  # 0: orthogonal, 1: one lies in the other, or they share a direction


@dataclass(frozen=True, slots=True, kw_only=False, eq=False)
class SteeringSet:
    """Vectors in order. At different sites they are independent; at one site the later acts on the earlier's result.

    joint: the clamps (and ablations) of one site are solved together, so that all reach their targets; they act where
    the last of them stands. Otherwise only the last is sure to. Adds sum.
    Raises InputError for an empty set, for vectors of different widths, and where directions to clamp jointly nearly
    depend on each other: two of |cos| above 0.95, or more whose bases one upon the other, W, have a condition of W W^T
    above 39, as such a pair has.
    """

    vectors: Sequence[SteeringVector]
    joint: bool = True

    def __post_init__(self) -> None:
        if not self.vectors:
            raise InputError("a set of no vectors")
        widths = [vector.subspace.width for vector in self.vectors]
        if len({*widths}) > 1:
            told = ", ".join(map(str, widths))
            raise InputError(f"vectors of widths {told}: a set acts on one model, so expected one width")
        if self.joint:
            self._require_apart()

    def overlaps(self) -> tuple[Overlap, ...]:
        """Every two vectors at one site, whatever their edits, with the |cos| between them."""
        return tuple(
            Overlap(site=first.site, first=i, second=k, cosine=first.subspace.cosine(second.subspace))
            for (i, first), (k, second) in combinations(enumerate(self.vectors), 2)
            if first.site == second.site
        )

    def notices(self) -> tuple[str, ...]:
        """Clamps (or ablations) at one site whose directions overlap: |cos| above 0.5."""
        return tuple(
            f"vectors {pair.first} and {pair.second} at {pair.site} overlap: |cos| {pair.cosine:.2f}; steering one "
            "moves the other"
            for pair in self._clamped()
            if pair.cosine > CLOSE
        )

    def applied(
        self,
        subject: Subject,
        strengths: Strength = 1.0,
        *,
        allow_other_weights: bool = False,
    ) -> AbstractContextManager[None]:
        """A context in which all vectors act, each with its strength (one number: all the same); 0 leaves one out.

        Raises InputError as SteeringVector.applied does, for another number of strengths, for strengths a row of the
        batch, and where clamps to be solved together act on different positions.
        """
        numbers = numbers_of(strengths)
        given = numbers if isinstance(numbers, list) else [numbers] * len(self.vectors)
        if len(given) != len(self.vectors):
            raise InputError(
                f"{len(given)} strengths for {len(self.vectors)} vectors; expected one each, or one number for all"
            )
        require_all_fit(self.vectors, subject, allow_other_weights=allow_other_weights)
        chosen: dict[Site, list[Edit]] = {}
        for vector, strength in zip(self.vectors, given, strict=True):
            edit = vector.edit_for(strength)
            if strength != 0:
                chosen.setdefault(vector.site, []).append(edit)
        levels = {site: joined(edits) if self.joint else edits for site, edits in chosen.items()}
        for site, edits in levels.items():
            if self.joint and sum(isinstance(edit, Clamp | Ablate) for edit in edits) > 1:
                raise InputError(f"clamps at {site} act on different positions; give them the same, {_SEQUENTIAL}")
        contexts = [subject.editing({site: edit}) for site, edits in levels.items() for edit in edits]
        return _entered(contexts)

    def save(self, folder: PathLike, *, overwrite: bool = False) -> Path:
        """Write a folder: a safetensors file a vector (SteeringVector.save), and set.json with order, joint, sha256.

        It appears whole or not at all. Returns its path. Raises InputError where the folder is there; with overwrite
        where it holds anything but a set; for a vector that SteeringVector.save refuses.
        """
        from .set_files import save_set

        return save_set(self, folder, overwrite=overwrite)

    @classmethod
    def load(
        cls, folder: PathLike, subject: Subject | None = None, *, allow_other_weights: bool = False
    ) -> "SteeringSet":
        """Read what `save` wrote; with a subject, refuse it here where `applied` would.

        Raises InputError, naming the file, for a folder that is no set, of a newer version or with a damaged set.json;
        for files that are missing or have changed (sha256); and for each vector as SteeringVector.load.
        """
        from .set_files import load_set

        return load_set(folder, subject, allow_other_weights=allow_other_weights)

    @classmethod
    def from_gguf(cls, path: PathLike) -> "SteeringSet":
        """All directions of a control vector, as adds."""
        from .formats.control_vector import read_control_vector

        return cls(read_control_vector(path))

    def _clamped(self) -> list[Overlap]:
        """Those overlaps in which both set coordinates; what adds do sums up."""
        return [
            pair
            for pair in self.overlaps()
            if "add" not in (self.vectors[pair.first].edit, self.vectors[pair.second].edit)
        ]

    def _require_apart(self) -> None:
        """Of clamps of one site on the same positions; of others none is solved with another."""
        for pair in self._clamped():
            first, second = self.vectors[pair.first], self.vectors[pair.second]
            if pair.cosine > TOO_CLOSE and first.positions == second.positions:
                raise InputError(
                    f"vectors {pair.first} and {pair.second} at {pair.site}: |cos| {pair.cosine:.3g} is above "
                    f"{TOO_CLOSE}, so reaching both targets would take a huge step; leave one out, {_SEQUENTIAL}"
                )
        together: dict[tuple[Site, Positions], list[int]] = {}
        for i, vector in enumerate(self.vectors):
            if vector.edit != "add":
                together.setdefault((vector.site, vector.positions), []).append(i)
        for (site, _), numbers in together.items():
            found = condition([self.vectors[i].subspace for i in numbers]) if len(numbers) > 2 else 1.0
            if found > LARGEST_CONDITION:
                raise InputError(
                    f"vectors {', '.join(map(str, numbers))} at {site}: together their directions nearly depend on "
                    f"each other (condition {found:.3g}, above {LARGEST_CONDITION:.0f}), so reaching all targets would "
                    f"take a huge step; leave one out, {_SEQUENTIAL}"
                )


def require_all_fit(
    vectors: Sequence[SteeringVector],
    subject: Subject,
    names: Sequence[str] | None = None,
    *,
    allow_other_weights: bool = False,
) -> None:
    """InputError, with the vector's name or number, unless all belong on the subject; see model_fit.require_fit."""
    for i, vector in enumerate(vectors):
        allowed = allow_other_weights or vector.allow_other_weights
        try:
            require_fit(vector.site, vector.subspace.width, vector.fingerprint, subject, allow_other_weights=allowed)
        except InputError as error:
            raise InputError(f"{f'vector {i}' if names is None else names[i]}: {error}") from error


def condition(subspaces: Sequence[Subspace]) -> float:
    """Largest over smallest eigenvalue of W W^T, W: the bases one upon the other; infinite where rows depend.

    1 for orthogonal subspaces, (1 + c) / (1 - c) for two of |cos| c.

    >>> round(condition([Subspace(torch.tensor(w)) for w in ([1.0, 0.0], [0.6, 0.8])]), 4)  # 1.6 / 0.4
    4.0
    """
    weight = torch.cat([subspace.basis.detach() for subspace in subspaces]).double()
    values = torch.linalg.eigvalsh(weight @ weight.T)
    return float(values[-1] / values[0]) if values[0] > DEFICIENT**2 * values[-1] else float("inf")


def joint_clamp(clamps: Sequence[Clamp]) -> Clamp:
    """The clamp that reaches all targets at once with the smallest step: h + W^T (W W^T)^-1 (f - W h) [checked].

    W: the bases one upon the other. With W^T = S^T R (QR) this is a clamp in S to R^-T f. Targets [k] only.
    ValueError where the rows of W are not independent, a clamp is not of mode "set", or has targets [rows, k].

    >>> clamps = [Clamp(Subspace(torch.tensor(w)), 1.0) for w in ([1.0, 0.0], [0.6, 0.8])]
    >>> joint_clamp(clamps)(torch.zeros(2))
    tensor([1.0000, 0.5000])
    """
    if any(clamp.mode != "set" for clamp in clamps):
        raise ValueError("only clamps of mode 'set' can be solved together")
    for i, clamp in enumerate(clamps):
        shape = tuple(torch.as_tensor(clamp.target).shape)
        if len(shape) > 1:
            raise ValueError(f"clamp {i}: target of shape {shape}, expected [{clamp.subspace.rank}], one for all rows")
    weight = torch.cat([clamp.subspace.basis for clamp in clamps]).double()
    targets = torch.cat([torch.as_tensor(clamp.target).reshape(-1) for clamp in clamps]).double()
    subspace = Subspace(weight)
    coordinates = torch.linalg.solve(weight @ subspace.basis.double().T, targets)  # W = (W S^T) S
    return replace(clamps[0], subspace=subspace, target=coordinates.float())


def joined(edits: Sequence[Edit]) -> list[Edit]:
    """The edits of one site, those clamps that share positions as one at the place of the last; others stay."""
    clamps = [
        Clamp(edit.subspace, torch.zeros(edit.subspace.rank), positions=edit.positions)
        if isinstance(edit, Ablate)
        else edit
        for edit in edits
        if isinstance(edit, Clamp | Ablate)
    ]
    if len(clamps) < 2 or any(clamp.positions != clamps[0].positions for clamp in clamps):
        return list(edits)
    last = max(i for i, edit in enumerate(edits) if isinstance(edit, Clamp | Ablate))
    found: list[Edit] = []
    for i, edit in enumerate(edits):
        if i == last:
            found.append(joint_clamp(clamps))
        elif not isinstance(edit, Clamp | Ablate):
            found.append(edit)
    return found


@contextmanager
def _entered(contexts: Sequence[AbstractContextManager[None]]) -> Iterator[None]:
    with ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
