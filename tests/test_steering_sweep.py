"""Sweeps on a tiny model: every answer as if it were alone, kept on disk, chosen on half of the prompts."""

import json

import jaxtyping
import numpy as np
import pytest
import torch
from spinal_models import letters, tiny_model
from tiny_tokenizer import CHAT, tiny_tokenizer

import alignscope
import zoo as models
from alignscope import InputError, SteeringVector
from alignscope.probes.generation import respects_left_padding
from alignscope.steering import Factors, Positions, Site, SteeringSet, Subspace
from alignscope.steering.evaluation import KeywordScorer, sweep
from alignscope.steering.evaluation.asked import read_asked
from alignscope.steering.evaluation.generating import PromptNoise, Wanted, generate_steered
from alignscope.steering.evaluation.kept import vector_key
from alignscope.steering.evaluation.sweeps import grid_of

PROMPTS = letters(6, longest=14)
STRENGTHS = [-2, 0, 1, 2.5]
FAST = {"max_new_tokens": 6, "draws": 20}


@pytest.fixture(scope="module")
def subject() -> alignscope.Subject:
    return alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer())


def clamp(width: int = 32, layer: int = 1, **parts) -> SteeringVector:
    weight = torch.randn(1, width, generator=torch.Generator().manual_seed(3))
    factors = Factors(torch.tensor([4.0]), torch.tensor([-4.0]))
    return SteeringVector(site=Site(layer), subspace=Subspace(weight), factors=factors, **parts)


def adding(width: int = 32, layer: int = 1) -> SteeringVector:
    return SteeringVector.adding(4 * torch.randn(width, generator=torch.Generator().manual_seed(4)), Site(layer))


def letters_a(prompt, output, concept):
    """More a, more concept."""
    return min(2, output.count("a")), 2, 2


def answers(found) -> dict[tuple[str, float], str]:
    return {(row.prompt, row.strength): row.output for row in found.outputs.itertuples()}


# ---- the answers


@pytest.mark.parametrize(
    ("vector", "batch_size"),
    [(clamp(), 1), (clamp(), 64), (adding(), 5), (clamp(positions=Positions("generation")), 5)],
)
def test_greedy_answers_are_those_of_one_prompt_and_strength_at_a_time(subject, vector, batch_size):
    prompts, grid = PROMPTS[:4], [-2, 0, 2.5]
    found = answers(sweep(subject, prompts, vector, grid, letters_a, temperature=0, batch_size=batch_size, **FAST))
    assert len({*found.values()}) > len(prompts)  # strengths say different things
    for (prompt, strength), output in found.items():
        with vector.applied(subject, strength):
            assert [output] == subject.generate([prompt], max_new_tokens=6)


def test_strength_zero_is_the_unedited_model(subject):
    found = answers(sweep(subject, PROMPTS, clamp(), STRENGTHS, letters_a, temperature=0, **FAST))
    assert [found[prompt, 0.0] for prompt in PROMPTS] == subject.generate(PROMPTS, max_new_tokens=6)


def test_drawn_answers_depend_on_seed_and_prompt_alone(subject):
    options = {"temperature": 1.0, **FAST}
    first, small, fewer = (
        answers(sweep(subject, prompts, clamp(), STRENGTHS, letters_a, batch_size=size, **options))
        for prompts, size in ((PROMPTS, 16), (PROMPTS, 3), (PROMPTS[:2], 16))
    )
    other = answers(sweep(subject, PROMPTS, clamp(), STRENGTHS, letters_a, seed=1, **options))
    assert first == small
    assert fewer == {key: first[key] for key in fewer}
    assert other != first


def test_noise_and_greedy_draw_from_the_softmax_at_the_temperature():
    logits = torch.tensor([1.0, 0.0, -1.0, 2.0])
    n, temperature = 4000, 0.7
    noise = PromptNoise([(i,) for i in range(n)], temperature, seed=0)
    drawn = noise(torch.zeros(n, 1, dtype=torch.long), logits.expand(n, -1)).argmax(-1)
    share = torch.bincount(drawn, minlength=4) / n
    expected = (logits / temperature).softmax(-1)
    assert ((share - expected).abs() < 4 * (expected * (1 - expected) / n).sqrt()).all()


