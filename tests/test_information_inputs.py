"""Information of what cannot be read: non-finite logits, wrong input, empty or cut responses, lone candidates."""

import math

import information_oracle as oracle
import numpy as np
import pandas as pd
import pytest
import torch
from information_oracle import CLOSE, EOS, QUICK, read_all, responses, strict_json
from test_scoring import Forwards, many, subject
from tiny_tokenizer import CHAT, PIECES, tiny_tokenizer

from alignscope import InputError, information_report
from alignscope.diagnose.history_sets import history_input
from alignscope.diagnose.information_analysis import Resampling, candidate_sets
from alignscope.probes.histories import History


@pytest.fixture(scope="module")
def policy():
    return subject(0)


@pytest.fixture(scope="module")
def reference():
    return subject(1)


@pytest.fixture(scope="module")
def unlike(policy, reference):
    """Two models that differ much, over 30 pairs of 28 prompts."""
    return information_report(policy, reference, many(30), resamples=50)


# ---- where no number can be had


def spoilt(seed: int, first: int):
    """A model that is not finite from a position on (weights that broke after it was wrapped)."""
    found = subject(seed)
    with torch.no_grad():
        found.model.transformer.wpe.weight[first:] = math.nan
    return found


@pytest.mark.parametrize("broken", ["policy", "reference"])
def test_positions_that_are_not_finite_are_set_aside_and_counted(policy, reference, unlike, broken):
    models = {"policy": policy, "reference": reference} | {broken: spoilt(int(broken == "reference"), 24)}
    report = information_report(*models.values(), many(30), **QUICK)
    n = report.excluded["non_finite_positions"]
    assert 0 < n < report.counts["positions"]
    assert sum(rates["kl"].n for rates in report.rates.values()) == report.counts["positions"] - n
    kept = report.positions[report.positions["status"] == "ok"]
    whole = unlike.positions.merge(kept[["history", "position"]], on=["history", "position"])
    assert np.allclose(kept["kl"], whole["kl"], atol=CLOSE)
    for found in read_all(*models.values()).attributions.values():
        assert found.q_total.sum().item() == pytest.approx(found.n_positions, abs=1e-9)
    strict_json(report)


def test_a_response_with_a_broken_position_has_no_log_ratio(reference):
    reading = read_all(spoilt(0, 24), reference)
    broken = reading.positions.groupby("history")["status"].agg(lambda s: (s == "non_finite").any()).to_numpy()
    assert 0 < broken.sum() < len(broken)
    assert (np.isnan(reading.log_ratios) == broken).all()


@pytest.mark.parametrize("measure_floor", [True, False])
@pytest.mark.parametrize("part", ["ln_f", "wte"])
def test_no_finite_position_at_all_is_refused_clearly(reference, part, measure_floor):
    broken = subject(0)
    with torch.no_grad():
        getattr(broken.model.transformer, part).weight[3] = math.nan
    with pytest.raises(InputError, match=r"no response token is left: of 366 positions none .*366 non_finite"):
        information_report(broken, reference, many(30), resamples=20, measure_floor=measure_floor)


def test_one_source_without_a_finite_position_is_null_with_a_reason(reference):
    far = [History(prompt_id="x", prompt_ids=(1, *range(5, 13)), response_ids=(9, 9), source="policy")]
    report = information_report(spoilt(0, 6), reference, [*responses("near", (7, 8)), *far], **QUICK)
    assert report.rates["policy"]["kl"].value is None
    assert report.rates["policy"]["kl"].reason
    assert report.rates["dataset"]["kl"].value > 0
    strict_json(report)


# ---- bad input


def test_another_tokenizer_is_refused_with_the_first_differing_id(policy):
    other = tiny_tokenizer()
    other.add_tokens(["<new>"])
    wider = subject(1, rows=len(PIECES) + 1, tokenizer=other)
    with pytest.raises(InputError, match=f"first differing id is {len(PIECES)}: no token and '<new>'"):
        information_report(policy, wider, many(3), **QUICK)


def test_no_reference_is_refused(policy):
    with pytest.raises(InputError, match="give the reference"):
        information_report(policy, None, many(3), **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plausible": 2.0}, r"plausible=2\.0"),
        ({"plausible": "best"}, "plausible='best'"),
        ({"level": 1.0}, r"level=1\.0"),
        ({"batch_tokens": 0}, "batch_tokens=0"),
        ({"share_prefix": "on"}, "share_prefix='on'"),
        ({"sequence": "all"}, "sequence='all'"),
        ({"position_buckets": (50, 5)}, "ascending"),
        ({"source": "web"}, "source='web'"),
        ({"beta": 0.0}, "beta=0.0"),
    ],
)
def test_settings_that_cannot_be_are_named_before_a_model_runs(policy, reference, options, message):
    with Forwards(policy, reference) as forwards, pytest.raises(InputError, match=message):
        information_report(policy, reference, many(3), **QUICK | options)
    assert forwards.rows == 0


