"""Identities hold for any two models and fail where something was broken on purpose."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax

from alignscope.diagnose.identities import Identity, blanked, failed, identity_table, ratio_mass, token_identities
from alignscope.diagnose.report import Estimate
from alignscope.diagnose.response_identities import response_identities
from alignscope.probes.kernels import token_information

V = 7


def logits(seed: int, n: int = 5, spread: float = 3.0) -> torch.Tensor:
    return spread * torch.from_numpy(np.random.default_rng(seed).normal(size=(n, V)))


def checked(policy: torch.Tensor, reference: torch.Tensor) -> dict[str, Identity]:
    rows = token_identities(
        token_information(policy, reference),
        swapped=token_information(reference, policy),
        masses=ratio_mass(policy, reference),
    )
    return {row.name: row for row in rows}


def broken(**fields) -> dict[str, Identity]:
    """A panel in which some numbers were replaced at one position."""
    good = token_information(logits(0), logits(1))
    for name, value in fields.items():
        changed = getattr(good, name).clone()
        changed[2] = value
        good = replace(good, **{name: changed})
    return {row.name: row for row in token_identities(good)}


# ---- a position


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1e-3, 1.0, 30.0]))
def test_any_two_models_satisfy_every_identity(seed, spread):
    found = checked(logits(seed, spread=spread), logits(seed + 1, spread=spread))
    assert [row.ok for row in found.values()] == [True] * 6
    assert {row.n for row in found.values()} == {5}


def test_a_model_against_itself_has_nothing_but_zeros():
    found = checked(logits(0), logits(0))
    assert all(abs(found[name].value) < 1e-12 for name in ("ratio_mass", "kl", "reverse_kl", "information", "swapped"))


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("kl", {"kl": -2e-6}),
        ("reverse_kl", {"reverse_kl": -2e-6}),
        ("information", {"information": -2e-6}),
        ("information_excess", {"information": np.log(V) + 2e-6}),
        ("kl", {"kl": float("nan")}),
    ],
)
def test_a_number_outside_its_bounds_fails_its_identity_alone(name, fields):
    assert [row.name for row in broken(**fields).values() if row.ok is False] == [name]


def test_rounding_is_forgiven_and_the_worst_value_told():
    found = broken(kl=-5e-7, information=np.log(V) + 5e-7)
    assert all(row.ok is not False for row in found.values())
    assert (found["kl"].value, found["kl"].bound) == (pytest.approx(-5e-7), -1e-6)
    assert found["information_excess"].value == pytest.approx(5e-7, rel=1e-6)


def test_a_number_that_is_none_is_told():
    row = broken(kl=float("nan"))["kl"]
    assert (row.value, row.reason) == (None, "1 are not a number")


def test_panels_that_are_not_each_other_s_mirror_fail():
    here, there = token_information(logits(0), logits(1)), token_information(logits(1), logits(0))
    wrong = token_identities(here, swapped=here)
    assert [row.name for row in failed(wrong)] == ["swapped"]
    shifted = replace(there, kl=there.kl + 1e-5)
    assert [row.name for row in failed(token_identities(here, swapped=shifted))] == ["swapped"]
    shifted = replace(there, reverse_kl=there.reverse_kl + 1e-5)
    assert [row.name for row in failed(token_identities(here, swapped=shifted))] == ["swapped"]


def test_large_divergences_are_compared_by_their_digits():
    here, there = (token_information(logits(i, spread=1e5), logits(1 - i, spread=1e5)) for i in (0, 1))
    assert not failed(token_identities(here, swapped=replace(there, kl=there.kl * (1 + 1e-8))))
    assert failed(token_identities(here, swapped=replace(there, kl=there.kl * (1 + 1e-5))))


def test_what_was_not_computed_is_neither_right_nor_wrong():
    rows = {row.name: row for row in token_identities(token_information(logits(0), logits(1)))}
    assert (rows["ratio_mass"].ok, rows["swapped"].ok) == (None, None)
    assert rows["swapped"].reason == "not computed: the arguments were not swapped"


def test_positions_without_two_full_distributions_are_left_out():
    policy, reference = logits(0), logits(1)
    reference[0, 3] = -torch.inf  # the policy allows what the reference excludes
    policy[1, 2] = torch.nan
    found = checked(policy, reference)
    assert {row.n for row in found.values()} == {3}
    assert all(row.ok for row in found.values())
    none = token_identities(token_information(policy[:2], reference[:2]))
    assert {(row.ok, row.n) for row in none} == {(None, 0)}
    assert none[1].reason == "no position has two full distributions"


def test_the_mass_of_ref_times_the_ratio_is_one():
    policy, reference = logits(0), logits(1)
    assert ratio_mass(policy + 40, reference - 3) == pytest.approx(np.ones(5), abs=1e-12)
    assert ratio_mass(policy.float(), reference.float()) == pytest.approx(np.ones(5), abs=1e-6)


def test_a_token_that_the_reference_alone_excludes_is_missing_from_the_mass():
    policy, reference = logits(0, n=1), logits(1, n=1)
    reference[0, 3] = -torch.inf
    share = np.exp(log_softmax(policy.numpy(), axis=-1))[0, 3]
    assert ratio_mass(policy, reference)[0] == pytest.approx(1 - share)
    policy[0, 3] = -torch.inf
    assert ratio_mass(policy, reference)[0] == pytest.approx(1.0)


def test_padded_columns_beyond_the_vocabulary_are_cut():
    wide = torch.cat([logits(0), torch.full((5, 2), 50.0)], dim=1)
    assert ratio_mass(wide, logits(1), vocab=V) == pytest.approx(ratio_mass(logits(0), logits(1)))
    with pytest.raises(ValueError, match=r"both \[N, V\]"):
        ratio_mass(wide, logits(1))


def test_another_number_of_positions_is_refused():
    here = token_information(logits(0), logits(1))
    with pytest.raises(ValueError, match="swapped holds 4 positions: expected 5"):
        token_identities(here, swapped=token_information(logits(1, n=4), logits(0, n=4)))
    with pytest.raises(ValueError, match="masses holds 3 positions"):
        token_identities(here, masses=np.ones(3))


# ---- samples: two distributions of 50 responses


def sampled(drawn_from: str, *, n: int = 400, seed: int = 0) -> np.ndarray:
    """log pi - log ref of responses drawn from either."""
    rng = np.random.default_rng(9)
    z_ref = rng.normal(0, 1, 50)
    log_ref, log_pi = log_softmax(z_ref), log_softmax(z_ref + rng.normal(0, 0.7, 50))
    p = np.exp({"reference": log_ref, "policy": log_pi}[drawn_from])
    return (log_pi - log_ref)[np.random.default_rng(seed).choice(50, size=n, p=p)]


def rows_of(**samples) -> dict[str, Identity]:
    return {row.name: row for row in response_identities(**samples)}


def test_samples_of_both_models_satisfy_their_identities():
    reference = sampled("reference")
    rows = rows_of(reference_samples=reference, policy_samples=sampled("policy"), opening=reference[:, None])
    assert [(row.name, row.ok, row.n) for row in rows.values()] == [
        ("reference_samples", True, 400), ("policy_samples", True, 400), ("opening_mass_1", True, 400)
    ]  # fmt: skip
    assert rows["reference_samples"].value == pytest.approx(reference.mean())
    assert rows["opening_mass_1"].value == pytest.approx(np.exp(reference).mean())


def test_samples_named_after_the_other_model_fail():
    policy = sampled("policy")
    rows = rows_of(reference_samples=policy, policy_samples=sampled("reference"), opening=policy[:, None])
    assert [row.ok for row in rows.values()] == [False] * 3


def test_the_standard_error_is_that_of_independent_prompts():
    x = sampled("reference", n=100)
    alone = rows_of(reference_samples=x)["reference_samples"]
    assert alone.standard_error == pytest.approx(x.std(ddof=1) / 10)
    doubled = rows_of(reference_samples=np.repeat(x, 2), reference_clusters=np.repeat(np.arange(100), 2))
    assert doubled["reference_samples"].standard_error == pytest.approx(alone.standard_error)


@pytest.mark.parametrize(("shift", "ok"), [(3.9, True), (4.2, False)])
def test_a_breach_is_more_than_four_standard_errors(shift, ok):
    x = np.random.default_rng(0).normal(0, 100, 100)
    x = x - x.mean() + shift * x.std(ddof=1) / 10
    assert rows_of(reference_samples=x)["reference_samples"].ok is ok
    assert rows_of(policy_samples=-x)["policy_samples"].ok is ok
    assert rows_of(policy_samples=x)["policy_samples"].ok is True


def test_rounding_of_equal_models_is_no_breach():
    x = np.full(60, 9e-4)
    rows = rows_of(reference_samples=x, policy_samples=-x, opening=x[:, None])
    assert [row.ok for row in rows.values()] == [True] * 3
    assert rows_of(reference_samples=2 * x)["reference_samples"].ok is False


def test_a_response_that_ended_keeps_its_ratio():
    """Stopped at its end, e^l is still a martingale: E_ref[e^l] = 1 at every length."""
    first = np.tile(np.log([0.5, 1.5]), 100)
    second = np.where(first > 0, np.tile(np.log([0.8, 1.2]), 100).reshape(2, 100).T.ravel(), np.nan)
    rows = rows_of(opening=np.stack([first, second, np.full(200, np.nan)], axis=1))
    assert [rows[f"opening_mass_{k}"].ok for k in (1, 2, 3)] == [True] * 3
    assert rows["opening_mass_2"].value == rows["opening_mass_3"].value
    assert rows["opening_mass_1"].value == pytest.approx(1.0)


def test_five_opening_tokens_are_read_at_most():
    rows = rows_of(opening=np.zeros((20, 9)))
    assert [name for name in rows if name.startswith("opening")] == [f"opening_mass_{k}" for k in range(1, 6)]


def test_weights_too_uneven_for_their_mean_are_not_judged():
    rows = rows_of(opening=np.random.default_rng(0).normal(-2, 2, (400, 1)))
    assert rows["opening_mass_1"].ok is None
    assert rows["opening_mass_1"].reason.startswith("weights too uneven")


def test_under_twenty_prompts_nothing_is_judged():
    few = rows_of(reference_samples=np.ones(40), reference_clusters=np.arange(40) % 19, opening=np.ones((40, 1)))
    assert (few["reference_samples"].ok, few["reference_samples"].value) == (None, 1.0)
    assert few["reference_samples"].reason == "19 clusters (prompts): a standard error needs 20"
    assert few["opening_mass_1"].ok is None


def test_without_samples_every_row_says_so():
    assert {row.ok for row in response_identities()} == {None}
    assert all(row.reason for row in response_identities())
    assert rows_of(reference_samples=[])["reference_samples"].reason.startswith("0 clusters")


def test_bad_samples_are_refused():
    with pytest.raises(ValueError, match="finite log-ratio"):
        response_identities(reference_samples=[np.nan])
    with pytest.raises(ValueError, match="finite log-ratio"):
        response_identities(policy_samples=[1.0], policy_clusters=["a", "b"])
    with pytest.raises(ValueError, match="expected log-ratios"):
        response_identities(opening=[1.0, 2.0])


# ---- what follows


def estimate() -> Estimate:
    return Estimate(label="D", value=1.0, low=0.5, high=2.0, n=3, method="")


def row(ok: bool | None) -> Identity:
    return Identity(name="kl", value=-1.0, bound=-1e-6, ok=ok, n=3)


def test_a_failing_identity_blanks_every_estimate():
    gone = blanked({"a_kl": estimate()}, [row(True), row(False)])["a_kl"]
    assert (gone.value, gone.low, gone.high, gone.reason) == (None, None, None, "an identity fails: kl")
    assert (gone.label, gone.n) == ("D", 3)


@pytest.mark.parametrize("ok", [True, None])
def test_identities_that_hold_or_were_not_judged_blank_nothing(ok):
    assert blanked({"a_kl": estimate()}, [row(ok)]) == {"a_kl": estimate()}


def test_the_table_has_a_row_an_identity():
    table = identity_table([row(True), row(False), row(None)])
    assert table.ok.tolist() == ["yes", "no", "not judged"]
    assert table.columns.tolist() == ["name", "value", "bound", "ok", "n", "standard_error", "reason"]
    assert len(identity_table([])) == 0
