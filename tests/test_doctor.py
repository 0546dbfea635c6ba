"""The doctor: sound models pass, and each fault that it looks for shows in its own row."""

import shutil
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from lora_files import make_adapter
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignscope.diagnose.doctor import COLUMNS, examine
from alignscope.diagnose.doctor_weights import grid_share
from alignscope.diagnose.probe_rows import LENGTHS, PADS, TEXTS, probe_rows, row_scores
from alignscope.diagnose.report import Manifest, Report
from alignscope.errors import InputError
from alignscope.probes.loading import load, wrap
from alignscope.probes.padding import padded

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def llama(zoo):
    return load(zoo["llama"])


def row(result, check: str):
    table = result.tables["checks"].set_index("check")
    return table.loc[check]


def verdicts(result) -> dict[str, str]:
    return dict(zip(result.tables["checks"]["check"], result.tables["checks"]["verdict"], strict=True))


class Faulty:
    """A real subject whose logits go through `fault(subject, ids, mask)`."""

    def __init__(self, subject, fault) -> None:
        self._subject, self._fault = subject, fault

    def __getattr__(self, name):
        return getattr(self._subject, name)

    def logits(self, input_ids, attention_mask, positions=None):
        return self._fault(self._subject, input_ids, attention_mask)


def test_zoo_is_measurable_and_only_rwkv_minds_left_padding(zoo):
    alarms = {}
    for name, folder in zoo.items():
        result = examine(load(folder))
        alarms[name] = [check for check, verdict in verdicts(result).items() if verdict == "alarm"]
    assert {name: found for name, found in alarms.items() if found} == {"rwkv": ["left padding"]}


def test_table_has_the_agreed_columns_and_survives_a_report(llama, tmp_path):
    result = examine(llama)
    table = result.tables["checks"]
    assert tuple(table.columns) == COLUMNS == ("check", "value", "unit", "threshold", "verdict", "advice")
    assert set(table["verdict"]) <= {"ok", "notice", "alarm"}
    assert table["check"].is_unique
    assert result.section.counts == {v: int((table["verdict"] == v).sum()) for v in ("ok", "notice", "alarm")}
    manifest = Manifest(
        command="doctor", models={}, data={}, settings={}, packages={}, device="cpu", dtype="float32", seed=0,
        wall_seconds=0,
    )  # fmt: skip
    Report.assemble("t", "q", manifest, [result]).save(tmp_path)
    assert Report.load(tmp_path).to_frame("doctor.checks").equals(table)


def test_numbers_are_estimates_and_findings_rest_on_them(llama):
    result = examine(llama)
    estimates = result.section.estimates
    assert estimates["batch"].value <= 5e-6
    assert estimates["batch"].unit == "nats per scored token"
    assert estimates["batch"].n == sum(LENGTHS) - len(LENGTHS) == result.section.settings["scored_tokens"]
    assert estimates["repeat"].value == 0
    faulty = examine(Faulty(llama, batch_size))
    rests = [name for finding in faulty.findings for name in finding.rests_on]
    assert "doctor.batch" in rests
    assert all(name.removeprefix("doctor.") in faulty.section.estimates for name in rests)


def test_logits_that_are_not_finite_are_an_alarm_and_no_number(llama):
    found = examine(Faulty(llama, lambda subject, ids, mask: subject.logits(ids, mask) * torch.nan))
    assert verdicts(found)["repeat"] == verdicts(found)["batch"] == "alarm"
    assert found.section.estimates["batch"].value is None
    assert "NaN" in found.section.estimates["batch"].reason


@pytest.mark.parametrize("name", ["stories260k", "bitllama_1m", "nano_sort_gpt2"])
def test_small_real_models(data_folder, name):
    result = examine(load(data_folder / "models" / name))
    assert "alarm" not in verdicts(result).values()
    assert row(result, "pad token")["value"] == "none"
    if name == "bitllama_1m":  # ternary weights stored as floats
        assert row(result, "precision of the file")["verdict"] == "notice"
        assert result.section.estimates["precision_of_the_file"].value > 0.9
    else:
        assert result.section.estimates["precision_of_the_file"].value < 0.01
    if name == "nano_sort_gpt2":
        assert "seeded random ids (the tokenizer refuses" in result.section.settings["probe"]
        assert result.section.settings["extra_pads"] == 2
        assert row(result, "length limit")["value"] == "11"


