"""What does a vector with f+ and f- exchanged say of its making? What taught it to elicit teaches to suppress now."""

from collections.abc import Mapping
from typing import Any

from .encoded import DIRECTIONS
from .held_out import OF_NOTHING
from .preparing import one_way

_ELICIT, _SUPPRESS = (name for name in DIRECTIONS if name != "both")
_OTHER = {_ELICIT: _SUPPRESS, _SUPPRESS: _ELICIT}


def turned(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """With elicit and suppress exchanged in settings["directions"], its notice and the held-out losses; `swapped` told.

    Twice is as it was, but for `swapped`, which is False then.
    """
    found = {**metadata, "swapped": not metadata.get("swapped", False)}
    settings, metrics = metadata.get("settings") or {}, metadata.get("metrics") or {}
    if (made := settings.get("directions")) in _OTHER:
        found["settings"] = {**settings, "directions": _OTHER[made]}
        notices = dict(zip(one_way(made), one_way(_OTHER[made]), strict=True))
        found["notices"] = [notices.get(told, told) for told in metadata.get("notices") or ()]
    if told := found.get("notices"):
        found["notices"] = [_turned_notice(notice) for notice in told]
    if metrics:
        found["metrics"] = dict(metrics)
    if curve := metrics.get("held_out"):
        found["metrics"]["held_out"] = [_exchanged(point) for point in curve]
    if unedited := metrics.get("held_out_unedited"):
        found["metrics"]["held_out_unedited"] = _exchanged(unedited)
    return found


def _turned_notice(notice: str) -> str:
    for way, other in _OTHER.items():
        if notice.startswith(head := f"{OF_NOTHING} {way},"):
            return f"{OF_NOTHING} {other},{notice.removeprefix(head)}"
    return notice


def _exchanged(losses: Mapping[str, Any]) -> dict[str, Any]:
    names = _OTHER | {f"recovered_{way}": f"recovered_{other}" for way, other in _OTHER.items()}
    return {names.get(key, key): value for key, value in losses.items()}
