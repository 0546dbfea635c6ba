"""The preference organism: its world is what it says, and an audit's estimates aim at the enumerated truths."""

import json
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.special import expit
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from alignscope.errors import InputError
from alignscope.organisms import (
    PreferenceOrganism,
    Recipe,
    build_preference_organism,
    open_preference_organism,
    population_table,
    reward_truth_table,
    truth_table,
)
from alignscope.organisms.enumeration import (
    Enumeration,
    enumerate_folder,
    enumerate_responses,
)
from alignscope.organisms.population import entropy, kl, optimum, population, slope
from alignscope.organisms.tokenizer import (
    CHAT_TEMPLATE,
    EOS,
    assistant_turn,
    build_tokenizer,
    prompt_ids,
    response_ids,
    user_turn,
)
from alignscope.organisms.train import new_model, one_thread
from alignscope.organisms.truth import SPLITS, Models, expectations, read_models, vote_weights
from alignscope.organisms.world import (
    HELD_OUT,
    PROMPTS,
    RESPONSES,
    WorldPrompt,
    draw_pairs,
    draw_world,
    normalised,
    pair_law,
    response_text,
    rewards,
)

QUICK = Recipe(
    base_steps=80, sft_steps=10, dpo_steps=48, reward_steps=32, batch=32,
    training_draws=6, pairs_draws=8, shifted_draws=12,
)


@pytest.fixture(scope="session")
def organism(tmp_path_factory: pytest.TempPathFactory) -> PreferenceOrganism:
    """A hasty organism: far from the optimum, but its truths are as exact as a good one's."""
    return build_preference_organism(tmp_path_factory.mktemp("organism") / "quick", recipe=QUICK, seed=0)


@pytest.fixture(scope="session")
def models(organism: PreferenceOrganism) -> Models:
    """Base, DPO and reward head of the hasty organism, enumerated."""
    return read_models(organism)


def number(text: str) -> int:
    """Index of a response given as 's0 s3 s1 s2'."""
    return next(i for i in range(256) if response_text(i) == text)


# ---- the world


def test_the_world_has_192_prompts_and_256_responses():
    assert len(PROMPTS) == 192
    assert HELD_OUT.sum() == 64
    assert len({tuple(row) for row in RESPONSES}) == 256
    assert {prompt.topic for prompt in PROMPTS if prompt.held_out} == {8, 9, 10, 11}


def test_the_world_is_a_distribution_and_the_product_of_its_chain():
    world = draw_world(np.random.default_rng(3))
    p = np.exp(world.log_probs())
    assert p.sum(1) == pytest.approx(np.ones(192), abs=1e-12)
    a, b, c, d = RESPONSES[77]
    at = PROMPTS.index(WorldPrompt(5, 1, 2))
    chain = world.transition[5]
    assert p[at, 77] == pytest.approx(world.initial[5, a] * chain[a, b] * chain[b, c] * chain[c, d], rel=1e-12)


def test_the_filler_has_no_effect():
    log_probs = draw_world(np.random.default_rng(0)).log_probs().reshape(12, 2, 8, 256)
    reward = rewards().reshape(12, 2, 8, 256)
    assert (log_probs == log_probs[:, :, :1]).all()
    assert (reward == reward[:, :, :1]).all()


@pytest.mark.parametrize(("topic", "style", "text", "expected"), [
    (1, 0, "s0 s1 s2 s0", 2 + 1.5 + 0.8),         # two s0, closes, second = topic
    (1, 1, "s0 s1 s2 s0", 2 - 1.5 + 0.8),         # the other style dislikes closing
    (9, 0, "s0 s1 s2 s1", 1 + 0.8),               # topic 9 mod 4 = 1
    (0, 1, "s3 s3 s3 s3", -0.7 * 4 - 1.5),
    (3, 0, "s1 s2 s2 s2", 0.0),
])
def test_reward_of_a_response(topic, style, text, expected):
    assert rewards()[PROMPTS.index(WorldPrompt(topic, style, 0)), number(text)] == pytest.approx(expected, abs=1e-12)


