"""How do the singular values of centred residual rows fall, and what would they be with other prompts?

Of every layer: the spectrum of all rows, of all rows but one group (delete-group jackknife), and of random halves.
"""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from jaxtyping import Float, Int

from ..probes.kernels import SpectrumAccumulator

HALF_DRAWS = 8
DTYPES = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}


class RowSpectrum:
    """Singular values of column-centred rows [N, d], and of subsets of them (centred anew), float64, descending.

    From the Gram matrix of the smaller side, in float64 after centring; values under 1e-7 of the first are rounding of
    0 (a fit counts them from 1e-6). At most min(distinct rows - 1, d) values; none where all rows are the same.
    center=False: the rows as they are, min(distinct rows, d) values. downdate: the second moments of a subset are those
    of all rows less those of the rest, where N > d and the rest is smaller: equal up to rounding, and of 16 groups that
    are left out in turn each row is squared once.
    """

    def __init__(self, rows: Float[np.ndarray, "N d"], *, center: bool = True, downdate: bool = False) -> None:
        self.n, self.width = rows.shape
        self.center = center
        self.n_distinct = len({row.tobytes() for row in rows})
        x = torch.from_numpy(np.array(rows, dtype=np.float64))
        self._rows = x - x.mean(0) if center else x
        self._gram = self._rows @ self._rows.T if self.n <= self.width else None
        self._scatter = self._rows.T @ self._rows if downdate and self.n > self.width else None

    def values(self) -> Float[np.ndarray, "r"]:
        """Of all rows."""
        if self.n_distinct < 2:
            return np.zeros(0)
        return self.subset(None)[: min(self.n_distinct - self.center, self.width)]

    def subset(self, keep: Int[np.ndarray, "n"] | None) -> Float[np.ndarray, "k"]:
        """Of some rows; min(n - 1, d) values."""
        chosen = slice(None) if keep is None else torch.from_numpy(keep)
        if self._gram is not None:
            gram = self._gram[chosen][:, chosen]
            mean = gram.mean(0)
            gram = gram - mean - mean[:, None] + mean.mean() if self.center else gram
        elif self._scatter is not None and (keep is None or (2 * len(keep) >= self.n and len(keep) > self.width)):
            gram = self._downdated(keep)
        else:
            x = self._rows[chosen]
            x = x - x.mean(0) if self.center else x
            gram = x @ x.T if len(x) <= self.width else x.T @ x
        n = self.n if keep is None else len(keep)
        eigenvalues = torch.linalg.eigvalsh(gram).flip(0)[: min(n - self.center, self.width)]
        return eigenvalues.clamp(min=0).sqrt().numpy()

    def _downdated(self, keep: Int[np.ndarray, "n"] | None) -> Float[torch.Tensor, "d d"]:
        """sum (x - c)(x - c)^T of some rows, c their mean or 0, from that of all rows and that of the rest."""
        assert self._scatter is not None
        if keep is None:
            return self._scatter
        left = np.ones(self.n, dtype=bool)
        left[keep] = False
        rest = self._rows[torch.from_numpy(left)]
        scatter = self._scatter - rest.T @ rest
        if not self.center:
            return scatter
        total = rest.sum(0)  # the centred rows of both parts sum to 0
        return scatter - torch.outer(total, total) / len(keep)


def rounding_floor(rows: Float[np.ndarray, "N d"], dtype: str) -> float:
    """Variance that storing the rows in `dtype` added, summed over columns: sum_j mean(ulp_j^2)/12; 0 where unknown.

    In units of the covariance's eigenvalues; ulp as in `SpectrumAccumulator.rounding_floor`.
    """
    if dtype not in DTYPES:
        return 0.0
    accumulator = SpectrumAccumulator(rows.shape[1])
    accumulator.update(torch.from_numpy(rows).to(DTYPES[dtype]))
    return accumulator.rounding_floor[0] * rows.shape[1]


def group_labels(clusters: Int[np.ndarray, "N"], n_groups: int, seed: int) -> Int[np.ndarray, "N"]:
    """A group 0..n_groups-1 for every row; rows of one cluster stay together, clusters are dealt out at random."""
    distinct, codes = np.unique(clusters, return_inverse=True)
    dealt = np.arange(len(distinct)) % n_groups
    return np.random.default_rng([seed, 1]).permutation(dealt)[codes]


def delete_group_spectra(spectra: RowSpectrum, groups: Int[np.ndarray, "N"], n_groups: int) -> Float[np.ndarray, "G k"]:
    """Singular values without each group in turn, padded with 0 to min(N - 1, d)."""
    found = np.zeros((n_groups, min(spectra.n - spectra.center, spectra.width)))
    for group in range(n_groups):
        values = spectra.subset(np.flatnonzero(groups != group))
        found[group, : len(values)] = values
    return found


def half_rows(clusters: Int[np.ndarray, "N"], owner: Int[np.ndarray, "rows"], seed: int) -> list[Int[np.ndarray, "_"]]:
    """Rows of random halves of the clusters of prompts, all rows of a cluster together; none under 4 clusters."""
    codes = np.unique(clusters, return_inverse=True)[1]
    n = int(codes.max(initial=-1)) + 1
    return [np.flatnonzero(np.isin(codes[owner], half)) for half in half_samples(n, seed)] if n >= 4 else []


def half_samples(n: int, seed: int) -> list[Int[np.ndarray, "half"]]:
    """`HALF_DRAWS` random halves of 0..n-1, each without replacement."""
    random = np.random.default_rng([seed, 2])
    return [np.sort(random.permutation(n)[: n // 2]) for _ in range(HALF_DRAWS)]


def all_layers(
    rows: Float[np.ndarray, "layers N d"],
    groups: Int[np.ndarray, "N"],
    n_groups: int,
    *,
    halves: Sequence[Int[np.ndarray, "_"]] = (),
    center: bool = True,
    downdate: bool = False,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[list[Float[np.ndarray, "_"]], Float[np.ndarray, "G layers k"], list[list[Float[np.ndarray, "_"]]]]:
    """Of every layer: the spectrum, those without each group, and those of the `halves`. progress(done, layers)."""
    n_layers, n, width = rows.shape
    full, halved = [], []
    jackknife = np.zeros((n_groups, n_layers, max(0, min(n - center, width))))
    for layer in range(n_layers):
        spectrum = RowSpectrum(rows[layer], center=center, downdate=downdate)
        full.append(spectrum.values())
        constant = spectrum.n_distinct < 2
        if not constant:
            jackknife[:, layer] = delete_group_spectra(spectrum, groups, n_groups)
        halved.append([] if constant else [spectrum.subset(half) for half in halves])
        if progress is not None:
            progress(layer + 1, n_layers)
    return full, jackknife, halved
