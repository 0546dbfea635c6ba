"""Both completions in one row: the layout by hand, then rows of their own as the oracle, then faults that must show."""

import dataclasses
import random
from functools import cache

import pytest
import torch
from tiny_tokenizer import PIECES, tiny_tokenizer
from transformers import FalconConfig, FalconForCausalLM, GPT2Config, GPT2LMHeadModel

import alignscope
import zoo
from alignscope import InputError, score_pairs
from alignscope.probes.scored_rows import TokenSequence, batches, over_batches, padded_tokens, rows_of
from alignscope.probes.sequence_scores import log_probs, score_sequences, work_order
from alignscope.probes.shared_prefix import LEAST, choose_way

CLOSE = 1e-5  # nats a sequence, on tiny models
EXACT = 1e-10  # the same in float64, where only the order of additions is left
FAULT = 1e-2
ATTENTION = ("gpt2", "llama", "gemma2", "gemma3", "mistral", "qwen2", "qwen3_moe", "opt", "falcon")
OTHERS = {  # how they are refused
    "bloom": "the model takes no position ids",
    "mpt": "the model takes no position ids",
    "rwkv": "the model takes no position ids",
    "mamba": "the model takes no position ids",
    "openai_gpt": "the model takes no mask of rows x columns",
    "recurrent_gemma": r"differs by \d+(\.\d+)? nats",
}


def drawn(*shapes: tuple[int, int, int], seed: int = 0) -> list[TokenSequence]:
    """Chosen and rejected in turn, of (prompt, chosen, rejected) random ids."""
    ids = random.Random(seed)
    sequences = []
    for prompt, *rests in shapes:
        before = tuple(ids.randrange(7, 400) for _ in range(prompt))
        sequences += [
            TokenSequence(before + tuple(ids.randrange(7, 400) for _ in range(rest)), prompt) for rest in rests
        ]
    return sequences


SEQUENCES = drawn((12, 9, 7), (1, 3, 8), (20, 1, 5), (15, 4, 4), (8, 20, 2))


@cache
def model(name: str, dtype: torch.dtype = torch.float32):
    """A model of the zoo with larger weights: as it is, its tokens hardly look at each other."""
    made = zoo.model(name).to(dtype)
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim > 1:
                parameter.mul_(4)
    return alignscope.wrap(made, tokenizer())


@cache
def tokenizer():
    return zoo.tokenizer()


@pytest.fixture(scope="module")
def llama():
    return model("llama")


def tiny(seed: int = 0, *, positions: int = 64):
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=len(PIECES), n_positions=positions, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3,
        bos_token_id=PIECES["<bos>"], eos_token_id=PIECES["<eos>"],
    )  # fmt: skip
    return alignscope.wrap(GPT2LMHeadModel(config).eval(), tiny_tokenizer())


def rows(n: int, prompt: int = 8) -> list[dict]:
    return [
        {"prompt": f"{i:03d}" + "pq"[i % 2] * (prompt - i % 3), "chosen": f"{i}y" + "z" * (i % 5), "rejected": f"n{i}"}
        for i in range(n)
    ]


def pairs_of(sequences: list[TokenSequence]) -> list[tuple[TokenSequence, ...]]:
    return list(zip(sequences[::2], sequences[1::2], strict=True))


def totals(subject, groups, batch_tokens: int = 8192) -> list[float]:
    return [x for part in over_batches(groups, batch_tokens, lambda rows: log_probs(subject, rows, None)) for x in part]


def furthest(first, second) -> float:
    return max(abs(a - b) for a, b in zip(first, second, strict=True))


class Forwards:
    """Tokens and rows that pass the first block."""

    def __init__(self, *subjects) -> None:
        self.rows = self.tokens = 0
        self.handles = [subject.anatomy.blocks[0].register_forward_hook(self) for subject in subjects]

    def __call__(self, module, inputs, output) -> None:
        self.rows += inputs[0].shape[0]
        self.tokens += inputs[0].shape[0] * inputs[0].shape[1]

    def __enter__(self) -> "Forwards":
        return self

    def __exit__(self, *error) -> None:
        for handle in self.handles:
            handle.remove()


# ---- the layout


def test_a_row_holds_the_prefix_once_and_hides_one_rest_from_the_other():
    made = rows_of([(TokenSequence((5, 6, 7, 8), 2), TokenSequence((5, 6, 9), 2)), (TokenSequence((3, 4), 1),)])
    assert made.ids.tolist() == [[5, 6, 7, 8, 9], [3, 4, 0, 0, 0]]
    assert made.mask.tolist() == [[1] * 5, [1, 1, 0, 0, 0]]
    assert made.layout is not None
    assert made.layout.position_ids.tolist() == [[0, 1, 2, 3, 2], [0, 1, 0, 0, 0]]
    assert made.layout.visible[0].int().tolist() == [
        [1, 0, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 1, 0, 0],
        [1, 1, 1, 1, 0],
        [1, 1, 0, 0, 1],
    ]
    assert made.rows.tolist() == [0, 0, 0, 1]
    assert made.columns.tolist() == [1, 2, 1, 0]  # the prefix's last state predicts the first token of both rests
    assert made.targets.tolist() == [7, 8, 9, 4]
    assert made.counts == (2, 1, 1)


