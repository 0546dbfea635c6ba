"""Which settings does this version of SPINAL take, and under which size is a difference not called one?"""

from collections.abc import Mapping
from typing import Any, NamedTuple

from ..errors import InputError

RESOLUTION = 1e-5  # rad, nats, exponents: what another batch size may move (tested); under it nothing is tested

PRESETS: dict[str, dict[str, Any]] = {
    "robust": {"window": (0.02, 0.2), "lens_positions": 4},
    "paper_guess": {"window": (0.1, 0.9), "lens_positions": 0},
}
ESTIMATORS = ("ols", "wls", "local_median", "rank_half", "hill", "clauset")
ROW_SCALES = (None, "rms", "l2")
BIASES = (None, "half_sample")
POSITIONS = ("last", "mean", "all")  # or a number
LENS_POSITIONS = ("last", "all", "response")  # or a number
FINAL_ONLY = "final_only"
TOP_K = 100  # tokens of "top_k" and "union" where no number is given


class TopTokens(NamedTuple):
    """A reduced vocabulary: the k most probable tokens of the last layer, or (union) of the two layers of a step."""

    k: int
    union: bool

    def __str__(self) -> str:
        return f"{'union_' if self.union else ''}top_k={self.k}"


def top_tokens(vocabulary: str | int) -> TopTokens | None:
    """What a value of `vocabulary` asks for: None is "full"; k, "top_k=K", "union=K" (or "union_top_k=K").

    Raises InputError for anything else.

    >>> top_tokens("union=50"), str(top_tokens(20))
    (TopTokens(k=50, union=True), 'top_k=20')
    """
    if vocabulary == "full":
        return None
    name, _, number = f"top_k={vocabulary}".partition("=") if _is_count(vocabulary) else str(vocabulary).partition("=")
    number = number or (str(TOP_K) if name == str(vocabulary) else "")
    if name not in ("top_k", "union", "union_top_k") or not number.isdecimal() or int(number) < 1:
        raise InputError(
            f"vocabulary={vocabulary!r}: expected 'full', a number of tokens, 'top_k=K' or 'union=K' with K at least 1"
        )
    return TopTokens(int(number), name != "top_k")


def reduced_vocabulary(vocabulary: str | int, size: int) -> str:
    """Which tokens reduced angles are over, in one spelling. Raises InputError for as many tokens as there are."""
    top = top_tokens(vocabulary)
    if top is not None and top.k >= size:
        raise InputError(f"vocabulary={vocabulary!r}: the model has {size} tokens; take 'full'")
    return "full" if top is None else str(top)


def pooled(positions: str | int) -> bool:
    """Whether a prompt can have several rows in the spectrum."""
    return positions not in ("last", "mean")


def require_at_least(**given: tuple[int, int]) -> None:
    """Raises InputError for a setting, given as name=(value, least), below its least value."""
    for name, (value, least) in given.items():
        if value < least:
            raise InputError(f"{name}={value}: at least {least} is expected")


def check_trace_settings(given: Mapping[str, Any]) -> None:
    """Raises InputError, naming the setting, for what `spinal_trace` cannot do."""
    for name, words, least in (("positions", POSITIONS, 1), ("lens_positions", LENS_POSITIONS, 0)):
        if given[name] is None and name == "lens_positions":
            continue  # as the preset has it
        if given[name] not in words and not (_is_count(given[name]) and given[name] >= least):
            raise InputError(f"{name}={given[name]!r}: expected {', '.join(words)}, or a number from {least} on")
    top_tokens(given["vocabulary"])
    for name, allowed in (
        ("preset", tuple(PRESETS)), ("estimator", ESTIMATORS), ("row_scale", ROW_SCALES), ("bias", BIASES)
    ):  # fmt: skip
        if given[name] not in allowed:
            raise InputError(f"{name}={given[name]!r}: expected one of {', '.join(map(str, allowed))}")
    require_at_least(drop_top=(given["drop_top"], 0))
    if given["stack"] != "all" and not (isinstance(given["stack"], int) and given["stack"] >= 46):
        raise InputError(f"stack={given['stack']!r}: expected 'all', or at least 46 rows a stack (fewer have no fit)")
    if given["stack"] != "all" and pooled(given["positions"]):
        raise InputError("stack: a stack is of prompts with one row each; take positions='last' or 'mean'")
    window = given["window"]
    if window not in (None, "auto") and not (len(window) == 2 and 0 <= window[0] < window[1] <= 1):
        raise InputError(f"window={window!r}: two shares of the ranks, 0 <= first < last <= 1, or 'auto'")
    require_at_least(max_tokens=(given["max_tokens"], 1))
    require_at_least(groups=(given["groups"], 2), batch_size=(given["batch_size"], 1))
    if not 0 < given["temperature"] < float("inf"):
        raise InputError(f"temperature={given['temperature']}: a number above 0 is expected")


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def preset_values(preset: str, **given: Any) -> dict[str, Any]:
    """The settings by name, those that are None as the preset has them: what was given stands."""
    return {name: PRESETS[preset][name] if value is None else value for name, value in given.items()}
