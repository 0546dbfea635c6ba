"""Train a tuned lens on a few hundred prompts, and say by layer whether it reads better than the logit lens.

Each translator minimises KL(p_L : q_l), p_L the model's own distribution and q_l its read-out of the translated
residual after layer l (Belrose et al., arXiv 2303.08112). Prompts are read anew for every step: never more than a
batch of residuals and one layer's logits are held.
"""

import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Float64
from torch import Tensor

from ..errors import InputError
from ..probes.capture import rows_at
from ..probes.encoding import Encoder, TextPolicy
from ..probes.inputs import PromptFile, check_invalid, read_prompts
from ..probes.kernels.eager import exact_products
from ..probes.padding import padded
from ..probes.shards import Progress, item_key
from ..probes.tuned_lens import TunedLens, lens_model, translated
from .naming import short_name
from .spinal_lens import lens_vocabulary
from .spinal_reading import TracedPrompt, prepare_prompts
from .spinal_settings import require_at_least
from .spinal_trace import cluster_codes
from .statistics import MIN_CLUSTERS, cluster_bootstrap

if TYPE_CHECKING:
    from ..probes.subject import Subject

HELD_OUT = 0.2  # share of the prompts, and at least as many as an interval needs
LEAST = 2 * MIN_CLUSTERS
READOUT_BYTES = 25 * 2**20  # logits of one layer held at a time, and a few times that for their gradient
SUFFIXES = ("", "_low", "_high")


def train_lens(
    subject: "Subject",
    prompts: "str | os.PathLike[str] | Iterable[Any] | PromptFile",
    *,
    steps: int = 100,
    step_prompts: int = 8,
    positions: int = 8,
    max_tokens: int = 128,
    learning_rate: float = 1.0,
    batch_size: int = 16,
    seed: int = 0,
    template: str = "auto",
    eos: str = "auto",
    max_invalid: float = 0.05,
    progress: Progress | None = None,
) -> TunedLens:
    """A translator h + A h + b for each of the layers 0..L-1, identity-initialised; the model is left as it was found.

    Loss of a layer: KL(p_L : q_l) in nats, mean over a prompt's positions, then over prompts. Adam, `learning_rate` / d
    falling to 0 over `steps`; b is in units of the layer's root mean square, so that the scale of a residual plays no
    part. A fifth of the prompts (at least 20) is held out: layers whose KL did not fall there (95 % interval of the
    paired difference, bootstrap over prompts) keep the identity, and a warning names them.

    prompts: file (.txt: passages between blank lines), rows, or PromptFile; at least 40 distinct ones. Cut from the
        left to `max_tokens`; read at the last token and `positions` others, drawn from equal strata, never at BOS.
    step_prompts: prompts a step. batch_size: prompts a forward pass; moves no number beyond rounding.
    The same seed and prompts, in any order, give the same lens. template, eos, max_invalid, progress: as spinal_trace.
    Raises InputError for too few or unusable prompts, settings below 1, or a loss that is not finite (with its layer).
    """
    require_at_least(steps=(steps, 1), step_prompts=(step_prompts, 1), positions=(positions, 0))
    require_at_least(max_tokens=(max_tokens, 1), batch_size=(batch_size, 1))
    if not 0 < learning_rate < math.inf:
        raise InputError(f"learning_rate={learning_rate}: a number above 0 is expected")
    file = read_texts(prompts)
    encoder = Encoder(
        subject.tokenizer,
        TextPolicy(template, eos),
        vocab_rows=subject.vocab_size,
        limit=subject.limit,
        source=file.source,
    )
    traced, invalid, _ = prepare_prompts(file, encoder, max_tokens=max_tokens, lens_positions=positions, seed=seed)
    check_invalid(file, max_invalid, more=invalid)
    training, held_out = split(traced, seed)
    if not training or len(set(cluster_codes(traced))) < LEAST:
        raise InputError(
            f"{file.source}: {len(set(cluster_codes(traced)))} distinct prompts; a lens needs at least {LEAST}, "
            f"{MIN_CLUSTERS} of them held out"
        )
    vocab = lens_vocabulary(subject)
    weight, bias, losses = _fitted(
        subject,
        training,
        vocab=vocab,
        steps=steps,
        step_prompts=step_prompts,
        learning_rate=learning_rate,
        batch_size=batch_size,
        seed=seed,
        progress=progress,
    )
    lens = TunedLens(weight=weight, bias=bias, kept=(True,) * subject.n_layers, model=lens_model(subject))
    before, after = held_out_kl(subject, held_out, lens, vocab=vocab, batch_size=batch_size, progress=progress)
    layers = _table(before, after, cluster_codes(held_out), seed)
    kept = tuple(layers.kept.tolist())
    refused = ", ".join(str(layer) for layer in layers.layer[~layers.kept])
    return TunedLens(
        weight=weight * torch.tensor(kept)[:, None, None],
        bias=bias * torch.tensor(kept)[:, None],
        kept=kept,
        model=lens.model,
        layers=layers,
        losses=losses,
        settings=encoder.facts()
        | {
            "steps": steps,
            "step_prompts": step_prompts,
            "positions": positions,
            "max_tokens": max_tokens,
            "learning_rate": learning_rate,
            "batch_size": batch_size,
            "seed": seed,
            "vocabulary": vocab,
        },
        data={
            "source": file.source,
            "sha256": file.sha256,
            "ids": item_key([prompt.ids for prompt in traced]),
            "trained": len(training),
            "held_out": len(held_out),
        },
        warnings=(f"layers {refused}: the held-out KL did not fall; they are read as by the logit lens",)
        if refused
        else (),
    )


