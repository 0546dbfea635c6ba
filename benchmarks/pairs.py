"""What does scoring pairs cost beside a padded scorer, and what does capture add to a forward pass? Rows C11 and C12.

The peer is TRL-style padded: written here after what its DPO trainer does in float32; trl itself is not installed.
Chosen and rejected rows of 8 pairs (its default) stand in one batch, padded on the right to the longest; logits of the
whole vocabulary at every position; the label's logit minus logsumexp at every position, row by row; the mask drops the
rest. Its truncation to 1024 tokens and its copy of the shifted logits are left out: equal work, no gain from a detail.

The Llama is a toy of random weights and the lengths are simulated. Its head has most of the multiply-adds (in real
models 5 to 30 %), which favours a scorer that reads out completions only; the column `limit` counts it in.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignscope.probes.huggingface import HuggingFaceSubject
from alignscope.probes.kernels import SpectrumAccumulator
from alignscope.probes.loading import wrap
from alignscope.probes.sequence_scores import TokenSequence, score_sequences

from .measuring import Call, Row, interleaved, peak_megabytes, time_ratio

PAIRS, PEER_PAIRS = 16, 8  # scored, and in a batch of the peer
SPREAD = 0.6  # standard deviation of log length [reconstructed]; of the words of HH's own rows it is about 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """Sizes of a toy Llama with a feed-forward part of 8/3 widths."""

    layers: int
    width: int
    heads: int
    vocabulary: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Lengths:
    """Token counts that resemble a data set's."""

    name: str
    median: int  # of prompt and response together
    prompt_over_response: float  # ratio of the medians
    goal: str  # for the ratio of times


SCORED = Shape(layers=4, width=256, heads=4, vocabulary=50257)
CAPTURED = Shape(layers=12, width=768, heads=12, vocabulary=1000)  # GPT-2 small without its head, which nobody reads
TINY = Shape(layers=2, width=64, heads=2, vocabulary=512)
DATA_SETS = (
    Lengths(name="UltraFeedback", median=409, prompt_over_response=0.42, goal=">= 2"),
    Lengths(name="HH", median=186, prompt_over_response=2.15, goal=">= 3.3"),
    Lengths(name="HelpSteer", median=775, prompt_over_response=6.34, goal=">= 4.5"),
)


# -------------------------------------------------------------------------------------------------------- the inputs


