"""Which tokens carry an update, and which rates are rounding: sums that must agree, text as it is shown, the floor."""

import information_oracle as oracle
import numpy as np
import peft
import pytest
import torch
from information_oracle import CLOSE, PANEL, QUICK, ZOO_ROWS, histories_of, read_all, saved_llama
from lora_files import make_adapter
from test_scoring import many, subject
from tiny_tokenizer import PIECES, tiny_tokenizer

import alignscope
import zoo
from alignscope import information_report
from alignscope.diagnose.information_floor import measured_floor
from alignscope.diagnose.information_tokens import attribution_totals, shown

# peft asks transformers by a name that transformers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


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


@pytest.fixture(scope="module")
def zoo_llama(tmp_path_factory):
    return saved_llama(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def adapter(zoo_llama, tmp_path_factory):
    return make_adapter(zoo_llama, tmp_path_factory.mktemp("lora") / "dpo")


# ---- which tokens


def test_sums_over_tokens_are_sums_over_positions(policy, reference):
    reading = read_all(policy, reference)
    found, table = attribution_totals(reading.attributions), reading.positions
    assert found["q"] == pytest.approx(len(table), abs=1e-9)
    assert found["kl"] == pytest.approx(table["kl"].sum(), abs=1e-9)
    assert found["plausible_information"] == pytest.approx(table["plausible_information"].sum(), abs=1e-9)


def test_the_contributions_of_every_token_sum_to_the_information(policy, reference, monkeypatch):
    monkeypatch.setattr("alignscope.diagnose.information_reading.TOP", len(PIECES))
    reading = read_all(policy, reference)
    by_position = reading.tops.groupby(["history", "position"])[["q", "contribution"]].sum()
    assert np.allclose(by_position["q"], 1, atol=1e-9)
    assert np.allclose(by_position["contribution"], reading.positions["information"], atol=1e-9)


def test_lists_of_all_positions_add_up_from_their_parts(policy, reference):
    report = information_report(policy, reference, many(30), top_tokens=len(PIECES), **QUICK)
    for column, name in (("mean_q", "full"), ("mean_policy", "full"), ("mean_reference", "full")):
        some = report.tokens[(report.tokens["list"] == name) & (report.tokens["source"] == "chosen")]
        whole = some[some["bucket"] == "all"].set_index("token")
        parts = some[some["bucket"] != "all"]
        summed = (parts[column] * parts["n_positions"]).groupby(parts["token"]).sum()
        assert set(parts["bucket"]) == {"1-5", "6-50", "end"}
        assert np.allclose(summed[whole.index], whole[column] * whole["n_positions"], atol=1e-9)
        assert whole[column].sum() == pytest.approx(1.0, abs=1e-9)


def test_the_first_of_the_full_list_has_the_largest_mean_q(policy, reference):
    report = information_report(policy, reference, many(9), **QUICK)
    q = []
    for history in histories_of(many(9), tiny_tokenizer())[::2]:
        z = [oracle.full_logits(model.model, history, len(PIECES)) for model in (policy, reference)]
        q += [*torch.from_numpy(z[0] - z[1]).softmax(-1)]
    mean = torch.stack(q).mean(0)
    first = report.tokens.query("source == 'chosen' and bucket == 'all' and list == 'full' and rank == 1").iloc[0]
    assert first["token"] == int(mean.argmax())
    assert first["mean_q"] == pytest.approx(mean.max().item(), abs=CLOSE)


def test_tokens_are_shown_as_literals_and_parts_of_characters_as_their_piece():
    tokenizer = zoo.tokenizer()
    first = tokenizer.convert_tokens_to_ids("Ã")  # the byte C3, the first half of an accented letter
    assert tokenizer.decode([first]) == "\ufffd"
    assert shown(tokenizer, first) == "Ã"
    newline = tokenizer.convert_tokens_to_ids("Ċ")
    assert shown(tokenizer, newline) == repr("\n")


def test_contexts_are_what_stands_before_and_at_most_40_characters(policy, reference):
    rows = [{"prompt": "x" * 45 + ":", "chosen": "q", "rejected": "r"}]
    tokens = information_report(policy, reference, rows, eos="none", **QUICK).tokens
    assert tokens["context"].str.len().max() == 40
    prompt = tiny_tokenizer()(rows[0]["prompt"])["input_ids"]
    assert set(tokens["context"]) == {"", tiny_tokenizer().decode(prompt)[-40:]}


# ---- noise floor


def test_the_floor_is_measured_in_another_dtype_and_batch(unlike):
    floor = unlike.noise_floor
    assert floor.measured.keys() == {"bfloat16", "batches of one"}
    assert all(0 < floor.measured["bfloat16"][name] < 2e-3 for name in PANEL)
    assert max(floor.measured["batches of one"].values()) < 1e-9
    assert (floor.effective, floor.n_histories, floor.reason) == (2e-3, 32, None)


def state_of(model) -> list:
    """Weights, gradients, mode, and which adapters are on."""
    switches = [
        (name, module.active_adapters, module.disable_adapters)
        for name, module in model.named_modules()
        if isinstance(getattr(module, "disable_adapters", None), bool)
    ]
    weights = [(name, p.requires_grad, p.dtype, p.detach().clone()) for name, p in model.named_parameters()]
    return [switches, [row[:3] for row in weights], [row[3] for row in weights], model.training]


def test_the_floor_of_an_adapter_switched_off_leaves_the_live_model_alone(zoo_llama, adapter):
    base = zoo.model("llama")
    model = peft.PeftModel.from_pretrained(base, adapter, is_trainable=True).train()
    off = alignscope.wrap(model, zoo.tokenizer()).without_adapter()
    some = histories_of(ZOO_ROWS, zoo.tokenizer())
    before = state_of(model)
    found = measured_floor(off, some, vocab=zoo.ENTRIES)
    after = state_of(model)
    assert before[:2] == after[:2]
    assert before[3] is after[3] is True
    assert all(torch.equal(a, b) for a, b in zip(before[2], after[2], strict=True))
    plain = measured_floor(alignscope.wrap(zoo.model("llama"), zoo.tokenizer()), some, vocab=zoo.ENTRIES)
    for name in PANEL:  # the copy has its adapter off, too
        assert found.measured["bfloat16"][name] == pytest.approx(plain.measured["bfloat16"][name], rel=1e-6)


def test_quantised_weights_have_no_floor_in_another_dtype_and_say_why(policy):
    quantised = subject(0)
    quantised.model.is_quantized = True
    found = measured_floor(quantised, histories_of(many(3), tiny_tokenizer()), vocab=len(PIECES))
    assert found.measured.keys() == {"batches of one"}
    assert "quantised" in found.reason
    assert found.effective == 2e-3
