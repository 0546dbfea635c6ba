"""GGUF files: a float file is exact, a quantised one is known by the types in the file, a damaged one is refused."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf

from alignscope import score_pairs
from alignscope.errors import InputError
from alignscope.probes.loading import load
from alignscope.probes.vocabulary import require_same_tokenizer

IDS = torch.tensor([[1, 40, 200, 33, 7, 300]])


def logits(subject) -> torch.Tensor:
    with torch.no_grad():
        return subject.logits(IDS, torch.ones_like(IDS))


@pytest.fixture(scope="module")
def llama(zoo):
    return load(zoo["llama"])


@pytest.fixture(scope="module")
def gguf_file(zoo, tmp_path_factory) -> Path:
    return write_gguf(zoo["llama"], tmp_path_factory.mktemp("gguf") / "tiny.gguf")


def test_float_gguf_is_exact(gguf_file, llama):
    subject = load(gguf_file)
    assert torch.equal(logits(subject), logits(llama))
    assert subject.facts["tensor_types"] == {"F32": 39}
    assert subject.facts["quantization"] is None
    assert (
        subject.tokenizer("the cat")["input_ids"] == llama.tokenizer("the cat", add_special_tokens=False)["input_ids"]
    )


@pytest.mark.parametrize(("kind", "low", "high"), [("Q8_0", 1e-5, 3e-2), ("Q4_0", 3e-3, 0.5), ("Q4_1", 3e-3, 0.5)])
def test_quantised_gguf_is_unpacked_to_float32_and_its_types_are_read_from_the_file(
    zoo, llama, tmp_path, kind, low, high
):
    """The error depends on seed and width; its order of magnitude does not."""
    subject = load(write_gguf(zoo["llama"], tmp_path / "q.gguf", kind))
    assert subject.facts["tensor_types"] == {kind: 30, "F32": 9}
    assert kind in subject.facts["quantization"]
    assert subject.facts["dtype"] == "float32"
    error = float((logits(subject) - logits(llama)).abs().max())
    assert low < error < high


def test_folder_with_one_gguf_is_that_file_and_with_two_it_is_a_question(gguf_file, tmp_path):
    shutil.copy(gguf_file, tmp_path / "a.gguf")
    assert load(tmp_path).fingerprints.weights == load(gguf_file).fingerprints.weights
    shutil.copy(gguf_file, tmp_path / "b.gguf")
    with pytest.raises(InputError, match=r"2 GGUF files \(a\.gguf, b\.gguf\); give one"):
        load(tmp_path)


@pytest.mark.parametrize("share", [0.3, 0.9])
def test_truncated_gguf(gguf_file, tmp_path, share):
    content = gguf_file.read_bytes()
    (tmp_path / "cut.gguf").write_bytes(content[: int(len(content) * share)])
    with pytest.raises(InputError, match=r"cut\.gguf: not a readable GGUF file.*cut short"):
        load(tmp_path / "cut.gguf")


def test_something_else_called_gguf(tmp_path):
    (tmp_path / "text.gguf").write_text("not a model" * 100)
    with pytest.raises(InputError, match=r"text\.gguf: not a readable GGUF file"):
        load(tmp_path / "text.gguf")


def test_one_changed_bit_of_a_gguf_is_another_fingerprint(gguf_file, tmp_path):
    content = bytearray(gguf_file.read_bytes())
    content[-5] ^= 1
    (tmp_path / "changed.gguf").write_bytes(content)
    changed, plain = load(tmp_path / "changed.gguf").fingerprints, load(gguf_file).fingerprints
    assert changed.weights != plain.weights
    assert (changed.config, changed.tokenizer) == (plain.config, plain.tokenizer)


def test_gguf_reads_the_ids_of_the_folder_it_was_made_from(gguf_file, llama):
    """transformers appends <|endoftext|> to the file's vocabulary, one entry beyond the head: no reason to refuse."""
    rows = [{"prompt": "the cat", "chosen": " sat on the mat", "rejected": " ran away"}]
    subject = load(gguf_file)
    assert len(subject.tokenizer.get_vocab()) == len(llama.tokenizer.get_vocab()) + 1 == subject.vocab_size + 1
    for policy, reference in ((llama, subject), (subject, llama)):
        scores = score_pairs(policy, reference, rows, template="none", eos="none")
        for side in ("chosen", "rejected"):
            assert scores[f"policy_{side}"].tolist() == scores[f"reference_{side}"].tolist()
    spelt = [rows[0] | {"chosen": " sat <|endoftext|>"}]
    with pytest.raises(InputError, match=r"id 411 \('<\|endoftext\|>'\) has no row"):
        score_pairs(subject, llama, spelt, template="none", eos="none")


def changed_tokenizer(folder: Path, to: Path, change) -> Path:
    shutil.copytree(folder, to)
    file = to / "tokenizer.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    change(content)
    file.write_text(json.dumps(content), encoding="utf-8")
    return to


def swap_two_ids(content) -> None:
    vocabulary = content["model"]["vocab"]
    vocabulary["a"], vocabulary["b"] = vocabulary["b"], vocabulary["a"]


def swap_two_merges(content) -> None:
    merges = content["model"]["merges"]
    merges[0], merges[-1] = merges[-1], merges[0]


@pytest.mark.parametrize("change", [swap_two_ids, swap_two_merges])
def test_another_vocabulary_or_other_merges_stay_refused_beside_gguf(gguf_file, zoo, tmp_path, change):
    other = load(changed_tokenizer(zoo["llama"], tmp_path / "other", change))
    with pytest.raises(InputError, match="different tokenizers"):
        require_same_tokenizer(other, load(gguf_file))
