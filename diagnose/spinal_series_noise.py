"""How far does noise as large as the whole update move the signals of a series? It is printed beside the onset."""

import math
from typing import TYPE_CHECKING

from .report import Estimate
from .spinal_contrast import terminal_window
from .spinal_distance import base_distance
from .spinal_effects import ALPHA, Interval, effects, over_blocks
from .spinal_estimates import BOOTSTRAP, FEW_CLUSTERS, estimate
from .spinal_noise import of_noise
from .spinal_reading import Folder, Progress
from .spinal_series_rules import WORDS
from .spinal_series_signals import NAMES, UNITS
from .spinal_trace import SAMPLING_ONLY, SpinalTrace, bootstrap_means

if TYPE_CHECKING:
    from ..probes.subject import Subject

EFFECTS = {"A": ALPHA, "T": "d_transport_terminal", "H": "d_entropy_terminal", "E": "d_efficiency_terminal"}
NOISE_NAMES = tuple(f"noise_{NAMES[letter]}" for letter in (*EFFECTS, "D"))


def noise_sizes(
    start: SpinalTrace,
    subjects: "tuple[Subject, Subject]",
    *,
    terminal: str | tuple[int, int],
    seeds: int,
    seed: int,
    shards: Folder | None = None,
    progress: Progress | None = None,
) -> dict[str, Estimate]:
    """By quantity (alpha, transport, entropy, efficiency, base_distance): the change of the seed that moved farthest.

    start: trace of the model training started from; subjects: that model and the last save. Every block matrix that
    training changed gets Gaussian noise with the norm of its change; noisy minus start over the last blocks, on the
    same prompts, with an interval over prompts. Null, with the reason, where there is no such noise. [reconstructed]
    """
    window = terminal_window(terminal, start.model.n_layers)

    def moved(base: SpinalTrace, again: SpinalTrace, noisy: "Subject") -> tuple[int, dict[str, Interval]]:
        found = effects(base, again, window)
        sizes = {letter: found.interval(name, base.clusters, seed) for letter, name in EFFECTS.items()}
        distance, _ = base_distance(base, again, (subjects[0], noisy), identical=False, warnings=[], shards=shards)
        far = None if distance is None else over_blocks(distance, window)
        if far is not None:
            value, low, high = (float(part[0]) for part in bootstrap_means(far[None], base.clusters, seed))
            sizes["D"] = value, low, high
        return base.n, sizes

    found = of_noise(start, subjects, moved, seeds=seeds, seed=seed, shards=shards, progress=progress)
    reason, measured = (found, []) if isinstance(found, str) else (None, found)
    n = measured[0][0] if measured else 0
    of = {letter: [sizes[letter] for _, sizes in measured if letter in sizes] for letter in (*EFFECTS, "D")}
    return {NAMES[letter]: _size(letter, sizes, start, n, seeds, reason) for letter, sizes in of.items()}


def _size(letter: str, found: list[Interval], start: SpinalTrace, n: int, seeds: int, reason: str | None) -> Estimate:
    there = [interval for interval in found if math.isfinite(interval[0])]
    value, low, high = max(there, key=lambda interval: abs(interval[0]), default=(math.nan,) * 3)
    how = f"paired delete-group jackknife, ranks fixed; {SAMPLING_ONLY}" if letter == "A" else BOOTSTRAP
    missing = reason or ("no number over these blocks" if not there else FEW_CLUSTERS)
    return estimate(
        f"{WORDS[letter]} over the last blocks, noise as large as the update of the last save minus the start",
        value,
        low,
        high,
        n=n,
        n_clusters=min(n, len(set(start.clusters.tolist()))),
        unit=UNITS[letter],
        method=f"of {seeds} seeds of Gaussian noise the one that moved farthest; {how}",
        reason=missing,
        null_value=None if letter == "D" else 0.0,
    )
