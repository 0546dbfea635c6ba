"""Train a steering vector on a model by interchange between two runs of it: CDAS, arXiv 2602.05234."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..errors import InputError
from ..probes.block_gradients import flowing_to
from ..probes.inputs import Source
from ..probes.shards import Progress, detailed
from ..probes.subject import Subject
from .cdas import FitResult, fit_rows
from .descent import Descent, required_settings
from .encoded import EncodedQuadruple, run_pairs
from .held_out import HeldOutCurve, require_held_out, required_patience
from .losses import require_loss
from .model_fit import require_rank
from .positions import Positions
from .preparing import Prepared, one_way, prepare
from .quadruples import QuadrupleFile
from .reading import Reading, read_states
from .separation import oriented
from .training_rows import TrainingRows, training_rows
from .vector import SteeringVector

INITS = ("random", "diffmean")


def train_cdas(
    subject: Subject,
    quadruples: Source | QuadrupleFile,
    *,
    layer: int,
    component: str = "resid_post",
    rank: int = 1,
    loss: str = "jsd",
    directions: str = "both",
    source: str = "prompt_last",
    positions: str | Positions = "all",
    prefix: int | str = "auto",
    init: str = "random",
    lr: float | int = 0.04,
    epochs: int = 18,
    batch_size: int = 8,
    grad_clip: float | int = 1.0,
    reduction: str = "token",
    max_response_tokens: int = 128,
    holdout: float | int = 0.2,
    patience: int | None = None,
    cache_bytes: float | int = 2e9,
    seed: int = 42,
    allow_small: bool = False,
    template: str | None = None,
    eos: str = "auto",
    progress: Progress | None = None,
    read: Reading = read_states,
) -> SteeringVector:
    """The clamp whose subspace S [rank, d], interchanged between two runs, makes one say what the other says.

    Elicit: base x + y_c, source x_c + y_c; suppress: base x_c + y, source x + y. Minimised over S: the loss (see
    losses.py, nats a response token) of the edited base run, h + (h_s[p] S^T - h S^T) S at `positions`, against the
    unedited source run; both directions weigh half. p: the last token of the prompt, or of the text `source` in it.
    Afterwards f+ and f- are the mean coordinates of the training prompts x_c and x at p. arXiv 2602.05234. Of rank 1
    the sign of w is chosen so that f+ >= f- [reconstructed].

    quadruples: as of `read_quadruples`. layer: block, 0-based. batch_size: quadruples a step, each in both directions;
    epochs: passes over them in shuffled order. init: "random", or "diffmean" [reconstructed]. holdout: share of rows,
    by prompt, that is not trained on; metadata["metrics"] has their loss and the share of KL(q : p) that is recovered,
    epoch by epoch. The last step is kept; with `patience`, training stops when for so many epochs their loss (mean of
    the directions) has not been smaller, and the step of the smallest is kept [reconstructed]; lr falls as if all
    epochs were run, and `history` and the share at the ceiling are of all steps that were. cache_bytes: what may be
    kept of runs of the unedited model, of the rows trained on and of those held out each. template, eos, and positions:
    see preparing.prepare.
    read: how unedited states are read; scan_layers has one reading serve several layers.
    Only S gets a gradient; the model is left as found: parameters, requires_grad, modes, hooks.

    Raises InputError for a layer or component that is not there, a rank above d, unknown names, fewer than 16 usable
    rows unless allow_small, a prompt without `source`. Rows that cannot be used are set aside and counted.
    """
    settings = {
        "loss": loss,
        "directions": directions,
        "rank": rank,
        "init": init,
        "lr": lr,
        "epochs": epochs,
        "batch_size": batch_size,
        "grad_clip": grad_clip,
        "reduction": reduction,
        "patience": required_patience(patience),
    }
    _require_settings(settings, subject)
    data = prepare(
        subject,
        quadruples,
        layer=layer,
        component=component,
        source=source,
        positions=positions,
        prefix=prefix,
        max_response_tokens=max_response_tokens,
        holdout=holdout,
        seed=seed,
        allow_small=allow_small,
        template=template,
        eos=eos,
        read=read,
    )
    require_held_out(patience, len(data.held))
    with flowing_to(subject, []):
        rows, told = _rows(data, data.train, directions, cache_bytes)
        held, of_held = _rows(data, data.held, directions, cache_bytes) if data.held else (None, [])
        fit, curve = _fitted(data, rows, held, settings, progress)
        told += [f"rows held out: {one}" for one in of_held]
    told += curve.notices(fit)
    kept = curve.kept(fit)
    subspace, factors = oriented(kept, data.factors(kept))
    metrics = {"loss": loss, "share_at_ceiling": fit.share_at_ceiling, "n_tokens": fit.n_tokens, **curve.metrics()}
    data.settings.update(settings | {"cache_bytes": cache_bytes, "base_cached": rows.lower is not None})
    return SteeringVector(
        site=data.site,
        subspace=subspace,
        factors=factors,
        positions=data.positions,
        method="cdas" if loss != "ce" else "das",
        metadata=data.metadata(metrics, (*fit.warnings, *told, *one_way(directions))),
        history=_history(fit),
    )


def _require_settings(settings: dict[str, Any], subject: Subject) -> None:
    try:
        require_loss(settings["loss"], settings["reduction"], has_tokens=True)
        run_pairs((), settings["directions"])
    except ValueError as error:
        raise InputError(str(error)) from error
    if settings["init"] not in INITS:
        raise InputError(f"init '{settings['init']}': expected one of {', '.join(INITS)}")
    require_rank(settings["rank"], subject)
    settings |= required_settings(**{name: settings[name] for name in ("lr", "grad_clip", "epochs", "batch_size")})


def _rows(
    data: Prepared, rows: Sequence[EncodedQuadruple], directions: str, cache_bytes: float | int
) -> tuple[TrainingRows, list[str]]:
    pairs = run_pairs(rows, directions)
    return training_rows(data.subject, data.site, data.positions, pairs, cache_bytes=cache_bytes, read=data.read)


def _fitted(
    data: Prepared,
    rows: TrainingRows,
    held: TrainingRows | None,
    settings: dict[str, Any],
    progress: Progress | None,
) -> tuple[FitResult, HeldOutCurve]:
    """The fit, and what it did on the rows held out."""
    seed, loss, size = data.settings["seed"], settings["loss"], settings["batch_size"]
    batches = shuffled_batches(
        len(data.train), epochs=settings["epochs"], size=size, seed=seed, both=settings["directions"] == "both"
    )
    curve = HeldOutCurve(
        None if held is None else partial(held.mean_losses, loss=loss),
        an_epoch=len(batches) // settings["epochs"],
        patience=settings["patience"],
    )
    fit = fit_rows(
        rows,
        width=data.subject.d_model,
        device=rows.source.device,
        rank=settings["rank"],
        loss=loss,
        steps=len(batches),
        lr=settings["lr"],
        batch_size=size,
        seed=seed,
        init=_mean_difference(data, settings["rank"], seed) if settings["init"] == "diffmean" else None,
        grad_clip=settings["grad_clip"],
        reduction=settings["reduction"],
        batches=batches,
        observe=curve,
        progress=None if progress is None else detailed(progress, curve.text),
    )
    return fit, curve


def shuffled_batches(n: int, *, epochs: int, size: int, seed: int, both: bool) -> list[Tensor]:
    """Rows of every step: passes over n quadruples in shuffled order; both: row i elicits, row i + n suppresses."""
    generator = torch.Generator().manual_seed(seed)
    found: list[Tensor] = []
    for _ in range(epochs):
        for some in torch.randperm(n, generator=generator).split(size):
            found.append(torch.cat([some, some + n]) if both else some)
    return found


def _mean_difference(data: Prepared, rank: int, seed: int) -> Tensor:
    """[rank, d]: mean source state of x_c minus that of x, and random rows below it."""
    positive, negative = data.source_states()
    difference = (positive - negative).mean(0, keepdim=True)
    generator = torch.Generator().manual_seed(seed)
    return torch.cat([difference, torch.randn(rank - 1, difference.shape[1], generator=generator)])


def _history(fit: FitResult) -> list[dict[str, float | int]]:
    steps = Descent(losses=fit.losses, gradient_norms=fit.gradient_norms).history()
    for step, share in zip(steps, fit.at_ceiling or (), strict=fit.at_ceiling is not None):
        step["at_ceiling"] = share
    return steps
