"""Two traces compared: one model gives 0, a planted change is found where it is, what cannot be compared says why."""

import json
import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import PIECES, tiny_tokenizer

import alignscope
from alignscope import InputError
from alignscope.diagnose.spinal import compare_spinal, spinal_trace
from alignscope.diagnose.spinal_controls import halves_control
from alignscope.diagnose.spinal_distance import base_distance
from alignscope.diagnose.spinal_settings import RESOLUTION

CHANGED = 4  # block whose weights the aligned model has otherwise


@pytest.fixture(scope="module")
def prompts() -> list[str]:
    return letters(120)


@pytest.fixture(scope="module")
def subjects():
    return tiny_subject(), tiny_subject(changed=CHANGED, scale=1.05)


@pytest.fixture(scope="module")
def traces(subjects, prompts):
    return tuple(spinal_trace(subject, prompts) for subject in subjects)


@pytest.fixture(scope="module")
def comparison(traces, subjects):
    return compare_spinal(*traces, subjects=subjects)


def test_a_trace_compared_with_itself_has_every_contrast_0(traces):
    found = compare_spinal(traces[0], traces[0])
    assert found.identical
    assert not found.alarm
    contrasts = found.contrast.drop(columns=["layer", "n", "d_alpha_p"]).fillna(0.0)
    assert (contrasts == 0).all(axis=None)
    assert (found.transport.drop(columns=["layer", "n", "n_sampled", "p"]) == 0).all(axis=None)
    assert (found.transport.p == 1).all()
    assert (found.contrast.d_alpha_p.dropna() == 1).all()
    assert (found.base_distance == 0).all()
    assert "identical weights" in found.warnings[0]
    assert found.section().findings[0].severity == "notice"
    for name in ("d_alpha_terminal", "d_transport_terminal", "d_entropy_terminal", "base_distance_terminal"):
        estimate = found.estimates[name]
        assert (estimate.value, estimate.low, estimate.high) == (0.0, 0.0, 0.0)


def test_round_off_between_two_passes_of_one_model_is_no_finding(traces, subjects, prompts):
    """A paired test finds a difference of 1e-8 that has one sign; equal fingerprints rule it out."""
    other = spinal_trace(subjects[0], prompts, batch_size=1)
    assert not compare_spinal(traces[0], other).alarm


def test_weights_changed_by_round_off_raise_no_alarm(traces, prompts):
    """Differences of 3e-7 rad have one sign too: they lie under what batching may move, and are not tested."""
    model = tiny_model()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1 + 3e-7)
    other = alignscope.wrap(model, tiny_tokenizer())
    found = compare_spinal(traces[0], spinal_trace(other, prompts), subjects=(tiny_subject(), other), controls=())
    assert not found.identical
    assert 0 < found.transport.d_angle.abs().max() < RESOLUTION
    assert not found.alarm
    assert (found.transport.p == 1).all()
    assert (found.contrast.d_alpha_p.iloc[1:] == 1).all()
    assert "nowhere farther apart than 1e-05 rad" in found.section().findings[1].sentence


def test_a_planted_change_is_found_from_its_block_on_and_not_before(comparison):
    assert comparison.alarm
    assert comparison.estimates["transport_p"].value < 0.025
    before, after = comparison.contrast.layer < CHANGED, comparison.contrast.layer >= CHANGED
    assert (comparison.contrast.base_distance[before] == 0).all()
    assert (comparison.contrast.base_distance_low[after] > 0.05).all()
    found = comparison.transport[comparison.transport.p < 0.025].layer
    assert found.min() == CHANGED - 1  # the step into the changed block
    assert (comparison.transport[comparison.transport.layer < CHANGED - 1].d_angle == 0).all()


def test_a_change_of_the_same_size_shows_in_the_exponents_of_its_layers_only(comparison):
    blocks = comparison.contrast.iloc[1:]
    assert (blocks.d_alpha[blocks.layer < CHANGED] == 0).all()
    assert (blocks.d_alpha[blocks.layer >= CHANGED] != 0).all()
    assert (blocks.d_alpha_low <= blocks.d_alpha).all()
    assert blocks.d_alpha_p.between(0, 1).all()


