"""How sure is the agreement of two objectives? Intervals over prompts: exact cases, oracles, and what has none."""

import functools

import numpy as np
import pandas as pd
import pytest
from ranking_tables import frame, mixed
from scipy import stats

from alignscope import PairScores
from alignscope.diagnose.objectives import ObjectiveTable, objective_table
from alignscope.diagnose.rank_correlation import spearman
from alignscope.diagnose.ranking_table import clusters_of
from alignscope.diagnose.statistics import cluster_bootstrap, wilson

COLUMNS = ["first", "second", "n", "same_sign", "same_sign_low", "same_sign_high"]
COLUMNS += ["spearman", "spearman_low", "spearman_high"]
ENDS = [name for name in COLUMNS if name.endswith(("_low", "_high"))]


def found(table: pd.DataFrame, *, draws: int = 60, seed: int = 2) -> ObjectiveTable:
    scores = PairScores.from_frame(table)
    return objective_table(scores).with_intervals(clusters_of(scores.frame), bootstrap=draws, seed=seed)


@functools.cache
def of_mixed() -> ObjectiveTable:
    return found(mixed())


def couple(table: ObjectiveTable, first: str, second: str) -> pd.Series:
    return table.agreement.set_index(["first", "second"]).loc[(first, second)]


def test_every_number_stands_before_its_interval():
    assert [*of_mixed().agreement.columns] == COLUMNS
    assert len(of_mixed().agreement) == 19 * 18 // 2


def test_the_numbers_are_those_without_intervals():
    bare = objective_table(PairScores.from_frame(mixed()))
    pd.testing.assert_frame_equal(of_mixed().agreement[bare.agreement.columns], bare.agreement)
    pd.testing.assert_frame_equal(of_mixed().pairs, bare.pairs)


def test_the_share_has_the_interval_of_every_mean_over_prompts():
    table, clusters = of_mixed(), clusters_of(mixed())
    for first, second in (("dpo", "hinge"), ("dpo_soft", "simpo"), ("ipo", "orpo")):
        same = (np.sign(table.pairs[f"{first}_view"]) == np.sign(table.pairs[f"{second}_view"])).astype(float)
        same = same.where(table.pairs[f"{first}_view"].notna()).to_numpy()
        boot = cluster_bootstrap(same[:, None], clusters, draws=60, seed=2)
        row = couple(table, first, second)
        assert (row.same_sign_low, row.same_sign_high) == pytest.approx((boot.low[0], boot.high[0]), abs=1e-12)
        assert row.same_sign_low < row.same_sign < row.same_sign_high


def test_spearman_has_the_interval_of_any_two_columns():
    table, clusters = of_mixed(), clusters_of(mixed())
    for first, second in (("dpo", "hinge"), ("dpo_soft", "simpo"), ("cpo", "nca")):
        losses = (table.pairs[f"{name}_loss"].to_numpy() for name in (first, second))
        boot, row = spearman(*losses, clusters, draws=60, seed=2), couple(table, first, second)
        assert row.spearman == pytest.approx(boot.mean[0], abs=1e-12)
        assert (row.spearman_low, row.spearman_high) == pytest.approx((boot.low[0], boot.high[0]), abs=1e-12)


def test_both_intervals_are_those_of_prompts_drawn_by_hand():
    table = mixed()
    table = table[table.preference != 0.5].reset_index(drop=True)  # so that every prompt has a pair to draw
    agreement, pairs, clusters = found(table), found(table).pairs, table.prompt_id.to_numpy()
    names = np.unique(clusters)
    shares, rhos = [], []
    for chosen in np.random.default_rng(2).integers(0, len(names), size=(60, len(names))):
        drawn = pairs.iloc[np.concatenate([np.flatnonzero(clusters == names[c]) for c in chosen])]
        shares.append((np.sign(drawn.dpo_view) == np.sign(drawn.simpo_view)).mean())
        rhos.append(stats.spearmanr(drawn.dpo_loss, drawn.simpo_loss).statistic)
    row = couple(agreement, "dpo", "simpo")
    assert (row.same_sign_low, row.same_sign_high) == pytest.approx(tuple(np.percentile(shares, [2.5, 97.5])))
    assert (row.spearman_low, row.spearman_high) == pytest.approx(tuple(np.percentile(rhos, [2.5, 97.5])))


