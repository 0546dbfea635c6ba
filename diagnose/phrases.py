"""How a share, or a difference of shares, is said in a sentence."""

from .report import Estimate


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def assumed_beta(beta: float, what: str) -> str:
    """Says that a beta nobody gave stands behind `what`."""
    return (
        f"beta {beta:g} (TRL's default; not given) is assumed in {what}; if the training's was another, give it: "
        "--beta (beta=)"
    )


def in_share(estimate: Estimate) -> str:
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "n/a" if estimate.value is None else percent(estimate.value)
    return f"{percent(estimate.value)} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"


def in_points(estimate: Estimate) -> str:
    """A difference of shares in percentage points, with its interval where there is one."""
    if estimate.value is None or estimate.low is None or estimate.high is None:
        return "n/a" if estimate.value is None else f"{100 * estimate.value:+.1f} points"
    return f"{100 * estimate.value:+.1f} points ({100 * estimate.low:+.1f} to {100 * estimate.high:+.1f})"
