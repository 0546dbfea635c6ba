"""Several vectors on one model, each reaching its own target."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from itertools import combinations

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


@dataclass(frozen=True, slots=True, kw_only=False, eq=False)
class SteeringSet:
    """Vectors in order. At different sites they are independent; at one site the later acts on the earlier's result.

    joint: the clamps (and ablations) of one site are solved together, so that all reach their targets; they act where
    the last of them stands. Otherwise only the last is sure to. Adds sum.
    Raises InputError for an empty set, and where directions to clamp jointly nearly depend on each other: two of
    |cos| above 0.95, or more whose bases one upon the other, W, have a condition of W W^T above 39, as such a pair has.
    """

    vectors: Sequence[SteeringVector]
    joint: bool = True

    def __post_init__(self) -> None:
        if not self.vectors:
            raise InputError("a set of no vectors")
        if self.joint:
            self._require_apart()

    def notices(self) -> tuple[str, ...]:
        """Pairs at one site whose directions overlap: |cos| above 0.5."""
        return tuple(
            f"vectors {first} and {second} at {site} overlap: |cos| {cosine:.2f}; steering one moves the other"
            for site, first, second, cosine in self._overlaps()
            if cosine > CLOSE
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
            raise InputError(f"{len(given)} strengths for {len(self.vectors)} vectors; expected one each")
        chosen: dict[Site, list[Edit]] = {}
        for vector, strength in zip(self.vectors, given, strict=True):
            allowed = allow_other_weights or vector.allow_other_weights
            require_fit(vector.site, vector.subspace.width, vector.fingerprint, subject, allow_other_weights=allowed)
            edit = vector.edit_for(strength)
            if strength != 0:
                chosen.setdefault(vector.site, []).append(edit)
        levels = {site: joined(edits) if self.joint else edits for site, edits in chosen.items()}
        for site, edits in levels.items():
            if self.joint and sum(isinstance(edit, Clamp | Ablate) for edit in edits) > 1:
                raise InputError(f"clamps at {site} act on different positions; give them the same, or joint=False")
        contexts = [subject.editing({site: edit}) for site, edits in levels.items() for edit in edits]
        return _entered(contexts)

    @classmethod
    def from_gguf(cls, path: PathLike) -> "SteeringSet":
        """All directions of a control vector, as adds."""
        from .formats.control_vector import read_control_vector

        return cls(read_control_vector(path))

    def _overlaps(self) -> list[tuple[Site, int, int, float]]:
        """Site, numbers and |cos| of every two clamps or ablations at one site."""
        numbered = [(i, vector) for i, vector in enumerate(self.vectors) if vector.edit != "add"]
        return [
            (first.site, i, k, first.subspace.cosine(second.subspace))
            for (i, first), (k, second) in combinations(numbered, 2)
            if first.site == second.site
        ]

    def _require_apart(self) -> None:
        """Of clamps of one site on the same positions; of others none is solved with another."""
        for site, first, second, cosine in self._overlaps():
            if cosine > TOO_CLOSE and self.vectors[first].positions == self.vectors[second].positions:
                raise InputError(
                    f"vectors {first} and {second} at {site}: |cos| {cosine:.3g} is above {TOO_CLOSE}, so reaching "
                    "both targets would take a huge step; leave one out, or joint=False"
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
                    "take a huge step; leave one out, or joint=False"
                )


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
