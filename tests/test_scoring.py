"""Pair scores: against a naive float64 loop, then what must not move them, then faults that must."""

import copy
import json
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from tiny_tokenizer import CHAT, PIECES, tiny_tokenizer
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

import alignscope
from alignscope import InputError, PairScores, score_pairs
from alignscope.probes.encoding import Encoder, TextPolicy
from alignscope.probes.inputs import PairFile, read_pairs
from alignscope.probes.sequence_scores import TokenSequence, score_sequences
from alignscope.probes.shards import ScoreCache

CLOSE = 1e-5  # nats a sequence, on tiny models
EXACT = 1e-10  # the same in float64, where the formula alone is left
ROWS = [
    {"id": "a", "prompt": "one:", "chosen": "xyz", "rejected": "w"},
    {"id": "b", "prompt": "a much longer prompt 123.\n", "chosen": "q", "rejected": "some longer answer"},
    {"id": "c", "prompt": "t", "chosen": "abcabc", "rejected": "cba"},
    {"id": "d", "prompt": "of middle length", "chosen": " no", "rejected": " yes yes yes yes"},
    {"id": "e", "prompt": "p 5", "chosen": "z", "rejected": "y"},
]


def tiny_gpt2(seed: int, *, rows: int = len(PIECES)) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=rows, n_positions=64, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
        bos_token_id=PIECES["<bos>"], eos_token_id=PIECES["<eos>"],
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def subject(
    seed: int = 0,
    *,
    rows: int = len(PIECES),
    tokenizer: PreTrainedTokenizerFast | None = None,
    dtype: torch.dtype = torch.float32,
):
    return alignscope.wrap(tiny_gpt2(seed, rows=rows).to(dtype), tokenizer or tiny_tokenizer())


@pytest.fixture(scope="module")
def policy():
    return subject(0)


@pytest.fixture(scope="module")
def reference():
    return subject(1)


def many(n: int) -> list[dict]:
    """Pairs of unequal length, none twice."""
    return [
        {"prompt": f"prompt {i % 7} {'more ' * (i % 4)}:", "chosen": f"{i} y" + "z" * (i % 5), "rejected": f"n {i * i}"}
        for i in range(n)
    ]


def naive_total(model: GPT2LMHeadModel, ids: list[int], start: int, vocab: int | None = None) -> float:
    """One row, unpadded, in float64 throughout."""
    with torch.no_grad():
        logits = copy.deepcopy(model).double()(input_ids=torch.tensor([ids])).logits[0, :, :vocab]
    log_probs = logits.log_softmax(-1)
    return math.fsum(log_probs[t - 1, ids[t]].item() for t in range(start, len(ids)))


def encoded(rows: list[dict], **policy) -> Iterator[tuple[list[int], int]]:
    """Ids and start of chosen and rejected in turn, written down without the encoder: letters, BOS, EOS."""
    for row in rows:
        for side in ("chosen", "rejected"):
            prompt = tiny_tokenizer()(row["prompt"])["input_ids"]
            completion = tiny_tokenizer()(row[side], add_special_tokens=False)["input_ids"]
            yield [*prompt, *completion, PIECES["<eos>"]], len(prompt)


def columns(scores: PairScores, role: str) -> list[float]:
    """Chosen and rejected in turn."""
    return [value for pair in zip(scores[f"{role}_chosen"], scores[f"{role}_rejected"], strict=True) for value in pair]


class Forwards:
    """How many rows pass the first block of a model."""

    def __init__(self, *models) -> None:
        self.rows = 0
        self.handles = [model.model.transformer.h[0].register_forward_hook(self) for model in models]

    def __call__(self, module, inputs, output) -> None:
        self.rows += inputs[0].shape[0]

    def __enter__(self) -> "Forwards":
        return self

    def __exit__(self, *error) -> None:
        for handle in self.handles:
            handle.remove()


# ---- the number