def test_the_noise_of_a_prompt_is_the_same_at_every_strength():
    noise = PromptNoise([(1, 2), (3,), (1, 2)], 1.0, seed=0)
    for _ in range(2):
        moved = noise(torch.zeros(3, 1, dtype=torch.long), torch.zeros(3, 5))
        assert torch.equal(moved[0], moved[2])
        assert not torch.equal(moved[0], moved[1])


def test_a_model_that_ignores_its_mask_gets_a_strength_at_a_time():
    rwkv = alignscope.wrap(models.model("rwkv"), models.tokenizer())
    assert not respects_left_padding(rwkv)
    vector = adding(rwkv.d_model, layer=0)
    wanted = [Wanted((7, 8, 9), 0.0), Wanted((7, 8), 3.0), Wanted((9, 9), 1.0)]
    made = generate_steered(rwkv, vector, wanted, max_new_tokens=3)
    for one, answer in zip(wanted, made, strict=True):
        assert [answer] == generate_steered(rwkv, vector, [one], max_new_tokens=3)


def test_a_set_of_vectors_is_swept_a_strength_at_a_time(subject):
    both = SteeringSet([clamp(), adding(layer=0)])
    found = answers(sweep(subject, PROMPTS[:2], both, [1, 2], letters_a, temperature=0, **FAST))
    with both.applied(subject, 2.0):
        assert [found[p, 2.0] for p in PROMPTS[:2]] == [subject.generate([p], max_new_tokens=6)[0] for p in PROMPTS[:2]]


def test_strings_go_through_the_chat_template_where_there_is_one():
    subject = alignscope.wrap(tiny_model(blocks=3, width=32), tiny_tokenizer(template=CHAT))
    found = answers(sweep(subject, ["abc", "bcd"], clamp(), [1], letters_a, temperature=0, **FAST))
    ids = subject.tokenizer.apply_chat_template([{"role": "user", "content": "abc"}], add_generation_prompt=True)
    with clamp().applied(subject):
        made = subject.generate_ids([ids["input_ids"]], max_new_tokens=6)
    assert found["abc", 1.0] == subject.tokenizer.decode(made[0], skip_special_tokens=True)


# ---- the table


def test_ratings_halves_and_scores_stand_beside_every_answer(subject):
    found = sweep(subject, PROMPTS, clamp(), STRENGTHS, letters_a, temperature=0, **FAST)
    table = found.outputs_frame()
    assert len(table) == 24
    assert {*table.half[table.prompt_id <= "3"]} == {"selection"}
    assert {*table.half[table.prompt_id > "3"]} == {"reported"}
    for row in table.itertuples():
        c, i, f = letters_a(row.prompt, row.output, "")
        assert row.score == (0.0 if c == 0 else pytest.approx(3 / (1 / c + 1 / i + 1 / f)))


def test_suppression_rates_the_absence_and_has_a_grid_of_its_own(subject):
    rows = [{"prompt": text, "direction": side, "concept": "letter a"} for side in ("elicit", "suppress")
            for text in PROMPTS[:4]]  # fmt: skip
    grid = {"elicit": [1, 2], "suppress": [-1]}
    found = sweep(subject, rows, clamp(), grid, lambda p, o, c: (0.5, 2, 2), temperature=0, **FAST)
    assert {(r.direction, r.strength): r.score for r in found.outputs.itertuples()} == pytest.approx(
        {("elicit", 1.0): 1.0, ("elicit", 2.0): 1.0, ("suppress", -1.0): 3 / (1 / 1.5 + 1)}
    )
    assert (found.selected("letter a", "elicit"), found.selected(direction="suppress")) == (1.0, -1.0)


@pytest.mark.parametrize("strengths", ["12", None, 1.0, ["1"], {"elicit": 2}])
def test_strengths_that_are_no_sequence_of_numbers_are_refused(monkeypatch, strengths):
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)  # checked types would refuse them first
    with pytest.raises(InputError, match=r"strengths?=.*: expected"):
        grid_of(strengths)


