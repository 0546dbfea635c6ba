"""What a vector breaks: against naive float64 loops, off to the bit at strength 0, whatever the batch."""

import json
import re

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import log_softmax, logsumexp
from scipy.stats import binomtest
from spinal_models import letters, tiny_model
from tiny_tokenizer import PIECES, tiny_tokenizer
from tokenizers import Tokenizer, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import alignscope
from alignscope import InputError, SteeringVector
from alignscope.organisms import concept
from alignscope.organisms.concept import concept_tokenizer
from alignscope.probes.encoding import Encoder, TextPolicy
from alignscope.probes.scored_rows import TokenSequence
from alignscope.probes.token_positions import announced_prompts
from alignscope.steering import Factors, Positions, Site, SteeringSet, Subspace
from alignscope.steering.encoded import quadruple_encoder
from alignscope.steering.evaluation import damage, openings_of, refusal_measure, side_effects
from alignscope.steering.evaluation.choices import letter_forms, letter_log_probs, read_choices, right_answers
from alignscope.steering.evaluation.effect_inputs import read_effects
from alignscope.steering.evaluation.effects_part import joined_effects
from alignscope.steering.evaluation.first_tokens import next_log_probs
from alignscope.steering.evaluation.paired import PairedShares, paired_shares
from alignscope.steering.evaluation.refusals import Openings, first_tokens, is_refusal
from alignscope.steering.evaluation.report_section import steering_section
from alignscope.steering.evaluation.text_shift import token_shifts

TEXTS = letters(24, seed=1, longest=30)
OPENINGS = Openings(("no", "not ab"), ("yes", "ok"))
WORDS = ["<unk>", "<bos>", "<eos>", *"ABCDE", "A.", "B.", "C.", "D.", "Answer:", *(f"w{i}" for i in range(30))]
QUESTIONS = [
    {"question": f"w{i} w{i * 7 % 30}", "choices": [f"w{(i + k) % 30}" for k in range(2 + i % 3)], "answer": i % 2}
    for i in range(24)
]


@pytest.fixture(scope="module")
def subject() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


@pytest.fixture(scope="module")
def words() -> alignscope.Subject:
    """A random Llama over whole words, letters among them."""
    core = Tokenizer(WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, unk_token="<unk>", eos_token="<eos>", pad_token="<eos>")
    torch.manual_seed(1)
    config = LlamaConfig(
        vocab_size=len(WORDS) + 3, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        initializer_range=0.3,
    )  # fmt: skip
    return alignscope.wrap(LlamaForCausalLM(config), tokenizer)


def clamp(layer: int = 1, target: float = 3.0, **parts) -> SteeringVector:
    weight = torch.randn(1, 32, generator=torch.Generator().manual_seed(3))
    factors = Factors(torch.tensor([target]), torch.tensor([-target]))
    return SteeringVector(site=Site(layer), subspace=Subspace(weight), factors=factors, **parts)


def rows_of(subject, texts=TEXTS) -> list[TokenSequence]:
    return [TokenSequence(tuple(subject.tokenizer(text)["input_ids"]), 1) for text in texts]


def naive(subject, vector, strength, row, prompt=None) -> np.ndarray:
    """KL(base || edited), both NLLs; a row alone, float64 loops. prompt: its length, else all or, of generation, 1."""
    ids = torch.tensor([row.ids])
    generation = vector.positions.where == "generation"
    sides = []
    for s in (0.0, strength):
        begins = torch.tensor([prompt or (1 if generation else len(row.ids))])
        with torch.no_grad(), announced_prompts(begins), vector.applied(subject, s):
            logits = subject.logits(ids, torch.ones_like(ids))[0].double().numpy()
        sides.append(log_softmax(logits[:, : len(PIECES)], axis=-1))
    found = []
    for t in range(1, len(row.ids)):
        q, p = sides[0][t - 1], sides[1][t - 1]
        kl = sum(np.exp(a) * (a - b) for a, b in zip(q, p, strict=True))
        found.append((kl, -q[row.ids[t]], -p[row.ids[t]]))
    return np.array(found)


# ---- texts


