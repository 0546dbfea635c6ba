"""Reward models: which head, which token; one text's reward never moves with its batch."""

import json
import shutil
from pathlib import Path

import peft
import pytest
import torch
from gguf_files import write_gguf
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignscope.errors import InputError
from alignscope.probes.reward import load_reward
from alignscope.probes.subject import RewardSubject

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")

EOS = 2


def classifier(base: Path, out: Path, *, labels: int = 1, pad: int | None = 0, seed: int = 0) -> Path:
    torch.manual_seed(seed)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=labels, dtype=torch.float32)
    model.config.pad_token_id = pad
    with torch.no_grad():
        model.score.weight.normal_()
    model.save_pretrained(out)
    AutoTokenizer.from_pretrained(base).save_pretrained(out)
    return out


@pytest.fixture(scope="module")
def folder(zoo, tmp_path_factory) -> Path:
    return classifier(zoo["llama"], tmp_path_factory.mktemp("reward"))


@pytest.fixture(scope="module")
def rows() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(7, 400, (n,), generator=generator).tolist() for n in (3, 9, 1, 17, 9, 5, 30, 2)]


def padded(rows: list[list[int]], pad: int = 0, extra: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(map(len, rows)) + extra
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)] = torch.tensor(row)
        mask[i, : len(row)] = 1
    return ids, mask


def one_by_one(judge, rows: list[list[int]]) -> torch.Tensor:
    return torch.cat([judge.rewards(*padded([row])) for row in rows])


