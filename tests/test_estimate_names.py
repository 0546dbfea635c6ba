"""Names that gates can ask for: those declared are those that reports have, and a misspelt one is refused at once."""

import numpy as np
import pandas as pd
import pytest
from lora_files import make_adapter
from ranking_tables import mixed
from spinal_models import letters, tiny_subject

from alignscope import InputError, PairScores, Report, compare_spinal, load, spinal_trace
from alignscope.diagnose import doctor
from alignscope.diagnose.audit_sections import wanted_sections
from alignscope.diagnose.estimate_names import BROUGHT, audit_estimate_names
from alignscope.diagnose.gates import Gate, require_estimates
from alignscope.diagnose.preference_sections import PreferenceSettings
from alignscope.diagnose.spinal_estimates import TRACE_NAMES
from alignscope.diagnose.table_audit import audit_tables
from alignscope.diagnose.weights import weight_spectrum

SHIFTED = ("maths", "de_2")
NAMES = audit_estimate_names(("ranking", "rewards"), SHIFTED)
FEW = PreferenceSettings(bootstrap=20)


def rankings(n: int = 30) -> pd.DataFrame:
    """Pairs of n rankings of 3 responses, beside `mixed` pairs: a table whose report has every estimate there is."""
    whole = pd.concat([mixed(3 * n), pd.DataFrame(columns=["ranking_id"])])
    places = [(a, b) for a in range(3) for b in range(a)] * n
    whole["ranking_id"] = np.repeat([f"r{i}" for i in range(n)], 3)
    whole["prompt_id"] = whole["ranking_id"]
    whole["response_chosen"], whole["response_rejected"] = np.transpose(places)
    return whole.assign(n_responses=3)


@pytest.fixture(scope="module")
def report() -> Report:
    elsewhere = PairScores.from_frame(mixed(seed=1).assign(prompt_id=lambda table: "shifted " + table.prompt_id))
    return audit_tables(PairScores.from_frame(rankings()), shifted=dict.fromkeys(SHIFTED, elsewhere), settings=FEW)


@pytest.mark.parametrize("section", ["ranking", "length", "displacement", "rewards", "objectives"])
def test_a_preference_section_has_the_names_it_declares_and_no_others(report, section):
    assert set(report.section(section).estimates) == set(NAMES[section])


def test_a_table_with_the_policy_alone_has_no_other_names():
    table = mixed()[["policy_chosen", "policy_rejected"]]
    for section in audit_tables(PairScores.from_frame(table), settings=FEW).sections:
        assert set(section.estimates) <= set(NAMES[section.name])


def test_what_is_asked_for_brings_the_sections_that_are_declared(report):
    assert {section.name for section in report.sections} == {*BROUGHT["ranking"], *BROUGHT["rewards"]}
    assert [*audit_estimate_names(("rewards",))] == ["length", "displacement", "rewards", "objectives"]


def test_a_gate_can_only_be_on_what_the_inputs_allow():
    alone = audit_estimate_names(wanted_sections(None, None, None, ()))
    assert [*alone] == ["ranking", "length", "displacement"]
    assert "spinal" in audit_estimate_names(wanted_sections(None, "sft", None, ()))


def test_spinal_sections_have_the_names_they_declare():
    base, aligned = (tiny_subject(blocks=3, changed=changed, scale=1.2) for changed in (None, 3))
    traces = [spinal_trace(subject, letters(60)) for subject in (base, aligned)]
    compared = compare_spinal(*traces, subjects=(base, aligned)).section().section
    of_gradients = {"score_concentration_base", "score_concentration_aligned"}  # which were not asked for
    assert set(compared.estimates) | of_gradients == set(audit_estimate_names(("spinal",))["spinal"])
    weights = weight_spectrum(aligned, base).section().section
    assert set(weights.estimates) == set(audit_estimate_names(("weights",))["weights"])
    assert set(traces[0].section().section.estimates) == set(TRACE_NAMES)


def test_the_difference_of_efficiencies_has_one_interval_in_a_report():
    base, aligned = (spinal_trace(tiny_subject(changed=changed, scale=1.2), letters(50)) for changed in (None, 5))
    found = compare_spinal(base, aligned, controls=())
    assert "score_efficiency" not in found.estimates
    part = found.components.set_index("part").loc["efficiency"]
    assert part.value == pytest.approx(found.estimates["d_efficiency_terminal"].value)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
def test_the_doctor_s_checks_have_the_names_it_declares(zoo, tmp_path):
    llama = load(zoo["llama"])
    adapted = load(zoo["llama"], adapter=make_adapter(zoo["llama"], tmp_path / "lora"))
    half = load(zoo["llama"], dtype="bfloat16")
    sections = [doctor.examine(subject, reference=llama).section for subject in (adapted, half)]
    assert {name for section in sections for name in section.estimates} == set(doctor.NAMES)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ranking.acuracy<0.6", "no estimate 'acuracy' in section 'ranking'; perhaps ranking.accuracy"),
        ("rankng.accuracy<0.6", "no section 'rankng'; there are ranking, length, .*; perhaps ranking.accuracy"),
        ("ranking.beta_ratio<1", "no estimate 'beta_ratio' in section 'ranking'; perhaps rewards.beta_ratio"),
        ("rewards.gap_frech>0", "no estimate 'gap_frech' in section 'rewards'; perhaps .*rewards.gap_p"),
        ("ranking.zzzzz<1", "no estimate 'zzzzz' in section 'ranking'; there are accuracy, accuracy_normalised"),
        ("spinal.transport_p<1", "no section 'spinal'; there are ranking, length, displacement, rewards, objectives$"),
    ],
)
def test_a_gate_on_no_estimate_is_refused_with_what_was_meant(text, message):
    with pytest.raises(InputError, match=message):
        require_estimates([Gate.parse("ranking.accuracy<0.5"), Gate.parse(text)], NAMES)


@pytest.mark.parametrize("name", ["gap_maths", "drop_explicit_de_2", "accuracy_explicit_maths", "gap_p_de_2"])
def test_a_gate_on_a_shifted_set_that_was_named_is_accepted(name):
    gate = Gate.parse(f"rewards.{name}.low<0")
    require_estimates([gate], NAMES)
    with pytest.raises(InputError, match="no estimate"):
        require_estimates([gate], audit_estimate_names(("rewards",), ["french"]))
