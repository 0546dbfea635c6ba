"""Judges without a language-model judge: words, a reward model, and the unsteered model's own probabilities."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from spinal_models import tiny_model
from tiny_tokenizer import PIECES, tiny_tokenizer
from transformers import LlamaConfig, LlamaForSequenceClassification

import alignscope
from alignscope import InputError
from alignscope.organisms.concept import ConceptOrganism, build_concept_organism
from alignscope.probes.reward import RewardModel
from alignscope.probes.shards import item_key
from alignscope.probes.subject import Fingerprint
from alignscope.steering import Add, Site
from alignscope.steering.encoded import quadruple_encoder
from alignscope.steering.evaluation import KeywordScorer, OfflineScorer, RewardScorer, Scorer
from alignscope.steering.evaluation.asked import read_asked
from alignscope.steering.evaluation.named_scorers import named_scorer
from alignscope.steering.evaluation.offline import concept_rating, fluency_rating, instruction_rating, require_pairs
from alignscope.steering.quadruples import read_quadruples


@pytest.fixture(scope="module")
def organism() -> ConceptOrganism:
    return build_concept_organism(steps=120)


@pytest.fixture(scope="module")
def offline(organism) -> OfflineScorer:
    return OfflineScorer.fit(organism.subject, organism.quadruples[:24], max_new_tokens=5)


@pytest.fixture(scope="module")
def reward() -> RewardModel:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(PIECES), hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_labels=1, pad_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    parts = Fingerprint(weights="w", config="c", tokenizer="t", template=None, combined="reward")
    model = LlamaForSequenceClassification(config).eval()
    return RewardModel(model, tiny_tokenizer(), name="tiny", fingerprints=parts, facts={})


# ---- words


@pytest.mark.parametrize(
    ("output", "full", "rating"),
    [("no word", 2, 0.0), ("AHOY there", 2, 1.0), ("ahoy, matey", 2, 2.0), ("ahoy ahoy", 2, 2.0), ("ahoy", 1, 2.0)],
)
def test_matches_are_counted_over_all_words(output, full, rating):
    assert KeywordScorer(["ahoy", "mate[ys]"], full=full)("p", output, "")[0] == rating


def test_what_no_judge_rates_is_missing_or_comes_from_another():
    assert KeywordScorer("a")("p", "b", "")[1:] == (None, None)
    assert KeywordScorer("a", rest=lambda p, o, c: (2, 1, 0))("p", "b", "") == (0.0, 1, 0)


@pytest.mark.parametrize("patterns", [[], ["("]])
def test_words_that_cannot_be_looked_for_are_refused(patterns):
    with pytest.raises(InputError):
        KeywordScorer(patterns)


# ---- a reward model


def test_a_reward_stands_among_those_of_the_references(reward):
    tokenizer = reward.tokenizer

    def of(answer: str) -> float:
        ids = torch.tensor([[*tokenizer("ab")["input_ids"], *tokenizer(answer, add_special_tokens=False)["input_ids"],
                             tokenizer.eos_token_id]])  # fmt: skip
        return float(reward.rewards(ids, torch.ones_like(ids)))

    answers = sorted("cdefghijk", key=of)
    references = {"ab": [answers[1], answers[3], answers[5], answers[7]]}
    judge = RewardScorer(reward, references)
    shares = [0, 1 / 8, 1 / 4, 3 / 8, 1 / 2, 5 / 8, 3 / 4, 7 / 8, 1]  # equal ones half
    expected = [0.0 if share < 1 / 3 else 2.0 if share >= 2 / 3 else 1.0 for share in shares]
    assert [judge("ab", answer, "")[1] for answer in answers] == expected


def test_the_reward_may_rate_any_of_the_three(reward):
    judge = RewardScorer(reward, {"ab": ["c"]}, rates="fluency", rest=lambda p, o, c: (2, 1, None))
    assert judge("ab", "c", "") == (2, 1, 1.0)


def test_a_prompt_without_references_has_no_rating_and_an_empty_answer_none_at_all(reward):
    judge = RewardScorer(reward, {"ab": ["c"]})
    assert judge("other", "c", "") == (None, None, None)
    assert judge("ab", " ", "") == (None, 0.0, None)
    assert judge(({"role": "user", "content": "ab"},), "c", "") == (None, None, None)


@pytest.mark.parametrize("options", [{"references": {}}, {"references": {"ab": []}}, {"rates": "length"}])
def test_a_reward_judge_that_cannot_judge_is_refused(reward, options):
    with pytest.raises(InputError):
        RewardScorer(reward, **({"references": {"ab": ["c"]}} | options))


# ---- the unsteered model


@pytest.mark.parametrize(("e", "rating"), [(-1.0, 0.0), (0.0, 0.0), (1e-9, 1.0), (0.99, 1.0), (1.0, 2.0)])
def test_the_concepts_rating(e, rating):
    assert concept_rating(e, 1.0) == rating


@pytest.mark.parametrize(
    ("above", "equal", "rating"), [(0, 0, 2.0), (0, 1, 1.0), (3, 0, 1.0), (3, 1, 1.0), (4, 0, 0.0)]
)
def test_the_instructions_rating(above, equal, rating):
    others = [1.0] * above + [0.0] * equal + [-1.0] * (8 - above - equal)
    assert instruction_rating(0.0, others) == rating


@pytest.mark.parametrize(
    ("loss", "ids", "rating"),
    [
        (1.0, range(20), 2.0),
        (1.1, range(20), 1.0),
        (2.0, range(20), 1.0),
        (2.1, range(20), 0.0),
        (1.0, [1, 2, 3, 4] * 3, 2.0),
        (1.0, [1, 2, 3, 4] * 4, 0.0),
        (1.0, [1, 2], 2.0),
    ],
)
def test_fluencys_rating(loss, ids, rating):
    assert fluency_rating(loss, 1.0, ids) == rating


def log_prob(organism, prompt: str, answer: str) -> float:
    """Naive: each token of the answer behind the prompt, float64."""
    tokenizer = organism.subject.tokenizer
    before, after = tokenizer(prompt)["input_ids"], tokenizer(answer, add_special_tokens=False)["input_ids"]
    ids = torch.tensor([[*before, *after]])
    with torch.no_grad():
        logs = organism.subject.model(input_ids=ids).logits[0].double().log_softmax(-1)
    return sum(float(logs[len(before) - 1 + k, token]) for k, token in enumerate(after))


def test_the_medians_and_percentiles_are_those_of_a_naive_loop(organism, offline):
    rows = organism.quadruples[:24]
    added = [
        (log_prob(organism, r["positive_input"], r["positive_output"])
         - log_prob(organism, r["negative_input"], r["positive_output"])) / 5
        for r in rows
    ]  # fmt: skip
    assert offline.expected == pytest.approx(np.median(added), abs=1e-4)
    given = [(r["negative_input"], r["negative_output"]) for r in rows]
    losses = [-log_prob(organism, prompt, answer) / 5 for prompt, answer in given]
    found = OfflineScorer.fit(organism.subject, rows, unsteered=given)
    assert found.usual == pytest.approx(np.percentile(losses, 95), abs=1e-4)


def test_concept_and_prompt_are_told_from_the_probabilities(organism, offline):
    row, other = organism.quadruples[0], organism.quadruples[1]
    plain, shown = row["negative_output"], row["positive_output"]
    assert offline(row["negative_input"], plain, "")[:2] == (0.0, 2.0)
    assert offline(row["positive_input"], plain, "")[0] == 0.0  # x of the same row stands behind it
    assert offline(row["positive_input"], shown, "")[0] > 0
    assert offline(row["negative_input"], other["negative_output"], "")[1] < 2.0
    assert offline(row["negative_input"], " n1 n1 n1 n1 n1 n1 n1 n1", "")[2] == 0.0


def test_what_x_c_adds_is_counted_a_token(organism, offline):
    row = organism.quadruples[3]
    asked, plain = (
        log_prob(organism, row[f"{side}_input"], row["positive_output"]) for side in ("positive", "negative")
    )
    e = (asked - plain) / 5
    for expected, rating in ((e - 1e-3, 2.0), (e + 1e-3, 1.0)):
        scorer = replace(offline, expected=expected)
        assert scorer(row["negative_input"], row["positive_output"], "")[0] == rating


def test_ratings_are_those_of_the_unsteered_model_also_inside_an_edit(organism, offline):
    row = organism.quadruples[2]
    call = (row["negative_input"], row["negative_output"], "")
    outside = offline(*call)
    far = 20 * torch.randn(64, generator=torch.Generator().manual_seed(0))
    with organism.subject.editing({Site(2): Add(far)}):
        assert log_prob(organism, *call[:2]) < -5 * 2 * offline.usual  # what it would be rated by
        assert offline(*call) == outside
    assert outside[2] > 0


def test_rows_that_it_was_not_fitted_on_are_rated_by_their_own_partners(organism, offline):
    """As a sweep does: fitted on training rows, asked about others, with no name of the concept."""
    asked = read_asked(organism.fresh[:12]).prompts
    scorer = named_scorer(
        organism.subject, "offline", organism.quadruples[:24], asked, max_new_tokens=5, temperature=0
    )  # fmt: skip
    rows = organism.fresh[:12]
    shown = [scorer(row["negative_input"], row["positive_output"], "") for row in rows]
    plain = [scorer(row["negative_input"], row["negative_output"], "") for row in rows]
    kept = [scorer(row["positive_input"], row["positive_output"], "") for row in rows]
    assert all(ratings[0] > 0 for ratings in (*shown, *kept))  # at the median and above: 2
    assert [ratings[0] for ratings in plain] == [0.0] * 12
    assert [ratings[0] for ratings in shown] == [ratings[0] for ratings in kept]  # x and x_c are the same two
    assert np.mean([ratings[2] for ratings in shown]) > 1.5  # an answer reads no worse for the concept it shows
    assert not {item_key(row["negative_input"]) for row in rows} & set(offline.partners)


@pytest.mark.parametrize(
    ("row", "told"),
    [
        ({"prompt": "NEG c1 SEP", "direction": "suppress", "concept": "p"}, "row 1.*suppress: it has no x to"),
        ({"prompt": "NEG c1 SEP"}, "row 1.*to elicit: it has no concept.*--concept"),
    ],
)
def test_prompts_that_it_cannot_rate_are_refused(organism, row, told):
    file = read_quadruples(organism.quadruples[:4])
    with pytest.raises(InputError, match=told):
        require_pairs(read_asked([row]).prompts, file)
    require_pairs(read_asked([{"prompt": "NEG c1 SEP", "concept": "p"}]).prompts, file)
    held = organism.quadruples[1]["positive_input"]
    require_pairs(read_asked([{"prompt": held, "direction": "suppress"}]).prompts, file)
    require_pairs(read_asked(organism.fresh[:3]).prompts, file)


def test_the_concept_of_a_prompt_without_partner_and_concept_is_missing(organism, offline):
    row = organism.fresh[3]
    concept, instruction, fluency = offline(row["negative_input"], row["negative_output"], " ")
    assert concept is None
    assert (instruction, fluency) == offline(row["negative_input"], row["negative_output"], "p")[1:]


def test_one_prompt_may_stand_with_several_concepts(organism):
    first = [row | {"concept": "p-words"} for row in organism.quadruples[:24]]
    turned = {"positive_input": first[0]["negative_input"] + " SEP", "concept": "another"}
    scorer = OfflineScorer.fit(organism.subject, [*first, first[0] | turned], max_new_tokens=5)
    alone = OfflineScorer.fit(organism.subject, first, max_new_tokens=5)
    call = first[0]["negative_input"], first[0]["positive_output"]
    assert scorer(*call, "p-words")[0] == alone(*call, "p-words")[0] > 0
    paired = alone.paired(read_asked([first[0] | turned]).prompts)
    assert paired(*call, "p-words")[0] == alone(*call, "p-words")[0]
    assert paired.partners[item_key(call[0], "another")][1] == turned["positive_input"]


def test_a_prompt_that_no_quadruple_holds_gets_a_built_partner(organism, offline):
    found = offline(organism.fresh[0]["negative_input"], organism.fresh[0]["negative_output"], "SEP POS")
    assert all(rating in (0.0, 1.0, 2.0) for rating in found)


@pytest.mark.parametrize("output", ["", "  "])
def test_an_empty_answer_is_rated_zero(organism, offline, output):
    assert offline(organism.quadruples[0]["negative_input"], output, "") == (0.0, 0.0, 0.0)


def test_an_answer_too_long_for_the_model_is_missing():
    subject = alignscope.wrap(tiny_model(blocks=2, width=32), tiny_tokenizer())
    scorer = OfflineScorer(
        subject=subject, encoder=quadruple_encoder(subject, "none", "none", "prompts"), expected=1.0, usual=1.0,
        prompts=tuple(f"say {a}" for a in "cdefghijklm"), partners={},
    )  # fmt: skip
    assert scorer("say c", "x" * 300, "ab") == (None, None, None)


def test_a_model_that_cannot_tell_the_concept_and_too_few_prompts_are_refused(organism):
    turned = [
        {"negative_input": r["positive_input"], "negative_output": r["negative_output"],
         "positive_input": r["negative_input"], "positive_output": r["positive_output"]}
        for r in organism.quadruples[:12]
    ]  # fmt: skip
    with pytest.raises(InputError, match="cannot tell the concept"):
        OfflineScorer.fit(organism.subject, turned, max_new_tokens=5)
    with pytest.raises(InputError, match="8 distinct plain inputs"):
        OfflineScorer.fit(organism.subject, organism.quadruples[:8], max_new_tokens=5)


def test_judges_are_scorers_and_say_that_they_are_reconstructed(offline, reward):
    for judge in (offline, KeywordScorer("a"), RewardScorer(reward, {"ab": ["c"]})):
        assert isinstance(judge, Scorer)
        assert judge.reconstructed
        assert judge.name