def test_scores_equal_a_naive_loop_in_float64():
    policy, reference = (subject(seed, dtype=torch.float64) for seed in (0, 1))
    scores = score_pairs(policy, reference, ROWS)
    for role, model in (("policy", policy.model), ("reference", reference.model)):
        expected = [naive_total(model, ids, start) for ids, start in encoded(ROWS)]
        assert columns(scores, role) == pytest.approx(expected, abs=EXACT)
    lengths = [len(ids) - start for ids, start in encoded(ROWS)]
    assert [*scores["n_chosen"]] == lengths[::2]
    assert [*scores["n_rejected"]] == lengths[1::2]
    assert scores["policy_chosen"].dtype == np.float64
    assert list(scores["pair_id"]) == ["a", "b", "c", "d", "e"]


def test_float32_costs_less_than_5e_6_nats_a_token(policy):
    scores = score_pairs(policy, None, ROWS)
    exact = score_pairs(subject(0, dtype=torch.float64), None, ROWS)
    for side in ("chosen", "rejected"):
        moved = np.abs(scores[f"policy_{side}"] - exact[f"policy_{side}"]) / scores[f"n_{side}"]
        assert 0 < moved.max() < 5e-6


def test_rows_of_the_head_without_a_token_are_masked():
    padded = subject(3, rows=len(PIECES) + 16, dtype=torch.float64)
    scores = score_pairs(padded, None, ROWS)
    expected = [naive_total(padded.model, ids, start, len(PIECES)) for ids, start in encoded(ROWS)]
    unmasked = [naive_total(padded.model, ids, start) for ids, start in encoded(ROWS)]
    assert columns(scores, "policy") == pytest.approx(expected, abs=EXACT)
    assert max(abs(a - b) for a, b in zip(expected, unmasked, strict=True)) > 0.1  # the mask is not idle here
    assert scores.settings["masked_head_rows"] == 16


def test_scored_tokens_are_those_of_the_completion_in_unequal_rows(policy):
    """T15: (prompt 1, completion 3) and (3, 1) keep 3 and 1 tokens, whichever is padded."""
    found = score_sequences(policy, [TokenSequence((5, 6, 7, 8), 1), TokenSequence((5, 6, 7, 8), 3)])
    assert [n for _, n in found] == [3, 1]
    assert [total for total, _ in found] == pytest.approx(
        [naive_total(policy.model, [5, 6, 7, 8], 1), naive_total(policy.model, [5, 6, 7, 8], 3)], abs=CLOSE
    )
    with pytest.raises(ValueError, match="something must predict it"):
        score_sequences(policy, [TokenSequence((5, 6), 0)])


def test_a_merged_boundary_is_scored_from_the_common_ids(policy):
    """T14: piece "ab", prompt "a", answers "b" and "c"."""
    row = [{"prompt": "a", "chosen": "b", "rejected": "c"}]
    with pytest.raises(InputError, match=r"row 1: .*\['ab', '<eos>'\].*boundary='accept'"):
        score_pairs(policy, None, row)
    scores = score_pairs(policy, None, row, boundary="accept", eos="none")
    assert (scores["n_chosen"][0], scores["n_rejected"][0], scores["n_prompt"][0]) == (1, 2, 2)
    bos = PIECES["<bos>"]
    assert columns(scores, "policy") == pytest.approx(
        [naive_total(policy.model, [bos, PIECES["ab"]], 1), naive_total(policy.model, [bos, 5, 7], 1)], abs=CLOSE
    )
    assert scores.counts["boundary_shift"] == 1
    assert "merges" in scores.notices[-1]


def test_a_few_shifted_boundaries_are_counted_and_kept(policy):
    scores = score_pairs(policy, None, [*many(40), {"prompt": "a", "chosen": "b", "rejected": "c"}])
    assert scores.counts["boundary_shift"] == 1
    assert len(scores) == 41


# ---- what must not move it


@pytest.mark.parametrize(
    "options", [{"batch_tokens": 1}, {"batch_tokens": 70}, {"shard_size": 1}, {"shard_size": 3, "batch_tokens": 100}]
)
def test_batches_and_shards_move_nothing(policy, reference, options, tmp_path):
    rows = many(12)
    whole, parts = (
        score_pairs(policy, reference, rows, **more) for more in ({}, options | {"shards": tmp_path / "shards"})
    )
    for role in ("policy", "reference"):
        assert columns(parts, role) == pytest.approx(columns(whole, role), abs=CLOSE)