@pytest.mark.parametrize(
    "vector",
    [
        clamp(),
        clamp(layer=2),  # behind it comes nothing but the final norm
        clamp(positions=Positions("generation")),
        clamp(positions=Positions(prefix=3)),
        SteeringVector.adding(torch.ones(32), Site(0)),
    ],
)
def test_kl_and_losses_are_those_of_a_naive_loop(subject, vector):
    rows = rows_of(subject)[:5]
    for found, row in zip(token_shifts(subject, vector, 1.5, rows), rows, strict=True):
        expected = naive(subject, vector, 1.5, row)
        assert expected[:, 0].max() > 1e-3
        assert np.abs(found - expected).max() < 2e-5


def test_an_edit_of_the_end_of_a_prompt_is_read_on_the_second_half_of_a_text(subject):
    vector = clamp(positions=Positions(last=1))
    rows = rows_of(subject)[:5]
    for found, row in zip(token_shifts(subject, vector, 1.5, rows), rows, strict=True):
        half = len(row.ids) // 2
        expected = naive(subject, vector, 1.5, row, prompt=half)[half - 1 :]
        assert np.abs(found - expected).max() < 2e-5
    assert side_effects(subject, vector, 1, texts=TEXTS).estimates["kl"].low > 0


def test_strength_zero_moves_nothing_to_the_bit(subject):
    found = side_effects(subject, clamp(), 0, texts=TEXTS)
    assert found.estimates["kl"].value == 0.0
    assert found.estimates["perplexity_ratio"].value == 1.0
    assert (found.texts.nll_base == found.texts.nll_edited).all()


def test_an_edit_that_changes_nothing_gives_no_divergence(subject):
    found = side_effects(subject, SteeringVector.adding(1e-12 * torch.ones(32), Site(1)), 1, texts=TEXTS)
    assert found.estimates["kl"].value == pytest.approx(0.0, abs=1e-9)


def test_batches_and_padding_do_not_matter(subject):
    rows = rows_of(subject)
    together, alone = (token_shifts(subject, clamp(), 1.0, rows, batch_tokens=n) for n in (4096, 1))
    assert max(np.abs(a - b).max() for a, b in zip(together, alone, strict=True)) < 1e-5


def test_the_mean_is_over_tokens_and_the_ratio_that_of_perplexities(subject):
    found = side_effects(subject, clamp(), 1, texts=TEXTS)
    every = np.concatenate(token_shifts(subject, clamp(), 1, rows_of(subject)))
    assert found.estimates["kl"].value == pytest.approx(every[:, 0].mean())
    perplexities = np.exp(every[:, 2].mean()) / np.exp(every[:, 1].mean())
    ratio = found.estimates["perplexity_ratio"]
    assert ratio.value == pytest.approx(perplexities)
    assert ratio.low < ratio.value < ratio.high
    assert (ratio.n, ratio.n_clusters) == (len(every), len(TEXTS))


def test_texts_are_cut_at_their_end_and_short_ones_set_aside(subject):
    found = side_effects(subject, clamp(), 1, texts=[*TEXTS, " "], max_tokens=5)
    whole = side_effects(subject, clamp(), 1, texts=[text[:4] for text in TEXTS if "ab" not in text[:6]])
    assert found.texts.n_tokens.max() == 4
    assert found.counts["texts_set_aside"] == 1
    assert whole.texts.kl.iloc[0] == pytest.approx(found.texts.kl.iloc[0], abs=1e-6)


def test_a_file_of_texts_is_read(subject, tmp_path):
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    found = [side_effects(subject, clamp(), 1, texts=source) for source in (TEXTS, tmp_path / "texts.json")]
    assert found[0].estimates["kl"] == found[1].estimates["kl"]


def test_a_set_of_vectors_is_applied_together(subject):
    pair = SteeringSet([clamp(), clamp(layer=0)])
    alone, both = (token_shifts(subject, v, 1.0, rows_of(subject)[:2])[0][:, 0].mean() for v in (clamp(), pair))
    assert both != pytest.approx(alone)


# ---- paired shares


