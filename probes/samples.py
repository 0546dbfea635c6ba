"""How far did training move what the reference itself says? Log-ratios of completions drawn from the reference.

samples = score_samples(policy, reference, "samples.jsonl")
samples.to_frame().log_ratio.mean()             # -KL(reference || policy), nats a completion
"""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float64, Shaped

from ..errors import InputError
from .encoding import EncodedSample, TextPolicy, prompt_hash
from .inputs import check_invalid, read_samples, require_full_draws
from .pair_rows import Invalid, plain_text
from .sample_rows import SampleFile
from .scored_models import require_boundaries, score_facts, scored_models
from .scored_rows import TokenSequence
from .sequence_scores import Folder, score_sequences
from .shards import Progress

if TYPE_CHECKING:
    from .subject import Subject


@dataclass(frozen=True, slots=True, kw_only=True)
class SampleScores:
    """A row a sample, the rows set aside, how it was made, and what was counted.

    frame: sample_id, prompt_id (cluster), prompt_hash, policy and reference (summed log-probabilities, nats), log_ratio
    (policy - reference), n_tokens, n_prompt (tokens), finished, boundary_shift. counts: rows kept but flagged.
    """

    frame: pd.DataFrame
    invalid: tuple[Invalid, ...] = ()
    settings: dict[str, Any] = field(default_factory=dict)
    counts: dict[str, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.frame)

    @property
    def log_ratios(self) -> Float64[np.ndarray, "S"]:
        """log pi - log pi_ref, nats a completion."""
        return self.frame["log_ratio"].to_numpy(dtype=np.float64)

    @property
    def prompt_ids(self) -> Shaped[np.ndarray, "S"]:
        return self.frame["prompt_id"].to_numpy()

    @property
    def invalid_counts(self) -> dict[str, int]:
        """Rows set aside by reason, most frequent first."""
        return dict(Counter(row.reason for row in self.invalid).most_common())

    @property
    def notices(self) -> tuple[str, ...]:
        """Sentences about the samples that a reader of their mean should see."""
        found = []
        if n := self.counts.get("unfinished"):
            found.append(
                f"{n} of {len(self)} samples were cut before their end, and count up to there: the mean is that of "
                "completions cut at so many tokens, no larger in size than -KL(ref || policy) of whole ones"
            )
        if self.settings.get("says_finished") is False:
            found.append(
                "the samples do not say whether they are finished (column `finished`), and were taken for whole: a cut "
                "one is then scored with an end that was never drawn"
            )
        if self.settings.get("eos") == "none":
            found.append("no end of a sample was scored (--eos none), so their mean is no whole -KL(ref || policy)")
        if n := self.counts.get("boundary_shift"):
            found.append(f"in {n} samples the prompt's last token merges with the completion; it is scored with it")
        if n := sum(self.invalid_counts.values()):
            parts = ", ".join(f"{count} {reason}" for reason, count in self.invalid_counts.items())
            found.append(f"{n} samples were set aside: {parts}; those left no longer stand for all the reference says")
        return tuple(found)

    def to_frame(self) -> pd.DataFrame:
        """A copy of the table."""
        return self.frame.copy()

    def summary(self) -> str:
        if not len(self):
            return "No sample was scored."
        n_prompts, mean = self.frame["prompt_id"].nunique(), float(self.log_ratios.mean())
        return f"{len(self)} samples of {n_prompts} prompts: mean log pi / pi_ref {mean:+.3g} nats a completion."