def test_order_moves_nothing(policy):
    there, back = score_pairs(policy, None, ROWS), score_pairs(policy, None, ROWS[::-1])
    assert [*back["policy_chosen"]] == pytest.approx([*there["policy_chosen"][::-1]], abs=CLOSE)
    assert [*back["pair_id"]] == ["e", "d", "c", "b", "a"]


def padded_totals(
    model: GPT2LMHeadModel,
    side: str,
    *,
    pad: int = 0,
    mask_side: str | None = None,
    positions: bool = True,
    mask: bool = True,
    shift: int = 1,
) -> list[float]:
    """The batch scored the classical way, right or with a fault built in."""  # fmt: skip
    rows = [*encoded(ROWS)]
    width = max(len(ids) for ids, _ in rows)
    ids = torch.full((len(rows), width), pad)
    attention = torch.zeros(len(rows), width, dtype=torch.long)
    places = []
    for i, (row, _) in enumerate(rows):
        place = slice(0, len(row)) if side == "right" else slice(width - len(row), width)
        ids[i, place] = torch.tensor(row)
        places.append(place.start)
        attention[i, slice(0, len(row)) if (mask_side or side) == "right" else slice(width - len(row), width)] = 1
    more: dict[str, Tensor] = {"attention_mask": attention} if mask else {}
    if positions:
        more["position_ids"] = (attention.cumsum(-1) - 1).clamp(min=0)
    with torch.no_grad():
        log_probs = model(input_ids=ids, **more).logits.double().log_softmax(-1)
    return [
        sum(log_probs[i, places[i] + t - shift, row[t]].item() for t in range(start, len(row)))
        for i, (row, start) in enumerate(rows)
    ]


@pytest.mark.parametrize(
    "padding",
    [{"side": "right"}, {"side": "right", "pad": 9}, {"side": "left"}, {"side": "left", "pad": 9}],
    ids=["right", "other pad id", "left", "left, other pad id"],
)
def test_padding_is_no_matter_where_mask_and_positions_are_right(policy, padding):
    assert columns(score_pairs(policy, None, ROWS), "policy") == pytest.approx(
        padded_totals(policy.model, **padding), abs=CLOSE
    )


@pytest.mark.parametrize(
    "fault",
    [
        {"side": "left", "positions": False},
        {"side": "left", "mask_side": "right"},
        {"side": "right", "shift": 0},
        {"side": "left", "mask": False},
    ],
    ids=["no positions", "mask on the wrong side", "off by one", "no mask on left pads"],
)
def test_faults_move_the_number_so_the_tolerance_can_fail(policy, fault):
    """T14."""
    right, wrong = columns(score_pairs(policy, None, ROWS), "policy"), padded_totals(policy.model, **fault)
    assert max(abs(a - b) for a, b in zip(right, wrong, strict=True)) > 1000 * CLOSE


# ---- the table


def test_rows_are_turned_to_the_majority_and_human_ties_are_flagged(policy):
    votes = [(1, 3, 1), (2, 2, 1), (5, 0, 0)]
    rows = [
        {"prompt": f"p{i}", "response_a": "x", "response_b": "yy", "votes_a": a, "votes_b": b, "votes_tie": tie}
        for i, (a, b, tie) in enumerate(votes)
    ]
    scores = score_pairs(policy, None, rows)
    assert [*scores["preference"]] == [0.7, 0.5, 1.0]
    assert [*scores["n_votes"]] == [5, 5, 5]
    assert [*scores["swapped"]] == [True, False, False]
    assert [*scores["human_tie"]] == [False, True, False]
    assert [*scores["n_chosen"]] == [3, 2, 2]  # EOS included
    assert {name: scores.counts[name] for name in ("swapped", "human_tie", "scored")} == {
        "swapped": 1, "human_tie": 1, "scored": 3,
    }  # fmt: skip


def test_a_bare_decision_is_one_vote_and_a_judges_probability_none(policy):
    assert [*score_pairs(policy, None, ROWS)["n_votes"]] == [1] * 5
    judged = score_pairs(policy, None, [{"prompt": "p", "response_a": "x", "response_b": "y", "preference": 0.1}])
    assert (judged["preference"][0], judged["n_votes"][0], judged["swapped"][0]) == (0.9, 0, True)


