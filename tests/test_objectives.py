"""Preference objectives: a pair with exact answers, theory, derivatives, what is left out and why, TRL's names."""

import functools
import math

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import expit, log_softmax
from torch.nn.functional import logsigmoid

from alignscope import InputError, PairScores
from alignscope.diagnose.objective_losses import Hyperparameters, LogProbs, bco, dpo, log1mexp, robust
from alignscope.diagnose.objectives import objective_table, reward_trainer_metrics, trl_metrics
from alignscope.diagnose.ranking import flip_threshold, ipo_threshold

LN2 = math.log(2)
ROUNDING = 1e-12
REFERENCE_FREE = ["simpo", "cpo", "orpo"]
PER_TOKEN = ["ipo_norm", "sigmoid_norm", *REFERENCE_FREE]
TWO_SIDED = ["kto", "bco", "apo_zero", "nca", "sppo_hard"]
GAMMAS = {"dpo_gamma_0": 0.0, "dpo_gamma_0.5": 0.5, "dpo_gamma_2": 2.0}
OF_MARGIN = ["dpo", "dpo_soft", "cdpo", "robust", *GAMMAS, "hinge", "ipo", "ipo_norm", "sigmoid_norm"]
EVERY = [*OF_MARGIN, *REFERENCE_FREE, *TWO_SIDED]
COLUMNS = ["policy_chosen", "policy_rejected", "reference_chosen", "reference_rejected", "n_chosen", "n_rejected"]
ONE_PAIR = [[-10.0, -12.0, -11.0, -12.0, 5, 8]]  # T22: dw = 1, dl = 0, c = -1
FIXED = {"preference": 0.8, "z0": 0.3, "delta": 0.02}  # so that no number of the table moves when one pair does


def table(rows, **more) -> PairScores:
    return PairScores.from_frame(pd.DataFrame(rows, columns=COLUMNS).assign(**more))


