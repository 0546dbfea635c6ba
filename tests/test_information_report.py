"""The report of differential information: a model against itself, a naive float64 loop, what must not move it."""

import copy
import math
from dataclasses import replace

import information_oracle as oracle
import pandas as pd
import peft
import pytest
import torch
from information_oracle import (
    CLOSE,
    EOS,
    PANEL,
    QUICK,
    ZOO_ROWS,
    assert_same_rates,
    histories_of,
    responses,
    saved_llama,
    strict_json,
    values,
    zoo_pair,
)
from lora_files import make_adapter
from test_scoring import many, subject, tiny_gpt2
from tiny_tokenizer import PIECES, tiny_tokenizer

import alignscope
import zoo
from alignscope import InputError, information_report
from alignscope.diagnose.identities import failed
from alignscope.probes import final_states
from alignscope.probes.loading import load

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
def same(policy):
    """A model against itself."""
    return information_report(policy, policy, many(30), beta=0.1, resamples=50)


@pytest.fixture(scope="module")
def zoo_llama(tmp_path_factory):
    return saved_llama(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def adapter(zoo_llama, tmp_path_factory):
    return make_adapter(zoo_llama, tmp_path_factory.mktemp("lora") / "dpo")


# ---- a model against itself


def test_a_model_does_not_differ_from_itself(same):
    for rates in same.rates.values():
        assert [rates[name].value for name in PANEL] == [0.0] * 4
        assert rates["entropy"].value == pytest.approx(math.log(len(PIECES)), abs=1e-12)
        assert rates["normalized_entropy"].value == pytest.approx(1.0, abs=1e-12)


def test_a_model_against_itself_reads_as_no_measurable_change(same):
    findings = same.section().findings
    assert {f.severity for f in findings if "no measurable change" in f.sentence} == {"info"}
    assert sum("no measurable change" in f.sentence for f in findings) == 2  # chosen, rejected


def test_a_model_against_itself_has_no_beta(same):
    assert same.label_law.beta.value is None
    assert same.label_law.beta.reason.startswith("not identifiable")


def test_identities_hold_for_one_model_and_for_two(same, unlike):
    for report in (same, unlike):
        assert failed(report.identities) == []
        judged = {row.name for row in report.identities if row.ok}
        assert judged == {"ratio_mass", "kl", "reverse_kl", "information", "information_excess", "swapped"}


def test_bfloat16_of_the_reference_is_below_the_floor(policy):
    half = alignscope.wrap(tiny_gpt2(0).bfloat16(), tiny_tokenizer())
    rates = information_report(half, policy, many(30), **QUICK).rates
    for name in PANEL:
        assert 0 < rates["chosen"][name].value < 2e-3


def test_swapped_models_exchange_the_divergences(policy, reference, unlike):
    there, back = values(unlike), values(information_report(reference, policy, many(30), **QUICK))
    for source in ("chosen", "rejected"):
        assert back[source]["kl"] == pytest.approx(there[source]["reverse_kl"], abs=1e-9)
        assert back[source]["reverse_kl"] == pytest.approx(there[source]["kl"], abs=1e-9)
        assert abs(back[source]["information"] - there[source]["information"]) > 1e-3  # that one is another number


def test_no_number_of_the_json_is_nan(same, unlike, policy, reference):
    lone = information_report(policy, reference, responses("p", (7, 8, EOS)), **QUICK)
    for report in (same, unlike, lone):
        assert strict_json(report)["name"] == "information"
        assert report.section().section.estimates.keys() == strict_json(report)["estimates"].keys()


@pytest.mark.parametrize("fault", [1.001, math.nan])
def test_a_head_that_does_not_give_the_models_logits_is_refused(policy, reference, monkeypatch, fault):
    head = policy.head()
    monkeypatch.setattr(policy, "head", lambda: replace(head, weight=head.weight.detach() * fault))
    with pytest.raises(InputError, match="its last states through its head differ from its own logits"):
        information_report(policy, reference, many(3), **QUICK)


# ---- against a naive loop in float64


def test_rates_are_those_of_full_logits_in_float64(policy, reference):
    first = many(1)[0]["prompt"]
    rows = [*many(8), {"prompt": first, "chosen": "a far longer answer", "rejected": "n"}]  # two of one prompt, unequal
    expected = oracle.rates(policy.model, reference.model, histories_of(rows, tiny_tokenizer()), len(PIECES))
    assert_same_rates(values(information_report(policy, reference, rows, **QUICK)), expected)


def test_log_ratios_of_responses_are_those_of_full_logits(policy, reference, unlike):
    for number, history in enumerate(histories_of(many(30), tiny_tokenizer())[:4]):
        logits = [oracle.full_logits(model.model, history, len(PIECES)) for model in (policy, reference)]
        found = unlike.positions.query(f"history == {number}")["log_ratio"].sum()
        assert found == pytest.approx(oracle.log_ratio(*logits, history.response_ids), abs=CLOSE)


@pytest.mark.parametrize(
    "options",
    [{"batch_tokens": 1}, {"batch_tokens": 60}, {"share_prefix": True}, {"share_prefix": False}],
    ids=str,
)
def test_neither_batches_nor_shared_prompts_move_a_rate(policy, reference, unlike, options):
    assert_same_rates(values(information_report(policy, reference, many(30), **options, **QUICK)), values(unlike))


def test_the_order_of_pairs_moves_no_rate(policy, reference, unlike):
    back = information_report(policy, reference, many(30)[::-1], **QUICK)
    assert_same_rates(values(back), values(unlike))
    assert back.label_law.beta.value == pytest.approx(unlike.label_law.beta.value, abs=1e-4)


def test_every_interval_of_the_section_is_of_the_level_that_was_asked_for(policy, reference, unlike):
    wide, narrow = (
        found.section().section.estimates
        for found in (unlike, information_report(policy, reference, many(30), resamples=50, level=0.5))
    )
    drawn = [name for name, estimate in wide.items() if estimate.low is not None and estimate.high > estimate.low]
    assert {"label_beta", "moved_chosen", "chosen_plausible_information"} <= {*drawn}
    for name in drawn:
        assert (wide[name].level, narrow[name].level) == (0.95, 0.5)
        assert wide[name].low <= narrow[name].low <= narrow[name].high <= wide[name].high
        assert narrow[name].high - narrow[name].low < wide[name].high - wide[name].low


def test_shards_move_no_rate(policy, reference, unlike, monkeypatch):
    monkeypatch.setattr(final_states, "SHARD_TOKENS", 100)
    assert_same_rates(values(information_report(policy, reference, many(30), **QUICK)), values(unlike))


def test_rows_of_a_head_without_a_token_move_no_rate(policy, reference, unlike):
    padded = tiny_gpt2(0)
    padded.resize_token_embeddings(len(PIECES) + 64, mean_resizing=False)
    with torch.no_grad():
        padded.transformer.wte.weight[len(PIECES) :] = 3.0  # would take most of q if they counted
    report = information_report(alignscope.wrap(padded, tiny_tokenizer()), reference, many(30), **QUICK)
    assert_same_rates(values(report), values(unlike), 1e-9)
    assert report.settings["masked_head_rows"] == 64
    assert "64 rows of a head belong to no token" in report.warnings[0]


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "padded_llama"])
def test_soft_caps_scales_and_padding_of_a_head_are_applied(name):
    models = zoo_pair(name)
    histories = histories_of(ZOO_ROWS, zoo.tokenizer())
    expected = oracle.rates(*(model.model for model in models), histories, zoo.ENTRIES)
    found = information_report(*models, ZOO_ROWS, **QUICK)
    assert_same_rates(values(found), expected)
    assert expected["chosen"]["kl"] > 10 * CLOSE  # the tolerance can fail


