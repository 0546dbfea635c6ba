"""Does it still get better on rows that it is not trained on? Their loss, epoch by epoch, and when that is enough."""

from collections.abc import Callable, Mapping
from numbers import Integral
from typing import Any

from ..errors import InputError
from .cdas import FitResult
from .subspace import Subspace

Losses = Callable[[Subspace | None], Mapping[str, float]]  # of each direction, nats a token; None: of no edit


class HeldOutCurve:
    """An observer of a fit, called with (step, subspace): reads the loss before the first step and after every epoch.

    losses None: no rows are held out, and nothing is read. patience: see train_cdas.
    """

    def __init__(self, losses: Losses | None, *, an_epoch: int, patience: int | None = None) -> None:
        self.losses, self.an_epoch, self.patience = losses, an_epoch, patience
        self.unedited: Mapping[str, float] | None = None if losses is None else losses(None)
        self.points: list[dict[str, float | int]] = []
        self._best: tuple[float, int, Subspace] | None = None  # mean of the directions, step

    def __call__(self, step: int, subspace: Subspace) -> bool:
        """Has it gone on for long enough without a smaller loss?"""
        if self.losses is None or step % self.an_epoch:
            return False
        found = self.losses(subspace)
        self.points.append({"step": step, **found})
        mean = sum(found.values()) / len(found)
        if self._best is None or mean < self._best[0]:
            self._best = (mean, step, subspace)
        return self.patience is not None and step - self._best[1] >= self.patience * self.an_epoch

    def kept(self, fit: FitResult) -> Subspace:
        """With patience the subspace of the smallest loss, else that of the last step."""
        return fit.subspace if self.patience is None or self._best is None else self._best[2]

    def text(self) -> str:
        """The last losses beside those of no edit, for a line of progress; "" where none was read."""
        if not self.points or self.unedited is None:
            return ""
        last = self.points[-1]
        return "held out " + ", ".join(f"{last[way]:.3g} of {self.unedited[way]:.3g} ({way})" for way in self.unedited)

    def metrics(self) -> dict[str, Any]:
        """For metadata["metrics"]: the curve, the losses of no edit, and with patience the step that was kept."""
        found: dict[str, Any] = {"held_out": self.points}
        if self.unedited is not None:
            found["held_out_unedited"] = dict(self.unedited)
        if self.patience is not None and self._best is not None:
            found["kept_step"] = self._best[1]
        return found

    def notices(self, fit: FitResult) -> list[str]:
        """That, and when, it was stopped: the loss that chose a step is smaller than that of new rows."""
        if self.patience is None or self._best is None:
            return []
        ran, best = len(fit.losses) // self.an_epoch, self._best[1] // self.an_epoch
        return [
            f"ran {ran} epochs, and epoch {best} is kept, of the smallest held-out loss: that loss flatters it"
            if best
            else f"ran {ran} epochs, and none had a smaller held-out loss than the start, which is kept: lower lr"
        ]


def require_patience(patience: int | None) -> None:
    """InputError for a patience that is no count of epochs."""
    if patience is not None and (not isinstance(patience, Integral) or patience < 1):
        raise InputError(f"patience={patience}: expected 1 or more epochs, a whole number, or None")


def require_held_out(patience: int | None, n: int) -> None:
    """InputError for a patience without a row held out."""
    if patience is not None and n == 0:
        raise InputError(f"patience={patience} looks at rows held out, and there is none: expected holdout=0.2 or so")