def test_pairs_of_one_prompt_share_a_cluster(policy):
    rows = [
        {"prompt": "p", "chosen": "x", "rejected": "y"},
        {"prompt": "q", "chosen": "x", "rejected": "z"},
        {"prompt": "p", "chosen": "u", "rejected": "v"},
        {"prompt": "r", "chosen": "s", "rejected": "t", "prompt_id": "given"},
    ]
    ids = score_pairs(policy, None, rows)["prompt_id"]
    assert ids[0] == ids[2] != ids[1]
    assert ids[3] == "given"
    linked = score_pairs(policy, None, rows, cluster="response")["prompt_id"]
    assert linked[0] == linked[1] == linked[2] != linked[3]  # "q" shares the response "x" with "p"
    with pytest.raises(InputError, match="cluster"):
        score_pairs(policy, None, rows, cluster="topic")


def test_duplicates_are_set_aside_and_contradictions_counted(policy):
    again, opposite = dict(ROWS[0], id="a2"), dict(ROWS[1], chosen=ROWS[1]["rejected"], rejected=ROWS[1]["chosen"])
    scores = score_pairs(policy, None, [*ROWS, again, opposite], max_invalid=0.5)
    assert [(row.row, row.reason, row.name) for row in scores.invalid] == [(6, "duplicate_pair", "a2")]
    assert scores.counts["contradicting_pair"] == 1
    assert len(scores) == 6


def test_rows_set_aside_by_reading_and_by_encoding_are_all_listed(policy):
    rows = [
        *many(38),
        {"prompt": "p", "chosen": "", "rejected": "y"},
        {"prompt": "x" * 70, "chosen": "a", "rejected": "c"},
    ]
    scores = score_pairs(policy, None, rows)
    assert scores.invalid_counts == {"empty_completion": 1, "too_long": 1}
    assert scores.summary() == "38 pairs scored; rows set aside: 1 empty_completion, 1 too_long."
    with pytest.raises(InputError, match=r"--max-invalid 0\.03.*empty_completion"):
        score_pairs(policy, None, rows, max_invalid=0.03)


def test_without_a_reference_its_columns_are_empty(policy):
    scores = score_pairs(policy, None, ROWS)
    assert np.isnan(scores["reference_chosen"]).all()
    assert not scores.has_reference
    assert scores.settings["reference_kind"] == "none"


def test_a_raw_string_on_a_model_with_a_template_is_a_notice():
    templated = subject(0, tokenizer=tiny_tokenizer(template=CHAT))
    scores = score_pairs(templated, None, ROWS)
    assert scores.counts["raw_on_template_model"] == 5
    assert "5 pairs are plain strings" in scores.notices[0]
    assert "--template chat" in scores.notices[0]
    assert score_pairs(templated, None, ROWS, template="none").notices == ()


# ---- references


def test_another_tokenizer_is_refused_with_the_difference(policy):
    other = tiny_tokenizer()
    other.add_tokens(["<new>"])
    with pytest.raises(InputError, match=r"different tokenizers: .*1 only in the other \['<new>'\]"):
        score_pairs(policy, subject(1, rows=len(PIECES) + 1, tokenizer=other), ROWS)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft on transformers 5.23
def test_a_fresh_adapter_changes_nothing_exactly():
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True)
    adapted = alignscope.wrap(get_peft_model(tiny_gpt2(0), lora).eval(), tiny_tokenizer())
    scores = score_pairs(adapted, "adapter-disabled", ROWS)
    assert scores.settings["reference_kind"] == "adapter-disabled"
    for side in ("chosen", "rejected"):
        assert (scores[f"policy_{side}"] == scores[f"reference_{side}"]).all()
    assert "the same weights?" in scores.notices[0]


# ---- explicit rewards


def test_explicit_columns_of_the_file_are_kept(policy):
    rows = [dict(row, explicit_chosen=i, explicit_rejected=-i) for i, row in enumerate(ROWS)]
    rows[2]["explicit_chosen"] = None
    scores = score_pairs(policy, None, rows)
    assert scores["explicit_chosen"][1] == 1
    assert np.isnan(scores["explicit_rejected"][2])  # half a comparison is none
    assert scores.counts["explicit_missing"] == 1
    assert scores.settings["explicit"] == "columns of the pairs file"