def test_every_row_twice_leaves_the_intervals_as_they_are():
    """T18. BCO's reference point is a mean over the table, and may move by rounding."""
    twice = found(pd.concat([mixed(), mixed()], ignore_index=True)).agreement
    np.testing.assert_allclose(twice[ENDS], of_mixed().agreement[ENDS], atol=1e-9)


def test_pairs_of_one_prompt_make_the_interval_wider():
    rng = np.random.default_rng(0)
    apart = frame(np.repeat(rng.normal(size=60), 4), np.repeat(rng.normal(size=60), 4), n_chosen=4, n_rejected=5)
    together = apart.assign(prompt_id=[f"p{i // 4}" for i in range(240)])
    for name in ("same_sign", "spearman"):
        narrow, wide = (couple(found(table, draws=400), "dpo", "cpo") for table in (apart, together))
        ratio = (wide[f"{name}_high"] - wide[f"{name}_low"]) / (narrow[f"{name}_high"] - narrow[f"{name}_low"])
        assert ratio == pytest.approx(2.0, rel=0.25)  # four equal pairs a prompt: sqrt 4; 400 draws give 10 % a width


def test_objectives_with_one_view_have_wilsons_interval_on_prompts():
    table = frame([1.0, -1.0] * 20, np.zeros(40), n_chosen=4, n_rejected=5)
    row = couple(found(table), "dpo", "kto")
    assert (row.same_sign, row.same_sign_low, row.same_sign_high) == (1.0, *wilson(40.0, 40))


@pytest.mark.parametrize(("n_prompts", "known"), [(19, False), (20, True)])
def test_under_20_prompts_there_is_no_interval(n_prompts, known):
    table = mixed().drop(index=range(40, 46)).assign(prompt_id=lambda t: [f"p{i % n_prompts}" for i in range(len(t))])
    agreement = found(table).agreement
    assert agreement[ENDS].notna().all(axis=None) == known
    assert agreement[ENDS].isna().all(axis=None) != known
    assert agreement[["same_sign", "spearman"]].notna().all(axis=None)


def test_prompts_count_only_where_both_objectives_have_a_pair():
    table = mixed().assign(prompt_id=[f"p{i}" for i in range(120)])
    table.loc[table.index >= 25, "n_chosen"] = 0  # token counts for 25 pairs, of which 6 lose their length on one side
    table.loc[table.index < 6, "n_rejected"] = 0
    rows = found(table)
    assert np.isnan(couple(rows, "dpo", "simpo")[ENDS].astype(float)).all()  # 19 prompts
    assert np.isfinite(couple(rows, "dpo", "ipo")[ENDS].astype(float)).all()


def test_a_loss_that_is_the_same_on_all_pairs_has_no_interval_either():
    row = couple(found(frame([1.0] * 30, np.zeros(30))), "dpo", "ipo")
    assert np.isnan([row.spearman, row.spearman_low, row.spearman_high]).all()
    assert np.isfinite([row.same_sign_low, row.same_sign_high]).all()


def test_without_an_objective_the_table_is_empty_and_has_its_columns():
    agreement = found(mixed().assign(preference=0.5)).agreement
    assert (len(agreement), [*agreement.columns]) == (0, COLUMNS)


def test_clusters_must_be_one_a_pair():
    table = objective_table(PairScores.from_frame(mixed()))
    with pytest.raises(ValueError, match="clusters: expected 120, one a pair, got 119"):
        table.with_intervals(np.arange(119))


def test_the_summary_gives_the_interval_and_says_that_its_pair_was_picked():
    """Of 30 pairs with a margin of 1/2 nat all losses but IPO's and hinge's take 15 as settled."""
    scores = PairScores.from_frame(frame([0.5, -0.5] * 15, np.zeros(30)))
    bare = objective_table(scores, gamma=1.0)
    table = bare.with_intervals(np.arange(30), bootstrap=200)
    row = couple(table, "dpo", "hinge")
    assert row.same_sign == 0.5
    expected = (
        f"dpo and hinge agree least: the same sign on 50% of 30 pairs (95 % interval {row.same_sign_low:.0%} to "
        f"{row.same_sign_high:.0%}, which does not allow for its being the least of {len(table.agreement)} couples)."
    )
    assert expected in table.summary()
    assert "dpo and hinge agree least: the same sign on 50% of 30 pairs." in bare.summary()
