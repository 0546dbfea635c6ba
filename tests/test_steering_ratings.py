"""Ratings and the strength they choose: E10 and E12 exactly, the golden tables, and what the choice must not see."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from alignscope.diagnose.statistics import cluster_codes, percentile_interval, resampled_counts, wilson
from alignscope.errors import InputError
from alignscope.steering.evaluation import parse_rating, rating_score, select_strength
from alignscope.steering.evaluation.ratings import RATINGS, checked_ratings, rating_scores
from alignscope.steering.evaluation.strength_groups import first_part

GOLDEN = {  # mean over 10 concepts on the half that chooses, and on the other (E12)
    "plain__gemma_addition_20": (0.792, 0.606),
    "plain__llama_layer_20_concise_lora_20": (1.692, 1.540),
    "plain__llama_layer_20_concise_prompt_20": (1.654, 1.330),
    "suppression__llama_layer_10_lsreft_10": (1.446, 1.180),
    "plain__gemma_clamping_20_": (0.0, 0.0),
}
GRID = (-1.0, 0.0, 1.0, 2.0)


def golden(folder: Path, name: str) -> pd.DataFrame:
    """A table of AxBench's judge as select_strength takes it; concepts share no prompt."""
    table = pd.read_csv(folder / "data" / "judge_golden" / f"{name}.csv").drop(columns="score")
    table = table.rename(columns={"concept_id": "concept", "input_id": "prompt_id", "factor": "strength"})
    table["cluster"] = table.concept.astype(str) + "/" + table.prompt_id.astype(str)
    return table.assign(direction="suppress" if name.startswith("suppression") else "elicit")


def outputs(scores: dict[int, tuple[float, ...]], grid=GRID) -> pd.DataFrame:
    """prompt -> a score a strength of the grid."""
    rows = [(prompt, s, score) for prompt, row in scores.items() for s, score in zip(grid, row, strict=True)]
    return pd.DataFrame(rows, columns=["prompt_id", "strength", "score"])


# ---- E10


@pytest.mark.parametrize(
    ("ratings", "direction", "score"),
    [
        ((2, 2, 1), "elicit", 1.5),
        ((2, 1, 1), "elicit", 1.2),
        ((1, 1, 1), "elicit", 1.0),
        ((2, 0, 2), "elicit", 0.0),
        ((0, 2, 2), "suppress", 2.0),
        ((2, 2, 2), "suppress", 0.0),
        ((1.5, 1, 2), "elicit", 3 / (2 / 3 + 1 + 1 / 2)),  # 1.3846
    ],
)
def test_e10_the_score_is_the_harmonic_mean(ratings, direction, score):
    assert rating_score(*ratings, direction=direction) == pytest.approx(score, abs=1e-15)


def test_whole_ratings_give_five_values():
    found = {round(rating_score(c, i, f), 12) for c in range(3) for i in range(3) for f in range(3)}
    assert found == {0.0, 1.0, 1.2, 1.5, 2.0}


@pytest.mark.parametrize("ratings", [(None, 2, 2), (2, None, 0), (0, 0, None)])
def test_a_missing_rating_leaves_no_score(ratings):
    assert rating_score(*ratings) is None


@pytest.mark.parametrize("rating", [-0.1, 2.5])
def test_a_rating_outside_its_scale_is_refused(rating):
    with pytest.raises(ValueError, match="expected 0 to 2"):
        rating_score(rating, 1, 1)


def test_every_row_of_the_golden_tables_has_its_score(data_folder):
    rows = 0
    for file in sorted((data_folder / "data" / "judge_golden").glob("*.csv")):
        table = pd.read_csv(file)
        direction = "suppress" if file.name.startswith("suppression") else "elicit"
        found = rating_scores(table[list(RATINGS)].to_numpy(float), direction=direction)
        assert np.abs(found - table.score.to_numpy()).max() < 1e-12
        rows += len(table)
    assert rows == 29_420


@pytest.mark.parametrize(
    ("text", "rating"),
    [
        ("Rating: 2", 2.0),
        ("Rating: [[2]]", 2.0),
        ("It is fluent.\nRating: [[1]]\n", 1.0),
        ("Rating: 1.5.", 1.5),
        ("Rating: 0 at first. Rating: [[1]]", 1.0),
        ("Rating: [2]", None),
        ("Rating: [[2]", None),
        ("Rating: 2]]", None),
        ("Rating: 2/10", None),
        ("Rating: 20", None),
        ("Rating: 3", None),
        ("Rating: -1", None),
        ("Rating: 1 or 2", None),
        ("Rating: two", None),
        ("Rating:", None),
        ("2", None),
        ("", None),
    ],
)
def test_what_is_no_rating_is_missing_and_not_zero(text, rating):
    assert parse_rating(text) == rating


