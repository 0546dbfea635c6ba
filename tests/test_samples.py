"""The reference's own samples: exact sums, ends where they were drawn, and the enumerated KL within its interval."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from ranking_tables import mixed
from test_cli import run as run_cli
from test_scoring import subject
from tiny_tokenizer import CHAT, PIECES, tiny_tokenizer

from alignscope import InputError, PairScores, Report, ranking_report, score_pairs
from alignscope.diagnose.audit import audit
from alignscope.diagnose.companions import companion_sections
from alignscope.organisms import Recipe, build_preference_organism
from alignscope.organisms.enumeration import Enumeration, enumerate_folder
from alignscope.organisms.tokenizer import assistant_turn, user_turn
from alignscope.organisms.world import HELD_OUT, PROMPTS, normalised
from alignscope.probes.inputs import read_samples, require_full_draws
from alignscope.probes.samples import score_samples

EOS = PIECES["<eos>"]
CLOSE = 1e-5  # nats a sequence, on tiny models
ROWS = [
    {"prompt": "one:", "completion": "xyz"},
    {"prompt": "one:", "completion": "w", "finished": False},
    {"prompt": "two 2.", "completion": "", "prompt_id": "second", "id": "empty"},
    {"prompt": "one:", "completion": "xyz", "finished": True},
]


@pytest.fixture(scope="module")
def policy():
    return subject(0)


@pytest.fixture(scope="module")
def reference():
    return subject(1)


def by_hand(model, prompt: str, completion: str, *, end: bool) -> float:
    """Sum of log-softmax, token by token, in float64."""
    start = [PIECES["<bos>"], *(PIECES[letter] for letter in prompt)]
    ids = [*start, *(PIECES[letter] for letter in completion), *([EOS] if end else [])]
    with torch.no_grad():
        z = model.logits(torch.tensor([ids]), torch.ones(1, len(ids), dtype=torch.long))[0].double().log_softmax(-1)
    return sum(float(z[t - 1, ids[t]]) for t in range(len(start), len(ids)))


# ---- reading


def test_rows_are_read_and_bad_ones_set_aside():
    rows = [
        {"prompt": "p", "response": "r", "finished": "False", "prompt_id": 7},
        {"prompt": "p", "response": 3},
        {"prompt": "p", "response": "r", "finished": "perhaps"},
        {"prompt": [{"role": "user", "content": "p"}], "response": "r"},
        {"response": "r"},
    ]
    file = read_samples(rows)
    assert (file[0].completion, file[0].finished, file[0].prompt_id) == ("r", False, "7")
    assert file[1].completion == ({"role": "assistant", "content": "r"},)
    assert [(row.row, row.reason) for row in file.invalid] == [
        (2, "not_string"), (3, "finished_invalid"), (5, "missing_field")
    ]  # fmt: skip
    assert (file.n_rows, len(file)) == (5, 2)


@pytest.mark.parametrize("columns", [{"prompt": "p", "chosen": "c", "rejected": "r"}, {"completion": "c"}])
def test_a_file_of_something_else_is_refused_with_its_columns(columns):
    with pytest.raises(InputError, match=f"not a file of samples; the columns are: {', '.join(columns)}"):
        read_samples([columns])


def test_csv_says_finished_in_words(tmp_path):
    (tmp_path / "s.csv").write_text("prompt,completion,finished\np,a,true\np,b,FALSE\np,c,\n")
    assert [sample.finished for sample in read_samples(tmp_path / "s.csv")] == [True, False, True]


WHOLE = {"temperature": 1.0, "top_p": 1.0, "top_k": 0, "min_p": 0}


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ({"temperature": 0.7}, "temperature=0.7"),
        ({"temperature": 0}, "temperature=0"),  # greedy
        ({"top_p": 0.9}, "top_p=0.9"),
        ({"top_k": 50}, "top_k=50"),
        ({"min_p": 0.05}, "min_p=0.05"),
    ],
)
def test_a_file_that_says_its_samples_were_cut_is_no_file_of_full_draws(setting, told):
    row = {"prompt": "p", "completion": "a"}
    file = read_samples([row | WHOLE, row | WHOLE | setting, row | {"top_p": 0.1}])
    assert file.cut == f"row 2: drawn with {told}"
    with pytest.raises(InputError, match=rf"row 2: drawn with {told}: not drawn from all that the policy says"):
        require_full_draws(file, "policy")


@pytest.mark.parametrize(
    "settings",
    [{}, WHOLE, {"top_k": -1}, {"temperature": None, "top_p": ""}, {"temperature": math.nan}, {"temperature": "1.0"}],
)
def test_draws_of_all_the_distribution_and_draws_that_do_not_say_are_taken(settings):
    file = read_samples([{"prompt": "p", "completion": "a"} | settings])
    assert (len(file), file.cut) == (1, None)
    require_full_draws(file, "reference")


def test_csv_says_how_samples_were_drawn(tmp_path):
    (tmp_path / "s.csv").write_text("prompt,completion,temperature,top_p\np,a,1,\np,b,1.0,.95\n")
    assert read_samples(tmp_path / "s.csv").cut == "row 2: drawn with top_p=0.95"


@pytest.mark.parametrize("value", ["hot", True, "inf", [1]])
def test_a_row_whose_sampling_cannot_be_read_is_set_aside(value):
    file = read_samples([{"prompt": "p", "completion": "a", "temperature": value}, {"prompt": "p", "completion": "b"}])
    assert [(row.row, row.reason) for row in file.invalid] == [(1, "sampling_invalid")]
    assert "`temperature`" in file.invalid[0].detail


def test_cut_samples_of_the_reference_are_not_scored(policy, reference, tmp_path):
    (tmp_path / "s.jsonl").write_text("".join(json.dumps(row | {"top_k": 50}) + "\n" for row in ROWS))
    with pytest.raises(InputError, match=r"s\.jsonl, row 1: drawn with top_k=50: .* the reference says.* no KL"):
        score_samples(policy, reference, tmp_path / "s.jsonl")


# ---- scores


def test_a_finished_sample_ends_and_a_cut_one_does_not(policy, reference):
    frame = score_samples(policy, reference, ROWS).to_frame()
    assert frame.n_tokens.tolist() == [4, 1, 1, 4]
    for role, model in (("policy", policy), ("reference", reference)):
        expected = [by_hand(model, r["prompt"], r["completion"], end=r.get("finished", True)) for r in ROWS]
        np.testing.assert_allclose(frame[role], expected, atol=CLOSE)
    np.testing.assert_array_equal(frame.log_ratio, frame.policy - frame.reference)
    assert frame.finished.tolist() == [True, False, True, True]


def test_equal_samples_all_count_and_prompts_are_the_clusters(policy, reference):
    scores = score_samples(policy, reference, ROWS)
    assert len(scores) == 4
    assert scores.prompt_ids[0] == scores.prompt_ids[1] == scores.prompt_ids[3] != scores.prompt_ids[2] == "second"
    assert (scores.counts["scored"], scores.counts["prompts"], scores.counts["empty"]) == (4, 2, 1)
    pairs = score_pairs(policy, reference, [{"prompt": "one:", "chosen": "x", "rejected": "y"}])
    assert pairs["prompt_id"][0] == scores.prompt_ids[0]


def test_a_sample_scores_as_the_same_text_in_a_pair(policy, reference):
    pair = {"prompt": "one:", "chosen": "xyz", "rejected": "w"}
    for eos in ("auto", "append", "none"):
        pairs = score_pairs(policy, reference, [pair], eos=eos)
        one = score_samples(policy, reference, [{"prompt": "one:", "completion": "xyz"}], eos=eos)
        assert one.log_ratios[0] == pytest.approx(pairs.log_ratios()[0, 0], abs=CLOSE)
        assert one.frame.n_tokens[0] == pairs["n_chosen"][0]


def test_a_cut_answer_of_a_conversation_lacks_the_end_that_the_template_writes():
    policy, reference = (subject(seed, tokenizer=tiny_tokenizer(template=CHAT)) for seed in (0, 1))
    asked = [{"role": "user", "content": "hi"}]
    rows = [{"prompt": asked, "completion": "yes", "finished": done} for done in (True, False)]
    frame = score_samples(policy, reference, rows).to_frame()
    assert frame.n_tokens.tolist() == [4, 3]  # y, e, s and <end>
    messages = [{"prompt": asked, "completion": [*asked, {"role": "assistant", "content": "yes"}]}]
    assert score_samples(policy, reference, messages).log_ratios[0] == frame.log_ratio[0]


def test_a_cut_sample_without_a_token_is_set_aside(policy, reference):
    rows = [*ROWS, {"prompt": "p", "completion": "", "finished": False}]
    scores = score_samples(policy, reference, rows, max_invalid=0.5)
    assert [(row.row, row.reason) for row in scores.invalid] == [(5, "no_scored_token")]
    none = score_samples(policy, reference, ROWS, eos="none", max_invalid=0.5)
    assert none.invalid_counts == {"no_scored_token": 1}  # the empty one, whose end is not scored


def test_what_the_mean_is_not_is_told(policy, reference):
    told = " ".join(score_samples(policy, reference, ROWS).notices)
    assert told.startswith("1 of 4 samples were cut before their end")
    unsaid = [{"prompt": "p", "completion": "a"}]
    (notice,) = score_samples(policy, reference, unsaid).notices
    assert "do not say whether they are finished" in notice
    whole = [dict(row, finished=True) for row in unsaid]
    assert score_samples(policy, reference, whole).notices == ()
    assert "--eos none" in score_samples(policy, reference, whole, eos="none").notices[0]


def test_scores_that_are_no_numbers_are_never_part_of_a_mean(reference):
    broken = subject(0)
    with torch.no_grad():
        broken.model.transformer.ln_f.weight.mul_(1e38)  # logits beyond float32
    with pytest.raises(InputError, match=r"nothing is left: .*4 non_finite_policy \(first: row 1"):
        score_samples(broken, reference, ROWS)


def test_shifted_boundaries_and_other_limits_stop_as_for_pairs(policy, reference):
    rows = [{"prompt": "a", "completion": "b"}] * 4
    with pytest.raises(InputError, match="happens in 4 of 4 samples"):
        score_samples(policy, reference, rows)
    accepted = score_samples(policy, reference, rows, boundary="accept")
    assert accepted.counts["boundary_shift"] == 4
    with pytest.raises(InputError, match="too_long"):
        score_samples(policy, reference, ROWS, max_length=4)
    with pytest.raises(InputError, match="give the reference"):
        score_samples(policy, None, ROWS)


def test_cache_and_shards_move_nothing(policy, reference, tmp_path):
    fresh = score_samples(policy, reference, ROWS).frame
    for _ in range(2):
        again = score_samples(
            policy, reference, ROWS, cache=tmp_path / "c", shards=tmp_path / "s", shard_size=1, batch_tokens=8
        )
        pd.testing.assert_frame_equal(again.frame, fresh, atol=CLOSE, rtol=0)
    assert len(list((tmp_path / "s").glob("samples_*.json"))) == 6  # three distinct samples, two models


# ---- in the section displacement


def on_policy(samples, prompts=None):
    scores = PairScores.from_frame(mixed())
    ranking = ranking_report(scores, bootstrap=200)
    return companion_sections(scores, ranking, reference_samples=samples, sample_prompts=prompts)[1].section


def test_samples_of_one_prompt_are_one_cluster():
    values = np.repeat(np.random.default_rng(0).normal(-1, 1, 25), 4)
    alone, grouped = on_policy(values), on_policy(values, np.repeat(np.arange(25), 4))
    ours, theirs = alone.estimates["on_policy"], grouped.estimates["on_policy"]
    assert (ours.n_clusters, theirs.n_clusters, theirs.n) == (100, 25, 100)
    assert ours.value == theirs.value
    assert theirs.high - theirs.low > 1.5 * (ours.high - ours.low)
    with pytest.raises(ValueError, match="got 3 prompts for 100 samples"):
        on_policy(values, [1, 2, 3])


def test_numbers_that_are_not_finite_are_counted():
    section = on_policy([np.nan, -1.0])
    assert section.counts == {"samples_scored": 1, "samples_set_aside_non_finite": 1}
    assert on_policy([np.nan]).estimates["on_policy"].reason == "no sample is left"


# ---- in an audit


def audited(policy, reference, samples, **more):
    rows = [{"prompt": f"{i}:", "chosen": "xy", "rejected": "z"} for i in range(9)]
    return audit(policy, reference, rows, reference_samples=samples, **({"only": "ranking"} | more))


@pytest.mark.parametrize(("only", "name"), [("ranking", "ranking"), ("rewards", "rewards")])
def test_bad_rows_and_cut_ones_are_counted_where_the_number_stands(policy, reference, only, name):
    rows = [*ROWS * 6, {"prompt": "p"}]
    report = audited(policy, reference, rows, only=only)
    section = report.section("displacement")
    assert section.counts["samples_unfinished"] == 6
    assert section.counts["samples_set_aside_missing_field"] == 1
    assert report.manifest.data["reference samples"]["set_aside"] == {"missing_field": 1}
    assert section.estimates["on_policy"].n == 24
    assert any(text.startswith("2 of the 2 prompts of the reference's samples") for text in section.warnings)
    assert report.section(name).estimates


def test_a_run_goes_on_only_with_the_same_samples(policy, reference, tmp_path):
    first = audited(policy, reference, ROWS, out=tmp_path / "run")
    again = audited(policy, reference, ROWS, out=tmp_path / "run")
    assert again == first
    assert list((tmp_path / "run" / "stages" / "reference_samples").glob("*.json"))
    for others in (ROWS[:3], None):
        with pytest.raises(InputError, match="reference samples"):
            audited(policy, reference, others, out=tmp_path / "run")


def test_samples_that_nothing_reads_are_refused(policy, reference):
    with pytest.raises(InputError, match="give --reference"):
        audited(policy, None, ROWS)
    with pytest.raises(InputError, match="not computed here; add ranking"):
        audited(policy, reference, ROWS, only="spinal")


def test_the_command_takes_samples_beside_models_and_not_beside_a_table(organism, tmp_path):
    samples, run = tmp_path / "samples.jsonl", tmp_path / "run"
    asked = [f"{PROMPTS[i].text} ->" for i in range(40)]
    rows = [{"prompt": prompt, "completion": " s0 s1 s2 s3", "finished": True} for prompt in asked]
    samples.write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = ["--reference-samples", str(samples), "--out", str(run), "--only", "ranking", "--no-cache", "--quiet"]
    models = ["--policy", str(organism.dpo), "--reference", str(organism.base), "--pairs", str(organism.pairs)]
    done = run_cli("audit", *models, *given)
    assert done.returncode == 0, done.stderr
    assert Report.load(run).section("displacement").estimates["on_policy"].n == 40
    refused = run_cli("audit", "--scores", "t.parquet", *given[:4])
    assert refused.returncode == 2
    assert "leave --reference-samples away" in " ".join(refused.stderr.split())


# ---- a world whose responses can be enumerated


@pytest.fixture(scope="module")
def organism(tmp_path_factory):
    recipe = Recipe(base_steps=60, sft_steps=1, dpo_steps=32, reward_steps=1, batch=32, training_draws=6, pairs_draws=3)
    return build_preference_organism(tmp_path_factory.mktemp("organism") / "quick", recipe=recipe, seed=0)


@pytest.fixture(scope="module")
def enumerated(organism) -> tuple[Enumeration, Enumeration]:
    """Reference and policy."""
    return enumerate_folder(organism.base), enumerate_folder(organism.dpo)


def drawn(enumerated, per_prompt: int, seed: int = 0) -> tuple[list[dict], np.ndarray]:
    """Responses from the reference's law over the 256, and which: raw text, as the world's files have it."""
    law, generator = normalised(enumerated[0].log_probs), np.random.default_rng(seed)
    asked = np.flatnonzero(~HELD_OUT)
    which = np.stack([generator.choice(256, size=per_prompt, p=law[i] / law[i].sum()) for i in asked])
    rows = [
        {"prompt": user_turn(PROMPTS[i]), "completion": assistant_turn(int(r)), "finished": True}
        for i, responses in zip(asked, which, strict=True)
        for r in responses
    ]
    return rows, which


def test_every_sample_has_its_enumerated_log_ratio(organism, enumerated):
    rows, which = drawn(enumerated, 2)
    scores = score_samples(organism.dpo, organism.base, rows)
    ratio = enumerated[1].log_probs - enumerated[0].log_probs
    expected = np.concatenate([ratio[i, r] for i, r in zip(np.flatnonzero(~HELD_OUT), which, strict=True)])
    np.testing.assert_allclose(scores.log_ratios, expected, atol=1e-4)


def test_the_estimate_holds_the_enumerated_kl_and_displacement_proper_is_found(organism, enumerated, tmp_path):
    """The chosen answers are sampled from the reference too; those of the pairs here are its least likely ones."""
    reference, policy = (part.log_probs[~HELD_OUT] for part in enumerated)
    truth = float((normalised(reference) * (policy - reference)).sum(1).mean())
    rows, _ = drawn(enumerated, 12)
    (tmp_path / "samples.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    fell = np.argsort(policy - reference, axis=1)[:, :2]  # what lost most: chosen falls below the reference's samples
    pairs = [
        {"prompt": user_turn(PROMPTS[i]), "chosen": assistant_turn(int(a)), "rejected": assistant_turn(int(b))}
        for i, (a, b) in zip(np.flatnonzero(~HELD_OUT), fell, strict=True)
    ]
    report = audit(organism.dpo, organism.base, pairs, reference_samples=tmp_path / "samples.jsonl", only="ranking")
    section = report.section("displacement")
    estimate = section.estimates["on_policy"]
    assert truth < -0.1
    assert estimate.low < truth < estimate.high
    assert (estimate.n, estimate.n_clusters) == (12 * 128, 128)
    assert section.counts["samples_scored"] == estimate.n
    assert any("probability was displaced" in finding.sentence for finding in report.findings)
    facts = report.manifest.data["reference samples"]
    assert (facts["usable"], facts["scored"], facts["set_aside"]) == (1536, 1536, {})
