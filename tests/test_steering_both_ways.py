"""Bidirectionality: rules that judge a flip, rates with Wilson's interval, both directions beside each other."""

import numpy as np
import pytest
from tiny_steering import WAYS, WORDS, fixed_subject

import alignscope
from alignscope import InputError, SteeringVector
from alignscope.diagnose.statistics import wilson
from alignscope.steering import Factors, Site, baselines, bidirectionality, faithfulness
from alignscope.steering.encoded import encode_quadruples, quadruple_encoder
from alignscope.steering.evaluation import FlipCase, begins_with_target, same_answer
from alignscope.steering.evaluation.flips import Flips
from alignscope.steering.quadruples import read_quadruples

QUICK = {"resamples": 50, "max_new_tokens": 6}
ROWS = WORDS[:6]


@pytest.fixture(scope="module")
def llama() -> alignscope.Subject:
    return fixed_subject()


@pytest.fixture(scope="module")
def vector(llama) -> SteeringVector:
    """A clamp that pushes far enough to change what is said."""
    subspace = baselines.random_vector(llama, WORDS[:16], layer=0, draw=3, holdout=0).subspace
    factors = Factors(30 * subspace.basis[0].new_ones(1), -30 * subspace.basis[0].new_ones(1))
    return SteeringVector(site=Site(0), subspace=subspace, factors=factors)


@pytest.fixture(scope="module")
def found(llama, vector):
    return bidirectionality(llama, ROWS, vector, selected={"elicit": 0.5, "suppress": -2}, **QUICK)


def case(direction: str, plain: str = "a b", counterfactual: str = "c d") -> FlipCase:
    row = read_quadruples(WORDS[:1])[0]
    return FlipCase(quadruple=row, direction=direction, plain=plain, counterfactual=counterfactual)


# ---- rules


@pytest.mark.parametrize(
    ("output", "plain", "expected"),
    [("c d", "a b", True), (" c  d\n", "a b", True), ("c", "a b", False), ("a b", "a b", False), ("c d", "c d", None)],
)
def test_the_same_answer_is_that_to_the_other_prompt(output, plain, expected):
    assert same_answer(case("elicit", plain=plain), output) is expected


def test_a_target_is_the_answer_of_the_data_to_the_other_prompt():
    row = WORDS[0]
    elicit, suppress = case("elicit"), case("suppress")
    assert (elicit.prompt, elicit.target) == (row["negative_input"], row["positive_output"])
    assert (suppress.prompt, suppress.target) == (row["positive_input"], row["negative_output"])
    assert begins_with_target(elicit, f" {row['positive_output']} and more")
    assert not begins_with_target(elicit, f"not {row['positive_output']}")
    assert not begins_with_target(suppress, row["positive_output"])


# ---- rates


def test_a_rate_counts_judged_rows_and_has_wilsons_interval():
    flips = Flips(outputs=("",) * 5, flipped=(True, False, True, None, True))
    rate = flips.rate(np.arange(5), "flips")
    assert (rate.value, rate.n, rate.n_clusters) == (3 / 4, 4, 4)
    assert (rate.low, rate.high) == wilson(3.0, 4)
    assert flips.n_judged == 4


def test_rows_of_one_prompt_are_no_more_than_one_to_an_interval():
    once = Flips(outputs=("",) * 4, flipped=(True, False, True, True)).rate(np.arange(4), "flips")
    thrice = Flips(outputs=("",) * 12, flipped=(True, False, True, True) * 3).rate(np.tile(np.arange(4), 3), "flips")
    assert (thrice.low, thrice.high, thrice.n) == (once.low, once.high, 12)


def test_nothing_judged_is_no_rate():
    rate = Flips(outputs=("", ""), flipped=(None, None)).rate(np.arange(2), "flips")
    assert (rate.value, rate.n) == (None, 0)
    assert "none of the outputs" in rate.reason


# ---- on a model


def test_outputs_are_greedy_continuations_under_the_vector(llama, vector, found):
    """One by one, from the ids that the encoder makes of the prompts."""
    file = read_quadruples(ROWS)
    encoder = quadruple_encoder(llama, None, "auto", "rows")
    rows, _ = encode_quadruples(encoder, file, source="prompt_last", max_response_tokens=128)
    for direction, side, strength in (("elicit", "negative", 1), ("suppress", "positive", -1)):
        for steered, method in ((strength, "strength 1"), (0, "no edit")):
            with vector.applied(llama, steered):
                ids = [llama.generate_ids([getattr(rows[k], side)], max_new_tokens=6)[0] for k in range(1, 7)]
            table = found.outputs[(found.outputs.direction == direction) & (found.outputs.method == method)]
            assert table.output.tolist() == llama.tokenizer.batch_decode(ids, skip_special_tokens=True)
    by_method = found.outputs.groupby("method").output.apply(list)
    assert by_method["strength 1"] != by_method["no edit"]


