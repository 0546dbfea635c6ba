"""How sure the reward report is: tests and intervals against naive ones, and what must change no number."""

import math
from itertools import product

import numpy as np
import pandas as pd
import pytest
from ranking_tables import mixed
from reward_tables import ID, naive, numbers, other, report, report_of_three, same, table, three

from alignscope import PairScores
from alignscope.diagnose.reward_report import TABLES, reward_report
from alignscope.diagnose.statistics import paired_p

Z2 = 1.959963984540054**2


# ---- p of a gap


def test_p_is_mcnemars_where_every_pair_has_its_own_prompt():
    """T27: explicit alone right on 12, implicit alone on 4."""
    implicit, explicit = np.ones(100), np.ones(100)
    implicit[:12], explicit[12:16] = -1, -1
    p = report(table(implicit, explicit)).estimates["gap_p"]
    assert p.value == pytest.approx(2 * sum(math.comb(16, k) for k in range(12, 17)) / 2**16)
    assert p.value == pytest.approx(0.076813, abs=5e-7)
    assert p.method == "exact McNemar, two-sided"


def test_p_flips_the_signs_of_whole_prompts():
    """Eight prompts of two pairs, all 256 patterns."""
    difference = np.array([1, 1, 1, 0, -1, 0, 0.5, 0.5, 1, 0, 0, 0, -1, 1, 1, 0.5])
    prompts = np.repeat(np.arange(8), 2)
    sums = difference.reshape(8, 2).sum(1)
    reached = [abs(np.dot(signs, sums)) >= abs(sums.sum()) - 1e-12 for signs in product((1, -1), repeat=8)]
    assert paired_p(difference, prompts) == (np.mean(reached), "sign flip of the sums of whole prompts, two-sided")


def test_half_credits_have_no_mcnemar():
    assert paired_p(np.array([0.5, 1.0, -1.0]), np.arange(3))[1].startswith("sign flip")


def test_one_prompt_has_no_p():
    estimates = report(table([1, -1], [1, 1], prompt_id="p")).estimates
    assert (estimates["gap_p"].value, estimates["gap_p"].reason) == (None, "one prompt")


def test_holm_adjusts_over_shifted_settings_alone():
    implicit, explicit = np.ones(40), np.ones(40)
    tables = {ID: table(-implicit, explicit)}
    for name, n in (("a", 6), ("b", 8), ("c", 5)):
        tables[name] = table(np.where(np.arange(40) < n, -1, 1), explicit, **other(40))
    tests = report(tables).tables["tests"].set_index("setting")
    p = {name: 2.0 ** (1 - n) for name, n in (("a", 6), ("b", 8), ("c", 5))}  # n pairs, all for one side
    assert tests.gap_p[["a", "b", "c"]].to_dict() == pytest.approx(p)
    assert tests.gap_p_holm[["a", "b", "c"]].tolist() == pytest.approx([2 * p["a"], 3 * p["b"], p["c"]])
    assert math.isnan(tests.gap_p_holm[ID])


# ---- intervals


def drawn_means(values: np.ndarray, prompts: list[str], *, draws: int, seed: int) -> np.ndarray:
    """Means of columns in bootstrap samples of prompts, one row of one prompt after the other."""
    names = sorted(set(prompts))
    generator, found = np.random.default_rng(seed), []
    for chosen in generator.integers(0, len(names), size=(draws, len(names))):
        rows = [values[[p == names[c] for p in prompts]] for c in chosen]
        found.append(np.nanmean(np.concatenate(rows), axis=0))
    return np.array(found)


def test_the_interval_of_the_gap_equals_a_naive_bootstrap_of_prompts():
    expected = naive(mixed(), "half")
    drawn = drawn_means(expected[["gap"]].to_numpy(), [f"id {p}" for p in expected.prompt], draws=100, seed=3)
    gap = report(mixed(), seed=3).estimates["gap"]
    assert (gap.low, gap.high) == pytest.approx(tuple(np.percentile(drawn[:, 0], [2.5, 97.5])))


