"""How does the residual stream contract and travel over the layers of a model? SPINAL (arXiv 2601.06238).

    base = spinal_trace(load("base/"), read_prompts("prompts.jsonl"))
    aligned = spinal_trace(load("dpo/"), read_prompts("prompts.jsonl"))
    compare_spinal(base, aligned).summary()

The paper's definitions of the exponent and of the angle; window, positions, intervals and gates are reconstructed.
"""

import os
from collections.abc import Iterable
from dataclasses import astuple, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import InputError
from ..probes.encoding import Encoder
from ..probes.inputs import Invalid, PromptFile, check_invalid, read_prompts
from ..probes.shards import item_key
from .lens_choice import lens_facts, opened_lens
from .naming import short_name
from .spinal_between import SpinalDistance, spinal_distance
from .spinal_compare import SpinalComparison, compare_spinal
from .spinal_formats import format_facts
from .spinal_lens import lens_backend, lens_vocabulary
from .spinal_reading import Folder, Progress, ReadOptions, opened, prepare_prompts, read_prompts_of
from .spinal_readings import Readings
from .spinal_rows import TracedPrompt, text_policy
from .spinal_settings import FINAL_ONLY, check_trace_settings, preset_values, reduced_vocabulary
from .spinal_trace import TRACE_VERSION, SpinalTrace, TracedModel, analyse

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from ..probes.subject import Subject
    from ..probes.tuned_lens import TunedLens

__all__ = ["SpinalComparison", "SpinalDistance", "SpinalTrace", "compare_spinal", "spinal_distance", "spinal_trace"]


