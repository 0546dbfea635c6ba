"""Which lens is a trace read through? The logit lens, or a tuned one that fits the model."""

import os
from typing import TYPE_CHECKING, Any

from ..errors import InputError
from .spinal_settings import FINAL_ONLY

if TYPE_CHECKING:
    from ..probes.subject import Subject
    from ..probes.tuned_lens import TunedLens


def opened_lens(lens: object, subject: "Subject", *, shared: bool) -> "TunedLens | None":
    """The tuned lens to read with; None for "logit" and "final_only".

    Raises InputError for one of another model, see `require_fits`.
    """
    from ..probes.tuned_lens import TunedLens

    if lens in ("logit", FINAL_ONLY):
        return None
    if not isinstance(lens, TunedLens | str | os.PathLike):
        raise InputError(f"lens={lens!r}: expected 'logit', a TunedLens, or the folder of one; or 'final_only'")
    found = lens if isinstance(lens, TunedLens) else TunedLens.load(lens)
    found.require_fits(subject, shared=shared)
    return found


def lens_facts(lens: "TunedLens | None", *, final_only: bool = False) -> dict[str, Any]:
    """For the settings of a trace."""
    if lens is None:
        return {"lens": FINAL_ONLY if final_only else "logit"}
    return {"lens": "tuned", "lens_of": lens.model["name"], "lens_fingerprint": lens.fingerprint}
