"""Which settings does this version of SPINAL take, and under which size is a difference not called one?"""

from collections.abc import Mapping
from typing import Any

from ..errors import InputError

RESOLUTION = 1e-5  # rad, nats, exponents: what another batch size may move (tested); under it nothing is tested

# Keywords of the stable interface whose other values come with later versions.
TRACE_ONLY: dict[str, Any] = {
    "preset": "robust",
    "positions": "last",
    "lens": "logit",
    "stack": "all",
    "center": True,
    "row_scale": None,
    "estimator": "ols",
    "bias": None,
    "vocabulary": "full",
    "drop_top": 0,
}


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
    window = given["window"]
    if not (len(window) == 2 and 0 <= window[0] < window[1] <= 1):
        raise InputError(f"window={window!r}: two shares of the ranks are expected, 0 <= first < last <= 1")
    require_at_least(lens_positions=(given["lens_positions"], 0), max_tokens=(given["max_tokens"], 1))
    require_at_least(groups=(given["groups"], 2), batch_size=(given["batch_size"], 1))
    if not 0 < given["temperature"] < float("inf"):
        raise InputError(f"temperature={given['temperature']}: a number above 0 is expected")
