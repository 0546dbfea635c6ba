"""Training that looks at rows held out: the curve, when it stops, what it keeps, and what it says on the way."""

import io
import math
import sys

import jaxtyping
import numpy as np
import pytest
import torch
from spinal_models import tiny_model
from tiny_steering import TWENTY as WORDS
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError, SteeringVector
from alignscope.cli.progress import DETAIL as SHOWN
from alignscope.cli.progress import progress_bar
from alignscope.probes.shards import DETAIL, detailed, prefixed
from alignscope.steering import Subspace, baselines, fit_interchange, scan_layers, train_cdas
from alignscope.steering.cdas import FitResult
from alignscope.steering.describing import held_out_losses
from alignscope.steering.encoded import run_pairs
from alignscope.steering.evaluation.evaluated_rows import evaluated_rows
from alignscope.steering.held_out import HeldOutCurve
from alignscope.steering.preparing import prepare
from alignscope.steering.training_rows import training_rows


@pytest.fixture(scope="module")
def llama() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


def axis(k: int) -> Subspace:
    return Subspace(torch.eye(8)[k])


def fit_of(steps: int) -> FitResult:
    return FitResult(
        basis=axis(7).basis,
        loss="kl_source",
        losses=(0.5,) * steps,
        gradient_norms=(1.0,) * steps,
        at_ceiling=None,
        n_rows=1,
        n_tokens=1,
    )


