"""Intervals and tests over clusters: against naive loops and closed forms, what must not move them, bad arguments."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from alignscope.diagnose.statistics import (
    MIN_CLUSTERS,
    cluster_bootstrap,
    cluster_codes,
    delete_group_jackknife,
    estimate_from,
    holm,
    jackknife_interval,
    mcnemar,
    paired_p,
    percentile_interval,
    resampled_counts,
    sign_flip_max_t,
    single_column,
    wilson,
)

Z2 = stats.norm.ppf(0.975) ** 2


def clustered(n_clusters: int, *, per: int = 3, columns: int = 2, seed: int = 0):
    """Whole numbers, so that sums are exact in any order, and clusters of `per` rows in mixed order."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-9, 10, (n_clusters * per, columns)).astype(float)
    return values, rng.permutation(np.repeat(np.arange(n_clusters), per))


def naive_draws(values, clusters, *, draws: int, seed: int):
    """The rows of every drawn cluster, gathered one by one; a NaN leaves its row out of its column."""
    labels = sorted(set(clusters.tolist()))
    chosen = np.random.default_rng(seed).integers(0, len(labels), (draws, len(labels)))
    found = []
    for sample in chosen:
        rows = [row for i in sample for row in np.flatnonzero(clusters == labels[i])]
        columns = [[v for v in values[rows, j] if not math.isnan(v)] for j in range(values.shape[1])]
        found.append([math.fsum(column) / len(column) if column else math.nan for column in columns])
    return np.array(found)


# ---- cluster bootstrap


def test_draws_and_interval_equal_a_naive_loop():
    values, clusters = clustered(25)
    boot = cluster_bootstrap(values, clusters, draws=60, seed=3)
    expected = naive_draws(values, clusters, draws=60, seed=3)
    assert boot.draws == pytest.approx(expected)
    assert boot.mean == pytest.approx(values.mean(0))
    assert np.array([boot.low, boot.high]) == pytest.approx(np.percentile(expected, [2.5, 97.5], axis=0))
    assert (boot.n.tolist(), boot.n_clusters.tolist()) == ([75, 75], [25, 25])


def test_clusters_of_unequal_size_are_weighted_by_their_rows():
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(22), rng.integers(1, 9, 22))
    values = rng.integers(0, 2, (len(clusters), 1)).astype(float)
    boot = cluster_bootstrap(values, clusters, draws=40)
    assert boot.draws == pytest.approx(naive_draws(values, clusters, draws=40, seed=0))


def test_a_missing_value_leaves_its_row_out_of_that_column_alone():
    values, clusters = clustered(25)
    holes = values.copy()
    holes[[0, 5, 17], 0] = np.nan
    boot = cluster_bootstrap(holes, clusters, draws=50)
    assert boot.draws == pytest.approx(naive_draws(holes, clusters, draws=50, seed=0))
    assert boot.mean[0] == pytest.approx(np.nanmean(holes[:, 0]))
    assert boot.n.tolist() == [72, 75]
    whole = cluster_bootstrap(values, clusters, draws=50)
    assert (boot.draws[:, 1] == whole.draws[:, 1]).all()


def test_draws_without_a_value_leave_the_interval_alone():
    values, clusters = clustered(25, per=1, columns=1)
    values[3:] = np.nan  # 3 clusters have a value, so some draws have none
    boot = cluster_bootstrap(values, clusters, draws=400)
    assert np.isnan(boot.draws).any()
    assert boot.draws == pytest.approx(naive_draws(values, clusters, draws=400, seed=0), nan_ok=True)
    low, high = percentile_interval(boot.draws)
    assert np.isfinite([low, high]).all()


def test_a_column_of_missing_values_has_no_mean():
    values, clusters = clustered(25)
    values[:, 0] = np.nan
    boot = cluster_bootstrap(values, clusters, draws=10)
    assert np.isnan([boot.mean[0], boot.low[0], boot.high[0]]).all()
    assert (boot.n.tolist(), boot.n_clusters.tolist()) == ([0, 75], [0, 25])
    none = cluster_bootstrap(np.zeros((0, 2)), np.array([], dtype=str), draws=5)
    assert (np.isnan(none.mean).tolist(), none.n_clusters.tolist()) == ([True, True], [0, 0])


def test_under_20_clusters_there_is_a_mean_but_no_interval():
    for n, interval in ((MIN_CLUSTERS - 1, False), (MIN_CLUSTERS, True)):
        boot = cluster_bootstrap(*clustered(n), draws=50)
        assert np.isfinite(boot.mean).all()
        assert np.isfinite(boot.low).tolist() == np.isfinite(boot.high).tolist() == [interval] * 2