def test_a_function_can_be_the_judge(policy):
    def length(prompts, completions):
        return [len(text) for text in completions]

    scores = score_pairs(policy, None, ROWS, reward=length)
    assert [*scores["explicit_chosen"]] == [len(row["chosen"]) for row in ROWS]
    with pytest.raises(InputError, match="10 scores expected"):
        score_pairs(policy, None, ROWS, reward=lambda prompts, completions: [1.0])


def test_a_reward_model_reads_the_same_ids_in_any_batch(policy, tmp_path):
    from transformers import GPT2ForSequenceClassification

    torch.manual_seed(4)
    config = copy.deepcopy(policy.model.config)
    config.num_labels, config.pad_token_id = 1, PIECES["<pad>"]
    model = GPT2ForSequenceClassification(config).eval()
    model.save_pretrained(tmp_path / "reward")
    tiny_tokenizer().save_pretrained(tmp_path / "reward")
    with torch.no_grad():
        expected = [model(input_ids=torch.tensor([ids])).logits.item() for ids, _ in encoded(ROWS)]
    for more in ({}, {"batch_tokens": 1}):
        scores = score_pairs(policy, None, ROWS, reward=tmp_path / "reward", **more)
        assert columns(scores, "explicit") == pytest.approx(expected, abs=CLOSE)


# ---- cache and shards


def test_cached_scores_are_the_fresh_ones_bit_for_bit(policy, reference, tmp_path):
    """T17: and another template, EOS policy or longest length misses."""
    fresh = score_pairs(policy, reference, ROWS, cache=tmp_path)
    with Forwards(policy, reference) as forwards:
        cached = score_pairs(policy, reference, ROWS, cache=tmp_path)
        assert forwards.rows == 0
        assert cached.frame.equals(fresh.frame)
        score_pairs(policy, reference, ROWS, cache=tmp_path, boundary="accept")  # decides on stopping alone
        assert forwards.rows == 0
        score_pairs(policy, reference, ROWS, cache=tmp_path, eos="none")
        assert forwards.rows == 20
        score_pairs(policy, reference, ROWS, cache=tmp_path, max_length=50)
        assert forwards.rows == 40
        score_pairs(policy, subject(2), ROWS, cache=tmp_path)
        assert forwards.rows == 40  # the policy's scores serve any reference
    templated = [subject(0, tokenizer=tiny_tokenizer(template=text)) for text in (CHAT, CHAT.replace("|", "."))]
    with Forwards(*templated) as forwards:
        for i, model in enumerate(templated):
            score_pairs(model, None, ROWS, cache=tmp_path, template="chat")
            assert forwards.rows == 10 * (i + 1)


def test_a_torn_line_of_the_cache_is_scored_again(policy, tmp_path):
    fresh = score_pairs(policy, None, ROWS, cache=tmp_path)
    (file,) = (tmp_path / "scores").iterdir()
    file.write_bytes(file.read_bytes()[:-5])
    assert score_pairs(policy, None, ROWS, cache=tmp_path).frame.equals(fresh.frame)
    with Forwards(policy) as forwards:
        score_pairs(policy, None, ROWS, cache=tmp_path)
        assert forwards.rows == 0


class KilledError(Exception):
    pass


def test_a_killed_run_repeats_at_most_one_shard(policy, reference, tmp_path):
    rows = many(40)
    options = {"shard_size": 4, "batch_tokens": 200}
    whole = score_pairs(policy, reference, rows, **options)
    seen: list[tuple[str, int]] = []

    def kill(stage: str, done: int, total: int) -> None:
        seen.append((stage, done))
        if stage == "scoring reference" and done > total / 2:
            raise KilledError

    with Forwards(policy, reference) as first, pytest.raises(KilledError):
        score_pairs(policy, reference, rows, shards=tmp_path, progress=kill, **options)
    kept = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    with Forwards(policy, reference) as second:
        again = score_pairs(policy, reference, rows, shards=tmp_path, **options)
    assert again.frame.equals(whole.frame)  # bit for bit
    assert first.rows + second.rows == 2 * 2 * 40  # each sequence once under each model
    assert 0 < second.rows < 80
    assert all(path.stat().st_mtime_ns == time for path, time in kept.items())