def test_a_pair_of_different_responses_is_drawn_with_the_product_of_their_weights():
    law = pair_law(np.log([[0.5, 0.3, 0.2]]))[0]
    left = 1 - (0.25 + 0.09 + 0.04)               # both responses are the same with the probability taken away
    assert law == pytest.approx(np.array([[0, 0.15, 0.1], [0.15, 0, 0.06], [0.1, 0.06, 0]]) / left, abs=1e-15)


def test_votes_follow_bradley_terry():
    log_probs = draw_world(np.random.default_rng(1)).log_probs()
    pairs = draw_pairs(np.random.default_rng(2), log_probs, np.arange(192), draws=40, votes=5, distinct=False)
    margin = rewards()[pairs.prompt, pairs.a] - rewards()[pairs.prompt, pairs.b]
    p = 1 / (1 + np.exp(-margin))
    deviation = (pairs.votes_a - 5 * p) / np.sqrt(5 * p * (1 - p))
    assert abs(deviation.mean()) * np.sqrt(len(pairs)) < 4
    assert (deviation ** 2).mean() == pytest.approx(1, abs=0.15)
    for low, high in ((-3, -1), (-1, 1), (1, 3)):
        inside = (margin > low) & (margin < high)
        assert abs(deviation[inside].mean()) * np.sqrt(inside.sum()) < 4


def test_no_pair_is_drawn_twice_for_a_prompt():
    log_probs = draw_world(np.random.default_rng(1)).log_probs()
    pairs = draw_pairs(np.random.default_rng(2), log_probs, np.arange(40), draws=60, votes=5, distinct=True)
    keys = {(p, min(a, b), max(a, b)) for p, a, b in zip(pairs.prompt, pairs.a, pairs.b, strict=True)}
    assert len(keys) == len(pairs) < 40 * 60
    assert (pairs.a != pairs.b).all()


def test_an_even_number_of_votes_is_refused():
    with pytest.raises(ValueError, match="votes=4: must be odd"):
        Recipe(votes=4)


# ---- formulas of the truth


def test_weights_of_a_file_with_one_draw_are_the_pair_law_times_the_binomial_law():
    law = pair_law(np.log([[0.5, 0.3, 0.2]]))[0]
    weights = vote_weights(law, np.array([np.log(3.0), 0.0, 0.0]), draws=1, votes=5)
    assert sorted(weights) == [3, 4, 5]
    drawn = 2 * law[0, 1]                         # in either order
    assert weights[4][0, 1] == pytest.approx(drawn * 5 * 0.75**4 * 0.25, rel=1e-12)
    assert weights[4][1, 0] == pytest.approx(drawn * 5 * 0.25**4 * 0.75, rel=1e-12)
    assert sum(w.sum() for w in weights.values()) == pytest.approx(1, abs=1e-12)     # one pair, one majority


def test_weights_of_a_file_count_every_pair_once_however_often_it_was_drawn():
    law = pair_law(np.log([[0.5, 0.3, 0.2]]))[0]
    total = sum(vote_weights(law, np.zeros(3), draws=3, votes=1).values())
    pairs = {(0, 1): 2 * law[0, 1], (0, 2): 2 * law[0, 2], (1, 2): 2 * law[1, 2]}
    for pair, p in pairs.items():
        present = sum(
            np.prod([pairs[drawn] for drawn in file]) for file in product(pairs, repeat=3) if pair in file
        )
        assert present == pytest.approx(1 - (1 - p) ** 3, abs=1e-12)
        assert total[pair] + total[pair[::-1]] == pytest.approx(present, abs=1e-12)


def test_optimum_of_three_responses():
    reference, reward = np.log([[0.6, 0.3, 0.1]]), np.array([[0.0, 1.0, 2.0]])
    weights = np.array([0.6, 0.3 * np.e, 0.1 * np.e**2])
    assert np.exp(optimum(reference, reward, 1.0))[0] == pytest.approx(weights / weights.sum(), abs=1e-12)


def test_at_the_optimum_the_slope_is_one_and_the_divergence_zero():
    rng = np.random.default_rng(0)
    reference, reward = np.log(rng.dirichlet(np.ones(9), size=4)), rng.normal(size=(4, 9))
    best = optimum(reference, reward, 0.3)
    assert slope(0.3 * (best - reference), reward, np.exp(reference)) == pytest.approx(1, abs=1e-12)
    assert kl(best, best + 7.0) == pytest.approx(np.zeros(4), abs=1e-12)     # a constant a row changes nothing