def test_only_clusters_that_have_a_value_count():
    values, clusters = clustered(25)
    values[clusters >= 19, 0] = np.nan
    boot = cluster_bootstrap(values, clusters, draws=50)
    assert boot.n_clusters.tolist() == [19, 25]
    assert np.isnan(boot.low).tolist() == [True, False]


def test_columns_are_drawn_together_also_between_calls():
    values, clusters = clustered(25)
    both = cluster_bootstrap(values, clusters, draws=50, seed=4)
    difference = cluster_bootstrap(values[:, :1] - values[:, 1:], clusters, draws=50, seed=4)
    assert both.draws[:, 0] - both.draws[:, 1] == pytest.approx(difference.draws[:, 0])


def test_every_row_repeated_gives_the_same_interval():
    values, clusters = clustered(25)
    once = cluster_bootstrap(values, clusters, draws=50)
    thrice = cluster_bootstrap(np.repeat(values, 3, axis=0), np.repeat(clusters, 3), draws=50)
    assert (once.draws == thrice.draws).all()


def test_the_order_of_rows_does_not_matter():
    values, clusters = clustered(25)
    order = np.random.default_rng(9).permutation(len(values))
    mixed = cluster_bootstrap(values[order], clusters[order], draws=50)
    assert (mixed.draws == cluster_bootstrap(values, clusters, draws=50).draws).all()


def test_a_wider_level_contains_the_narrower():
    values, clusters = clustered(25)
    narrow, wide = (cluster_bootstrap(values, clusters, draws=200, level=level) for level in (0.5, 0.99))
    assert ((wide.low < narrow.low) & (narrow.high < wide.high)).all()
    assert narrow.low == pytest.approx(np.percentile(narrow.draws, 25, axis=0))


@pytest.mark.parametrize("more", [{"draws": 0}, {"level": 0.0}, {"level": 1.0}])
def test_bad_settings_and_infinite_values_are_refused(more):
    with pytest.raises(ValueError, match="draws >= 1 and 0 < level < 1"):
        cluster_bootstrap(*clustered(25), **more)
    with pytest.raises(ValueError, match="infinities"):
        cluster_bootstrap(np.array([[math.inf]]), np.array([0]))


def test_clusters_may_be_text_numbers_or_mixed():
    assert cluster_codes(np.array(["b", "a", "b"]))[0].tolist() == [1, 0, 1]
    assert cluster_codes(np.array([30, 4, 4]))[0].tolist() == [1, 0, 0]
    assert cluster_codes(np.array(["b", 1, None], dtype=object))[1] == 3


def test_samples_do_not_depend_on_the_chunks_they_come_in():
    one = [*resampled_counts(37, draws=101, seed=3)]
    many = [*resampled_counts(37, draws=101, seed=3, width=1_000_000)]
    assert (len(one), len(many)) == (1, 26)
    assert (np.concatenate(one) == np.concatenate(many)).all()
    assert (one[0].sum(1) == 37).all()


def test_intervals_cover_the_truth_where_rows_of_a_cluster_agree():
    """30 clusters of 4 rows that share half their variance: by cluster some 92 %, by row far fewer."""
    rng = np.random.default_rng(1)
    clusters = np.repeat(np.arange(30), 4)
    covered = np.zeros(2)
    for seed in range(400):
        values = (rng.normal(size=30)[clusters] + rng.normal(size=120))[:, None]
        for j, groups in enumerate((clusters, np.arange(120))):
            boot = cluster_bootstrap(values, groups, draws=200, seed=seed)
            covered[j] += boot.low[0] <= 0.0 <= boot.high[0]
    by_cluster, by_row = covered / 400
    assert 0.89 < by_cluster < 0.97  # binomial error .013
    assert by_row < 0.85


# ---- a column as an estimate


def test_an_estimate_holds_mean_interval_and_counts():
    boot = cluster_bootstrap(*clustered(25), draws=50)
    found = estimate_from(boot, 1, label="x", unit="nats", null_value=0.0)
    assert (found.value, found.low, found.high) == (boot.mean[1], boot.low[1], boot.high[1])
    assert (found.n, found.n_clusters, found.level, found.unit, found.null_value) == (75, 25, 0.95, "nats", 0.0)
    assert "50 draws" in found.method


def test_an_estimate_from_few_clusters_gives_the_reason():
    values, clusters = clustered(19)
    found = estimate_from(cluster_bootstrap(values, clusters, draws=50), 0, label="x")
    assert (found.value, found.low, found.high) == (values[:, 0].mean(), None, None)
    assert found.reason == "19 clusters (prompts): an interval needs 20"


def test_an_estimate_without_rows_gives_the_reason_of_the_caller():
    boot = cluster_bootstrap(np.full((30, 1), np.nan), np.arange(30), draws=5)
    assert estimate_from(boot, 0, label="x", reason="no reference").reason == "no reference"
    assert estimate_from(boot, 0, label="x").reason == "no row has a value"
    assert estimate_from(boot, 0, label="x").value is None