def test_the_mean_over_shifted_sets_moves_their_common_prompts_together():
    prompts = {"prompt_hash": [f"q{i:02}" for i in range(30)] * 2}
    rng = np.random.default_rng(0)
    sets = {name: table(rng.choice([-1, 1], 60), rng.choice([-1, 1], 60), **prompts) for name in "ab"}
    for one in sets.values():
        one["prompt_id"] = one.prompt_hash
    found = report(sets, seed=5)
    gaps = [(one.explicit_chosen > 0).to_numpy() * 1.0 - (one.policy_chosen > -64) for one in sets.values()]
    values = np.full((120, 2), np.nan)
    values[:60, 0], values[60:, 1] = gaps
    drawn = drawn_means(values, prompts["prompt_hash"] * 2, draws=100, seed=5)
    for name, over in (("mean_gap_shifted", np.mean), ("max_gap_shifted", np.max)):
        e = found.estimates[name]
        assert e.value == pytest.approx(over([gap.mean() for gap in gaps]))
        assert (e.low, e.high) == pytest.approx(tuple(np.percentile(over(drawn, axis=1), [2.5, 97.5])))
        assert (e.n, e.n_clusters) == (120, 30)


def test_the_mean_over_one_shifted_set_is_its_gap_clustered_as_it_is():
    """One number has one interval; prompts are a user's, coarser than the texts."""
    data = mixed(seed=1).assign(prompt_hash=[f"text {i}" for i in range(120)])
    found = numbers(report({ID: mixed(), "a": data}))
    assert found["mean_gap_shifted"] == found["max_gap_shifted"] == found["gap_a"]


def test_a_translated_set_adds_nothing_and_an_independent_one_much():
    rng = np.random.default_rng(1)
    one = table(rng.choice([-1, 1], 400), rng.choice([-1, 1], 400), **other(400))
    apart = table(rng.choice([-1, 1], 400), rng.choice([-1, 1], 400), **other(400, 400))
    width = {}
    for name, second in (("alone", None), ("translated", one), ("apart", apart)):
        tables = {"a": one} if second is None else {"a": one, "b": second}
        e = report(tables, bootstrap=1000).estimates["mean_gap_shifted"]
        width[name] = e.high - e.low
    assert width["translated"] == pytest.approx(width["alone"], rel=0.1)  # percentiles of 1,000 draws
    assert width["alone"] / width["apart"] == pytest.approx(math.sqrt(2), rel=0.1)


def test_the_setting_with_fewest_prompts_says_whether_the_mean_has_an_interval():
    many, few = table([1, -1] * 100, [1, 1] * 100, **other(200)), table([1] * 3, [-1] * 3, **other(3, 200))
    mean = report({"many": many, "few": few}).estimates["mean_gap_shifted"]
    assert (mean.value, mean.low) == (pytest.approx(-0.25), None)
    assert mean.reason == "3 clusters (prompts): an interval needs 20"


def test_drops_and_what_the_implicit_reward_loses_more():
    right = np.arange(100)
    base = table(np.where(right < 90, 1, -1), np.where(right < 80, 1, -1))
    there = table(np.where(right < 60, 1, -1), np.where(right < 70, 1, -1), **other(100))
    found = report({ID: base, "maths": there}, bootstrap=500).estimates
    assert found["drop_implicit_maths"].value == pytest.approx(0.3)
    assert found["drop_explicit_maths"].value == pytest.approx(0.1)
    assert found["excess_drop_maths"].value == pytest.approx(0.2)
    assert found["excess_drop_maths"].value == pytest.approx(found["gap_maths"].value - found["gap"].value)
    drop = found["drop_implicit_maths"]
    width = 2 * math.sqrt(Z2 * (0.9 * 0.1 + 0.6 * 0.4) / 100)  # sets are independent: variances add
    assert drop.high - drop.low == pytest.approx(width, rel=0.1)  # percentiles of 500 draws


def test_settings_are_resampled_apart():
    """The same pairs under other names of prompts: drawn together they would differ in no draw."""
    found = report({ID: mixed(), "a": mixed().assign(prompt_hash="b " + mixed().prompt_id)})
    assert found.estimates["drop_implicit_a"].value == 0
    assert found.estimates["drop_implicit_a"].low < -0.05 < 0.05 < found.estimates["drop_implicit_a"].high