def test_kl_and_shares_are_those_of_faithfulness(llama, vector, found):
    for strengths, name in (({"elicit": 1, "suppress": -1}, "full"), ({"elicit": 0.5, "suppress": -2}, "selected")):
        forced = faithfulness(
            llama, ROWS, vector, strengths=strengths, training=WORDS[:16], resamples=50, random_seeds=1
        )
        for direction in WAYS:
            at, row = getattr(found.row(direction), name), forced.row("vector", direction)
            assert (at.strength, at.kl.value, at.recovered.value) == (
                strengths[direction], row.kl.value, row.recovered.value,
            )  # fmt: skip
            assert found.row(direction).kl_before.value == forced.row("no edit", direction).kl.value


def test_the_asymmetry_is_the_difference_of_recovered_shares(found):
    elicit, suppress = (found.row(direction) for direction in WAYS)
    assert found.asymmetry.value == elicit.full.recovered.value - suppress.full.recovered.value
    assert found.asymmetry_selected.value == elicit.selected.recovered.value - suppress.selected.recovered.value
    assert "6 clusters" in found.asymmetry.reason


def test_a_vector_that_does_the_same_both_ways_has_no_asymmetry(llama, vector):
    """Off, it recovers nothing in either direction, in every resample."""
    off = SteeringVector(
        site=Site(0),
        subspace=vector.subspace,
        factors=vector.factors,
        positions=alignscope.steering.Positions(prefix=99),
    )
    found = bidirectionality(llama, WORDS, off, flips=lambda case, output: None, resamples=50, max_new_tokens=1)
    assert (found.asymmetry.value, found.asymmetry.low, found.asymmetry.high) == (0, 0, 0)


def test_rows_that_a_rule_cannot_judge_are_counted(llama, vector):
    seen = []

    def rule(case, output):
        seen.append(case.direction)
        return None if case.quadruple.row % 3 == 0 else case.direction == "elicit"

    found = bidirectionality(llama, ROWS, vector, flips=rule, **QUICK)
    elicit, suppress = (found.row(direction).full for direction in WAYS)
    assert (elicit.flips.value, elicit.flips.n, elicit.n_not_judged) == (1, 4, 2)
    assert (suppress.flips.value, suppress.flips.n, suppress.n_not_judged) == (0, 4, 2)
    assert found.outputs.flipped.isna().sum() == 8
    assert seen.count("elicit") == 12
    assert found.settings["flips"] == "rule"
    assert not elicit.flips.reconstructed


def test_an_ablation_has_no_flips_to_elicit(llama):
    found = bidirectionality(llama, ROWS, baselines.ablation(llama, WORDS[:16], layer=1, holdout=0), **QUICK)
    assert found.row("elicit").full.flips.value is None
    assert "cannot elicit" in found.row("elicit").full.flips.reason
    assert found.row("suppress").full.flips.value is not None
    assert found.asymmetry.value is None
    assert found.row("suppress").one_way == "one-way: suppress only"
    assert "one-way" in found.summary()


def test_the_table_has_a_line_a_direction(found):
    frame = found.to_frame()
    assert frame.direction.tolist() == list(WAYS)
    assert found.row("elicit").full.flips.reconstructed  # the rule is ours
    assert frame.selected_strength.tolist() == [0.5, -2]
    for name in ("flips", "kl_after", "recovered", "selected_flips", "selected_kl_after", "selected_recovered"):
        assert frame[name].notna().all()
    assert (frame.flips_low <= frame.flips).all()
    assert (frame.n_judged + frame.n_not_judged == 6).all()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"flips": "loose"}, "flips 'loose'"),
        ({"flips": lambda case, output: 0.5}, "gave 0.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0"),
        ({"batch_size": 0}, "batch_size=0"),
        ({"selected": {"down": 1}}, "strengths of down"),
    ],
)
def test_what_cannot_be_judged_is_refused(llama, vector, change, told):
    with pytest.raises(InputError, match=told):
        bidirectionality(llama, ROWS[:2], vector, **QUICK | change)


def test_without_a_selected_strength_its_columns_are_not_there(llama, vector):
    found = bidirectionality(llama, ROWS[:2], vector, **QUICK)
    assert found.row("elicit").selected is None
    assert found.asymmetry_selected is None
    assert "selected_flips" not in found.to_frame()
