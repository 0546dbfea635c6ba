"""CHES: the exact answer, the model's own last hidden states as the oracle, then what must not move it."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from test_shared_prefix import CLOSE, SEQUENCES, Forwards, model, rows, tiny

from alignscope import InputError, score_pairs
from alignscope.probes.hidden_similarity import Ches, ches_of_sums
from alignscope.probes.mismatched import mismatched_sequences
from alignscope.probes.pair_states import pair_states
from alignscope.probes.scored_rows import TokenSequence
from alignscope.probes.sequence_scores import score_keys, score_sequences

RELATIVE = 1e-5  # of float32 states

states = st.lists(st.lists(st.floats(-10, 10), min_size=3, max_size=3), min_size=1, max_size=5)


def of_states(chosen: list[list[float]], rejected: list[list[float]]) -> Ches:
    sums = (np.array(side, dtype=float).sum(0) for side in (chosen, rejected))
    return ches_of_sums(*sums, *(np.array(float(len(side))) for side in (chosen, rejected)))


def naive(subject, chosen: TokenSequence, rejected: TokenSequence) -> Ches:
    """From the hidden states that the model itself returns, a row at a time."""
    sides = []
    for sequence in (chosen, rejected):
        with torch.no_grad():
            made = subject.model(input_ids=torch.tensor([sequence.ids]), output_hidden_states=True)
        last = made.hidden_states[-1][0].double()  # after the final norm
        sides.append([last[t - 1].tolist() for t in range(sequence.start, len(sequence.ids))])
    return of_states(*sides)


def close(found: Ches, expected: Ches, relative: float = RELATIVE) -> bool:
    return all(
        np.allclose(getattr(found, name), getattr(expected, name), rtol=relative, atol=relative)
        for name in ("value", "normalised")
    )


def pair(found: Ches, i: int) -> Ches:
    return Ches(value=found.value[i : i + 1], normalised=found.normalised[i : i + 1])


def same(found: Ches, expected: Ches) -> bool:
    """To the last bit."""
    return np.array_equal(found.value, expected.value) and np.array_equal(found.normalised, expected.normalised)


# ---- the number


def test_exact_answer():
    """T16."""
    found = of_states([[1.0, 0.0], [0.0, 2.0]], [[1.0, 1.0]])
    assert (found.value, found.normalised) == (-2.0, 0.25)


@given(states)
def test_a_response_against_itself_has_none(same):
    found = of_states(same, same)
    assert (found.value, found.normalised) == (0.0, 0.0)  # exactly, whatever the states are


@given(states, states, st.sampled_from([0.5, 2.0]))
def test_it_grows_with_the_square_of_the_states(chosen, rejected, scale):
    first, second = (
        of_states([[x * by for x in h] for h in chosen], [[x * by for x in h] for h in rejected]) for by in (1.0, scale)
    )
    for name in ("value", "normalised"):
        assert math.isclose(getattr(first, name) * scale**2, getattr(second, name), rel_tol=1e-12, abs_tol=1e-12)


@given(states, states)
def test_the_normalised_form_is_that_of_means(chosen, rejected):
    means = [[sum(column) / len(side) for column in zip(*side, strict=True)] for side in (chosen, rejected)]
    expected = sum(a * b for a, b in zip(*means, strict=True)) - sum(a * a for a in means[0])
    assert math.isclose(of_states(chosen, rejected).normalised, expected, rel_tol=1e-9, abs_tol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma2", "bloom"])
def test_states_are_those_that_the_head_reads_where_response_tokens_are_predicted(name):
    subject = model(name)
    found = pair_states(subject, SEQUENCES)
    assert found.value.shape == found.normalised.shape == (len(SEQUENCES) // 2,)
    for place, two in enumerate(zip(SEQUENCES[::2], SEQUENCES[1::2], strict=True)):
        assert close(pair(found, place), naive(subject, *two))


def test_padding_batches_and_shared_rows_change_nothing():
    subject = model("llama")
    together = pair_states(subject, SEQUENCES)
    for more in ({"batch_tokens": 1}, {"shard_size": 2}, {"share_prefix": True}):
        assert close(pair_states(subject, SEQUENCES, **more), together)


def test_states_at_the_response_tokens_themselves_would_be_another_number():
    subject = model("llama")
    later = [TokenSequence((*s.ids, 5), s.start + 1) for s in SEQUENCES[:2]]  # one place later
    assert not close(pair_states(subject, later), pair_states(subject, SEQUENCES[:2]), 1e-2)


def test_a_sequence_without_a_scored_token_has_no_states():
    subject = model("llama")
    with pytest.raises(ValueError, match=r"sequence 1: start is in 1 \.\. 1 \(something must be scored\), got 2"):
        pair_states(subject, [TokenSequence((5, 6), 1), TokenSequence((5, 6), 2)])
    with pytest.raises(ValueError, match="an even number of sequences, got 1"):
        pair_states(subject, SEQUENCES[:1])


# ---- kept


def test_two_numbers_a_pair_are_cached_beside_the_scores(tmp_path):
    subject = model("llama")
    model_key, _ = score_keys(subject, SEQUENCES, None, None)
    scored = score_sequences(subject, SEQUENCES, cache=tmp_path)
    fresh = pair_states(subject, SEQUENCES, cache=tmp_path)
    (file,) = (tmp_path / "scores").iterdir()
    assert file.stem == model_key[:32]
    lines = [json.loads(line) for line in file.read_text().splitlines() if line]
    assert {type(value) for value in lines[0].values()} == {float}  # as versions before wrote them
    assert [len(value) for value in lines[1].values()] == [2] * 5
    with Forwards(subject) as forwards:
        assert same(pair_states(subject, SEQUENCES, cache=tmp_path, share_prefix=True), fresh)
        assert score_sequences(subject, SEQUENCES, cache=tmp_path) == scored
    assert forwards.rows == 0


def test_a_lost_or_torn_shard_alone_is_repeated(tmp_path):
    subject = model("llama")
    fresh = pair_states(subject, SEQUENCES, shards=tmp_path, shard_size=2)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 5
    files[1].unlink()
    files[3].write_text(files[3].read_text()[:-10])
    with Forwards(subject) as forwards:
        assert same(pair_states(subject, SEQUENCES, shards=tmp_path, shard_size=2), fresh)
    assert forwards.rows == 4


def test_what_an_earlier_version_kept_is_not_read(tmp_path, monkeypatch):
    """It kept <S+, S->, |S+|^2, |S-|^2 a pair, in the cache and in shards."""
    subject = model("llama")
    fresh = pair_states(subject, SEQUENCES)
    folders = {"cache": tmp_path / "cache", "shards": tmp_path / "shards"}
    with monkeypatch.context() as before:
        before.setattr("alignscope.probes.pair_states.STATES_VERSION", 1)
        pair_states(subject, SEQUENCES, **folders)
    for file in (*folders["cache"].rglob("*.jsonl"), *folders["shards"].iterdir()):
        lines = [json.loads(line) for line in file.read_text().splitlines() if line]
        file.write_text(json.dumps({key: [7.0, *both] for line in lines for key, both in line.items()}))
    assert same(pair_states(subject, SEQUENCES, **folders), fresh)


# ---- the pair table


def test_the_table_has_them_of_the_reference():
    policy, reference = tiny(0), tiny(1)
    of_both, of_policy, of_reference = (
        score_pairs(*subjects, rows(5), states=True)
        for subjects in ((policy, reference), (policy, None), (reference, None))
    )
    assert of_both.settings["states_from"] == "reference"
    assert of_policy.settings["states_from"] == "policy"
    for column in ("ches", "ches_normalised"):
        assert [*of_both[column]] == pytest.approx([*of_reference[column]], rel=RELATIVE)
        assert abs(of_both[column] - of_policy[column]).max() > 0.1


def test_unasked_columns_stay_empty():
    scores = score_pairs(tiny(), tiny(1), rows(3))
    assert scores.frame[["ches", "ches_normalised", "mismatched"]].isna().all(axis=None)
    assert scores.settings["states_from"] is None


def test_progress_is_told_for_every_pass(tmp_path: Path):
    stages: dict[str, list[int]] = {}

    def note(stage: str, done: int, total: int) -> None:
        stages.setdefault(stage, []).append(done)

    score_pairs(tiny(0), tiny(1), rows(5), states=True, mismatched=True, progress=note)
    passes = ["scoring policy", "scoring reference", "mismatched policy", "mismatched reference", "hidden states"]
    assert list(stages) == passes
    assert all(done[0] == 0 < done[-1] for done in stages.values())


# ---- mismatched completions


def test_mismatched_is_the_mean_log_ratio_of_the_next_pairs_completions():
    policy, reference = tiny(0), tiny(1)
    some = rows(4)
    scores = score_pairs(policy, reference, some, mismatched=True)
    crossed = [
        {"prompt": row["prompt"], "chosen": after["chosen"], "rejected": after["rejected"]}
        for row, after in zip(some, [*some[1:], some[0]], strict=True)
    ]
    expected = score_pairs(policy, reference, crossed).log_ratios().mean(axis=1)
    assert [*scores["mismatched"]] == pytest.approx([*expected], abs=CLOSE)
    assert scores.settings["mismatched"] == 4
    shared = score_pairs(policy, reference, some, mismatched=True, share_prefix=True)
    assert [*shared["mismatched"]] == pytest.approx([*expected], abs=CLOSE)


def test_a_pair_on_the_same_prompt_is_no_mismatch_and_is_passed_over():
    policy, reference = tiny(0), tiny(1)
    some = [row | {"prompt": prompt} for row, prompt in zip(rows(4), "aabb", strict=True)]
    found = score_pairs(policy, reference, some, mismatched=True)
    apart = [some[0] | {k: some[2][k] for k in ("chosen", "rejected")}, some[2]]
    expected = score_pairs(policy, reference, apart).log_ratios().mean(axis=1)
    assert found["mismatched"][0] == pytest.approx(expected[0], abs=CLOSE)
    alone = score_pairs(policy, reference, [row | {"prompt": "a"} for row in some], mismatched=True)
    assert all(math.isnan(value) for value in alone["mismatched"])


def test_without_a_reference_there_is_no_log_ratio():
    with pytest.raises(InputError, match="mismatched=True: log-ratios need a reference"):
        score_pairs(tiny(), None, rows(3), mismatched=True)


def test_a_sequence_beyond_the_longest_input_leaves_its_pair_empty():
    some = [
        {"prompt": "p" * 50, "chosen": "a", "rejected": "c"},  # 53 with BOS and EOS
        {"prompt": "q", "chosen": "d" * 20, "rejected": "e"},
        {"prompt": "r", "chosen": "f", "rejected": "g"},
    ]
    scores = score_pairs(tiny(0), tiny(1), some, mismatched=True)
    assert [math.isnan(value) for value in scores["mismatched"]] == [True, False, False]
    assert scores.settings["mismatched"] == 2


def test_one_pair_has_no_other():
    scores = score_pairs(tiny(0), tiny(1), rows(1), mismatched=True)
    assert math.isnan(scores["mismatched"][0])
    assert mismatched_sequences([], None).sequences == []
