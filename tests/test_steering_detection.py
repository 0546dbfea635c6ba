"""Detection by the largest coordinate: E11, naive loops, and a threshold that the reported texts never see."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from spinal_models import letters, tiny_model
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError, SteeringVector
from alignscope.diagnose.statistics import resampled_counts
from alignscope.steering import Factors, Site, Subspace, baselines, detection
from alignscope.steering.evaluation.detecting import auroc_draws, concept_direction, youden_threshold
from alignscope.steering.separation import auroc

TEXTS = letters(60, seed=2, longest=12)
SHOWN, PLAIN, HARD = TEXTS[:24], TEXTS[24:48], TEXTS[48:]


@pytest.fixture(scope="module")
def subject() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


def clamp(positive: float = 2.0, negative: float = -2.0, rank: int = 1, layer: int = 1, width: int = 32):
    weight = torch.randn(rank, width, generator=torch.Generator().manual_seed(3))
    factors = Factors(torch.full((rank,), positive), torch.full((rank,), negative))
    return SteeringVector(site=Site(layer), subspace=Subspace(weight), factors=factors)


def naive(subject, vector, text: str, start: int = 1) -> float:
    ids = torch.tensor([subject.tokenizer(text)["input_ids"]])
    trace = subject.trace(ids, torch.ones_like(ids), reduce=lambda layer, h, mask: h, layers=[vector.site.layer + 1])
    states = trace[vector.site.layer + 1][0, start:].double()
    return max(float(h @ concept_direction(vector)) for h in states)


# ---- the score


def test_e11_ties_count_half():
    assert auroc(torch.tensor([3.0, 2.0, 2.0]), torch.tensor([2.0, 1.0])) == 5 / 6


def test_a_text_scores_the_largest_coordinate_of_its_tokens(subject):
    found = detection(subject, clamp(), SHOWN, PLAIN, hard=HARD)
    for row, text in zip(found.frame.itertuples(), TEXTS, strict=True):
        assert row.score == pytest.approx(naive(subject, clamp(), text), abs=1e-5)


def test_the_first_token_of_all_does_not_count_with_or_without_a_bos(subject):
    bare = alignscope.wrap(subject.model, tiny_tokenizer(bos=False))
    frame = detection(bare, clamp(), ["cdef", "c", "gh"], ["ijk", "lm"]).frame
    assert frame[frame.kind == "positive"].n_tokens.tolist() == [3, 1]
    assert frame.score[0] == pytest.approx(naive(bare, clamp(), "cdef"), abs=1e-5)


def test_the_auroc_counts_pairs(subject):
    found = detection(subject, clamp(), SHOWN, PLAIN)
    scores = [[naive(subject, clamp(), text) for text in side] for side in (SHOWN, PLAIN)]
    pairs = [(a > b) + (a == b) / 2 for a in scores[0] for b in scores[1]]
    estimate = found.estimates["auroc"]
    assert estimate.value == pytest.approx(sum(pairs) / len(pairs), abs=1e-9)
    assert estimate.low < estimate.value < estimate.high
    assert (estimate.n, estimate.n_clusters) == (48, 48)


def test_of_a_response_its_own_tokens_count(subject):
    prompt, response = "abcdef gh", "kl mn"
    rows = [{"prompt": prompt, "response": response}, {"prompt": "x y", "response": "mno"}]
    found = detection(subject, clamp(), rows, PLAIN)
    n = len(subject.tokenizer(prompt)["input_ids"])
    assert found.frame.score[0] == pytest.approx(naive(subject, clamp(), prompt + response, n), abs=1e-5)
    assert found.frame.n_tokens[0] == len(response)


def test_the_direction_points_to_the_concept():
    vector = clamp()
    assert torch.allclose(concept_direction(vector), vector.subspace.basis[0].double(), atol=1e-6)
    assert torch.equal(concept_direction(vector.swap()), -concept_direction(vector))
    added = SteeringVector.adding(torch.tensor([0.0, -3.0, 4.0]), Site(0))
    assert concept_direction(added).tolist() == pytest.approx([0.0, -0.6, 0.8])
    assert float(concept_direction(clamp(rank=3)).norm()) == pytest.approx(1.0)
    with pytest.raises(InputError, match="no direction"):
        concept_direction(clamp(1.0, 1.0))
    with pytest.raises(InputError, match="rank 2"):
        concept_direction(SteeringVector(site=Site(0), subspace=Subspace(torch.eye(2, 4)), edit="ablate"))


def test_a_vector_turned_round_has_the_other_texts_as_positive(subject):
    one = detection(subject, clamp(), SHOWN, PLAIN).frame.score
    other = detection(subject, clamp().swap(), SHOWN, PLAIN).frame.score
    assert (one != other).any()


# ---- the threshold


@pytest.mark.parametrize(
    ("positive", "negative", "threshold"),
    [
        ([3.0, 2.0], [1.0, 0.0], 1.5),
        ([3.0, 1.0], [2.0, 0.0], 2.5),  # 3 and 1 gain 1/2 alike: the highest
        ([1.0], [1.0], 1.0),
        ([5.0, 5.0], [7.0], 2.5 + 2.5),
    ],
)
def test_youdens_threshold(positive, negative, threshold):
    assert youden_threshold(np.array(positive), np.array(negative)) == threshold


scores = st.lists(st.integers(-4, 4).map(float), min_size=1, max_size=12).map(np.array)


@settings(max_examples=60, deadline=None)
@given(scores, scores)
def test_no_threshold_does_better_than_youdens(positive, negative):
    def gain(t: float) -> float:
        return float((positive >= t).mean() - (negative >= t).mean())

    tried = [*positive, *negative, 99.0]
    assert gain(youden_threshold(positive, negative)) >= max(map(gain, tried[:-1])) - 1e-12


def test_the_reported_texts_do_not_move_the_threshold(subject):
    found = detection(subject, clamp(), SHOWN, PLAIN, hard=HARD)
    frame = found.frame
    chooses = frame[(frame.half == "threshold") & (frame.kind != "hard")]
    sides = [chooses.score[chooses.kind == kind].to_numpy() for kind in ("positive", "negative")]
    assert [len(side) for side in sides] == [12, 12]
    assert found.threshold == youden_threshold(*sides)
    reported = frame[frame.half == "reported"]
    told = {
        "sensitivity": reported[reported.kind == "positive"].score >= found.threshold,
        "specificity": reported[reported.kind == "negative"].score < found.threshold,
        "hard_negative_accuracy": frame[frame.kind == "hard"].score < found.threshold,
    }
    for name, right in told.items():
        assert found.estimates[name].value == pytest.approx(right.mean())
        assert found.estimates[name].n == 12


def test_texts_of_one_prompt_are_in_one_half(subject):
    shown, plain = ([{"prompt": p, "response": r} for p, r in zip(HARD, side, strict=False)] for side in (SHOWN, PLAIN))
    frame = detection(subject, clamp(), shown, plain, hard=plain).frame
    assert (frame.groupby("cluster").half.nunique() == 1).all()
    assert (frame.groupby("cluster").size() == 3).all()


# ---- the interval


def test_resampled_aurocs_are_those_of_a_naive_loop():
    random = np.random.default_rng(0)
    positive, negative = random.integers(0, 4, 7).astype(float), random.integers(0, 4, 5).astype(float)
    codes = np.array([0, 1, 2, 3, 3, 4, 5]), np.array([0, 1, 2, 6, 6])
    found = auroc_draws(positive, negative, codes, 7, draws=40, seed=2)
    for value, times in zip(found, np.concatenate([*resampled_counts(7, draws=40, seed=2)]), strict=True):
        drawn = [
            np.repeat(side, times[code].astype(int)) for side, code in zip((positive, negative), codes, strict=True)
        ]
        if not all(map(len, drawn)):
            assert np.isnan(value)
            continue
        assert value == pytest.approx(auroc(*(torch.tensor(side) for side in drawn)))


def test_without_hard_negatives_the_accuracy_is_null_with_a_reason(subject):
    found = detection(subject, clamp(), SHOWN, PLAIN)
    assert found.estimates["hard_negative_accuracy"].value is None
    assert "no hard negatives" in found.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"positive": [" ", ""]}, "0 positive and 24 negative"),
        ({"positive": SHOWN[:1]}, "too few texts"),
        ({"vector": clamp(width=16)}, "hidden size"),
        ({"max_tokens": 0}, "max_tokens=0"),
    ],
)
def test_what_cannot_be_compared_is_refused(subject, change, message):
    with pytest.raises(InputError, match=message):
        detection(subject, **({"vector": clamp(), "positive": SHOWN, "negative": PLAIN} | change))


@pytest.mark.real
@pytest.mark.slow
def test_a_refusal_direction_tells_requests_apart_on_the_real_model(ladder_reference, data_folder):
    files = [data_folder / "data" / "refusal_quadruples" / f"{name}.parquet" for name in ("train", "test")]
    train, test = (pd.read_parquet(file).to_dict("records") for file in files)
    subject = alignscope.load(ladder_reference)
    vector = baselines.fit_diffmean(subject, train[:24], layer=14, holdout=0)
    sides = ([row[f"{side}_input"] for row in test[:30]] for side in ("positive", "negative"))
    assert detection(subject, vector, *sides).estimates["auroc"].value > 0.95  # 0.99; 0.31 with the first token
