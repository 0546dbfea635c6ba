"""Interchange training on a network whose direction is known: the gates A1-A5, B1, B2, then what the loop promises."""

from dataclasses import dataclass

import pytest
import torch
from scipy.special import rel_entr
from steering_worlds import PREDICTING, SOURCE, WIDTH, Pairs, make_pairs, make_world

from alignscope.steering.cdas import FitResult, fit_interchange
from alignscope.steering.interchange import InterchangeRows, interchanged

WORLD = make_world()
STEPS, LR, BATCH = 300, 0.04, 32  # 16 pairs a step, on average half of them in either direction


@dataclass(frozen=True)
class Case:
    """A fit on 72 pairs, and 256 fresh ones to test it."""

    train: Pairs
    test: Pairs
    fit: FitResult

    @property
    def w(self) -> torch.Tensor:
        return self.fit.basis[0]


def case(mu: float, sigma: float, *, loss: str = "jsd", seed: int = 0, unrelated: bool = False) -> Case:
    train = make_pairs(WORLD, 72, mu=mu, sigma=sigma, seed=1, unrelated=unrelated)
    test = make_pairs(WORLD, 256, mu=mu, sigma=sigma, seed=2, unrelated=unrelated)
    tokens = torch.cat([train.tokens] * 2)
    fit = fit_interchange(
        **train.rows, readout=WORLD.readout, rank=1, loss=loss, steps=STEPS, lr=LR, batch_size=BATCH, seed=seed,
        tokens=tokens if loss == "ce" else None,
    )  # fmt: skip
    return Case(train, test, fit)


def cosine(w: torch.Tensor) -> float:
    return abs(float(w @ WORLD.u)) / float(w.norm())


def kl(pairs: Pairs, w: torch.Tensor | None) -> float:
    """Mean KL(source : edited) over response tokens and directions, nats, written out anew in float64."""
    base, source, _, target = pairs.rows.values()
    if w is not None:
        w = w / w.norm()
        base = base + ((source @ w)[:, None] - base @ w)[..., None] * w
    edited = WORLD.logits(base)[:, PREDICTING]
    q, p = (logits.double().softmax(-1).numpy() for logits in (target, edited))
    return float(rel_entr(q, p).sum(-1).mean())


@pytest.fixture(scope="module")
def nuisance() -> Case:
    return case(mu=2.0, sigma=1.0)


@pytest.fixture(scope="module")
def level() -> Case:
    return case(mu=0.0, sigma=1.0)


@pytest.fixture(scope="module")
def confounded() -> Case:
    return case(mu=2.0, sigma=0.0)


@pytest.fixture(scope="module")
def unrelated() -> Case:
    return case(mu=2.0, sigma=1.0, unrelated=True)


@pytest.fixture(scope="module")
def labels() -> Case:
    return case(mu=2.0, sigma=1.0, loss="ce")


# ---- world A


def test_a1_training_finds_the_direction_that_the_network_uses(nuisance):
    assert cosine(nuisance.w) > 0.99


def test_a1_a_difference_of_means_leans_towards_the_nuisance(nuisance):
    assert 0.68 < cosine(nuisance.train.diffmean) < 0.75


def test_a1_prompts_project_to_plus_and_minus_two(nuisance):
    sign = torch.sign(nuisance.w @ WORLD.u)
    positive, negative = (nuisance.fit.project(side[:, SOURCE]).mean() for side in (nuisance.test.positive,
                          nuisance.test.negative))  # fmt: skip
    assert float(sign * positive) == pytest.approx(2, abs=1e-3)
    assert float(sign * negative) == pytest.approx(-2, abs=1e-3)


def test_a2_the_edited_model_says_what_the_source_says(nuisance):
    assert 0.14 < kl(nuisance.test, None) < 0.29
    assert kl(nuisance.test, nuisance.w) < 1e-6


def test_a2_the_difference_of_means_does_not_get_there(nuisance):
    assert 4e-3 < kl(nuisance.test, nuisance.train.diffmean) < 1e-2


def test_a3_without_a_shift_of_the_nuisance_both_find_it(level):
    assert cosine(level.w) > 0.9999
    assert cosine(level.train.diffmean) > 0.98


def test_a4_a_nuisance_that_never_varies_leaves_two_solutions(confounded):
    assert cosine(confounded.train.diffmean) == pytest.approx(0.5**0.5, abs=1e-6)
    assert kl(confounded.test, confounded.train.diffmean) < 1e-3
    assert kl(confounded.test, confounded.w) < 1e-3  # not which of the two: nothing guarantees u


