"""A model's own completions: drawn from the whole softmax, ended where the model ends them, readable as samples."""

import json
from collections import Counter

import numpy as np
import pytest
import torch
from test_cli import refused, run
from test_scoring import subject
from tiny_tokenizer import PIECES

from alignscope import InputError
from alignscope.probes.drawing import draw_samples
from alignscope.probes.inputs import read_samples, require_full_draws

PROMPTS = [{"prompt": "one:"}, {"prompt": "two 2."}]


def test_first_tokens_follow_the_softmax_and_no_token_is_cut_off():
    model = subject(3)
    n = 4000
    rows = draw_samples(model, [{"prompt": "one:"}], n=n, max_tokens=1, batch_size=n)
    ids = torch.tensor([[PIECES["<bos>"], *(PIECES[letter] for letter in "one:")]])
    with torch.no_grad():
        p = model.logits(ids, torch.ones_like(ids))[0, -1, : len(PIECES)].double().softmax(-1).numpy()
    names = {i: piece for piece, i in PIECES.items()}
    seen = Counter(row["completion"] for row in rows)
    for i in np.argsort(-p):
        if not names[int(i)].startswith("<"):
            expected, spread = n * p[i], np.sqrt(n * p[i])
            assert abs(seen[names[int(i)]] - expected) < 5 * spread + 1
    assert len(seen) > 30  # with transformers' top_k of 50 left on, or greedy, the tail would be missing


def test_the_same_seed_draws_the_same_and_another_seed_another():
    model = subject(3)
    first, again, other = (draw_samples(model, PROMPTS, n=3, max_tokens=8, seed=seed) for seed in (1, 1, 2))
    assert first == again
    assert [row["completion"] for row in first] != [row["completion"] for row in other]


def test_drawing_leaves_the_random_state_of_the_caller_alone():
    model = subject(3)
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    draw_samples(model, PROMPTS, max_tokens=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_completion_that_the_model_ends_is_finished_and_one_that_is_cut_is_not():
    rows = draw_samples(subject(3), PROMPTS, n=40, max_tokens=30)
    assert {row["finished"] for row in rows} == {True, False}
    for row in rows:
        assert row["n_tokens"] == 30 if not row["finished"] else row["n_tokens"] < 30
        assert "<eos>" not in row["completion"]


def test_rows_are_samples_and_keep_the_prompt_id_that_was_given(tmp_path):
    rows = draw_samples(subject(3), [{"prompt": "one:", "prompt_id": "a"}, {"prompt": "two 2."}], n=2, max_tokens=4)
    file = tmp_path / "samples.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    read = read_samples(file)
    assert read.says_finished
    assert [sample.prompt_id for sample in read] == ["a", "a", None, None]
    assert [sample.prompt for sample in read] == ["one:", "one:", "two 2.", "two 2."]


def test_rows_say_that_they_were_drawn_at_temperature_one():
    rows = draw_samples(subject(0), [{"prompt": "a b"}], n=3, max_tokens=4)
    assert [row["temperature"] for row in rows] == [1.0] * 3
    require_full_draws(read_samples(rows), "reference")


def test_text_that_becomes_other_ids_is_told():
    rows = draw_samples(subject(3), PROMPTS, n=60, max_tokens=20, seed=4)
    for row in rows:
        if "ab" in row["completion"] and not row["same_ids"]:
            return  # "a" and "b" were drawn apart: read again they are the one piece "ab"
    pytest.fail("no draw of `a` then `b` among 60 completions: draw more")


def test_a_carrier_without_ids_and_numbers_below_one_are_refused():
    class Bare:
        name = "bare"

    with pytest.raises(InputError, match="draws no ids"):
        draw_samples(Bare(), PROMPTS)
    with pytest.raises(InputError, match="n=0"):
        draw_samples(subject(3), PROMPTS, n=0)


def test_the_command_writes_a_file_once_and_says_what_was_cut(tmp_path, zoo):
    out = tmp_path / "samples.jsonl"
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text(json.dumps({"prompt": "The quick"}) + "\n")
    given = ["sample", zoo["llama"], "--prompts", prompts, "-n", "2", "--max-new-tokens", "3", "-o", out]
    done = run(*given)
    assert done.returncode == 0, done.stderr
    assert "2 completions of 1 prompts" in done.stdout
    assert len(out.read_text().splitlines()) == 2
    assert "--overwrite" in refused(*given)
    assert "--prompts FILE or --pairs FILE" in refused("sample", zoo["llama"], "-o", tmp_path / "b.jsonl")
