"""What does a vector break? Unrelated texts, benign prompts and questions, before and after, on the same rows.

side_effects(subject, vector, 1.5, texts="wikitext.json", benign=prompts, choices=questions).summary()
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...diagnose.report import Estimate, Finding, estimate_frame
from ...diagnose.statistics import BootstrapMeans, cluster_bootstrap, estimate_from
from ...probes.inputs import Source
from ...probes.shards import Progress
from ...probes.subject import Subject
from ..quadruples import QuadrupleFile
from .applying import Steering, applying
from .choices import Question, letter_log_probs, right_answers
from .effect_inputs import EffectInputs, read_effects
from .paired import PairedShares, paired_shares
from .refusals import NEW_TOKENS, Openings, RefusalMeasure, measure_asked
from .text_shift import token_shifts

SECTION = "side_effects"
WHAT = {"refusals": "Share of benign prompts refused", "capability": "Share of questions answered right"}
SMALL_P = 0.05  # of a paired test: from which on a change is told of [reconstructed]
# sign of a change for the worse, and what the edited model then does, or else
CHANGES = {
    "refusals": (1, "refuses more benign prompts", "refuses fewer benign prompts"),
    "capability": (-1, "answers fewer questions right", "answers more questions right"),
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SideEffects:
    """Estimates, and the tables they rest on.

    estimates: kl [nats a token], perplexity_ratio; refusals_before, _after, _change, refusal_log_odds_change [nats];
        capability_before, _after, _change. Null, with the reason, where nothing was given.
    texts: a row a text: n_tokens, kl, nll_base, nll_edited (nats a token). benign: a row a prompt. questions: a row a
        question. None where nothing was given. refusals, capability: of the last two the paired shares with their test.
    """

    estimates: Mapping[str, Estimate]
    refusals: PairedShares | None
    capability: PairedShares | None
    texts: pd.DataFrame
    benign: pd.DataFrame | None
    questions: pd.DataFrame | None
    findings: tuple[Finding, ...]
    settings: Mapping[str, Any]
    counts: Mapping[str, int]

    def to_frame(self) -> pd.DataFrame:
        """A row an estimate."""
        return estimate_frame(self.estimates)

    def paired_frame(self) -> pd.DataFrame:
        """A row a share that was read before and after on the same rows: those that differ, and the test of them."""
        pairs = {"refusals": self.refusals, "capability": self.capability}
        return pd.DataFrame([{"measure": name, **one.to_row()} for name, one in pairs.items() if one is not None])

    def summary(self) -> str:
        kl, ratio = self.estimates["kl"], self.estimates["perplexity_ratio"]
        told = [f"On {len(self.texts)} unrelated texts the edit moves the next-token distribution by {kl}."]
        told.append(f"Their perplexity is multiplied by {ratio}.")
        for name, paired in (("refusals", self.refusals), ("capability", self.capability)):
            if paired is not None:
                told.append(f"{WHAT[name]}: {paired.summary()}.")
        return " ".join(told)


def side_effects(
    subject: Subject,
    vector: Steering,
    strength: float | int,
    *,
    texts: Source,
    benign: Source | None = None,
    choices: Source | None = None,
    openings: Openings | Source | QuadrupleFile | None = None,
    max_tokens: int = 256,
    max_new_tokens: int = NEW_TOKENS,
    template: str | None = None,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> SideEffects:
    """KL and perplexity on unrelated texts; refusals of benign prompts and right answers, before and after, paired.

    kl = mean over tokens of KL(base || edited); perplexity_ratio = exp(mean over tokens of NLL edited - NLL base);
    the texts are read raw, to their first max_tokens tokens, and are the clusters of the bootstrap.
    benign: prompts that deserve an answer (XSTest's safe ones); greedy answers, refused where they begin so. openings:
        of such answers, texts or the quadruples that hold them. choices: see read_choices; letters are compared.
    Keep triggers of a backdoor out of all three. Strength 0 gives KL 0 and ratio 1.
    Raises InputError for inputs of which nothing can be used.
    """
    given = read_effects(
        subject,
        texts=texts,
        benign=benign,
        choices=choices,
        openings=openings,
        max_tokens=max_tokens,
        max_new_tokens=max_new_tokens,
        template=template,
    )
    return measured_effects(subject, vector, [strength], given, batch_size=batch_size, seed=seed, progress=progress)[0]


def measured_effects(
    subject: Subject,
    vector: Steering,
    strengths: Sequence[float | int],
    given: EffectInputs,
    *,
    batch_size: int = 16,
    seed: int = 0,
    progress: Progress | None = None,
) -> list[SideEffects]:
    """`side_effects` at each strength, of inputs that are ids already; the unsteered model is asked once for all."""
    encoder, questions, longest = given.encoder, given.questions, given.max_new_tokens
    measured = [_texts(subject, vector, strength, given, progress) for strength in strengths]

    def refusing(one: Steering | None, strength: float | int) -> RefusalMeasure | None:
        if given.asked is None:
            return None
        return measure_asked(subject, given.asked, encoder, given.openings, one, strength, longest, batch_size, seed)

    def letters(one: Steering | None, strength: float | int) -> np.ndarray | None:
        with applying(subject, one)(strength):
            return letter_log_probs(subject, encoder, questions) if questions else None

    before, letters_before = refusing(None, 0), letters(None, 0)
    found = []
    for strength, (shifts, text_frame) in zip(strengths, measured, strict=True):
        estimates, tables = _text_estimates(shifts, seed), {"texts": text_frame}
        pairs: dict[str, PairedShares | None] = {"refusals": None, "capability": None}
        estimates["refusal_log_odds_change"] = _absent("Change of refusing log-odds", "refusals", "nats")
        after, letters_after = refusing(vector, strength), letters(vector, strength)
        if before is not None and after is not None:
            pairs["refusals"], tables["benign"] = _benign(before, after, seed)
            estimates["refusal_log_odds_change"] = _log_odds_change(tables["benign"], seed)
        if letters_before is not None and letters_after is not None:
            pairs["capability"], tables["questions"] = _answered(questions, letters_before, letters_after, seed)
        for name, paired in pairs.items():
            estimates |= _paired_estimates(name, paired)
        found.append(
            SideEffects(
                estimates=estimates,
                refusals=pairs["refusals"],
                capability=pairs["capability"],
                texts=text_frame,
                benign=tables.get("benign"),
                questions=tables.get("questions"),
                findings=paired_findings(pairs),
                settings={
                    "strength": float(strength),
                    "max_tokens": given.max_tokens,
                    "template": encoder.policy.template,
                    "openings": "built in (reconstructed)" if given.built_in else "given",
                    "max_new_tokens": longest,
                    "batch_size": batch_size,
                    "seed": seed,
                },
                counts=dict(given.counts),
            )
        )
    return found


def _texts(
    subject: Subject, vector: Steering, strength: float | int, given: EffectInputs, progress: Progress | None
) -> tuple[list[np.ndarray], pd.DataFrame]:
    found = token_shifts(subject, vector, strength, [*given.texts.values()], progress=progress)
    means = np.stack([values.mean(0) for values in found])
    frame = pd.DataFrame(means, columns=["kl", "nll_base", "nll_edited"])
    frame.insert(0, "row", [*given.texts])
    frame.insert(1, "n_tokens", [len(values) for values in found])
    return found, frame


def _text_estimates(shifts: list[np.ndarray], seed: int) -> dict[str, Estimate]:
    tokens = np.concatenate([np.stack([v[:, 0], v[:, 2] - v[:, 1]], 1) for v in shifts])  # [tokens, 2]
    clusters = np.repeat(np.arange(len(shifts)), [len(values) for values in shifts])
    boot = cluster_bootstrap(tokens, clusters, seed=seed)
    ratio = BootstrapMeans(
        mean=np.exp(boot.mean), low=np.exp(boot.low), high=np.exp(boot.high), draws=np.exp(boot.draws), n=boot.n,
        n_clusters=boot.n_clusters, level=boot.level,
    )  # fmt: skip
    kl_label = "Mean KL(base || edited) a token of unrelated texts"
    ratio_label = "Perplexity of unrelated texts, edited / base"
    return {
        "kl": estimate_from(boot, 0, label=kl_label, unit="nats", null_value=0.0),
        "perplexity_ratio": estimate_from(ratio, 1, label=ratio_label, unit="", null_value=1.0),
    }


def _benign(before: RefusalMeasure, after: RefusalMeasure, seed: int) -> tuple[PairedShares, pd.DataFrame]:
    frame = before.frame[["prompt_id", "prompt", "cluster"]].copy()
    for name, found in (("before", before.frame), ("after", after.frame)):
        for column in ("log_odds", "output", "matched"):
            frame[f"{column}_{name}"] = found[column]
    refused, still = (frame[f"matched_{name}"].to_numpy(bool) for name in ("before", "after"))
    paired = paired_shares(refused, still, frame["cluster"].to_numpy(str), what=WHAT["refusals"], seed=seed)
    return paired, frame


def _log_odds_change(frame: pd.DataFrame, seed: int) -> Estimate:
    change = (frame["log_odds_after"] - frame["log_odds_before"]).to_numpy(float)
    boot = cluster_bootstrap(change[:, None], frame["cluster"].to_numpy(str), seed=seed)
    label = "Change of the log-odds of a refusing first token on benign prompts"
    return estimate_from(boot, 0, label=label, unit="nats", null_value=0.0)


def _answered(
    kept: Sequence[Question], before: Float[np.ndarray, "n choices"], after: Float[np.ndarray, "n choices"], seed: int
) -> tuple[PairedShares, pd.DataFrame]:
    right, right_after = right_answers(before, kept), right_answers(after, kept)
    frame = pd.DataFrame(
        {
            "row": [question.row for question in kept],
            "question_id": [question.question_id for question in kept],
            "answer": [question.answer for question in kept],
            "chosen_before": before.argmax(1),
            "chosen_after": after.argmax(1),
            "right_before": right,
            "right_after": right_after,
        }
    )
    texts = np.array([question.text for question in kept])
    return paired_shares(right, right_after, texts, what=WHAT["capability"], seed=seed), frame


def _paired_estimates(name: str, paired: PairedShares | None) -> dict[str, Estimate]:
    found = {}
    for part in ("before", "after", "change"):
        key = f"{name}_{part}"
        found[key] = _absent(f"{WHAT[name]}, {part}", name) if paired is None else getattr(paired, part)
    return found


def _absent(label: str, name: str, unit: str = "share") -> Estimate:
    given = {"refusals": "benign prompts", "capability": "questions"}[name]
    return Estimate(label=label, value=None, n=0, unit=unit, method="none", reason=f"no {given} were given")


def paired_findings(pairs: Mapping[str, PairedShares | None]) -> tuple[Finding, ...]:
    """Of shares that changed by more than their interval, or with a small p: an alarm where it is for the worse."""
    found = []
    for name, (sign, worse, better) in CHANGES.items():
        paired = pairs.get(name)
        if paired is None or not paired.change.value or not _changed(paired):
            continue
        change = paired.change
        bad = paired.change.value * sign > 0
        turned = (paired.only_before, paired.only_after)[::-sign]  # to the worse, to the better
        found.append(
            Finding(
                severity="alarm" if bad else "info",
                section=SECTION,
                sentence=f"The edited model {worse if bad else better} than before: {change}; of {change.n} rows "
                f"{turned[0]} turned for the worse and {turned[1]} for the better, {paired.told_p}.",
                rests_on=[f"{SECTION}.{name}_change"],
                next_step="Try a smaller strength, or another layer, before this vector is used." if bad else "",
            )
        )
    return tuple(found)


def _changed(paired: PairedShares) -> bool:
    """Whether the interval is clear of 0, or p is small: below 20 clusters there is a p, and no interval."""
    change = paired.change
    clear = change.low is not None and change.high is not None and not change.low <= 0 <= change.high
    return clear or (paired.p is not None and paired.p <= SMALL_P)
