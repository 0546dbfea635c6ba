"""The whole report of differential information: exact answers, a naive float64 loop, what must not move it, faults."""

import copy
import gc
import json
import math
import tempfile
import weakref

import information_oracle as oracle
import numpy as np
import pandas as pd
import peft
import pytest
import torch
import zoo
from lora_files import make_adapter
from test_scoring import Forwards, many, subject, tiny_gpt2
from tiny_tokenizer import PIECES, tiny_tokenizer

import alignscope
from alignscope import InputError, information_report
from alignscope.diagnose import information_turns
from alignscope.diagnose.history_sets import encoded_histories, history_input
from alignscope.diagnose.identities import failed
from alignscope.diagnose.information_analysis import Resampling, candidate_sets
from alignscope.diagnose.information_floor import measured_floor
from alignscope.diagnose.information_reading import Tail, read_information
from alignscope.diagnose.information_tokens import attribution_totals, shown
from alignscope.probes import final_states
from alignscope.probes.encoding import Encoder, TextPolicy
from alignscope.probes.histories import History
from alignscope.probes.loading import load

# peft asks transformers by a name that transformers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

PANEL = ("information", "plausible_information", "kl", "reverse_kl")
CLOSE = 1e-5  # nats a token: float32 states against float64 throughout
QUICK = {"resamples": 20, "measure_floor": False}
EOS = PIECES["<eos>"]


def histories_of(rows: list[dict], tokenizer, **options) -> list[History]:
    encoder = Encoder(tokenizer, TextPolicy(**options), vocab_rows=len(tokenizer))
    return [*encoded_histories(history_input(rows), encoder, vocab_rows=len(tokenizer)).histories]


def values(report) -> dict[str, dict[str, float]]:
    return {source: {name: e.value for name, e in found.items()} for source, found in report.rates.items()}


def assert_same_rates(found, expected, tolerance: float = CLOSE) -> None:
    assert found.keys() == expected.keys()
    for source in expected:
        assert found[source] == pytest.approx(expected[source], abs=tolerance), source


def strict_json(report) -> dict:
    """The section as JSON; a NaN or Infinity in it raises."""

    def refuse(name: str):
        raise AssertionError(f"{name} in the JSON")

    return json.loads(report.section().section.model_dump_json(), parse_constant=refuse)


def responses(prompt: str, *given: tuple[int, ...], **more) -> list[History]:
    return [History(prompt_id=prompt, prompt_ids=(1, 5, 6), response_ids=ids, **more) for ids in given]


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


# ---- against a naive loop in float64


def test_rates_are_those_of_full_logits_in_float64(policy, reference):
    rows = many(9)
    expected = oracle.rates(policy.model, reference.model, histories_of(rows, tiny_tokenizer()), len(PIECES))
    assert_same_rates(values(information_report(policy, reference, rows, **QUICK)), expected)


def test_log_ratios_of_responses_are_those_of_full_logits(policy, reference, unlike):
    for row, history in enumerate(histories_of(many(30), tiny_tokenizer())[:4]):
        logits = [oracle.full_logits(model.model, history, len(PIECES)) for model in (policy, reference)]
        found = unlike.positions.query("history == @row")["log_ratio"].sum()
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


def zoo_pair(name: str):
    """An architecture's random model, and the same with every weight moved a little."""
    moved = zoo.model(name)
    torch.manual_seed(7)
    with torch.no_grad():
        for parameter in moved.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return [alignscope.wrap(model.eval(), zoo.tokenizer()) for model in (moved, zoo.model(name))]


ZOO_ROWS = [
    {"prompt": "The quick brown fox\n", "chosen": "jumps over", "rejected": "sets slowly behind"},
    {"prompt": "In the morning\n", "chosen": "the children went", "rejected": "nobody"},
]


@pytest.mark.parametrize("name", ["gemma2", "cohere", "granite", "padded_llama"])
def test_soft_caps_scales_and_padding_of_a_head_are_applied(name):
    models = zoo_pair(name)
    histories = histories_of(ZOO_ROWS, zoo.tokenizer())
    expected = oracle.rates(*(model.model for model in models), histories, zoo.ENTRIES)
    found = information_report(*models, ZOO_ROWS, **QUICK)
    assert_same_rates(values(found), expected)
    assert expected["chosen"]["kl"] > 10 * CLOSE  # the tolerance can fail


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


