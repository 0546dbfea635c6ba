"""A contrast beside its controls: checkpoints trained otherwise, the template, and noise as large as the update."""

import gc
import weakref

import numpy as np
import pytest
from spinal_models import letters, tiny_subject
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import InputError, compare_spinal, spinal_trace
from alignscope.diagnose import spinal_retrace
from alignscope.diagnose.spinal_effects import effects
from alignscope.diagnose.spinal_noise import of_noise
from alignscope.diagnose.spinal_nulls import Control, compared, controls_table
from alignscope.diagnose.spinal_reading import read_prompts_of
from alignscope.probes.block_noise import changed_blocks, noisy_blocks

PROMPTS = letters(90)
TEMPLATE = "{% for m in messages %}{{ 'abc ' + m['content'] + ' ' }}{% endfor %}{{ 'xyz' }}"


@pytest.fixture(scope="module")
def subjects():
    return tiny_subject(), tiny_subject(changed=5, scale=1.3)


@pytest.fixture(scope="module")
def traces(subjects):
    return tuple(spinal_trace(subject, PROMPTS) for subject in subjects)


@pytest.fixture(scope="module")
def halfway():
    return spinal_trace(tiny_subject(changed=5, scale=1.1), PROMPTS)


def row(table, control: str, quantity: str = "d_transport_terminal"):
    return table[(table.control == control) & (table.quantity == quantity)].iloc[0]


def test_a_control_checkpoint_is_taken_away_prompt_by_prompt(traces, halfway):
    found = compare_spinal(*traces, controls=(), control_traces={"sft": halfway})
    for quantity, unit in (("d_transport_terminal", "rad"), ("d_entropy_terminal", "nats"), ("d_alpha_terminal", "")):
        line = row(found.control_effects, "sft", quantity)
        assert line.effect == pytest.approx(found.estimates[quantity].value)
        assert line.net == pytest.approx(line.effect - line.control_effect, abs=1e-9)
        assert line.net_low < line.net < line.net_high
        assert (line.unit, line.n) == (unit, 90)
    between = compare_spinal(halfway, traces[1], controls=()).estimates["d_transport_terminal"]
    line = row(found.control_effects, "sft")
    assert (line.net, line.net_low, line.net_high) == pytest.approx((between.value, between.low, between.high))
    assert line.verdict == "more than the control"


CLEAR, NONE_SHOWN = (0.5, 0.4, 0.6), (0.1, -0.1, 0.3)


@pytest.mark.parametrize(
    ("effect", "control", "net", "verdict"),
    [
        ((1.0, 0.9, 1.1), CLEAR, (0.5, 0.3, 0.7), "more than the control"),
        ((-1.0, -1.1, -0.9), (-0.5, -0.6, -0.4), (-0.5, -0.7, -0.3), "more than the control"),
        ((1.0, 0.9, 1.1), (-0.5, -0.6, -0.4), (1.5, 1.3, 1.7), "more than the control, which moves the other way"),
        ((0.5, 0.4, 0.6), (1.0, 0.9, 1.1), (-0.5, -0.7, -0.3), "less than the control"),
        ((1.0, 0.9, 1.1), CLEAR, NONE_SHOWN, "not told apart from the control"),
        ((0.01, -0.05, 0.07), CLEAR, (1.0, 0.9, 1.1), "no clear effect"),
        ((2e-6, 1e-6, 3e-6), CLEAR, (1.0, 0.9, 1.1), "no clear effect"),
        ((1.0, 0.9, 1.1), CLEAR, (2e-6, 1e-6, 3e-6), "not told apart from the control"),
        ((1.0, 0.9, 1.1), CLEAR, (0.1, np.nan, np.nan), "no interval"),
        ((1.0, np.nan, np.nan), CLEAR, (0.5, 0.3, 0.7), "no interval"),
    ],
)
def test_only_a_clear_effect_whose_rest_is_clear_exceeds_a_control(effect, control, net, verdict):
    assert compared(effect, control, net) == verdict


