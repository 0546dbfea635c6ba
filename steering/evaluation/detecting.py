"""Does the direction tell texts with the concept from texts without? The largest coordinate of a text's tokens.

score = max over tokens of w . h, w the unit direction that points to the concept, h the state at the vector's site.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from ...diagnose.report import Estimate, estimate_frame
from ...diagnose.statistics import (
    cluster_bootstrap,
    cluster_codes,
    estimate_from,
    resampled_counts,
    single_column,
)
from ...errors import InputError
from ...probes.encoding import Encoder, Ids
from ...probes.inputs import Source
from ...probes.pair_rows import RowError, Text, label_of, parse_text
from ...probes.row_files import read_rows
from ...probes.shards import item_key
from ...probes.subject import Subject
from ..encoded import quadruple_encoder
from ..model_fit import require_fit
from ..reading import read_states
from ..separation import auroc
from ..vector import SteeringVector

CHUNK = 32  # texts whose states are held
KINDS = ("positive", "negative", "hard")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Detection:
    """A row a text in `frame`: kind ("positive", "negative", "hard"), row, cluster, half, score, n_tokens.

    estimates: auroc, sensitivity, specificity, hard_negative_accuracy; the last three at `threshold`, on texts that did
    not choose it, and given it.
    """

    frame: pd.DataFrame
    estimates: Mapping[str, Estimate]
    threshold: float  # in the units of h
    counts: Mapping[str, int]

    def to_frame(self) -> pd.DataFrame:
        """A row an estimate."""
        return estimate_frame(self.estimates)

    def summary(self) -> str:
        hard = self.estimates["hard_negative_accuracy"]
        return (
            f"AUROC {self.estimates['auroc']} on {self.counts['positive']} texts with the concept and "
            f"{self.counts['negative']} without; hard negatives told right: {hard}."
        )


def detection(
    subject: Subject,
    vector: SteeringVector,
    positive: Source,
    negative: Source,
    *,
    hard: Source | None = None,
    template: str | None = None,
    max_tokens: int = 256,
    seed: int = 0,
) -> Detection:
    """AUROC of the largest coordinate, ties 1/2, and accuracy on hard negatives at a threshold chosen elsewhere.

    positive, negative, hard: texts, or rows with `text`, or with `prompt` and `response`, of which the response's
        tokens count. Hard negatives look like the concept and are none. Held out, that is for the caller: none that the
        vector was fitted on. A text is read raw, to its first max_tokens tokens. The first token of all, BOS or not,
        does not count: attention rests on it, and its huge state is not the text's.
    The threshold maximises sensitivity + specificity - 1 (Youden 1950) on half of the positive and negative texts, all
    of one prompt in one half; the other half gives sensitivity and specificity, and hard negatives of a prompt that
    chose are left out. Intervals: bootstrap over prompts (or texts). AxBench, arXiv 2501.17148.
    Raises InputError for texts of which none can be read, and where `vector` does not belong on the subject.
    """
    require_fit(
        vector.site,
        vector.subspace.width,
        vector.fingerprint,
        subject,
        allow_other_weights=vector.allow_other_weights,
    )
    texts = read_detection(
        subject, vector, positive, negative, hard=hard, template=template, max_tokens=max_tokens, seed=seed
    )
    return detected(subject, vector, texts, seed=seed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DetectionTexts:
    """Texts as ids; frame: a row a text: row, cluster, n_tokens, kind, half. counts: texts of each kind."""

    frame: pd.DataFrame
    runs: tuple[tuple[Ids, int], ...]  # ids of each row, and the first token that counts
    counts: Mapping[str, int]


def read_detection(
    subject: Subject,
    vector: SteeringVector,
    positive: Source,
    negative: Source,
    *,
    hard: Source | None = None,
    template: str | None = None,
    max_tokens: int = 256,
    seed: int = 0,
) -> DetectionTexts:
    """The texts of `detection`, encoded, with the half that each is in; runs nothing. Raises InputError as it does."""
    if max_tokens < 1:
        raise InputError(f"max_tokens={max_tokens}: expected 1 or more")
    concept_direction(vector)  # refuses a vector without one
    runs: list[tuple[Ids, int]] = []
    parts, counts = [], {}
    for kind, source in zip(KINDS, (positive, negative, hard), strict=True):
        found = [] if source is None else _read(subject, source, template, max_tokens)
        counts[kind] = len(found)
        runs += [(ids, begin) for *_, ids, begin in found]
        columns = {
            "row": [row for row, *_ in found],
            "cluster": [cluster for _, cluster, *_ in found],
            "n_tokens": [len(ids) - begin for *_, ids, begin in found],
        }
        if found:
            parts.append(pd.DataFrame(columns).assign(kind=kind))
    if not (counts["positive"] and counts["negative"]):
        raise InputError(f"{counts['positive']} positive and {counts['negative']} negative texts: none to compare")
    frame = pd.concat(parts, ignore_index=True)
    choosing = _choosing(frame, seed)
    frame["half"] = ["threshold" if cluster in choosing else "reported" for cluster in frame["cluster"]]
    if not {*KINDS[:2]} <= {*frame["kind"][frame["half"] == "threshold"]}:
        raise InputError("too few texts: the half that chooses the threshold has none of a kind; give more")
    return DetectionTexts(frame=frame, runs=tuple(runs), counts=counts)


def detected(subject: Subject, vector: SteeringVector, texts: DetectionTexts, *, seed: int = 0) -> Detection:
    """`detection` of texts that are ids already."""
    direction = concept_direction(vector)
    scores: list[float] = []
    for kind in KINDS:
        of_kind = [run for run, other in zip(texts.runs, texts.frame["kind"], strict=True) if other == kind]
        for start in range(0, len(of_kind), CHUNK):
            some = of_kind[start : start + CHUNK]
            at = [range(begin, len(ids)) for ids, begin in some]
            states = read_states(subject, vector.site, [ids for ids, _ in some], at)
            scores += [float((h.double().cpu() @ direction).max()) for h, _ in states]
    frame = texts.frame.copy()
    frame.insert(2, "score", scores)
    return _result(frame, texts.counts, seed)


def concept_direction(vector: SteeringVector) -> Float[Tensor, "d"]:
    """The unit direction that points to the concept: from f- to f+, the added vector, or an ablation's own (rank 1)."""
    if vector.vector is not None:
        found = vector.vector
    elif vector.factors is not None:
        found = vector.factors.half @ vector.subspace.basis
    elif vector.subspace.rank == 1:
        found = vector.subspace.basis[0]
    else:
        raise InputError(f"an ablation of rank {vector.subspace.rank} has no one direction to detect by")
    length = float(found.double().norm())
    if not length > 0:
        raise InputError("f+ equals f-: no direction points to the concept")
    return found.double() / length


