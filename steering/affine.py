"""Affine edits at several sites, on or off: what LoReFT learns. No direction, so no strength and no factors."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, NoReturn

import torch

from ..errors import InputError
from ..probes.shards import item_key
from ..probes.subject import Edit, Site, Subject
from .edits import Affine
from .factors import numbers_of
from .model_fit import require_fit
from .vector import PathLike, Strength


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class AffineSteering:
    """An affine edit at each of several sites; `applied` puts them on the model that they were trained on.

    metadata, history: as of SteeringVector. Kept in memory only: `save` refuses.
    """

    edits: Mapping[Site, Affine]
    method: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()

    def __post_init__(self) -> None:
        if not self.edits:
            raise InputError("no edits: expected one site at least")

    def __repr__(self) -> str:
        return f"AffineSteering({self.method or 'unnamed'}: {', '.join(map(str, self.sites))})"

    @property
    def sites(self) -> tuple[Site, ...]:
        return tuple(self.edits)

    @property
    def fingerprint(self) -> Mapping[str, Any]:
        """What is known of the model it was made on."""
        return self.metadata.get("fingerprint") or {}

    @property
    def key(self) -> str:
        """Names all that it does."""
        return item_key([(str(site), edit.key) for site, edit in self.edits.items()])

    def edits_for(self, strength: Strength = 1.0, batch: int | None = None) -> dict[Site, Edit]:
        """The edits of strength 1 or 0; of a sequence of them, one a row of the batch, each for `batch` rows.

        Raises InputError for other strengths: half an affine edit is none that was trained.
        """
        given = numbers_of(strength)
        strengths = given if isinstance(given, list) else [given]
        if not strengths or (batch is not None and batch < 1):
            raise InputError(f"{len(strengths)} strengths and batch={batch}: expected at least one of each")
        if not set(strengths) <= {0.0, 1.0}:
            raise InputError(f"{self.method or 'an affine edit'} is on (strength 1) or off (0), got {strength}")
        active = torch.tensor([s == 1 for s in strengths]).repeat_interleave(batch or 1)
        rows = None if bool(active.all()) else active
        return {site: replace(edit, rows=rows) for site, edit in self.edits.items()}

    def applied(
        self, subject: Subject, strength: Strength = 1.0, *, allow_other_weights: bool = False
    ) -> AbstractContextManager[None]:
        """A context in which the model is edited. Strength 0 is off: no hook, logits equal to the bit.

        A sequence of strengths: one a row of the batch. Raises InputError where the edits do not belong on this model
        (see SteeringVector.load), and for strengths other than 0 and 1.
        """
        for site, edit in self.edits.items():
            known = self.fingerprint
            require_fit(site, edit.subspace.width, known, subject, allow_other_weights=allow_other_weights)
        given = numbers_of(strength)
        edits = self.edits_for(given)
        return subject.editing({} if given == 0 else edits)  # a list never is

    def notices(self) -> tuple[str, ...]:
        """What a user should know before trusting it."""
        return tuple(self.metadata.get("notices", ()))

    def save(self, path: PathLike) -> NoReturn:
        """Raises InputError: it is a reference point to compare with, and files hold vectors."""
        raise InputError(
            f"{path}: {self.method or 'an affine edit'} is not written to files, which hold one direction; train it "
            "again with metadata['settings'], or ship a vector"
        )