def random_rows(n: int = 40, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    lengths = rng.integers(1, 30, (n, 2))
    reference = -rng.uniform(0.05, 3.0, (n, 2)) * lengths
    return np.hstack([np.minimum(reference + rng.normal(0, 3, (n, 2)), -0.01), reference, lengths])


def softplus(x: float) -> float:
    return math.log1p(math.exp(x))


@functools.cache
def one_pair() -> pd.Series:
    """T22 at the defaults, and a preference of .8."""
    return objective_table(table(ONE_PAIR), preference=0.8).pairs.iloc[0]


@functools.cache
def random_pairs() -> pd.DataFrame:
    return objective_table(table(random_rows()), **FIXED).pairs


def column(rows, name: str, **options) -> np.ndarray:
    return objective_table(table(rows), **options).pairs[name].to_numpy()


# ---- T22: one pair


@pytest.mark.parametrize(
    ("objective", "loss"),
    [
        ("dpo", softplus(-0.1)),
        ("dpo_soft", 0.8 * softplus(-0.1) + 0.2 * softplus(0.1)),
        ("cdpo", 0.9 * softplus(-0.1) + 0.1 * softplus(0.1)),
        ("robust", (0.9 * softplus(-0.1) - 0.1 * softplus(0.1)) / 0.8),
        ("dpo_gamma_0", softplus(-0.2)),
        ("dpo_gamma_0.5", softplus(-0.15)),
        ("dpo_gamma_2", LN2),
        ("hinge", 0.9),
        ("ipo", 16.0),
        ("ipo_norm", 4.8**2),
        ("sigmoid_norm", softplus(-0.02)),
        ("simpo", softplus(1.5)),
        ("cpo", softplus(-0.2) + 2),
        ("orpo", 2 + 0.1 * softplus(0.5 + math.log1p(-math.exp(-2)) - math.log1p(-math.exp(-1.5)))),
        ("apo_zero", expit(-0.1) + 0.5),
        ("nca", softplus(-0.1) + softplus(0.1) / 2 + LN2 / 2),
        ("sppo_hard", 41.0),
    ],
)
def test_the_losses_of_one_pair(objective, loss):
    assert one_pair()[f"{objective}_loss"] == pytest.approx(loss, rel=ROUNDING)


@pytest.mark.parametrize(
    ("objective", "digits"),
    [
        ("dpo", 0.644397), ("cdpo", 0.654397), ("robust", 0.631897), ("dpo_gamma_0", 0.598139),
        ("dpo_gamma_2", 0.693147), ("sigmoid_norm", 0.683197), ("simpo", 1.701413), ("cpo", 2.598139),
        ("orpo", 2.104206), ("apo_zero", 0.975021), ("nca", 1.363169),
    ],
)  # fmt: skip
def test_the_losses_of_one_pair_have_the_digits_of_the_specification(objective, digits):
    assert one_pair()[f"{objective}_loss"] == pytest.approx(digits, abs=5e-7)


@pytest.mark.parametrize(
    ("option", "objective", "loss"),
    [
        ({"z0": 0}, "kto", expit(-0.1) + 0.5),
        ({"z0": 0.5}, "kto", 2 * expit(-0.05)),
        ({"delta": 0}, "bco", softplus(-0.1) + LN2),
        ({"delta": 0.05}, "bco", 2 * softplus(-0.05)),
    ],
)
def test_losses_with_a_reference_point(option, objective, loss):
    assert column(ONE_PAIR, f"{objective}_loss", **option) == pytest.approx([loss], rel=ROUNDING)


@pytest.mark.parametrize(
    ("objective", "view"),
    [
        ("dpo", 0.1), ("hinge", -0.9), ("ipo", -4.0), ("ipo_norm", -4.8), ("simpo", -1.5), ("cpo", 0.2),
        ("orpo", -0.607069),
    ],
)  # fmt: skip
def test_the_views_of_one_pair(objective, view):
    assert one_pair()[f"{objective}_view"] == pytest.approx(view, abs=5e-7)


def test_dpo_sees_the_pair_right_and_simpo_and_orpo_see_it_wrong():
    shares = objective_table(table(ONE_PAIR)).losses.set_index("objective")["share_view_right"]
    assert shares[["dpo", "simpo", "orpo"]].tolist() == [1.0, 0.0, 0.0]


def test_dpo_pulls_both_sides_alike_and_simpo_pulls_chosen_seven_times_as_hard():
    pair = one_pair()
    assert pair["dpo_pull_chosen"] == pytest.approx(0.1 * expit(-0.1), rel=ROUNDING)  # .047502
    assert pair["dpo_pull_rejected"] == pytest.approx(0.1 * expit(-0.1), rel=ROUNDING)
    assert pair["simpo_pull_chosen"] == pytest.approx(expit(1.5) * 2 / 5, rel=ROUNDING)  # .327030
    assert pair["simpo_pull_rejected"] == pytest.approx(expit(1.5) * 2 / 8, rel=ROUNDING)


# ---- theory


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("beta", [0.1, 0.7, 3.0])
def test_at_the_optimum_the_loss_is_minus_log_preference_and_every_ordered_pair_obeys_theorem_4_1(seed, beta):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(3, 8))
    reference, reward = log_softmax(rng.normal(0, 2, n)), rng.normal(0, 1, n)
    best = log_softmax(reference + reward / beta)
    assert np.ptp(beta * (best - reference) - reward) < ROUNDING * 1e2  # the partition function alone
    w, l = np.array([(i, j) for i in range(n) for j in range(n) if i != j]).T  # noqa: E741
    scores = table(np.stack([best[w], best[l], reference[w], reference[l], w, w], axis=1))
    found = objective_table(scores, beta).pairs
    assert found["dpo_loss"].to_numpy() == pytest.approx(-np.log(expit(reward[w] - reward[l])), rel=1e-9)
    for name, gamma in GAMMAS.items():
        within = found[f"{name}_loss"] <= flip_threshold(reference[w] - reference[l], beta, gamma=gamma)
        assert (within == (best[w] >= best[l])).all(), name


@pytest.mark.parametrize(
    ("c", "beta", "threshold"),
    [(0.0, 0.1, LN2), (10.0, 0.1, softplus(-1)), (50.0, 0.1, softplus(-5)), (-4.0, 0.5, softplus(2))],
)
def test_at_equal_log_probabilities_the_loss_is_the_threshold(c, beta, threshold):
    loss = column([[-9.0, -9.0, -20.0 - c, -20.0, 3, 3]], "dpo_loss", beta=beta)
    assert loss == pytest.approx([threshold], rel=ROUNDING)
    assert loss == pytest.approx([flip_threshold(-c, beta)], rel=ROUNDING)


def test_ipo_has_no_loss_at_a_margin_of_one_over_two_tau():
    pairs = objective_table(table([[-10.0, -15.0, -12.0, -12.0, 3, 3]])).pairs  # h + c = 5, tau = .1
    assert pairs[["ipo_loss", "ipo_view", "ipo_pull_chosen"]].to_numpy().ravel() == pytest.approx([0, 0, 0])


