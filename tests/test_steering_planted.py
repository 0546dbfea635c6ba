"""Interchange training on a network whose direction is known: the gates A1-A5, B1 and B2, and what a fit records."""

from dataclasses import dataclass

import pytest
import torch
from scipy.special import rel_entr
from steering_worlds import PREDICTING, SOURCE, Pairs, make_pairs, make_world

from alignscope.steering import Clamp, Subspace
from alignscope.steering.cdas import FitResult, fit_interchange

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


def test_what_is_fitted_is_a_subspace_that_edits_take():
    train = make_pairs(WORLD, 4, mu=2.0, sigma=1.0, seed=1)
    fit = fit_interchange(**train.rows, readout=WORLD.readout, steps=1, batch_size=2)
    assert isinstance(fit, Subspace)
    h = torch.randn(2, 3, fit.width)
    assert torch.equal(Clamp(fit, 1.0)(h), Clamp(fit.subspace, 1.0)(h))
    assert fit.cosine(fit.subspace) == pytest.approx(1)


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


def test_a_fit_away_from_the_ceiling_advises_nothing(nuisance):
    assert nuisance.fit.share_at_ceiling == 0
    assert nuisance.fit.warnings == ()


def test_other_losses_have_no_ceiling(labels):
    assert labels.fit.share_at_ceiling is None
    assert labels.fit.warnings == ()
