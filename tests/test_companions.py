"""What stands beside an accuracy: length, displacement, variants of the theorem, the noise floor."""

import numpy as np
import pandas as pd
import pytest
from ranking_tables import BASE, frame, mixed
from scipy import stats

from alignscope import PairScores, ranking_report
from alignscope.diagnose.companions import companion_sections
from alignscope.diagnose.ranking import residualised_accuracy
from alignscope.diagnose.ranking_breakdowns import quadrant_columns
from alignscope.diagnose.report import Manifest, Report
from alignscope.diagnose.statistics import wilson

MANIFEST = Manifest(
    command="", models={}, data={}, settings={}, packages={}, device="cpu", dtype="", seed=0, wall_seconds=0.0
)
MOVED = ("chosen", "rejected", "chosen_per_token", "rejected_per_token")
ALL = np.ones(100)


def moved(chosen, rejected, **more) -> pd.DataFrame:
    """A row a pair of log-ratios dw, dl."""
    chosen, rejected = (np.asarray(side, dtype=float) for side in (chosen, rejected))
    return frame(chosen - rejected, np.zeros(len(chosen)), **more).assign(
        policy_chosen=BASE + chosen, policy_rejected=BASE + rejected
    )


def both(table: pd.DataFrame, *, samples=None, **settings):
    """The sections length and displacement, and the ranking they stand beside."""
    scores = PairScores.from_frame(table)
    ranking = ranking_report(scores, **({"bootstrap": 100} | settings))
    return *companion_sections(scores, ranking, reference_samples=samples), ranking


def reason(section, name: str) -> str | None:
    estimate = section.section.estimates[name]
    assert estimate.value is None
    return estimate.reason


def judged(table: pd.DataFrame) -> pd.DataFrame:
    return table[table.preference != 0.5]


# ---- length


def test_length_repeats_the_numbers_of_the_ranking():
    length, _, ranking = both(mixed())
    for name in ("shorter_wins", "longer_wins", "accuracy_over_length", "residualised_accuracy"):
        assert length.section.estimates[name] == ranking.estimates[name]
    pd.testing.assert_frame_equal(length.tables["strata"], ranking.tables["length"])


def test_spearman_with_the_difference_of_length_is_scipys():
    table, length = judged(mixed()), both(mixed())[0]
    apart = table.n_chosen - table.n_rejected
    reward = table.policy_chosen - table.reference_chosen - table.policy_rejected + table.reference_rejected
    for name, margin in (
        ("margin", table.policy_chosen - table.policy_rejected),
        ("reward", reward),
        ("explicit", table.explicit_chosen - table.explicit_rejected),
    ):
        e = length.section.estimates[f"spearman_{name}"]
        assert e.value == pytest.approx(stats.spearmanr(margin, apart).statistic)
        assert (e.n, e.n_clusters) == (114, table.prompt_id.nunique())
        assert e.low < e.value < e.high


def test_explicit_accuracy_without_length_is_the_pure_function():
    table = judged(mixed())
    margin, apart = table.explicit_chosen - table.explicit_rejected, table.n_chosen - table.n_rejected
    e = both(mixed(), ties="strict")[0].section.estimates["explicit_residualised_accuracy"]
    assert e.value == pytest.approx(residualised_accuracy(margin.to_numpy(), apart.to_numpy(), "strict"))


def test_what_a_length_number_lacks_is_named():
    bare = both(frame([1.0, -1.0] * 15, [1.0, 1.0] * 15))[0]
    assert reason(bare, "spearman_margin") == reason(bare, "spearman_reward") == "the table holds no token counts"
    assert reason(bare, "spearman_explicit") == "no reward model or explicit scores were given"
    assert bare.section.summary == "Not known: the table holds no token counts."
    alone = both(frame([1.0, -1.0] * 15, n_chosen=[1, 2] * 15, n_rejected=1))[0]
    assert reason(alone, "spearman_reward") == "no reference model was given"
    assert reason(alone, "explicit_residualised_accuracy") == "no reward model or explicit scores were given"
    same = both(frame([1.0, -1.0] * 15, n_chosen=2, n_rejected=1))[0]
    assert reason(same, "spearman_margin") == "one of the two is the same in every pair"