def test_swapping_the_models_flips_every_sign(traces, subjects, comparison):
    other = compare_spinal(traces[1], traces[0], subjects=subjects[::-1])
    for name in ("d_alpha", "d_entropy"):
        assert other.contrast[name].to_numpy() == pytest.approx(-comparison.contrast[name].to_numpy(), nan_ok=True)
    assert other.transport.d_angle.to_numpy() == pytest.approx(-comparison.transport.d_angle.to_numpy())
    assert other.transport.p.tolist() == comparison.transport.p.tolist()
    distance = comparison.contrast.base_distance.to_numpy()
    assert other.contrast.base_distance.to_numpy() == pytest.approx(distance, abs=1e-6)


def test_terminal_estimates_are_means_over_the_last_third(comparison):
    assert comparison.window == (4, 6)
    blocks = comparison.contrast.query("4 <= layer <= 6")
    steps = comparison.transport.query("4 <= layer <= 5")
    value = {name: estimate.value for name, estimate in comparison.estimates.items()}
    assert value["d_alpha_terminal"] == pytest.approx(blocks.d_alpha.mean())
    assert value["d_alpha_terminal_wide"] == pytest.approx(blocks.d_alpha_wide.mean())
    assert value["d_transport_terminal"] == pytest.approx(steps.d_angle.mean())
    assert value["d_entropy_terminal"] == pytest.approx(blocks.d_entropy.mean())
    assert value["base_distance_terminal"] == pytest.approx(blocks.base_distance.mean())


def test_other_windows_are_taken_as_given(traces):
    assert compare_spinal(*traces, terminal="last_2", controls=()).window == (5, 6)
    assert compare_spinal(*traces, terminal=(2, 3), controls=()).window == (2, 3)
    with pytest.raises(InputError, match="blocks 1 to 6"):
        compare_spinal(*traces, terminal=(5, 7))


def test_one_block_as_window_has_no_step_and_says_so(traces):
    found = compare_spinal(*traces, terminal="last_1", controls=())
    assert found.estimates["d_alpha_terminal"].value is not None
    assert found.estimates["d_transport_terminal"].reason == "no step inside the window"


def test_the_same_seed_gives_the_same_comparison(traces, subjects, comparison):
    again = compare_spinal(*traces, subjects=subjects)
    pd.testing.assert_frame_equal(again.contrast, comparison.contrast)
    pd.testing.assert_frame_equal(again.transport, comparison.transport)
    assert again.estimates == comparison.estimates


def test_without_the_models_there_is_no_same_layer_distance(traces):
    found = compare_spinal(*traces, controls=())
    assert found.base_distance is None
    assert found.contrast.base_distance.isna().all()
    assert found.estimates["base_distance_terminal"].reason == "models not given"


def test_models_in_the_wrong_order_are_refused(traces, subjects):
    with pytest.raises(InputError, match=r"is not the model that was traced.*\(base, aligned\)"):
        compare_spinal(*traces, subjects=subjects[::-1])


def test_the_distance_is_kept_in_shards(traces, subjects, comparison, tmp_path):
    calls = []
    for _ in range(2):
        found = compare_spinal(
            *traces, subjects=subjects, controls=(), shards=tmp_path, progress=lambda *call: calls.append(call)
        )
        np.testing.assert_array_equal(found.base_distance, comparison.base_distance)
    assert calls == [("same-layer distance", 64, 120), ("same-layer distance", 120, 120)]  # once


