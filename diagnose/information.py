"""Differential information: what an update added, token by token, beside what it would mean for whole responses.

report = alignscope.information_report("dpo/", "sft/", "pairs.jsonl")
report.rates["chosen"]["plausible_information"]
"""

import os
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import InputError
from ..probes.encoding import TextPolicy
from ..probes.histories import bucket_names
from ..probes.kernels.plausible_tokens import parse_plausible
from ..probes.scored_models import ScoredModels
from .fixed_length import FixedLengthInformation, fixed_length_information
from .history_sets import Given, HistoryInput, HistorySet, history_input
from .information_analysis import (
    Resampling,
    candidate_sets,
    left_out,
    pair_checks,
    rates_by_source,
    response_table,
    sample_identities,
    strip_texts,
)
from .information_chain import chain_updates
from .information_floor import ROUNDING, NoiseFloor, measured_floor
from .information_rates import COUNTED, counted, profile_table, tilt_table
from .information_report import InformationReport
from .information_sides import token_identities_of
from .information_tokens import token_table
from .information_turns import BothRead, Texts, read_both, read_in_turn, require_in_turn
from .naming import short_name

if TYPE_CHECKING:
    from ..probes.histories import History
    from ..probes.shards import Progress
    from ..probes.subject import Subject

__all__ = ["InformationReport", "information_report"]

Folder = str | os.PathLike[str]
NOT_MEASURED = NoiseFloor(effective=ROUNDING, measured={}, n_histories=0, reason="not asked for")
SEQUENCES = (None, "candidates", "fixed_length")