@pytest.mark.parametrize("ratings", [(1, 2), "122", (3, 1, 1), ("1", 1, 1), (float("nan"), 1, 1), 2])
def test_a_scorer_that_gives_no_ratings_is_named_with_the_prompt(ratings):
    with pytest.raises(InputError, match="prompt 7"):
        checked_ratings(ratings, "prompt 7")


# ---- E12


@pytest.mark.parametrize("name", GOLDEN)
def test_e12_selection_on_the_golden_tables(data_folder, name):
    table = golden(data_folder, name)
    direction = table.direction[0]
    found = select_strength(table, draws=50)
    values = tuple(found.estimates[f"{direction}_{part}_score"].value for part in ("selection", "reported"))
    assert values == pytest.approx(GOLDEN[name], abs=1e-12)
    assert found.estimates[f"{direction}_optimism"].value == pytest.approx(values[0] - values[1], abs=1e-12)


def test_a_table_of_zeros_selects_the_smallest_strength_and_says_the_grid_is_too_short(data_folder):
    found = select_strength(golden(data_folder, "plain__gemma_clamping_20_"), draws=50)
    assert {*found.groups.strength} == {-6.0}
    assert found.findings[0].sentence.startswith("Grid too short")
    assert found.estimates["elicit_reported_score"].high == pytest.approx(2 * wilson(0.0, 50)[1])


# ---- the rule


def test_the_first_half_of_the_sorted_ids_chooses_and_the_second_is_reported():
    good_at_one = dict.fromkeys((1, 2, 3), (0.0, 0.0, 2.0, 1.0))
    good_at_two = dict.fromkeys((10, 20), (0.0, 0.0, 0.5, 2.0))
    found = select_strength(outputs(good_at_two | good_at_one), draws=20)
    assert found.strength() == 2.0 - 1.0
    assert found.estimates["elicit_selection_score"].value == 2.0
    assert found.estimates["elicit_reported_score"].value == pytest.approx((2.0 + 0.5 + 0.5) / 3)


@pytest.mark.parametrize(
    ("ids", "first"),
    [(["10", "9", "2", "1"], {"1", "2"}), (["b", "a", "c"], {"a"}), (["10", "9", "x", "1"], {"1", "10"})],
)
def test_ids_sort_as_numbers_where_all_are(ids, first):
    assert first_part(ids) == first


@pytest.mark.parametrize(("split", "n"), [(0.5, 5), (0.3, 3), (0.99, 9), (0.01, 1)])
def test_the_split_leaves_a_prompt_on_either_side(split, n):
    assert len(first_part([str(i) for i in range(10)], split)) == n


@pytest.mark.parametrize(
    ("row", "chosen"),
    [
        ((1.0, 1.0, 1.0, 1.0), 0.0),  # off is the smallest
        ((1.0, 0.0, 1.0, 1.0), 1.0),  # of -1 and 1 the positive one
        ((1.0, 0.0, 0.0, 1.0), -1.0),  # |-1| < 2
        ((0.1 + 0.2, 0.0, 0.3, 0.0), 1.0),  # equal but for the last digit
    ],
)
def test_ties_go_to_the_smallest_strength_then_to_the_positive_one(row, chosen):
    assert select_strength(outputs(dict.fromkeys(range(4), row)), draws=5).strength() == chosen


tables = st.lists(st.lists(st.sampled_from([0.0, 1.0, 1.2, 1.5, 2.0]), min_size=4, max_size=4), min_size=2, max_size=8)


@settings(max_examples=40, deadline=None)
@given(tables, st.data())
def test_the_test_half_never_changes_the_selected_strength(rows, data):
    n_first = len(rows) // 2
    others = data.draw(st.lists(st.lists(st.floats(0, 2), min_size=4, max_size=4), min_size=len(rows), max_size=8))
    changed = [*rows[:n_first], *others[: len(rows) - n_first]]
    both = [select_strength(outputs(dict(enumerate(map(tuple, some)))), draws=2) for some in (rows, changed)]
    assert both[0].strength() == both[1].strength()


