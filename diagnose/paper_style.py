"""The sequence entropy as a few samples of policy or reference give it, and what those numbers measure instead.

At real lengths one sample carries nearly all weight, and H^ = -log p(y*) - log K: response length and policy entropy.
So the same gate as elsewhere refuses it, and what is refused is compared with length and surprise over prompts.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Float, Shaped

from .rank_correlation import spearman
from .report import Estimate
from .sequence_sampling import Numbers, as_floats
from .statistics import estimate_from
from .weighted_information import MIN_ESS, MIN_ESS_RATIO, SequenceInformation, unmeasured, weighted_information

SAMPLES = 32  # K
UNEQUAL = "no normaliser over free lengths"
CUT = "support is cut"
UNKNOWN = "unknown sampling"
NAMES = ("raw_length_spearman", "raw_surprise_spearman")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How responses were drawn; the defaults are the whole distribution. top_k = 0, top_p = 1, min_p = 0: off."""

    temperature: int | float = 1.0
    top_p: int | float = 1.0
    top_k: int = 0
    min_p: int | float = 0.0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and 0 < self.top_p <= 1 and self.top_k >= 0 and 0 <= self.min_p <= 1):
            raise ValueError(f"temperature and top_k >= 0, top_p in (0, 1], min_p in [0, 1] expected, got {self}")

    @property
    def cuts(self) -> bool:
        """Whether some responses could not be drawn; a greedy one alone could."""
        return self.top_p < 1 or self.top_k > 0 or self.min_p > 0 or self.temperature == 0


def paper_style_information(
    policy: Numbers,
    reference: Numbers,
    lengths: Numbers,
    *,
    proposal: str = "reference",
    sampling: Sampling | None = None,
    proposal_log_probs: Numbers | None = None,
    min_ess: int | float = MIN_ESS,
    min_ess_ratio: int | float = MIN_ESS_RATIO,
) -> SequenceInformation:
    """`weighted_information` of K responses to one prompt drawn from the "reference" or the "policy".

    policy, reference: log-probabilities, nats a response; lengths: tokens. Weights at temperature 1: log policy - 2 log
    reference, or -log reference. At another temperature proposal_log_probs holds log p of every response under the
    proposal at that temperature (also where ends were forbidden while drawing), and log w = log-ratio minus it.
    Refused, with value None and the reason: unequal lengths, whose strings have no common normaliser; sampling that
    cut the support (top-p, top-k, min-p, greedy); sampling None, which is unknown; a temperature whose scores lack;
    collapsed weights. raw_unreliable is kept where the weights are known. Reconstructed: the paper's own estimator
    (arXiv 2505.23761) could not be read.
    ValueError: another proposal, unequal numbers, or as `weighted_information`.
    """
    if proposal not in ("reference", "policy"):
        raise ValueError(f"proposal={proposal!r}: expected reference or policy; the local one is local_information")
    columns = [as_floats(column) for column in (policy, reference, lengths)]
    if len({column.shape for column in columns}) > 1 or columns[0].ndim != 1 or not len(columns[0]):
        raise ValueError(f"policy, reference, lengths [K] of one K >= 1 expected, got {[c.shape for c in columns]}")
    log_p, log_r, n_tokens = columns
    method = f"self-normalised importance sampling, samples of the {proposal}"
    length = int(n_tokens[0]) if (n_tokens == n_tokens[0]).all() else None
    surprise = -float(log_p.mean())
    drawn_at = {"reference": log_r, "policy": log_p}[proposal]
    reason = None
    if sampling is None:
        reason = UNKNOWN
    elif sampling.cuts:
        reason = CUT
    elif proposal_log_probs is not None:
        drawn_at = as_floats(proposal_log_probs)
    elif sampling.temperature != 1:
        reason = f"samples at temperature {sampling.temperature:g}: no scores of the proposal at that temperature"
    if reason:
        return replace(unmeasured(reason, len(log_p), method, length=length), mean_surprise=surprise)
    ratio = log_p - log_r
    found = weighted_information(ratio - drawn_at, ratio, min_ess=min_ess, min_ess_ratio=min_ess_ratio)
    found = replace(found, method=method, length=length, mean_surprise=surprise)
    if length is None:
        raw = found.raw_unreliable if found.value is None else found.value
        return replace(found, value=None, standard_error=None, reason=UNEQUAL, raw_unreliable=raw)
    return found


def raw_confounds(
    raw: Float[np.ndarray, "P"],
    lengths: Float[np.ndarray, "P"],
    surprise: Float[np.ndarray, "P"],
    prompts: Shaped[np.ndarray, "P"] | Sequence[str],
    *,
    draws: int = 2000,
    seed: int = 0,
) -> dict[str, Estimate]:
    """Across prompts: Spearman of the raw H^ with mean length and with mean -log policy; near 1 they say the same.

    NaN where a prompt has no raw value. Null with a reason where a side is constant.
    """
    clusters = np.asarray(prompts)
    sides = zip(NAMES, (("mean length", lengths), ("mean -log policy", surprise)), strict=True)
    found = {}
    for name, (words, other) in sides:
        boot = spearman(raw, other, clusters, draws=draws, seed=seed)
        some = np.isfinite(raw) & np.isfinite(other)
        reason = f"the raw entropy or the {words} is the same for all {int(some.sum())} prompts" if some.any() else None
        found[name] = estimate_from(
            boot, 0, label=f"rank correlation of the raw sequence entropy with {words}, over prompts", unit="",
            null_value=0.0, reason=reason or "no prompt has a raw sequence entropy", reconstructed=True,
        )  # fmt: skip
    return found
