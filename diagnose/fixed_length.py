"""How much of all that could be said in T tokens did training single out? Two models, a row a prompt.

The strings are those of exactly T tokens without an end of text. What the local proposal draws is mostly improbable
text: a property of the differential information, not of the sampler.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import InputError
from ..probes.next_tokens import NextTokens, cache_problem, end_ids
from ..probes.scored_models import scored_models
from ..probes.shards import Progress
from .next_token_laws import NoRatioError
from .paper_style import SAMPLES, raw_confounds
from .report import Estimate
from .sequence_information import local_information, sequence_information
from .statistics import cluster_bootstrap, estimate_from
from .weighted_information import MIN_ESS, MIN_ESS_RATIO, SequenceInformation, unmeasured

if TYPE_CHECKING:
    from ..probes.subject import Subject

LOCAL_SAMPLES = 200
LOCAL_TEXT = "what the local proposal draws is mostly improbable text: a property of the DID, not of the sampler"
COLUMNS = (
    "prompt", "value", "low", "high", "standard_error", "information", "ess", "samples", "runs", "pareto_k", "reason",
    "raw_unreliable", "log_normalizer", "bias", "log_support", "length", "mean_surprise", "method",
)  # fmt: skip
ESTIMATES = {  # name -> label
    "entropy": "sequence entropy of the differential information, mean over prompts that pass the gate",
    "information": "log number of strings minus that entropy, mean over the same prompts",
    "normalized_entropy": "that entropy as a share of the largest, mean over the same prompts",
}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class FixedLengthInformation:
    """One `SequenceInformation` a prompt, in their order, and how they were made."""

    prompts: tuple[str, ...]
    found: tuple[SequenceInformation, ...]
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def n_published(self) -> int:
        """Prompts whose weights pass the gate."""
        return sum(one.value is not None for one in self.found)

    @property
    def value(self) -> float | None:
        """Mean entropy over the prompts that pass the gate, nats; None where none does."""
        known = [one.value for one in self.found if one.value is not None]
        return float(np.mean(known)) if known else None

    @property
    def reason(self) -> str | None:
        """Why there is no value: that of the first prompt; None where there is one."""
        return None if self.n_published or not self.found else self.found[0].reason

    @property
    def ess(self) -> float | None:
        """The smallest over prompts."""
        return min((one.ess for one in self.found if one.ess is not None), default=None)

    @property
    def pareto_k(self) -> float | None:
        """The largest k-hat over prompts."""
        return max((one.pareto_k for one in self.found if one.pareto_k is not None), default=None)

    @property
    def warnings(self) -> tuple[str, ...]:
        return (LOCAL_TEXT,) if self.settings.get("proposal") == "local" else ()

    def to_frame(self) -> pd.DataFrame:
        """A row a prompt; nats a string. A refused value is null; raw_unreliable then holds what it would have been."""
        rows = []
        for prompt, one in zip(self.prompts, self.found, strict=True):
            low, high = one.interval() or (None, None)
            known = {"prompt": prompt, "low": low, "high": high}
            rows.append([known[name] if name in known else getattr(one, name) for name in COLUMNS])
        frame = pd.DataFrame(rows, columns=list(COLUMNS))
        words = ("prompt", "reason", "method", "samples", "runs", "length")
        return frame.astype({name: "float64" for name in COLUMNS if name not in words})

    def estimates(self, *, level: float = 0.95, resamples: int = 2000, seed: int = 0) -> dict[str, Estimate]:
        """Means over the prompts that pass, intervals by bootstrap of prompts; and for samples of policy or reference
        how the raw values go with length and surprise. Null, with the commonest reason, where no prompt passes.
        """
        frame = self.to_frame()
        ids = np.asarray(self.prompts)
        share = frame["value"] / frame["log_support"]
        values = np.column_stack([frame["value"], frame["information"], share]).astype(np.float64)
        boot = cluster_bootstrap(values, ids, draws=resamples, seed=seed, level=level)
        common = frame["reason"].dropna().mode()
        passed = f"{self.n_published} of {len(self.found)} prompts pass"
        found = {
            name: estimate_from(
                boot, k, label=f"{label} ({passed})", unit="" if name == "normalized_entropy" else "nats a string",
                reason=str(common[0]) if len(common) else None, reconstructed=True,
            )
            for k, (name, label) in enumerate(ESTIMATES.items())
        }  # fmt: skip
        if self.settings.get("proposal") != "local":
            raw = frame["raw_unreliable"].fillna(frame["value"]).to_numpy()
            length = frame["length"].to_numpy(dtype=np.float64)
            surprise = frame["mean_surprise"].to_numpy()
            found |= raw_confounds(raw, length, surprise, ids, draws=resamples, seed=seed)
        return found

    def summary(self) -> str:
        if not self.n_published:
            return f"No sequence entropy for any of {len(self.found)} prompts: {self.found[0].reason}."
        frame = self.to_frame().dropna(subset="value")
        return (
            f"Of {len(self.found)} prompts {self.n_published} have a sequence entropy, on average "
            f"{frame['value'].mean():.4g} of at most {frame['log_support'].mean():.4g} nats."
        )


def fixed_length_information(
    policy: "Subject | Any",
    reference: "Subject | Any",
    prompt_ids: Sequence[Sequence[int]],
    *,
    prompts: Sequence[str] | None = None,
    length: int = 20,
    samples: int | None = None,
    proposal: str = "local",
    paper_style: bool = False,
    temperature: int | float = 1.0,
    method: str = "auto",
    runs: int = 8,
    excluded_ids: Sequence[int] | None = None,
    min_ess: int | float = MIN_ESS,
    min_ess_ratio: int | float = MIN_ESS_RATIO,
    batch_tokens: int = 8192,
    seed: int = 0,
    progress: Progress | None = None,
) -> FixedLengthInformation:
    """`sequence_information` of two models behind every prompt (ids, as the models read them).

    policy, reference: Subjects, or what `score_pairs` takes; one module with its adapter on and off too.
    prompts: names, by default "prompt 1" and so on; equal names are one cluster of the intervals.
    samples: default 200, and 32 for paper_style. proposal: "local", or "policy" / "reference" at `temperature`, which
    collapse. paper_style=True: those two alone (local then means reference). method, runs: see `sequence_information`.
    excluded_ids: default the ids that end a text for either model. Heads are cut to the shared tokenizer's vocabulary.
    The draws behind a prompt depend on its ids, place among the tokens and `seed` alone, not on the other prompts.
    A prompt longer than the models read, or with logits that are no numbers, gets a null row with its reason.
    Raises InputError for other tokenizers, no prompt or one without a token, unequal numbers of prompts and names,
    length or samples below 1.
    """
    if proposal not in ("local", "policy", "reference") or method not in ("auto", "snis", "smc"):
        raise InputError(
            f"proposal={proposal!r}, method={method!r}: expected local, policy or reference, and auto, snis or smc"
        )
    if paper_style and proposal == "local":
        proposal = "reference"
    if proposal != "local" and method == "smc":
        raise InputError(f"proposal={proposal!r}: particles follow the local proposal; leave method to auto or snis")
    samples = (SAMPLES if paper_style else LOCAL_SAMPLES) if samples is None else samples
    names = [f"prompt {i + 1}" for i in range(len(prompt_ids))] if prompts is None else list(prompts)
    if length < 1 or samples < 1 or not len(prompt_ids) or len(names) != len(prompt_ids):
        raise InputError(
            f"length={length}, samples={samples}, {len(prompt_ids)} prompts and {len(names)} names: expected each at "
            "least 1, and as many names as prompts"
        )
    models = scored_models(policy, reference)
    if models.reference is None:
        raise InputError("the differential information of a policy needs a reference (--reference)")
    both = (models.policy, models.reference)
    excluded = end_ids(*both) if excluded_ids is None else tuple(excluded_ids)
    problems = [cache_problem(one, prompt_ids[0]) for one in both]
    options: dict[str, Any] = {
        "length": length, "samples": samples, "min_ess": min_ess, "min_ess_ratio": min_ess_ratio,
        "excluded_ids": [i for i in excluded if i < models.vocab],
    }  # fmt: skip
    def measured(ids: Sequence[int]) -> SequenceInformation:
        needed = len(ids) + length - 1  # the last token is drawn, not read
        if models.limit is not None and needed > models.limit:
            reason = f"prompt and strings have {needed} tokens, the models read {models.limit}"
            return unmeasured(reason, samples, "not sampled", length=length)
        steps = [
            NextTokens(one, ids, vocab=models.vocab, batch_tokens=batch_tokens, cached=problem is None)
            for one, problem in zip(both, problems, strict=True)
        ]
        own = {"seed": [seed, *map(int, ids)], **options}
        try:
            if proposal == "local":
                return sequence_information(*steps, method=method, runs=runs, **own)
            return local_information(*steps, proposal=proposal, temperature=temperature, **own)
        except NoRatioError as error:
            return unmeasured(str(error), samples, "not sampled", length=length)

    found = []
    for ids in prompt_ids:
        found.append(measured(ids))
        if progress is not None:
            progress("fixed length", len(found), len(prompt_ids))
    settings = {
        **models.facts(), "length": length, "samples": samples, "proposal": proposal, "paper_style": paper_style,
        "temperature": temperature, "method": method, "runs": runs, "excluded_ids": list(excluded), "seed": seed,
        "min_ess": min_ess, "min_ess_ratio": min_ess_ratio,
        "read_without_cache": {one.name: problem for one, problem in zip(both, problems, strict=True) if problem},
    }  # fmt: skip
    return FixedLengthInformation(prompts=tuple(names), found=tuple(found), settings=settings)

