"""What a report of differential information must not claim: ends that are not scored, cut samples, lost positions."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import torch
from information_oracle import QUICK
from test_scoring import many, subject
from tiny_tokenizer import PIECES

from alignscope import InputError, draw_samples, information_report
from alignscope.diagnose import information_reading, information_sides
from alignscope.diagnose.history_sets import HistorySet, history_input
from alignscope.diagnose.information import _lost
from alignscope.diagnose.information_analysis import NO_ENDS, Resampling, pair_checks
from alignscope.probes.histories import History, buckets_of
from alignscope.probes.kernels import information as information_kernel

PROMPTS = [{"prompt": f"one {i}:"} for i in range(24)]


@pytest.fixture(scope="module")
def models():
    return subject(0), subject(1)


@pytest.fixture(scope="module")
def drawn(models):
    policy, reference = models
    options = {"n": 1, "max_tokens": 6}
    return {"policy_samples": draw_samples(policy, PROMPTS, **options),
            "reference_samples": draw_samples(reference, PROMPTS, **options)}  # fmt: skip


def test_identities_of_whole_samples_are_not_judged_where_no_end_is_scored(models, drawn):
    assert any(row["finished"] for rows in drawn.values() for row in rows)
    scored = information_report(*models, many(6), **drawn, **QUICK)
    bare = information_report(*models, many(6), **drawn, eos="none", **QUICK)
    judged = {row.name: (row.ok, row.reason) for row in scored.identities}
    assert judged["reference_samples"][0] is True
    assert judged["policy_samples"][0] is True
    unjudged = {row.name: (row.ok, row.reason) for row in bare.identities}
    assert unjudged["reference_samples"] == unjudged["policy_samples"] == (None, NO_ENDS)
    assert any("lack the decision to stop" in text for text in bare.warnings)


def responses(*, cut: bool) -> tuple[pd.DataFrame, HistorySet]:
    """40 pairs whose chosen answers fell by 5 nats, and 40 samples of the reference that fell by 1."""
    random = np.random.default_rng(0)
    names = [f"p{i}" for i in range(40)]
    pairs = pd.DataFrame({"prompt_id": np.repeat(names, 2), "source": ["chosen", "rejected"] * 40})
    pairs["log_ratio"] = np.where(pairs["source"] == "chosen", -5.0, -6.0) + random.normal(0, 0.1, 80)
    drawn = pd.DataFrame({"prompt_id": names, "source": "reference", "log_ratio": random.normal(-1, 0.1, 40)})
    table = pd.concat([pairs.assign(truncated=False), drawn.assign(truncated=cut)], ignore_index=True)
    given = HistorySet(histories=(), invalid=(), counts={}, preferences=np.ones(40))
    return table.assign(n_tokens=4), given


def test_cut_samples_prove_no_displacement_beyond_sampling():
    found = {
        cut: pair_checks(*responses(cut=cut), beta=None, resampling=Resampling(resamples=200))[1] for cut in (0, 1)
    }
    assert found[0].beyond_sampling is True
    assert found[1].beyond_sampling is None
    assert "40 of 40 samples of the reference were cut" in found[1].reason
    assert found[0].estimates["on_policy"].value == found[1].estimates["on_policy"].value


@pytest.mark.parametrize("rows_at_once", [1, 3])
def test_a_vocabulary_that_leaves_room_for_few_positions_changes_no_number(models, monkeypatch, rows_at_once):
    expected = information_report(*models, many(4), **QUICK)
    tiny = 8 * len(PIECES) * rows_at_once
    for module in (information_reading, information_sides, information_kernel):
        monkeypatch.setattr(module, "BUFFER_BYTES", tiny)
    found = information_report(*models, many(4), **QUICK)
    columns = ["kl", "information", "plausible_information", "log_ratio"]
    assert np.allclose(found.positions[columns], expected.positions[columns], atol=1e-6)
    assert [row.ok for row in found.identities] == [row.ok for row in expected.identities]


def test_reports_along_other_responses_are_not_subtracted(models):
    first = information_report(*models, many(6), **QUICK)
    rows = [row | {"chosen": row["chosen"][::-1] + "q"} for row in many(6)]
    other = information_report(*models, rows, **QUICK)
    with pytest.raises(ValueError, match="other responses"):
        first.compare(other)
    assert (first.compare(information_report(*models, many(6), **QUICK))["value"] == 0).all()


def test_positions_without_a_finite_value_are_told_with_the_pairs_they_cost():
    positions = pd.DataFrame(
        {"history": [0, 0, 1, 2, 3], "status": ["ok", "non_finite", "ok", "unsupported", "degenerate"]}
    )
    history = History(prompt_id="a", prompt_ids=(1,), response_ids=(5,))
    given = HistorySet(histories=(history,) * 4, invalid=(), counts={}, preferences=np.ones(2))
    (told,) = _lost(positions, given)
    assert told.startswith("2 of 5 positions, in 2 of 4 responses, enter no number (1 non_finite, 1 unsupported")
    assert "2 of 2 pairs have no log-ratio" in told
    assert _lost(positions[positions["status"] == "ok"], given) == ()


def test_unlike_dtypes_are_told(models):
    report = information_report(models[0], subject(1, dtype=torch.bfloat16), many(4), **QUICK)
    assert any("policy float32, reference bfloat16" in text for text in report.warnings)
    assert report.settings["dtypes"] == {"policy": "float32", "reference": "bfloat16"}


def test_training_pairs_are_named_so_beside_their_beta(models):
    report = information_report(*models, many(8), beta=0.1, in_sample=True, **QUICK)
    assert any("in-sample" in text for text in report.label_law.warnings)
    assert report.settings["in_sample"] is True


def test_samples_of_a_source_that_is_named_twice_are_refused():
    rows = [{"prompt": "one:", "completion": "x"}]
    with pytest.raises(InputError, match="policy_samples are given too"):
        history_input(rows, source="policy", policy_samples=rows)


def test_every_token_that_ends_a_text_is_in_the_bucket_of_the_end():
    assert buckets_of([7, 9, 2, 7], (5,), (2, 9)).tolist() == [0, 2, 2, 0]


def test_the_displacement_of_a_report_has_its_quadrants_as_a_table(models):
    table = information_report(*models, many(8), **QUICK).section().tables["displacement"]
    assert isinstance(table, pd.DataFrame)
    assert {"both_fell", "both_rose", "chosen", "on_policy"} <= {*table["estimate"]}


def test_a_sequence_that_is_refused_says_why_on_the_report_itself(models):
    report = information_report(*models, many(4), paper_style=True, sequence_prompts=2, length=20, **QUICK)
    assert report.sequence.value is None or report.sequence.reason is None
    names = {field.name for field in dataclasses.fields(report.sequence)}
    assert "found" in names
    assert report.sequence.ess is not None


def test_samples_that_say_they_were_cut_from_the_distribution_are_refused(models):
    rows = [{"prompt": "one:", "completion": "x", "top_p": 0.9}]
    with pytest.raises(InputError, match="top_p"):
        information_report(*models, many(4), policy_samples=rows, **QUICK)