def test_human_ties_alone_leave_no_number():
    length, displacement, _ = both(mixed().assign(preference=0.5))
    for section in (length, displacement):
        for name in section.section.estimates.keys() - {"on_policy"}:
            assert reason(section, name) == "every pair is a human tie", name


# ---- displacement


def test_quadrants_are_counted_and_a_zero_is_a_rise():
    ratios = np.array([[1.0, 1.0], [0.0, -1.0], [1.0, -2.0], [-1.0, 0.0], [-1.0, -1.0], [-2.0, -1.0], [np.nan, 1.0]])
    found = {name: np.nansum(values) for name, values in quadrant_columns(ratios).items()}
    assert found == {
        "both_rose": 1, "chosen_rose_rejected_fell": 2, "chosen_fell_rejected_rose": 1, "both_fell": 2
    }  # fmt: skip
    assert all(np.isnan(values[-1]) for values in quadrant_columns(ratios).values())


def test_quadrants_of_the_section_are_those_of_its_table():
    _, displacement, ranking = both(mixed())
    rows = displacement.tables["quadrants"].set_index(["chosen_fell", "rejected_fell"])
    estimates = displacement.section.estimates
    for name, cell in (
        ("both_rose", (False, False)), ("chosen_rose_rejected_fell", (False, True)),
        ("chosen_fell_rejected_rose", (True, False)), ("both_fell", (True, True)),
    ):  # fmt: skip
        assert estimates[name].value == pytest.approx(rows.share[cell])
        assert estimates[name].low < estimates[name].value < estimates[name].high
    for name in MOVED:
        assert estimates[name] == ranking.estimates[f"displacement_{name}"]


def test_the_summary_says_where_the_probability_went():
    displacement = both(moved([-2.0] * 30, [-3.0] * 30))[1]
    expected = "Chosen answers moved by -2 nats on average, rejected ones by -3. Both fell in 100 % of the pairs."
    assert displacement.section.summary == expected
    assert both(frame([1.0] * 30))[1].section.summary == "Not known: no reference model was given."


def test_samples_of_the_reference_predict_a_fall():
    e = both(moved(ALL, ALL), samples=[-1.0, -2.0, np.nan] * 20)[1].section.estimates["on_policy"]
    assert (e.value, e.n) == (-1.5, 40)
    assert e.low < -1.5 < e.high
    none = both(moved(ALL, ALL))[1]
    assert reason(none, "on_policy") == "no samples of the reference were given (--reference-samples)"


@pytest.mark.parametrize(
    ("chosen", "sampled", "fires"),
    [(-2.0, -1.0, True), (-1.0, -1.0, False), (-0.5, -1.0, False), (0.5, 1.0, False), (-2.0, None, False)],
)
def test_displacement_proper_is_a_fall_below_what_the_reference_s_samples_lost(chosen, sampled, fires):
    noise = np.tile([-0.125, 0.125], 50)
    samples = None if sampled is None else sampled + noise
    found = both(moved(chosen + noise, noise), samples=samples)[1].findings
    assert [f.rests_on[0] for f in found if f.severity == "notice"] == ["displacement.chosen"] * fires


@pytest.mark.parametrize(("sampled", "fires"), [(1.0, True), (0.01, False), (-1.0, False), (None, False)])
def test_samples_that_gained_were_not_drawn_from_the_reference(sampled, fires):
    samples = None if sampled is None else sampled + np.tile([-0.5, 0.5], 50)
    found = both(moved(ALL, ALL), samples=samples)[1].findings
    assert [(f.severity, "draws from it cannot" in f.sentence) for f in found] == [("alarm", True)] * fires


