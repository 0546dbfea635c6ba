"""Which sections does an audit compute, and are the inputs there that they read? Asked before anything is read."""

from collections.abc import Collection, Mapping, Sequence

from ..errors import InputError
from .naming import asked_for
from .preference_sections import require_shifted

SECTIONS = ("ranking", "rewards", "spinal", "information", "weights")
ON_REQUEST = ("information", "weights")  # the whole vocabulary at every token; a spectrum a matrix: both take long


def wanted_sections(
    only: Sequence[str] | str | None, reference: object, reward: object, shifted: Collection[str]
) -> tuple[str, ...]:
    """The sections to compute: those named, else all that the inputs allow."""
    only = asked_for(only, SECTIONS)
    wanted = tuple(name for name in SECTIONS if (name not in ON_REQUEST if only is None else name in only))
    if reference is None:
        if only is not None and "spinal" in only:
            raise InputError(
                "--only spinal compares two models: give --reference, or use `alignscope trace` for one model"
            )
        if only is not None and "information" in only:
            raise InputError("--only information measures an update: give --reference, the model it began with")
        wanted = tuple(name for name in wanted if name != "spinal")
        if reward is None and only is not None and "rewards" in only:
            raise InputError("--only rewards: give --reference (implicit reward), --reward (explicit reward), or both")
        wanted = tuple(name for name in wanted if name != "rewards" or reward is not None)
    require_shifted(shifted, wanted)
    return wanted


def require_read(samples: Mapping[str, object], reference: object, sections: tuple[str, ...]) -> None:
    """Samples of reference or policy need a reference, and a section that reads them. Raises InputError."""
    readers = {"reference": {"ranking", "rewards", "information"}, "policy": {"information"}}
    for role, given in samples.items():
        if given is None:
            continue
        if reference is None:
            raise InputError(f"--{role}-samples: they are scored under both models; give --reference")
        if not {*sections} & readers[role]:
            what = "information" if role == "policy" else "displacement (brought by ranking) and information"
            raise InputError(
                f"--{role}-samples: they are read by {what}, which {'is' if role == 'policy' else 'are'} not computed "
                f"here; add {'information' if role == 'policy' else 'ranking or information'} to --only"
            )