def test_rows_of_one_sequence_need_no_layout():
    assert rows_of([(sequence,) for sequence in SEQUENCES]).layout is None


def test_every_token_sees_itself_so_that_no_softmax_is_empty():
    layout = rows_of(pairs_of(SEQUENCES)).layout
    assert layout is not None
    assert layout.visible.diagonal(dim1=1, dim2=2).all()


def test_batches_count_the_masks_of_rows_and_columns():
    assert [*batches([2048] * 5, 10**9)] == [slice(0, 5)]
    assert [*batches([2048] * 5, 10**9, masked=True)] == [slice(0, 4), slice(4, 5)]  # 2^24 entries are 4 such rows
    assert [*batches([10**5], 8, masked=True)] == [slice(0, 1)]
    assert [*batches([10, 9, 7, 7], 100)] == [slice(0, 2), slice(2, 4)]


def test_padding_counts_into_the_saving():
    pair = (TokenSequence(tuple(range(10)), 6), TokenSequence((*range(6), 20), 6))
    assert padded_tokens([(pair[0],), (pair[1],)], 8192) == 17  # 7 is under 0.8 of 10: batches of their own
    assert padded_tokens([pair], 8192) == 11
    assert padded_tokens([pair, pair[:1], pair[1:]], 8192) == 28


def test_a_rankings_pairs_are_read_in_as_few_rows_as_pairs_allow():
    """a, b, c, d behind one prompt, every two of them: each once, ab in one row and cd in another."""
    ranked = [TokenSequence((1, 2, i), 2) for i in range(4)]
    every = [ranked[k] for a in range(4) for b in range(a + 1, 4) for k in (a, b)]
    keys = [str(sequence.ids) for sequence in every]
    assert [tuple(every[i].ids[-1] for i in row) for row in work_order(every, keys)] == [(0, 1), (2, 3)]


def test_sequences_that_do_not_begin_alike_are_not_put_in_one_row():
    apart = [TokenSequence((1, 2, 3), 2), TokenSequence((1, 4, 3), 2), TokenSequence((1, 2, 3), 1)]
    assert sorted(work_order([*apart, apart[0]], ["a", "b", "c", "a"])) == [(0,), (1,), (2,)]


# ---- the same numbers


@pytest.mark.parametrize("name", ATTENTION)
def test_one_row_gives_what_two_rows_give(name):
    subject = model(name)
    apart = [total for total, _ in score_sequences(subject, SEQUENCES)]
    for batch_tokens in (1, 8192):
        shared = score_sequences(subject, SEQUENCES, batch_tokens=batch_tokens, share_prefix=True)
        assert [total for total, _ in shared] == pytest.approx(apart, abs=CLOSE)
    assert choose_way(subject, SEQUENCES, share=True).shared


def test_in_float64_nothing_is_left_of_the_difference():
    subject = model("llama", torch.float64)
    apart, shared = totals(subject, [(s,) for s in SEQUENCES]), totals(subject, pairs_of(SEQUENCES))
    assert furthest(apart, shared) < EXACT


@pytest.mark.parametrize("name", ["gpt2", "llama"])
@pytest.mark.parametrize("fault", ["positions", "mask", "last state"])
def test_faults_move_the_number_so_the_tolerance_can_fail(name, fault):
    subject = model(name)
    rows = rows_of(pairs_of(SEQUENCES))
    right = log_probs(subject, rows, None)
    layout, columns = rows.layout, rows.columns
    assert layout is not None
    if fault == "positions":  # they go on through the row
        layout = dataclasses.replace(layout, position_ids=torch.arange(rows.ids.shape[1]).expand_as(rows.ids))
    elif fault == "mask":  # the rejected rest sees the chosen one
        layout = dataclasses.replace(layout, visible=torch.ones_like(layout.visible).tril())
    else:  # the first token of the rejected rest predicted from the end of the chosen one
        ends = torch.tensor(rows.counts).cumsum(0)
        columns = columns.clone()
        columns[ends[::2]] = columns[ends[::2] - 1] + 1
    assert furthest(right, log_probs(subject, dataclasses.replace(rows, layout=layout, columns=columns), None)) > FAULT