def test_a_grid_is_ascending_and_each_strength_once():
    assert grid_of([2, -0.0, np.float64(1), 2]) == {"elicit": [0.0, 1.0, 2.0], "suppress": [0.0, 1.0, 2.0]}


def test_rating_is_told_answer_by_answer(subject):
    told = []
    sweep(
        subject, PROMPTS, clamp(), [1, 2], letters_a, temperature=0, progress=lambda *step: told.append(step), **FAST
    )  # fmt: skip
    n = 2 * len(PROMPTS)
    assert [step for step in told if step[0] == "rating"] == [("rating", done + 1, n) for done in range(n)]


def test_the_scorer_gets_prompt_output_and_concept(subject):
    seen = []
    rows = [{"text": text, "concept": f"concept {i % 2}"} for i, text in enumerate(PROMPTS[:4])]
    found = sweep(subject, rows, clamp(), [1], lambda *c: seen.append(c) or (1, 1, 1), temperature=0, **FAST)
    assert [call[0] for call in seen] == PROMPTS[:4]
    assert [call[1] for call in seen] == [*found.outputs.output]
    assert [call[2] for call in seen] == ["concept 0", "concept 1"] * 2


def test_missing_ratings_are_counted_and_a_sweep_without_any_is_refused(subject):
    some = sweep(subject, PROMPTS, clamp(), [1, 2], lambda p, o, c: (1, None if p == PROMPTS[0] else 1, 1), **FAST)
    assert (some.selection.missing, some.selection.n) == (2, 12)
    with pytest.raises(InputError, match="has a rating to choose by"):
        sweep(subject, PROMPTS, clamp(), [1, 2], lambda p, o, c: (1, None, 1), **FAST)


def test_the_summary_says_the_strength_and_the_findings(subject):
    found = sweep(subject, PROMPTS, clamp(), [1, 2], lambda p, o, c: (1, 1, 1), **FAST)
    assert "Elicit: strength 1, score 1 of 2 on 3 outputs" in found.summary()
    assert "Grid too short" in found.summary()


def test_scores_of_a_rule_of_ours_are_marked_reconstructed(subject):
    ours = KeywordScorer(["a"], rest=lambda p, o, c: (None, 1, 1))
    for scorer, marked in ((ours, True), (letters_a, False)):
        found = sweep(subject, PROMPTS, clamp(), [1, 2], scorer, temperature=0, **FAST)
        assert {e.reconstructed for e in found.estimates.values()} == {marked}
        assert found.settings["reconstructed"] is marked


def test_quadruples_are_asked_both_ways():
    row = {"negative_input": "plain", "negative_output": "n", "positive_input": "asking", "positive_output": "p"}
    asked = read_asked([row, row | {"positive_input": "again", "negative_input": "other"}]).prompts
    assert [(p.text, p.direction) for p in asked] == [
        ("plain", "elicit"), ("other", "elicit"), ("asking", "suppress"), ("again", "suppress"),
    ]  # fmt: skip


def test_equal_prompts_and_ids_are_set_aside(subject):
    rows = [{"prompt": p, "id": i} for p, i in [("ab", 1), ("cd", 2), ("ab", 3), ("ef", 2), ("", 4), ("gh", 5)]]
    found = sweep(subject, rows, clamp(), [1], letters_a, **FAST)
    assert dict(found.counts) == {"prompts": 3, "duplicate_prompt": 1, "duplicate_id": 1, "empty_prompt": 1}


def test_a_prompt_that_leaves_no_room_is_set_aside(subject):
    found = sweep(subject, ["ab", "cd", "e" * 252], clamp(), [1], letters_a, **FAST)
    assert dict(found.counts) == {"prompts": 2, "too_long": 1}


# ---- kept answers


def kept(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "generations.jsonl").read_text().splitlines()]