def test_divergence_and_entropy_in_closed_form():
    assert kl(np.log([[0.5, 0.5]]), np.log([[0.75, 0.25]]))[0] == pytest.approx(0.5 * np.log(4 / 3), abs=1e-12)
    assert entropy(np.array([[np.log(3), 0.0]]))[0] == pytest.approx(np.log(4) - 0.75 * np.log(3), abs=1e-12)
    assert entropy(np.zeros((1, 256)))[0] == pytest.approx(np.log(256), abs=1e-12)


def invented_models(seed: int, policy: np.ndarray | None = None) -> Models:
    """Tables of random log-probabilities, as if three models had been enumerated."""
    rng = np.random.default_rng(seed)
    nodes = np.zeros((192, 341, 32))
    reference = draw_world(rng).log_probs()
    policy = reference + rng.normal(size=(192, 256)) + 0.5 * rewards() if policy is None else policy
    return Models(Enumeration(reference, nodes), Enumeration(policy, nodes), rewards() + rng.normal(size=(192, 256)))


def test_the_optimum_has_the_populations_best_values():
    first = invented_models(0)
    models = invented_models(0, optimum(first.reference.log_probs, rewards(), 0.5))
    values = population(models, split="training", beta=0.5)
    assert values["implicit_accuracy"] == 1.0
    assert values["policy_ranking"] == values["idealized_ranking"]
    assert values["beta_slope"] == pytest.approx(1, abs=1e-9)
    assert values["kl_optimum_to_policy"] == pytest.approx(0, abs=1e-12)


def test_expectations_are_the_means_of_many_drawn_files():
    models, prompts, beta = invented_models(4), np.arange(0, 128, 8), 0.5
    lists = 100
    asked = np.repeat(prompts, lists)
    pairs = draw_pairs(
        np.random.default_rng(5), models.reference.log_probs, asked, draws=10, votes=5, distinct=True
    )
    first = pairs.votes_a > 2
    chosen, rejected = np.where(first, pairs.a, pairs.b), np.where(first, pairs.b, pairs.a)
    share = (np.maximum(pairs.votes_a, 5 - pairs.votes_a) + 0.5) / 6

    def margin(table: np.ndarray) -> np.ndarray:
        return table[pairs.prompt, chosen] - table[pairs.prompt, rejected]

    reference = margin(models.reference.log_probs)
    right, was_right = margin(models.policy.log_probs) > 0, reference > 0
    ideal = reference + np.log(share / (1 - share)) / beta > 0
    everything = np.ones(len(pairs), dtype=bool)
    samples = {                                   # name -> (value a pair, which pairs count)
        "accuracy": (right, everything),
        "reference_accuracy": (was_right, everything),
        "reward_accuracy": (margin(models.log_ratio) > 0, everything),
        "explicit_accuracy": (margin(models.explicit) > 0, everything),
        "idealized_accuracy": (ideal, everything),
        "gap": (ideal.astype(float) - right, everything),
        "displacement_chosen": (models.log_ratio[pairs.prompt, chosen], everything),
        "displacement_rejected": (models.log_ratio[pairs.prompt, rejected], everything),
        "share_flippable": (~was_right & ideal, everything),
        "share_hard": (~was_right & ~ideal, everything),
        "learned_of_wrong": (right, ~was_right),
        "lost_of_right": (~right, was_right),
    }
    truth = expectations(models, prompts, draws=10, votes=5, beta=beta)
    assert set(samples) == set(truth)
    for name, (value, counts) in samples.items():
        kept = value[counts].astype(float)
        assert abs(kept.mean() - truth[name]) < 4 * kept.std() / np.sqrt(len(kept)), name


# ---- text and ids