def test_rewards_are_those_of_transformers(folder, rows):
    """One unpadded row at a time through the model's own forward."""
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        expected = torch.cat([model(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
    judge = load_reward(folder)
    assert isinstance(judge, RewardSubject)
    assert torch.allclose(judge.rewards(*padded(rows)), expected, atol=1e-5)
    assert judge.facts["readout_error"] <= 1e-5


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("pad", [0, EOS, None], ids=["pad", "pad is eos", "no pad id"])
@pytest.mark.parametrize("readout", ["model", "last"])
def test_batch_of_eight_equals_one_by_one(zoo, tmp_path, rows, name, pad, readout):
    """Whatever stands in the padding, the pad id of the config included."""
    judge = load_reward(classifier(zoo[name], tmp_path, pad=pad), readout=readout)
    rows = [[*row, EOS] for row in rows]
    alone = one_by_one(judge, rows)
    for filler in (0, EOS, 300):
        batch = judge.rewards(*padded(rows, filler, extra=4))
        assert batch.dtype == torch.float32
        assert torch.allclose(batch, alone, atol=1e-5)


def test_pad_is_eos_reads_the_token_before_the_end_unless_told_otherwise(zoo, tmp_path):
    folder = classifier(zoo["llama"], tmp_path, pad=EOS)
    ids, mask = padded([[40, 50, 60, EOS], [40, 50, 60]])
    judge, last = load_reward(folder), load_reward(folder, readout="last")
    assert judge.readout_positions(ids, mask).tolist() == [2, 2]
    assert last.readout_positions(ids, mask).tolist() == [3, 2]
    assert judge.facts["pad_is_eos"] is True
    assert judge.facts["readout_token"] == "the last token that is not the pad id 2"
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.no_grad():
        own = float(model(input_ids=ids[:1], attention_mask=mask[:1]).logits[0, 0])
    assert float(judge.rewards(ids, mask)[0]) == pytest.approx(own, abs=1e-5)
    assert abs(float(last.rewards(ids, mask)[0]) - own) > 1e-3
    assert float(last.rewards(ids, mask)[1]) == pytest.approx(float(judge.rewards(ids, mask)[1]), abs=1e-6)


def test_row_of_pad_ids_alone_is_read_at_its_first_token(zoo, tmp_path):
    judge = load_reward(classifier(zoo["llama"], tmp_path, pad=EOS))
    assert judge.readout_positions(*padded([[EOS, EOS], [9, 8]])).tolist() == [0, 1]


def test_several_outputs_need_an_index(zoo, tmp_path, rows):
    folder = classifier(zoo["llama"], tmp_path, labels=3)
    with pytest.raises(
        InputError, match=r"3 outputs \(0: LABEL_0, 1: LABEL_1, 2: LABEL_2\).*reward_index=\(pos, neg\)"
    ):
        load_reward(folder)
    with pytest.raises(InputError, match="reward_index=3, but the outputs are 0 to 2"):
        load_reward(folder, reward_index=3)
    batch = padded(rows)
    outputs = [load_reward(folder, reward_index=i).rewards(*batch) for i in range(3)]
    assert not torch.allclose(outputs[0], outputs[2])
    difference = load_reward(folder, reward_index=(2, 0)).rewards(*batch)
    assert torch.allclose(difference, outputs[2] - outputs[0], atol=1e-6)


def test_config_that_names_no_labels_takes_them_from_the_head(zoo, tmp_path, folder, rows):
    """Without id2label transformers makes two outputs, and the one on disk would not fit."""
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    config = json.loads((copy / "config.json").read_text())
    for name in ("id2label", "label2id", "num_labels"):
        config.pop(name, None)
    (copy / "config.json").write_text(json.dumps(config))
    assert torch.equal(load_reward(copy).rewards(*padded(rows)), load_reward(folder).rewards(*padded(rows)))


def test_language_model_folder_is_refused(zoo, tmp_path):
    with pytest.raises(InputError, match=r"no reward head in it \(LlamaForCausalLM\).*random head"):
        load_reward(zoo["llama"])
    with pytest.raises(InputError, match=r"no reward head in it \(GGUF file\)"):
        load_reward(write_gguf(zoo["llama"], tmp_path / "tiny.gguf"))


def test_value_head_file_is_refused_and_columns_are_offered(zoo, tmp_path):
    copy = Path(shutil.copytree(zoo["llama"], tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors") | {"v_head.summary.weight": torch.zeros(1, 64)}
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match="explicit_chosen and explicit_rejected"):
        load_reward(copy)


def test_missing_backbone_tensor_is_named(folder, tmp_path):
    copy = Path(shutil.copytree(folder, tmp_path / "copy"))
    tensors = load_file(copy / "model.safetensors")
    tensors.pop("model.layers.0.mlp.down_proj.weight")
    save_file(tensors, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InputError, match=r"1 tensors missing.*layers\.0\.mlp\.down_proj"):
        load_reward(copy)


@pytest.mark.parametrize("name", ["./nothing", "/nowhere"])
def test_missing_folder(name):
    with pytest.raises(InputError, match="no such folder"):
        load_reward(name)


def reward_adapter(base: Path, out: Path, *, save_head: bool = True) -> Path:
    torch.manual_seed(3)
    model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = 0
    config = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj", "v_proj"], r=4)
    adapted = peft.get_peft_model(model, config)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if parameter.requires_grad:
                parameter.normal_(std=1.0 if "score" in name else 0.1)
    adapted.save_pretrained(out)
    if not save_head:
        file = out / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(file).items() if "score" not in k}, file)
    return out


def test_adapter_brings_the_head_onto_a_language_model(zoo, tmp_path, rows):
    """Two loads agree: nothing of the random head that transformers makes is left."""
    folder = reward_adapter(zoo["llama"], tmp_path)
    judge = load_reward(folder)
    first = judge.rewards(*padded(rows))
    torch.manual_seed(99)
    assert torch.equal(load_reward(folder, base=zoo["llama"]).rewards(*padded(rows)), first)
    assert torch.allclose(one_by_one(judge, rows), first, atol=1e-5)
    head = load_file(folder / "adapter_model.safetensors")["base_model.model.score.weight"]
    assert torch.equal(judge.model.score.modules_to_save["default"].weight, head)
    assert judge.facts["base"] == str(zoo["llama"])


def test_adapter_on_a_gguf_base(zoo, tmp_path, rows):
    folder = reward_adapter(zoo["llama"], tmp_path)
    on_folder = load_reward(folder).rewards(*padded(rows))
    judge = load_reward(folder, base=write_gguf(zoo["llama"], tmp_path / "base.gguf"))
    assert torch.allclose(judge.rewards(*padded(rows)), on_folder, atol=1e-5)


def test_adapter_without_its_head_is_refused(zoo, tmp_path):
    with pytest.raises(InputError, match=r"no head in the adapter and none in its base .*modules_to_save"):
        load_reward(reward_adapter(zoo["llama"], tmp_path, save_head=False))


def test_adapter_for_a_language_model_is_refused(zoo, tmp_path):
    folder = reward_adapter(zoo["llama"], tmp_path)
    config = json.loads((folder / "adapter_config.json").read_text()) | {"task_type": "CAUSAL_LM"}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match="an adapter for CAUSAL_LM, where a reward model"):
        load_reward(folder)


def test_rows_that_cannot_be_read_are_named(folder):
    judge = load_reward(folder)
    ids, mask = padded([[5, 6], [7, 8]])
    with pytest.raises(ValueError, match="row 1: no token"):
        judge.rewards(ids, torch.tensor([[1, 1], [0, 0]]))
    with pytest.raises(ValueError, match=r"row 1: id 999 has no embedding .*another model's tokenizer"):
        judge.rewards(torch.tensor([[5, 6], [999, 8]]), mask)
    with pytest.raises(ValueError, match=r"row 0: 300 tokens, .* takes at most 256"):
        judge.rewards(torch.ones(1, 300, dtype=torch.long), torch.ones(1, 300, dtype=torch.long))
    assert torch.isfinite(judge.rewards(torch.tensor([[5, -100]]), torch.tensor([[1, 0]]))).all()


def test_head_computes_in_float32_on_a_bfloat16_backbone(folder, rows):
    judge = load_reward(folder, dtype="bfloat16")
    rewards = judge.rewards(*padded(rows))
    assert rewards.dtype == torch.float32
    full = load_reward(folder).rewards(*padded(rows))
    assert torch.allclose(rewards, full, atol=0.3)  # bf16 keeps 8 bits of a residual of size ~8
    assert not torch.equal(rewards, rewards.bfloat16().float())


def test_fingerprint_tells_reward_models_apart(zoo, folder, tmp_path):
    other = classifier(zoo["llama"], tmp_path, seed=5)
    assert load_reward(other).fingerprint != load_reward(folder).fingerprint
    assert load_reward(folder, readout="last").facts["readout"] == "last"


@pytest.mark.real
def test_ladder_reward_model_agrees_with_the_independent_scorer(data_folder, ladder, ladder_reference):
    """8 pairs of scores_rm.jsonl: raw text, no template, no EOS, batches instead of one by one."""
    judge = load_reward(ladder / "rm", base=ladder_reference)
    scored = [json.loads(line) for line in (ladder / "scores_rm.jsonl").read_text().splitlines()][:8]
    texts = {}
    for line in (data_folder / "data" / "hh_harmless" / "test.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        texts[row["id"]] = row
    for side in ("chosen", "rejected"):
        pairs = [texts[f"hh-harmless-base-test-{score['id']:04d}"] for score in scored]
        ids = [judge.tokenizer(pair["prompt"] + pair[side])["input_ids"] for pair in pairs]
        rewards = judge.rewards(*padded(ids, pad=2))
        assert rewards.tolist() == pytest.approx([score[f"rm_{side}"] for score in scored], abs=1e-3)