def test_a_run_goes_on_from_its_folder_and_a_longer_grid_adds_only_itself(subject, tmp_path):
    options = {"temperature": 1.0, **FAST}
    sweep(subject, PROMPTS, clamp(), [1, 2], letters_a, out=tmp_path, batch_size=4, **options)
    before = kept(tmp_path)
    more = sweep(subject, PROMPTS, clamp(), STRENGTHS, letters_a, out=tmp_path, **options)
    after = kept(tmp_path)
    assert len(before) == 1 + 12
    assert after[: len(before)] == before
    assert {row["strength"] for row in after[len(before) :]} == {-2, 0, 2.5}
    assert answers(more) == answers(sweep(subject, PROMPTS, clamp(), STRENGTHS, letters_a, **options))


def test_kept_answers_are_read_and_a_torn_line_is_made_again(subject, tmp_path):
    options = {"temperature": 0, "out": tmp_path, **FAST}
    whole = answers(sweep(subject, PROMPTS, clamp(), [1], letters_a, **options))
    file = tmp_path / "generations.jsonl"
    lines = file.read_text().splitlines()
    marked = json.loads(lines[1]) | {"text": "read from disk"}
    file.write_text("\n".join([lines[0], json.dumps(marked), *lines[2:-1], lines[-1][:20]]))
    again = answers(sweep(subject, PROMPTS, clamp(), [1], letters_a, **options))
    assert sum(again[key] != whole[key] for key in whole) == 1
    assert "read from disk" in again.values()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"max_new_tokens": 7}, "max_new_tokens"),
        ({"temperature": 1.0}, "temperature"),
        ({"seed": 1}, "seed"),
        ({"vector": adding()}, "vector"),
    ],
)
def test_answers_made_otherwise_are_refused(subject, tmp_path, change, named):
    given = {"vector": clamp(), "strengths": [1], "scorer": letters_a, "temperature": 0, "out": tmp_path, **FAST}
    sweep(subject, PROMPTS, **given)
    with pytest.raises(InputError, match=f"made with other {named};"):
        sweep(subject, PROMPTS, **given | change)


def test_a_vectors_key_knows_site_direction_factors_and_tokens():
    key = vector_key(clamp())
    other = [clamp(layer=0), clamp(positions=Positions(prefix=1)), clamp().swap(), adding(), SteeringSet([clamp()])]
    assert key == vector_key(clamp())
    assert len({key, *map(vector_key, other)}) == 6


# ---- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"strengths": []}, "no strengths"),
        ({"strengths": [float("nan")]}, "finite"),
        ({"strengths": {"up": [1]}}, "strengths of 'up'"),
        ({"strengths": {"suppress": [1]}}, "no strengths for that direction"),
        ({"split": 1.0}, "split"),
        ({"direction": "up"}, "direction 'up'"),
        ({"max_new_tokens": 0}, "at least 1"),
        ({"batch_size": 0}, "at least 1"),
        ({"temperature": -1}, "at least 0"),
        ({"prompts": ["one"]}, "1 prompt"),
        ({"prompts": [" ", ""]}, "no prompt is left"),
        ({"prompts": [{"question": "?"}]}, "no column `prompt`"),
        ({"vector": clamp(16)}, "hidden size"),
        ({"scorer": lambda p, o, c: (3, 1, 1)}, "prompt 1, strength 1: the scorer rated 3"),
        ({"scorer": lambda p, o, c: 1}, "expected \\(concept"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_the_reason(subject, change, message):
    given = {"prompts": PROMPTS, "vector": clamp(), "strengths": [1], "scorer": letters_a, **FAST} | change
    with pytest.raises(InputError, match=message):
        sweep(subject, **given)


def test_ablations_know_on_and_off(subject):
    vector = SteeringVector(site=Site(1), subspace=clamp().subspace, edit="ablate")
    found = sweep(subject, PROMPTS, vector, [0, 1], lambda p, o, c: (1, 1, 1), temperature=0, **FAST)
    assert np.isfinite(found.outputs.score).all()
    with pytest.raises(InputError, match="an ablate is on"):
        sweep(subject, PROMPTS, vector, [0, 2], letters_a, temperature=0, **FAST)
