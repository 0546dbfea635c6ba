"""Loading: what lies at a path is found or refused in our own words, and never measured half-loaded."""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from fnmatch import fnmatch
from pathlib import Path

import httpx
import pytest
import torch
from gguf_files import write_gguf
from lora_files import make_adapter
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import alignscope
from alignscope.diagnose.spinal_formats import packed_format
from alignscope.errors import InputError
from alignscope.probes.checkpoint_files import locate, looks_like_path
from alignscope.probes.loading import load
from alignscope.probes.opening import require_finite

IDS = torch.tensor([[1, 40, 200, 33, 7, 300]])
MASK = torch.ones_like(IDS)

# peft asks transformers by a name that transformers deprecates
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


def logits(subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.logits(IDS, MASK)


@pytest.fixture
def folder(zoo, tmp_path) -> Path:
    """A copy of the tiny Llama that a test may damage."""
    return Path(shutil.copytree(zoo["llama"], tmp_path / "model"))


@pytest.fixture(scope="module")
def llama(zoo):
    return load(zoo["llama"])


def rewrite(folder: Path, change) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_config(folder: Path, **values: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    config.update(values)
    (folder / "config.json").write_text(json.dumps({k: v for k, v in config.items() if v is not None}))


# --- a checkpoint folder


def test_logits_are_those_of_transformers(zoo, llama):
    plain = AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32).eval()
    with torch.no_grad():
        expected = plain(input_ids=IDS, attention_mask=MASK).logits
    assert torch.allclose(logits(llama), expected, atol=1e-6)
    assert llama.facts["dtype_on_disk"] == "float32"
    assert llama.facts["quantization"] is None
    assert llama.facts["unexpected_keys"] == []


def test_frozen_in_evaluation_mode_float32_whatever_the_file(folder):
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16).save_pretrained(folder)
    subject = load(folder)
    assert subject.facts["dtype_on_disk"] == "bfloat16"
    assert subject.facts["dtype"] == subject.dtype == "float32"
    assert load(folder, dtype="bfloat16").dtype == "bfloat16"


def test_sharded_folder_is_the_same_model(zoo, llama, tmp_path):
    AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32).save_pretrained(
        tmp_path, max_shard_size="100KB"
    )
    AutoTokenizer.from_pretrained(zoo["llama"]).save_pretrained(tmp_path)
    assert not (tmp_path / "model.safetensors").exists()
    sharded = load(str(tmp_path))
    assert torch.equal(logits(sharded), logits(llama))
    assert sharded.fingerprints.weights == llama.fingerprints.weights


@pytest.mark.parametrize("name", ["./nothing", "/nowhere/at/all", "model.gguf", "a/b/c", "~/no such thing", "../up"])
def test_a_path_that_does_not_exist_is_no_network_matter(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no such (folder|file)") as caught:
        load(name)
    assert not re.search(r"network|internet|connect|hub|http", str(caught.value), re.IGNORECASE)


def test_mistyped_name_in_an_existing_folder_lists_what_is_there(tmp_path, monkeypatch):
    (tmp_path / "runs" / "dpo").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"runs/dop: no such folder; runs holds: dpo"):
        load("runs/dop")
    with pytest.raises(InputError, match="no such folder"):
        load(tmp_path / "runs" / "sft")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("gpt2", False),
        ("org/model-1.5B", False),
        ("./gpt2", True),
        ("a/b/c", True),
        ("x.gguf", True),
        (Path("x"), True),
    ],
)
def test_what_looks_like_a_path(name, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert looks_like_path(name) is expected


def test_unknown_hub_id_says_so_in_one_sentence():
    with pytest.raises(InputError, match=r"no-one/has-this-model: no such folder here, and no model of that name"):
        load("no-one/has-this-model")


def test_folder_without_weights(folder):
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"a folder without weights; expected model\.safetensors"):
        load(folder)


def test_folder_without_a_model_lists_its_content(tmp_path):
    (tmp_path / "notes.md").write_text("hello")
    with pytest.raises(InputError, match=r"no model in this folder; expected config\.json.*found: notes\.md"):
        load(tmp_path)


def test_a_file_that_is_no_gguf(folder):
    with pytest.raises(InputError, match="give the folder that holds"):
        load(folder / "model.safetensors")


def test_pickled_weights_are_refused_unless_allowed(folder, llama):
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"pickled \(pytorch_model\.bin\).*allow_pickle=True"):
        load(folder)
    assert torch.equal(logits(load(folder, allow_pickle=True)), logits(llama))


def test_optimizer_state_beside_safetensors_is_no_pickled_model(folder):
    torch.save({}, folder / "optimizer.pt")
    torch.save({}, folder / "training_args.bin")
    load(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(InputError, match="without weights"):
        load(folder)


def test_truncated_safetensors_names_file_and_size(folder):
    file = folder / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match=rf"model\.safetensors.*cut short at {len(content) // 2} bytes"):
        load(folder)


def test_git_lfs_pointer_is_named(folder):
    (folder / "model.safetensors").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 5\n")
    with pytest.raises(InputError, match="git lfs pull"):
        load(folder)


