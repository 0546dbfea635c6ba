"""Which tokens carry an update? Lists of tokens with their strings, how often they lead, and a place where they do.

Led by q over the whole vocabulary the list is full of tokens that neither model says: three lists, and the suppressed.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..probes.histories import History
from ..probes.kernels.token_readings import TokenAttribution

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from .information_reading import Group, InformationReading

CONTEXT = 40  # characters before the token
LEAST_SEEN = 5  # positions that a token is plausible at before its mean change counts: one place is no pattern
ALL = "all"
LISTS = {
    "full": "largest mean q over the whole vocabulary (often tokens that neither model says)",
    "plausible": "largest mean q among plausible tokens, q renormalised on them",
    "plausible_information": "largest share of D^S: mean of q^S log(|S| q^S), nats",
    "policy_gained": "largest share of KL(policy || reference): mean of pi log(pi / ref), nats",
    "policy_lost": "most negative share of KL(policy || reference), nats",
    "suppressed": f"lowest mean log(pi / ref) where plausible, at {LEAST_SEEN} positions or more, nats",
}
COLUMNS = (
    "source", "bucket", "list", "rank", "token", "piece", "text", "score", "mean_q", "mean_policy", "mean_reference",
    "share_in_top", "n_plausible", "n_positions", "context",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class _Sums:
    """Sums over positions of one source and bucket, as float64 arrays over the vocabulary."""

    n_positions: int
    q_total: Float[np.ndarray, "V"]
    policy_total: Float[np.ndarray, "V"]
    reference_total: Float[np.ndarray, "V"]
    policy_change: Float[np.ndarray, "V"]
    plausible_q: Float[np.ndarray, "V"]
    plausible_contribution: Float[np.ndarray, "V"]
    plausible_change: Float[np.ndarray, "V"]
    plausible_count: Float[np.ndarray, "V"]
    top_count: Float[np.ndarray, "V"]

    @classmethod
    def of(cls, parts: Sequence[TokenAttribution]) -> "_Sums":
        """Of several buckets together."""
        names = [field.name for field in fields(cls) if field.name != "n_positions"]
        arrays = {name: sum(getattr(part, name).double().cpu().numpy() for part in parts) for name in names}
        return cls(n_positions=sum(part.n_positions for part in parts), **arrays)

    def scores(self) -> dict[str, Float[np.ndarray, "V"]]:
        """What each list is ordered by, largest first; NaN leaves a token out."""
        n = max(self.n_positions, 1)
        seen = np.where(self.plausible_count >= LEAST_SEEN, self.plausible_count, np.nan)
        plausible = np.where(self.plausible_count > 0, 1.0, np.nan)
        return {
            "full": self.q_total / n,
            "plausible": plausible * self.plausible_q / n,
            "plausible_information": plausible * self.plausible_contribution / n,
            "policy_gained": self.policy_change / n,
            "policy_lost": -self.policy_change / n,
            "suppressed": -self.plausible_change / seen,
        }


def token_table(
    reading: "InformationReading",
    histories: Sequence[History],
    tokenizer: "PreTrainedTokenizerBase",
    names: Sequence[str],
    *,
    top: int = 10,
) -> pd.DataFrame:
    """The lists (`LISTS`) by source and bucket of positions, `top` tokens each; bucket "all" is every position.

    text: the decoded token as a Python literal, the raw piece where its bytes are no text of their own. share_in_top:
    share of positions that have it among their 10 largest q. context: up to 40 characters before a place where it
    leads by q, or stands; empty where it does neither.
    """
    groups: dict[tuple[str, str], list[TokenAttribution]] = {}
    for (source, number), found in reading.attributions.items():
        for name in (ALL, names[number]):
            groups.setdefault((source, name), []).append(found)
    order = [ALL, *names]
    rows = []
    for source, where in sorted(groups, key=lambda key: (key[0], order.index(key[1]))):
        sums = _Sums.of(groups[source, where])
        places = _places(reading, source, None if where == ALL else names.index(where))
        for name, scores in sums.scores().items():
            sign = -1.0 if name in ("policy_lost", "suppressed") else 1.0
            for rank, token in enumerate(_largest(scores, top), 1):
                rows.append(
                    {
                        "source": source,
                        "bucket": where,
                        "list": name,
                        "rank": rank,
                        "token": int(token),
                        "piece": tokenizer.convert_ids_to_tokens(int(token)),
                        "text": shown(tokenizer, int(token)),
                        "score": sign * float(scores[token]),
                        **_means(sums, int(token)),
                        "context": _context(places.get(int(token)), histories, tokenizer),
                    }
                )
    return pd.DataFrame(rows, columns=list(COLUMNS))


def shown(tokenizer: "PreTrainedTokenizerBase", token: int) -> str:
    """A token as a Python literal; its raw piece where it is a part of a character alone."""
    text = tokenizer.decode([token])
    return str(tokenizer.convert_ids_to_tokens(token)) if "\ufffd" in text or not text else repr(text)


def _largest(scores: Float[np.ndarray, "V"], top: int) -> list[int]:
    """Ids by score, largest first, ties to the smaller id; those of a positive, finite score alone."""
    known = np.flatnonzero((scores > 0) & np.isfinite(scores))  # an excluded token's mean log-ratio is -inf
    return known[np.argsort(-scores[known], kind="stable")][:top].tolist()


def _means(sums: _Sums, token: int) -> dict[str, float | int]:
    n = max(sums.n_positions, 1)
    return {
        "mean_q": float(sums.q_total[token]) / n,
        "mean_policy": float(sums.policy_total[token]) / n,
        "mean_reference": float(sums.reference_total[token]) / n,
        "share_in_top": float(sums.top_count[token]) / n,
        "n_plausible": int(sums.plausible_count[token]),
        "n_positions": sums.n_positions,
    }


def _places(reading: "InformationReading", source: str, bucket: int | None) -> dict[int, tuple[int, int]]:
    """A (history, position) for every token: where it leads by q with the largest q, else where it stands."""
    positions = reading.positions[reading.positions["source"] == source]
    if bucket is not None:
        positions = positions[positions["bucket"] == bucket]
    standing = positions.assign(size=positions["log_ratio"].abs()).sort_values("size", kind="stable")
    leading = reading.tops.merge(positions[["history", "position"]], on=["history", "position"]).sort_values(
        "q", kind="stable"
    )
    found: dict[int, tuple[int, int]] = {}
    for table in (standing, leading):  # the last one counts
        some = zip(table["token"], table["history"], table["position"], strict=True)
        found |= {int(token): (int(history), int(position)) for token, history, position in some}
    return found


def _context(place: tuple[int, int] | None, histories: Sequence[History], tokenizer: "PreTrainedTokenizerBase") -> str:
    if place is None:
        return ""
    history = histories[place[0]]
    before = (*history.prompt_ids, *history.response_ids[: place[1] - 1])
    return tokenizer.decode(before[-2 * CONTEXT :])[-CONTEXT:]


def attribution_totals(attributions: Mapping["Group", TokenAttribution]) -> dict[str, float]:
    """Sums over tokens that must equal sums over positions: of q, of pi d' (KL) and of c^S (D^S); for checks."""
    sums = _Sums.of(list(attributions.values()))
    return {
        "q": float(sums.q_total.sum()),
        "kl": float(sums.policy_change.sum()),
        "plausible_information": float(sums.plausible_contribution.sum()),
    }
