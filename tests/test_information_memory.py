"""Reading an update holds sums by group and a row a position, and nothing else from one shard to the next."""

import gc

import numpy as np
import pytest
import torch
from information_oracle import EOS, histories_of
from test_scoring import many, subject
from tiny_tokenizer import PIECES, tiny_tokenizer

from alignscope.diagnose.information_reading import Tail, read_information
from alignscope.probes.final_states import write_states


@pytest.fixture(scope="module")
def histories():
    return histories_of(many(60), tiny_tokenizer())


@pytest.fixture(scope="module")
def sides(histories, tmp_path_factory):
    folder = tmp_path_factory.mktemp("states")
    sequences = [history.sequence for history in histories]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("alignscope.probes.final_states.SHARD_TOKENS", 150)  # several shards
        return [
            (write_states(model, sequences, folder / name), Tail.of(model))
            for name, model in (("policy", subject(0)), ("reference", subject(1)))
        ]


def test_no_tensor_is_left_of_a_shard_but_the_sums_of_its_groups(sides, histories):
    def alive() -> int:
        gc.collect()
        return sum(type(found) is torch.Tensor for found in gc.get_objects())

    before, counts = alive(), []
    read_information(
        *sides, histories, vocab=len(PIECES), end_id=EOS, progress=lambda *_: counts.append(alive() - before)
    )
    assert len(counts) >= 3
    assert len(set(counts)) == 1  # every shard has all groups; a list of blocks would grow


def test_listed_tokens_take_at_most_24_bytes_a_row_and_positions_are_whole(sides, histories):
    reading = read_information(*sides, histories, vocab=len(PIECES), end_id=EOS)
    assert reading.tops.memory_usage(index=False).sum() <= 24 * len(reading.tops)
    keys = reading.tops[["history", "position", "rank"]].to_numpy()
    assert (keys == keys[np.lexsort(keys.T[::-1])]).all()
    assert len(np.unique(keys, axis=0)) == len(keys)
    assert reading.positions["position"].max() == max(len(history.response_ids) for history in histories)
    assert [found.ids.shape[0] for found in reading.attributions.values()] == [0] * len(reading.attributions)
