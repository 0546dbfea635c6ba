"""Fingerprints: the same tensors give the same hash however they are stored; one bit gives another."""

import hashlib
import json
import os
import shutil
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignscope.probes import fingerprint as module
from alignscope.probes.fingerprint import fingerprint, state_hash, tokenizer_hash, weights_hash, with_adapter


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("ALIGNSCOPE_CACHE", str(folder))
    return folder


@pytest.fixture
def tensors():
    torch.manual_seed(0)
    return {"b": torch.randn(3, 4), "a": torch.randn(5).bfloat16(), "c": torch.arange(6)}


def test_hash_of_two_tensors_by_hand(tmp_path):
    save_file({"z": torch.tensor([1.0, -2.0]), "y": torch.tensor([[7]], dtype=torch.int8)}, tmp_path / "m.safetensors")
    expected = hashlib.sha256()
    expected.update(json.dumps(["y", "I8", [1, 1]]).encode() + b"\x07")
    expected.update(json.dumps(["z", "F32", [2]]).encode() + b"\x00\x00\x80\x3f\x00\x00\x00\xc0")
    assert weights_hash([tmp_path / "m.safetensors"]) == expected.hexdigest()


def test_sharded_and_unsharded_agree(tensors, tmp_path):
    save_file(tensors, tmp_path / "whole.safetensors")
    save_file({"c": tensors["c"], "a": tensors["a"]}, tmp_path / "2.safetensors")
    save_file({"b": tensors["b"]}, tmp_path / "1.safetensors")
    whole = weights_hash([tmp_path / "whole.safetensors"])
    assert weights_hash([tmp_path / "1.safetensors", tmp_path / "2.safetensors"]) == whole
    assert weights_hash([tmp_path / "2.safetensors", tmp_path / "1.safetensors"]) == whole


def test_sharded_and_unsharded_save_of_one_model_agree(zoo, tmp_path):
    AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32).save_pretrained(
        tmp_path, max_shard_size="100KB"
    )
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 2
    assert weights_hash(shards) == weights_hash([zoo["llama"] / "model.safetensors"])


@pytest.mark.parametrize("change", ["bit", "name", "shape", "dtype"])
def test_any_change_of_a_tensor_gives_another_hash(tensors, change):
    before = state_hash(tensors)
    changed = dict(tensors)
    if change == "bit":
        changed["b"] = tensors["b"].clone()
        changed["b"].view(torch.int32)[2, 3] ^= 1
        assert (changed["b"] - tensors["b"]).abs().max() < 1e-6
    elif change == "name":
        changed["d"] = changed.pop("b")
    elif change == "shape":
        changed["b"] = tensors["b"].reshape(4, 3)
    else:
        changed["c"] = tensors["c"].int()
    assert state_hash(changed) != before


def test_a_file_and_its_tensors_in_memory_agree(tensors, tmp_path):
    save_file(tensors, tmp_path / "m.safetensors")
    assert weights_hash([tmp_path / "m.safetensors"]) == state_hash(tensors)


def test_cached_by_size_and_time_and_renewed_when_the_file_changes(tensors, tmp_path, own_cache, monkeypatch):
    file = tmp_path / "m.safetensors"
    save_file(tensors, file)
    monkeypatch.setattr(module, "_RACY_SECONDS", -1.0)
    first = weights_hash([file])
    (entry,) = (own_cache / "fingerprints").iterdir()
    assert entry.read_text() == first
    entry.write_text("0" * 64)
    assert weights_hash([file]) == "0" * 64  # so the second call reads no weights
    tensors["b"][0, 0] += 1
    time.sleep(0.02)
    save_file(tensors, file)
    assert weights_hash([file]) not in (first, "0" * 64)


def test_a_file_written_just_now_is_not_cached(tensors, tmp_path, own_cache):
    file = tmp_path / "m.safetensors"
    save_file(tensors, file)
    weights_hash([file])
    assert not (own_cache / "fingerprints").exists()


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(tensors, tmp_path, monkeypatch):
    (tmp_path / "taken").write_text("a file where the cache folder should be")
    monkeypatch.setenv("ALIGNSCOPE_CACHE", str(tmp_path / "taken"))
    monkeypatch.setattr(module, "_RACY_SECONDS", -1.0)
    save_file(tensors, tmp_path / "m.safetensors")
    assert weights_hash([tmp_path / "m.safetensors"]) == state_hash(tensors)


def test_config_hash_ignores_paths_versions_and_dtype_and_nothing_else():
    def config_hash(**config: object) -> str:
        return fingerprint(weights="w", config=config, tokenizer=None).config

    plain = config_hash(hidden_size=64, model_type="llama")
    assert config_hash(model_type="llama", hidden_size=64, _name_or_path="/a", dtype="bfloat16") == plain
    assert config_hash(model_type="llama", hidden_size=64, transformers_version="5", torch_dtype="x") == plain
    assert config_hash(model_type="llama", hidden_size=65) != plain


def test_no_part_depends_on_the_path(zoo, tmp_path):
    moved = Path(shutil.copytree(zoo["llama"], tmp_path / "elsewhere"))

    def whole(folder: Path) -> object:
        config = json.loads((folder / "config.json").read_text())
        weights = weights_hash([folder / "model.safetensors"])
        return fingerprint(weights=weights, config=config, tokenizer=AutoTokenizer.from_pretrained(folder))

    assert whole(moved) == whole(zoo["llama"])


def test_tokenizer_hash_ignores_use_and_sees_content(zoo):
    tokenizer = AutoTokenizer.from_pretrained(zoo["llama"])
    before = tokenizer_hash(tokenizer)
    tokenizer(["a", "a longer text"], padding=True, truncation=True, max_length=3)
    tokenizer.pad_token = tokenizer.eos_token
    assert tokenizer_hash(tokenizer) == before
    tokenizer.add_tokens(["<new>"])
    assert tokenizer_hash(tokenizer) != before


def test_template_is_kept_apart_and_changes_the_whole(zoo):
    tokenizer = AutoTokenizer.from_pretrained(zoo["llama"])
    before = fingerprint(weights="w", config={}, tokenizer=tokenizer)
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    after = fingerprint(weights="w", config={}, tokenizer=tokenizer)
    assert (after.tokenizer, after.weights, after.config) == (before.tokenizer, before.weights, before.config)
    assert after.template != before.template
    assert after.combined != before.combined
    tokenizer.chat_template = None
    assert fingerprint(weights="w", config={}, tokenizer=tokenizer).template is None


def test_adapter_enters_with_its_base():
    base = fingerprint(weights="w", config={}, tokenizer=None)
    one = with_adapter(base, weights="x", config={"r": 8, "base_model_name_or_path": "/here", "peft_version": "1"})
    same = with_adapter(base, weights="x", config={"r": 8, "base_model_name_or_path": "there", "inference_mode": True})
    assert one == same
    assert with_adapter(base, weights="x", config={"r": 16}).combined != one.combined
    assert with_adapter(base, weights="y", config={"r": 8}).combined != one.combined
    other = fingerprint(weights="v", config={}, tokenizer=None)
    assert with_adapter(other, weights="x", config={"r": 8}).combined != one.combined
    assert base.combined not in (one.combined, other.combined)


def test_time_stamps_do_not_enter(tensors, tmp_path):
    file = tmp_path / "m.safetensors"
    save_file(tensors, file)
    before = weights_hash([file])
    os.utime(file, (1, 1))
    assert weights_hash([file]) == before
    assert load_file(file)["c"].tolist() == list(range(6))