def test_a_row_lost_in_one_model_goes_in_both(traces, subjects, prompts):
    model = tiny_model(changed=CHANGED, scale=1.05)
    broken = alignscope.wrap(model, tiny_tokenizer())
    texts = [*(text.replace("z", "y") for text in prompts), "zebra"]
    base = spinal_trace(subjects[0], texts)
    with torch.no_grad():
        model.model.embed_tokens.weight[PIECES["z"]] = torch.nan
    aligned = spinal_trace(broken, texts)
    assert (base.n, aligned.n) == (len(base.prompts), len(base.prompts) - 1)
    found = compare_spinal(base, aligned, controls=())
    assert found.base.n == found.aligned.n == aligned.n
    without = spinal_trace(subjects[0], texts[:-1])
    assert found.base.layers.alpha.to_numpy() == pytest.approx(without.layers.alpha.to_numpy(), abs=1e-10, nan_ok=True)


def test_different_prompts_are_refused(traces, subjects, prompts):
    fewer = spinal_trace(subjects[1], prompts[:60])
    with pytest.raises(InputError, match=r"prompts 120 in \w+, 60 in"):
        compare_spinal(traces[0], fewer)
    others = spinal_trace(subjects[1], letters(120, seed=9))
    with pytest.raises(InputError, match="read different prompts"):
        compare_spinal(traces[0], others)


def test_prompts_of_other_ids_are_refused_naming_a_row(subjects):
    """The jackknife deals out clusters: with other ids the groups of the two models would hold other prompts."""
    texts = letters(60)
    rows = [[{"prompt": text, "prompt_id": str(i // k)} for i, text in enumerate(texts)] for k in (1, 2)]
    base, aligned = (spinal_trace(subject, some) for subject, some in zip(subjects, rows, strict=True))
    with pytest.raises(InputError, match=r"the prompt in row \d+ has prompt_id '\d+' in .*, and in row \d+ '\d+' in"):
        compare_spinal(base, aligned)
    without = spinal_trace(subjects[1], texts)
    with pytest.raises(InputError, match=r"prompt_id '.*' in .* None in"):
        compare_spinal(base, without)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"weights": (0.5, 0.4, 0.2)}, "three that add to 1"),
        ({"weights": (0.5, 0.5)}, "three that add to 1"),
        ({"gradient": "steepness"}, "expected one of weight_share, gradient"),
        ({"gradient": "residual"}, "needs preference pairs"),
        ({"noise_seeds": 0}, "noise_seeds=0: at least 1"),
    ],
)
def test_settings_of_the_score_that_cannot_be_used_are_refused(traces, option, message):
    with pytest.raises(InputError, match=message):
        compare_spinal(*traces, **option)


def test_unequal_vocabularies_say_what_is_left_out(traces, prompts):
    """All 64 head rows belong to a token in one model; the other has lost the last 6 of them."""
    subject = tiny_subject()
    vocab = subject_vocab = traces[0].model.vocab
    smaller = replace(traces[0].model, name="smaller", vocab=vocab - 6, fingerprint=subject.fingerprint)
    base, aligned = traces[0], replace(traces[0], model=smaller, token_hash=traces[0].token_hash)
    base = replace(base, model=replace(base.model, name="larger"))
    warnings: list[str] = []
    found, _ = base_distance(base, aligned, (subject, subject), identical=False, warnings=warnings)
    assert np.abs(found).max() < 1e-5  # over the common entries, renormalised, the two are one
    ids = base.readings.rows[-1]
    p = subject.readout(torch.from_numpy(ids)[None])[0, :, :subject_vocab].double().softmax(-1)
    mass = p[:, -6:].sum(-1).mean().item()
    assert f"left out are {6 / vocab:.2%} of the head rows of larger, with {mass:.2%} of its probability" in warnings[0]


@pytest.mark.parametrize(
    ("options", "message"), [({"max_tokens": 64}, "max_tokens 128 in"), ({"window": (0.05, 0.5)}, "window")]
)
def test_different_settings_are_refused_naming_both(traces, subjects, prompts, options, message):
    with pytest.raises(InputError, match=message):
        compare_spinal(traces[0], spinal_trace(subjects[1], prompts, **options))