def read_texts(source: "str | os.PathLike[str] | Iterable[Any] | PromptFile") -> PromptFile:
    """Prompts as `read_prompts` takes them; of a .txt file the passages between blank lines."""
    if not isinstance(source, str | os.PathLike) or Path(source).suffix.lower() != ".txt":
        return read_prompts(source)
    try:
        text = Path(source).read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{source}: cannot be read ({error}); expected a UTF-8 text file") from error
    passages = [passage for part in text.replace("\r\n", "\n").split("\n\n") if (passage := part.strip())]
    if not passages:
        raise InputError(f"{source}: the file is empty; expected passages between blank lines")
    file = read_prompts(passages)
    return PromptFile(
        prompts=file.prompts, invalid=file.invalid, source=str(source), sha256=file.sha256, n_rows=file.n_rows
    )


def split(prompts: list[TracedPrompt], seed: int) -> tuple[list[TracedPrompt], list[TracedPrompt]]:
    """Prompts to train on and to hold out; those of one prompt_id stay together."""
    codes = cluster_codes(prompts)
    distinct = np.unique(codes)
    n_held = min(len(distinct), max(MIN_CLUSTERS, math.ceil(HELD_OUT * len(distinct))))
    held = np.isin(codes, np.random.default_rng([seed, 5]).permutation(distinct)[:n_held])
    return (
        [prompt for prompt, out in zip(prompts, held, strict=True) if not out],
        [prompt for prompt, out in zip(prompts, held, strict=True) if out],
    )


def held_out_kl(
    subject: "Subject",
    prompts: Sequence[TracedPrompt],
    lens: TunedLens,
    *,
    vocab: int,
    batch_size: int,
    progress: Progress | None = None,
) -> tuple[Float64[np.ndarray, "N layers"], Float64[np.ndarray, "N layers"]]:
    """KL(p_L : q_l) of every prompt, nats, mean over its positions, of the logit lens and of `lens`; layers 0..L-1."""
    found = np.zeros((2, len(prompts), subject.n_layers))
    done = 0
    for rows, owner in _batches(subject, prompts, batch_size):
        n = int(owner[-1]) + 1
        counts = torch.bincount(owner, minlength=n).double()
        with torch.no_grad():
            for place in _places(rows, vocab):
                target = _log_softmax(subject, rows[-1, place], vocab)
                for layer in range(subject.n_layers):
                    h = rows[layer, place]
                    for which, read in enumerate((h, lens.apply(layer, h))):
                        kl = kl_rows(target, _log_softmax(subject, read, vocab)).double().cpu()
                        sums = torch.zeros(n, dtype=torch.float64).index_add_(0, owner[place], kl)
                        found[which, done : done + n, layer] += (sums / counts).numpy()
        done += n
        if progress is not None:
            progress(f"held-out KL of {short_name(subject.name)}", done, len(prompts))
    return found[0], found[1]


def kl_rows(log_p: Float[Tensor, "n vocab"], log_q: Float[Tensor, "n vocab"]) -> Float[Tensor, "n"]:
    """KL(p : q) = sum_v p (log p - log q), nats, a row a place; differentiable in log_q."""
    return torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1)