@pytest.fixture(scope="module")
def adapter(zoo_llama, tmp_path_factory):
    return make_adapter(zoo_llama, tmp_path_factory.mktemp("lora") / "dpo")


@pytest.fixture(scope="module")
def zoo_llama(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "llama"
    zoo.model("llama").save_pretrained(folder)
    zoo.tokenizer().save_pretrained(folder)
    return folder


def test_an_adapter_switched_off_is_the_reference_of_two_separate_models(zoo_llama, adapter):
    together = information_report(adapter, "adapter-disabled", ZOO_ROWS, base=zoo_llama, **QUICK)
    apart = information_report(load(adapter, base=zoo_llama), load(zoo_llama), ZOO_ROWS, **QUICK)
    pd.testing.assert_frame_equal(together.positions, apart.positions)
    assert together.settings["reference_kind"] == "adapter-disabled"
    assert values(apart)["chosen"]["kl"] > 100 * CLOSE


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


def read_all(policy, reference, rows=None):
    """The reading inside a report."""
    histories = histories_of(rows or many(30), tiny_tokenizer())
    sequences = [history.sequence for history in histories]
    with tempfile.TemporaryDirectory() as folder:
        sides = [
            (final_states.write_states(model, sequences, f"{folder}/{i}"), Tail.of(model))
            for i, model in enumerate((policy, reference))
        ]
        return read_information(*sides, histories, vocab=len(PIECES), end_id=EOS)


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
    with pytest.raises(InputError, match="no response token is left: of 366 positions none .*366 non_finite"):
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
    with pytest.raises(InputError, match="1 of 1 histories cannot be read.*empty_response"):
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


# ---- the saves between, and a run that goes on


def test_updates_of_a_chain_are_those_of_reports_of_their_own(policy, reference):
    first, second = subject(2), subject(3)
    chain = information_report(policy, reference, many(9), via={"a": first, "b": second}, **QUICK)
    steps = {("GPT2LMHeadModel", "a"): (first, reference), ("GPT2LMHeadModel", "b"): (second, reference),
             ("a", "b"): (second, first), ("b", "GPT2LMHeadModel"): (policy, second),
             ("GPT2LMHeadModel", "GPT2LMHeadModel"): (policy, reference)}  # fmt: skip
    assert {*zip(chain.updates["from"], chain.updates["to"], strict=True)} == {*steps}
    for (before, after), models in steps.items():
        alone = information_report(*models, many(9), **QUICK)
        some = chain.updates[(chain.updates["from"] == before) & (chain.updates["to"] == after)]
        for row in some.to_dict("records"):
            expected = alone.rates[row["source"]][row["measure"]]
            assert (row["value"], row["n"], row["reason"]) == (expected.value, expected.n, expected.reason)


def test_an_adapter_between_is_put_on_the_references_base(zoo_llama, adapter):
    reference, policy = load(zoo_llama), alignscope.wrap(zoo_pair("llama")[0].model, zoo.tokenizer())
    chain = information_report(policy, reference, ZOO_ROWS, via={"lora": adapter}, **QUICK).updates
    alone = information_report(load(adapter, base=zoo_llama), reference, ZOO_ROWS, **QUICK)
    found = chain.query("to == 'lora' and source == 'chosen' and measure == 'kl'")["value"].item()
    assert found == pytest.approx(alone.rates["chosen"]["kl"].value, abs=1e-12)


class Killed(Exception):
    """What a kill does to a run, as far as a test can raise it."""


def test_a_killed_run_reads_no_shard_again(policy, reference, unlike, monkeypatch, tmp_path):
    monkeypatch.setattr(final_states, "SHARD_TOKENS", 40)

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "information":
            raise Killed

    options = {"share_prefix": False, "shards": tmp_path} | QUICK
    with Forwards(policy, reference) as first, pytest.raises(Killed):
        information_report(policy, reference, many(30), progress=kill, **options)
    assert len([*(tmp_path / "policy").iterdir()]) > 3
    with Forwards(policy, reference) as second:
        report = information_report(policy, reference, many(30), **options)
    assert first.rows == 2 * 60 + 2  # and one row a model that shows its states to be exact
    assert second.rows == 2
    assert_same_rates(values(report), values(unlike))
    assert not [*tmp_path.rglob("*.safetensors")]


def test_a_run_killed_in_its_last_reading_keeps_its_states(policy, reference, tmp_path):
    def kill(stage: str, done: int, total: int) -> None:
        if stage == "noise floor":
            raise Killed

    with pytest.raises(Killed):
        information_report(policy, reference, many(5), progress=kill, shards=tmp_path, resamples=20)
    assert len([*tmp_path.rglob("*.safetensors")]) == 2


# ---- one model at a time


@pytest.fixture(scope="module")
def two_folders(tmp_path_factory):
    folders = []
    for seed in (0, 1):
        folders.append(tmp_path_factory.mktemp("models") / f"m{seed}")
        tiny_gpt2(seed).save_pretrained(folders[-1])
        tiny_tokenizer().save_pretrained(folders[-1])
    return folders


def test_one_at_a_time_gives_the_same_numbers(two_folders):
    at_once = information_report(*two_folders, many(9), **QUICK)
    in_turn = information_report(*two_folders, many(9), one_at_a_time=True, **QUICK)
    pd.testing.assert_frame_equal(in_turn.positions, at_once.positions)
    pd.testing.assert_frame_equal(in_turn.tokens, at_once.tokens)
    assert in_turn.rates == at_once.rates
    assert (in_turn.settings, in_turn.policy, in_turn.warnings) == (at_once.settings, at_once.policy, at_once.warnings)


def test_the_policy_is_gone_before_the_reference_is_loaded(two_folders, monkeypatch):
    plain, seen, alive = information_turns.load_control, [], []

    def watched(checkpoint, *args, **options):
        alive.append([name for name, model in seen if model() is not None])
        found = plain(checkpoint, *args, **options)
        seen.append((checkpoint.name, weakref.ref(found.model)))
        return found

    monkeypatch.setattr(information_turns, "load_control", watched)
    monkeypatch.setattr("alignscope.diagnose.information_chain.load_control", watched)
    information_report(
        *two_folders, many(5), one_at_a_time=True, via={"a": two_folders[1], "b": two_folders[0]}, **QUICK
    )
    assert [name for name, _ in seen] == ["m0", "m1", "m1", "m0"]  # policy, reference, saves a and b
    assert alive == [[], [], [], []]
    gc.collect()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"policy": subject(0)}, "both models are given as paths"),
        ({"reference": "adapter-disabled"}, "one set of weights"),
        ({"sequence": "fixed_length"}, "draws from both models at once"),
        ({"paper_style": True}, "draws from both models at once"),
    ],
)
def test_what_cannot_be_read_in_turn_is_refused(two_folders, change, message):
    given = {"policy": two_folders[0], "reference": two_folders[1], "pairs_or_histories": many(3)} | change
    with pytest.raises(InputError, match=f"--one-at-a-time.*{message}"):
        information_report(**given, one_at_a_time=True, **QUICK)