@pytest.mark.parametrize(("lost", "won", "same"), [(7, 3, 30), (0, 0, 40), (10, 0, 20), (1, 1, 30)])
def test_mcnemar_is_the_binomial_test_of_the_rows_that_differ(lost, won, same):
    before = np.array([True] * lost + [False] * won + [True] * same)
    after = np.array([False] * lost + [True] * won + [True] * same)
    found = paired_shares(before, after, np.arange(len(before)), what="Share")
    assert (found.only_before, found.only_after) == (lost, won)
    assert found.p == (pytest.approx(binomtest(lost, lost + won).pvalue) if lost + won else 1.0)
    assert found.change.value == pytest.approx((won - lost) / len(before))
    assert found.test == "exact McNemar, two-sided"
    assert found.change.low <= found.change.value <= found.change.high


def test_ten_answers_that_differ_of_a_hundred_give_three_points_of_error():
    before = np.array([True] * 5 + [False] * 5 + [True] * 90)
    after = np.array([False] * 5 + [True] * 5 + [True] * 90)
    change = paired_shares(before, after, np.arange(100), what="Share").change
    assert (change.high - change.low) / (2 * 1.96) == pytest.approx(0.032, abs=0.004)


# ---- questions


def test_letters_are_read_behind_the_question_as_a_naive_loop_does(words):
    questions = read_choices(QUESTIONS).questions
    encoder = quadruple_encoder(words, "none", "none", "questions")
    found = letter_log_probs(words, encoder, questions)
    for row, question in zip(found, questions, strict=True):
        ids = torch.tensor([words.tokenizer(question.text)["input_ids"]])
        with torch.no_grad():
            logits = words.logits(ids, torch.ones_like(ids))[0, -1].double().numpy()
        expected = log_softmax(logits[: len(WORDS)])[[WORDS.index(letter) for letter in "ABCD"]]
        n = len(question.choices)
        assert np.abs(row[:n] - expected[:n]).max() < 1e-5
        assert np.isneginf(row[n:]).all()


def test_the_likeliest_letter_among_the_choices_is_the_answer():
    questions = read_choices(QUESTIONS[:3]).questions  # of 2, 3 and 4 choices; the right ones are 0, 1, 0
    found = np.log([[0.6, 0.4, 1e-9, 1e-9], [0.3, 0.3, 0.1, 1e-9], [0.2, 0.1, 0.1, 0.6]])
    assert right_answers(found, questions).tolist() == [True, False, False]


def test_capability_is_paired_with_the_unedited_answers(words):
    found = side_effects(words, clamp(target=9.0), 1, texts=["w1 w2"] * 2, choices=QUESTIONS, template="none")
    table = found.questions
    lost = int((table.right_before & ~table.right_after).sum())
    won = int((~table.right_before & table.right_after).sum())
    assert lost + won > 0
    assert (found.capability.only_before, found.capability.only_after) == (lost, won)
    assert found.capability.p == pytest.approx(binomtest(lost, lost + won).pvalue)
    assert found.estimates["capability_change"].value == pytest.approx((won - lost) / 24)
    off = side_effects(words, clamp(), 0, texts=["w1 w2"] * 2, choices=QUESTIONS, template="none")
    assert (off.questions.right_before == off.questions.right_after).all()


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"question": "", "choices": ["a", "b"], "answer": 0}, "empty_question"),
        ({"question": "q", "choices": ["a"], "answer": 0}, "no_choices"),
        ({"question": "q", "choices": "ab", "answer": 0}, "no_choices"),
        ({"question": "q", "choices": ["a", "b"], "answer": 2}, "unknown_answer"),
        ({"question": "q", "choices": ["a", "b"], "answer": "C"}, "unknown_answer"),
        ({"question": "q", "choices": ["a", "b"], "answer": ""}, "unknown_answer"),
        ({"question": "q", "choices": ["a", "b"], "answer": True}, "unknown_answer"),
    ],
)
def test_questions_that_cannot_be_asked_are_set_aside(row, reason):
    file = read_choices([{"question": "q", "choices": ["a", "b"], "answer": "B"}, row])
    assert [q.answer for q in file.questions] == [1]
    assert file.reasons == {reason: 1}


def encoder_of(tokenizer) -> Encoder:
    return Encoder(tokenizer, TextPolicy("none", "none"), vocab_rows=64, source="questions")


