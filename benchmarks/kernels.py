"""What does the hot core cost beside the bare matrix product, and beside what a notebook would do? Rows C1-C4 and C7.

Inputs are random: the cost does not depend on the values.
"""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from alignscope.probes.kernels import SpectrumAccumulator, lens_transport

from .measuring import Call, Row, interleaved, peak_megabytes, time_ratio

LAYERS, TOKENS, WIDTH, VOCABULARY = 13, 128, 768, 50257  # GPT-2 small, embeddings included


# -------------------------------------------------------------------------------------------------------- the lens


def lens_inputs(layers: int = LAYERS, tokens: int = TOKENS, vocabulary: int = VOCABULARY) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(layers, tokens, WIDTH, generator=generator)
    return hidden, torch.randn(vocabulary, WIDTH, generator=generator).mul_(0.1)


def bare_product(hidden: Tensor, head: Tensor) -> None:
    """The same floating-point operations and nothing else, in tiles that stay in the cache."""
    for block in hidden.split(64, dim=1):
        rows = block.flatten(0, 1)
        out = rows.new_empty(len(rows) * 2048)
        for tile in head.split(2048):
            torch.mm(rows, tile.T, out=out[: len(rows) * len(tile)].view(len(rows), len(tile)))


def all_layers(hidden: Tensor, head: Tensor) -> tuple[Tensor, ...]:
    """Everything at once: [L, N, V] log-probabilities, then the outputs of ours but the normaliser."""
    log_p = (hidden @ head.T).log_softmax(-1)
    p = log_p.exp()
    entropy = -(p * log_p).sum(-1)
    overlap = ((log_p[1:] + log_p[:-1]) / 2).exp().sum(-1)
    kl_to = (p[:-1] * (log_p[:-1] - log_p[1:])).sum(-1)
    kl_from = (p[1:] * (log_p[1:] - log_p[:-1])).sum(-1)
    return entropy, 2 * torch.arccos(overlap.clamp(max=1)), kl_to, kl_from


def pair_notebook(hidden: Tensor, head: Tensor) -> None:
    """Two neighbouring layers at a time, the previous one kept: [2, N, V]."""
    before = None
    for layer in hidden:
        log_p = (layer @ head.T).log_softmax(-1)
        p = log_p.exp()
        (p * log_p).sum(-1)
        if before is not None:
            ((log_p + before) / 2).exp().sum(-1)
            (p * (log_p - before)).sum(-1)
            (before.exp() * (before - log_p)).sum(-1)
        before = log_p


# ---------------------------------------------------------------------------------------------------- the spectrum


def spectrum_inputs(dtype: torch.dtype = torch.float32, rows: int = 8192, width: int = 512) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    steep = torch.arange(1, width + 1, dtype=torch.float64) ** -0.5
    return (torch.randn(rows, width, generator=generator, dtype=torch.float64) * steep + 3).to(dtype)


def streamed_spectrum(rows: Tensor) -> Tensor:
    spectrum = SpectrumAccumulator(rows.shape[1])
    spectrum.update(rows)
    return spectrum.singular_values()


def svd(rows: Tensor, dtype: torch.dtype) -> Tensor:
    rows = rows.to(dtype)
    return torch.linalg.svdvals(rows - rows.mean(0))


# -------------------------------------------------------------------------------------------------------- the rows

LENSES: dict[str, Callable[[Tensor, Tensor], Any]] = {"ours": lens_transport, "all layers": all_layers}


def lens_call(name: str, layers: int, tokens: int, vocabulary: int) -> Call:
    """One of the lenses on inputs of this shape, ready to run."""
    LENSES[name](*lens_inputs(2, 8, 512))  # libraries load their buffers
    inputs = lens_inputs(layers, tokens, vocabulary)
    return lambda: LENSES[name](*inputs)


def rows(*, rounds: int = 5, threads: int = 2, quick: bool = False) -> Iterator[Row]:
    """C1 to C4 and C7 of the kernels page; `quick`: a fiftieth of the vocabulary, an eighth of the spectrum's rows."""
    torch.set_num_threads(threads)
    vocabulary = VOCABULARY // 50 if quick else VOCABULARY
    yield from lens_rows(vocabulary, rounds)
    yield memory_row(vocabulary, threads)
    yield from spectrum_rows(1024 if quick else 8192, rounds)


def lens_rows(vocabulary: int, rounds: int) -> Iterator[Row]:
    hidden, head = lens_inputs(vocabulary=vocabulary)
    calls: dict[str, Call] = {
        "product": lambda: bare_product(hidden, head),
        "ours": lambda: lens_transport(hidden, head),
        "eager": lambda: lens_transport(hidden, head, backend="eager"),
        "all layers": lambda: all_layers(hidden, head),
        "pairs": lambda: pair_notebook(hidden, head),
    }
    timing = interleaved(calls, rounds)
    what = f"lens, all outputs / bare product, {LAYERS} x {TOKENS} x {WIDTH} x {vocabulary}"
    backend = lens_transport(hidden[:, :1, :], head[:64]).backend
    yield time_ratio("C1", f"{what}, {backend}", timing, "ours", "product", goal="<= 1.10", limit="1.0")
    yield time_ratio("C1", f"{what}, eager", timing, "eager", "product", goal="<= 1.45", limit="1.0")
    yield time_ratio("C2", "all layers at once / ours", timing, "all layers", "ours", goal=">= 2", limit="2.5")
    yield time_ratio("C3", "pair by pair / ours", timing, "pairs", "ours", goal=">= 1.5", limit="2.4")


def memory_row(vocabulary: int, threads: int) -> Row:
    shapes = {"": (LAYERS, TOKENS), "L x 2": (2 * LAYERS, TOKENS), "N x 2": (LAYERS, 2 * TOKENS)}
    ours = {
        change: peak_megabytes(lens_call, "ours", *shape, vocabulary, threads=threads)
        for change, shape in shapes.items()
    }
    naive = peak_megabytes(lens_call, "all layers", LAYERS, TOKENS, vocabulary, threads=threads)
    return Row(
        id="C4",
        what="peak memory, all layers at once / ours",
        ratio=naive / ours[""],
        low=naive / max(ours.values()),
        high=naive / min(ours.values()),
        goal=">= 50",
        note=f"{naive:.0f} MB / {ours['']:.0f} MB; ours with L x 2 {ours['L x 2']:.0f}, N x 2 {ours['N x 2']:.0f}",
    )


def spectrum_rows(n_rows: int, rounds: int) -> Iterator[Row]:
    samples = spectrum_inputs(rows=n_rows)
    calls: dict[str, Call] = {
        "ours": lambda: streamed_spectrum(samples),
        "fp32": lambda: svd(samples, torch.float32),
        "fp64": lambda: svd(samples, torch.float64),
    }
    timing = interleaved(calls, rounds)
    shape = " x ".join(map(str, samples.shape))
    yield time_ratio("C7", f"svdvals float32 / ours, {shape}", timing, "fp32", "ours", goal=">= 1.2", limit="2")
    yield time_ratio("C7", f"svdvals float64 / ours, {shape}", timing, "fp64", "ours", goal=">= 2.2", limit="4")