# --- probe rows


def test_rows_have_two_equal_lengths_and_room_for_the_pads(llama):
    probe = probe_rows(llama, None)
    assert [len(r) for r in probe.rows] == list(LENGTHS)
    assert (min(LENGTHS), max(LENGTHS), len(set(LENGTHS))) == (2, 64, 15)
    assert probe.pads == PADS
    assert any(not text.isascii() for text in TEXTS)
    assert len(TEXTS) == len(LENGTHS) == 16


def test_score_of_a_row_is_the_sum_of_its_log_probabilities(llama):
    ids = torch.tensor([[1, 40, 200, 33]])
    scores = row_scores(llama, *padded([ids[0].tolist(), [5, 6]], 0, extra=3))
    with torch.no_grad():
        logits = llama.logits(ids, torch.ones_like(ids)).double()[0]
    expected = sum(float(logits[t].log_softmax(-1)[ids[0, t + 1]]) for t in range(3))
    assert scores.dtype == torch.float64
    assert float(scores[0]) == pytest.approx(expected, abs=1e-5)


def test_texts_given_are_the_probe(llama):
    texts = ["The cat sat on the mat.", "A dog.", "", "word " * 400]
    result = examine(llama, texts)
    assert result.section.settings["probe"] == "3 of the texts given"
    assert result.section.settings["rows"] == 3
    assert row(result, "length limit")["verdict"] == "notice"


def test_texts_that_cannot_be_read_are_an_input_error(data_folder):
    with pytest.raises(InputError, match="none of the 2 texts gives 2 tokens"):
        examine(load(data_folder / "models" / "nano_sort_gpt2"), ["hello", "you"])


def test_model_without_tokenizer_is_probed_with_ids(zoo):
    result = examine(wrap(AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32)))
    assert "seeded random ids (no tokenizer)" in result.section.settings["probe"]
    assert row(result, "tokenizer")["value"] == "none"
    assert row(result, "batch")["verdict"] == "ok"


# --- faults


def no_positions(subject, ids, mask):
    return subject.model(input_ids=ids, attention_mask=mask, use_cache=False).logits.float()


def no_mask(subject, ids, mask):
    return subject.model(input_ids=ids, use_cache=False).logits.float()


def leak(subject, ids, mask):
    return subject.logits(ids, mask) + 0.01 * (ids[:, -1:, None] % 7)  # a later id in every logit: moves no softmax


def batch_size(subject, ids, mask):
    return subject.logits(ids, mask) * (1 + 1e-3 * len(ids))


def row_number(subject, ids, mask):
    return subject.logits(ids, mask) * (1 + 1e-3 * torch.arange(len(ids))[:, None, None])


def width(subject, ids, mask):
    return subject.logits(ids, mask) * (1 + 1e-2 * ids.shape[1])


def pad_content(subject, ids, mask):
    return subject.logits(ids, mask) * (1 + 1e-3 * ids[:, -1:, None])


def noise(subject, ids, mask):
    logits = subject.logits(ids, mask)
    return logits + 1e-7 * torch.rand_like(logits)


@pytest.mark.parametrize(
    ("fault", "check", "verdict"),
    [
        (no_mask, "left padding", "alarm"),
        (leak, "causality", "alarm"),
        (batch_size, "batch", "alarm"),
        (row_number, "row order", "alarm"),
        (width, "right padding", "alarm"),
        (pad_content, "right padding", "alarm"),
        (noise, "repeat", "notice"),
    ],
)
def test_each_fault_shows_in_its_row(llama, fault, check, verdict):
    torch.manual_seed(0)
    result = examine(Faulty(llama, fault))
    assert row(result, check)["verdict"] == verdict
    assert any(f.severity == verdict and f.sentence.lower().startswith(check) for f in result.findings)
    if verdict == "alarm":
        assert check in result.section.summary


def test_positions_are_what_keeps_gpt2_right_under_left_padding(zoo):
    """6.4e-2 with a mask alone on logits of scale 0.5; exact with positions."""
    subject = load(zoo["gpt2"])
    assert row(examine(subject), "left padding")["verdict"] == "ok"
    assert row(examine(Faulty(subject, no_positions)), "left padding")["verdict"] == "alarm"