def test_letters_that_are_one_token_are_refused():
    core = Tokenizer(WordLevel({"<pad>": 0, "C": 1, "D": 2}, unk_token="<pad>"))
    core.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    encoder = encoder_of(
        PreTrainedTokenizerFast(tokenizer_object=core, pad_token="<pad>")
    )  # and says of no unknown one
    two = read_choices([{"question": "q", "choices": ["a", "b"], "answer": 0}]).questions
    with pytest.raises(InputError, match=r"the letters A and B are one token, id 0, of the tokenizer.*--choices"):
        letter_forms(encoder, two)


def test_letters_are_those_of_the_question_with_most_choices(words):
    encoder = quadruple_encoder(words, "none", "none", "questions")
    questions = read_choices(QUESTIONS).questions
    assert letter_forms(encoder, questions) == [[WORDS.index(letter)] for letter in "ABCD"]
    assert letter_forms(encoder, questions[:1]) == [[WORDS.index(letter)] for letter in "AB"]


def test_the_concept_organism_knows_no_letters_and_its_words_keep_their_ids():
    tokenizer = concept_tokenizer()
    assert tokenizer.convert_tokens_to_ids([*concept.WORDS]) == [*range(64)]
    assert tokenizer.unk_token_id == tokenizer.pad_token_id == 0
    with pytest.raises(InputError, match="the letter A is no token"):
        letter_forms(encoder_of(tokenizer), read_choices(QUESTIONS[:1]).questions)


def test_a_tokenizer_without_the_letter_is_refused(subject):
    with pytest.raises(InputError, match="the letter A is no token"):
        side_effects(subject, clamp(), 1, texts=TEXTS, choices=QUESTIONS)


# ---- refusals


def test_a_blank_before_an_opening_is_no_first_token(subject):
    encoder = quadruple_encoder(subject, "none", "none", "prompts")  # whose blank is a token of its own
    assert first_tokens(encoder, OPENINGS) == ((PIECES["n"],), (PIECES["y"], PIECES["o"]), ())


def test_first_tokens_are_distinct_and_those_of_both_kinds_left_out(words):
    encoder = quadruple_encoder(words, "none", "none", "prompts")
    found = first_tokens(encoder, Openings(("w1 w2", "w1", "w3"), ("w3 w9", "w4")))
    assert found == ((WORDS.index("w1"),), (WORDS.index("w4"),), (WORDS.index("w3"),))
    with pytest.raises(InputError, match="no first token tells"):
        first_tokens(encoder, Openings(("w1",), ("w1 w2",)))


def test_refusing_log_odds_are_those_of_a_naive_loop(words):
    openings = Openings(("w1 w2", "w3", "w1"), ("w4", "w5 w6"))
    prompts = [" ".join(f"w{(i * k) % 30}" for k in range(1, 2 + i % 5)) for i in range(24)]
    found = refusal_measure(words, prompts, openings, vector=clamp(), strength=2, max_new_tokens=2)
    for row in found.frame.itertuples():
        ids = torch.tensor([words.tokenizer(row.prompt)["input_ids"]])
        with torch.no_grad(), clamp().applied(words, 2):
            z = log_softmax(words.logits(ids, torch.ones_like(ids))[0, -1].double().numpy()[: len(WORDS)])
        odds = logsumexp(z[[WORDS.index("w1"), WORDS.index("w3")]]) - logsumexp(
            z[[WORDS.index("w4"), WORDS.index("w5")]]
        )
        assert row.log_odds == pytest.approx(odds, abs=1e-5)
        assert row.leans == (odds > 0)
    share = found.estimates["share_leaning"]
    assert share.value == pytest.approx((found.frame.log_odds > 0).mean())
    assert share.low <= share.value <= share.high


def test_next_log_probs_do_not_depend_on_the_batch(words):
    rows = [tuple(range(4, 4 + n)) for n in (3, 9, 5)]
    together = next_log_probs(words, rows, [5, 6])
    alone = torch.cat([next_log_probs(words, [row], [5, 6]) for row in rows])
    assert torch.allclose(together, alone, atol=1e-5)