def test_ipo_ranks_right_at_its_threshold_where_the_reference_is_wrong_by_less_than_its_target():
    assert ipo_threshold(-3.0, 0.1) == 4.0
    loss = column([[-10.0, -10.0, -15.0, -12.0, 3, 3], [-9.0, -10.0, -15.0, -12.0, 3, 3]], "ipo_loss")
    assert loss.tolist() == [4.0, 1.0]  # h = 0: the last right ranking; h = 1 costs less


def test_zero_ipo_loss_ranks_wrong_where_the_reference_is_wrong_by_more_than_its_target():
    assert math.isnan(ipo_threshold(-6.0, 0.1))
    assert column([[-11.0, -10.0, -18.0, -12.0, 3, 3]], "ipo_loss") == pytest.approx([0.0])  # h = -1, c = 6


def loss_of(objective, dw: float, dl: float, **options) -> float:
    """At beta = .1 and log-ratios dw, dl, without the table around it."""
    sides = dict(zip((*COLUMNS, "preference"), np.array([[dw], [dl], [0.0], [0.0], [3.0], [3.0], [1.0]]), strict=True))
    defaults = {"beta": 0.1, "eps": 0.1, "orpo_lambda": 0.1, "simpo_beta": 2.0, "simpo_gamma": 0.5, "z0": 0.0}
    return objective(LogProbs(**sides), Hyperparameters(**(defaults | {"delta": 0.0} | options))).loss.item()


@settings(max_examples=200, deadline=None)
@given(st.floats(-40, 40), st.floats(-40, 40), st.floats(-5, 5))
def test_bco_is_at_least_dpo_and_least_with_its_point_midway(dw, dl, delta):
    middle = loss_of(bco, dw, dl, delta=0.05 * (dw + dl))
    assert loss_of(bco, dw, dl, delta=delta) >= middle - ROUNDING
    assert middle >= loss_of(dpo, dw, dl)


@settings(max_examples=200, deadline=None)
@given(st.floats(-200, 200), st.floats(0, 0.45))
def test_robust_under_flips_averages_to_dpo(dw, eps):
    """Its purpose: expected over labels flipped with probability eps, it is DPO's loss on the true labels."""
    expected = (1 - eps) * loss_of(robust, dw, 0.0, eps=eps) + eps * loss_of(robust, 0.0, dw, eps=eps)
    assert expected == pytest.approx(loss_of(dpo, dw, 0.0))


@pytest.mark.parametrize(
    ("one", "other", "options"),
    [
        ("dpo", "dpo_gamma_1", {"gamma": 1}),
        ("dpo", "dpo_soft", {"preference": 1.0}),
        ("dpo", "cdpo", {"eps": 0}),
        ("dpo", "robust", {"eps": 0}),
        ("cdpo", "dpo_soft", {"preference": 0.7, "eps": 0.3}),
        ("kto", "apo_zero", {"z0": 0}),
    ],
)
def test_two_objectives_are_one_at_a_special_value(one, other, options):
    pairs = objective_table(table(random_rows()), **options).pairs
    for part in ("loss", "view", "pull_chosen", "pull_rejected"):
        assert pairs[f"{one}_{part}"].to_numpy() == pytest.approx(pairs[f"{other}_{part}"].to_numpy(), rel=1e-9), part


@pytest.mark.parametrize("objective", TWO_SIDED)
def test_the_view_of_a_two_sided_objective_is_that_of_dpo(objective):
    assert (random_pairs()[f"{objective}_view"] == random_pairs()["dpo_view"]).all()


# ---- losses and derivatives against torch, written once more from the formulas


def torch_losses(lw, ll, rw, rl, nw, nl) -> dict[str, torch.Tensor]:
    beta, alpha, z0, delta, eps = 0.1, 0.8, 0.3, 0.02, 0.1
    dw, dl = lw - rw, ll - rl
    u, v, s = beta * dw, beta * dl, torch.sigmoid
    m = u - v
    log_odds = [a - torch.log(-torch.expm1(a)) for a in (lw / nw, ll / nl)]
    return {
        "dpo": -logsigmoid(m),
        "dpo_soft": -alpha * logsigmoid(m) - (1 - alpha) * logsigmoid(-m),
        "cdpo": -(1 - eps) * logsigmoid(m) - eps * logsigmoid(-m),
        "robust": (-(1 - eps) * logsigmoid(m) + eps * logsigmoid(-m)) / (1 - 2 * eps),
        **{name: -logsigmoid(beta * (lw - ll - gamma * (rw - rl))) for name, gamma in GAMMAS.items()},
        "hinge": torch.relu(1 - m),
        "ipo": (dw - dl - 0.5 / beta) ** 2,
        "ipo_norm": (dw / nw - dl / nl - 0.5 / beta) ** 2,
        "sigmoid_norm": -logsigmoid(beta * (dw / nw - dl / nl)),
        "simpo": -logsigmoid(2 * (lw / nw - ll / nl) - 0.5),
        "cpo": -logsigmoid(beta * (lw - ll)) - lw / nw,
        "orpo": -lw / nw - 0.1 * logsigmoid(log_odds[0] - log_odds[1]),
        "kto": 1 - s(beta * (dw - z0)) + 1 - s(beta * (z0 - dl)),
        "bco": -logsigmoid(u - delta) - logsigmoid(delta - v),
        "apo_zero": 1 - s(u) + s(v),
        "nca": -logsigmoid(u) - 0.5 * logsigmoid(-u) - 0.5 * logsigmoid(-v),
        "sppo_hard": (dw - 0.5 / beta) ** 2 + (dl + 0.5 / beta) ** 2,
    }


