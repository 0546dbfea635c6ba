"""Where else a prompt is read out: all of its positions, none, or those of the response behind it."""

import pytest
import torch
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import CHAT, tiny_tokenizer

import alignscope
from alignscope import InputError, spinal_trace
from alignscope.probes.inputs import read_pairs

PROMPTS = letters(48, longest=20)


@pytest.fixture(scope="module")
def subject():
    return tiny_subject()


def test_all_lens_positions_are_those_beside_the_last(subject):
    trace = spinal_trace(subject, PROMPTS, lens_positions="all")
    prompt = trace.prompts[3]
    assert prompt.positions == (len(prompt.ids) - 1, *range(1, len(prompt.ids) - 1))
    ids = torch.tensor([prompt.ids])
    p = subject.logits(ids, torch.ones_like(ids))[0, 1:-1, : trace.model.vocab].double().softmax(-1)
    assert trace.readings.entropy_sampled[-1, 3] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), abs=1e-5)


def test_last_reads_no_other_position(subject):
    trace, none = (spinal_trace(subject, PROMPTS, lens_positions=value) for value in ("last", 0))
    assert trace.settings == none.settings
    assert trace.steps.angle_sampled.isna().all()


def answered(n: int = 40) -> list[dict[str, str]]:
    return [{"prompt": text, "response": f" is {text[:3]} 12"} for text in PROMPTS[:n]]


def test_a_response_is_read_behind_the_prompt_and_leaves_the_headline(subject):
    trace = spinal_trace(subject, answered(), lens_positions="response")
    alone = spinal_trace(subject, PROMPTS[:40])
    prompt = trace.prompts[0]
    end = prompt.positions[0]
    assert prompt.positions == (end, *range(end + 1, len(prompt.ids)))
    text = PROMPTS[prompt.row - 1]
    assert prompt.ids == tuple(tiny_tokenizer()(f"{text} is {text[:3]} 12")["input_ids"])  # and no <eos>
    by_row = [{p.row: angle for p, angle in zip(t.prompts, t.readings.angle.T, strict=True)} for t in (trace, alone)]
    for row in range(1, 41):  # later tokens do not reach back
        assert by_row[0][row] == pytest.approx(by_row[1][row], abs=1e-5)
    assert trace.layers.alpha.dropna().to_numpy() == pytest.approx(alone.layers.alpha.dropna().to_numpy(), abs=1e-5)
    ids = torch.tensor([prompt.ids])
    p = subject.logits(ids, torch.ones_like(ids))[0, end + 1 :, : trace.model.vocab].double().softmax(-1)
    assert trace.readings.entropy_sampled[-1, 0] == pytest.approx(-(p * p.log()).sum(-1).mean().item(), abs=1e-5)


def test_prompts_without_a_response_are_refused_with_what_to_pass(subject):
    with pytest.raises(InputError, match=r"no_response .*no `response` beside the prompt .* column `response`"):
        spinal_trace(subject, PROMPTS, lens_positions="response")


def test_the_last_turn_of_messages_and_the_chosen_answer_of_pairs_are_responses():
    subject = alignscope.wrap(tiny_model(), tiny_tokenizer(template=CHAT))
    turns = [[{"role": "user", "content": t}, {"role": "assistant", "content": t[::-1]}] for t in PROMPTS[:20]]
    pairs = read_pairs(
        [{"prompt": t[:1], "chosen": t[1:], "rejected": [{"role": "assistant", "content": "no"}]} for t in turns]
    )
    messages, chosen = (
        spinal_trace(subject, source, lens_positions="response")
        for source in ([{"prompt": t} for t in turns], pairs.prompts())
    )
    assert messages.token_hash == chosen.token_hash
    prompt = messages.prompts[0]
    said = tiny_tokenizer().decode(prompt.ids[prompt.positions[0] + 1 :])
    assert said.replace(" ", "") == PROMPTS[prompt.row - 1][::-1].replace(" ", "")  # no <end>


def test_prompt_and_response_are_cut_from_the_left_as_one(subject):
    trace = spinal_trace(subject, answered(), lens_positions="response", max_tokens=14)
    assert max(len(prompt.ids) for prompt in trace.prompts) == 14
    assert all(prompt.ids[0] == 1 for prompt in trace.prompts)  # BOS is spared