def test_with_few_prompts_no_verdict_is_given():
    models = [tiny_subject(), tiny_subject(changed=5, scale=1.3), tiny_subject(changed=5, scale=1.1)]
    few = [spinal_trace(model, letters(5)) for model in models]
    noise = Control(name="noise", kind="noise", traces=(few[2],))
    sft = Control(name="sft", kind="trained", traces=(few[2],))
    assert set(controls_table(few[0], few[1], [noise, sft], (4, 6), seed=0).verdict.dropna()) == {"no interval"}


def test_noise_has_the_p_of_its_seeds_and_leaves_the_base_as_it_was(subjects, traces):
    before = {name: tensor.clone() for name, tensor in subjects[0].model.state_dict().items()}
    found = compare_spinal(*traces, subjects=subjects, controls=("noise",), noise_seeds=4)
    control = found.controls["noise"]
    line = row(found.control_effects, "noise")
    sizes = [one.means["d_transport_terminal"].mean() for one in control.effects]
    assert len(set(sizes)) == 4
    assert abs(line.control_effect) == pytest.approx(np.abs(sizes).max())
    assert line.p == pytest.approx((1 + (np.abs(sizes) >= abs(line.effect)).sum()) / 5)
    assert np.isnan(line.net)
    after = subjects[0].model.state_dict()
    assert all((after[name] == before[name]).all() for name in before)


def test_the_effects_of_noise_are_those_of_a_trace_of_the_noisy_model(subjects, traces):
    (found,) = compare_spinal(*traces, subjects=subjects, controls=("noise",), noise_seeds=1).controls["noise"].effects
    with noisy_blocks(subjects[0], changed_blocks(*subjects), seed=[0, 7, 0]) as noisy:
        expected = effects(traces[0], spinal_trace(noisy, PROMPTS), (4, 6))
    for name, values in expected.means.items():
        assert np.allclose(found.means[name], values, atol=1e-6)
    assert np.allclose(found.exponents[""].value[1:], expected.exponents[""].value[1:], atol=1e-6)


def test_one_noisy_trace_is_held_at_a_time(subjects, traces, monkeypatch):
    """Rows, spectra and tables of a seed are gone when the next one is read."""
    alive = []

    def measure(start, again, noisy):
        alive.extend(map(weakref.ref, (again.readings.rows, again.spectra, again.jackknife_spectra, again.layers)))
        return again.model.fingerprint

    def read(*arguments, **options):
        gc.collect()
        assert [ref() for ref in alive] == [None] * len(alive)
        return read_prompts_of(*arguments, **options)

    monkeypatch.setattr(spinal_retrace, "read_prompts_of", read)
    assert len(set(of_noise(traces[0], subjects, measure, seeds=4, seed=0))) == 4
    assert len(alive) == 16


def test_what_is_kept_of_a_seed_is_small_beside_its_rows(subjects, traces):
    control = compare_spinal(*traces, subjects=subjects, controls=("noise",), noise_seeds=2).controls["noise"]
    held = [*control.effects[0].means.values()]
    for contrast in control.effects[0].exponents.values():
        held += [contrast.value, contrast.groups]
    size = sum(array.nbytes if array.base is None else array.base.nbytes for array in held if array is not None)
    assert 0 < size < 0.1 * traces[0].readings.rows.nbytes
    assert control.traces == ()


def test_a_prompt_that_noise_makes_infinite_leaves_every_seed(subjects, traces, monkeypatch):
    """Seed 1 loses prompt 3: seeds before and after it are measured on the rest."""
    spoilt = []

    def reading(subject, prompts, **options):
        found = read_prompts_of(subject, prompts, **options)
        if subject.name.endswith("(noise 1)"):
            spoilt.append(subject.name)
            found.rows[2, 3] = np.inf
        return found

    monkeypatch.setattr(spinal_retrace, "read_prompts_of", reading)
    found = compare_spinal(*traces, subjects=subjects, controls=("noise",), noise_seeds=3)
    control = found.controls["noise"]
    assert control.kept.tolist() == [i != 3 for i in range(90)]
    assert [len(one.means["d_entropy_terminal"]) for one in control.effects] == [89] * 3
    assert row(found.control_effects, "noise").n == 89
    assert len(spoilt) == 2


