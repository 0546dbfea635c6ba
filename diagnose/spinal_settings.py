"""Which settings does this version of SPINAL take, and under which size is a difference not called one?"""

from collections.abc import Mapping
from typing import Any

from ..errors import InputError

RESOLUTION = 1e-5  # rad, nats, exponents: what another batch size may move (tested); under it nothing is tested

# Keywords of the stable interface whose other values come with later versions.
TRACE_ONLY: dict[str, Any] = {"positions": "last", "vocabulary": "full"}
PRESETS: dict[str, dict[str, Any]] = {
    "robust": {"window": (0.02, 0.2), "lens_positions": 4},
    "paper_guess": {"window": (0.1, 0.9), "lens_positions": 0},
}
ESTIMATORS = ("ols", "wls", "local_median", "rank_half", "hill", "clauset")
ROW_SCALES = (None, "rms", "l2")
BIASES = (None, "half_sample")


def require_only(given: Mapping[str, Any], only: Mapping[str, Any]) -> None:
    """Raises InputError for a keyword that has another value than the one this version knows."""
    for name, value in only.items():
        if given[name] is not value and (value is None or given[name] != value):
            raise InputError(f"{name}={given[name]!r}: this version has {value!r} only")


def require_at_least(**given: tuple[int, int]) -> None:
    """Raises InputError for a setting, given as name=(value, least), below its least value."""
    for name, (value, least) in given.items():
        if value < least:
            raise InputError(f"{name}={value}: at least {least} is expected")


def check_trace_settings(given: Mapping[str, Any]) -> None:
    """Raises InputError, naming the setting, for what `spinal_trace` cannot do."""
    require_only(given, TRACE_ONLY)
    for name, allowed in (
        ("preset", tuple(PRESETS)), ("estimator", ESTIMATORS), ("row_scale", ROW_SCALES), ("bias", BIASES)
    ):  # fmt: skip
        if given[name] not in allowed:
            raise InputError(f"{name}={given[name]!r}: expected one of {', '.join(map(str, allowed))}")
    require_at_least(drop_top=(given["drop_top"], 0))
    if given["stack"] != "all" and not (isinstance(given["stack"], int) and given["stack"] >= 46):
        raise InputError(f"stack={given['stack']!r}: expected 'all', or at least 46 rows a stack (fewer have no fit)")
    window, lens_positions = given["window"], given["lens_positions"]
    if window not in (None, "auto") and not (len(window) == 2 and 0 <= window[0] < window[1] <= 1):
        raise InputError(f"window={window!r}: two shares of the ranks, 0 <= first < last <= 1, or 'auto'")
    require_at_least(max_tokens=(given["max_tokens"], 1))
    require_at_least(lens_positions=(0 if lens_positions is None else lens_positions, 0))
    require_at_least(groups=(given["groups"], 2), batch_size=(given["batch_size"], 1))
    if not 0 < given["temperature"] < float("inf"):
        raise InputError(f"temperature={given['temperature']}: a number above 0 is expected")


def preset_values(preset: str, **given: Any) -> dict[str, Any]:
    """The settings by name, those that are None as the preset has them: what was given stands."""
    return {name: PRESETS[preset][name] if value is None else value for name, value in given.items()}
