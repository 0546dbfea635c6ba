"""What a killed run left: taken where it is whole and of the same question, made again where it is not."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from spinal_models import letters, tiny_model, tiny_subject
from tiny_tokenizer import PIECES, tiny_tokenizer

import alignscope
from alignscope import InputError
from alignscope.diagnose import spinal_distance
from alignscope.diagnose.spinal import SpinalTrace, compare_spinal, spinal_trace
from alignscope.diagnose.spinal_distance import base_distance


@pytest.fixture(scope="module")
def subjects():
    return tiny_subject(), tiny_subject(changed=4, scale=1.05)


@pytest.fixture(scope="module")
def texts() -> list[str]:
    return letters(50)


@pytest.fixture(scope="module")
def traces(subjects, texts):
    return tuple(spinal_trace(subject, texts) for subject in subjects)


def test_a_distance_at_another_temperature_is_not_taken(subjects, texts, tmp_path):
    found = {}
    for temperature in (1.0, 2.0):
        pair = [spinal_trace(subject, texts, temperature=temperature) for subject in subjects]
        for shards in (tmp_path, None):
            compared = compare_spinal(*pair, subjects=subjects, controls=(), shards=shards)
            found[temperature, shards] = compared.base_distance
        np.testing.assert_array_equal(found[temperature, tmp_path], found[temperature, None])
    assert (found[1.0, None][-1] > found[2.0, None][-1]).all()


def test_a_distance_of_another_dtype_or_version_is_not_taken(subjects, traces, tmp_path, monkeypatch):
    def kept(pair) -> set[str]:
        base_distance(*pair, subjects, identical=False, warnings=[], shards=tmp_path)
        return {path.name for path in tmp_path.glob("base_distance_*.npz")}

    first = kept(traces)
    assert kept(traces) == first
    other = kept([replace(trace, model=replace(trace.model, dtype="bfloat16")) for trace in traces])
    assert len(other) == 2
    monkeypatch.setattr(spinal_distance, "DISTANCE_VERSION", 99)
    assert len(kept(traces)) == 3


@pytest.mark.parametrize("damage", [b"", b"torn"])
def test_a_torn_distance_is_made_again(subjects, traces, tmp_path, damage):
    options = {"subjects": subjects, "controls": (), "shards": tmp_path}
    first = compare_spinal(*traces, **options).base_distance
    (path,) = tmp_path.glob("base_distance_*.npz")
    path.write_bytes(damage)
    np.testing.assert_array_equal(compare_spinal(*traces, **options).base_distance, first)


def test_a_finished_trace_is_held_against_max_invalid_again(tmp_path):
    model = tiny_model()
    subject = alignscope.wrap(model, tiny_tokenizer())
    with torch.no_grad():
        model.model.embed_tokens.weight[PIECES["z"]] = torch.nan
    texts = [*(text.replace("z", "y") for text in letters(50)), "zebra"]
    assert spinal_trace(subject, texts, shards=tmp_path).counts["nonfinite_rows"] == 1
    with pytest.raises(InputError, match="1 nonfinite_row"):
        spinal_trace(subject, texts, shards=tmp_path, max_invalid=0.01)


def test_a_finished_trace_of_other_clusters_is_not_taken(subjects, texts, tmp_path):
    for size in (1, 2):
        rows = [{"prompt": text, "prompt_id": str(i // size)} for i, text in enumerate(texts)]
        found = spinal_trace(subjects[0], rows, shards=tmp_path)
        assert found.section().section.estimates["path_length"].n_clusters == len(texts) / size


def test_a_finished_trace_counts_the_repeats_of_this_file(subjects, texts, tmp_path):
    first = spinal_trace(subjects[0], texts, shards=tmp_path)
    again = spinal_trace(subjects[0], [*texts, texts[0]], shards=tmp_path)
    assert (first.counts["duplicate_prompts"], again.counts["duplicate_prompts"]) == (0, 1)
    pd.testing.assert_frame_equal(again.layers, first.layers)


@pytest.mark.parametrize("name", ["arrays.npz", "layers.parquet"])
@pytest.mark.parametrize("damage", [None, b"", b"torn", "half"])
def test_a_torn_finished_trace_is_refused_by_load_and_made_again_by_a_run(
    subjects, texts, traces, tmp_path, name, damage
):
    spinal_trace(subjects[0], texts, shards=tmp_path)
    path = tmp_path / "trace" / name
    if damage is None:
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] if damage == "half" else damage)
    with pytest.raises(InputError, match="a file of the trace is missing or torn"):
        SpinalTrace.load(tmp_path / "trace")
    again = spinal_trace(subjects[0], texts, shards=tmp_path)
    pd.testing.assert_frame_equal(again.layers, traces[0].layers)
    assert SpinalTrace.load(tmp_path / "trace").n == again.n


@pytest.mark.parametrize("content", ["[]", "{}", '{"trace_version": 2}', "{"])
def test_a_folder_with_another_json_is_refused(tmp_path, content):
    (tmp_path / "trace.json").write_text(content)
    with pytest.raises(InputError, match=str(tmp_path)):
        SpinalTrace.load(tmp_path)


def test_of_a_text_under_two_ids_the_smallest_is_kept_whatever_the_order(subjects, texts):
    rows = [{"prompt": text, "prompt_id": f"id {i}"} for i, text in enumerate(texts[:5])]
    twice = [*rows, {"prompt": texts[0], "prompt_id": "a"}, {"prompt": texts[1]}]
    for order in (twice, twice[::-1]):
        found = spinal_trace(subjects[0], order)
        assert {prompt.prompt_id for prompt in found.prompts} == {"a", *(f"id {i}" for i in range(1, 5))}