def score_samples(
    policy: "str | os.PathLike[str] | Subject",
    reference: "str | os.PathLike[str] | Subject",
    samples: "str | os.PathLike[str] | Iterable[Any] | SampleFile",
    *,
    template: str = "auto",
    eos: str = "auto",
    boundary: str = "refuse",
    max_length: int | None = None,
    over_length: str = "drop",
    batch_tokens: int = 8192,
    cache: Folder | None = None,
    max_invalid: float = 0.05,
    shards: Folder | None = None,
    shard_size: int = 64,
    progress: Progress | None = None,
) -> SampleScores:
    """log pi - log pi_ref (nats) of completions y drawn from the reference at temperature 1, without top-k or top-p.

    Over such samples E[log pi(y) - log pi_ref(y)] = -KL(pi_ref || pi) <= 0: what training that changes anything takes
    from the reference's own answers by force. Of samples from elsewhere (greedy, filtered) the mean is no KL; a file
    that says so (`temperature`, `top_p`, `top_k`, `min_p`) is refused.
    Cut samples (`finished` false) are scored up to the cut, without an end. Mixed with the whole ones they are draws of
    the reference stopped after so many tokens, and their mean is -KL of the two stopped models. By the chain rule, a
    sum of KLs >= 0 over tokens, this is at most as large as that of whole completions. To leave them out would keep
    short answers alone; to append an end would score what was never drawn. counts["unfinished"] says how many.
    Under eos="none" no end is scored, and the mean lacks the decision to stop: it is comparable with the pairs scored
    so, but no KL. Text is tokenised anew: where that gives other ids than were drawn, those are scored.

    samples: file or rows, see read_samples; equal rows all count. Every other option is that of `score_pairs`; give the
    same ones, or the mean does not compare with the pairs'. Raises InputError without a reference, for other
    tokenizers, text that cannot be encoded, samples of a part of the distribution, or more than the share max_invalid
    of unusable rows.
    """
    if reference is None:
        raise InputError("samples of the reference are scored under both models: give the reference (--reference)")
    if batch_tokens < 1 or shard_size < 1:
        raise InputError(f"batch_tokens={batch_tokens}, shard_size={shard_size}: both are at least 1")
    text = TextPolicy(template, eos, boundary, max_length, over_length)
    file = read_samples(samples)
    check_invalid(file, max_invalid)
    require_full_draws(file, "reference")
    models = scored_models(policy, reference)
    encoder = models.encoder(text, file.source)
    every = [encoder.encode_sample(sample) for sample in file]
    encoded = [sample for sample in every if isinstance(sample, EncodedSample)]
    invalid = [sample for sample in every if isinstance(sample, Invalid)]
    check_invalid(file, max_invalid, more=invalid)
    require_boundaries(encoded, encoder, file.source, what="samples")

    totals = {
        role: score_sequences(
            model,
            [TokenSequence(sample.ids, sample.start) for sample in encoded],
            vocab=models.vocab,
            text_facts=score_facts(encoder),
            batch_tokens=batch_tokens,
            shards=shards,
            shard_size=shard_size,
            cache=cache,
            progress=progress,
            stage=f"samples {role}",
        )
        for role, model in models.by_role.items()
    }
    frame = _table(encoded, {role: [total for total, _ in found] for role, found in totals.items()})
    aside = _not_finite(frame, encoded)
    check_invalid(file, max_invalid, more=[*invalid, *aside])
    lost = {row.row for row in aside}
    kept = [sample.row not in lost for sample in encoded]
    encoded = [sample for sample, keep in zip(encoded, kept, strict=True) if keep]
    return SampleScores(
        frame=frame[kept].reset_index(drop=True),
        invalid=tuple(sorted((*file.invalid, *invalid, *aside), key=lambda row: row.row)),
        settings={
            **encoder.facts(),
            **models.facts(),
            "batch_tokens": batch_tokens,
            "max_invalid": max_invalid,
            "samples": file.source,
            "samples_sha256": file.sha256,
            "n_rows": file.n_rows,
            "says_finished": file.says_finished,
        },
        counts=_counts(encoded),
    )


def _table(encoded: list[EncodedSample], totals: dict[str, list[float]]) -> pd.DataFrame:
    policy, reference = (np.array(totals[role], dtype=np.float64) for role in ("policy", "reference"))
    with np.errstate(invalid="ignore"):  # -inf - -inf: set aside below
        log_ratio = policy - reference
    return pd.DataFrame(
        {
            "sample_id": [sample.sample.sample_id for sample in encoded],
            "prompt_id": [sample.sample.prompt_id or prompt_hash(sample) for sample in encoded],
            "prompt_hash": [prompt_hash(sample) for sample in encoded],
            "policy": policy,
            "reference": reference,
            "log_ratio": log_ratio,
            "n_tokens": [len(sample.ids) - sample.start for sample in encoded],
            "n_prompt": [sample.n_prompt for sample in encoded],
            "finished": [sample.sample.finished for sample in encoded],
            "boundary_shift": [sample.boundary_shift for sample in encoded],
        }
    )


def _not_finite(frame: pd.DataFrame, encoded: list[EncodedSample]) -> list[Invalid]:
    found = []
    for i, sample in enumerate(encoded):
        for role in ("policy", "reference"):
            total = float(frame[role][i])
            if not np.isfinite(total):
                detail, name = f"log-probability {total:g}", sample.sample.sample_id
                found.append(Invalid(row=sample.row, reason=f"non_finite_{role}", detail=detail, name=name))
                break
    return found


def _counts(encoded: list[EncodedSample]) -> dict[str, int]:
    return {
        "scored": len(encoded),
        "prompts": len({sample.sample.prompt_id or prompt_hash(sample) for sample in encoded}),
        "unfinished": sum(not sample.sample.finished for sample in encoded),
        "empty": sum(not plain_text(sample.sample.completion).strip() for sample in encoded),
        "truncated": sum(sample.truncated for sample in encoded),
        "boundary_shift": sum(sample.boundary_shift for sample in encoded),
        "special_in_text": sum(sample.special_in_text for sample in encoded),
        "raw_on_template_model": sum(sample.raw_on_template_model for sample in encoded),
    }