def test_the_pairs_most_at_risk_are_the_top_twentieth_by_ches():
    ches = np.random.default_rng(0).permutation(100).astype(float)
    table = moved(-ches, ALL, ches=ches, ches_normalised=ches / 2)
    table.loc[7, ["ches", "ches_normalised"]] = np.nan
    displacement = both(table)[1]
    risky = displacement.tables["ches"]
    expected = table.dropna(subset="ches").nlargest(5, "ches")
    assert risky.ches.tolist() == expected.ches.tolist()
    assert risky.pair_id.tolist() == [str(i + 1) for i in expected.index]
    assert risky.log_ratio_chosen.tolist() == [-c for c in expected.ches]
    assert displacement.section.estimates["ches_spearman"].value == pytest.approx(-1.0)


def test_without_states_there_is_no_ches():
    displacement = both(mixed())[1]
    assert reason(displacement, "ches_spearman") == "hidden states were not read (--ches)"
    assert not len(displacement.tables["ches"])


@pytest.mark.parametrize("table", [mixed(), frame([1.0] * 3), moved(ALL, ALL, ches=ALL)], ids=["mixed", "bare", "ches"])
def test_sections_read_back_as_they_were_saved(table, tmp_path):
    length, displacement, _ = both(table)
    saved = Report.assemble("title", "question", MANIFEST, [length, displacement])
    saved.save(tmp_path)
    assert Report.load(tmp_path) == saved


def test_every_row_twice_leaves_the_intervals_as_they_are():
    """T18."""
    table = mixed()
    for one, two in zip(both(table)[:2], both(pd.concat([table, table], ignore_index=True))[:2], strict=True):
        for name, e in one.section.estimates.items():
            again = two.section.estimates[name]
            here, there = (np.array([x.value, x.low, x.high], dtype=float) for x in (e, again))
            np.testing.assert_allclose(here, there, err_msg=name)


# ---- other losses of the kind of the theorem, and the noise floor


@pytest.mark.parametrize("beta", [0.01, 0.1, 10.0])
@pytest.mark.parametrize("size", [1.0, 1e3])
def test_loss_within_its_threshold_is_a_pair_ranked_right_whatever_gamma(beta, size):
    table = mixed()
    for side in ("chosen", "rejected"):
        table[f"policy_{side}"] *= size
        table[f"reference_{side}"] *= size
    variants = both(table, beta=beta)[2].tables["variants"].set_index("objective")
    right = judged(table).eval("policy_chosen >= policy_rejected").mean()
    for name in ("dpo", "dpo_gamma_0", "dpo_gamma_0.5", "dpo_gamma_2"):
        assert variants.mismatches[name] == 0
        assert variants.share_within[name] == pytest.approx(right)
        assert variants.share_ranked_right[name] == pytest.approx(right)


def test_variants_of_one_pair_by_hand():
    """T22: h = 2, reference margin 1, beta .1; a perfect IPO loss would be at h = 5 + 1."""
    table = pd.DataFrame({"policy_chosen": [-10.0], "policy_rejected": -12.0})
    table = table.assign(reference_chosen=-11.0, reference_rejected=-12.0)
    variants = both(table)[2].tables["variants"].set_index("objective")
    assert variants.mean_loss["dpo"] == pytest.approx(0.644397, abs=5e-7)
    assert variants.mean_loss["dpo_gamma_0"] == pytest.approx(0.598139, abs=5e-7)
    assert variants.mean_loss["dpo_gamma_2"] == pytest.approx(np.log(2))
    assert (variants.mean_loss["ipo"], variants.share_within["ipo"]) == (16.0, 1.0)


def test_ipo_within_its_threshold_is_right_and_may_be_out_of_reach():
    """T23: tau .1, reference margin -3: loss 4 suffices; -6: zero loss ranks wrong."""
    variants = both(frame([0.0, 3.0, 5.0, -1.0, -1.0], [-3.0, -3.0, -3.0, -3.0, -6.0]))[2].tables["variants"]
    ipo = variants.set_index("objective").loc["ipo"]
    assert (ipo.share_within, ipo.share_ranked_right) == (0.4, 0.6)  # h = 5 overshoots: right, and not within
    assert (ipo.mismatches, ipo.unreachable) == (0, 1)