@pytest.mark.parametrize("objective", EVERY)
def test_losses_and_pulls_equal_autograd_in_float64(objective):
    rows = random_rows()
    sides = [torch.tensor(side, dtype=torch.float64) for side in rows.T]
    chosen, rejected = (side.requires_grad_() for side in sides[:2])
    loss = torch_losses(*sides)[objective]
    loss.sum().backward()
    pairs = random_pairs()
    assert pairs[f"{objective}_loss"].to_numpy() == pytest.approx(loss.detach().numpy(), rel=1e-10)
    assert pairs[f"{objective}_pull_chosen"].to_numpy() == pytest.approx(-chosen.grad.numpy(), rel=1e-9, abs=1e-13)
    assert pairs[f"{objective}_pull_rejected"].to_numpy() == pytest.approx(rejected.grad.numpy(), rel=1e-9, abs=1e-13)


def test_pulls_are_the_slopes_of_the_losses():
    rows, step = random_rows(seed=1), 1e-5
    pairs = objective_table(table(rows), **FIXED).pairs
    for side, sign, part in ((0, -1, "pull_chosen"), (1, 1, "pull_rejected")):
        moved = np.zeros(6)
        moved[side] = step
        up, down = (objective_table(table(rows + way * moved), **FIXED).pairs for way in (1, -1))
        for name in EVERY:
            slope = sign * (up[f"{name}_loss"] - down[f"{name}_loss"]) / (2 * step)
            # central differences: step^2 of truncation, 1e-16 * loss / step of rounding
            assert pairs[f"{name}_{part}"].to_numpy() == pytest.approx(slope.to_numpy(), rel=1e-5, abs=1e-7), name


# ---- extremes


@pytest.mark.parametrize("nats", [1e3, 1e4])
def test_margins_of_thousands_of_nats_are_finite_and_reach_their_limits(nats):
    rows = [[-1.0, -1.0 - nats, -1.0, -1.0, 1, 1], [-1.0 - nats, -1.0, -1.0, -1.0, 1, 1]]
    found = objective_table(table(rows), 1, **FIXED)
    assert sorted(found.losses["objective"]) == sorted(EVERY)
    assert np.isfinite(found.pairs.drop(columns="pair_id").to_numpy()).all()
    right, wrong = found.pairs.iloc[0], found.pairs.iloc[1]
    assert (right["dpo_loss"], right["dpo_pull_chosen"]) == (0.0, 0.0)
    assert (wrong["dpo_loss"], wrong["dpo_pull_chosen"]) == (nats, 1.0)
    assert (right["dpo_soft_loss"], right["dpo_soft_pull_chosen"]) == pytest.approx((0.2 * nats, -0.2))
    assert right["robust_loss"] == pytest.approx(-nats / 8)
    assert wrong["orpo_loss"] == pytest.approx(1 + nats + 0.1 * (nats - math.log1p(-math.exp(-1))))
    assert wrong["orpo_pull_chosen"] == pytest.approx(1.1)
    assert (wrong["kto_loss"], wrong["kto_pull_chosen"]) == (pytest.approx(1 + expit(-0.3)), 0.0)


def test_small_losses_of_saturated_sigmoids_keep_their_digits():
    pairs = objective_table(table([[-10.0, -90.0, -50.0, -50.0, 3, 3]]), 1, z0=0).pairs  # dw = 40, dl = -40
    for name in ("kto", "apo_zero"):
        assert pairs[f"{name}_loss"].item() == pytest.approx(2 * math.exp(-40), rel=ROUNDING, abs=0)
        assert pairs[f"{name}_pull_chosen"].item() == pytest.approx(math.exp(-40), rel=ROUNDING, abs=0)