def _fitted(
    subject: "Subject",
    prompts: list[TracedPrompt],
    *,
    vocab: int,
    steps: int,
    step_prompts: int,
    learning_rate: float,
    batch_size: int,
    seed: int,
    progress: Progress | None,
) -> tuple[Float[Tensor, "layers d d"], Float[Tensor, "layers d"], tuple[tuple[float, ...], ...]]:
    n_layers, d = subject.n_layers, subject.d_model
    weights = [torch.zeros(d, d, device=subject.device, requires_grad=True) for _ in range(n_layers)]
    biases = [torch.zeros(d, device=subject.device, requires_grad=True) for _ in range(n_layers)]
    drawn = list(_drawn(prompts, steps, step_prompts, seed))
    scales = _root_mean_squares(subject, drawn[0], batch_size)
    optimizer = torch.optim.Adam([*weights, *biases], lr=learning_rate / d)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / steps)
    losses = np.zeros((steps, n_layers))
    for step, some in enumerate(drawn):
        optimizer.zero_grad()
        for rows, owner in _batches(subject, some, batch_size):
            share = (1 / torch.bincount(owner).float())[owner].to(rows.device) / len(some)
            for place in _places(rows, vocab):
                with torch.no_grad():
                    target = _log_softmax(subject, rows[-1, place], vocab)
                for layer in range(n_layers):
                    parts = (weights[layer], biases[layer])
                    with torch.enable_grad():
                        h = translated(rows[layer, place], parts[0], scales[layer] * parts[1])
                        loss = (share[place] * kl_rows(target, _log_softmax(subject, h, vocab))).sum()
                    with exact_products(rows.device):
                        gradients = torch.autograd.grad(loss, parts)
                    for part, gradient in zip(parts, gradients, strict=True):
                        part.grad = gradient if part.grad is None else part.grad.add_(gradient)
                    losses[step, layer] += loss.item()
        if not np.isfinite(losses[step]).all():
            layer = int((~np.isfinite(losses[step])).argmax())
            raise InputError(f"{subject.name}: the lens's loss is not finite at step {step + 1}, layer {layer}")
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(f"lens of {short_name(subject.name)}", step + 1, steps)
    weight, bias = (torch.stack([part.detach() for part in parts]).cpu() for parts in (weights, biases))
    return weight, bias * torch.tensor(scales[:n_layers])[:, None], tuple(tuple(row) for row in losses.tolist())


def _root_mean_squares(subject: "Subject", prompts: list[TracedPrompt], batch_size: int) -> list[float]:
    """Of the residuals of every layer over the prompts' positions."""
    total, n = torch.zeros(subject.n_layers + 1, dtype=torch.float64), 0
    for rows, _ in _batches(subject, prompts, batch_size):
        total += rows.double().square().sum((1, 2)).cpu()
        n += rows[0].numel()
    return [max(square / n, 1e-24) ** 0.5 for square in total.tolist()]


def _drawn(prompts: list[TracedPrompt], steps: int, n: int, seed: int) -> Iterator[list[TracedPrompt]]:
    """n prompts a step, all in a new random order before any comes again."""
    random = np.random.default_rng([seed, 6])
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < n:
            queue += random.permutation(len(prompts)).tolist()
        yield [prompts[i] for i in queue[:n]]
        queue = queue[n:]


def _batches(
    subject: "Subject", prompts: Sequence[TracedPrompt], batch_size: int
) -> Iterator[tuple[Float[Tensor, "layers n d"], Tensor]]:
    """Residuals of all layers at the prompts' positions, float32, and the prompt of each within its batch."""
    for start in range(0, len(prompts), batch_size):
        some = prompts[start : start + batch_size]
        ids, mask = padded([prompt.ids for prompt in some], 0)
        counts = torch.tensor([len(prompt.positions) for prompt in some])
        owner = torch.repeat_interleave(torch.arange(len(some)), counts)
        columns = torch.tensor([position for prompt in some for position in prompt.positions])
        trace = subject.trace(ids.to(subject.device), mask.to(subject.device), reduce=rows_at(owner, columns))
        yield torch.stack([trace[layer].float() for layer in range(subject.n_layers + 1)]), owner


def _places(rows: Float[Tensor, "layers n d"], vocab: int) -> Iterator[slice]:
    """Slices of places whose logits, of one layer, fit in READOUT_BYTES."""
    size = max(1, READOUT_BYTES // (4 * vocab))
    return (slice(start, min(start + size, rows.shape[1])) for start in range(0, rows.shape[1], size))


def _log_softmax(subject: "Subject", h: Float[Tensor, "n d"], vocab: int) -> Float[Tensor, "n vocab"]:
    return subject.readout(h)[:, :vocab].log_softmax(-1)


def _table(
    before: Float64[np.ndarray, "N layers"], after: Float64[np.ndarray, "N layers"], clusters: Any, seed: int
) -> pd.DataFrame:
    """A row a layer: KL before, after, their paired difference with intervals, and whether that lies above 0."""
    n_layers = before.shape[1]
    boot = cluster_bootstrap(np.hstack([before, after, before - after]), clusters, seed=seed)
    frame = pd.DataFrame({"layer": np.arange(n_layers)})
    for number, name in enumerate(("kl_before", "kl_after", "gain")):
        part = slice(number * n_layers, (number + 1) * n_layers)
        for suffix, values in zip(SUFFIXES, (boot.mean, boot.low, boot.high), strict=True):
            frame[name + suffix] = values[part]
    frame["kept"] = frame.gain_low > 0
    frame["n"] = len(before)
    return frame
