"""Log-probabilities of completions: closed forms, then padding, precision and impossible tokens."""

import math

import pytest
import torch
from torch import Tensor

from alignscope.probes.kernels import sequence_log_probs

INF = math.inf


def example(n_rows: int = 3, n_columns: int = 9, n_vocab: int = 31, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n_rows, n_columns, n_vocab, generator=generator) * 4
    ids = torch.randint(n_vocab, (n_rows, n_columns), generator=generator)
    mask = torch.zeros(n_rows, n_columns, dtype=torch.long)
    for row in range(n_rows):
        mask[row, 2 + row : 6 + row] = 1
    return logits, ids, mask


def test_a_uniform_model_pays_log_v_a_token():
    ids, mask = torch.arange(5)[None], torch.tensor([[0, 1, 1, 0, 1]])
    got = sequence_log_probs(torch.zeros(1, 5, 10), ids, mask)
    assert got.total.item() == pytest.approx(-3 * math.log(10), rel=1e-7)
    assert got.n_tokens.tolist() == [3]
    assert got.per_token[0].tolist() == pytest.approx([-math.log(10), -math.log(10), 0, -math.log(10)], rel=1e-6)
    assert got.total.dtype == torch.float64


def test_the_logit_of_the_column_before_scores_a_token():
    logits = torch.zeros(1, 3, 2)
    logits[0, 0] = torch.tensor([math.log(3), 0.0])  # p = (3/4, 1/4) for the second token
    logits[0, 2] = torch.tensor([50.0, -50.0])  # predicts what comes after the end
    got = sequence_log_probs(logits, torch.tensor([[1, 0, 1]]), torch.tensor([[0, 1, 1]]))
    assert got.per_token[0].tolist() == pytest.approx([math.log(3 / 4), math.log(1 / 2)], abs=1e-7)


def test_completions_that_reach_the_end_of_the_row_keep_all_their_tokens():
    logits, ids, _ = example(2, 4)
    mask = torch.tensor([[0, 1, 1, 1], [0, 0, 0, 1]])  # prompt 1 + completion 3; prompt 3 + completion 1
    assert sequence_log_probs(logits, ids, mask).n_tokens.tolist() == [3, 1]


def test_a_completion_token_in_the_first_column_has_no_score():
    logits, ids, _ = example(2, 3)
    got = sequence_log_probs(logits, ids, torch.tensor([[1, 1, 1], [1, 0, 0]]))
    assert got.n_tokens.tolist() == [2, 0]
    assert got.total[1].item() == 0


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_agrees_with_log_softmax_in_float64(dtype):
    logits, ids, mask = example()
    got = sequence_log_probs(logits.to(dtype), ids, mask)
    true = logits.double().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]
    torch.testing.assert_close(got.total, true.sum(-1), atol=1e-5, rtol=0)
    torch.testing.assert_close(got.per_token.double(), true, atol=2e-6, rtol=0)


def test_more_rows_than_a_chunk_holds():
    logits, ids, _ = example(4, 700, 5)
    mask = torch.ones(4, 700, dtype=torch.bool)  # 2,796 scored rows
    got = sequence_log_probs(logits, ids, mask)
    true = logits.double().log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0].sum(-1)
    torch.testing.assert_close(got.total, true, atol=1e-4, rtol=1e-7)  # 699 float32 tokens a row


def test_nothing_outside_the_mask_is_looked_at():
    logits, ids, mask = example()
    clean = sequence_log_probs(logits, ids, mask)
    dirty = logits.clone()
    dirty[:, :-1][mask[:, 1:] == 0] = torch.nan
    dirty[:, -1] = -INF
    ids = ids.masked_fill(mask == 0, -100)
    got = sequence_log_probs(dirty, ids, mask)
    assert torch.equal(got.total, clean.total)
    assert torch.equal(got.per_token, clean.per_token)


def test_padding_and_company_move_no_bit():
    logits, ids, mask = example()
    alone = sequence_log_probs(logits[1:2, :8], ids[1:2, :8], mask[1:2, :8])
    together = sequence_log_probs(logits, ids, mask)
    assert together.total[1].item() == alone.total.item()


def test_an_impossible_token_costs_everything_and_a_nan_stays_in_its_row():
    logits, ids, mask = example()
    logits[0, 2, ids[0, 3]] = -INF
    logits[1, 3, 0] = torch.nan
    logits[2, 4, (ids[2, 5] + 1) % 31] = -INF  # another token's -inf is ordinary
    total = sequence_log_probs(logits, ids, mask).total
    assert total[0].item() == -INF
    assert math.isnan(total[1].item())
    assert math.isfinite(total[2].item())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_logits_are_upcast_before_the_softmax(dtype):
    logits, ids, mask = example(2, 9, 4000)
    half = logits.to(dtype)
    got, single = sequence_log_probs(half, ids, mask), sequence_log_probs(half.float(), ids, mask)
    assert torch.equal(got.total, single.total)
    assert got.per_token.dtype == torch.float32
    rough = (half.log_softmax(-1)[:, :-1].gather(-1, ids[:, 1:, None])[..., 0] * mask[:, 1:]).sum(-1)
    assert (rough.double() - got.total).abs().max() > 1e-3


def test_sums_are_float64():
    logits = torch.zeros(1, 20_001, 3)
    got = sequence_log_probs(logits, torch.zeros(1, 20_001, dtype=torch.long), torch.ones(1, 20_001, dtype=torch.long))
    assert got.total.item() == pytest.approx(20_000 * got.per_token[0, 0].item(), rel=1e-13)


def test_gradients_flow_only_through_scored_rows():
    logits, ids, mask = example()
    logits.requires_grad_()
    sequence_log_probs(logits, ids, mask).total.sum().backward()
    touched = (logits.grad.abs().sum(-1) > 0)[:, :-1]
    assert torch.equal(touched, mask[:, 1:].bool())
    assert not logits.grad[:, -1].any()
    expected = torch.nn.functional.one_hot(ids[0, 3], 31) - logits[0, 2].softmax(-1)
    torch.testing.assert_close(logits.grad[0, 2], expected, atol=1e-6, rtol=0)


def test_bad_input_is_refused_naming_row_and_position():
    logits, ids, mask = example()
    with pytest.raises(ValueError, match="0 and 1"):
        sequence_log_probs(logits, ids, mask * 2)
    with pytest.raises(ValueError, match="share B and T"):
        sequence_log_probs(logits, ids[:, :-1], mask)
    ids[1, 4] = 31
    with pytest.raises(ValueError, match=r"row 1, position 4: token id 31 is outside the vocabulary \[0, 31\)"):
        sequence_log_probs(logits, ids, mask)