def test_small_drift_is_a_notice_not_an_alarm(llama):
    def drift(subject, ids, mask):
        return subject.logits(ids, mask) * (1 + 5e-6 * len(ids))

    value = examine(Faulty(llama, drift)).section.estimates["batch"].value
    assert 5e-6 < value < 5e-4
    assert row(examine(Faulty(llama, drift)), "batch")["verdict"] == "notice"


def test_half_precision_is_told_to_load_float32(zoo):
    result = examine(load(zoo["llama"], dtype="bfloat16"))
    assert row(result, "batch")["verdict"] in ("ok", "notice")
    assert "float32" in row(result, "precision floor")["advice"]
    assert 1e-4 < result.section.estimates["precision_floor"].value < 0.5  # zoo: at most 1.5e-2 up to 16 tokens
    assert "precision floor" not in verdicts(examine(load(zoo["llama"])))


# --- weights


def test_grid_share_of_known_matrices():
    torch.manual_seed(0)

    class Two(torch.nn.Module):
        def __init__(self, first, second) -> None:
            super().__init__()
            self.first, self.second = torch.nn.Parameter(first), torch.nn.Parameter(second)

    random, levels16 = torch.randn(40, 64), torch.randint(16, (40, 64)).float()
    levels17 = torch.arange(17).float().repeat(4)[:64].repeat(40, 1)  # each block of 32 holds all 17
    assert grid_share(Two(random, random.bfloat16().float())) == 0
    assert grid_share(Two(levels16, levels16 * 0.37 - 5)) == 1
    assert grid_share(Two(levels16, random)) == 0.5
    assert grid_share(Two(levels17, levels17)) == 0
    assert grid_share(Two(torch.ones(64), torch.ones(3, 33))) is None


@pytest.mark.parametrize(("kind", "share"), [("F32", 0.0), ("Q8_0", 0.0), ("Q4_0", 1.0), ("Q4_1", 1.0)])
def test_four_bits_are_seen_after_unpacking(zoo, tmp_path, kind, share):
    result = examine(load(write_gguf(zoo["llama"], tmp_path / "m.gguf", kind)))
    assert result.section.estimates["precision_of_the_file"].value == pytest.approx(share, abs=1e-3)
    assert row(result, "precision of the file")["verdict"] == ("ok" if kind == "F32" else "notice")


def test_quantised_policy_beside_a_float_reference_is_an_alarm(zoo, llama, tmp_path):
    policy = load(write_gguf(zoo["llama"], tmp_path / "m.gguf", "Q4_0"))
    assert row(examine(policy, reference=llama), "precision of the file")["verdict"] == "alarm"
    assert row(examine(policy, reference=policy), "precision of the file")["verdict"] == "notice"


def stored_as(folder: Path, to: Path, dtype: torch.dtype) -> Path:
    AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(dtype).save_pretrained(to)
    AutoTokenizer.from_pretrained(folder).save_pretrained(to)
    return to


def test_policy_and_reference_stored_in_two_dtypes_are_an_alarm(zoo, llama, tmp_path):
    """bf16 against float32: the rounding of the one would count as training."""
    half = load(stored_as(zoo["llama"], tmp_path / "half", torch.bfloat16))
    for subject, reference, other in ((half, llama, "float32"), (llama, half, "bfloat16")):
        found = row(examine(subject, reference=reference), "precision of the file")
        assert found["verdict"] == "alarm"
        assert f"the reference is stored as {other}: rounding would count as training" in found["advice"]
    assert row(examine(half, reference=half), "precision of the file")["verdict"] == "notice"
    live = wrap(AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32), llama.tokenizer)
    assert row(examine(live, reference=half), "precision of the file")["verdict"] != "alarm"  # its file is not known


def test_right_padding_says_that_the_pad_cannot_matter(llama):
    assert "replaced before the model sees it" in row(examine(llama), "right padding")["advice"]


def test_adapter_that_does_nothing_is_an_alarm(zoo, tmp_path):
    idle = make_adapter(zoo["llama"], tmp_path / "idle", trained=False)
    busy = make_adapter(zoo["llama"], tmp_path / "busy")
    result = examine(load(idle))
    assert row(result, "adapter")["verdict"] == "alarm"
    assert "changes nothing" in row(result, "adapter")["advice"]
    result = examine(load(busy))
    assert row(result, "adapter")["verdict"] == "ok"
    assert result.section.estimates["adapter"].value > 1e-3