def test_an_accuracy_of_0_or_1_has_wilsons_interval_on_prompts():
    data = table([1.0] * 50, [-1.0] * 50)
    estimates = report(data).estimates
    low = 50 / (50 + Z2)
    for name, interval in (("accuracy_implicit", (low, 1.0)), ("accuracy_explicit", (0.0, 1 - low))):
        assert (estimates[name].low, estimates[name].high) == pytest.approx(interval)
        assert "Wilson" in estimates[name].method
    assert low == pytest.approx(0.928652, abs=5e-7)  # T27


def test_rewards_that_never_differ_may_still_differ_elsewhere():
    estimates = report({ID: table([1.0] * 50, [1.0] * 50), "a": table([1.0] * 50, [1.0] * 50, **other(50))}).estimates
    reach = 1 - 50 / (50 + Z2)
    for name in ("gap", "gap_a", "mean_gap_shifted", "max_gap_shifted"):
        assert (estimates[name].value, estimates[name].low, estimates[name].high) == pytest.approx((0, -reach, reach))
    assert estimates["drop_implicit_a"].low == pytest.approx(-reach)
    assert estimates["excess_drop_a"].high == pytest.approx(reach * math.sqrt(2))


def test_a_gap_of_1_on_every_pair_is_not_certain():
    gap = report(table([-1.0] * 50, [1.0] * 50)).estimates["gap"]
    reach = 1 - 50 / (50 + Z2)
    assert (gap.value, gap.low, gap.high) == pytest.approx((1.0, 1 - reach * math.sqrt(2), 1.0))


# ---- invariances

OF_BETA = ("brier_implicit", "excess_nll_implicit", "ece_implicit", "beta_ratio")
OF_EXPLICIT_SCALE = ("brier_explicit", "excess_nll_explicit", "ece_explicit")


def test_beta_moves_calibration_alone():
    same(report(three(), beta=1e-6), report(three(), beta=1e3), but=OF_BETA)
    one, two = (report(mixed(), beta=beta).estimates["brier_implicit"].value for beta in (1e-6, 1e3))
    assert one == pytest.approx(0.25, abs=1e-4) != two


def test_the_scale_of_explicit_scores_changes_no_decision():
    tables = three()
    for one in tables.values():
        one[["explicit_chosen", "explicit_rejected"]] *= 8.0
    same(report_of_three(), report(tables), but=OF_EXPLICIT_SCALE)


def test_a_constant_of_a_prompt_changes_no_margin():
    tables = three()
    for one in tables.values():
        constant = one.prompt_id.map({name: 4.0 * i for i, name in enumerate(sorted(set(one.prompt_id)))})
        for side in ("chosen", "rejected"):
            one[f"policy_{side}"] += constant
            one[f"explicit_{side}"] -= 3 * constant
    same(report_of_three(), report(tables), but=("scale_", "accuracy_implicit_normalised"))


def test_turned_pairs_are_turned_back():
    tables = three()
    for name, one in tables.items():
        turned = one.copy()
        for role in ("policy", "reference", "explicit", "n"):
            turned[f"{role}_chosen"], turned[f"{role}_rejected"] = one[f"{role}_rejected"], one[f"{role}_chosen"]
        tables[name] = turned.assign(preference=1 - one.preference)
    same(report_of_three(), report(tables))


def test_the_order_of_rows_changes_nothing():
    shuffled = {name: one.sample(frac=1, random_state=1) for name, one in three().items()}
    same(report_of_three(), report(shuffled))


def test_the_order_of_settings_changes_nothing():
    turned = dict(reversed(three().items()))
    same(report_of_three(), report(turned))


def test_every_row_twice_leaves_the_intervals_as_they_are():
    """T18; bins of calibration and the gap that n pairs can show depend on n."""
    twice = {name: pd.concat([one, one], ignore_index=True) for name, one in three().items()}
    once, again = report_of_three(), report(twice)
    same(once, again, but=("ece_", "minimum_detectable_gap", "nonlinearity_p"))
    assert again.estimates["gap"].n == 2 * once.estimates["gap"].n


def test_the_seed_gives_the_report():
    one, again, another = (report(three(), seed=seed) for seed in (1, 1, 2))
    assert numbers(one) == numbers(again) != numbers(another)
    for name in TABLES:
        pd.testing.assert_frame_equal(one.tables[name], again.tables[name])


def test_a_table_alone_is_the_in_distribution_one():
    alone = reward_report(PairScores.from_frame(mixed()), bootstrap=20)
    assert numbers(alone) == numbers(report(mixed(), bootstrap=20))