@pytest.mark.parametrize("a", [-1e-300, -1e-20, -1e-9, -0.5, -LN2, -0.7, -30.0, -1e4])
def test_log1mexp_is_exact_near_both_ends(a):
    exact = math.log(-math.expm1(a)) if a > -1 else math.log1p(-math.exp(a))
    assert log1mexp(np.array([a])) == pytest.approx([exact], rel=1e-14, abs=0)


def test_orpo_has_limits_where_one_side_is_certain():
    pairs = objective_table(table([[0.0, -2.0, -1.0, -1.0, 1, 1], [-2.0, 0.0, -1.0, -1.0, 1, 1]])).pairs
    odds = 1 / math.expm1(2)  # of e^-2
    right, wrong = pairs.iloc[0], pairs.iloc[1]
    assert (right["orpo_loss"], right["orpo_view"]) == (0.0, math.inf)
    assert right["orpo_pull_chosen"] == pytest.approx(1 + 0.1 * odds)
    assert right["orpo_pull_rejected"] == 0.0
    assert (wrong["orpo_loss"], wrong["orpo_view"]) == (math.inf, -math.inf)
    assert wrong["orpo_pull_chosen"] == pytest.approx(1 + 0.1 / -math.expm1(-2))


def test_orpo_approaches_its_limits_without_loss_of_digits():
    pairs = objective_table(table([[-1e-15, -2.0, -1.0, -1.0, 1, 1]])).pairs
    assert pairs["orpo_pull_chosen"].item() == pytest.approx(1 + 0.1 / math.expm1(2), rel=1e-9)


def test_orpo_leaves_out_pairs_without_odds():
    found = objective_table(table([[0.0, 0.0, -1, -1, 1, 1], [1.0, -2.0, -1, -1, 1, 1], [-3.0, -2.0, -1, -1, 1, 1]]))
    assert found.pairs["orpo_loss"].isna().tolist() == [True, True, False]
    assert found.losses.set_index("objective").loc["orpo", ["n", "n_missing"]].tolist() == [1, 2]
    alone = objective_table(table([[0.0, 0.0, -1, -1, 1, 1]]))
    assert alone.reasons["orpo"] == "no pair has log-probabilities below 0, as odds need"


# ---- what is absent, and why


def test_all_objectives_appear_on_a_full_table():
    found = objective_table(table(random_rows()), preference=0.8)
    assert found.losses["objective"].tolist() == EVERY
    assert found.reasons == {}
    parts = ("loss", "view", "pull_chosen", "pull_rejected")
    assert found.pairs.columns.tolist() == ["pair_id", *(f"{name}_{part}" for name in EVERY for part in parts)]


def test_without_a_reference_only_three_remain():
    rows = random_rows()
    alone = table(rows).frame.drop(columns=["reference_chosen", "reference_rejected"])
    found, full = objective_table(PairScores.from_frame(alone), preference=0.8), objective_table(table(rows))
    assert found.losses["objective"].tolist() == REFERENCE_FREE
    assert found.reasons == {name: "no reference model was given" for name in EVERY if name not in REFERENCE_FREE}
    assert (found.settings["z0"], found.settings["z0_from"]) == (None, "no reference model was given")
    assert (found.settings["delta"], found.settings["delta_from"]) == (None, "no reference model was given")
    pd.testing.assert_frame_equal(found.pairs, full.pairs[found.pairs.columns])


def test_without_token_counts_the_per_token_objectives_are_absent():
    found = objective_table(PairScores.from_frame(pd.DataFrame(random_rows()[:, :4], columns=COLUMNS[:4])))
    one_label = {"dpo_soft": "no preference strength: one label a pair"}
    assert found.reasons == one_label | dict.fromkeys(PER_TOKEN, "the table holds no token counts")


def test_soft_dpo_needs_a_strength_of_preference():
    found = objective_table(table(random_rows()))
    assert found.reasons == {"dpo_soft": "no preference strength: one label a pair"}
    assert "dpo_soft_loss" not in found.pairs


@pytest.mark.parametrize(("smoothing", "alpha"), [("jeffreys", 3.5 / 5), ("laplace", 4 / 6), ("clip", 3 / 4)])
def test_soft_dpo_smooths_the_votes_of_the_table(smoothing, alpha):
    scores = table(ONE_PAIR, preference=0.75, n_votes=4.0)
    found = objective_table(scores, smoothing=smoothing)
    expected = alpha * softplus(-0.1) + (1 - alpha) * softplus(0.1)
    assert found.pairs["dpo_soft_loss"].to_numpy() == pytest.approx([expected], rel=ROUNDING)
    assert found.settings["preference_from"] == f"the table, smoothing {smoothing}"