def test_a_row_for_two_may_be_longer_than_the_models_longest_input():
    subject = tiny(positions=24)
    sequences = [TokenSequence(s.ids, s.start) for s in drawn((12, 12, 11))]
    sequences = [TokenSequence(tuple(i % len(PIECES) for i in s.ids), s.start) for s in sequences]
    assert totals(subject, pairs_of(sequences)) == pytest.approx(totals(subject, [(s,) for s in sequences]), abs=CLOSE)
    longer = [TokenSequence((*s.ids, 5), s.start) for s in sequences]
    with pytest.raises(InputError, match="row 0 has 25 tokens; the model reads 24"):
        totals(subject, pairs_of(longer))


# ---- where it does not hold


@pytest.mark.parametrize("name", OTHERS)
def test_other_models_are_read_in_rows_of_their_own(name):
    subject = model(name)
    with pytest.raises(InputError, match=f"share_prefix=True: .*one row: {OTHERS[name]}"):
        choose_way(subject, SEQUENCES, share=True)
    many = drawn(*[(60, 2 + i % 5, 3 + i % 4) for i in range(200)])
    way = choose_way(subject, many, share="auto")
    assert not way.shared
    assert way.told.startswith("buckets: ")


def test_a_bias_that_counts_places_in_the_row_is_refused():
    """Falcon takes position ids even where its ALiBi ignores them."""
    torch.manual_seed(0)
    config = FalconConfig(
        vocab_size=411, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, ffn_hidden_size=128, alibi=True,
        initializer_range=0.2,
    )  # fmt: skip
    subject = alignscope.wrap(FalconForCausalLM(config).eval(), tokenizer())
    with pytest.raises(InputError, match="the model takes no mask of rows x columns"):
        choose_way(subject, SEQUENCES, share=True)


@pytest.mark.parametrize("name", ["gemma2", "gptneo"])
def test_a_window_is_respected(name):
    """A mask of rows and columns takes the place of the model's own: beyond the window of 32 it would see too much."""
    subject = model(name)
    inside, beyond = drawn((20, 12, 12)), drawn((20, 13, 12))
    assert subject.layout_problem(32) is None
    with pytest.raises(InputError, match="sequences of 33 tokens reach beyond the attention window of 32"):
        choose_way(subject, beyond, share=True)
    if name == "gemma2":  # gptneo's window counts places in the row: there the trial finds it
        assert choose_way(subject, inside, share=True).shared
    else:
        with pytest.raises(InputError, match="differs by"):
            choose_way(subject, inside, share=True)


def test_half_precision_rounds_differently_in_each_row_and_stays_apart():
    subject = model("llama", torch.bfloat16)
    with pytest.raises(InputError, match=r"differs by \d.* nats \(allowed: 0\.0001\)"):
        choose_way(subject, SEQUENCES, share=True)


def test_a_window_the_refusal_did_not_know_of_would_move_the_number():
    subject = model("gemma2")
    beyond = drawn((40, 30, 30))
    assert furthest(totals(subject, [(s,) for s in beyond]), totals(subject, pairs_of(beyond))) > FAULT


# ---- when it is worth it


def test_auto_shares_long_prompts_and_says_so(llama):
    many = drawn(*[(60, 3 + i % 5, 4 + i % 4) for i in range(200)])
    way = choose_way(llama, many)
    assert way.shared
    assert way.told.startswith("shared: differs by ")
    assert float(way.told.split()[3]) < CLOSE


@pytest.mark.parametrize(
    ("shapes", "why"),
    [
        ([(6, 30, 31)] * 200, "buckets: prompts are short"),  # 6 of 73 tokens
        ([(60, 5, 5)] * 20, "buckets: the pairs are few"),
    ],
)
def test_auto_leaves_apart_what_saves_little_without_asking_the_model(llama, shapes, why):
    with Forwards(llama) as forwards:
        assert choose_way(llama, drawn(*shapes)) == alignscope.probes.shared_prefix.Way(False, why)
    assert forwards.rows == 0


def test_a_saving_below_one_batch_is_not_worth_a_trial(llama):
    n = LEAST // 60
    assert not choose_way(llama, drawn(*[(60, 5, 5)] * (n - 1))).shared
    assert choose_way(llama, drawn(*[(60, 5, 5)] * (2 * n))).shared


def test_the_trial_is_kept_with_the_scores(llama, tmp_path):
    with Forwards(llama) as forwards:
        first = choose_way(llama, SEQUENCES, share=True, cache=tmp_path / "cache", shards=tmp_path / "shards")
        assert forwards.rows == 3 * 4  # 4 pairs both ways
        assert choose_way(llama, SEQUENCES, share=True, cache=tmp_path / "cache") == first
        assert choose_way(llama, SEQUENCES, share=True, shards=tmp_path / "shards") == first
        assert forwards.rows == 3 * 4


def test_never_means_never(llama):
    assert choose_way(llama, SEQUENCES, share=False).told == "buckets: asked for"