def test_different_depth_or_dtype_is_refused(traces):
    for change, message in (
        ({"n_layers": 5}, "blocks 6 in"),
        ({"dtype": "bfloat16"}, "dtype float32 in .* bfloat16 in"),
    ):
        with pytest.raises(InputError, match=message):
            compare_spinal(traces[0], replace(traces[1], model=replace(traces[1].model, **change)))


def test_another_width_leaves_transport_and_takes_the_exponents(traces, prompts):
    wide = tiny_subject(width=72)
    subjects = (tiny_subject(), wide)
    found = compare_spinal(traces[0], spinal_trace(wide, prompts), subjects=subjects, controls=())
    assert found.contrast.d_alpha.isna().all()
    assert "different widths (64 and 72)" in found.estimates["d_alpha_terminal"].reason
    assert "different widths" in found.estimates["alpha_p"].reason
    assert found.estimates["d_transport_terminal"].value is not None
    assert found.estimates["base_distance_terminal"].value > 0
    assert found.transport.p.notna().all()


def test_the_same_texts_as_other_ids_leave_transport_and_say_so(traces, prompts):
    other = alignscope.wrap(tiny_model(changed=CHANGED, scale=1.05), tiny_tokenizer(bos=False))
    found = compare_spinal(traces[0], spinal_trace(other, prompts), subjects=(tiny_subject(), other), controls=())
    assert "different token ids" in found.estimates["d_alpha_terminal"].reason
    assert "different token ids" in found.estimates["base_distance_terminal"].reason
    assert any("different token ids" in warning for warning in found.warnings)
    assert found.estimates["d_transport_terminal"].value is not None


@pytest.mark.parametrize("controls", [("sft",), ("half",), "halves"])
def test_unknown_controls_are_refused(traces, controls):
    with pytest.raises(InputError, match="controls"):
        compare_spinal(*traces, controls=controls)


def test_halves_of_one_model_contain_0_in_the_mean_of_transport(traces):
    """20 splits, intervals of 95 %: 17 or more are expected."""
    found = [halves_control(traces[0], (4, 6), seed=seed).d_transport_terminal for seed in range(20)]
    assert sum(low <= 0 <= high for _, low, high in found) >= 17


def test_the_halves_control_stands_beside_the_contrast_with_its_own_numbers(comparison):
    control = comparison.controls["halves"]
    assert control.n == (60, 60)
    assert control.table.layer.tolist() == list(range(7))
    assert control.table.d_alpha.iloc[1:].notna().all()
    assert control.table.d_angle.iloc[1:6].notna().all()
    assert control.table.d_angle.iloc[[0, 6]].isna().all()  # step 0 is no member, no step leaves the last block
    for name in ("null_transport_p", "null_alpha_p"):
        assert 0.025 <= comparison.estimates[name].value <= 1
    assert not control.alarm
    for name in ("null_d_alpha_terminal", "null_d_transport_terminal"):
        estimate = comparison.estimates[name]
        assert estimate.low < 0 < estimate.high


def test_prompts_of_two_kinds_split_by_chance_keep_the_control_quiet_but_a_shifted_half_does_not(traces):
    """The control can alarm: shift the angles of exactly its second half."""
    from alignscope.diagnose.spinal_controls import half_labels
    from alignscope.diagnose.spinal_trace import cluster_codes

    second = half_labels(cluster_codes(traces[0].prompts), 0)
    angle = traces[0].readings.angle + 0.3 * second
    shifted = replace(traces[0], readings=replace(traces[0].readings, angle=angle))
    control = halves_control(shifted, (4, 6), seed=0)
    assert control.alarm
    assert control.d_transport_terminal[0] == pytest.approx(0.3, abs=0.1)
    assert control.d_transport_terminal[1] > 0


def test_halves_under_46_prompts_have_no_exponents_and_say_so(subjects, prompts):
    pair = [spinal_trace(subject, prompts[:80]) for subject in subjects]
    found = compare_spinal(*pair)
    assert "46 prompts a half" in found.estimates["null_alpha_p"].reason
    assert found.estimates["null_transport_p"].value is not None
    assert found.estimates["alpha_p"].value is not None