def scripted(means: list[float], *, patience: int | None, an_epoch: int = 2) -> tuple[HeldOutCurve, int]:
    """The curve of these held-out losses, elicit .2 above suppress, and the step at which it stopped."""
    read = iter([9.0, *means])

    def losses(subspace: Subspace | None) -> dict[str, dict[str, float]]:
        mean = next(read)
        return {"elicit": {"loss": mean + 0.1, "kl": 2 * mean}, "suppress": {"loss": mean - 0.1, "kl": mean}}

    curve = HeldOutCurve(losses, an_epoch=an_epoch, patience=patience)
    steps = range((len(means) - 1) * an_epoch + 1)
    stopped = next((step for step in steps if curve(step, axis(step // an_epoch))), steps[-1])
    return curve, stopped


@pytest.mark.parametrize(
    ("means", "patience", "stopped", "kept"),
    [
        ([5, 4, 3, 2, 1], 1, 8, 8),
        ([5, 4, 4.5, 2, 1], 1, 4, 2),
        ([5, 4, 4.5, 2, 2.5, 3, 1], 2, 10, 6),
        ([5, 4, 4, 4], 2, 6, 2),  # no smaller is no better
        ([5, 6, 7], 2, 4, 0),
        ([5, 3, 4], 9, 4, 2),
        ([math.inf, 4, math.inf, math.inf], 2, 6, 2),
    ],
)
def test_it_stops_when_nothing_was_better_for_so_long_and_keeps_the_best(means, patience, stopped, kept):
    curve, found = scripted(means, patience=patience)
    assert found == stopped
    assert torch.equal(curve.kept(fit_of(found)).basis, axis(kept // 2).basis)
    assert curve.metrics()["kept_step"] == kept
    assert [point["step"] for point in curve.points] == list(range(0, stopped + 1, 2))
    (told,) = curve.notices(fit_of(found))
    assert told.startswith(f"ran {stopped // 2} epochs, and ")
    assert (f"epoch {kept // 2} is kept" in told) == (kept > 0)
    assert ("the start, which is kept" in told) == (kept == 0)


def test_without_patience_the_last_step_is_kept_and_nothing_is_said():
    curve, stopped = scripted([5, 1, 9], patience=None)
    assert stopped == 4
    assert torch.equal(curve.kept(fit_of(4)).basis, axis(7).basis)
    assert curve.metrics() == {
        "held_out": [
            {
                "step": step, "elicit": pytest.approx(mean + 0.1), "suppress": pytest.approx(mean - 0.1),
                "recovered_elicit": pytest.approx(1 - mean / 9), "recovered_suppress": pytest.approx(1 - mean / 9),
            }
            for step, mean in ((0, 5), (2, 1), (4, 9))
        ],
        "held_out_unedited": {"elicit": 9.1, "suppress": 8.9},
    }


def test_a_loss_that_is_no_smaller_than_that_of_no_edit_is_told():
    for means, told in (([5, 8.9], 0), ([5, 9.0], 2)):
        curve, _ = scripted(means, patience=None)
        found = curve.notices(fit_of(2))
        assert len(found) == told
    assert found[0].startswith("the held-out loss to elicit, 9.1, is no smaller than that of no edit, 9.1")
    better_before, _ = scripted([5, 9.5], patience=3)
    assert not any("no smaller" in notice for notice in better_before.notices(fit_of(2)))  # the start is kept


def test_losses_that_are_no_numbers_never_stop_at_the_start_for_good():
    curve, stopped = scripted([math.nan, 4, 3], patience=2)
    assert stopped == 4
    assert curve.metrics()["kept_step"] == 4


def test_without_rows_held_out_nothing_is_read():
    curve = HeldOutCurve(None, an_epoch=2)
    assert not curve(0, axis(0))
    assert curve.text() == ""
    assert curve.metrics() == {"held_out": []}


def test_a_fit_ends_where_its_observer_says():
    h = torch.randn(6, 3, 8, generator=torch.Generator().manual_seed(0))
    head = torch.randn(8, 5, generator=torch.Generator().manual_seed(1))
    fits = [
        fit_interchange(
            h, h[:, 0].flip(0), torch.ones(6, 3, dtype=torch.bool), (h.flip(0) @ head), lambda states, _: states @ head,
            steps=5, observe=observe,
        )
        for observe in (lambda step, _: step == 2, lambda step, _: None)
    ]  # fmt: skip
    assert [len(fit.losses) for fit in fits] == [2, 5]
    assert fits[0].losses == fits[1].losses[:2]  # the rate falls as if all steps were run


def test_training_keeps_the_epoch_of_the_smallest_held_out_loss(llama):
    patient = train_cdas(llama, WORDS, layer=1, epochs=8, lr=1.0, patience=2)
    whole = train_cdas(llama, WORDS, layer=1, epochs=8, lr=1.0)
    metrics, data = patient.metadata["metrics"], prepare(llama, WORDS, layer=1)
    curve, kept = metrics["held_out"], metrics["kept_step"]
    means = [(point["elicit"] + point["suppress"]) / 2 for point in curve]
    best = means.index(min(means))
    assert kept == curve[best]["step"]
    assert len(curve) - 1 - best == 2 < 8  # it did stop
    assert curve == whole.metadata["metrics"]["held_out"][: len(curve)]
    assert len(patient.history) == curve[-1]["step"] < len(whole.history)
    rows, _ = training_rows(llama, patient.site, patient.positions, run_pairs(data.held, "both"), cache_bytes=2e9)
    again, none = rows.mean_losses(patient.subspace, "jsd"), rows.mean_losses(None, "jsd")
    shown = held_out_losses(patient)
    for way in ("elicit", "suppress"):
        assert again[way]["loss"] == pytest.approx(curve[best][way], abs=1e-6)
        assert 1 - again[way]["kl"] / none[way]["kl"] == pytest.approx(curve[best][f"recovered_{way}"], abs=1e-4)
        assert none[way]["loss"] == pytest.approx(metrics["held_out_unedited"][way], abs=1e-6)
        assert shown["after"][way].value == curve[best][way]
        assert shown["unedited"][way].value == metrics["held_out_unedited"][way]
    assert any(f"epoch {best} is kept" in notice for notice in patient.notices())
    assert patient.metadata["settings"]["patience"] == 2
    told = evaluated_rows(llama, WORDS, patient).notices
    assert "the rows held out of training chose the vector's epoch: they flatter it" in told
    assert not any("chose the vector's" in one for one in evaluated_rows(llama, WORDS, whole).notices)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"patience": 0}, "patience=0: expected 1 or more epochs"),
        ({"patience": 2, "holdout": 0}, "patience=2 looks at rows held out, and there is none"),
    ],
)
def test_patience_that_cannot_be_had_is_refused(llama, change, told):
    with pytest.raises(InputError, match=told):
        train_cdas(llama, WORDS, layer=1, epochs=1, **change)


# ---- progress


def test_progress_has_the_loss_and_the_held_out_losses(llama):
    told: list[str] = []
    vector = train_cdas(llama, WORDS, layer=1, epochs=2, progress=lambda stage, done, total: told.append(stage))
    curve, first = vector.metadata["metrics"]["held_out"], vector.metadata["metrics"]["held_out_unedited"]
    last = f"{vector.history[-1]['loss']:.3g}"
    sides = "; ".join(
        f"{way} {curve[-1][way]:.3g} of {first[way]:.3g}, {curve[-1][f'recovered_{way}']:.0%} of the KL recovered"
        for way in ("elicit", "suppress")
    )
    assert told[-1] == f"interchange fit | loss {last}, held out: {sides}"
    told.clear()
    learned = baselines.fit_bipo(llama, WORDS, layer=1, epochs=1, progress=lambda stage, *_: told.append(stage))
    start, end = learned.metadata["metrics"]["held_out"]
    assert told[-1].startswith("bipo fit | loss ")
    assert f"held out {end['elicit']:.3g} (at first {start['elicit']:.3g}, elicit)" in told[-1]


def test_a_fit_that_stops_early_is_told_as_done(llama):
    told = []
    vector = train_cdas(llama, WORDS, layer=1, epochs=8, lr=1.0, patience=2, progress=lambda *args: told.append(args))
    steps = len(vector.history)
    assert steps < 8 * 4
    assert [(done, total) for _, done, total in told][-2:] == [(steps - 1, told[0][2]), (steps, steps)]


def test_every_layer_of_a_scan_has_a_line_of_its_own(llama):
    told = []
    scan_layers(llama, WORDS, [0, 2], epochs=1, resamples=10, progress=lambda stage, *_: told.append(stage))
    assert {stage.split(" | ")[0] for stage in told} == {"layer 0: interchange fit", "layer 2: interchange fit"}


def test_numpy_counts_are_kept_as_plain_numbers(llama, tmp_path, monkeypatch):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checked types would refuse them first
    vector = train_cdas(llama, WORDS, layer=1, epochs=np.int64(1), batch_size=np.int64(8), patience=np.int64(2))
    assert SteeringVector.load(vector.save(tmp_path / "v")).metadata["settings"]["patience"] == 2


def test_detail_is_no_stage_of_its_own(monkeypatch):
    assert SHOWN == DETAIL
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress_bar(quiet=False) as progress:
        assert progress is not None
        now = ["held out 5"]
        told = detailed(prefixed(progress, "cdas"), lambda: now[0])
        told("fit | loss 0.5", 1, 2)
        now[0] = ""
        told("fit | loss 0.25", 2, 2)
        told("other", 1, 1)
    assert log.getvalue().splitlines() == [
        "cdas: fit: 1 of 2, loss 0.5, held out 5",
        "cdas: fit: 2 of 2, loss 0.25",
        "cdas: other: 1 of 1",
    ]