def test_an_adapter_on_the_reference_is_not_read_in_turn(zoo_llama, adapter):
    with pytest.raises(InputError, match="one set of weights"):
        information_report(adapter, zoo_llama, ZOO_ROWS, one_at_a_time=True, **QUICK)


def test_a_policy_that_reads_its_own_states_is_not_let_go(zoo_llama, tmp_path):
    on_head = make_adapter(zoo_llama, tmp_path / "head", target_modules=["lm_head"])
    other = tmp_path / "other"
    zoo_pair("llama")[0].model.save_pretrained(other)
    zoo.tokenizer().save_pretrained(other)
    with pytest.raises(InputError, match="is not simple"):
        information_report(on_head, other, ZOO_ROWS, base=zoo_llama, one_at_a_time=True, **QUICK)


def test_a_reference_that_reads_less_says_what_to_do(two_folders, tmp_path):
    short = tiny_gpt2(1)
    short.config.n_positions = 16
    short.transformer.wpe = torch.nn.Embedding.from_pretrained(short.transformer.wpe.weight[:16].detach())
    short.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    rows = [*many(9), *({"prompt": f"q{i}", "chosen": "y", "rejected": "z"} for i in range(9))]
    options = {"one_at_a_time": True, "max_invalid": 0.9} | QUICK
    with pytest.raises(InputError, match="reads at most 16 tokens"):
        information_report(two_folders[0], tmp_path, rows, **options)
    cut = information_report(two_folders[0], tmp_path, rows, max_length=16, **options)
    at_once = information_report(two_folders[0], tmp_path, rows, **options | {"one_at_a_time": False})
    assert_same_rates(values(cut), values(at_once), 1e-9)