@pytest.mark.parametrize("n", [1, 3])
def test_a_handful_of_prompts_still_compares_without_intervals(subjects, prompts, n):
    pair = [spinal_trace(subject, prompts[:n]) for subject in subjects]
    found = compare_spinal(*pair)
    assert not found.alarm
    assert found.estimates["d_transport_terminal"].low is None
    assert found.estimates["d_transport_terminal"].value is not None
    json.dumps(found.section().section.model_dump())


def test_a_model_of_two_blocks_has_contrasts_but_no_last_third(prompts):
    pair = [spinal_trace(tiny_subject(blocks=2, changed=c, scale=1.05), prompts[:60]) for c in (None, 2)]
    found = compare_spinal(*pair)
    assert found.window is None
    assert found.estimates["d_transport_terminal"].reason == "2 blocks: the last third needs 3"
    assert found.transport.layer.tolist() == [1]
    assert "2 blocks" in pair[0].section().section.estimates["angle_terminal"].reason


def test_the_section_assumes_no_sign_and_says_what_it_cannot_tell(comparison):
    result = comparison.section()
    section = result.section
    assert section.name == "spinal"
    assert {*result.tables} == {*section.tables}
    assert {*section.tables} == {
        "layers", "contrast", "transport", "steps", "local_slopes", "halves", "detected", "components"
    }  # fmt: skip
    assert "cannot tell preference training from any training of this size" in section.summary
    assert "covers sampling, not finite-N bias" in section.estimates["d_alpha_terminal"].method
    known = {f"spinal.{name}" for name in section.estimates}
    assert all({*finding.rests_on} <= known for finding in result.findings)
    assert all(finding.severity != "alarm" for finding in result.findings)  # only a failed control raises one
    json.dumps(section.model_dump())
    assert comparison.summary() == section.summary
    assert {*result.tables["layers"].model} == {*comparison.names}
    assert len(result.tables["layers"]) == 2 * 7


def test_words_follow_the_interval(comparison, traces):
    words = comparison.summary()
    estimate = comparison.estimates["d_transport_terminal"]
    assert ("shorter" if estimate.high < 0 else "longer") in words
    other = compare_spinal(traces[1], traces[0], controls=()).summary()
    assert ("longer" if estimate.high < 0 else "shorter") in other


def test_no_difference_is_said_as_none_found(traces):
    """Two models that differ by less than the prompts do: noise on the angles, without a mean."""
    noise = 1e-3 * np.random.default_rng(0).standard_normal(traces[0].readings.angle.shape)
    other = replace(
        traces[0],
        model=replace(traces[0].model, name="other", fingerprint="other"),
        readings=replace(traces[0].readings, angle=traces[0].readings.angle + noise),
    )
    found = compare_spinal(traces[0], other, controls=())
    assert not found.alarm
    assert found.summary().startswith("No difference in transport or contraction between other and")
    assert found.section().findings[0].severity == "info"


def test_figures_are_drawn_from_the_tables(comparison, traces):
    assert {"alpha", "angle", "entropy"} <= {*traces[0].figures()}
    assert {"d_alpha", "d_angle", "base_distance"} <= {*comparison.figures()}
    assert comparison.figure().layout.yaxis.title.text == "Δ angle, aligned − base [rad]"
    assert traces[0].figure().layout.yaxis.title.text == "angle a step [rad]"


def test_equal_names_are_told_apart(comparison):
    assert len({*comparison.names}) == 2
    assert comparison.names[0].endswith("(base)")


def test_every_null_estimate_has_its_reason(subjects, prompts):
    pair = [spinal_trace(subject, prompts[:10]) for subject in subjects]
    for estimate in compare_spinal(*pair).estimates.values():
        assert estimate.value is not None or estimate.reason
        assert estimate.value is None or math.isfinite(estimate.value)