def test_reference_that_is_the_same_model_or_has_another_vocabulary(zoo, llama, tmp_path):
    same = examine(llama, reference=load(zoo["llama"]))
    assert row(same, "distance to the reference")["verdict"] == "notice"
    assert "same weights" in row(same, "distance to the reference")["advice"]
    other = examine(llama, reference=load(zoo["gpt2"]))
    assert row(other, "tokenizer of the reference")["verdict"] == "ok"
    assert other.section.estimates["distance_to_the_reference"].value > 0.01
    copy = Path(shutil.copytree(zoo["llama"], tmp_path / "copy"))
    tokenizer = AutoTokenizer.from_pretrained(copy)
    tokenizer.eos_token = "<pad>"
    tokenizer.chat_template = "{{ messages[0]['content'] }}"
    tokenizer.save_pretrained(copy)
    changed = examine(llama, reference=load(copy))
    assert row(changed, "tokenizer of the reference")["verdict"] == "alarm"
    assert row(changed, "template of the reference")["verdict"] == "alarm"
    assert row(changed, "head of the reference")["verdict"] == "ok"


def test_gguf_reference_reads_the_same_ids(zoo, llama, tmp_path):
    """transformers appends an entry to a GGUF file's vocabulary; no head has a row for it, so nothing differs."""
    result = examine(llama, reference=load(write_gguf(zoo["llama"], tmp_path / "m.gguf")))
    assert row(result, "tokenizer of the reference")["verdict"] == "ok"


# --- tokenizer and template


def with_tokenizer(zoo, change) -> object:
    tokenizer = AutoTokenizer.from_pretrained(zoo["llama"])
    change(tokenizer)
    return examine(wrap(AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32), tokenizer))


@pytest.mark.parametrize(
    ("template", "verdict", "words"),
    [
        ("{% for m in messages %}{{ m.content }}{% endfor %}", "ok", "adds 0 tokens"),
        (
            "{{ 'A' if add_generation_prompt else 'B' }}{% for m in messages %}{{ m.content }}{% endfor %}",
            "alarm",
            "generation prompt changes the prompt's ids",
        ),
        (
            "{% for m in messages %}{{ m.content }}{% endfor %}{% if add_generation_prompt %} So:{% endif %}",
            "alarm",
            "no prefix of prompt + answer",
        ),
        ("<bos><bos>{% for m in messages %}{{ m.content }}{% endfor %}", "alarm", "begin token twice"),
        ("{{ raise_exception('never') }}", "alarm", "cannot be rendered"),
        (None, "ok", "a base model"),
    ],
)
def test_templates(zoo, template, verdict, words):
    result = with_tokenizer(zoo, lambda tokenizer: setattr(tokenizer, "chat_template", template))
    assert row(result, "chat template")["verdict"] == verdict
    assert words in row(result, "chat template")["advice"]


@pytest.mark.parametrize(
    ("template", "value"),
    [
        ("{% for m in messages %}{{ m.role }}{{ m.content }}{% endfor %}", "accepted"),
        ("{% for m in messages %}{% if m.role != 'system' %}{{ m.content }}{% endif %}{% endfor %}", "refused"),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}"
            "{% for m in messages %}{{ m.content }}{% endfor %}",
            "refused",
        ),
    ],
)
def test_system_role(zoo, template, value):
    result = with_tokenizer(zoo, lambda tokenizer: setattr(tokenizer, "chat_template", template))
    assert row(result, "system role")["value"] == value


def test_pad_equal_to_eos_and_a_long_tokenizer_are_notices(zoo):
    def change(tokenizer) -> None:
        tokenizer.pad_token = tokenizer.eos_token
        tokenizer.add_tokens(["<one>", "<two>"])

    result = with_tokenizer(zoo, change)
    assert row(result, "pad token")["verdict"] == "notice"
    assert row(result, "tokenizer length")["verdict"] == "notice"
    assert row(result, "tokenizer length")["advice"].startswith("2 ids have no row")


@pytest.mark.real
def test_ladder_reference(ladder_reference):
    """The 135M: 6e-7 nats per scored token in batches, 1.8e-5 on a sum of 29; short texts, for time."""
    result = examine(load(ladder_reference), TEXTS[:6])
    assert "alarm" not in verdicts(result).values()
    assert result.section.estimates["batch"].value < 5e-6
    assert result.section.estimates["precision_of_the_file"].value > 0.9
    assert row(result, "pad token")["verdict"] == "notice"
