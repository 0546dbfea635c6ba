"""Saves between two models, killed runs, and one model at a time: the same numbers, in other ways."""

import gc
import json
import shutil
import weakref

import pandas as pd
import pytest
import torch
from information_oracle import QUICK, ZOO_ROWS, assert_same_rates, saved_llama, values, zoo_pair
from lora_files import make_adapter
from test_scoring import Forwards, many, subject, tiny_gpt2
from tiny_tokenizer import tiny_tokenizer

import alignscope
import zoo
from alignscope import InputError, information_report
from alignscope.diagnose import information_turns
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
def zoo_llama(tmp_path_factory):
    return saved_llama(tmp_path_factory.mktemp("base") / "llama")


@pytest.fixture(scope="module")
def adapter(zoo_llama, tmp_path_factory):
    return make_adapter(zoo_llama, tmp_path_factory.mktemp("lora") / "dpo")


# ---- the saves between, and a run that goes on


def test_updates_of_a_chain_are_those_of_reports_of_their_own(policy, reference):
    first, second = subject(2), subject(3)
    chain = information_report(policy, reference, many(9), via={"a": first, "b": second}, **QUICK)
    steps = {("reference", "a"): (first, reference), ("reference", "b"): (second, reference),
             ("a", "b"): (second, first), ("b", "policy"): (policy, second),
             ("reference", "policy"): (policy, reference)}  # fmt: skip
    assert {*zip(chain.updates["from"], chain.updates["to"], strict=True)} == {*steps}
    for (before, after), models in steps.items():
        alone = information_report(*models, many(9), **QUICK)
        some = chain.updates[(chain.updates["from"] == before) & (chain.updates["to"] == after)]
        assert {*some["bucket"]} == {"all", *alone.profile["bucket"]}
        for row in some[some["bucket"] == "all"].to_dict("records"):
            expected = alone.rates[row["source"]][row["measure"]]
            assert (row["value"], row["n"], row["reason"]) == (expected.value, expected.n, expected.reason)


def test_an_adapter_between_that_names_no_base_is_put_on_the_reference(zoo_llama, adapter, tmp_path):
    shutil.copytree(adapter, tmp_path / "lora")
    config = json.loads((adapter / "adapter_config.json").read_text())
    moved = json.dumps(config | {"base_model_name_or_path": "/a/path/elsewhere"})
    (tmp_path / "lora" / "adapter_config.json").write_text(moved)
    reference, policy = load(zoo_llama), alignscope.wrap(zoo_pair("llama")[0].model, zoo.tokenizer())
    chain = information_report(policy, reference, ZOO_ROWS, via={"lora": tmp_path / "lora"}, **QUICK).updates
    alone = information_report(load(adapter, base=zoo_llama), reference, ZOO_ROWS, **QUICK)
    found = chain.query("to == 'lora' and source == 'chosen' and measure == 'kl' and bucket == 'all'")["value"].item()
    assert found == pytest.approx(alone.rates["chosen"]["kl"].value, abs=1e-12)


class KilledError(Exception):
    """What a kill does to a run, as far as a test can raise it."""


def test_a_killed_run_reads_no_shard_again(policy, reference, unlike, monkeypatch, tmp_path):
    monkeypatch.setattr(final_states, "SHARD_TOKENS", 40)

    def kill(stage: str, done: int, total: int) -> None:
        if stage == "information":
            raise KilledError

    options = {"share_prefix": False, "shards": tmp_path} | QUICK
    with Forwards(policy, reference) as first, pytest.raises(KilledError):
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
            raise KilledError

    with pytest.raises(KilledError):
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
