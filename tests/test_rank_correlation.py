"""Spearman's correlation: scipy's values, also in every resample, and what must not change it."""

import numpy as np
import pytest
from scipy import stats

from alignscope.diagnose.rank_correlation import spearman, spearman_matrix

ARANGE = np.arange(30.0)
OWN = np.arange(30)


def sample(n: int, *, seed: int = 0, values: int = 12) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x, y with many ties, and clusters of about two."""
    rng = np.random.default_rng(seed)
    x = rng.integers(0, values, n).astype(float)
    return x, np.round(x / 2 + rng.normal(0, 2, n)), rng.integers(0, n // 2, n)


@pytest.mark.parametrize(
    ("y", "rho"),
    [(ARANGE, 1.0), (-(ARANGE**3), -1.0), (np.abs(ARANGE - 14.5), 0.0), (np.exp(ARANGE / 10), 1.0)],
    ids=["same", "reversed", "symmetric", "monotone"],
)
def test_closed_forms(y, rho):
    assert spearman(ARANGE, y, OWN, draws=10).mean[0] == pytest.approx(rho, abs=1e-12)


def test_four_rows_by_hand():
    """Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 (4) / (4 (16 - 1)) = .6."""
    x, y = np.array([1.0, 2, 3, 4]), np.array([2.0, 1, 4, 3])
    assert spearman(x, y, np.arange(4), draws=5).mean[0] == pytest.approx(0.6)


@pytest.mark.parametrize("values", [2, 5, 1000])
def test_ties_share_their_mean_rank(values):
    x, y, clusters = sample(100, values=values)
    assert spearman(x, y, clusters, draws=5).mean[0] == pytest.approx(stats.spearmanr(x, y).statistic)


def test_every_draw_is_scipys_on_the_resampled_rows():
    x, y, clusters = sample(60)
    found = spearman(x, y, clusters, draws=50, seed=4)
    names = np.unique(clusters)
    expected = []
    for chosen in np.random.default_rng(4).integers(0, len(names), size=(50, len(names))):
        rows = np.concatenate([np.flatnonzero(clusters == names[c]) for c in chosen])
        expected.append(stats.spearmanr(x[rows], y[rows]).statistic)
    assert found.draws[:, 0] == pytest.approx(np.array(expected))
    assert (found.low[0], found.high[0]) == pytest.approx(tuple(np.percentile(expected, [2.5, 97.5])))
    assert (found.n[0], found.n_clusters[0]) == (60, len(names))


def test_rows_without_a_number_are_left_out():
    x, y, clusters = sample(60)
    holes = np.append(x, [np.nan, 1.0, np.inf]), np.append(y, [1.0, np.nan, 0.0]), np.append(clusters, [98, 99, 0])
    one, other = spearman(x, y, clusters, draws=20), spearman(*holes, draws=20)
    assert (one.mean[0], one.low[0], one.n[0]) == (other.mean[0], other.low[0], other.n[0])


def test_a_constant_side_has_no_correlation():
    found = spearman(ARANGE, np.full(30, 0.1), OWN, draws=20)
    assert np.isnan(found.mean[0])
    assert found.n[0] == 0


def test_no_rows_have_no_correlation():
    found = spearman(np.full(3, np.nan), np.ones(3), np.arange(3), draws=20)
    assert (np.isnan(found.mean[0]), found.n[0], found.n_clusters[0]) == (True, 0, 0)


def test_draws_without_a_value_are_left_out_of_the_interval():
    """One row of 30 differs: a third of the resamples lacks it."""
    x = np.where(OWN == 0, 1.0, 0.0)
    found = spearman(x, ARANGE, OWN, draws=200)
    assert 0.2 < np.isnan(found.draws).mean() < 0.5
    assert np.isfinite([found.low[0], found.high[0]]).all()


def test_order_scale_and_repeated_rows_change_nothing():
    x, y, clusters = sample(60)
    one = spearman(x, y, clusters, draws=50)
    turned = np.random.default_rng(1).permutation(60)
    for again in (
        spearman(x[turned], y[turned], clusters[turned], draws=50),
        spearman(np.exp(x), 8 * y - 1, clusters, draws=50),
        spearman(np.tile(x, 2), np.tile(y, 2), np.tile(clusters, 2), draws=50),
        spearman(y, x, clusters, draws=50),
    ):
        assert again.draws == pytest.approx(one.draws)
        assert (again.mean[0], again.low[0], again.high[0]) == pytest.approx((one.mean[0], one.low[0], one.high[0]))


def test_fewer_than_20_clusters_have_no_interval():
    x, y, clusters = sample(60)
    assert np.isnan(spearman(x, y, clusters % 19, draws=20).low[0])
    assert np.isfinite(spearman(x, y, np.arange(60) % 20, draws=20).low[0])


# ---- every two of many columns


def columns(n: int = 60, *, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Five columns, some with ties, the last two without numbers in other rows; and clusters."""
    x, y, clusters = sample(n, seed=seed)
    rng = np.random.default_rng(seed + 1)
    found = np.stack([x, y, x * y, rng.normal(size=n) + x, -y], axis=1)
    found[::7, 3], found[::5, 4], found[0, 2] = np.nan, np.nan, np.inf
    return found, clusters


def test_every_two_columns_have_the_numbers_of_the_two_alone():
    some, clusters = columns()
    found = spearman_matrix(some, clusters, draws=40, seed=4)
    for i in range(5):
        for j in {*range(5)} - {i}:
            alone = spearman(some[:, i], some[:, j], clusters, draws=40, seed=4)
            for name, number in (("rho", alone.mean), ("low", alone.low), ("high", alone.high)):
                assert getattr(found, name)[i, j] == pytest.approx(number[0], abs=1e-12)


def test_the_diagonal_is_left_empty():
    found = spearman_matrix(*columns(), draws=5)
    for matrix in (found.rho, found.low, found.high):
        assert np.isnan(np.diagonal(matrix)).all()


def test_columns_of_one_order_agree_fully_in_every_draw():
    some = np.stack([ARANGE, np.exp(ARANGE / 9), -ARANGE], axis=1)
    found = spearman_matrix(some, OWN, draws=50)
    assert [found.rho[0, 1], found.low[0, 1], found.high[0, 1]] == pytest.approx([1.0] * 3, abs=1e-12)
    assert [found.rho[0, 2], found.low[0, 2], found.high[0, 2]] == pytest.approx([-1.0] * 3, abs=1e-12)
    assert np.nanmax(np.abs(found.high)) <= 1.0  # not by rounding either


def test_a_constant_column_correlates_with_none():
    found = spearman_matrix(np.stack([ARANGE, np.full(30, 2.0), -ARANGE], axis=1), OWN, draws=20)
    assert np.isnan(found.rho[1]).all()
    assert np.isnan(found.low[1]).all()
    assert np.isfinite([found.rho[0, 2], found.low[0, 2]]).all()


def test_one_column_has_no_partner():
    assert np.isnan(spearman_matrix(ARANGE[:, None], OWN, draws=5).rho).tolist() == [[True]]
