"""Sixteen real pairs of the SmolLM2 ladder against the scores of an independent scorer."""

import json
from pathlib import Path

import numpy as np
import pytest

import alignscope
from alignscope import PairScores, read_pairs, score_pairs
from alignscope.probes.encoding import EncodedPair, Encoder, TextPolicy
from alignscope.probes.inputs import PairFile

pytestmark = [
    pytest.mark.real,
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning"),  # peft on transformers 5.23
]

AGREE = 1e-3  # nats a sequence; the scores were made by a float32 log-softmax, which loses up to 1e-5 a token itself
RAW = {"template": "none", "eos": "none"}
KEYS = {
    "policy_chosen": "logp_chosen",
    "policy_rejected": "logp_rejected",
    "reference_chosen": "ref_logp_chosen",
    "reference_rejected": "ref_logp_rejected",
    "n_chosen": "n_chosen",
    "n_rejected": "n_rejected",
}


def lines(path: Path) -> dict:
    return {row["id"]: row for row in map(json.loads, path.read_text(encoding="utf-8").splitlines())}


@pytest.fixture(scope="module")
def evaluation(ladder: Path) -> list[int]:
    return json.loads((ladder / "split.json").read_text(encoding="utf-8"))["eval"]


@pytest.fixture(scope="module")
def pairs(data_folder: Path, evaluation: list[int]) -> PairFile:
    """All pairs of the evaluation split, in its order."""
    rows = lines(data_folder / "data" / "hh_harmless" / "test.jsonl")
    return read_pairs([rows[f"hh-harmless-base-test-{number:04d}"] for number in evaluation])


@pytest.fixture(scope="module")
def policy(ladder: Path, ladder_reference: Path):
    return alignscope.load(ladder_reference, adapter=ladder / "dpo" / "step_100")


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def scores(policy, pairs: PairFile, cache: Path) -> PairScores:
    return score_pairs(policy, "adapter-disabled", pairs.take(16), cache=cache, **RAW)


@pytest.fixture(scope="module")
def independent(ladder: Path, evaluation: list[int]) -> dict[str, np.ndarray]:
    rows = lines(ladder / "scores_dpo_step_100.jsonl")
    return {ours: np.array([rows[i][theirs] for i in evaluation[:16]]) for ours, theirs in KEYS.items()}


def test_sums_agree_with_the_independent_scorer(scores, independent):
    assert scores.invalid == ()
    for column, expected in independent.items():
        assert np.abs(scores[column] - expected).max() <= (0 if column.startswith("n_") else AGREE), column


def test_ranking_and_reward_decisions_agree_exactly(scores, independent):
    def margins(of):
        return (
            of["policy_chosen"] - of["policy_rejected"],
            of["policy_chosen"] - of["reference_chosen"] - of["policy_rejected"] + of["reference_rejected"],
        )

    for ours, theirs in zip(margins(scores), margins(independent), strict=True):
        assert (np.sign(ours) == np.sign(theirs)).all()


def test_token_counts_agree_on_every_evaluation_pair(policy, pairs, ladder, evaluation):
    encoder = Encoder(policy.tokenizer, TextPolicy(**RAW), vocab_rows=policy.vocab_size, limit=policy.limit)
    encoded = [encoder.encode_pair(pair) for pair in pairs]
    assert all(isinstance(pair, EncodedPair) and not pair.boundary_shift for pair in encoded)
    rows = lines(ladder / "scores_reference.jsonl")
    expected = [(rows[i]["n_chosen"], rows[i]["n_rejected"]) for i in evaluation]
    assert [(pair.n_chosen, pair.n_rejected) for pair in encoded] == expected


def test_the_reward_head_agrees_with_the_independent_scorer(policy, pairs, cache, ladder, ladder_reference, evaluation):
    judge = alignscope.load_reward(ladder / "rm", base=ladder_reference)
    found = score_pairs(policy, "adapter-disabled", pairs.take(6), reward=judge, cache=cache, **RAW)
    rows = lines(ladder / "scores_rm.jsonl")
    for side in ("chosen", "rejected"):
        expected = np.array([rows[i][f"rm_{side}"] for i in evaluation[:6]])
        assert np.abs(found[f"explicit_{side}"] - expected).max() <= 1e-4