def test_tokens_that_both_heads_exclude_are_as_if_cut():
    models = zoo_pair("gptj")  # its head has a bias
    histories = histories_of(ZOO_ROWS, zoo.tokenizer())
    spoken = {token for history in histories for token in history.response_ids}
    last = max(spoken) + 1
    assert last < zoo.ENTRIES - 5
    expected = oracle.rates(*(model.model for model in models), histories, last)
    for model in models:
        with torch.no_grad():
            model.model.lm_head.bias[last:] = -math.inf
    assert_same_rates(values(information_report(*models, ZOO_ROWS, **QUICK)), expected)


@pytest.fixture(scope="module")
def head_adapter():
    """A PEFT model whose adapter is on the head: no simple head, so that the model itself reads its states."""
    torch.manual_seed(1)
    model = peft.get_peft_model(zoo.model("llama"), peft.LoraConfig(r=4, target_modules=["lm_head", "q_proj"]))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.2)
    return alignscope.wrap(model.eval(), zoo.tokenizer())


def test_a_head_that_is_not_simple_is_read_by_its_model(head_adapter):
    assert head_adapter.head() is None
    plain = alignscope.wrap(zoo.model("llama"), zoo.tokenizer())
    merged = copy.deepcopy(head_adapter.model).eval()
    expected = oracle.rates(merged, plain.model, histories_of(ZOO_ROWS, zoo.tokenizer()), zoo.ENTRIES)
    assert_same_rates(values(information_report(head_adapter, plain, ZOO_ROWS, **QUICK)), expected)
    assert_same_rates(
        values(information_report(head_adapter, head_adapter.without_adapter(), ZOO_ROWS, **QUICK)), expected
    )


def test_an_adapter_switched_off_is_the_reference_of_two_separate_models(zoo_llama, adapter):
    together = information_report(adapter, "adapter-disabled", ZOO_ROWS, base=zoo_llama, **QUICK)
    apart = information_report(load(adapter, base=zoo_llama), load(zoo_llama), ZOO_ROWS, **QUICK)
    pd.testing.assert_frame_equal(together.positions, apart.positions)
    assert together.settings["reference_kind"] == "adapter-disabled"
    assert values(apart)["chosen"]["kl"] > 100 * CLOSE
