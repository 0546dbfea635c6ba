"""What a shifted set shares with the in-distribution one: kinds of shift, and which pairs are left out."""

import numpy as np
import pytest
from ranking_tables import mixed
from reward_tables import ID, other, reasons, report, table

from alignscope import InputError, PairScores, reward_report


def test_prompts_of_a_prompt_shift_that_are_asked_in_distribution_are_left_out():
    base = table([1.0] * 30, [1.0] * 30, prompt_hash=[f"h{i}" for i in range(30)])
    there = table([1.0] * 30, [-1.0] * 30, prompt_hash=[f"h{i}" for i in range(20, 50)])
    found = report({ID: base, "maths": there})
    assert found.settings["shifts"] == {"maths": "prompt shift"}
    assert (found.counts["overlap_removed_maths"], found.counts["pairs_maths"]) == (10, 20)
    assert found.tables["tests"].removed.tolist() == [0, 10]
    assert any(text.startswith("maths: 10 pairs ask prompts") for text in found.warnings)
    assert not set(found.tables["pairs"].query("setting == 'maths'").pair_id) & {str(i) for i in range(1, 11)}


@pytest.mark.parametrize(("shared", "shift"), [(14, "prompt shift"), (15, "response shift")])
def test_half_of_the_prompts_make_a_response_shift(shared, shift):
    base = table([1.0] * 30, [1.0] * 30, prompt_hash=[f"h{i}" for i in range(30)])
    there = table([2.0] * 30, [1.0] * 30, prompt_hash=[f"h{i}" for i in range(30 - shared, 60 - shared)])
    found = report({ID: base, "a": there})
    assert found.settings["shifts"] == {"a": shift}
    assert found.counts["pairs_a"] == (30 if shift == "response shift" else 16)


def test_only_the_same_pairs_leave_a_response_shift():
    """Other batches move sums by rounding; another prompt or length is another pair."""
    hashes = [f"h{i}" for i in range(30)]
    base = table(np.arange(30) / 8, [1.0] * 30, prompt_hash=hashes, n_chosen=5, n_rejected=6)
    there = base.assign(policy_chosen=base.policy_chosen + 1.0)
    there.loc[:3, "policy_chosen"] -= 1.0 + 2**-12
    there.loc[3, "n_chosen"] = 4
    found = report({ID: base, "a": there})
    assert (found.counts["shared_prompt_pairs_a"], found.counts["identical_pairs_removed_a"]) == (30, 3)
    assert found.counts["pairs_a"] == 27
    assert any("30 pairs ask prompts" in text and "3 of them are the same" in text for text in found.warnings)


def test_a_file_that_is_the_in_distribution_one_has_nothing_left():
    found = report({ID: mixed(), "a": mixed()})
    assert (found.counts["pairs_a"], found.counts["identical_pairs_removed_a"]) == (0, 120)
    assert "a: no pair is left" in found.warnings
    assert reasons(found)["gap_a"] == "no pair is left in this setting"
    assert set(found.tables["pairs"].setting) == {ID}


def test_what_is_declared_wins_over_what_is_recognised():
    hashes = [f"h{i}" for i in range(30)]
    base, there = (table([d] * 30, [1.0] * 30, prompt_hash=hashes) for d in (1.0, 2.0))
    found = report({ID: base, "a": there}, shifts={"a": "prompt shift"})
    assert (found.counts["pairs_a"], found.counts["overlap_removed_a"]) == (0, 30)
    there["prompt_hash"] = other(30)["prompt_hash"]
    found = report({ID: base, "a": there}, shifts={"a": "response shift"})
    assert (found.settings["shifts"], found.counts["pairs_a"]) == ({"a": "response shift"}, 30)


def test_ids_that_coincide_are_no_overlap_where_the_texts_differ():
    base, there = (table([1.0] * 30, [1.0] * 30, prompt_id=[f"q{i}" for i in range(30)]) for _ in range(2))
    found = report({ID: base.assign(**other(30)), "a": there.assign(**other(30, 30))})
    assert (found.counts["pairs_a"], found.settings["shifts"]) == (30, {"a": "prompt shift"})
    assert "overlap_removed_a" not in found.counts


def test_ids_alone_tell_an_overlap_where_they_were_given():
    base = table([1.0] * 30, [1.0] * 30, prompt_id=[f"q{i}" for i in range(30)])
    there = table([1.0] * 30, [1.0] * 30, prompt_id=[f"q{i}" for i in range(20, 50)])
    assert report({ID: base, "a": there}).counts["overlap_removed_a"] == 10


def test_numbers_of_rows_are_no_prompts():
    """Two plain tables: pair 1 of the one is not pair 1 of the other."""
    found = report({ID: table([1.0] * 30, [1.0] * 30), "a": table([1.0] * 60, [1.0] * 60)})
    assert (found.counts["pairs_a"], found.counts["prompt_not_known_a"]) == (60, 60)
    assert any("a: 60 pairs name no prompt" in text for text in found.warnings)


def test_a_pair_turned_round_is_the_same_pair():
    hashes = [f"h{i}" for i in range(30)]
    base = table(np.arange(30) / 8, [1.0] * 30, prompt_hash=hashes, n_chosen=5, n_rejected=6)
    sides = {"chosen": "rejected", "rejected": "chosen"}
    turned = base.rename(columns=lambda name: "_".join(sides.get(part, part) for part in name.split("_")))
    found = report({ID: base, "a": turned})
    assert (found.counts["identical_pairs_removed_a"], found.counts["pairs_a"]) == (30, 0)


@pytest.mark.parametrize(
    ("key", "value"), [("policy_fingerprint", "b"), ("explicit", "rm2"), ("dtype", "bfloat16"), ("eos", "append")]
)
def test_tables_of_other_models_or_text_are_not_compared(key, value):
    settings = {"policy_fingerprint": "a", "explicit": "rm1", "dtype": "float32", "eos": "none"}
    tables = {
        name: PairScores.from_frame(mixed(seed=seed), settings=settings | more)
        for seed, (name, more) in enumerate({ID: {}, "maths": {key: value}}.items())
    }
    with pytest.raises(InputError, match=f"'maths' was not scored like '{ID}': {key} is '{value}'"):
        reward_report(tables, bootstrap=10)


def test_what_one_table_does_not_say_is_not_held_against_the_other():
    base = PairScores.from_frame(mixed(), settings={"dtype": "float32"})
    tables = {ID: base, "a": PairScores.from_frame(mixed(seed=1))}
    assert reward_report(tables, bootstrap=10).estimates["gap_a"].value is not None