def test_a_given_preference_wins_over_the_votes():
    given = objective_table(table(ONE_PAIR, preference=0.75, n_votes=4.0), preference=torch.tensor([0.6]))
    expected = 0.6 * softplus(-0.1) + 0.4 * softplus(0.1)
    assert given.pairs["dpo_soft_loss"].to_numpy() == pytest.approx([expected], rel=1e-7)  # .6 came as float32
    assert given.settings["preference_from"] == "given"


def test_human_ties_leave_every_number_and_are_counted():
    rows = random_rows()
    preference = np.where(np.arange(40) % 4 == 0, 0.5, 1.0)
    found = objective_table(table(rows, preference=preference), z0=0.1, delta=0.0)
    kept = objective_table(table(rows[preference == 1]), z0=0.1, delta=0.0)
    assert found.pairs["dpo_loss"].isna().tolist() == (preference == 0.5).tolist()
    pd.testing.assert_frame_equal(found.losses.drop(columns="n_human_tie"), kept.losses.drop(columns="n_human_tie"))
    pd.testing.assert_frame_equal(found.agreement, kept.agreement)
    assert found.losses["n_human_tie"].eq(10).all()
    assert kept.losses["n_human_tie"].eq(0).all()


def test_pairs_that_lack_token_counts_are_missing_only_where_counts_are_needed():
    rows = random_rows()
    rows[:3, 4] = 0
    found = objective_table(table(rows))
    missing = found.losses.set_index("objective")["n_missing"]
    assert {name for name, n in missing.items() if n == 3} == set(PER_TOKEN)
    assert missing.drop(PER_TOKEN).eq(0).all()
    agreement = found.agreement.set_index(["first", "second"])["n"]
    assert (agreement["dpo", "ipo"], agreement["dpo", "simpo"], agreement["simpo", "orpo"]) == (40, 37, 37)


def test_a_human_tie_without_token_counts_is_counted_once():
    rows = random_rows(4)
    rows[0, 4] = 0
    losses = objective_table(table(rows, preference=[0.5, 1.0, 1.0, 1.0])).losses
    assert losses["n_human_tie"].eq(1).all()
    assert losses["n_missing"].eq(0).all()
    assert losses["n"].eq(3).all()


@pytest.mark.parametrize(
    ("rows", "more", "reason"),
    [
        ([], {}, "no pairs were scored"),
        (ONE_PAIR, {"preference": 0.5}, "every pair that has what it needs is a human tie"),
    ],
)
def test_a_table_without_judged_pairs_has_a_reason_for_each_objective(rows, more, reason):
    found = objective_table(table(rows, **more), preference=0.8)
    assert found.reasons == dict.fromkeys(EVERY, reason)
    assert (len(found.losses), len(found.agreement), len(found.pairs)) == (0, 0, len(rows))
    assert found.summary() == f"No objective could be computed: {reason}."


def test_soft_dpo_leaves_out_the_pairs_whose_strength_is_not_known():
    found = objective_table(table(random_rows(3)), preference=[math.nan, 0.9, math.nan])
    assert found.losses.set_index("objective").loc["dpo_soft", ["n", "n_missing"]].tolist() == [1, 2]
    assert found.pairs["dpo_soft_loss"].isna().tolist() == [True, False, True]


# ---- reference points


@pytest.mark.parametrize(
    ("mismatched", "z0", "origin"),
    [
        ([1.0, 2.0, math.nan], 1.5, "mismatched pairs"),
        ([-1.0, -2.0, 0.5], 0.0, "mismatched pairs"),
        ([math.nan] * 3, 0.0, "0, no mismatched pairs were scored"),
    ],
)
def test_the_point_of_kto_is_the_mean_of_mismatched_log_ratios_above_zero(mismatched, z0, origin):
    found = objective_table(table(ONE_PAIR * 3, mismatched=mismatched))
    assert (found.settings["z0"], found.settings["z0_from"]) == (z0, origin)
    expected = expit(-0.1 * (1 - z0)) + expit(-0.1 * z0)
    assert found.pairs["kto_loss"].to_numpy() == pytest.approx([expected] * 3, rel=ROUNDING)


def test_the_point_of_bco_is_the_mean_reward_of_both_sides():
    found = objective_table(table([*ONE_PAIR, [-8.0, -12.0, -11.0, -12.0, 5, 8]]))  # rewards .1, 0, .3, 0
    assert found.settings["delta"] == pytest.approx(0.1)
    assert found.settings["delta_from"] == "mean over the table"
    assert found.pairs["bco_loss"].to_numpy() == pytest.approx([LN2 + softplus(-0.1), softplus(-0.2) + softplus(-0.1)])


