"""Does it still get better on rows that it is not trained on? Their loss, epoch by epoch, and when that is enough."""

import math
from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

from ..errors import InputError
from .cdas import FitResult
from .subspace import Subspace

OF_NOTHING = "the held-out loss to"  # begins the notice of a direction that learnt nothing; turned round by swap()
Losses = Callable[[Subspace | None], Mapping[str, Mapping[str, float]]]  # direction -> "loss", "kl"; None: of no edit


class HeldOutCurve:
    """An observer of a fit, called with (step, subspace): reads the loss before the first step and after every epoch.

    losses: means a response token, nats: what is minimised, and KL(q : p), of which the share that is gone is the
    faithfulness. None: no rows are held out, and nothing is read. patience: see train_cdas.
    """

    def __init__(self, losses: Losses | None, *, an_epoch: int, patience: int | None = None) -> None:
        self.losses, self.an_epoch, self.patience = losses, an_epoch, patience
        self.unedited = {} if losses is None else losses(None)
        self.points: list[dict[str, float | int]] = []
        self._best: tuple[float, int, Subspace] | None = None  # mean of the directions, step

    def __call__(self, step: int, subspace: Subspace) -> bool:
        """Has it gone on for long enough without a smaller loss?"""
        if self.losses is None or step % self.an_epoch:
            return False
        found = self.losses(subspace)
        self.points.append({"step": step, **{way: means["loss"] for way, means in found.items()}})
        for way, means in found.items():
            if (kl := self.unedited[way]["kl"]) > 0:
                self.points[-1][f"recovered_{way}"] = 1 - means["kl"] / kl
        mean = sum(means["loss"] for means in found.values()) / len(found)
        if math.isfinite(mean) and (self._best is None or mean < self._best[0]):
            self._best = (mean, step, subspace)
        since = 0 if self._best is None else self._best[1]
        return self.patience is not None and step - since >= self.patience * self.an_epoch

    def kept(self, fit: FitResult) -> Subspace:
        """With patience the subspace of the smallest loss, else that of the last step; on the CPU."""
        if self.patience is None or self._best is None:
            return fit.subspace
        return Subspace.orthonormal(self._best[2].basis.cpu())

    def text(self) -> str:
        """The last losses beside those of no edit, for a line of progress; "" where none was read."""
        if not self.points:
            return ""
        last, told = self.points[-1], []
        for way, none in self.unedited.items():
            share = last.get(f"recovered_{way}")
            recovered = "" if share is None else f", {share:.0%} of the KL recovered"
            told.append(f"{way} {last[way]:.3g} of {none['loss']:.3g}{recovered}")
        return f"held out: {'; '.join(told)}"

    def metrics(self) -> dict[str, Any]:
        """For metadata["metrics"]: the curve, the losses of no edit, and with patience the step that was kept."""
        found: dict[str, Any] = {"held_out": self.points}
        if self.unedited:
            found["held_out_unedited"] = {way: means["loss"] for way, means in self.unedited.items()}
        if self.patience is not None and self._best is not None:
            found["kept_step"] = self._best[1]
        return found

    def notices(self, fit: FitResult) -> list[str]:
        """What was kept, as the loss that chose it flatters it, and directions that learnt nothing."""
        told = []
        kept = self._kept_point()
        if self.patience is not None and self._best is not None:
            ran, best = len(fit.losses) // self.an_epoch, self._best[1] // self.an_epoch
            told.append(
                f"ran {ran} epochs, and epoch {best} is kept, of the smallest held-out loss: that loss flatters it"
                if best
                else f"ran {ran} epochs, and none had a smaller held-out loss than the start, which is kept: lower lr"
            )
        for way, none in self.unedited.items():
            if kept[way] >= none["loss"]:
                told.append(
                    f"{OF_NOTHING} {way}, {kept[way]:.3g}, is no smaller than that of no edit, "
                    f"{none['loss']:.3g}: nothing was learnt that other rows share"
                )
        return told

    def _kept_point(self) -> Mapping[str, float | int]:
        if not self.points:
            return {}
        step = self._best[1] if self.patience is not None and self._best is not None else self.points[-1]["step"]
        return next(point for point in self.points if point["step"] == step)


def required_patience(patience: int | None) -> int | None:
    """The count of epochs, or None. InputError for anything else."""
    if patience is None:
        return None
    if not isinstance(patience, Integral) or isinstance(patience, bool) or patience < 1:
        raise InputError(f"patience={patience}: expected 1 or more epochs, a whole number, or None")
    return int(patience)


def require_held_out(patience: int | None, n: int) -> None:
    """InputError for a patience without a row held out."""
    if patience is not None and n == 0:
        raise InputError(f"patience={patience} looks at rows held out, and there is none: expected holdout=0.2 or so")
