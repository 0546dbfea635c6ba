"""Layer scans: one reading of the source runs, the vectors that train_cdas gives, a choice by rows held out."""

import numpy as np
import pytest
import torch
from tiny_steering import WAYS, WORDS, fixed_subject

import alignscope
from alignscope import InputError
from alignscope.steering import Site, faithfulness, reading, scan_layers, train_cdas
from alignscope.steering.evaluation.layer_scan import _times_best, smallest
from alignscope.steering.reading import SharedReading, read_states

FAST = {"epochs": 1, "resamples": 50, "holdout": 0.25, "seed": 5}


@pytest.fixture(scope="module")
def llama() -> alignscope.Subject:
    return fixed_subject()


@pytest.fixture(scope="module")
def scan(llama):
    return scan_layers(llama, WORDS, **FAST)


# ---- the choice


@pytest.mark.parametrize(
    ("values", "expected"), [({0: 2.0, 1: 1.0}, 1), ({3: 1.0, 1: 1.0, 2: 1.0}, 1), ({2: 0.5, 0: 0.5, 1: 0.4}, 1)]
)
def test_the_smallest_is_chosen_and_of_equals_the_earlier(values, expected):
    assert smallest(values) == expected


def test_how_often_a_layer_is_best_counts_ties_for_the_earlier():
    draws = [np.array([1.0, 2, 3, 1]), np.array([2.0, 1, 3, 0])]
    assert _times_best(draws).tolist() == [1 / 2, 1 / 2]


def test_the_chosen_layer_has_the_smallest_worst_kl_on_the_rows_held_out(llama, scan):
    worst = {}
    for layer, vector in scan.vectors.items():
        forced = faithfulness(llama, WORDS, vector, rows="held_out", resamples=50, random_seeds=1)
        kl = {way: forced.row("vector", way).kl.value for way in WAYS}
        worst[layer] = max(kl.values())
        row = next(row for row in scan.rows if row.layer == layer)
        assert {way: row.kl[way].value for way in WAYS} == pytest.approx(kl, abs=1e-6)
        assert row.worst.value == pytest.approx(worst[layer], abs=1e-6)
        assert scan.unedited["elicit"].value == pytest.approx(forced.row("no edit", "elicit").kl.value, abs=1e-6)
    assert scan.chosen == min(worst, key=worst.get)
    assert scan.vector is scan.vectors[scan.chosen]


def test_a_one_way_scan_is_judged_that_way(llama):
    other = []
    for way in WAYS:
        scan = scan_layers(llama, WORDS, [0, 2], directions=way, **FAST)
        assert [row.worst.value for row in scan.rows] == [row.kl[way].value for row in scan.rows]
        assert scan.chosen == min(scan.rows, key=lambda row, way=way: row.kl[way].value).layer
        other += [max(kl.value for kl in row.kl.values()) > row.worst.value for row in scan.rows]
    assert any(other)  # the way not trained is the worse one somewhere


def test_few_held_out_prompts_have_no_interval_and_many_have(llama, scan):
    assert "6 clusters" in scan.rows[0].worst.reason
    assert scan.rows[0].times_best is None
    many = scan_layers(llama, WORDS, [2, 0], **FAST | {"holdout": 0.84}, allow_small=True)
    assert [row.layer for row in many.rows] == [0, 2]
    assert sum(row.times_best for row in many.rows) == pytest.approx(1)
    for row in many.rows:
        assert row.worst.low < row.worst.value < row.worst.high
    assert "of resamples" in many.summary()


# ---- one reading


@pytest.mark.parametrize("component", ["resid_post", "mlp_out"])
def test_each_vector_is_the_one_of_train_cdas(llama, scan, component):
    options = {name: value for name, value in FAST.items() if name != "resamples"}
    scan = scan if component == "resid_post" else scan_layers(llama, WORDS, [1], component=component, **FAST)
    for layer, vector in scan.vectors.items():
        alone = train_cdas(llama, WORDS, layer=layer, component=component, **options)
        assert torch.allclose(vector.subspace.basis, alone.subspace.basis, atol=1e-6)
        assert torch.allclose(vector.factors.positive, alone.factors.positive, atol=1e-6)
        assert torch.allclose(vector.factors.negative, alone.factors.negative, atol=1e-6)
        assert vector.metadata == alone.metadata
        assert vector.site == Site(layer, component)


def test_rows_are_read_once_for_all_layers(llama, monkeypatch):
    asked = []
    plain = reading.read_sites

    def counted(subject, sites, rows, at, last_at=None):
        asked.append((len(sites), tuple(map(tuple, rows))))
        return plain(subject, sites, rows, at, last_at)

    monkeypatch.setattr(reading, "read_sites", counted)
    scan_layers(llama, WORDS, **FAST)
    assert {n for n, _ in asked} == {3}
    assert (
        len({rows for _, rows in asked}) == len(asked) == 6
    )  # source runs, x_c and x, of rows trained on and held out


def test_several_sites_in_one_pass_give_what_single_ones_give(llama):
    sites = [Site(0), Site(1, "attn_out"), Site(2, "resid_pre")]
    rows, at, last_at = [(5, 6, 7, 8), (9, 4)], [[0, 3], [1]], [[2], []]
    shared = SharedReading(llama, sites)
    for site in sites:
        for (states, last), (own, own_last) in zip(
            shared(llama, site, rows, at, last_at), read_states(llama, site, rows, at, last_at), strict=True
        ):
            assert torch.equal(states, own)
            assert torch.equal(last, own_last)
    assert [len(states) for states, _ in shared(llama, sites[0], rows, at, last_at)] == [2, 1]
    hidden = llama.model(torch.tensor([rows[0]]), output_hidden_states=True).hidden_states
    assert torch.allclose(shared(llama, Site(0), rows, at)[0][0], hidden[1][0, [0, 3]], atol=1e-6)


def test_a_shared_reading_is_for_its_own_sites(llama):
    with pytest.raises(ValueError, match=r"this reads .* at 0.resid_post"):
        SharedReading(llama, [Site(0)])(llama, Site(1), [(5, 6)], [[0]])


# ---- tables, refusals


def test_the_table_shows_every_layer(scan):
    frame = scan.to_frame()
    assert frame.layer.tolist() == [0, 1, 2]
    assert frame.chosen.sum() == 1
    assert frame[[f"{name}_{way}" for name in ("kl", "recovered") for way in WAYS]].notna().all(axis=None)
    assert "test the vector on other rows" in scan.summary()


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"holdout": 0}, "held out of training"),
        ({"layers": []}, "no layers"),
        ({"layers": [1, 1]}, "each once"),
        ({"layers": [0, 3]}, "layer 3 is not in 0 .. 2"),
        ({"component": "attn"}, "component 'attn'"),
        ({"directions": "up"}, "directions 'up'"),
        ({"rank": 99}, "rank 99"),
    ],
)
def test_what_cannot_be_scanned_is_refused(llama, change, told):
    with pytest.raises(InputError, match=told):
        scan_layers(llama, **{"quadruples": WORDS, **FAST} | change)