def test_given_points_are_labelled_as_given():
    found = objective_table(table(ONE_PAIR, mismatched=3.0), z0=0.5, delta=0.05)
    assert {key: found.settings[key] for key in ("z0", "z0_from", "delta", "delta_from")} == {
        "z0": 0.5, "z0_from": "given", "delta": 0.05, "delta_from": "given",
    }  # fmt: skip


def test_the_settings_name_every_hyperparameter():
    options = {"eps": 0.2, "orpo_lambda": 0.3, "simpo_beta": 2.5, "simpo_gamma": 1.4, "z0": 0.5, "delta": 0.05}
    settings = objective_table(table(ONE_PAIR), 0.05, gamma=[0.25], **options).settings
    assert settings == {
        "beta": 0.05, "gamma": [0.25], **options, "z0_from": "given", "delta_from": "given",
        "preference_from": "the table, smoothing jeffreys",
    }  # fmt: skip


# ---- means and agreement


def test_means_and_agreement_equal_a_naive_loop():
    rows = random_rows()
    found = objective_table(table(rows), **FIXED)
    for row in found.losses.itertuples():
        loss, view, chosen, rejected = (
            found.pairs[f"{row.objective}_{part}"] for part in ("loss", "view", "pull_chosen", "pull_rejected")
        )
        right = [1.0 if m > 0 else 0.5 if m == 0 else 0.0 for m in view]
        assert row.mean_loss == pytest.approx(math.fsum(loss) / 40)
        assert row.share_view_right == pytest.approx(math.fsum(right) / 40)
        assert (row.mean_pull_chosen, row.mean_pull_rejected) == pytest.approx((chosen.mean(), rejected.mean()))
        assert row.n == 40
    assert len(found.agreement) == len(EVERY) * (len(EVERY) - 1) // 2
    assert len({frozenset(both) for both in found.agreement[["first", "second"]].to_numpy()}) == len(found.agreement)
    for row in found.agreement.itertuples():
        a, b = (np.sign(found.pairs[f"{name}_view"]) for name in (row.first, row.second))
        assert row.same_sign == pytest.approx(sum(x == y for x, y in zip(a, b, strict=True)) / 40)
        losses = (found.pairs[f"{name}_loss"] for name in (row.first, row.second))
        assert row.spearman == pytest.approx(stats.spearmanr(*losses).statistic, abs=ROUNDING)


def test_a_policy_equal_to_its_reference_is_half_right_under_dpo():
    rows = random_rows()
    rows[:, :2] = rows[:, 2:4]
    found = objective_table(table(rows), preference=0.8)
    shares = found.losses.set_index("objective")["share_view_right"]
    assert shares[["dpo", "sigmoid_norm", *TWO_SIDED]].eq(0.5).all()
    assert shares[["hinge", "ipo"]].eq(0.0).all()
    loss = found.losses.set_index("objective")["mean_loss"]
    assert loss["dpo"] == pytest.approx(LN2)


def test_a_loss_that_is_the_same_on_all_pairs_has_no_rank_correlation():
    agreement = objective_table(table(ONE_PAIR * 3)).agreement
    assert agreement["spearman"].isna().all()
    assert agreement["n"].eq(3).all()


def test_turning_every_pair_turns_the_view_of_reference_free_and_margin_objectives():
    rows = random_rows()
    turned = objective_table(table(rows[:, [1, 0, 3, 2, 5, 4]]), simpo_gamma=0).pairs
    found = objective_table(table(rows), simpo_gamma=0).pairs
    for name in ("dpo", "cdpo", "robust", *GAMMAS, "sigmoid_norm", *REFERENCE_FREE, *TWO_SIDED):
        assert turned[f"{name}_view"].to_numpy() == pytest.approx(-found[f"{name}_view"].to_numpy()), name


def test_with_both_reference_points_given_the_numbers_of_a_pair_do_not_depend_on_the_others():
    rows = random_rows()
    whole, alone = (objective_table(table(part), **FIXED).pairs for part in (rows, rows[7:8]))
    whole, alone = (frame.drop(columns="pair_id") for frame in (whole, alone))
    assert alone.to_numpy()[0] == pytest.approx(whole.to_numpy()[7], rel=ROUNDING)


# ---- use


def test_tables_come_out_as_copies():
    found = objective_table(table(random_rows()))
    for name in ("pairs", "losses", "agreement"):
        copy = found.to_frame(name)
        pd.testing.assert_frame_equal(copy, getattr(found, name))
        assert copy is not getattr(found, name)
    pd.testing.assert_frame_equal(found.to_frame(), found.pairs)
    with pytest.raises(KeyError, match="no table 'rows'; choose from pairs, losses, agreement"):
        found.to_frame("rows")