# ---- the pair table


def test_the_table_is_the_same_either_way():
    policy, reference = tiny(0), tiny(1)
    tables = [score_pairs(policy, reference, rows(12), share_prefix=share) for share in (False, True)]
    for column in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"):
        assert [*tables[1][column]] == pytest.approx([*tables[0][column]], abs=CLOSE)
    assert tables[0].settings["share_prefix"] == "buckets: asked for"
    told = [score_pairs(one, None, rows(12), share_prefix=True).settings["share_prefix"] for one in (policy, reference)]
    assert tables[1].settings["share_prefix"] == max(told, key=lambda way: float(way.split()[3]))
    assert told[0].startswith("shared: differs by ")


def test_each_models_way_is_told_where_they_differ():
    many = [{"prompt": "qz" * 50 + str(i), "chosen": "xx", "rejected": "y"} for i in range(110)]
    told = score_pairs(model("llama"), model("bloom"), many).settings["share_prefix"]
    assert told.startswith("policy shared: differs by ")
    assert told.endswith("; reference buckets: the model takes no position ids")


def test_another_value_is_refused():
    with pytest.raises(InputError, match="share_prefix='yes': expected 'auto', True or False"):
        score_pairs(tiny(), None, rows(2), share_prefix="yes")


def test_a_pair_is_one_row_of_the_forward_pass():
    subject = tiny()
    with Forwards(subject) as forwards:
        score_pairs(subject, None, rows(30), share_prefix=True)
    assert forwards.rows == 30 + 3 * 4


@pytest.mark.parametrize(("first", "second"), [(False, True), (True, False)])
def test_cached_scores_serve_the_other_way(first, second, tmp_path):
    subject = tiny()
    score_pairs(subject, None, rows(10), share_prefix=True, cache=tmp_path / "trial")
    fresh = score_pairs(subject, None, rows(10), share_prefix=first, cache=tmp_path / "cache")
    with Forwards(subject) as forwards:
        cached = score_pairs(subject, None, rows(10), share_prefix=second, cache=tmp_path / "cache")
    assert forwards.rows == (12 if second else 0)  # the trial
    assert cached.frame.equals(fresh.frame)


def test_a_sequence_whose_partner_is_cached_is_read_alone(llama, tmp_path):
    alone = score_sequences(llama, SEQUENCES[:1], cache=tmp_path)
    with Forwards(llama) as forwards:
        found = score_sequences(llama, SEQUENCES, cache=tmp_path, share_prefix=True, batch_tokens=1)  # no padding
    assert forwards.rows == 5
    assert forwards.tokens == len(SEQUENCES[1].ids) + (1 + 3 + 8) + (20 + 1 + 5) + (15 + 4 + 4) + (8 + 20 + 2)
    assert found[0] == alone[0]
    assert [total for total, _ in found] == pytest.approx(totals(llama, [(s,) for s in SEQUENCES]), abs=CLOSE)


class KilledError(Exception):
    pass


def test_a_killed_run_repeats_at_most_one_shard(tmp_path):
    subject = tiny()
    options = {"share_prefix": True, "shard_size": 4}
    whole = score_pairs(subject, None, rows(30), **options)
    seen: list[tuple[int, int]] = []

    def kill(stage: str, done: int, total: int) -> None:
        seen.append((done, total))
        if done > total / 2:
            raise KilledError

    with Forwards(subject) as forwards, pytest.raises(KilledError):
        score_pairs(subject, None, rows(30), shards=tmp_path, progress=kill, **options)
    assert forwards.rows < 30 + 12
    with Forwards(subject) as again:
        assert score_pairs(subject, None, rows(30), shards=tmp_path, **options).frame.equals(whole.frame)
    assert forwards.rows + again.rows == 30 + 12  # no pair twice, one trial
    assert [done for done, _ in seen] == sorted({done for done, _ in seen})
    assert len([*tmp_path.glob("scoring_policy_*.json")]) == 8  # 30 pairs, 4 a shard


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing.:FutureWarning")  # peft on transformers 5.23
def test_a_live_adapter_is_on_for_the_policy_and_off_for_the_reference():
    from peft import LoraConfig, get_peft_model

    lora = LoraConfig(r=4, target_modules=["c_attn"], fan_in_fan_out=True, init_lora_weights=False)
    adapted = alignscope.wrap(get_peft_model(tiny(0).model, lora).eval(), tiny_tokenizer())
    apart, shared = (score_pairs(adapted, "adapter-disabled", rows(8), share_prefix=share) for share in (False, True))
    for column in ("policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected"):
        assert [*shared[column]] == pytest.approx([*apart[column]], abs=CLOSE)
    assert furthest(shared["policy_chosen"], shared["reference_chosen"]) > FAULT