@settings(max_examples=20, deadline=None)
@given(tables, st.randoms(use_true_random=False))
def test_the_order_of_rows_does_not_matter(rows, random):
    table = outputs(dict(enumerate(map(tuple, rows))))
    shuffled = table.sample(frac=1, random_state=random.randint(0, 99))
    first, second = (select_strength(some, draws=3).groups.drop(columns="unit") for some in (table, shuffled))
    assert np.allclose(first.iloc[:, 2:].to_numpy(float), second.iloc[:, 2:].to_numpy(float), equal_nan=True)


def test_missing_scores_are_left_out_and_counted():
    rows = dict.fromkeys(range(4), (0.0, 0.5, 1.0, 0.0))
    rows[0] = (0.0, 0.5, math.nan, 0.0)
    rows[3] = (0.0, 0.5, math.nan, math.nan)
    found = select_strength(outputs(rows), draws=5)
    assert found.missing == 3
    assert found.strength() == 1.0
    assert found.estimates["elicit_selection_score"].value == found.estimates["elicit_reported_score"].value == 1.0
    assert found.curve.missing.sum() == 3
    assert "3 of 16 outputs have no score" in found.findings[-1].sentence


def test_a_chosen_strength_without_a_rating_in_the_other_half_is_null_with_a_reason():
    rows = {0: (0.0, 0.5, 1.0, 0.0), 1: (0.0, 0.5, math.nan, 0.0)}
    found = select_strength(outputs(rows), draws=5).estimates["elicit_reported_score"]
    assert found.value is None
    assert found.reason


def test_a_half_without_any_rating_to_choose_by_is_refused():
    with pytest.raises(ValueError, match="no prompt of the first half has a rating"):
        select_strength(outputs({0: (math.nan,) * 4, 1: (1.0,) * 4}))


@pytest.mark.parametrize(("direction", "unit"), [("elicit", 1.0), ("suppress", -1.0)])
def test_strength_one_is_minus_one_to_suppress(direction, unit):
    table = outputs(dict.fromkeys(range(4), (0.25, 0.0, 0.75, 2.0))).assign(direction=direction)
    found = select_strength(table, draws=5)
    assert found.estimates[f"{direction}_unit_score"].value == {1.0: 0.75, -1.0: 0.25}[unit]
    assert found.groups.unit[0] == unit


def test_strength_one_outside_of_the_grid_is_null_with_a_reason():
    found = select_strength(outputs({0: (1.0, 2.0), 1: (1.0, 2.0)}, grid=(0.5, 2.0)), draws=5)
    assert "not in the grid" in found.estimates["elicit_unit_score"].reason


def test_the_grids_end_is_a_finding_and_zero_is_another():
    rising = select_strength(outputs({0: (0.0, 0.5, 1.0, 2.0), 1: (0.0,) * 4}), draws=5)
    falling = select_strength(outputs({0: (1.0, 0.5), 1: (1.0, 0.5)}, grid=(0.0, 1.0)), draws=5)
    middle = select_strength(outputs({0: (0.0, 0.5, 1.0, 0.0), 1: (0.0,) * 4}), draws=5)
    assert ["Grid too short" in f.sentence for f in rising.findings] == [True]
    assert ["than none at all" in f.sentence for f in falling.findings] == [True]
    assert middle.findings == ()


def test_concepts_and_directions_choose_for_themselves():
    first = outputs(dict.fromkeys(range(4), (0.0, 0.0, 2.0, 0.0))).assign(concept="a", direction="elicit")
    second = outputs(dict.fromkeys(range(4), (1.0, 0.0, 0.0, 0.0))).assign(concept="a", direction="suppress")
    third = outputs(dict.fromkeys(range(4), (0.0, 0.0, 0.0, 1.0))).assign(concept="b", direction="elicit")
    found = select_strength(pd.concat([first, second, third]), draws=5)
    assert (found.strength("a", "elicit"), found.strength("a", "suppress"), found.strength("b")) == (1.0, -1.0, 2.0)
    assert found.estimates["elicit_reported_score"].value == 1.5
    with pytest.raises(ValueError, match="3 selections"):
        found.strength()


# ---- the interval