def information_report(
    policy: "str | os.PathLike[str] | Subject",
    reference: "str | os.PathLike[str] | Subject",
    pairs_or_histories: "Given | Sequence[History] | HistoryInput",
    *,
    source: str = "dataset",
    plausible: float | str = 1e-4,
    top_tokens: int = 10,
    position_buckets: Sequence[int] = (5, 50),
    sequence: str | None = None,
    length: int = 20,
    samples: int | None = None,
    proposal: str = "local",
    paper_style: bool = False,
    sequence_prompts: int = 20,
    min_ess: float = 10,
    min_ess_ratio: float = 0.05,
    policy_samples: Given | None = None,
    reference_samples: Given | None = None,
    via: "Mapping[str, str | os.PathLike[str] | Subject] | None" = None,
    base: Folder | None = None,
    beta: float | None = None,
    in_sample: bool = False,
    measure_floor: bool | NoiseFloor = True,
    one_at_a_time: bool = False,
    dtype: str = "float32",
    device: str = "auto",
    template: str = "auto",
    eos: str = "auto",
    boundary: str = "refuse",
    max_length: int | None = None,
    over_length: str = "drop",
    batch_tokens: int = 8192,
    share_prefix: str | bool = "auto",
    max_invalid: float = 0.05,
    level: float = 0.95,
    resamples: int = 2000,
    seed: int = 0,
    shards: Folder | None = None,
    reference_states: Folder | None = None,
    progress: "Progress | None" = None,
) -> InformationReport:
    """How much did training from `reference` to `policy` change, at which tokens and positions, and as its data say?

    At every position of every response, with d = z_policy - z_reference over the shared tokenizer's vocabulary:
    q = softmax(d), information D = log V - H(q), the same over plausible tokens (D^S), KL both ways, nats, exact
    (arXiv 2505.23761, token level). Means over tokens, then a prompt's responses, then prompts, whose bootstrap gives
    the intervals.

    pairs_or_histories: pairs (sources "chosen" and "rejected"), a file or rows of responses (`prompt`, `completion` or
        `response`; named after `source`), or `History` objects. policy_samples, reference_samples: completions drawn
        from either model at temperature 1 (`draw_samples`), for their own rates, the identities, candidate sets and
        what sampling alone predicts of the displacement.
    plausible: tokens with probability >= this under either model, or "top64". position_buckets: last positions (from 1)
        of the buckets; the end-of-sequence token is a bucket of its own.
    sequence: "fixed_length" adds the entropy over all strings of `length` tokens behind `sequence_prompts` of the
        prompts, from `samples` draws (see fixed_length_information); "candidates", each prompt's samples as a finite
        set, is there wherever samples are. paper_style: 32 samples of the reference (or the policy) as proposal, which
        the gate normally refuses.
    via: name -> save between reference and policy, in order: table `updates` has the rates of reference -> save, of
        save -> next save and of reference -> policy, over the same histories. base: of the adapters among all these
        models, where neither their own config nor `reference` names it.
    beta: of the DPO training, held against what the pairs' labels say. in_sample: the pairs are those of the training.
    measure_floor: read the reference in another dtype too (a copy of it in memory); False: 2e-3 nats is the floor; or
        the floor that another report of this reference measured.
    one_at_a_time: two paths that share no weights are never in memory together: the policy leaves its states and its
        head and is gone before the reference is loaded (of which `measure_floor` makes a copy). dtype, device: of
        models given as paths.
    shards: folder for the states of both models; a killed run repeats at most one shard, and they are deleted at the
        end. None: a temporary folder. reference_states: folder where those of the reference are kept, for other
        policies over the same responses. Every other option is that of `score_pairs`.
    progress: called as progress(stage, done, total).
    Raises InputError for other tokenizers (naming the first differing id), files that cannot be used, or settings that
    do not fit together.
    """
    check_information_settings(locals())
    if one_at_a_time:
        whole = sequence == "fixed_length" or paper_style
        require_in_turn(policy, reference, base=base, whole_sequences=whole)
    given = pairs_or_histories
    if not isinstance(given, HistoryInput):
        given = history_input(
            given,
            source=source,
            policy_samples=policy_samples,
            reference_samples=reference_samples,
            max_invalid=max_invalid,
        )
    texts = Texts(
        given=given,
        text=TextPolicy(template, eos, boundary, max_length, over_length),
        source=_source_of(given),
        max_invalid=max_invalid,
    )
    resampling = Resampling(resamples=resamples, level=level, seed=seed)
    how: dict[str, Any] = {
        "plausible": plausible,
        "buckets": tuple(position_buckets),
        "batch_tokens": batch_tokens,
        "share_prefix": share_prefix,
        "progress": progress,
    }
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary if shards is None else shards)
        read: Callable[..., BothRead] = read_in_turn if one_at_a_time else read_both
        states = folder / "policy", Path(reference_states or folder / "reference")
        both = read(policy, reference, texts, states, base=base, dtype=dtype, device=device, **how)
        reading, found = both.reading, both.reading.given
        main = reading.between(both.ours, both.theirs)
        _require_some(main.positions)
        identities = token_identities_of(both.ours, both.theirs, both.models.vocab)
        floor = measure_floor if isinstance(measure_floor, NoiseFloor) else NOT_MEASURED
        if measure_floor is True:
            floor = measured_floor(
                both.reference,
                found.histories,
                vocab=both.models.vocab,
                plausible=plausible,
                batch_tokens=batch_tokens,
                seed=seed,
                progress=progress,
            )
        sequences = None
        if sequence == "fixed_length" or paper_style:
            sequences = _sequences(
                both.models, found, sequence_prompts, seed=seed, length=length, samples=samples, proposal=proposal,
                paper_style=paper_style, min_ess=min_ess, min_ess_ratio=min_ess_ratio, batch_tokens=batch_tokens,
                progress=progress,
            )  # fmt: skip
        if one_at_a_time:
            both.let_go()
        updates = chain_updates(via or {}, base, both, main, folder, resampling)
        for side in (both.ours, *([] if reference_states else [both.theirs])):
            side[0].delete()

    responses = response_table(main, found)
    checks = pair_checks(responses, found, beta=beta, resampling=resampling, in_sample=in_sample)
    candidates, candidate_rates = candidate_sets(responses, resampling)
    models, encoder = both.models, reading.encoder
    names = bucket_names(position_buckets)
    positions = main.positions
    tilts = rates_by_source(positions[positions["tilt"].notna()], resampling, ["tilt"])
    return InformationReport(
        policy=short_name(models.policy.name),
        reference=short_name(both.reference.name),
        rates=rates_by_source(positions, resampling),
        profile=profile_table(positions, names, **resampling.options()),
        tokens=token_table(main, found.histories, encoder.tokenizer, names, top=top_tokens),
        tilt=tilt_table(positions, names, **resampling.options()).assign(a=lambda table: table["value"]),
        tilt_rates={name: one["tilt"].model_copy(update={"reconstructed": True}) for name, one in tilts.items()},
        candidates=candidates,
        candidate_rates=candidate_rates,
        sequence=sequences,
        label_law=None if checks is None else checks[0],
        displacement=None if checks is None else checks[1],
        identities=(*identities, *sample_identities(main, responses, found)),
        noise_floor=floor,
        positions=positions,
        tops=main.tops,
        texts=strip_texts(positions, encoder.tokenizer, found),
        updates=updates,
        excluded=left_out(found, positions),
        counts={**found.counts, "responses": len(found.histories), "positions": len(positions)},
        settings={
            **encoder.facts(),
            **models.facts(),
            "plausible": plausible,
            "position_buckets": list(position_buckets),
            "beta": beta,
            "in_sample": in_sample,
            "dtypes": {role: model.dtype for role, model in models.by_role.items()},
            "sequence": sequence,
            "noise_floor": floor.facts(),
            "read_in_one_row": reading.ways,
            "level": level,
            "resamples": resamples,
            "seed": seed,
        },
        warnings=(
            *_lost(positions, found),
            *_warnings(found, models, templated=encoder.renderer.origin != "none" and _rendered(given, template)),
        ),
    )


def _sequences(models: ScoredModels, given: HistorySet, n: int, *, seed: int, **options: Any) -> FixedLengthInformation:
    """Of some of the prompts, drawn with the seed."""
    first: dict[str, tuple[int, ...]] = {}
    for history in given.histories:
        first.setdefault(history.prompt_id, history.prompt_ids)
    names = sorted(first)
    chosen = sorted(np.random.default_rng(seed).permutation(len(names))[:n])
    return fixed_length_information(
        models.policy,
        models.reference,
        [first[names[i]] for i in chosen],
        prompts=[names[i] for i in chosen],
        seed=seed,
        **options,
    )