def spinal_trace(
    subject: "Subject",
    prompts: "str | os.PathLike[str] | Iterable[Any] | PromptFile",
    *,
    positions: str | int = "last",
    window: tuple[float, float] | str | None = None,
    lens: "str | os.PathLike[str] | TunedLens" = "logit",
    preset: str = "robust",
    lens_positions: int | str | None = None,
    max_tokens: int = 128,
    temperature: float = 1.0,
    stack: str | int = "all",
    center: bool = True,
    row_scale: str | None = None,
    estimator: str = "ols",
    bias: str | None = None,
    vocabulary: str | int = "full",
    drop_top: int = 0,
    groups: int = 16,
    batch_size: int = 16,
    seed: int = 0,
    template: str = "auto",
    eos: str = "auto",
    max_invalid: float = 0.05,
    shards: Folder | None = None,
    progress: Progress | None = None,
    tokenizer: "PreTrainedTokenizerBase | None" = None,
    shared_lens: bool = False,
    allow_quantized: bool = False,
) -> SpinalTrace:
    """Contraction, transport and entropy of one model, layer by layer.

    alpha_l = - d log sigma_k / d log k over a window of ranks, sigma = singular values of the centred residual rows
    after block l at the prompts' last tokens, [L + 1]; angle_l = 2 arccos sum_v sqrt(p_l p_(l+1)) in radians, [0, pi],
    p_l = softmax(readout(h_l) / temperature), [L] steps; entropy of p_l in nats, [L + 1]. Layer 0 is the embeddings.

    prompts: file, rows, or PromptFile. Cut from the left to `max_tokens`, then repeated ones are dropped, counted.
    window: the ranks, as shares of the number r of singular values, or "auto" (`auto_window`, a layer at a time: such a
        trace is compared with no other). lens_positions: positions inside a prompt that are read beside the last and
        reported apart. None: what the preset says. preset: "robust" (ranks .02 r to .2 r, 4 positions), or
        "paper_guess" (.1 r to .9 r, the last token alone: a reading of a summary of the paper, not a reproduction).
    estimator: of alpha, see fit_power_law. center, row_scale ("rms", "l2"): of the rows before their spectrum.
    bias: "half_sample" adds alpha_corrected, refused under 4 independent rows a column. drop_top: adds
        alpha_without_top, without so many columns of largest variance, and the gate "outliers". stack: adds
        alpha_stacked, the mean over disjoint stacks of so many rows with its interval. All three beside alpha.
    positions: rows of the spectrum. "last"; "mean" of the prompt's measured positions, which are all but BOS; "all" of
        them, pooled; m: the last and m - 1 sampled ones, stratified and seeded. Of several rows a prompt, jackknife and
        halves take whole prompts, N counts rows, and the columns n_eff and few_effective_rows say what they are worth
        (`effective_rows`). The rows are held, float32, which is refused where memory does not allow it.
    lens_positions: that are read beside the last and reported apart: so many sampled ones inside a prompt, "last"
        (none), "all" measured ones, or "response": the tokens of the answer behind the prompt (the column `response`,
        or the last turn of message lists), without an end of sequence. The headline stays at the prompt's last token;
        prompt and answer together are cut to `max_tokens`. groups: of the delete-group jackknife.
    lens: "logit", or a tuned lens (or its folder, see `train_lens`), which must be of this model unless `shared_lens`;
        or "final_only": the last step and the entropy of the last layer alone, all other read-outs null.
    vocabulary: "full"; k or "top_k=k" (the k most probable tokens of the last layer), "union=k" (of both layers of a
        step): adds angle_bucketed, angle_renormalised, angle_dropped (`reduced_angles`) of the last token to `steps`;
        all else stays over the full vocabulary.
    allow_quantized: exponents also of packed weights, and contrasts of them between formats.
    template, eos: how text becomes ids, see TextPolicy; a prompt never gets an end of sequence.
    tokenizer: whose ids and chat template the prompts get, so that two models read the same; None is the model's own.
    max_invalid: share of prompts without a measurable token or with a NaN above which nothing is reported.
    shards: folder where finished batches are kept; a killed run repeats at most one, with the same result.
    progress: called as progress(stage, done, total).
    Raises InputError for settings of later versions, prompts that cannot be encoded, too many unusable prompts (naming
    layer and row), or rows that would not fit in memory. The result changes neither with batch size nor prompt order.
    """
    check_trace_settings(locals())
    tuned, final_only = opened_lens(lens, subject, shared=shared_lens), lens == FINAL_ONLY
    chosen = preset_values(preset, window=window, lens_positions=lens_positions)
    window = chosen["window"]
    lens_positions = 0 if chosen["lens_positions"] == "last" else chosen["lens_positions"]
    file = read_prompts(prompts)
    encoder = Encoder(
        tokenizer or subject.tokenizer,
        text_policy(template, eos, lens_positions, max_tokens=max_tokens, limit=subject.limit),
        vocab_rows=subject.vocab_size,
        limit=subject.limit,
        source=file.source,
    )
    traced, invalid, n_duplicates = prepare_prompts(
        file, encoder, max_tokens=max_tokens, lens_positions=lens_positions, seed=seed, positions=positions
    )
    check_invalid(file, max_invalid, more=invalid)
    if not traced:
        raise InputError(f"{file.source}: no prompt is left to trace")
    if drop_top >= subject.d_model:
        raise InputError(
            f"drop_top={drop_top} (--drop-top): {subject.name} is {subject.d_model} wide; expected fewer than that"
        )
    model = TracedModel(
        name=short_name(subject.name),
        fingerprint=subject.fingerprint,
        tokenizer=subject.fingerprints.tokenizer,
        dtype=subject.dtype,
        n_layers=subject.n_layers,
        d_model=subject.d_model,
        vocab=lens_vocabulary(subject),
    )
    settings: dict[str, Any] = {
        "preset": preset,
        "positions": positions,
        "window": window if isinstance(window, str) else tuple(window),
        "estimator": estimator,
        "centering": "column" if center else "none",
        "row_scale": row_scale,
        "bias": bias,
        "drop_top": drop_top,
        "stack": stack,
        **lens_facts(tuned, final_only=final_only),
        "lens_positions": lens_positions,
        "max_tokens": max_tokens,
        "temperature": temperature,
        "groups": groups,
        "batch_size": batch_size,
        "seed": seed,
        "dtype": subject.dtype,
        "lens_backend": lens_backend(subject),
        "vocabulary": model.vocab,
        "angle_vocabulary": reduced_vocabulary(vocabulary, model.vocab),
        **format_facts(subject, allowed=allow_quantized),
        "text": encoder.facts(),
        "reconstructed": "window, token position and gates are not published",
    }
    counts = {
        "rows": file.n_rows,
        "set_aside": len(file.invalid) + len(invalid),
        "duplicate_prompts": n_duplicates,
        "tokens": sum(len(prompt.ids) for prompt in traced),
        "sampled_positions": sum(len(prompt.positions) - 1 for prompt in traced),
    }
    key = item_key(TRACE_VERSION, model.fingerprint, [astuple(prompt) for prompt in traced], settings)
    finished = None if shards is None else _finished(opened(shards) / "trace", key)
    if finished is not None:
        check_invalid(file, max_invalid, more=[*invalid, *_nonfinite(finished.readings, traced)])
        return replace(finished, model=model, counts=finished.counts | counts)  # the file may have other repeated rows
    readings = read_prompts_of(
        subject,
        traced,
        vocab=model.vocab,
        temperature=temperature,
        batch_size=batch_size,
        lens=tuned,
        options=ReadOptions.of(settings),
        shards=shards,
        progress=progress,
    )
    check_invalid(file, max_invalid, more=[*invalid, *_nonfinite(readings, traced)])
    trace = analyse(
        model,
        traced,
        readings,
        readings.finite,
        settings | {"key": key},
        counts,
        progress=None if progress is None else lambda done, n: progress(f"spectra of {model.name}", done, n),
    )
    if shards is not None:
        trace.save(opened(shards) / "trace")
    return trace


def _nonfinite(readings: Readings, prompts: list[TracedPrompt]) -> list[Invalid]:
    """Prompts with a NaN or infinity at the last token (or a row of the spectrum), each with its first layer."""
    where = "" if readings.pooled is None else " or another row of the spectrum"
    return [
        Invalid(
            row=prompts[i].row,
            reason="nonfinite_row",
            detail=f"NaN or infinity at the last token{where} from layer {readings.first_nonfinite(i)} on",
            name=prompts[i].prompt_id or "",
        )
        for i in np.flatnonzero(~readings.finite).tolist()
    ]


def _finished(folder: "os.PathLike[str]", key: str) -> SpinalTrace | None:
    """The trace that a run with the same key left there; None where there is none, or another."""
    if not os.path.exists(os.path.join(folder, "trace.json")):
        return None
    try:
        trace = SpinalTrace.load(folder)
    except InputError:
        return None
    return trace if trace.settings.get("key") == key else None
