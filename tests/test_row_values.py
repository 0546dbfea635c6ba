"""Values of rows through a vocabulary: the same numbers and gradients as all logits at once, and never all logits."""

import pytest
import torch
from torch import Tensor

from alignscope.probes.kernels import row_values as module
from alignscope.probes.kernels.logprobs import token_log_probs
from alignscope.probes.kernels.row_values import row_values
from alignscope.steering.losses import LOSSES, token_losses

ROWS, WIDTH, VOCABULARY = 23, 6, 40


@pytest.fixture
def few_rows(monkeypatch) -> list[int]:
    """Four rows at a time."""
    monkeypatch.setattr(module, "ENTRIES", 4 * VOCABULARY + 3)


def problem() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    h = torch.randn(ROWS, WIDTH, generator=generator, dtype=torch.float64)
    head = torch.randn(WIDTH, VOCABULARY, generator=generator, dtype=torch.float64)
    target = torch.randn(ROWS, VOCABULARY, generator=generator, dtype=torch.float64)
    ids = torch.randint(VOCABULARY, (ROWS,), generator=generator)
    weights = torch.rand(ROWS, generator=generator, dtype=torch.float64)
    return h, head, target, ids, weights


@pytest.mark.parametrize("loss", LOSSES)
def test_values_and_gradients_are_those_of_all_logits_at_once(few_rows, loss):
    h, head, target, ids, weights = problem()
    seen: list[int] = []

    def values(some: Tensor, part: slice) -> Tensor:
        seen.append(len(some))
        return token_losses(loss, some.tanh() @ head, target[part], ids[part])

    together, apart = (h.clone().requires_grad_() for _ in range(2))
    whole = token_losses(loss, together.tanh() @ head, target, ids)
    parts = row_values(values, apart, VOCABULARY)
    assert seen == [4, 4, 4, 4, 4, 3]
    torch.testing.assert_close(parts, whole, rtol=1e-14, atol=0)
    (expected,) = torch.autograd.grad((whole * weights).sum(), together)
    (found,) = torch.autograd.grad((parts * weights).sum(), apart)
    assert expected.abs().min() > 0
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_the_gradient_goes_on_through_what_made_the_states(few_rows):
    h, head, _, ids, _ = problem()
    found = []
    for cut in (False, True):
        step = torch.zeros(WIDTH, dtype=torch.float64, requires_grad=True)

        def values(some: Tensor, part: slice) -> Tensor:
            return token_log_probs(some @ head, ids[part])

        moved = h + step
        of_tokens = row_values(values, moved, VOCABULARY) if cut else values(moved, slice(None))
        found.append(torch.autograd.grad(of_tokens.sum(), step)[0])
    torch.testing.assert_close(found[1], found[0], rtol=1e-12, atol=0)


def test_no_graph_of_logits_is_left_behind(few_rows):
    h, head, _, ids, _ = problem()
    kept: list[tuple[int, ...]] = []

    def pack(tensor: Tensor) -> Tensor:
        kept.append(tuple(tensor.shape))
        return tensor

    start = h.clone().requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        row_values(lambda some, part: token_log_probs(some @ head, ids[part]), start, VOCABULARY)
    assert (4, VOCABULARY) in kept
    assert max(shape[0] for shape in kept if shape[1:] == (VOCABULARY,) and shape != tuple(head.shape)) == 4


@pytest.mark.parametrize("gradients", [True, False])
def test_without_gradient_nothing_needs_one(few_rows, gradients):
    h, head, _, ids, _ = problem()
    with torch.set_grad_enabled(gradients):
        found = row_values(lambda some, part: token_log_probs(some @ head, ids[part]), h, VOCABULARY)
    assert not found.requires_grad
    assert torch.equal(found, token_log_probs(h @ head, ids))


def test_a_row_that_is_not_finite_spoils_its_own_gradient_alone(few_rows):
    h, head, _, ids, _ = problem()
    bad, good = h.clone(), h.clone()
    bad[5] = torch.nan
    gradients = []
    for states in (bad, good):
        states.requires_grad_()
        values = row_values(lambda some, part: token_log_probs(some @ head, ids[part]), states, VOCABULARY)
        gradients.append(torch.autograd.grad(values.sum(), states)[0])
    others = [k for k in range(ROWS) if k != 5]
    assert gradients[0][5].isnan().all()
    assert torch.equal(gradients[0][others], gradients[1][others])


@pytest.mark.parametrize("needed", [True, False])
def test_one_value_a_row_is_demanded(needed):
    h = torch.zeros(3, 2, requires_grad=needed)
    with pytest.raises(ValueError, match=r"\(3, 2\) values for 3 rows"):
        row_values(lambda some, part: some, h, 5)


def test_no_rows_give_no_values_of_the_same_dtype():
    none = torch.zeros(0, WIDTH, requires_grad=True)
    found = row_values(lambda some, part: some.sum(-1).double(), none, VOCABULARY)
    assert found.shape == (0,)
    assert found.dtype == torch.float64
    assert torch.autograd.grad(found.sum(), none)[0].shape == (0, WIDTH)