def check_information_settings(given: Mapping[str, Any]) -> None:
    """Raises InputError, naming the setting, for what `information_report` cannot do; absent ones are the defaults."""
    for name, allowed in (
        ("sequence", SEQUENCES), ("proposal", ("local", "policy", "reference")), ("share_prefix", ("auto", True, False))
    ):  # fmt: skip
        if name in given and given[name] not in allowed:
            raise InputError(f"{name}={given[name]!r}: expected one of {', '.join(map(repr, allowed))}")
    for name in ("top_tokens", "length", "samples", "sequence_prompts", "resamples", "batch_tokens"):
        if given.get(name) is not None and given[name] < 1:
            raise InputError(f"{name}={given[name]}: at least 1 is expected")
    bounds = list(given.get("position_buckets", ()))
    if any(bound < 1 for bound in bounds) or bounds != sorted({*bounds}):
        raise InputError(f"position_buckets={tuple(bounds)}: ascending last positions from 1 are expected, as (5, 50)")
    try:
        parse_plausible(given.get("plausible", 1e-4))
    except ValueError as error:
        raise InputError(f"plausible={given['plausible']!r}: {error}") from error
    if not 0 < given.get("level", 0.95) < 1:
        raise InputError(f"level={given['level']}: a share between 0 and 1 is expected")
    beta = given.get("beta")
    if beta is not None and not 0 < beta < float("inf"):
        raise InputError(f"beta={beta}: a number above 0 is expected")


def _require_some(positions: pd.DataFrame) -> None:
    """Raises InputError where no position can enter a mean: nothing would be left to say."""
    if not len(counted(positions)):
        told = ", ".join(f"{n} {name}" for name, n in positions["status"].value_counts().items())
        raise InputError(
            f"no response token is left: of {len(positions)} positions none has finite logits under both models "
            f"({told}). Load the models in float32 (dtype), or take an earlier checkpoint"
        )


def _source_of(given: HistoryInput) -> str:
    return given.files[0].source if given.files else "histories"


def _lost(positions: pd.DataFrame, given: HistorySet) -> tuple[str, ...]:
    """What positions without a finite value take away."""
    bad = positions[~positions["status"].isin(COUNTED)]
    if not len(bad):
        return ()
    responses = bad["history"].unique()
    pairs = len({int(i) // 2 for i in responses if i < 2 * given.n_pairs})
    told = ", ".join(f"{n} {name}" for name, n in bad["status"].value_counts().items())
    return (
        f"{len(bad)} of {len(positions)} positions, in {len(responses)} of {len(given.histories)} responses, enter no "
        f"number ({told}; unsupported: the reference excludes a token that the policy allows)"
        + (f"; {pairs} of {given.n_pairs} pairs have no log-ratio for the label law" if pairs else "")
        + ": the rates speak for the rest alone",
    )


def _rendered(given: HistoryInput, template: str) -> bool:
    """Whether a chat template stands around the text: "auto" leaves plain strings alone."""
    texts = (item.prompt for file in given.files for item in file)
    return template != "auto" or any(not isinstance(text, str) for text in texts)


def _warnings(given: HistorySet, models: ScoredModels, *, templated: bool) -> tuple[str, ...]:
    found = []
    if n := given.counts["truncated"]:
        found.append(
            f"{n} of {len(given.histories)} responses were cut before their end: they count token by token; sums over "
            "cut samples (moved_on_policy) are no larger in size than those of whole ones"
        )
    if not given.ends_scored:
        found.append(
            "no end of a response is scored (eos='none'): log-ratios of whole responses lack the decision to stop, and "
            "moved_on_policy is no whole -KL(reference || policy)"
        )
    masked = max(model.vocab_size for model in models.by_role.values()) - models.vocab
    if masked:
        found.append(f"{masked} rows of a head belong to no token and were left out; V is {models.vocab}")
    dtypes = {role: model.dtype for role, model in models.by_role.items()}
    if len({*dtypes.values()}) > 1:
        told = ", ".join(f"{role} {dtype}" for role, dtype in dtypes.items())
        found.append(f"the models are computed in unlike dtypes ({told}): what rounding changed counts as information")
    templates = {model.fingerprints.template for model in models.by_role.values()}
    if templated and len(templates) > 1:
        found.append(
            "the two models have other chat templates (or one has none), and both read the policy's: text under a "
            "template that a model was not trained with is off its distribution, and KL then measures the format too"
        )
    quantised = {role: model.facts.get("quantization") for role, model in models.by_role.items()}
    if quantised.get("policy") != quantised.get("reference"):
        told = ", ".join(f"{role} {what or 'not quantised'}" for role, what in quantised.items())
        found.append(f"the models are stored unlike ({told}): what quantisation changed counts as information here")
    return tuple(found)