def youden_threshold(positive: Float[np.ndarray, "n"], negative: Float[np.ndarray, "m"]) -> float:
    """The t for which "score >= t" has the largest sensitivity + specificity - 1; of equal ones the highest.

    Midway between the score that it lets in and the next lower one. ValueError where a side is empty.

    >>> youden_threshold(np.array([3.0, 2.0]), np.array([1.0, 0.0]))
    1.5
    """
    if not (len(positive) and len(negative)):
        raise ValueError(f"a threshold between {len(positive)} positive and {len(negative)} negative scores")
    values = np.unique(np.concatenate([positive, negative]))[::-1]  # descending
    gain = (positive[None] >= values[:, None]).mean(1) - (negative[None] >= values[:, None]).mean(1)
    best = int(gain.argmax())
    below = values[best + 1] if best + 1 < len(values) else values[best]
    return float((values[best] + below) / 2)


def auroc_draws(
    positive: Float[np.ndarray, "n"],
    negative: Float[np.ndarray, "m"],
    codes: tuple[Int[np.ndarray, "n"], Int[np.ndarray, "m"]],
    n_clusters: int,
    *,
    draws: int = 2000,
    seed: int = 0,
) -> Float[np.ndarray, "B"]:
    """AUROC of resampled clusters, ties 1/2; NaN where a draw lacks a side. codes: the cluster of every score."""
    difference = positive[:, None] - negative[None]
    credit = (difference > 0) + (difference == 0) / 2  # [n, m]
    found = []
    for times in resampled_counts(n_clusters, draws=draws, seed=seed, width=len(positive) + len(negative)):
        a, b = times[:, codes[0]], times[:, codes[1]]
        with np.errstate(invalid="ignore"):
            found.append(((a @ credit) * b).sum(1) / (a.sum(1) * b.sum(1)))
    return np.concatenate(found)