@pytest.mark.parametrize(("share", "low", "high"), [(1.0, 50 / (50 + Z2), 1.0), (0.0, 0.0, Z2 / (50 + Z2))])
def test_a_share_of_all_or_none_has_the_wilson_interval_of_its_clusters(share, low, high):
    boot = cluster_bootstrap(np.full((150, 1), share), np.repeat(np.arange(50), 3), draws=50)
    found = estimate_from(boot, 0, label="x")
    assert (found.low, found.high) == pytest.approx((low, high))
    assert "Wilson" in found.method
    assert estimate_from(boot, 0, label="x", unit="nats").low == share  # only shares


def test_a_statistic_that_is_no_mean_follows_the_rule_of_20_clusters():
    many, few = (single_column(50.0, np.arange(101.0), n=40, n_clusters=n) for n in (20, 19))
    assert (many.mean[0], many.low[0], many.high[0]) == pytest.approx((50.0, 2.5, 97.5))
    assert np.isnan([few.low[0], few.high[0]]).all()


# ---- sign flips


def naive_flips(differences):
    """All sign patterns, t from its definition."""

    def t(rows):
        return abs(rows.mean(0)) / (rows.std(0, ddof=1) / math.sqrt(len(rows)))

    observed = t(differences)
    patterns = itertools.product([1.0, -1.0], repeat=len(differences))
    largest = [t(differences * np.array(signs)[:, None]).max() for signs in patterns]
    return [np.mean([big >= one - 1e-9 for big in largest]) for one in observed]


def test_sign_flips_of_one_to_five():
    t, p = sign_flip_max_t(np.arange(1.0, 6.0)[:, None])
    assert t[0] == pytest.approx(3 / math.sqrt(2.5 / 5))  # 4.242641
    assert p[0] == 2 / 2**5
    assert sign_flip_max_t(np.arange(1.0, 6.0)[:, None], flips=2**5)[1][0] == 2 / 2**5


def test_the_observed_signs_and_their_opposites_always_reach_t():
    """Whatever the rounding: of positive numbers no other pattern does."""
    rng = np.random.default_rng(6)
    assert {sign_flip_max_t(rng.random((6, 1)) + 0.1)[1][0] for _ in range(100)} == {2 / 2**6}


def test_a_second_column_costs_the_first_its_p():
    t, p = sign_flip_max_t(np.array([[1.0, 1.0], [2.0, -1.0], [3.0, 2.0], [4.0, -2.0], [5.0, 0.5]]))
    assert t[0] == pytest.approx(3 * math.sqrt(2))
    assert p.tolist() == [0.125, 1.0]


def test_exact_flips_equal_a_naive_loop():
    differences = np.random.default_rng(2).normal(0.5, 1.0, (8, 3))
    t, p = sign_flip_max_t(differences)
    assert (p, t) == (
        pytest.approx(naive_flips(differences)),
        pytest.approx(stats.ttest_1samp(differences, 0).statistic),
    )


def test_random_flips_come_near_the_exact_p():
    differences = np.random.default_rng(3).normal(0.4, 1.0, (12, 2))
    exact = sign_flip_max_t(differences, flips=2**12)[1]
    drawn = sign_flip_max_t(differences, flips=2**12 - 1)[1]
    assert (drawn != exact).all()
    assert drawn == pytest.approx(exact, abs=0.03)  # 4 binomial errors of 4,095 flips


def test_random_flips_never_give_a_p_of_zero():
    assert sign_flip_max_t(np.full((40, 1), 1.0) + np.arange(40)[:, None] / 1e3, flips=99)[1][0] == 1 / 100


def test_units_and_signs_of_columns_do_not_matter():
    differences = np.random.default_rng(4).normal(0.5, 1.0, (9, 3))
    t, p = sign_flip_max_t(differences)
    scaled_t, scaled_p = sign_flip_max_t(differences * [1e6, -1e-6, 1.0])
    assert (scaled_p.tolist(), scaled_t) == (p.tolist(), pytest.approx(t * [1, -1, 1]))


def test_columns_of_zeros_or_without_spread():
    t, p = sign_flip_max_t(np.array([[0.0, 2.0], [0.0, 2.0], [0.0, 2.0]]))
    assert (t.tolist(), p.tolist()) == ([0.0, math.inf], [1.0, 2 / 2**3])


def test_sign_flips_reject_true_nulls_no_more_often_than_they_say():
    rng = np.random.default_rng(5)
    rejected = sum(sign_flip_max_t(rng.standard_t(3, (7, 3)))[1].min() <= 0.05 for _ in range(300))
    assert rejected / 300 < 0.05 + 3 * math.sqrt(0.05 * 0.95 / 300)