def test_the_interval_chooses_anew_in_every_draw_as_a_naive_loop_does():
    random = np.random.default_rng(3)
    scores = {prompt: tuple(random.choice([0.0, 1.0, 1.2, 1.5, 2.0], size=4)) for prompt in range(60)}
    found = select_strength(outputs(scores), draws=200, seed=5)
    codes, _ = cluster_codes(np.array([str(i) for i in range(60)]))
    times = np.concatenate([*resampled_counts(60, draws=200, seed=5)])
    values = np.array([scores[i] for i in range(60)])
    drawn = []
    for row in times:
        weights = row[codes]
        means = [
            (weights[half, None] * values[half]).sum(0) / weights[half].sum() for half in (slice(30), slice(30, 60))
        ]
        best = sorted(range(4), key=lambda s: (-round(means[0][s], 9), abs(GRID[s]), GRID[s] < 0))[0]
        drawn.append(means[1][best])
    low, high = percentile_interval(np.array(drawn))
    estimate = found.estimates["elicit_reported_score"]
    assert (estimate.low, estimate.high) == pytest.approx((float(low), float(high)), abs=1e-12)
    assert (estimate.n, estimate.n_clusters) == (30, 30)


def test_how_often_resamples_choose_the_same_strength_is_that_of_a_naive_loop():
    random = np.random.default_rng(3)
    rows = {i: tuple(random.choice([0.0, 1.0, 1.2, 1.5, 2.0], 4)) for i in range(44)}
    found = select_strength(outputs(rows), draws=300, seed=5)
    times = np.concatenate(list(resampled_counts(44, draws=300, seed=5, width=4)))
    codes, _ = cluster_codes(np.array([str(i) for i in rows]))
    first = first_part([str(i) for i in rows])
    alike = []
    for draw in times:
        chosen = [
            (draw[code], scores) for code, (i, scores) in zip(codes, rows.items(), strict=True) if str(i) in first
        ]
        sums = [sum(n * scores[k] for n, scores in chosen) for k in range(4)]
        order = sorted(range(4), key=lambda k: (abs(GRID[k]), GRID[k] < 0))
        best = next(k for k in order if sums[k] >= max(sums) - 1e-9)
        alike.append(GRID[best] == found.strength())
    assert 0 < np.mean(alike) < 1
    assert found.groups.times_selected.item() == pytest.approx(np.mean(alike), abs=1e-12)


@pytest.mark.parametrize(("n", "times"), [(40, 1.0), (38, math.nan)])
def test_a_strength_that_every_prompt_prefers_is_always_chosen_and_fewer_than_twenty_do_not_say(n, times):
    found = select_strength(outputs(dict.fromkeys(range(n), (0.0, 0.0, 2.0, 1.0))), draws=20)
    assert found.groups.times_selected.item() == pytest.approx(times, nan_ok=True)


def test_fewer_than_twenty_reported_prompts_have_no_interval_and_say_why():
    found = select_strength(outputs(dict.fromkeys(range(30), (0.0, 0.5, 1.0, 0.0))), draws=20)
    estimate = found.estimates["elicit_reported_score"]
    assert estimate.low is None
    assert "15 clusters" in estimate.reason


def test_prompts_that_concepts_share_are_drawn_together():
    random = np.random.default_rng(0)
    scores = outputs({prompt: tuple(random.uniform(0, 2, 4)) for prompt in range(60)})
    twice = pd.concat([scores.assign(concept="a"), scores.assign(concept="b")])
    shared = select_strength(twice, draws=300).estimates["elicit_unit_score"]
    alone = select_strength(scores, draws=300).estimates["elicit_unit_score"]
    assert (shared.low, shared.high) == pytest.approx((alone.low, alone.high), abs=1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="score"), "without \\['score'\\]"),
        (lambda t: t.assign(direction="up"), "direction 'up'"),
        (lambda t: t.assign(strength=math.inf), "not a finite number"),
        (lambda t: t[t.prompt_id == 0], "1 prompt"),
        (lambda t: t[:0], "0 outputs"),
    ],
)
def test_tables_that_cannot_choose_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        select_strength(change(outputs({0: (1.0,) * 4, 1: (1.0,) * 4})))


@pytest.mark.parametrize("split", [0.0, 1.0, -1.0])
def test_a_split_without_two_sides_is_refused(split):
    with pytest.raises(ValueError, match="split"):
        select_strength(outputs({0: (1.0,) * 4, 1: (1.0,) * 4}), split=split)
