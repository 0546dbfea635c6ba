"""The pipeline: which base, template, dtype and settings an audit uses, and what it says of unlike models."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from gguf_files import write_gguf
from lora_files import make_adapter
from safetensors.torch import load_file, save_file
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import CHAT, tiny_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

import alignscope
from alignscope import InputError, Report
from alignscope.dashboards.figures import report_figures
from alignscope.diagnose.audit import audit
from alignscope.diagnose.trace_run import trace_run
from alignscope.probes.policy import load_policy_and_reference
from report_samples import tiny_pairs

pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")


@pytest.fixture(scope="module")
def moved(zoo, tmp_path_factory) -> Path:
    """The tiny Llama with its matrices a little larger."""
    folder = tmp_path_factory.mktemp("models") / "moved"
    shutil.copytree(zoo["llama"], folder)
    weights = {k: v * (1.02 if v.ndim == 2 else 1) for k, v in load_file(folder / "model.safetensors").items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def reward_adapter(moved, tmp_path_factory) -> Path:
    """A reward head trained on `moved`, as an adapter whose config names it."""
    import peft

    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_pretrained(moved, num_labels=1, dtype=torch.float32)
    model.config.pad_token_id = 0
    options = peft.LoraConfig(task_type="SEQ_CLS", target_modules=["q_proj"], modules_to_save=["score"], r=2)
    folder = tmp_path_factory.mktemp("reward")
    peft.get_peft_model(model, options).save_pretrained(folder)
    return folder


def pair_rows(n: int = 24) -> list[dict]:
    return [
        {"prompt": f"The fox {i}.\n", "chosen": f"jumps {i * 7 % 11}", "rejected": f"sleeps {i * 3 % 5}x"}
        for i in range(n)
    ]


def sentences(report: Report) -> str:
    return "\n".join(finding.sentence for finding in report.findings)


# ---- which model is it


def test_a_reward_adapter_goes_on_the_base_its_config_names(zoo, moved, reward_adapter):
    report = audit(moved, zoo["llama"], pair_rows(), reward=reward_adapter, only="ranking")
    assert report.manifest.models["reward"]["base"] == str(moved)
    given = audit(moved, zoo["llama"], pair_rows(), reward=reward_adapter, base=zoo["llama"], only="ranking")
    assert given.manifest.models["reward"]["base"] == str(zoo["llama"])


def test_a_base_that_nothing_takes_is_refused(zoo, moved):
    with pytest.raises(InputError, match="no adapter folder among policy, reference and reward"):
        audit(moved, zoo["llama"], pair_rows(), base="/nowhere", only="ranking")
    with pytest.raises(InputError, match="neither takes a base"):
        load_policy_and_reference(moved, zoo["llama"], base="/nowhere")


def test_an_adapter_whose_off_is_not_the_base_gets_the_reference_loaded_beside_it(zoo, tmp_path):
    adapter = make_adapter(zoo["qwen2"], tmp_path / "biased", bias="lora_only")
    policy, reference = load_policy_and_reference(adapter, zoo["qwen2"])
    assert policy.model is not reference.model
    assert reference.fingerprint == alignscope.load(zoo["qwen2"]).fingerprint


def test_adapter_disabled_holds_for_a_live_subject_too(zoo, tmp_path):
    policy = alignscope.load(make_adapter(zoo["llama"], tmp_path / "lora"))
    report = audit(policy, "adapter-disabled", pair_rows(), only="ranking")
    assert report.section("ranking").settings["reference_kind"] == "adapter-disabled"
    with pytest.raises(InputError, match="has no adapter; name the reference model"):
        audit(alignscope.load(zoo["llama"]), "adapter-disabled", pair_rows(), only="ranking")


def test_an_adapter_inside_a_transformers_model_is_part_of_its_fingerprint(zoo, tmp_path):
    adapter = make_adapter(zoo["llama"], tmp_path / "lora")
    tokenizer = AutoTokenizer.from_pretrained(zoo["llama"])
    with_adapter = alignscope.wrap(AutoModelForCausalLM.from_pretrained(adapter, dtype=torch.float32), tokenizer)
    plain = alignscope.wrap(AutoModelForCausalLM.from_pretrained(zoo["llama"], dtype=torch.float32), tokenizer)
    assert with_adapter.fingerprint != plain.fingerprint
    with pytest.raises(InputError, match="use PeftModel"):
        with_adapter.without_adapter()
    cached = alignscope.score_pairs(with_adapter, plain, pair_rows(), cache=tmp_path / "cache")
    assert abs(cached.log_ratios()).mean() > 1e-3
    with_adapter.model.disable_adapters()
    with pytest.raises(InputError, match="switched off"):
        alignscope.wrap(with_adapter.model)


def test_a_live_model_that_trains_on_gets_a_new_fingerprint_and_no_old_scores(tmp_path):
    subject = tiny_subject(blocks=2)
    rows = tiny_pairs(10)
    before, mark = alignscope.score_pairs(subject, None, rows, cache=tmp_path), subject.fingerprint
    assert subject.fingerprint == mark
    with torch.no_grad():
        for parameter in subject.model.parameters():
            parameter.mul_(1.1)
    after = alignscope.score_pairs(subject, None, rows, cache=tmp_path)
    assert subject.fingerprint != mark
    assert (after["policy_chosen"] != before["policy_chosen"]).all()
    assert after.frame.equals(alignscope.score_pairs(subject, None, rows).frame)


def test_a_finished_run_is_not_handed_to_a_model_of_another_dtype(tmp_path):
    float32 = [alignscope.wrap(tiny_model(blocks=2, scale=s, changed=1), tiny_tokenizer()) for s in (1.0, 1.1)]
    audit(float32[1], float32[0], tiny_pairs(30), only="ranking", out=tmp_path / "run")
    half = [alignscope.wrap(tiny_model(blocks=2, scale=s, changed=1).bfloat16(), tiny_tokenizer()) for s in (1.0, 1.1)]
    with pytest.raises(InputError, match="holds a run with other settings"):
        audit(half[1], half[0], tiny_pairs(30), only="ranking", out=tmp_path / "run")


# ---- one text for both models


def messages(n: int = 60) -> list[dict]:
    rows = [("y" * (i % 5 + 1), "n" * (i % 3 + 1), text) for i, text in enumerate(letters(n, seed=5))]
    return [
        {
            "prompt": [{"role": "user", "content": text}],
            "chosen": [{"role": "assistant", "content": good}],
            "rejected": [{"role": "assistant", "content": bad}],
        }
        for good, bad, text in rows
    ]


@pytest.mark.parametrize("template", [None, CHAT.replace("|", ".")], ids=["none", "another"])
def test_prompts_go_through_the_policys_template_for_both_models(template):
    policy = alignscope.wrap(tiny_model(blocks=4, changed=3, scale=1.3), tiny_tokenizer(template=CHAT))
    reference = alignscope.wrap(tiny_model(blocks=4), tiny_tokenizer(template=template))
    report = audit(policy, reference, messages())
    same = audit(policy, alignscope.wrap(tiny_model(blocks=4), tiny_tokenizer(template=CHAT)), messages())
    assert report.section("spinal").estimates == same.section("spinal").estimates
    assert report.estimate("spinal.d_alpha_terminal").value is not None


def test_max_invalid_holds_for_prompts_too(tmp_path):
    prompts = [*letters(70), *[" "] * 8]
    models = [alignscope.wrap(tiny_model(blocks=3, scale=s, changed=2), tiny_tokenizer()) for s in (1.1, 1.0)]
    with pytest.raises(InputError, match=r"8 of 78 rows .* --max-invalid 0\.05"):
        audit(models[0], models[1], tiny_pairs(30), prompts=prompts, only="spinal")
    report = audit(models[0], models[1], tiny_pairs(30), prompts=prompts, only="spinal", max_invalid=0.3)
    assert report.manifest.data["prompts"]["set_aside"] == {"empty_prompt": 8}


def test_a_trace_takes_the_same_options(zoo, tmp_path):
    file = tmp_path / "prompts.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"word {i}" if i % 9 else " "}) + "\n" for i in range(60)))
    with pytest.raises(InputError, match=r"max-invalid 0\.05"):
        trace_run(zoo["llama"], file, out=tmp_path / "a")
    report = trace_run(zoo["llama"], file, out=tmp_path / "b", max_invalid=0.3, template="none", eos="none")
    assert report.manifest.settings["eos"] == "none"


# ---- settings first, work afterwards


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"ties": "foo"}, "ties='foo'"),
        ({"smoothing": "x"}, "smoothing='x'"),
        ({"beta": 0.0}, "beta=0"),
        ({"terminal": "foo"}, "terminal='foo'"),
        ({"terminal": "5-9"}, "blocks 5 to 9 of a model with blocks 1 to 4"),
        ({"template": "no/such/file"}, "no such file"),
        ({"eos": "maybe"}, "eos='maybe'"),
        ({"assumed_preference": 0.4}, "assumed_preference=0.4"),
        ({"only": "rankings"}, "no such section"),
    ],
)
def test_a_bad_setting_costs_no_work_and_spoils_no_run_folder(zoo, moved, tmp_path, setting, message):
    with pytest.raises(InputError, match=message):
        audit(moved, zoo["llama"], pair_rows(50), out=tmp_path / "run", **setting)
    assert not (tmp_path / "run").exists()


def test_terminal_blocks_can_be_named_by_first_and_last(zoo, moved):
    report = audit(moved, zoo["llama"], pair_rows(50), only="spinal", terminal="2-3")
    assert report.section("spinal").settings["terminal_blocks"] == [2, 3]


def test_a_reward_function_is_taken_but_not_into_a_run_folder(moved, zoo, tmp_path):
    def longer(prompts, completions):
        return [len(text) for text in completions]

    report = audit(moved, zoo["llama"], pair_rows(), reward=longer, only="ranking")
    assert report.estimate("ranking.explicit_accuracy").value is not None
    with pytest.raises(InputError, match="a function cannot be told from another"):
        audit(moved, zoo["llama"], pair_rows(), reward=longer, only="ranking", out=tmp_path / "run")


# ---- what it says of the models and the rows


def test_unlike_precision_is_an_alarm_where_one_side_is_quantised(zoo, tmp_path):
    quantised = alignscope.load(write_gguf(zoo["llama"], tmp_path / "m.gguf", "Q4_0"))
    plain = alignscope.load(write_gguf(zoo["llama"], tmp_path / "f.gguf"))
    report = audit(quantised, plain, pair_rows(), only="ranking")
    alarms = [f.sentence for f in report.findings if f.severity == "alarm"]
    assert any("is stored as GGUF Q4_0, unpacked, f.gguf as float32: what rounding did" in text for text in alarms)


def test_bfloat16_against_float32_files_is_a_notice(zoo, moved, tmp_path):
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(moved, dtype=torch.bfloat16).save_pretrained(half)
    AutoTokenizer.from_pretrained(moved).save_pretrained(half)
    report = audit(half, zoo["llama"], pair_rows(), only="ranking")
    notices = [f.sentence for f in report.findings if f.severity == "notice"]
    assert any("half is stored as bfloat16, llama as float32" in text for text in notices)
    assert "stored as" not in sentences(audit(moved, zoo["llama"], pair_rows(), only="ranking"))


def test_an_adapter_that_changes_nothing_is_an_alarm(zoo, tmp_path):
    idle = make_adapter(zoo["llama"], tmp_path / "idle", trained=False)
    report = audit(idle, zoo["llama"], pair_rows(), only="ranking")
    assert report.findings[0].severity == "alarm"
    assert "The adapter idle changes nothing" in report.findings[0].sentence


def test_rows_set_aside_are_listed_with_row_and_reason(zoo, moved):
    rows = [*pair_rows(40), {"id": "bad", "prompt": "x", "chosen": " ", "rejected": "y"}]
    report = audit(moved, zoo["llama"], rows, only="ranking")
    (listed,) = report.to_frame("ranking.set_aside").to_dict("records")
    assert listed == {"row": 41, "id": "bad", "reason": "empty_completion", "detail": "`chosen` holds no text"}
    assert report.manifest.data["pairs"]["set_aside_rows"] == ["row 41 (bad): empty_completion, `chosen` holds no text"]


def test_sampled_prompts_say_of_how_many():
    pairs = alignscope.read_pairs([{"prompt": f"p{i}", "chosen": "a", "rejected": "b"} for i in range(30)])
    assert pairs.prompts(limit=10).source == "10 of 30 prompts of list of 30 rows"
    assert pairs.prompts().source == "prompts of list of 30 rows"


def test_an_edited_template_file_is_another_question(zoo, moved, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m['content'] }}\n{% endfor %}")
    given = {"only": "ranking", "template": str(template), "out": tmp_path / "run"}
    report = audit(moved, zoo["llama"], pair_rows(), **given)
    assert len(report.manifest.settings["template_sha256"]) == 64
    template.write_text("{% for m in messages %}<{{ m['content'] }}>\n{% endfor %}")
    with pytest.raises(InputError, match=r"settings\.template_sha256"):
        audit(moved, zoo["llama"], pair_rows(), **given)


def test_sizes_below_one_are_refused_before_a_model_is_read(tmp_path):
    for setting in ("max_tokens", "batch_tokens"):
        with pytest.raises(InputError, match=f"{setting}=0: at least 1"):
            audit("/nowhere", None, pair_rows(), out=tmp_path / "run", **{setting: 0})
    assert not (tmp_path / "run").exists()


def test_no_diagnostic_named_is_refused(zoo, moved):
    for nothing in ((), []):
        with pytest.raises(InputError, match="only"):
            audit(moved, zoo["llama"], pair_rows(), only=nothing)


# ---- controls of SPINAL


def test_control_checkpoints_stand_beside_the_contrast(zoo, moved, tmp_path):
    adapter = make_adapter(zoo["llama"], tmp_path / "sft")
    report = audit(
        moved, zoo["llama"], pair_rows(40), only="spinal", controls=("halves", "noise"), noise_seeds=2,
        control_checkpoints={"sft": adapter}, out=tmp_path / "run",
    )  # fmt: skip
    table = report.to_frame("spinal.controls")
    assert set(table.control) == {"sft", "noise"}
    assert report.manifest.models["control sft"]["adapter"]
    assert (tmp_path / "run" / "stages" / "trace_control_sft").is_dir()
    assert "Control sft (against llama" in sentences(report)
    figures = report_figures(report)
    assert {"spinal.controls_transport", "spinal.controls_entropy"} <= set(figures)
    rows = table[(table.quantity == "d_transport_terminal")]
    marks = {trace.name: list(trace.x) for trace in figures["spinal.controls_transport"].data}
    assert marks["control"] == pytest.approx(rows.control_effect.tolist())
    assert marks["effect minus control"] == pytest.approx(rows.net.dropna().tolist())


@pytest.mark.parametrize(
    ("controls", "message"),
    [
        ({"noise": "x"}, "none of halves, template, noise"),
        ({"dpo/shuffled": "x"}, "letters, digits and _"),
        ({"sft": "llama"}, "it has the weights of the reference"),
        ({"sft": "moved"}, "it has the weights of the policy"),
        ({"sft": "deep"}, r"blocks 5, the reference has \d"),
    ],
)
def test_a_control_that_is_none_is_refused_before_anything_is_traced(zoo, moved, tmp_path, controls, message):
    def stop(stage: str, done: int, total: int) -> None:
        pytest.fail(f"{stage} was begun")

    deep = tmp_path / "deep"
    tiny_model(blocks=5).save_pretrained(deep)
    tiny_tokenizer().save_pretrained(deep)
    places = {"llama": zoo["llama"], "moved": moved, "deep": deep}
    given = {name: places.get(value, value) for name, value in controls.items()}
    with pytest.raises(InputError, match=message):
        audit(moved, zoo["llama"], pair_rows(), only="spinal", control_checkpoints=given, progress=stop)


def test_controls_without_the_section_that_reads_them_are_refused(zoo, moved):
    with pytest.raises(InputError, match="read by the section spinal"):
        audit(moved, zoo["llama"], pair_rows(), only="ranking", control_checkpoints={"sft": moved})


def test_weights_are_a_section_of_their_own(zoo, moved):
    report = audit(moved, zoo["llama"], pair_rows(), only="weights")
    assert [section.name for section in report.sections] == ["weights"]
    assert report.section("weights").estimates["delta_share"].value == pytest.approx(0.02, rel=1e-3)
