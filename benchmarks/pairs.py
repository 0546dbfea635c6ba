"""What does scoring pairs cost beside a padded scorer, and what does capture add to a forward pass? Rows C11 and C12.

The peer is TRL-style padded: written here after what its DPO trainer does in float32; trl itself is not installed.
Chosen and rejected rows of 8 pairs (its default) stand in one batch, padded on the right to the longest; logits of the
whole vocabulary at every position; the label's logit minus logsumexp at every position, row by row; the mask drops the
rest. Its truncation to 1024 tokens and its copy of the shifted logits are left out: equal work, no gain from a detail.

The Llama is a toy of random weights and the lengths are simulated. Its head has most of the multiply-adds (in real
models 5 to 30 %), which favours a scorer that reads out completions only; the column `limit` counts it in.
"""

import math
import multiprocessing
import statistics
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from alignscope.probes.huggingface import HuggingFaceSubject
from alignscope.probes.kernels import SpectrumAccumulator
from alignscope.probes.loading import wrap
from alignscope.probes.scoring import score_pairs
from alignscope.probes.sequence_scores import TokenSequence, score_sequences

from .measuring import Call, Row, interleaved, peak_megabytes, time_ratio

PAIRS, PEER_PAIRS = 16, 8  # scored, and in a batch of the peer
WARM_UP = 64  # pairs of a table before its memory is measured
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
    sharing_goal: str  # the same, of our buckets over both completions in one row


SCORED = Shape(layers=4, width=256, heads=4, vocabulary=50257)
CAPTURED = Shape(layers=12, width=768, heads=12, vocabulary=1000)  # GPT-2 small without its head, which nobody reads
TINY = Shape(layers=2, width=64, heads=2, vocabulary=512)
TABLE = Shape(layers=2, width=256, heads=4, vocabulary=4096)
FEW, MANY = 200, 2000  # pairs of a table
DATA_SETS = (
    Lengths(name="UltraFeedback", median=409, prompt_over_response=0.42, goal=">= 2", sharing_goal=">= 1"),
    Lengths(name="HH", median=186, prompt_over_response=2.15, goal=">= 3.3", sharing_goal=">= 1"),
    Lengths(name="HelpSteer", median=775, prompt_over_response=6.34, goal=">= 4.5", sharing_goal=">= 1.2"),
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


def scoring_call(shape: Shape, sequences: Sequence[TokenSequence], *, share_prefix: bool = False) -> Call:
    """Our way, ready to run."""
    subject = toy_subject(shape)
    score_sequences(subject, _short(sequences))
    return lambda: score_sequences(subject, sequences, share_prefix=share_prefix)


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


def sharing_row(lengths: Lengths, shape: Shape, *, rounds: int, quick: bool) -> Row:
    """Sequences in rows of their own, in buckets of like length, beside both completions of a pair in one row."""
    n_pairs, shrink = (4, 8) if quick else (PAIRS, 1)
    sequences = simulated_pairs(lengths, n_pairs=n_pairs, vocabulary=shape.vocabulary, shrink=shrink)
    calls = {"buckets": scoring_call(shape, sequences), "shared": scoring_call(shape, sequences, share_prefix=True)}
    body, head = 12 * shape.layers * shape.width**2, shape.width * shape.vocabulary
    scored, prompts = sum(s.n_scored for s in sequences), sum(s.start for s in sequences[::2])
    limit = 1 + prompts * body / ((prompts + scored) * body + scored * head)  # a prompt once instead of twice
    what = f"buckets / both completions in one row, {lengths.name}-like lengths"
    timing = interleaved(calls, rounds)
    return time_ratio("C11", what, timing, "buckets", "shared", goal=lengths.sharing_goal, limit=f"{limit:.1f}")


def table_call(shape: Shape, n_pairs: int) -> Call:
    """score_pairs, hidden states included, on so many short pairs of text, ready to run; a few of them run before."""
    words = Tokenizer(WordLevel({str(i): i for i in range(shape.vocabulary)}, unk_token="0"))
    words.pre_tokenizer = Whitespace()
    subject = wrap(toy_subject(shape).model, PreTrainedTokenizerFast(tokenizer_object=words))
    generator = torch.Generator().manual_seed(0)

    def text(n: int) -> str:
        return "".join(f" {word}" for word in torch.randint(shape.vocabulary, (n,), generator=generator).tolist())

    rows = [{"prompt": text(24), "chosen": text(24), "rejected": text(20)} for _ in range(n_pairs)]
    score_pairs(subject, None, rows[:WARM_UP], states=True)
    return lambda: score_pairs(subject, None, rows, states=True)


def flat_memory_row(*, threads: int, quick: bool) -> Row:
    """Peak memory of the process with ten times the pairs. Ids and table grow (some 5 kB a pair here), nothing else."""
    shape, few = (TINY, FEW // 10) if quick else (TABLE, FEW)
    many = few * MANY // FEW
    small, large = (_in_own_process(_table_peak, shape, n, threads) for n in (few, many))
    return Row(
        id="C11",
        what=f"peak memory of a process that scores pairs, {many} / {few} pairs",
        ratio=large / small,
        low=large / small,
        high=large / small,
        goal="<= 1.10",
        note=f"{large:.0f} MB / {small:.0f} MB",
    )


def _table_peak(shape: Shape, n_pairs: int, threads: int) -> float:
    """The largest resident size of this process, MB, after `table_call`."""
    torch.set_num_threads(threads)
    table_call(shape, n_pairs)()
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def _in_own_process(function: Callable[..., float], *arguments: object) -> float:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        return pool.submit(function, *arguments).result()


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
    for lengths in DATA_SETS:
        yield sharing_row(lengths, TINY if quick else SCORED, rounds=rounds, quick=quick)
    yield flat_memory_row(threads=threads, quick=quick)
    n_rows, tokens = (2, 64) if quick else (4, 256)
    yield capture_row(TINY if quick else CAPTURED, rounds=rounds, rows=n_rows, tokens=tokens)