def _result(frame: pd.DataFrame, counts: Mapping[str, int], seed: int) -> Detection:
    scores = {kind: frame[frame["kind"] == kind] for kind in KINDS}
    shown, plain = (scores[kind]["score"].to_numpy(float) for kind in ("positive", "negative"))
    codes, n_clusters = cluster_codes(
        np.concatenate([scores[kind]["cluster"].to_numpy(str) for kind in ("positive", "negative")])
    )
    sides = codes[: len(shown)], codes[len(shown) :]
    drawn = auroc_draws(shown, plain, sides, n_clusters, seed=seed)
    value = auroc(torch.tensor(shown), torch.tensor(plain))
    boot = single_column(value, drawn, n=len(codes), n_clusters=n_clusters)
    label = "AUROC: P(a text with the concept scores higher), ties 1/2"
    estimates = {"auroc": estimate_from(boot, 0, label=label, null_value=0.5)}
    chooses = frame["half"] == "threshold"
    above, below = (frame["score"][chooses & (frame["kind"] == kind)].to_numpy(float) for kind in KINDS[:2])
    threshold = youden_threshold(above, below)
    told = {
        "sensitivity": ("positive", "Texts with the concept at or above the threshold"),
        "specificity": ("negative", "Texts without it below the threshold"),
        "hard_negative_accuracy": ("hard", "Hard negatives below the threshold"),
    }
    for name, (kind, words) in told.items():
        rows = scores[kind][scores[kind]["half"] == "reported"]
        right = (rows["score"].to_numpy(float) >= threshold) == (kind == "positive")
        estimates[name] = _share(right, rows["cluster"].to_numpy(str), words, seed, kind)
    return Detection(frame=frame, estimates=estimates, threshold=threshold, counts=counts)


def _share(
    right: Bool[np.ndarray, "n"], clusters: Shaped[np.ndarray, "n"], label: str, seed: int, kind: str
) -> Estimate:
    reason = "no hard negatives were given, or all share a prompt" if kind == "hard" else "no such text is reported"
    if not len(right):
        return Estimate(label=label, value=None, n=0, unit="share", method="none", reason=reason)
    boot = cluster_bootstrap(right.astype(np.float64)[:, None], clusters, seed=seed)
    found = estimate_from(boot, 0, label=label, null_value=None)
    return found.model_copy(update={"method": f"{found.method}; given the threshold"})


def _choosing(frame: pd.DataFrame, seed: int) -> set[str]:
    """Clusters whose texts choose the threshold: half of those with either kind of text, and of those with both."""
    kinds: dict[str, set[str]] = {}
    for row in frame[frame["kind"] != "hard"].itertuples():
        kinds.setdefault(str(row.cluster), set()).add(str(row.kind))
    found: set[str] = set()
    for wanted in ({"positive"}, {"negative"}, {"positive", "negative"}):
        some = sorted((c for c, has in kinds.items() if has == wanted), key=lambda c: item_key(seed, c))
        found |= {*some[: len(some) // 2]}
    return found


def _read(subject: Subject, source: Source, template: str | None, longest: int) -> list[tuple[int, str, Ids, int]]:
    """(row, cluster, ids, first token that counts) of every text that can be used."""
    rows = read_rows(source, what="texts", bare="text")
    encoder = quadruple_encoder(subject, template, "none", rows.source)
    read = ((number, _encoded(encoder, row, number, longest)) for number, row in enumerate(rows.rows, 1))
    return [(number, *one) for number, one in read if one is not None]


def _encoded(encoder: Encoder, row: object, number: int, longest: int) -> tuple[str, Ids, int] | None:
    """(cluster, ids, first token that counts) of a text, or of a response behind its prompt; None: unusable."""
    if not isinstance(row, dict):
        return None
    try:
        if "response" in row or "prompt" in row:
            prompt: Text = parse_text(row, "prompt")
            before, after = encoder.encode_apart(prompt, parse_text(row, "response"), number)
            name = item_key(prompt)[:16]
        else:
            text = parse_text(row, "text")
            if not isinstance(text, str) or not text.strip():
                return None
            before = encoder.prefix
            after = tuple(encoder.tokenizer(text, add_special_tokens=False)["input_ids"])
            name = item_key(text)[:16]
        cluster = label_of(row, "cluster") or name
    except RowError:
        return None
    ids = (*before, *after[:longest])
    start = max(1, len(before))  # the first token of all, BOS or not, draws attention: its state is not the text's
    if len(ids) <= start or (encoder.max_length is not None and len(ids) > encoder.max_length):
        return None
    return cluster, ids, start
