"""States kept on disk are those of the model's own read-out, whatever the batch, the order or a kill did."""

import pytest
import torch
from safetensors import safe_open
from test_scoring import subject
from tiny_tokenizer import PIECES, tiny_tokenizer

from alignscope import InputError
from alignscope.probes import final_states
from alignscope.probes.encoding import Encoder, TextPolicy
from alignscope.probes.final_states import planned_shards, write_states
from alignscope.probes.histories import (
    History,
    bucket_names,
    buckets_of,
    pair_histories,
    sample_histories,
    usable_histories,
)
from alignscope.probes.inputs import read_pairs, read_samples
from alignscope.probes.kernels.logprobs import token_log_probs
from alignscope.probes.scored_rows import TokenSequence
from alignscope.probes.scoring import score_sequences

EOS = PIECES["<eos>"]


def encoder() -> Encoder:
    return Encoder(tiny_tokenizer(), TextPolicy(), vocab_rows=len(PIECES))


def sequences(n: int = 12) -> list[TokenSequence]:
    """Two by two behind one prompt, of unequal lengths."""
    random = torch.Generator().manual_seed(0)
    found = []
    for i in range(n // 2):
        prompt = (1, *torch.randint(5, 40, (3 + i % 4,), generator=random).tolist())
        for length in (2 + i, 7 - i % 3):
            found.append(
                TokenSequence(prompt + tuple(torch.randint(5, 40, (length,), generator=random).tolist()), len(prompt))
            )
    return found


def all_states(found) -> dict[int, torch.Tensor]:
    """States by sequence."""
    some = sequences()
    parts = {}
    for number, shard in enumerate(found.shards):
        states = found.read(number)
        for i, part in zip(shard, states.split([some[i].n_scored for i in shard]), strict=True):
            parts[i] = part
    return parts


def test_states_through_the_head_give_the_scores_of_the_scorer(tmp_path):
    model, some = subject(0), sequences()
    found = write_states(model, some, tmp_path)
    head = model.head()
    assert found.normed
    for i, states in all_states(found).items():
        targets = torch.tensor(some[i].ids[some[i].start :])
        total = token_log_probs(states @ head.weight.T, targets).sum().item()
        assert total == pytest.approx(score_sequences(model, [some[i]])[0][0], abs=1e-5)


@pytest.mark.parametrize("options", [{"batch_tokens": 1}, {"share_prefix": True}], ids=str)
def test_neither_batch_size_nor_shared_prompts_move_a_state(tmp_path, options):
    model, some = subject(0), sequences()
    plain = all_states(write_states(model, some, tmp_path / "a"))
    other = all_states(write_states(model, some, tmp_path / "b", **options))
    assert plain.keys() == other.keys() == set(range(len(some)))
    for i in plain:
        assert torch.allclose(plain[i], other[i], atol=1e-5)


def test_shards_hold_every_sequence_once_and_pairs_together(monkeypatch):
    monkeypatch.setattr(final_states, "SHARD_TOKENS", 20)
    shards = planned_shards(sequences())
    assert sorted(i for shard in shards for i in shard) == list(range(12))
    assert len(shards) > 1
    for shard in shards:
        assert {i ^ 1 for i in shard} == set(shard)  # 2k and 2k + 1 begin alike


def test_a_run_that_continues_makes_no_shard_again_and_another_model_does(tmp_path, monkeypatch):
    monkeypatch.setattr(final_states, "SHARD_TOKENS", 20)
    write_states(subject(0), sequences(), tmp_path)
    first = {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()}
    write_states(subject(0), sequences(), tmp_path)
    assert {file.name: file.stat().st_mtime_ns for file in tmp_path.iterdir()} == first
    torn = sorted(tmp_path.iterdir())[0]
    torn.write_bytes(torn.read_bytes()[:100])
    found = write_states(subject(0), sequences(), tmp_path)
    assert len(all_states(found)) == 12
    write_states(subject(1), sequences(), tmp_path)
    assert not {file.stat().st_mtime_ns for file in tmp_path.iterdir()} & set(first.values())


def test_states_keep_the_type_they_were_computed_in(tmp_path):
    found = write_states(subject(0, dtype=torch.bfloat16), sequences(), tmp_path)
    with safe_open(tmp_path / "states_00000.safetensors", framework="pt") as file:
        assert file.get_tensor("states").dtype == torch.bfloat16
    found.delete()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(InputError, match="file"):
        write_states(subject(0), sequences(), blocked / "states")


# ---- histories


def test_pairs_become_two_histories_behind_the_same_ids():
    rows = [{"prompt": "one:", "chosen": "xy", "rejected": "z"}, {"prompt": "two:", "chosen": "q", "rejected": "rs"}]
    histories, preferences, invalid, shifted = pair_histories(read_pairs(rows), encoder())
    assert [history.source for history in histories] == ["chosen", "rejected"] * 2
    assert [len(history.response_ids) for history in histories] == [3, 2, 2, 3]  # with the end
    assert histories[0].prompt_ids == histories[1].prompt_ids
    assert histories[0].prompt_id == histories[1].prompt_id != histories[2].prompt_id
    assert (preferences, invalid, shifted) == ([1.0, 1.0], [], 0)


def test_a_cut_sample_is_truncated_and_has_no_end():
    rows = [{"prompt": "one:", "completion": "xy", "finished": False}, {"prompt": "one:", "completion": "xy"}]
    histories, _, _ = sample_histories(read_samples(rows), encoder(), "policy")
    assert [(history.truncated, history.response_ids[-1] == EOS) for history in histories] == [
        (True, False),
        (False, True),
    ]
    assert {history.source for history in histories} == {"policy"}


def test_buckets_count_from_one_and_the_end_is_its_own():
    ids = [7] * 51 + [EOS]
    found = buckets_of(ids, (5, 50), EOS)
    assert found.tolist() == [0] * 5 + [1] * 45 + [2] + [3]
    assert buckets_of(ids, (5, 50), None)[-1] == 2
    assert bucket_names((5, 50)) == ["1-5", "6-50", "51+", "end"]
    assert bucket_names(()) == ["1+", "end"]


@pytest.mark.parametrize(
    ("history", "reason"),
    [
        (History(prompt_id="a", prompt_ids=(1,), response_ids=()), "empty_response"),
        (History(prompt_id="a", prompt_ids=(), response_ids=(5,)), "no_context"),
        (History(prompt_id="a", prompt_ids=(1,), response_ids=(99,)), "id_beyond_head"),
        (History(prompt_id="a", prompt_ids=(1,), response_ids=(5,), source="web"), "unknown_source"),
    ],
)
def test_histories_that_cannot_be_read_are_set_aside_with_a_reason(history, reason):
    good = History(prompt_id="b", prompt_ids=(1,), response_ids=(5,))
    usable, invalid = usable_histories([good, history], vocab_rows=50)
    assert usable == [good]
    assert [(row.row, row.reason) for row in invalid] == [(2, reason)]