def ends(variants: pd.DataFrame, objective: str, name: str) -> tuple[float, float, float]:
    row = variants.set_index("objective").loc[objective]
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def test_variants_share_the_resamples_of_the_headline_numbers():
    """A pair is ranked right there where h >= 0, and within its threshold exactly where it is ranked right."""
    ranking = both(mixed(), ties="ge", seed=5)[2]
    variants, headline = ranking.tables["variants"], ranking.estimates
    accuracy = headline["accuracy"]
    for name in ("dpo", "dpo_gamma_0", "dpo_gamma_0.5", "dpo_gamma_2"):
        for share in ("share_within", "share_ranked_right"):
            assert ends(variants, name, share) == (accuracy.value, accuracy.low, accuracy.high)
    assert ends(variants, "ipo", "share_ranked_right") == (accuracy.value, accuracy.low, accuracy.high)
    loss = headline["dpo_loss"]
    assert ends(variants, "dpo", "mean_loss") == pytest.approx((loss.value, loss.low, loss.high))


def test_of_variants_only_shares_of_0_and_1_have_wilsons_interval():
    """Margin 10 ln 2 over a reference margin of 0 at beta .1: whatever gamma, every DPO loss is ln 1.5."""
    variants = both(frame([10 * np.log(2)] * 30, np.zeros(30)))[2].tables["variants"]
    for name in ("dpo", "dpo_gamma_0", "dpo_gamma_2"):
        assert ends(variants, name, "share_within") == (1.0, *wilson(30.0, 30))
        assert ends(variants, name, "mean_loss") == pytest.approx((np.log(1.5),) * 3)
    ones = both(frame([5.0] * 30, np.full(30, 1.0)), beta=0.1)[2].tables["variants"]
    assert ends(ones, "ipo", "mean_loss") == (1.0, 1.0, 1.0)  # (5 - 1 - 5)^2: a loss of 1 is no share of 1


@pytest.mark.parametrize(("n_prompts", "known"), [(19, False), (20, True)])
def test_under_20_prompts_variants_have_values_alone(n_prompts, known):
    table = judged(mixed()).reset_index(drop=True)
    table["prompt_id"] = [f"p{i % n_prompts}" for i in range(len(table))]
    variants = both(table)[2].tables["variants"]
    bounds = [name for name in variants if name.endswith(("_low", "_high"))]
    assert len(bounds) == 6
    assert variants[bounds].notna().all(axis=None) == known
    assert variants[bounds].isna().all(axis=None) != known
    assert variants[["mean_loss", "share_within", "share_ranked_right"]].notna().all(axis=None)


def test_every_row_twice_leaves_the_intervals_of_variants_and_strata():
    """T18."""
    one, two = (both(table)[2].tables for table in (mixed(), pd.concat([mixed()] * 2, ignore_index=True)))
    for name in ("variants", "length"):
        bounds = [column for column in one[name] if column.endswith(("_low", "_high"))]
        np.testing.assert_allclose(one[name][bounds], two[name][bounds])


def test_without_a_reference_there_are_no_variants_but_their_columns():
    variants = both(frame([1.0, -1.0] * 15))[2].tables["variants"]
    assert (len(variants), variants.columns[2:5].tolist()) == (0, ["mean_loss", "mean_loss_low", "mean_loss_high"])


@pytest.mark.parametrize(("share", "fires"), [(None, False), (0.0, False), (0.01, False), (0.0101, True), (1.0, True)])
def test_a_noise_floor_over_more_than_a_hundredth_of_the_pairs_is_an_alarm(share, fires):
    floor = {"p95": 0.5, "n": 64, "share_inside": share}
    scores = PairScores.from_frame(mixed(), settings={"noise_floor": floor})
    alarms = [f for f in ranking_report(scores, bootstrap=20).findings if "--dtype float32" in f.next_step]
    assert [f.severity for f in alarms] == ["alarm"] * fires
    assert all("0.5 nats" in f.sentence and "64 pairs" in f.sentence for f in alarms)