def test_noise_larger_than_the_effect_is_said_to_hold_it(traces, halfway):
    noise = Control(name="noise", kind="noise", traces=(traces[1], halfway))
    line = row(controls_table(traces[0], halfway, [noise], (4, 6), seed=0), "noise")
    assert (line.verdict, line.p) == ("within noise", 1.0)
    reverse = Control(name="noise", kind="noise", traces=(halfway, halfway))
    line = row(controls_table(traces[0], traces[1], [reverse], (4, 6), seed=0), "noise")
    assert (line.verdict, line.p) == ("more than all 2 noise seeds", pytest.approx(1 / 3))


@pytest.fixture(scope="module")
def templated():
    models = []
    for options in ({}, {"changed": 5, "scale": 1.3}):
        tokenizer = tiny_tokenizer()
        tokenizer.chat_template = TEMPLATE
        models.append(alignscope.wrap(tiny_subject(**options).model, tokenizer))
    return tuple(models)


def test_the_template_control_reads_the_base_under_the_chat_template(templated):
    traces = [spinal_trace(model, PROMPTS) for model in templated]
    found = compare_spinal(*traces, subjects=templated, controls=("template",), prompts=PROMPTS)
    chat = spinal_trace(templated[0], PROMPTS, template="chat")
    line = row(found.control_effects, "template")
    assert line.control_effect == pytest.approx((chat.readings.angle - traces[0].readings.angle)[4:6].mean())
    assert line.verdict.startswith("the template alone: ")
    exponent = row(found.control_effects, "template", "d_alpha_terminal")
    assert np.isnan(exponent.control_effect)
    assert exponent.reason.startswith("different token ids")


def test_cut_prompts_are_left_out_of_the_template_control(templated):
    traces = [spinal_trace(model, PROMPTS, max_tokens=20) for model in templated]
    found = compare_spinal(*traces, subjects=templated, controls=("template",), prompts=PROMPTS)
    (chat,) = found.controls["template"].traces
    uncut = [len(prompt.ids) < 20 for prompt in traces[0].prompts]
    assert chat.kept.tolist() == uncut
    assert row(found.control_effects, "template").n == sum(uncut) < len(uncut)

    def letters_of(ids) -> str:
        return templated[0].tokenizer.decode(ids, skip_special_tokens=True).replace(" ", "")

    for raw, whole, kept in zip(traces[0].prompts, chat.prompts, uncut, strict=True):
        assert not kept or letters_of(raw.ids) in letters_of(whole.ids)


def test_two_long_prompts_that_end_alike_stop_no_template_control(templated):
    end = "abcdefgh" * 4
    prompts = [*letters(40, longest=15), f"x{end}", f"y{end}"]
    traces = [spinal_trace(model, prompts, max_tokens=20) for model in templated]
    found = compare_spinal(*traces, subjects=templated, controls=("template",), prompts=prompts)
    assert found.controls["template"].reason is None


@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ({}, "models or prompts not given"),
        ({"prompts": PROMPTS, "subjects": "plain"}, "no chat template"),
    ],
)
def test_a_template_control_that_cannot_be_had_says_why(subjects, traces, what, reason):
    what = what | ({"subjects": subjects} if "subjects" in what else {})
    found = compare_spinal(*traces, controls=("template",), **what)
    line = row(found.control_effects, "template")
    assert line.verdict is None
    assert reason in line.reason


def test_noise_without_models_says_why(traces):
    line = row(compare_spinal(*traces, controls=("noise",)).control_effects, "noise")
    assert (line.verdict, line.reason) == (None, "models not given")


def test_a_control_that_is_one_of_the_two_models_is_refused(traces):
    with pytest.raises(InputError, match="control sft: it has the weights of the base"):
        compare_spinal(*traces, control_traces={"sft": traces[0]})
    with pytest.raises(InputError, match="control sft: it has the weights of the aligned model"):
        compare_spinal(*traces, control_traces={"sft": traces[1]})


def test_a_control_on_other_prompts_is_refused(traces):
    with pytest.raises(InputError, match=r"cannot be compared: prompts 90 in .*, 80 in"):
        compare_spinal(*traces, control_traces={"sft": spinal_trace(tiny_subject(changed=2, scale=1.1), letters(80))})
