"""When did a series begin to change, and when did it break? Arrays in, answers out; knows nothing of what is measured.

`cusum` watches increments for a break, `onset` reads p-values by save, `broken_stick` finds where a slope changes.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float, Shaped

from .statistics import MIN_CLUSTERS, cluster_bootstrap, percentile_interval, wilson

DRIFT, ALARM_AT, BURN_IN = 0.5, 10.0, 8  # per increment, of the sum, and increments that only serve as the reference
MIN_INCREMENTS = BURN_IN + 1
MAD_TO_SD = 1.4826  # of a normal distribution
MIN_SAVES = 8  # for a broken stick
ROUNDING = 1e-9  # of the largest increment: equal ones differ by this much, and a spread of it is none
STRAIGHT = 1e-12  # share of the squares that a break must explain; less is rounding

# increments -> series that alarmed among RUNS of independent normal increments, own SE 0, either direction
# (python -m benchmarks.false_alarms)
RUNS = 100_000
FALSE_ALARMS = {
    9: 156, 10: 474, 12: 1095, 14: 1750, 16: 2292, 20: 3312, 25: 4162,
    30: 4675, 40: 5543, 50: 6022, 60: 6241, 80: 6649, 100: 6823,
}  # fmt: skip

Answer = Literal["interval", "before the first save", "at the last save only: not confirmed", "not seen", "not tested"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FalseAlarms:
    """How often a series of noise alone alarms: a share with Wilson's interval, from `runs` simulated series."""

    rate: float
    low: float
    high: float
    runs: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cusum:
    """Two sums that grow while increments stay above (up) or below (down) what earlier ones lead to expect.

    z: NaN in the burn-in. rise, fall: index of the first increment at which `up` or `down` reached the alarm.
    reason: why there is no answer; the sums are then 0.
    """

    z: Float[np.ndarray, "n"]
    up: Float[np.ndarray, "n"]
    down: Float[np.ndarray, "n"]
    rise: int | None
    fall: int | None
    reason: str | None

    @property
    def alarm(self) -> int | None:
        """Index of the first increment at which either sum reached the alarm."""
        return min((at for at in (self.rise, self.fall) if at is not None), default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Onset:
    """When a series first left its first save, for good: in the interval (last_quiet, first_significant] of steps.

    answer "before the first save": the first save after the start is significant already. The steps are None where
    nothing was seen; a single significant last save is named in `first_significant` and not confirmed.
    """

    answer: Answer
    last_quiet: float | None = None
    first_significant: float | None = None
    direction: int = 0  # 1 up, -1 down
    reason: str | None = None  # why nothing was tested

    @property
    def seen(self) -> bool:
        """Two successive saves confirm it."""
        return self.answer in ("interval", "before the first save")


@dataclass(frozen=True, slots=True, kw_only=True)
class Break:
    """Step at which the slope of a broken stick changes, with a percentile interval from prompts; None with reason."""

    step: float | None
    low: float | None = None
    high: float | None = None
    n_clusters: int = 0
    reason: str | None = None


def cusum(increments: Float[np.ndarray, "n"], se: Float[np.ndarray, "n"] | None = None) -> Cusum:
    """Two-sided CUSUM of increments against all earlier ones.

    z = (x - median of all earlier) / max(1.4826 MAD of all earlier, own standard error), 0 where numerator and scale
    vanish, infinite where the scale alone does; S = max(0, S + z - .5), mirrored for drops; alarm at 10; the first 8
    increments are a reference only. Page 1954, with a growing robust reference (ours). se: in the unit of the
    increments; None is 0. Fewer than 9 increments: no answer, with the reason.
    Raises ValueError for increments or standard errors that are not finite, or standard errors below 0.
    """
    se = np.zeros(len(increments)) if se is None else se
    if se.shape != increments.shape:
        raise ValueError(f"{len(increments)} increments and {len(se)} standard errors: as many expected")
    if not (np.isfinite(increments).all() and np.isfinite(se).all() and (se >= 0).all()):
        raise ValueError("increments and standard errors are finite, and standard errors >= 0; leave out the others")
    z, up, down = cusum_sums(increments[None], se[None])
    reason = None
    if len(increments) < MIN_INCREMENTS:
        reason = f"too few checkpoints: {len(increments)} increments, {MIN_INCREMENTS} needed"
    return Cusum(z=z[0], up=up[0], down=down[0], rise=_first(up[0]), fall=_first(down[0]), reason=reason)


def cusum_sums(
    increments: Float[np.ndarray, "R n"], se: Float[np.ndarray, "R n"]
) -> tuple[Float[np.ndarray, "R n"], Float[np.ndarray, "R n"], Float[np.ndarray, "R n"]]:
    """z, sum of rises and sum of drops of R series at once; z is NaN and the sums are 0 in the burn-in.

    A numerator or scale under 1e-9 of the largest increment so far is rounding and counts as 0."""
    z = np.full(increments.shape, np.nan)
    up, down = np.zeros((2, *increments.shape))
    for i in range(BURN_IN, increments.shape[1]):
        earlier = increments[:, :i]
        middle = np.median(earlier, axis=1)
        mad = np.median(np.abs(earlier - middle[:, None]), axis=1)
        rounding = ROUNDING * np.abs(increments[:, : i + 1]).max(axis=1)
        scale, off = np.maximum(MAD_TO_SD * mad, se[:, i]), increments[:, i] - middle
        scale, off = np.where(scale > rounding, scale, 0.0), np.where(np.abs(off) > rounding, off, 0.0)
        endless = np.where(off == 0, 0.0, np.copysign(np.inf, off))
        z[:, i] = np.divide(off, scale, out=endless, where=scale > 0)
        up[:, i] = _added(up[:, i - 1], z[:, i])
        down[:, i] = _added(down[:, i - 1], -z[:, i])
    return z, up, down


def _added(total: Float[np.ndarray, "R"], z: Float[np.ndarray, "R"]) -> Float[np.ndarray, "R"]:
    """max(0, S + z - drift); an infinite drop empties an infinite sum."""
    return np.maximum(0.0, np.where(np.isneginf(z), 0.0, total) + z - DRIFT)


def _first(sums: Float[np.ndarray, "n"]) -> int | None:
    reached = sums >= ALARM_AT
    return int(reached.argmax()) if reached.any() else None


def false_alarms(n: int) -> FalseAlarms | None:
    """How often a CUSUM of n increments of pure noise alarms; between simulated lengths a straight line.

    None under 9 increments, where the rule does not run, and beyond the longest simulated series.
    """
    lengths = sorted(FALSE_ALARMS)
    if not MIN_INCREMENTS <= n <= lengths[-1]:
        return None
    rate = float(np.interp(n, lengths, [FALSE_ALARMS[length] / RUNS for length in lengths]))
    low, high = wilson(rate * RUNS, RUNS)
    return FalseAlarms(rate=rate, low=low, high=high, runs=RUNS)


def onset(
    p: Float[np.ndarray, "n"], change: Float[np.ndarray, "n"], *, steps: Float[np.ndarray, "n"], level: float
) -> Onset:
    """First of two successive saves whose change against save 0 is significant (p < level) in one direction.

    p: adjusted for all saves (and signals) tested together; entry 0, the start itself, is not read. The interval's
    lower end is the last save before it that was not significant. Raises ValueError for fewer than 2 saves or a p that
    is no probability.
    """
    if len(p) < 2:
        raise ValueError(f"{len(p)} saves: an onset needs a start and a save after it")
    if not ((p[1:] >= 0) & (p[1:] <= 1)).all():
        raise ValueError("p-values lie in [0, 1]; a series that was not tested has no onset")
    sign = np.where(p < level, np.sign(change), 0.0)
    sign[0] = 0.0
    for i in range(1, len(p) - 1):
        if sign[i] != 0 and sign[i] == sign[i + 1]:
            quiet = int(np.flatnonzero(sign[:i] == 0)[-1])
            return Onset(
                answer="interval" if quiet > 0 else "before the first save",
                last_quiet=float(steps[quiet]),
                first_significant=float(steps[i]),
                direction=int(sign[i]),
            )
    if sign[-1] != 0:
        quiet = int(np.flatnonzero(sign[:-1] == 0)[-1])
        return Onset(
            answer="at the last save only: not confirmed",
            last_quiet=float(steps[quiet]),
            first_significant=float(steps[-1]),
            direction=int(sign[-1]),
        )
    return Onset(answer="not seen")


def broken_stick(x: Float[np.ndarray, "n"], y: Float[np.ndarray, "B n"]) -> Float[np.ndarray, "B"]:
    """Breakpoint of the least-squares fit y = a + b x + c max(x - breakpoint, 0), a curve a row.

    Exact (Hudson 1966): the best break is a knot x_k, or where the lines through the points on either side meet between
    them. It lies in [x_1, x_(n-2)], so that two points are on either side; NaN where a straight line does as well.
    Raises ValueError for fewer than 4 points, or an x that does not rise.
    """
    if len(x) < 4 or not (np.diff(x) > 0).all():
        raise ValueError(f"{len(x)} points: 4 or more at rising x are expected")
    unit = (x - x[0]) / (x[-1] - x[0])  # steps may be 1e6: a well-conditioned basis
    where, squares = [], []
    for knot in unit[1:-1]:
        where.append(np.full(len(y), knot))
        squares.append(_left_over(np.stack([np.ones_like(unit), unit, np.maximum(unit - knot, 0.0)], axis=1), y)[1])
    for k in range(1, len(x) - 2):
        (left, below), (right, above) = (_line(unit[side], y[:, side]) for side in (slice(k + 1), slice(k + 1, None)))
        with np.errstate(divide="ignore", invalid="ignore"):  # parallel lines never meet
            meet = (left[0] - right[0]) / (right[1] - left[1])
        inside = (meet > unit[k]) & (meet < unit[k + 1])
        where.append(np.where(inside, meet, 0.0))
        squares.append(np.where(inside, below + above, np.inf))
    best, rows = np.argmin(squares, axis=0), np.arange(len(y))
    found, least = np.array(where)[best, rows], np.array(squares)[best, rows]
    gained = _line(unit, y)[1] - least > STRAIGHT * (y**2).sum(1)
    return np.where(gained, x[0] + found * (x[-1] - x[0]), np.nan)


def breakpoint_interval(
    steps: Float[np.ndarray, "n"],
    values: Float[np.ndarray, "n N"],
    clusters: Shaped[np.ndarray, "N"],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Break:
    """Breakpoint of the mean curve over steps, with a percentile interval from resampled clusters (prompts).

    The interval covers the choice of prompts, not that of training run or of the shape with one break.
    """
    if len(steps) < MIN_SAVES:
        return Break(step=None, reason=f"{len(steps)} saves: a broken stick needs {MIN_SAVES}")
    boot = cluster_bootstrap(values.T, clusters, draws=draws, seed=seed)
    n_clusters = int(boot.n_clusters.min())
    found = broken_stick(steps, boot.mean[None])[0] if np.isfinite(boot.mean).all() else np.nan
    if np.isnan(found):
        return Break(step=None, n_clusters=n_clusters, reason="no break: a straight line fits as well")
    if n_clusters < MIN_CLUSTERS:
        why = f"{n_clusters} clusters (prompts): an interval needs {MIN_CLUSTERS}"
        return Break(step=float(found), n_clusters=n_clusters, reason=why)
    low, high = percentile_interval(broken_stick(steps, boot.draws))
    return Break(step=float(found), low=float(low), high=float(high), n_clusters=n_clusters)


def _left_over(
    basis: Float[np.ndarray, "n k"], y: Float[np.ndarray, "B n"]
) -> tuple[Float[np.ndarray, "k B"], Float[np.ndarray, "B"]]:
    """Coefficients of least squares, and the sum of squares they leave."""
    coefficients = np.linalg.lstsq(basis, y.T, rcond=None)[0]
    return coefficients, ((y.T - basis @ coefficients) ** 2).sum(0)


def _line(
    x: Float[np.ndarray, "m"], y: Float[np.ndarray, "B m"]
) -> tuple[Float[np.ndarray, "2 B"], Float[np.ndarray, "B"]]:
    """Intercept and slope of a straight line, and the sum of squares it leaves."""
    return _left_over(np.stack([np.ones_like(x), x], axis=1), y)