def test_missing_tensor_is_named(folder):
    rewrite(folder, lambda tensors: tensors.pop("model.layers.2.mlp.up_proj.weight"))
    with pytest.raises(InputError, match=r"1 tensors missing.*model\.layers\.2\.mlp\.up_proj\.weight.*random"):
        load(folder)


def test_renamed_block_shows_both_names(folder):
    def rename(tensors: dict) -> None:
        for key in [k for k in tensors if ".layers.3." in k]:
            tensors[key.replace(".layers.3.", ".blocks.3.")] = tensors.pop(key)

    rewrite(folder, rename)
    with pytest.raises(InputError, match=r"9 tensors missing.*layers\.3.*the files hold instead: .*blocks\.3"):
        load(folder)


def test_unused_tensors_are_listed_and_harmless(folder, llama):
    rewrite(folder, lambda tensors: tensors.update({"v_head.summary.weight": torch.zeros(1, 64)}))
    subject = load(folder)
    assert subject.facts["unexpected_keys"] == ["v_head.summary.weight"]
    assert torch.equal(logits(subject), logits(llama))


def test_tensor_of_another_shape_is_named_with_both_shapes(folder):
    edit_config(folder, intermediate_size=96)
    with pytest.raises(InputError, match=r"another shape.*mlp.*\(file \(.*128.*config\.json \(.*96"):
        load(folder)


def test_weights_stored_in_8_bit_floats_are_unpacked_and_called_so(folder, llama):
    def pack(tensors: dict) -> None:
        for name in tensors:
            if name.endswith("proj.weight"):
                tensors[name] = tensors[name].to(torch.float8_e4m3fn)

    rewrite(folder, pack)
    subject = load(folder)
    assert subject.facts["quantization"] == "F8_E4M3, unpacked"
    assert subject.dtype == "float32"
    assert packed_format(subject) is None  # an ordinary model, with a notice
    assert llama.facts["quantization"] is None


def test_8_bit_floats_that_are_not_finite_are_refused_like_others():
    layer = torch.nn.Linear(4, 4)
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    require_finite(layer, "packed")
    layer.weight.view(torch.uint8)[1, 2] = 0x7F  # NaN of e4m3
    with pytest.raises(InputError, match=r"packed: NaN or infinite weights in weight \(1 of 16 values\)"):
        require_finite(layer, "packed")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_weights_that_are_not_finite_name_the_tensor_and_count(folder, value):
    def poison(tensors: dict) -> None:
        tensors["model.layers.1.self_attn.q_proj.weight"][3, 5] = value

    rewrite(folder, poison)
    with pytest.raises(InputError, match=r"model\.layers\.1\.self_attn\.q_proj\.weight \(1 of 4096 values\)"):
        load(folder)


def test_missing_shard_is_named(zoo, tmp_path):
    AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32).save_pretrained(
        tmp_path, max_shard_size="100KB"
    )
    shard = sorted(tmp_path.glob("*.safetensors"))[1]
    shard.unlink()
    with pytest.raises(InputError, match=rf"1 of \d+ weight files missing: {shard.name}"):
        load(tmp_path)


def test_no_tokenizer(folder):
    for file in folder.glob("tokenizer*"):
        file.unlink()
    with pytest.raises(InputError, match=r"no tokenizer in .*expected tokenizer\.json"):
        load(folder)


def test_tokenizer_config_alone_is_no_tokenizer(folder):
    (folder / "tokenizer.json").unlink()
    assert (folder / "tokenizer_config.json").exists()
    with pytest.raises(InputError, match="no tokenizer in"):
        load(folder)


def test_damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text('{"version": ')
    with pytest.raises(InputError, match=r"tokenizer\.json: not valid JSON"):
        load(folder)


def test_damaged_config(folder):
    (folder / "config.json").write_text("{")
    with pytest.raises(InputError, match=r"config\.json: not valid JSON"):
        load(folder)


# --- another kind of model


def test_reward_model_where_a_language_model_is_wanted(folder):
    model = AutoModelForSequenceClassification.from_pretrained(folder, num_labels=1, dtype=torch.float32)
    model.save_pretrained(folder)
    with pytest.raises(InputError, match=r"LlamaForSequenceClassification, where a language model is wanted"):
        load(folder)


def test_reward_model_with_tied_embeddings_and_no_architecture_named(folder):
    """Tied embeddings fill the language head, so nothing is missing; only the unused head tells."""
    edit_config(folder, tie_word_embeddings=True, architectures=None)

    def swap_head(tensors: dict) -> None:
        tensors.pop("lm_head.weight")
        tensors["score.weight"] = torch.zeros(1, 64)

    rewrite(folder, swap_head)
    with pytest.raises(InputError, match=r"classification head \(score\.weight\)"):
        load(folder)


def test_encoder_decoder(folder):
    edit_config(folder, model_type="t5", is_encoder_decoder=True, architectures=["T5ForConditionalGeneration"])
    with pytest.raises(InputError, match=r"encoder-decoder \(T5ForConditionalGeneration\)"):
        load(folder)