def toy_subject(shape: Shape) -> HuggingFaceSubject:
    """A random Llama, always the same."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.width,
        intermediate_size=8 * shape.width // 3,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        max_position_embeddings=4096,
    )
    # ids alone are scored; with no tokenizer at all the subject fails the tests' runtime check of its protocol
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0}, unk_token="a")))
    return wrap(LlamaForCausalLM(config).eval(), tokenizer)


def simulated_pairs(lengths: Lengths, *, n_pairs: int, vocabulary: int, shrink: int = 1) -> list[TokenSequence]:
    """Chosen and rejected of every pair, in turn: random ids of log-normal lengths, a prompt shared within a pair.

    The lengths are the n_pairs quantiles of their distribution in random order: no luck of the draw in the longest row.
    shrink: divide the lengths by this, for a trial.
    """
    generator = torch.Generator().manual_seed(0)
    response = lengths.median / (1 + lengths.prompt_over_response) / shrink
    prompts, chosen, rejected = (
        _shuffled_quantiles(median, n_pairs, generator)
        for median in (lengths.prompt_over_response * response, response, response)
    )

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(vocabulary, (n,), generator=generator).tolist())

    sequences = []
    for n_prompt, *completions in zip(prompts, chosen, rejected, strict=True):
        prompt = ids(n_prompt)
        sequences += [TokenSequence(prompt + ids(n), n_prompt) for n in completions]
    return sequences


def _shuffled_quantiles(median: float, n: int, generator: torch.Generator) -> list[int]:
    normal = statistics.NormalDist()
    lengths = [max(1, round(median * math.exp(SPREAD * normal.inv_cdf((i + 0.5) / n)))) for i in range(n)]
    return [lengths[i] for i in torch.randperm(n, generator=generator).tolist()]


# ------------------------------------------------------------------------------------------------------------ C11


@torch.no_grad()
def trl_style_padded(model: LlamaForCausalLM, sequences: Sequence[TokenSequence]) -> list[float]:
    """Summed log-probabilities of the completions (nats, float32), as a DPO trainer in evaluation makes them."""
    return [total for batch in peer_batches(sequences) for total in _padded_totals(model, batch)]


def _padded_totals(model: LlamaForCausalLM, batch: list[TokenSequence]) -> list[float]:
    """Totals of a batch of chosen, then rejected rows, pair by pair. Its logits are gone before the next batch."""
    width = max(len(sequence.ids) for sequence in batch)
    ids = torch.zeros(len(batch), width, dtype=torch.long)
    attention, completion = torch.zeros_like(ids), torch.zeros_like(ids)
    for row, sequence in enumerate(batch):
        ids[row, : len(sequence.ids)] = torch.tensor(sequence.ids)
        attention[row, : len(sequence.ids)] = 1
        completion[row, sequence.start : len(sequence.ids)] = 1
    logits = model(input_ids=ids, attention_mask=attention, use_cache=False).logits[:, :-1]
    selected = logits.gather(-1, ids[:, 1:, None])[..., 0]
    log_probs = selected - torch.stack([row.logsumexp(-1) for row in logits])
    log_probs[completion[:, 1:] == 0] = 0
    chosen, rejected = log_probs.sum(-1).chunk(2)
    return torch.stack([chosen, rejected], dim=1).flatten().tolist()


def peer_batches(sequences: Sequence[TokenSequence]) -> Iterator[list[TokenSequence]]:
    """8 pairs at a time in the order of the file: first their chosen rows, then the rejected ones."""
    for start in range(0, len(sequences), 2 * PEER_PAIRS):
        batch = sequences[start : start + 2 * PEER_PAIRS]
        yield [*batch[::2], *batch[1::2]]


def arithmetic_limit(shape: Shape, sequences: Sequence[TokenSequence]) -> float:
    """Multiply-adds of the padded way over the fewest that will do: no padding, a prompt once, the head where scored.

    Attention scores are not counted: 2 T of 12 d a layer.
    """
    body, head = 12 * shape.layers * shape.width**2, shape.width * shape.vocabulary
    padded = sum(len(batch) * max(len(sequence.ids) for sequence in batch) for batch in peer_batches(sequences))
    scored = sum(sequence.n_scored for sequence in sequences)
    prompts = sum(sequence.start for sequence in sequences[::2])
    return padded * (body + head) / ((prompts + scored) * body + scored * head)


def padded_call(shape: Shape, sequences: Sequence[TokenSequence]) -> Call:
    """The padded way, ready to run; a short run before lets libraries load their buffers."""
    model = toy_subject(shape).model
    trl_style_padded(model, _short(sequences))
    return lambda: trl_style_padded(model, sequences)


def scoring_call(shape: Shape, sequences: Sequence[TokenSequence]) -> Call:
    """Our way, ready to run."""
    subject = toy_subject(shape)
    score_sequences(subject, _short(sequences))
    return lambda: score_sequences(subject, sequences)


def _short(sequences: Sequence[TokenSequence]) -> list[TokenSequence]:
    return [TokenSequence(sequence.ids[:8], 1) for sequence in sequences[:2]]


def scoring_rows(lengths: Lengths, shape: Shape, *, rounds: int, threads: int, quick: bool) -> Iterator[Row]:
    """Time and memory of both ways on pairs of these lengths."""
    sequences = simulated_pairs(
        lengths, n_pairs=4 if quick else PAIRS, vocabulary=shape.vocabulary, shrink=8 if quick else 1
    )
    timing = interleaved({"padded": padded_call(shape, sequences), "ours": scoring_call(shape, sequences)}, rounds)
    limit = f"{arithmetic_limit(shape, sequences):.1f}"
    what = f"TRL-style padded / ours, {lengths.name}-like lengths ({lengths.median}, {lengths.prompt_over_response})"
    yield time_ratio("C11", what, timing, "padded", "ours", goal=lengths.goal, limit=limit)

    padded = peak_megabytes(padded_call, shape, sequences, threads=threads)
    ours = peak_megabytes(scoring_call, shape, sequences, threads=threads)
    yield Row(
        id="C11",
        what=f"peak memory, TRL-style padded / ours, {lengths.name}-like",
        ratio=padded / ours,
        low=padded / ours,
        high=padded / ours,
        goal=">= 10",
        note=f"{padded:.0f} MB / {ours:.0f} MB",
    )


# ------------------------------------------------------------------------------------------------------------ C12


def capture_calls(shape: Shape, *, rows: int, tokens: int) -> dict[str, Call]:
    """A forward pass through all blocks, and the same with every layer's residuals added to a spectrum. No head."""
    subject = toy_subject(shape)
    body: Callable[..., Tensor] = subject.model.model
    ids = torch.randint(shape.vocabulary, (rows, tokens), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)

    @torch.no_grad()
    def forward() -> None:
        body(input_ids=ids, attention_mask=mask, use_cache=False)

    def captured() -> list[SpectrumAccumulator]:
        spectra = [SpectrumAccumulator(shape.width) for _ in range(subject.n_layers + 1)]
        subject.trace(ids, mask, reduce=lambda layer, h, mask: spectra[layer].update(h[mask.bool()]))
        return spectra

    return {"forward": forward, "captured": captured}


def capture_row(shape: Shape, *, rounds: int, rows: int, tokens: int) -> Row:
    timing = interleaved(capture_calls(shape, rows=rows, tokens=tokens), rounds)
    size = f"{shape.layers} blocks x {shape.width}, {rows} x {tokens} tokens, no head"
    what = f"forward + capture + Gram / forward, {size}"
    return time_ratio("C12", what, timing, "captured", "forward", goal="<= 1.10", limit="1.08")


def rows(*, rounds: int = 5, threads: int = 2, quick: bool = False) -> Iterator[Row]:
    """C11 and C12 of the kernels page; `quick`: a tiny model, 4 pairs, an eighth of the lengths."""
    torch.set_num_threads(threads)
    for lengths in DATA_SETS:
        yield from scoring_rows(lengths, TINY if quick else SCORED, rounds=rounds, threads=threads, quick=quick)
    n_rows, tokens = (2, 64) if quick else (4, 256)
    yield capture_row(TINY if quick else CAPTURED, rounds=rounds, rows=n_rows, tokens=tokens)