def test_both_forms_of_text_give_the_same_ids():
    tokenizer = build_tokenizer()
    for prompt, response in product((PROMPTS[0], PROMPTS[191]), (0, 77)):
        at = PROMPTS.index(prompt)
        expected = [*prompt_ids()[at].tolist(), *response_ids()[response].tolist()]
        raw = [*tokenizer(f"{prompt.text} -> {response_text(response)}").input_ids, EOS]
        chat = tokenizer.apply_chat_template([*user_turn(prompt), *assistant_turn(response)], tokenize=False)
        with_separator = [{"role": "user", "content": f"{prompt.text} ->"}, *assistant_turn(response)]
        assert raw == expected
        assert tokenizer(chat, add_special_tokens=False).input_ids == expected
        assert tokenizer.apply_chat_template(with_separator, tokenize=False) == chat


def test_a_prompts_ids_are_a_prefix_in_both_forms():
    tokenizer, prompt = build_tokenizer(), PROMPTS[100]
    messages = [*user_turn(prompt), *assistant_turn(5)]
    rendered = tokenizer.apply_chat_template(messages[:1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(messages, tokenize=False).startswith(rendered)
    assert tokenizer(rendered, add_special_tokens=False).input_ids == prompt_ids()[100].tolist()
    assert tokenizer(f"{prompt.text} ->").input_ids == prompt_ids()[100].tolist()


def test_ids_decode_to_the_words():
    tokenizer = build_tokenizer()
    assert tokenizer.decode(response_ids()[number("s0 s3 s1 s2")]) == "s0 s3 s1 s2 <eos>"
    assert len(tokenizer) == 32


# ---- enumeration


def test_the_tree_equals_256_separate_rows():
    model = new_model(0).eval()
    found = enumerate_responses(model, prompt_ids()[:2])
    rows = torch.cat([prompt_ids()[1].expand(256, -1), response_ids()], dim=1)
    with torch.no_grad():
        log_softmax = model(input_ids=rows).logits.double().log_softmax(-1)
    expected = log_softmax[:, 4:9].gather(-1, rows[:, 5:, None])[..., 0].sum(-1)
    assert found.log_probs[1] == pytest.approx(expected.numpy(), abs=1e-5)


def test_a_tree_that_sees_cousins_is_caught(monkeypatch):
    model = new_model(0).eval()
    honest = enumerate_responses(model, prompt_ids()[:1]).log_probs
    from alignscope.organisms import enumeration

    nodes, positions, mask = enumeration._tree()
    causal = torch.full_like(mask, torch.finfo(torch.float32).min).triu(1)
    monkeypatch.setattr(enumeration, "_tree", lambda: (nodes, positions, causal))
    assert np.abs(enumerate_responses(model, prompt_ids()[:1]).log_probs - honest).max() > 1e-2


# ---- the built organism


def test_folders_are_ordinary_checkpoints_with_the_enumerated_log_probabilities(organism, models):
    tokenizer = AutoTokenizer.from_pretrained(organism.dpo)
    assert tokenizer.chat_template == CHAT_TEMPLATE
    model = AutoModelForCausalLM.from_pretrained(organism.dpo).eval()
    for line in organism.pairs.read_text().splitlines()[:6]:
        row = json.loads(line)
        text = tokenizer.apply_chat_template(row["prompt"] + row["response_a"], tokenize=False)
        ids = torch.tensor([tokenizer(text, add_special_tokens=False).input_ids])
        with torch.no_grad():
            log_softmax = model(input_ids=ids).logits.double().log_softmax(-1)[0]
        score = sum(log_softmax[t - 1, ids[0, t]].item() for t in range(5, 10))
        at = next(i for i, prompt in enumerate(PROMPTS) if prompt.text == row["prompt"][0]["content"])
        assert score == pytest.approx(models.policy.log_probs[at, number(row["response_a"][0]["content"])], abs=1e-5)


def test_the_reward_head_reads_the_end_of_the_response_whatever_the_padding(organism, models):
    model = AutoModelForSequenceClassification.from_pretrained(organism.reward).eval()
    assert model.config.num_labels == 1
    enumerated = models.explicit
    ids = torch.cat([prompt_ids()[3], response_ids()[9]])[None]
    padded = torch.nn.functional.pad(ids, (0, 4), value=model.config.pad_token_id)
    with torch.no_grad():
        assert model(input_ids=ids).logits.item() == pytest.approx(enumerated[3, 9], abs=1e-5)
        mask = (padded != model.config.pad_token_id).long()
        assert model(input_ids=padded, attention_mask=mask).logits.item() == pytest.approx(enumerated[3, 9], abs=1e-5)
    assert enumerated.std() > 0.1                 # the head started at zero and has learned something


def test_the_ladder_keeps_five_steps_and_the_last_is_the_policy(organism):
    assert [step.name for step in organism.dpo_steps] == [f"step_{i:04d}" for i in (3, 6, 12, 24, 48)]
    assert organism.dpo == organism.dpo_steps[-1]
    assert all((step / "model.safetensors").is_file() for step in organism.dpo_steps)


def test_training_moved_the_policy_towards_the_reward_and_the_control_not(organism, models):
    trained = population_table(organism, models=models).set_index("name")
    shuffled = replace(models, policy=enumerate_folder(organism.shuffled))
    control = population(shuffled, split="training", beta=organism.beta)
    assert trained.training["implicit_accuracy"] > 0.7
    assert abs(control["beta_slope"]) < 0.2 * trained.training["beta_slope"]
    assert control["implicit_accuracy"] < 0.6
    assert (trained.loc[["mass_reference", "mass_policy"], ["training", "held_out"]] < 1 + 1e-6).all(axis=None)


def test_evaluation_files_hold_what_they_say(organism):
    for path, held_out, draws in ((organism.pairs, False, 8), (organism.shifted, True, 12)):
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        n_prompts = 64 if held_out else 128
        texts = {row["prompt"][0]["content"] for row in rows}
        assert texts == {prompt.text for prompt in PROMPTS if prompt.held_out == held_out}
        assert 0.9 * n_prompts * draws < len(rows) <= n_prompts * draws
        assert {row["votes_a"] + row["votes_b"] for row in rows} == {5}
        assert len({row["id"] for row in rows}) == len(rows)
    prompts = [json.loads(line) for line in organism.prompts.read_text().splitlines()]
    assert len(prompts) == 128


def test_the_saved_world_is_the_one_that_was_learned(organism, models):
    truth = organism.world.log_probs()
    card = json.loads((organism.folder / "organism.json").read_text())
    divergence = (np.exp(truth) * (truth - np.log(normalised(models.reference.log_probs)))).sum(1).mean()
    assert card["quality"]["kl_world_to_base_mean"] == pytest.approx(divergence, abs=1e-5)
    assert divergence < 1                         # uniform responses are 1.2 nats or more away


def test_two_builds_have_the_same_bytes(tmp_path):
    tiny = Recipe(base_steps=3, sft_steps=2, dpo_steps=2, reward_steps=2, batch=8, training_draws=2, pairs_draws=2)
    first, second = (build_preference_organism(tmp_path / name, recipe=tiny, seed=7) for name in ("a", "b"))
    files = sorted(path.relative_to(first.folder) for path in first.folder.rglob("*") if path.is_file())
    assert len([path for path in files if path.name == "model.safetensors"]) == 6
    for path in files:
        assert (first.folder / path).read_bytes() == (second.folder / path).read_bytes(), path
    other = build_preference_organism(tmp_path / "c", recipe=tiny, seed=8)
    assert (other.base / "model.safetensors").read_bytes() != (first.base / "model.safetensors").read_bytes()


def test_a_finished_organism_is_reused(organism):
    def refuse(stage: str, done: int, total: int) -> None:
        raise AssertionError(f"{stage} was trained again")

    again = build_preference_organism(organism.folder, recipe=QUICK, seed=0, progress=refuse)
    assert again == organism == open_preference_organism(organism.folder)


def test_the_cache_folder_is_named_by_the_content(tmp_path, monkeypatch):
    monkeypatch.setenv("ALIGNSCOPE_CACHE", str(tmp_path))
    tiny = Recipe(base_steps=1, sft_steps=1, dpo_steps=1, reward_steps=1, batch=4, training_draws=1, pairs_draws=1)
    built = build_preference_organism(recipe=tiny, seed=2)
    assert built.folder == tmp_path / "organisms" / f"preference-{tiny.key(2)}"
    assert tiny.key(2) not in {tiny.key(3), Recipe().key(2)}
    assert [path.name for path in built.folder.parent.iterdir()] == [built.folder.name]      # nothing partial is left


def test_another_recipe_or_a_strangers_folder_is_refused(organism, tmp_path):
    with pytest.raises(InputError, match="another recipe or seed"):
        build_preference_organism(organism.folder, recipe=QUICK, seed=1)
    (tmp_path / "thesis.tex").write_text("precious")
    with pytest.raises(InputError, match="not empty and holds no organism"):
        build_preference_organism(tmp_path, recipe=QUICK)
    with pytest.raises(InputError, match=r"no organism\.json here"):
        open_preference_organism(tmp_path)


def test_a_build_that_fails_leaves_nothing(tmp_path):
    def fail(stage: str, done: int, total: int) -> None:
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        build_preference_organism(tmp_path / "organism", recipe=QUICK, progress=fail)
    assert list(tmp_path.iterdir()) == []


def test_one_thread_restores_the_number_of_threads():
    before = torch.get_num_threads()
    with one_thread():
        torch.set_num_threads(2)
    assert torch.get_num_threads() == before


def test_an_unknown_policy_is_refused_with_the_names_there_are(organism):
    with pytest.raises(InputError, match=r"no policy 'ppo'; choose from base, sft, dpo, shuffled, dpo/step_0003"):
        truth_table(organism, "ppo")


# ---- the pipeline against the truth


@pytest.fixture(scope="session")
def scored(organism) -> Any:
    """The evaluation file through the public scorer."""
    import alignscope

    policy, reference = alignscope.load(organism.dpo), alignscope.load(organism.base)
    reward = alignscope.load_reward(organism.reward)
    return alignscope.score_pairs(
        policy, reference, alignscope.read_pairs(organism.pairs), reward=reward, eos=organism.eos
    )


def test_the_scorer_returns_the_enumerated_event(organism, models, scored):
    tables = {
        "policy": models.policy.log_probs,
        "reference": models.reference.log_probs,
        "explicit": models.explicit,
    }
    where = {prompt.text: i for i, prompt in enumerate(PROMPTS)}
    rows = [json.loads(line) for line in organism.pairs.read_text().splitlines()]
    frame = scored.frame.set_index("pair_id")
    assert len(scored.invalid) == 0
    assert len(frame) == len(rows)
    for row in rows[:200]:
        a, b = (number(row[side][0]["content"]) for side in ("response_a", "response_b"))
        chosen, rejected = (a, b) if row["votes_a"] > row["votes_b"] else (b, a)
        at, scores = where[row["prompt"][0]["content"]], frame.loc[row["id"]]
        for name, table in tables.items():
            assert scores[f"{name}_chosen"] == pytest.approx(table[at, chosen], abs=2e-5)
            assert scores[f"{name}_rejected"] == pytest.approx(table[at, rejected], abs=2e-5)


FILES = 25                                    # evaluation files drawn from one trained model
HELD = 19                                     # at a coverage of 95 %, 18 or fewer of 25 happen once in 2,000 estimates


def drawn_scores(organism, models, split: str, seed: int) -> Any:
    """The pair table of a new evaluation file: what the scorer would return, read off the enumeration."""
    import alignscope

    recipe = organism.recipe
    draws = recipe.pairs_draws if split == "training" else recipe.shifted_draws
    pairs = draw_pairs(
        np.random.default_rng([7, seed]), models.reference.log_probs, SPLITS[split], draws=draws, votes=recipe.votes,
        distinct=True,
    )
    a_won = 2 * pairs.votes_a > pairs.votes
    sides = {"chosen": np.where(a_won, pairs.a, pairs.b), "rejected": np.where(a_won, pairs.b, pairs.a)}
    tables = {
        "policy": models.policy.log_probs, "reference": models.reference.log_probs, "explicit": models.explicit,
    }
    columns = {
        f"{role}_{side}": table[pairs.prompt, at] for role, table in tables.items() for side, at in sides.items()
    }
    columns |= {"n_chosen": 5, "n_rejected": 5, "n_votes": float(pairs.votes), "prompt_id": pairs.prompt.astype(str)}
    columns["preference"] = np.maximum(pairs.votes_a, pairs.votes - pairs.votes_a) / pairs.votes
    return alignscope.PairScores.from_frame(pd.DataFrame(columns))


@pytest.mark.parametrize("split", ["training", "held_out"])
def test_the_intervals_of_the_ranking_report_hold_the_truth_as_often_as_they_say(organism, models, split):
    """95 % intervals over many files: one file alone misses one of 24 truths more often than not."""
    import alignscope

    truth = truth_table(organism, split=split, models=models)
    held = dict.fromkeys(truth["name"], 0)
    for seed in range(FILES):
        scores = drawn_scores(organism, models, split, seed)
        estimates = alignscope.ranking_report(scores, beta=organism.beta, bootstrap=300, seed=seed).estimates
        for row in truth.itertuples():
            held[row.name] += estimates[row.name].low <= row.truth <= estimates[row.name].high
    assert min(held.values()) >= HELD, held


def test_an_interval_around_another_truth_is_missed(organism, models):
    """The count above can fail: the held-out topics have another truth than the training topics."""
    import alignscope

    truth = truth_table(organism, split="held_out", models=models).set_index("name").truth
    names = ("displacement_chosen", "displacement_rejected")
    held = dict.fromkeys(names, 0)
    for seed in range(5):
        estimates = alignscope.ranking_report(
            drawn_scores(organism, models, "training", seed), beta=organism.beta, bootstrap=300
        ).estimates
        for name in names:
            held[name] += estimates[name].low <= truth[name] <= estimates[name].high
    assert min(held.values()) <= 2, held


# ---- implicit against explicit reward


def test_the_intervals_of_the_reward_report_hold_the_truth_as_often_as_they_say(organism, models):
    from alignscope.diagnose.reward_report import reward_report

    truth = reward_truth_table(organism, models=models)
    held = dict.fromkeys(truth["name"], 0)
    for seed in range(FILES):
        files = {"in_distribution": "training", "held_out": "held_out"}
        tables = {name: drawn_scores(organism, models, split, seed) for name, split in files.items()}
        estimates = reward_report(tables, beta=organism.beta, bootstrap=300, seed=seed).estimates
        for row in truth.itertuples():
            held[row.name] += estimates[row.name].low <= row.truth <= estimates[row.name].high
    assert min(held.values()) >= HELD, held


def test_the_truths_of_both_rewards_fit_together(organism, models):
    truth = reward_truth_table(organism, models=models).set_index("name").truth
    ranking = truth_table(organism, split="held_out", models=models).set_index("name").truth
    assert truth["accuracy_implicit_held_out"] == ranking["reward_accuracy"]
    assert truth["gap_held_out"] == pytest.approx(ranking["explicit_accuracy"] - ranking["reward_accuracy"])
    assert truth["excess_drop_held_out"] == pytest.approx(
        truth["drop_implicit_held_out"] - truth["drop_explicit_held_out"]
    )


def optimal(models: Models, beta: float) -> Models:
    """The same with the exact optimum of DPO as policy: pi_ref exp(r / beta), normalised."""
    best = optimum(models.reference.log_probs, rewards(), beta)
    return replace(models, policy=replace(models.policy, log_probs=best))


def test_at_the_exact_optimum_the_report_finds_the_idealised_ranking(organism, models):
    """R of the enumerated optimum is R* with exact preferences, and its reward accuracy that of the true reward."""
    import alignscope
    from alignscope.diagnose.ranking import idealized_accuracy

    best = optimal(models, organism.beta)
    drawn = drawn_scores(organism, best, "training", seed=0)
    dw, dl = drawn.log_ratios().T
    exact = drawn.frame.assign(preference=expit(organism.beta * (dw - dl)), n_votes=0.0)  # beta (dw - dl) = r(w) - r(l)
    scores = alignscope.PairScores.from_frame(exact)  # turned so that the truly better response is chosen
    estimates = alignscope.ranking_report(scores, beta=organism.beta, bootstrap=100).estimates

    judged = scores.frame[~scores.frame.human_tie]
    assert judged.swapped.any()  # votes and truth differ somewhere
    reference_margin = judged.reference_chosen - judged.reference_rejected
    attainable = idealized_accuracy(reference_margin, judged.preference, organism.beta)
    assert estimates["accuracy"].value == pytest.approx(attainable, abs=1e-12)
    assert estimates["reference_accuracy"].value < attainable < 1
    assert estimates["reward_accuracy"].value == 1.0
