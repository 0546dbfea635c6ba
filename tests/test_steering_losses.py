"""Losses of interchange training: the exact answers first, then what cannot change them, then float64 oracles."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import rel_entr, softmax

from alignscope.steering.losses import (
    ce,
    jsd,
    kl_edited,
    kl_source,
    require_loss,
    share_at_ceiling,
    token_losses,
    token_weights,
)

LN2 = math.log(2)


def logs(*probabilities: float) -> torch.Tensor:
    return torch.tensor(probabilities, dtype=torch.float64).log()


def gradient(loss, edited, source):
    edited = edited.clone().requires_grad_(True)
    return torch.autograd.grad(loss(edited, source).sum(), edited)[0]


rows = st.lists(st.floats(-30, 30), min_size=5, max_size=5).map(lambda row: torch.tensor(row, dtype=torch.float64))
DIVERGENCES = pytest.mark.parametrize("loss", [jsd, kl_source, kl_edited])


# ---- exact answers (E6, E7)


@pytest.mark.parametrize(
    ("p", "q", "expected"),
    [
        ((0.5, 0.5), (1.0, 0.0), 0.5 * (0.5 * math.log(2 / 3) + 0.5 * LN2 + math.log(4 / 3))),  # 0.215762
        ((1.0, 0.0), (0.0, 1.0), LN2),
        ((0.7, 0.2, 0.1), (0.1, 0.2, 0.7), 0.7 * math.log(7 / 4) + 0.1 * math.log(1 / 4)),  # 0.2531
        ((0.3, 0.7), (0.3, 0.7), 0.0),
    ],
)
def test_jsd_of_known_distributions(p, q, expected):
    assert jsd(logs(*p), logs(*q)).item() == pytest.approx(expected, abs=1e-12)


def test_the_spec_s_decimals():
    assert jsd(logs(0.5, 0.5), logs(1.0, 0.0)).item() == pytest.approx(0.215762, abs=5e-7)
    assert jsd(logs(0.7, 0.2, 0.1), logs(0.1, 0.2, 0.7)).item() == pytest.approx(0.2531, abs=5e-5)


def test_the_two_kls_are_named_by_their_first_argument():
    edited, source = logs(0.6, 0.3, 0.1), logs(0.5, 0.25, 0.25)
    assert kl_edited(edited, source).item() == pytest.approx(0.0725, abs=5e-5)
    assert kl_source(edited, source).item() == pytest.approx(0.0923, abs=5e-5)


def test_a_class_that_underflows_in_both_costs_nothing_and_has_no_gradient():
    edited, source = torch.tensor([200.0, -200.0]), torch.tensor([180.0, -200.0])
    assert jsd(edited, source).item() == 0
    assert gradient(jsd, edited, source).tolist() == [0, 0]


def test_disjoint_half_precision_rows_reach_ln_2_without_a_gradient():
    edited = torch.tensor([200.0, -200.0], dtype=torch.bfloat16)
    value = jsd(edited, -edited)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(LN2, abs=1e-6)
    assert gradient(jsd, edited, -edited).tolist() == [0, 0]


@DIVERGENCES
def test_a_token_masked_in_both_counts_for_nothing_in_value_and_gradient(loss):
    edited, source = torch.tensor([1.0, 0.0]), torch.tensor([0.0, 0.5])
    masked = torch.tensor([-math.inf])
    wide = (torch.cat([edited, masked]), torch.cat([source, masked]))
    assert loss(*wide).item() == pytest.approx(loss(edited, source).item(), abs=1e-7)
    found = gradient(loss, *wide)
    assert torch.allclose(found[:2], gradient(loss, edited, source), atol=1e-7)
    assert found[2] == 0


@pytest.mark.parametrize("loss", [kl_source, kl_edited])
def test_kl_is_infinite_where_the_second_lacks_what_the_first_has(loss):
    half, one = logs(0.5, 0.5), logs(1.0, 0.0)
    pair = (one, half) if loss is kl_source else (half, one)
    assert loss(*pair).item() == math.inf
    assert loss(*reversed(pair)).item() == pytest.approx(LN2)


# ---- gradients of the spec


@given(rows, rows)
def test_the_gradient_of_jsd_is_its_closed_form(edited, source):
    log_p, log_q = edited.log_softmax(-1), source.log_softmax(-1)
    r = log_p - (torch.logaddexp(log_p, log_q) - LN2)
    p = log_p.exp()
    assert torch.allclose(gradient(jsd, edited, source), p * (r - (p * r).sum()) / 2, atol=1e-14)


@given(rows, rows)
def test_the_gradient_of_kl_source_is_p_minus_q(edited, source):
    assert torch.allclose(gradient(kl_source, edited, source), edited.softmax(-1) - source.softmax(-1), atol=1e-14)


# ---- invariances and oracles


@given(rows, rows)
def test_jsd_is_symmetric_and_between_0_and_ln_2(first, second):
    value = jsd(first, second).item()
    assert value == pytest.approx(jsd(second, first).item(), abs=1e-14)
    assert -1e-14 <= value <= LN2 + 1e-14


@DIVERGENCES
@given(edited=rows, source=rows, shift=st.floats(-50, 50))
def test_a_constant_added_to_logits_changes_nothing(loss, edited, source, shift):
    assert loss(edited + shift, source).item() == pytest.approx(loss(edited, source).item(), abs=1e-9)


@given(rows, rows)
def test_values_agree_with_sums_of_relative_entropies(edited, source):
    p, q = softmax(edited.numpy()), softmax(source.numpy())
    m = (p + q) / 2
    assert kl_source(edited, source).item() == pytest.approx(rel_entr(q, p).sum(), abs=1e-10)
    assert kl_edited(edited, source).item() == pytest.approx(rel_entr(p, q).sum(), abs=1e-10)
    assert jsd(edited, source).item() == pytest.approx((rel_entr(p, m) + rel_entr(q, m)).sum() / 2, abs=1e-10)


def test_cross_entropy_is_the_negative_log_probability_of_the_token():
    logits = logs(0.7, 0.2, 0.1).repeat(2, 1)
    assert ce(logits, torch.tensor([0, 2])).tolist() == pytest.approx([-math.log(0.7), -math.log(0.1)])


def test_cross_entropy_asks_for_a_token_a_row():
    with pytest.raises(ValueError, match=r"tokens of shape \(3,\) for logits \(2, 4\)"):
        ce(torch.zeros(2, 4), torch.zeros(3, dtype=torch.long))


@pytest.mark.parametrize(("name", "loss"), [("jsd", jsd), ("kl_source", kl_source), ("kl_edited", kl_edited)])
def test_losses_go_by_name(name, loss):
    g = torch.Generator().manual_seed(0)
    edited, source = torch.randn(2, 3, 6, generator=g)
    assert torch.equal(token_losses(name, edited, source, None), loss(edited, source))


def test_cross_entropy_goes_by_name_and_needs_tokens():
    edited, tokens = torch.randn(3, 6, generator=torch.Generator().manual_seed(0)), torch.tensor([5, 0, 1])
    assert torch.equal(token_losses("ce", edited, edited, tokens), ce(edited, tokens))
    with pytest.raises(ValueError, match="pass tokens="):
        token_losses("ce", edited, edited, None)


def test_unknown_names_are_refused_with_those_that_exist():
    with pytest.raises(ValueError, match="expected one of jsd, kl_source, kl_edited, ce"):
        require_loss("kl", "token", has_tokens=True)
    with pytest.raises(ValueError, match="expected one of token, example"):
        require_loss("jsd", "row", has_tokens=True)
    with pytest.raises(ValueError, match="expected one of token, example"):
        token_weights(torch.ones(1, 1, dtype=torch.bool), "row")


@DIVERGENCES
def test_logits_of_different_vocabularies_are_refused(loss):
    with pytest.raises(ValueError, match=r"\(2, 4\) against source logits \(2, 5\)"):
        loss(torch.zeros(2, 4), torch.zeros(2, 5))


# ---- the mean over a minibatch


MASK = torch.tensor([[True, False, False], [True, True, True]])


def test_by_token_every_response_token_counts_alike():
    assert token_weights(MASK, "token").tolist() == [1 / 4] * 4


def test_by_example_every_row_counts_alike():
    assert token_weights(MASK, "example").tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])


def test_a_row_without_response_tokens_has_no_mean():
    with pytest.raises(ValueError, match="row 1 of the minibatch"):
        token_weights(MASK & torch.tensor([[True], [False]]), "example")


def test_the_ceiling_counts_tokens_above_69_hundredths():
    assert share_at_ceiling(torch.tensor([LN2, 0.6899, 0.6901, 0.1])) == 1 / 2
    with pytest.raises(ValueError, match="no divergences"):
        share_at_ceiling(torch.zeros(0))