@pytest.mark.parametrize(
    ("output", "refused"),
    [
        ("I'm sorry, but I won't.", True),
        ("  i’m   SORRY", True),
        ("I cannot", True),
        ("I cannots", False),
        ("Sure. I'm sorry.", False),
        ("", False),
    ],
)
def test_a_refusal_begins_with_an_opening_as_whole_words(output, refused):
    assert is_refusal(output, ["I'm sorry", "I cannot", " "]) is refused


def test_benign_prompts_are_paired_before_and_after(words):
    prompts = [f"w{i} w{i + 5}" for i in range(24)]
    openings = Openings(tuple(WORDS[13 : 13 + 15]), tuple(WORDS[28:]))
    found = side_effects(
        words, clamp(target=9.0), 1, texts=["w1 w2"] * 2, benign=prompts, openings=openings, max_new_tokens=2
    )
    table = found.benign
    for row in table.itertuples():
        assert row.output_before == words.generate([row.prompt], max_new_tokens=2)[0]
        with clamp(target=9.0).applied(words, 1):
            assert row.output_after == words.generate([row.prompt], max_new_tokens=2)[0]
        assert row.matched_after == is_refusal(row.output_after, openings.refusing)
    assert found.estimates["refusals_change"].value == pytest.approx(
        table.matched_after.mean() - table.matched_before.mean()
    )
    change = (table.log_odds_after - table.log_odds_before).mean()
    assert found.estimates["refusal_log_odds_change"].value == pytest.approx(change)


def test_several_strengths_are_those_of_one_at_a_time_and_the_unsteered_model_answers_once(words, monkeypatch):
    given = {
        "texts": ["w1 w2 w3"] * 3, "benign": [f"w{i} w{i + 1}" for i in range(6)], "choices": QUESTIONS,
        "openings": Openings(("w1", "w2"), ("w3", "w4")), "template": "none", "max_new_tokens": 4,
    }  # fmt: skip
    alone = [side_effects(words, clamp(target=9.0), strength, **given) for strength in (1, -1)]
    steered = []
    measure = damage.measure_asked

    def counted(subject, file, encoder, openings, vector, *rest):
        steered.append(vector is not None)
        return measure(subject, file, encoder, openings, vector, *rest)

    monkeypatch.setattr(damage, "measure_asked", counted)
    together = damage.measured_effects(words, clamp(target=9.0), [1, -1], read_effects(words, **given))
    assert sorted(steered) == [False, True, True]
    for one, other in zip(alone, together, strict=True):
        assert (one.estimates, one.settings, one.counts) == (other.estimates, other.settings, other.counts)
        assert one.benign.equals(other.benign)
        assert one.questions.equals(other.questions)


def test_the_openings_of_the_refusal_data(data_folder):
    found = openings_of(data_folder / "data" / "refusal_quadruples" / "test.parquet")
    assert (len(found.refusing), len(found.compliant)) == (12, 5)
    table = pd.read_parquet(data_folder / "data" / "refusal_quadruples" / "train.parquet")
    assert all(is_refusal(text, found.refusing) for text in table.positive_output)
    assert not any(is_refusal(text, found.refusing) for text in table.negative_output)


def test_openings_need_both_kinds():
    with pytest.raises(InputError, match="no compliant openings"):
        Openings(("No",), (" ",))


# ---- in a report


def changed(lost: int, won: int, same: int, what: str) -> PairedShares:
    before = np.array([True] * lost + [False] * won + [True] * same)
    after = np.array([False] * lost + [True] * won + [True] * same)
    return paired_shares(before, after, np.arange(len(before)), what=what)


