"""The prompt row: what is asked, by a system message where a template shows one, else by a line in front."""

import pytest
from spinal_models import tiny_model
from tiny_tokenizer import CHAT, tiny_tokenizer

import alignscope
from alignscope import InputError
from alignscope.steering.baselines import prompted
from alignscope.steering.baselines.prompting import FORBID, shows_system

ROW = {
    "negative_input": "Name a fish.",
    "negative_output": "Cod.",
    "positive_input": "Name a fish, as a pirate.",
    "positive_output": "Cod, matey!",
    "concept": "pirate {speech}",
}
TOLD = FORBID.replace("{concept}", ROW["concept"])
REFUSES = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}" + CHAT
SILENT = "{% for m in messages if m['role'] != 'system' %}{{ m['content'] }}{% endfor %}"


TURNS = {key: [{"role": "assistant", "content": ROW[key]}] for key in ROW if key.endswith("output")} | {
    "negative_input": [{"role": "user", "content": "Name a fish."}],
    "concept": ROW["concept"],
}


def subject(template: str | None = None) -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=1, width=16), tiny_tokenizer(template=template))


def test_elicit_is_the_input_that_calls_for_the_concept():
    assert prompted(subject(), [ROW], "elicit") == (ROW["positive_input"],)


def test_suppress_is_a_system_message_where_the_template_shows_one():
    assert prompted(subject(CHAT), [ROW], "suppress") == (
        ({"role": "system", "content": TOLD}, {"role": "user", "content": ROW["positive_input"]}),
    )


@pytest.mark.parametrize("template", [None, REFUSES, SILENT])
def test_suppress_is_a_line_in_front_where_it_does_not(template):
    assert prompted(subject(template), [ROW], "suppress") == (f"{TOLD}\n{ROW['positive_input']}",)


def test_braces_of_a_concept_stay():
    assert "pirate {speech}" in prompted(subject(), [ROW], "suppress")[0]


def test_a_system_message_of_ones_own_comes_behind():
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Name a fish, as a pirate."}]
    ((system, user),) = prompted(subject(CHAT), [{**TURNS, "positive_input": turns}], "suppress")
    assert system == {"role": "system", "content": f"{TOLD}\nBe brief."}
    assert user == turns[1]


def test_messages_without_a_shown_system_get_the_line_in_their_last_user_turn():
    turns = [
        {"role": "user", "content": "Hello."},
        {"role": "assistant", "content": "Ahoy."},
        {"role": "user", "content": "Name a fish."},
    ]
    (found,) = prompted(subject(SILENT), [{**TURNS, "positive_input": turns}], "suppress")
    assert found == (*turns[:2], {"role": "user", "content": f"{TOLD}\nName a fish."})


def test_a_transcript_keeps_its_form():
    row = {**ROW, "positive_input": "\n\nHuman: Name a fish.\n\nAssistant:"}
    assert prompted(subject(), [row], "suppress")[0].endswith("Name a fish.\n\nAssistant:")


def test_an_instruction_of_ones_own_needs_no_concept():
    row = {key: value for key, value in ROW.items() if key != "concept"}
    assert prompted(subject(), [row], "suppress", instruction="Speak plainly.")[0].startswith("Speak plainly.\n")
    with pytest.raises(InputError, match="row 1: no `concept` to forbid"):
        prompted(subject(), [row], "suppress")


def test_other_directions_are_refused():
    with pytest.raises(InputError, match="expected elicit or suppress"):
        prompted(subject(), [ROW], "both")


def test_templates_that_refuse_or_drop_a_system_message_are_found_out():
    assert [shows_system(subject(template)) for template in (CHAT, None, REFUSES, SILENT)] == [
        True,
        False,
        False,
        False,
    ]