def test_a_lost_or_torn_shard_alone_is_repeated(policy, tmp_path):
    rows = many(40)
    whole = score_pairs(policy, None, rows, shards=tmp_path, shard_size=4)
    files = sorted(tmp_path.iterdir())
    assert len(files) == 10
    files[3].unlink()
    files[5].write_text(files[5].read_text()[:-20])
    with Forwards(policy) as forwards:
        assert score_pairs(policy, None, rows, shards=tmp_path, shard_size=4).frame.equals(whole.frame)
        assert forwards.rows == 16


def test_shards_of_other_settings_are_not_used(policy, reference, tmp_path):
    score_pairs(policy, None, ROWS, shards=tmp_path)
    with Forwards(reference) as forwards:
        other = score_pairs(reference, None, ROWS, shards=tmp_path)
        assert forwards.rows == 10
    assert other.frame.equals(score_pairs(reference, None, ROWS).frame)


def test_a_sequence_that_occurs_twice_is_scored_once(policy):
    rows = [{"prompt": "p", "chosen": "x", "rejected": letter} for letter in "defgh"]
    with Forwards(policy) as forwards:
        score_pairs(policy, None, rows)
        assert forwards.rows == 6


def test_progress_counts_tokens_up_to_all(policy, reference):
    calls: list[tuple[str, int, int]] = []
    score_pairs(policy, reference, many(40), shard_size=8, progress=lambda *call: calls.append(call))
    for stage in ("scoring policy", "scoring reference"):
        done = [call[1] for call in calls if call[0] == stage]
        total = next(call[2] for call in calls if call[0] == stage)
        assert done[0] == 0
        assert done[-1] == total
        assert done == sorted(set(done))


# ---- the table on its own


def test_a_table_survives_its_file(policy, reference, tmp_path):
    scores = score_pairs(policy, reference, [*ROWS, dict(ROWS[0])], max_invalid=0.2)
    read = PairScores.load(scores.save(tmp_path / "scores.parquet"))
    assert read.frame.equals(scores.frame)
    assert (read.settings, read.counts, read.invalid) == (scores.settings, scores.counts, scores.invalid)
    json.dumps(scores.settings, allow_nan=False)
    with pytest.raises(InputError, match="not a readable pair table"):
        PairScores.load(tmp_path / "gone.parquet")
    pd.DataFrame({"a": [1]}).to_parquet(tmp_path / "other.parquet")
    with pytest.raises(InputError, match="no pair table"):
        PairScores.load(tmp_path / "other.parquet")


def test_a_table_from_own_numbers_is_turned_and_filled():
    frame = pd.DataFrame(
        {"policy_chosen": [-1.0, -2.0, -3.0], "policy_rejected": [-4, -5, -6], "preference": [0.25, 0.5, 1.0]}
    )
    scores = PairScores.from_frame(frame)
    assert [*scores["policy_chosen"]] == [-4, -2, -3]
    assert [*scores["preference"]] == [0.75, 0.5, 1.0]
    assert [*scores["swapped"]] == [True, False, False]
    assert [*scores["human_tie"]] == [False, True, False]
    assert [*scores["pair_id"]] == [*scores["prompt_id"]] == ["1", "2", "3"]
    with pytest.raises(InputError, match="no column policy_rejected"):
        PairScores.from_frame(frame.drop(columns="policy_rejected"))
    bad = PairScores.from_frame(frame.assign(preference=[2.0, 0.5, 0.5]))
    assert [*bad["pair_id"]] == ["2", "3"]
    assert bad.invalid_counts == {"votes_invalid": 1}


def test_scores_that_are_not_finite_are_set_aside():
    frame = pd.DataFrame(
        {"policy_chosen": [-1.0, math.nan, -3.0], "policy_rejected": [-4.0, -5.0, -6.0],
         "reference_chosen": [-1.0, -1.0, -math.inf], "reference_rejected": [-1.0, -1.0, -1.0]}
    )  # fmt: skip
    scores = PairScores.from_frame(frame)
    assert [(row.row, row.reason) for row in scores.invalid] == [(2, "non_finite_policy"), (3, "non_finite_reference")]
    assert len(scores) == 1