@pytest.mark.parametrize(
    ("differences", "message"),
    [
        (np.zeros((1, 3)), "at least 2 rows"),
        (np.zeros((3, 0)), "1 column"),
        (np.array([[1.0], [math.nan]]), "not all finite"),
        (np.array([[1.0], [math.inf]]), "not all finite"),
    ],
)
def test_sign_flips_refuse_what_has_no_t(differences, message):
    with pytest.raises(ValueError, match=message):
        sign_flip_max_t(differences)


# ---- jackknife


def test_the_jackknife_of_one_to_four():
    without = np.array([9.0, 8.0, 7.0, 6.0]) / 3
    assert delete_group_jackknife(without) == pytest.approx(math.sqrt(5 / 12))  # .645497
    columns = np.stack([without, 2 * without, np.ones(4)], axis=1)
    assert delete_group_jackknife(columns) == pytest.approx(np.array([1, 2, 0]) * math.sqrt(5 / 12))


@settings(deadline=None)
@given(st.lists(st.integers(-100, 100), min_size=2, max_size=30))
def test_the_jackknife_of_any_mean_is_its_standard_error(numbers):
    values = np.array(numbers, dtype=float)
    without = (values.sum() - values) / (len(values) - 1)
    assert delete_group_jackknife(without) == pytest.approx(values.std(ddof=1) / math.sqrt(len(values)), abs=1e-9)


def test_jackknife_intervals_use_t_with_one_degree_less_than_groups_and_need_two():
    """Two groups, 0 and 2: standard error 1, and the Cauchy's quantile, tan(.475 pi)."""
    low, high = jackknife_interval(np.array(5.0), np.array([0.0, 2.0]))
    assert (5.0 - low, high - 5.0) == pytest.approx((math.tan(0.475 * math.pi),) * 2)
    with pytest.raises(ValueError, match="at least 2"):
        delete_group_jackknife(np.ones(1))


# ---- Holm, Wilson, McNemar


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03], [0.03, 0.06, 0.06]),
        ([0.04, 0.01, 0.03, 0.5], [0.09, 0.04, 0.09, 0.5]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holm(p, adjusted):
    assert holm(np.array(p)) == pytest.approx(adjusted)


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=1, max_size=20))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(numbers):
    p = np.array(numbers)
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(len(p) * p, 1)).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_holm_refuses_what_is_no_p(bad):
    with pytest.raises(ValueError, match="p-values"):
        holm(np.array([0.5, bad]))


def test_wilson_of_all_and_none():
    assert wilson(50.0, 50) == pytest.approx((50 / (50 + Z2), 1.0))  # .928652
    assert wilson(0.0, 50) == pytest.approx((0.0, Z2 / (50 + Z2)))
    for n in range(1, 200):  # whatever the rounding
        assert (wilson(0.0, n)[0], wilson(float(n), n)[1]) == (0.0, 1.0)


def test_wilson_of_a_half_is_symmetric():
    low, high = wilson(10.0, 20)
    assert (0.5 - low, high - 0.5) == pytest.approx((math.sqrt(Z2 / (20 + Z2)) / 2,) * 2)


@settings(deadline=None)
@given(st.integers(1, 200), st.data())
def test_wilson_solves_the_score_equation(n, data):
    successes = data.draw(st.integers(0, 2 * n)) / 2
    share = successes / n
    for end in wilson(successes, n):
        assert (share - end) ** 2 == pytest.approx(Z2 * end * (1 - end) / n, abs=1e-12)


@pytest.mark.parametrize(("successes", "n"), [(1, 0), (-1, 5), (6, 5), (math.nan, 5)])
def test_wilson_refuses_impossible_counts(successes, n):
    with pytest.raises(ValueError, match="successes"):
        wilson(float(successes), n)


def test_mcnemar():
    tail = sum(math.comb(16, k) for k in range(5))
    assert mcnemar(12, 4) == mcnemar(4, 12) == pytest.approx(2 * tail / 2**16)  # .076813
    assert mcnemar(0, 0) == mcnemar(3, 3) == 1.0
    with pytest.raises(ValueError, match=">= 0"):
        mcnemar(-1, 2)


def test_a_thousand_prompts_and_more_are_tested_by_drawn_signs():
    """2^n is beyond the largest float from n = 1,024 on."""
    rng = np.random.default_rng(0)
    clusters = np.repeat(np.arange(1_050), 2).astype(str)
    p, method = paired_p(rng.choice([-1.0, 0.0, 1.0], 2_100), clusters, flips=199)
    assert 0.005 <= p <= 1
    assert method.startswith("sign flip")