def test_pairs_are_no_samples_and_rows_are_of_one_kind(policy, reference):
    with pytest.raises(InputError, match="not a file of samples; the columns are: prompt, chosen, rejected"):
        information_report(policy, reference, many(3), policy_samples=many(3), **QUICK)
    with pytest.raises(InputError, match="1 of 4 rows are histories"):
        information_report(policy, reference, [*responses("p", (7,)), *many(3)], **QUICK)
    samples = [{"prompt": row["prompt"], "completion": row["chosen"]} for row in many(3)]
    with pytest.raises(InputError, match="holds responses, not pairs; give it as responses"):
        history_input(samples, expected="pairs")
    with pytest.raises(InputError, match="holds pairs, not responses; give it as pairs"):
        history_input(many(3), expected="responses")


def test_empty_responses_are_set_aside_and_counted(policy, reference):
    good = responses("p", *((i, EOS) for i in range(5, 30)))
    report = information_report(policy, reference, [*good, *responses("q", ())], **QUICK)
    assert report.excluded == {"empty_response": 1}
    assert report.counts["histories"] == 25
    with pytest.raises(InputError, match=r"1 of 1 histories cannot be read.*empty_response"):
        information_report(policy, reference, responses("q", ()), **QUICK)


# ---- candidates


def test_one_candidate_is_null_with_the_reason(policy, reference):
    report = information_report(policy, reference, responses("p", (7, EOS), (7, EOS)), **QUICK)
    assert report.candidates[["n_candidates", "n_repeats", "reason"]].to_numpy().tolist() == [[1, 1, "one candidate"]]
    assert report.candidate_rates["dataset"].value is None
    assert report.candidate_rates["dataset"].reason == "no prompt has two different responses"


def test_candidates_of_a_prompt_are_a_softmax_of_their_log_ratios(policy, reference):
    given = responses("p", (7, EOS), (8, 9, EOS), (7, EOS), (10, EOS))
    report = information_report(policy, reference, given, **QUICK)
    logits = [[oracle.full_logits(model.model, h, len(PIECES)) for model in (policy, reference)] for h in given]
    ratios = np.array([oracle.log_ratio(*z, h.response_ids) for z, h in zip(logits, given, strict=True)])[[0, 1, 3]]
    q = np.exp(ratios) / np.exp(ratios).sum()
    row = report.candidates.iloc[0]
    assert row["normalized_entropy"] == pytest.approx(-(q * np.log(q)).sum() / math.log(3), abs=CLOSE)
    assert row["ess"] == pytest.approx(1 / (q**2).sum(), abs=1e-4)
    assert row["history"] == (0, 1, 3)[int(ratios.argmax())]


def test_cut_candidates_are_never_mixed_with_whole_ones(policy, reference):
    whole = responses("p", (7, EOS), (8, 9, EOS))
    cut = responses("p", (7, 8), (9, 8), truncated=True)
    alone, mixed = (information_report(policy, reference, given, **QUICK) for given in (whole, [*cut, *whole]))
    assert mixed.candidates["n_candidates"].to_list() == [2]
    assert mixed.candidates["ess"][0] == pytest.approx(alone.candidates["ess"][0], abs=CLOSE)
    assert "2 of 4 responses were cut" in mixed.warnings[0]
    assert mixed.rates["dataset"]["kl"].n == 9  # they count token by token


def test_repeats_that_rounding_sets_apart_are_one_candidate():
    """In half precision the same response read in another batch may differ by more than 1e-3 nats."""
    table = pd.DataFrame(
        {
            "prompt_id": "p", "source": "policy", "truncated": False, "n_tokens": 1,
            "key": [(7,), (8,), (7,)], "log_ratio": [0.0, math.log(3), 0.01],
        }
    )  # fmt: skip
    found, _ = candidate_sets(table, Resampling(resamples=5))
    assert found["normalized_entropy"][0] == pytest.approx(0.8112781, abs=1e-7)
    assert (found["n_candidates"][0], found["n_repeats"][0]) == (2, 1)


def test_a_reference_without_the_policys_chat_template_is_warned_of_where_a_template_is_used():
    policy, reference = subject(0, tokenizer=tiny_tokenizer(template=CHAT)), subject(1)
    raw = information_report(policy, reference, many(4), measure_floor=False, resamples=20)
    chat = information_report(policy, reference, many(4), template="chat", measure_floor=False, resamples=20)
    assert not any("chat template" in text for text in raw.warnings)
    assert any("chat template" in text for text in chat.warnings)