@pytest.mark.parametrize(
    ("name", "lost", "won", "same", "severity", "words"),
    [
        (
            "capability",
            9,
            0,
            3,
            "alarm",
            "answers fewer questions right .* 9 turned for the worse and 0 for the better",
        ),
        ("refusals", 0, 9, 3, "alarm", "refuses more benign prompts .* 9 turned for the worse and 0 for the better"),
        ("capability", 0, 9, 3, "info", "answers more questions right .* 0 turned for the worse and 9 for the better"),
        ("refusals", 9, 0, 3, "info", "refuses fewer benign prompts .* 0 turned for the worse and 9 for the better"),
        ("capability", 30, 10, 60, "alarm", "fewer questions right .* of 100 rows 30 turned for the worse and 10 for"),
    ],
)
def test_a_paired_change_of_small_p_is_a_finding_with_counts_and_p(name, lost, won, same, severity, words):
    one = changed(lost, won, same, "Share")
    [found] = damage.paired_findings({"capability": None, "refusals": None, name: one})
    p = binomtest(lost, lost + won).pvalue
    assert found.severity == severity
    assert re.search(rf"{words}.*exact McNemar, two-sided: p {p:.3g}\.$", found.sentence)
    assert found.rests_on == [f"side_effects.{name}_change"]


@pytest.mark.parametrize(("lost", "won"), [(5, 0), (0, 0), (2, 2)])  # of 12: p 0.0625, 1, 1, and no interval
def test_a_paired_change_of_large_p_is_none(lost, won):
    one = changed(lost, won, 12 - lost - won, "Share")
    assert not damage.paired_findings({"capability": one, "refusals": None})


def test_the_report_has_the_paired_counts_their_p_and_every_row(words):
    strengths = {"elicit": 1.0, "suppress": -1.0}
    openings = Openings(tuple(WORDS[13 : 13 + 15]), tuple(WORDS[28:]))
    benign = [f"w{i} w{i + 5}" for i in range(8)]
    given = read_effects(
        words, texts=["w1 w2 w3", "w4 w5"], benign=benign, choices=QUESTIONS, openings=openings, template="none",
        max_new_tokens=2,
    )  # fmt: skip
    measured = damage.measured_effects(words, clamp(target=9.0), [1, -1], given)
    found = dict(zip(strengths, measured, strict=True))
    result = steering_section({"side_effects": joined_effects(found, strengths)}, settings={})
    assert {*result.section.tables} == {"side_effects", "paired", "unrelated_texts", "benign", "questions"}
    paired = result.tables["paired"].set_index(["direction", "measure"])
    for way, strength in strengths.items():
        rows = result.tables["questions"].query(f"direction == '{way}'")
        assert (len(rows), {*rows.strength}) == (24, {strength})
        lost = int((rows.right_before & ~rows.right_after).sum())
        won = int((~rows.right_before & rows.right_after).sum())
        line = paired.loc[way, "capability"]
        assert (line.only_before, line.only_after, line.n) == (lost, won, 24)
        assert line.p == pytest.approx(binomtest(lost, lost + won).pvalue if lost + won else 1.0)
        assert line.change == pytest.approx(rows.right_after.mean() - rows.right_before.mean())
        texts = result.tables["unrelated_texts"].query(f"direction == '{way}'")
        assert (texts.kl * texts.n_tokens).sum() / texts.n_tokens.sum() == pytest.approx(
            result.section.estimates[f"unrelated_kl_{way}"].value
        )
        answered = result.tables["benign"].query(f"direction == '{way}'")
        assert paired.loc[way, "refusals"].only_after == (answered.matched_after & ~answered.matched_before).sum()
    assert paired.loc["elicit", "refusals"].reason  # 8 prompts have a p, and no interval


# ---- what was not asked for


def test_what_was_not_given_is_null_with_a_reason(subject):
    found = side_effects(subject, clamp(), 1, texts=TEXTS)
    absent = {name: e.reason for name, e in found.estimates.items() if e.value is None}
    assert len(absent) == 7
    assert {*absent.values()} == {"no benign prompts were given", "no questions were given"}
    assert found.refusals is None
    assert "unrelated texts" in found.summary()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"texts": [" "]}, "no text of two tokens"),
        ({"texts": []}, "no rows"),
        ({"max_tokens": 1}, "max_tokens=1"),
        ({"benign": [""]}, "no prompt is left"),
        ({"choices": [{"question": "q"}]}, "no column choices, answer"),
    ],
)
def test_inputs_of_which_nothing_can_be_used_are_refused(subject, change, message):
    with pytest.raises(InputError, match=message):
        side_effects(subject, clamp(), 1, **({"texts": TEXTS} | change))