def test_the_encoder_and_the_table_count_the_same_tokens(policy):
    file: PairFile = read_pairs(ROWS)
    encoder = Encoder(policy.tokenizer, TextPolicy(), vocab_rows=len(PIECES), limit=64)
    scores = score_pairs(policy, None, file)
    assert [encoder.encode_pair(pair).n_chosen for pair in file] == [*scores["n_chosen"]]


def test_settings_out_of_range_are_refused(policy, tmp_path: Path):
    with pytest.raises(InputError, match="at least 1"):
        score_pairs(policy, None, ROWS, batch_tokens=0)
    with pytest.raises(InputError, match="at most 64 tokens"):
        score_pairs(policy, None, ROWS, max_length=100)
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="cannot be written"):
        score_pairs(policy, None, ROWS, shards=tmp_path / "file" / "shards")
    with pytest.raises(InputError, match="cache cannot be used"):
        score_pairs(policy, None, ROWS, cache=tmp_path / "file")


# ---- a cache that fails costs time, not the run


def test_a_cache_that_cannot_be_made_names_the_ways_out(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"file/scores: the cache cannot be used.*ALIGNSCOPE_CACHE.*--no-cache"):
        ScoreCache(tmp_path / "file", "key")


def test_a_cache_that_cannot_be_read_is_kept_in_memory(policy, tmp_path):
    fresh = score_pairs(policy, None, ROWS, cache=tmp_path)
    (file,) = (tmp_path / "scores").iterdir()
    file.unlink()
    file.mkdir()
    assert score_pairs(policy, None, ROWS, cache=tmp_path).frame.equals(fresh.frame)
    cache = ScoreCache(tmp_path, file.stem)
    assert cache.problem == f"{file}: the cache cannot be read (Is a directory); scores are not kept"
    cache.add({"a": 1.0})
    assert cache.values == {"a": 1.0}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the device that is always full is Linux's")
def test_a_full_disk_leaves_the_cache_in_memory(tmp_path):
    cache = ScoreCache(tmp_path, "key")
    cache.add({"a": 1.0})
    assert cache.problem is None
    kept = cache.file.read_bytes()
    cache.file.unlink()
    cache.file.symlink_to("/dev/full")
    cache.add({"b": 2.0})
    cache.add({"c": 3.0})
    assert cache.problem == f"{cache.file}: the cache cannot be written (No space left on device); scores are not kept"
    assert cache.values == {"a": 1.0, "b": 2.0, "c": 3.0}
    cache.file.unlink()
    cache.file.write_bytes(kept + b'{"x": null, "y": "1"}\n\xff\n[1]\n{"d": 4.0}\n')
    assert ScoreCache(tmp_path, "key").values == {"a": 1.0, "d": 4.0}


# ---- a reward function that returns no numbers


@pytest.mark.parametrize(
    "scores",
    [["0.5", "good"] * 5, ["1.5"] * 10, [[1.0], [1.0, 2.0]] * 5, [object()] * 10, [1j] * 10, ["1", None] * 5, "0123"],
)
def test_a_reward_function_without_numbers_is_an_input_error(policy, scores):
    with pytest.raises(InputError, match="reward function: expected a list of numbers"):
        score_pairs(policy, None, ROWS, reward=lambda prompts, completions: scores)


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
def test_a_reward_function_may_return_any_row_of_numbers(policy, kind):
    scores = score_pairs(policy, None, ROWS, reward=lambda prompts, completions: kind([2, 1] * 5))
    assert [*scores["explicit_chosen"]] == [2.0] * 5
    none = score_pairs(policy, None, ROWS, reward=lambda prompts, completions: [None, 1] + [2, 1] * 4)
    assert none.counts["explicit_missing"] == 1


def test_prompts_that_were_cut_are_counted_and_told():
    from test_shared_prefix import rows, tiny

    some = [row | {"prompt": "p" * 60} for row in rows(2)] + rows(4)[2:]
    found = score_pairs(tiny(0), None, some, max_length=40, over_length="prompt_left")
    assert found.counts["truncated"] == 2
    assert any(text.startswith("in 2 pairs the prompt's beginning was cut") for text in found.notices)