def test_a5_unrelated_prompts_leave_what_no_direction_can_give(unrelated):
    floor = kl(unrelated.test, WORLD.u)
    assert cosine(unrelated.w) > 0.75
    assert kl(unrelated.test, unrelated.w) == pytest.approx(floor, abs=0.01)
    assert 0.1 < floor < kl(unrelated.test, None)


# ---- world B


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("loss", ["jsd", "kl_source", "kl_edited"])
def test_b1_every_divergence_finds_it_from_every_start(loss, seed, nuisance):
    found = nuisance if (loss, seed) == ("jsd", 0) else case(mu=2.0, sigma=1.0, loss=loss, seed=seed)
    assert cosine(found.w) > 0.99
    assert kl(found.test, found.w) < 1e-3


def test_b2_labels_in_place_of_distributions_do_not(labels):
    assert cosine(labels.w) < 0.7
    assert kl(labels.test, labels.w) > 0.05


# ---- what is recorded


def test_the_history_has_an_entry_a_step(nuisance):
    fit = nuisance.fit
    assert len(fit.losses) == len(fit.gradient_norms) == len(fit.at_ceiling) == STEPS
    assert (fit.n_rows, fit.n_tokens, fit.rank, fit.loss) == (144, STEPS * BATCH * 5, 1, "jsd")
    assert max(fit.losses[-10:]) < 1e-6 < 1e-3 < fit.losses[0]


def test_runs_that_share_no_token_are_at_the_ceiling_and_another_loss_is_advised():
    logits = torch.tensor([40.0, -40.0])
    fit = fit_interchange(
        torch.zeros(2, 1, 3), torch.ones(2, 3), torch.ones(2, 1, dtype=torch.bool), logits.expand(2, 1, 2),
        lambda states, rows: states @ torch.zeros(3, 2) - logits, steps=2, lr=0.1, batch_size=2, seed=0,
    )  # fmt: skip
    assert fit.share_at_ceiling == 1
    assert "Try loss='kl_source'" in fit.warnings[0]


def test_a_fit_away_from_the_ceiling_advises_nothing(nuisance):
    assert nuisance.fit.share_at_ceiling == 0
    assert nuisance.fit.warnings == ()


def test_other_losses_have_no_ceiling(labels):
    assert labels.fit.share_at_ceiling is None
    assert labels.fit.warnings == ()


# ---- the loop; a few steps suffice


FEW = make_pairs(WORLD, 6, mu=2.0, sigma=1.0, seed=3)


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
    fit = few(rank=rank, lr=0.5, observe=lambda step, basis: seen.append(basis))
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


# ---- the edit and its test rows


def test_interchange_gives_the_source_s_projection_and_keeps_the_rest():
    h_b, h_s, w = torch.tensor([[[1.0, 2.0, 3.0]]]), torch.tensor([[5.0, 0.0, 1.0]]), torch.tensor([[0.6, 0.8, 0.0]])
    edited = interchanged(h_b, h_s, w, torch.tensor([[True]]))
    assert torch.allclose(edited[0, 0], torch.tensor([1.48, 2.64, 3.0]), atol=1e-6)
    assert torch.allclose(interchanged(h_b, h_b[:, 0], w, torch.tensor([[True]])), h_b, atol=1e-6)


def test_positions_that_are_not_edited_keep_every_bit():
    base, source, mask, _ = FEW.rows.values()
    mask = mask.clone()
    mask[:, ::2] = False
    edited = interchanged(base, source, WORLD.u[None], mask)
    assert torch.equal(edited[~mask], base[~mask])
    assert (edited[mask] != base[mask]).any(-1).all()


def test_row_losses_are_means_over_each_row_s_tokens(nuisance):
    rows = nuisance.test.rows
    mask = torch.ones(512, 5, dtype=torch.bool)
    data = InterchangeRows(**rows, readout=WORLD.readout, response_mask=mask)
    assert data.row_losses(None, batch_size=100).mean().item() == pytest.approx(kl(nuisance.test, None), rel=1e-5)
    w = nuisance.train.diffmean / nuisance.train.diffmean.norm()
    assert data.row_losses(w[None]).mean().item() == pytest.approx(kl(nuisance.test, w), rel=1e-3)
    short = mask.clone()
    short[0, 1:] = False
    only = InterchangeRows(**rows, readout=WORLD.readout, response_mask=short).row_losses(None)
    assert only[0] == pytest.approx(data.token_losses(None, torch.tensor([0]), "kl_source")[0].item(), rel=1e-6)
    assert torch.allclose(only[1:], data.row_losses(None)[1:], rtol=1e-6)


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
        ({"init": torch.ones(2, WIDTH), "rank": 2}, "not independent"),
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