def test_custom_code_is_never_run(folder):
    (folder / "modeling.py").write_text("raise SystemExit('ran')")
    edit_config(folder, model_type="mine", auto_map={"AutoModelForCausalLM": "modeling.Mine"}, architectures=["Mine"])
    with pytest.raises(InputError, match=r"'mine' \(architectures Mine\).*its own code.*never run"):
        load(folder)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown; expected one of float32"),
        ({"device": "tpu9"}, "device 'tpu9' is unknown"),
        ({"carrier": "nnsight"}, "carrier 'nnsight' is not available"),
        ({"base": "somewhere"}, "not an adapter folder, so it takes no base"),
        ({"adapter": "/no/adapter"}, "/no/adapter: no such folder.*adapter"),
    ],
)
def test_bad_options(zoo, options, message):
    with pytest.raises(InputError, match=message):
        load(zoo["llama"], **options)


# --- what loading leaves behind


def test_local_inputs_need_no_hub_and_nothing_leaks(zoo, tmp_path):
    """A fresh process without HF_HUB_OFFLINE in which every socket fails: nothing asks, prints or stays set."""
    script = f"""
        import os, socket, warnings
        warnings.simplefilter("error")
        def refuse(*arguments, **options): raise AssertionError("asked the network")
        socket.socket.connect = socket.getaddrinfo = refuse
        import torch
        torch.set_num_threads(1)
        import alignscope
        from huggingface_hub import constants
        torch.manual_seed(3)
        expected = torch.rand(1)
        torch.manual_seed(3)
        subject = alignscope.load({str(zoo["llama"])!r}, adapter={str(make_adapter(zoo["llama"], tmp_path))!r})
        assert torch.equal(torch.rand(1), expected), "random state moved"
        assert "HF_HUB_OFFLINE" not in os.environ and constants.HF_HUB_OFFLINE is False
    """
    environment = {k: v for k, v in os.environ.items() if k not in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == done.stderr == ""


def test_loggers_and_bars_are_as_before(zoo, tmp_path, capfd):
    from transformers.utils import logging

    logging.set_verbosity_info()
    try:
        alignscope.load(write_gguf(zoo["llama"], tmp_path / "tiny.gguf"))
        assert logging.get_verbosity() == logging.INFO
        assert logging.is_progress_bar_enabled()
    finally:
        logging.set_verbosity_warning()
    assert capfd.readouterr().err == ""


# --- a hub id whose repository holds GGUF files: the hub is played by a folder


def play_hub(monkeypatch, repository: Path, cache: Path) -> list[str]:
    """snapshot_download and list_repo_files of huggingface_hub on a local folder; returns the files as downloaded."""
    fetched: list[str] = []

    def snapshot_download(name, *, revision, allow_patterns):
        target = cache / "0123abcd"
        target.mkdir(exist_ok=True)
        for file in repository.iterdir():
            if any(fnmatch(file.name, pattern) for pattern in allow_patterns):
                shutil.copy(file, target)
                fetched.append(file.name)
        return str(target)

    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    names = [file.name for file in repository.iterdir()]
    monkeypatch.setattr("huggingface_hub.list_repo_files", lambda name, revision: names)
    return fetched


def unreachable(name, revision):
    raise httpx.ConnectError("no network")


@pytest.mark.parametrize("beside", [None, "config.json"])
def test_hub_id_with_one_gguf_file_is_that_file(zoo, tmp_path, monkeypatch, beside):
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    repository.mkdir(), cache.mkdir()
    write_gguf(zoo["llama"], repository / "tiny.gguf")
    if beside:
        shutil.copy(zoo["llama"] / beside, repository)
    play_hub(monkeypatch, repository, cache)
    assert locate("owner/tiny").kind == "gguf"
    monkeypatch.setattr("huggingface_hub.list_repo_files", unreachable)  # a second time, without a network
    files = locate("owner/tiny")
    assert (files.kind, files.hub, [f.name for f in files.weights]) == ("gguf", "owner/tiny@0123abcd", ["tiny.gguf"])


def test_hub_id_with_several_gguf_files_is_a_question_and_downloads_none(tmp_path, monkeypatch):
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    repository.mkdir(), cache.mkdir()
    for name in ("a.gguf", "b.gguf", "config.json"):
        (repository / name).write_text("{}")
    fetched = play_hub(monkeypatch, repository, cache)
    with pytest.raises(InputError, match=r"owner/tiny: 2 GGUF files there .*download one of them and give its path"):
        locate("owner/tiny")
    assert fetched == ["config.json"]


def test_hub_id_with_safetensors_brings_no_gguf_beside_them(zoo, tmp_path, monkeypatch):
    repository, cache = tmp_path / "repository", tmp_path / "cache"
    shutil.copytree(zoo["llama"], repository)
    cache.mkdir()
    (repository / "tiny.gguf").write_text("")
    fetched = play_hub(monkeypatch, repository, cache)
    assert locate("owner/tiny").kind == "checkpoint"
    assert "tiny.gguf" not in fetched