def test_the_summary_names_the_two_objectives_that_agree_least():
    assert objective_table(table(ONE_PAIR), gamma=[]).summary() == (
        "15 objectives on up to 1 pairs: the share they take as settled (view above 0) runs from 0% (hinge) to 100% "
        "(sppo_hard). dpo and hinge agree least: the same sign on 0% of 1 pairs. Absent: dpo_soft."
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": 0.0}, "beta=0.0: expected a positive, finite number"),
        ({"beta": math.nan}, "beta=nan"),
        ({"beta": math.inf}, "beta=inf"),
        ({"simpo_beta": -1.0}, "simpo_beta=-1.0: expected a positive"),
        ({"simpo_gamma": math.nan}, "simpo_gamma=nan: expected a finite number"),
        ({"eps": 0.5}, r"eps=0.5: the share of flipped labels lies in \[0, 1/2\)"),
        ({"eps": -0.1}, "eps=-0.1"),
        ({"orpo_lambda": -0.1}, "orpo_lambda=-0.1: expected a finite number >= 0"),
        ({"z0": -0.1}, "z0=-0.1: expected a finite number >= 0"),
        ({"delta": math.inf}, "delta=inf: expected a finite number"),
        ({"gamma": math.inf}, "gamma=inf: expected a finite number"),
        ({"smoothing": "none"}, "smoothing='none': expected one of jeffreys, laplace, clip"),
        ({"preference": 1.5}, r"preference is P\(chosen preferred\) and lies in \[0, 1\]"),
        ({"preference": [0.5, 0.7]}, r"preference: expected one number or 1, one a pair, got shape \(2,\)"),
    ],
)
def test_bad_settings_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        objective_table(table(ONE_PAIR), **options)


# ---- TRL's names


def test_trl_metrics_of_two_pairs():
    scores = table([*ONE_PAIR, [-8.0, -9.0, -8.0, -12.0, 5, 8]])  # dw = 1, 0; dl = 0, 3
    assert trl_metrics(scores, 0.1) == pytest.approx(
        {
            "eval_logps/chosen": -9.0,
            "eval_logps/rejected": -10.5,
            "eval_rewards/chosen": 0.05,
            "eval_rewards/rejected": 0.15,
            "eval_rewards/margins": -0.1,
            "eval_rewards/accuracies": 0.5,
            "eval_loss": (softplus(-0.1) + softplus(0.3)) / 2,
        }
    )


def test_trl_counts_a_tie_as_wrong_and_human_ties_in():
    scores = table([ONE_PAIR[0], [-5.0, -6.0, -5.0, -6.0, 5, 8]], preference=[1.0, 0.5])
    assert trl_metrics(scores, 2, prefix="")["rewards/accuracies"] == 0.5
    assert trl_metrics(scores, 2, prefix="")["loss"] == pytest.approx((softplus(-2) + LN2) / 2)


def test_without_a_reference_trl_has_log_probabilities_only():
    alone = PairScores.from_frame(table(ONE_PAIR).frame.drop(columns=["reference_chosen", "reference_rejected"]))
    assert trl_metrics(alone, 0.1, prefix="test_") == {"test_logps/chosen": -10.0, "test_logps/rejected": -12.0}


def test_trl_metrics_refuse_an_empty_table_and_a_bad_beta():
    with pytest.raises(InputError, match="no pairs were scored"):
        trl_metrics(table([]), 0.1)
    with pytest.raises(ValueError, match="beta=0"):
        trl_metrics(table(ONE_PAIR), 0)


def test_reward_trainer_metrics_of_four_pairs():
    found = reward_trainer_metrics([2.0, 0.0, 1.0, 3.0], torch.tensor([1.0, 0.0, 4.0, -1.0]))
    expected = {"accuracy": 0.5, "margin": 0.5, "min_reward": -1.0, "mean_reward": 1.25, "max_reward": 4.0}
    assert found == {f"eval_{name}": value for name, value in expected.items()}


@pytest.mark.parametrize(
    ("chosen", "rejected", "message"),
    [
        ([], [], r"one length >= 1, got shapes \(0,\), \(0,\)"),
        ([1.0], [1.0, 2.0], r"got shapes \(1,\), \(2,\)"),
        ([1.0, math.nan], [0.0, 0.0], "leave out pairs without an explicit score"),
    ],
)
def test_reward_trainer_metrics_refuse_what_has_no_mean(chosen, rejected, message):
    with pytest.raises(ValueError, match=message):
        reward_trainer_metrics(chosen, rejected)
