"""What the training loop promises whatever the network: its steps, its gradients, its rows, and what it refuses."""

import pytest
import torch
from scipy.special import rel_entr
from steering_worlds import PREDICTING, WIDTH, make_pairs, make_world

from alignscope.steering.cdas import fit_interchange
from alignscope.steering.interchange import InterchangeRows
from alignscope.steering.subspace import Subspace

WORLD, LR = make_world(), 0.04
FEW = make_pairs(WORLD, 6, mu=2.0, sigma=1.0, seed=3)


def replaced(h: torch.Tensor, source: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    """h with its coordinate along w that of source."""
    return h + ((source @ w)[:, None] - h @ w)[..., None] * w


def few(rows=None, readout=WORLD.readout, **settings):
    return fit_interchange(**(rows or FEW.rows), readout=readout, **{"steps": 4, "lr": LR, "batch_size": 4, "seed": 0}
                           | settings)  # fmt: skip


def gram_schmidt(pair: torch.Tensor) -> torch.Tensor:
    first = pair[0] / pair[0].norm()
    second = pair[1] - (pair[1] @ first) * first
    return torch.stack([first, second / second.norm()])


@pytest.mark.parametrize("rank", [1, 2, 5])
def test_rows_are_orthonormal_after_every_step(rank):
    seen = []
    fit = few(rank=rank, lr=0.5, observe=lambda step, subspace: seen.append(subspace.basis))
    assert len(seen) == 5
    for basis in (*seen, fit.basis):
        assert basis.shape == (rank, WIDTH)
        assert (basis @ basis.T - torch.eye(rank)).abs().max() < 1e-5
    assert torch.equal(seen[-1], fit.basis)
    assert not torch.allclose(seen[0], seen[1], atol=1e-2)


@pytest.mark.parametrize(("grad_clip", "reduction"), [(1.0, "token"), (0.01, "example")])
def test_every_step_is_a_clipped_adamw_step_at_a_rate_that_falls_to_zero(grad_clip, reduction):
    batches = list(torch.tensor([[0, 7, 3, 11], [5, 5, 9, 1], [2, 8, 4, 10]]))
    mask = torch.ones(12, 5, dtype=torch.bool)
    mask[::2, 3:] = False
    start = torch.randn(2, WIDTH, generator=torch.Generator().manual_seed(5))
    fit = few(
        rank=2, steps=3, batches=batches, init=start, grad_clip=grad_clip, reduction=reduction, response_mask=mask
    )

    base, source, _, target = FEW.rows.values()
    s = gram_schmidt(start).requires_grad_(True)
    optimizer = torch.optim.AdamW([s], weight_decay=0.0)
    for step, rows in enumerate(batches):
        optimizer.param_groups[0]["lr"] = LR * (3 - step) / 3
        h = base[rows] + (source[rows] @ s.T)[:, None] @ s - base[rows] @ s.T @ s
        p, q = WORLD.readout(h, rows).softmax(-1), target[rows].softmax(-1)
        m = (p + q) / 2
        each = ((p * (p / m).log() + q * (q / m).log()).sum(-1) / 2) * mask[rows]
        loss = each.sum() / mask[rows].sum() if reduction == "token" else (each.sum(-1) / mask[rows].sum(-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        norm = s.grad.norm()
        assert fit.losses[step] == pytest.approx(loss.item(), rel=1e-4)
        assert fit.gradient_norms[step] == pytest.approx(norm.item(), rel=1e-3)
        s.grad *= min(1.0, grad_clip / float(norm))
        optimizer.step()
        with torch.no_grad():
            q_factor, r = torch.linalg.qr(s.T)
            s.copy_((q_factor * r.diagonal().sign()).T)
    assert torch.allclose(fit.basis, s.detach(), atol=1e-4)  # Adam's quotient of tiny gradients keeps 4 digits


def test_equal_seeds_give_equal_fits_and_others_do_not():
    first = few()
    assert torch.equal(first.basis, few().basis)
    assert not torch.equal(first.basis, few(seed=1).basis)


def test_the_caller_s_random_stream_and_gradient_mode_are_left_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    with torch.no_grad():
        inside = few().basis
        assert not torch.is_grad_enabled()
    assert torch.equal(torch.rand(3), expected)
    assert torch.equal(inside, few().basis)


def test_gradient_reaches_the_subspace_alone():
    gain = torch.ones(1, requires_grad=True)
    rows = FEW.rows
    rows = {name: value.requires_grad_(True) if value.is_floating_point() else value for name, value in rows.items()}
    fit = few(rows, readout=lambda states, rows: gain * WORLD.readout(states, rows))
    assert gain.grad is None
    assert all(value.grad is None for value in rows.values())
    assert not fit.basis.requires_grad


def test_swapping_the_two_runs_changes_no_subspace_when_both_directions_are_trained():
    swap = torch.arange(12).roll(6)
    batches = [torch.arange(12)] * 4
    swapped = {name: value[swap] for name, value in FEW.rows.items()}
    assert torch.allclose(few(batches=batches).basis, few(swapped, batches=batches).basis, atol=1e-5)


def test_what_stands_at_padded_response_places_does_not_matter():
    mask = torch.ones(12, 5, dtype=torch.bool)
    mask[:, 4] = False
    rows = FEW.rows
    other = rows | {"target_logits": rows["target_logits"].clone()}
    other["target_logits"][:, 4] = torch.nan
    assert torch.equal(few(rows, response_mask=mask).basis, few(other, response_mask=mask).basis)


def test_half_precision_states_are_edited_in_float32_and_given_back_in_their_own_type():
    rows = FEW.rows
    seen = []

    def readout(states, which):
        seen.append(states.dtype)
        return WORLD.readout(states.float(), which)

    fit = few(rows | {"base": rows["base"].bfloat16(), "source": rows["source"].bfloat16()}, readout=readout)
    assert set(seen) == {torch.bfloat16}
    assert fit.basis.dtype == torch.float32


def test_progress_counts_the_steps():
    seen = []
    few(progress=lambda stage, done, total: seen.append((done, total)))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_runs_that_share_no_token_are_at_the_ceiling_and_another_loss_is_advised():
    logits = torch.tensor([40.0, -40.0])
    fit = fit_interchange(
        torch.zeros(2, 1, 3), torch.ones(2, 3), torch.ones(2, 1, dtype=torch.bool), logits.expand(2, 1, 2),
        lambda states, rows: states @ torch.zeros(3, 2) - logits, steps=2, lr=0.1, batch_size=2, seed=0,
    )  # fmt: skip
    assert fit.share_at_ceiling == 1
    assert "Try loss='kl_source'" in fit.warnings[0]


# ---- the edit and its rows


def test_edited_positions_get_the_source_s_coordinate_and_the_others_keep_every_bit():
    rows, seen = FEW.rows, []
    rows["edit_mask"] = rows["edit_mask"].clone()
    rows["edit_mask"][:, ::2] = False

    def readout(states, which):
        seen.append(states)
        return WORLD.readout(states, which)

    mask = torch.ones(12, 5, dtype=torch.bool)
    data = InterchangeRows(**rows, readout=readout, response_mask=mask)
    data.row_losses(Subspace(WORLD.u))
    assert torch.equal(seen[0][:, ::2], rows["base"][:, ::2])
    moved, wanted = seen[0][:, 1::2] @ WORLD.u, (rows["source"] @ WORLD.u)[:, None]
    assert torch.allclose(moved, wanted.expand_as(moved), atol=1e-5)


def test_row_losses_are_means_over_each_row_s_tokens():
    rows, mask = FEW.rows, torch.ones(12, 5, dtype=torch.bool)
    mask[0, 1:] = False
    mask[7, ::2] = False
    edited = (rows["base"] + replaced(rows["base"], rows["source"], WORLD.u)) / 2
    halfway = rows | {"base": edited}  # else the edit by u leaves a KL of 0
    data = InterchangeRows(**halfway, readout=WORLD.readout, response_mask=mask)
    for subspace, states in ((None, edited), (Subspace(WORLD.n), replaced(edited, rows["source"], WORLD.n))):
        q, p = (logits.double().softmax(-1) for logits in (rows["target_logits"], WORLD.logits(states)[:, PREDICTING]))
        each = torch.from_numpy(rel_entr(q.numpy(), p.numpy()).sum(-1))
        expected = (each * mask).sum(-1) / mask.sum(-1)
        assert torch.allclose(data.row_losses(subspace, batch_size=5), expected, rtol=1e-3)
        assert expected.min() > 1e-4


# ---- refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rank": 0}, r"rank 0: expected 1 \.\. 48"),
        ({"rank": 49}, r"rank 49: expected 1 \.\. 48"),
        ({"steps": 0}, "steps 0: expected above 0"),
        ({"lr": -1.0}, "lr -1"),
        ({"loss": "kl"}, "expected one of jsd"),
        ({"loss": "ce"}, "needs the response tokens"),
        ({"init": torch.ones(2, WIDTH), "rank": 2}, "not linearly independent"),
        ({"init": torch.ones(WIDTH), "rank": 2}, r"init of shape \(48,\): expected \[2, 48\]"),
        ({"batches": [torch.tensor([0])]}, "1 batches for 4 steps"),
        ({"batches": [torch.tensor([12])] * 4}, r"step 1 is empty or names a row outside 0 \.\. 11"),
        (
            {"response_mask": torch.ones(12, 4, dtype=torch.bool)},
            r"response_mask of shape \(12, 4\), expected \(12, 5\)",
        ),
        ({"tokens": torch.zeros(11, 5, dtype=torch.long)}, r"tokens of shape \(11, 5\), expected \(12, 5\)"),
        ({"readout": lambda states, rows: WORLD.logits(states)}, r"readout gave logits \(4, 12, 40\)"),
        ({"readout": lambda states, rows: WORLD.readout(states, rows) * torch.nan}, "loss nan, .* at step 1 of 4"),
    ],
)
def test_settings_that_do_not_fit_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        few(**change)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("source", torch.zeros(12, 47), r"source of shape \(12, 47\), expected \(12, 48\)"),
        ("edit_mask", torch.ones(12, 11, dtype=torch.bool), r"edit_mask of shape \(12, 11\), expected \(12, 12\)"),
        ("edit_mask", torch.arange(12)[:, None].expand(12, 12) > 0, "row 0 has no edited position"),
        ("target_logits", torch.zeros(11, 5, 40), r"target_logits \(11, 5, 40\) for 12 rows"),
        ("target_logits", torch.full((12, 5, 40), torch.nan), "target_logits hold NaN"),
        ("source", torch.full((12, WIDTH), torch.inf), "source holds values that are not finite"),
    ],
)
def test_rows_that_do_not_fit_are_refused(name, value, message):
    mask = torch.ones(12, 5, dtype=torch.bool)
    with pytest.raises(ValueError, match=message):
        few(FEW.rows | {name: value}, response_mask=mask)


def test_a_row_without_response_tokens_is_refused():
    mask = torch.ones(12, 5, dtype=torch.bool)
    mask[7] = False
    with pytest.raises(ValueError, match="row 7 has no response token"):
        few(response_mask=mask)
