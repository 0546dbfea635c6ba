"""Rates of positions: responses weigh alike in their prompt, prompts alike in the rate, and tokens make no interval."""

import numpy as np
import pandas as pd
import pytest

from alignscope.diagnose.information_rates import (
    MEASURES,
    paired_difference,
    profile_table,
    prompt_means,
    rate_estimates,
    tilt_table,
)


def positions(n_prompts: int = 30, *, seed: int = 0, source: str = "chosen") -> pd.DataFrame:
    """Two responses a prompt, of unequal lengths, with random values."""
    random = np.random.default_rng(seed)
    rows = []
    for prompt in range(n_prompts):
        for response in range(2):
            for position in range(1, 3 + (prompt + response) % 5):
                row = {"prompt_id": f"p{prompt}", "history": 2 * prompt + response, "position": position}
                row |= {"source": source, "bucket": int(position > 2), "status": "ok", "plausible_size": 7}
                row |= {name: random.gamma(2.0) for name in MEASURES}
                row |= {"tilt": random.normal(), "tilt_unweighted": random.normal(), "tilt_r2": random.uniform()}
                rows.append(row)
    return pd.DataFrame(rows)


def test_a_long_answer_weighs_as_much_as_a_short_one():
    table = pd.DataFrame(
        {
            "prompt_id": ["a"] * 4 + ["b"],
            "history": [0, 0, 0, 1, 2],
            "kl": [1.0, 2.0, 3.0, 6.0, 10.0],  # responses 2 and 6: prompt a is 4; prompt b is 10
            "status": "ok",
        }
    )
    means = prompt_means(table, ["kl"])
    assert means.frame["kl"].to_list() == [4.0, 10.0]
    assert (means.n_tokens, means.n_responses, means.n_prompts) == (5, 3, 2)


def test_the_interval_is_that_of_a_naive_bootstrap_of_prompts():
    table = positions(60)
    found = rate_estimates(table, "chosen", resamples=4000)["kl"]
    by_prompt = table.groupby(["prompt_id", "history"])["kl"].mean().groupby("prompt_id").mean().to_numpy()
    random = np.random.default_rng(9)
    drawn = [by_prompt[random.integers(60, size=60)].mean() for _ in range(4000)]
    low, high = np.percentile(drawn, [2.5, 97.5])
    assert found.value == pytest.approx(by_prompt.mean(), rel=1e-12)
    assert found.low == pytest.approx(low, abs=0.1 * (high - low))
    assert found.high == pytest.approx(high, abs=0.1 * (high - low))
    assert (found.n, found.n_clusters, found.unit) == (len(table), 60, "nats a token")


def test_order_of_rows_and_repeated_tokens_move_nothing():
    table = positions()
    shuffled = table.sample(frac=1, random_state=1)
    twice = pd.concat([table, table])
    plain, other, doubled = (rate_estimates(part, "chosen")["information"] for part in (table, shuffled, twice))
    assert (plain.value, plain.low, plain.high) == pytest.approx((other.value, other.low, other.high), rel=1e-12)
    assert (plain.value, plain.low, plain.high) == pytest.approx((doubled.value, doubled.low, doubled.high), rel=1e-12)


def test_positions_without_a_finite_value_are_left_out_and_degenerate_ones_are_not():
    table = positions()
    bad = table.assign(
        status=np.where(table["position"] == 1, "unsupported", "ok"),
        kl=table["kl"].where(table["position"] > 1, np.inf),
    )
    found = rate_estimates(bad, "chosen")["kl"]
    assert found.n == (table["position"] > 1).sum()
    degenerate = table.assign(status=np.where(table["position"] == 1, "degenerate", "ok"))
    assert rate_estimates(degenerate, "chosen")["kl"].n == len(table)


def test_a_token_that_the_policy_alone_excludes_is_missing_from_its_infinite_measure_and_from_no_other():
    table = positions()
    first = table["position"] == 1
    cut = table.assign(reverse_kl=table["reverse_kl"].mask(first, np.inf))
    found, whole, rest = (rate_estimates(part, "chosen") for part in (cut, table, table[~first]))
    assert (found["reverse_kl"].value, found["reverse_kl"].low) == (rest["reverse_kl"].value, rest["reverse_kl"].low)
    assert found["reverse_kl"].n == (~first).sum()
    assert f"{first.sum()} tokens where it is infinite" in found["reverse_kl"].method
    assert all(found[name] == whole[name] for name in MEASURES if name != "reverse_kl")


def test_a_measure_that_is_infinite_everywhere_is_null_with_the_reason():
    found = rate_estimates(positions().assign(reverse_kl=np.inf), "chosen")
    assert (found["reverse_kl"].value, found["reverse_kl"].low, found["reverse_kl"].n) == (None, None, 0)
    assert "infinite" in found["reverse_kl"].reason
    assert found["kl"].value is not None


def test_tokens_without_a_plausible_one_are_not_counted_in_the_rate_over_plausible_tokens():
    table = positions()
    first = table["position"] == 1
    found = rate_estimates(table.assign(plausible_information=table["plausible_information"].mask(first)), "chosen")
    assert found["plausible_information"].n == (~first).sum()
    assert f"{first.sum()} tokens where it has no value" in found["plausible_information"].method
    assert found["information"].n == len(table)
    assert "not in it" not in found["information"].method


def test_the_profile_counts_the_tokens_that_a_measure_lacks():
    table = positions()
    first = table["position"] == 1
    profile = profile_table(table.assign(reverse_kl=table["reverse_kl"].mask(first, np.inf)), ["1-2", "3+"])
    opening = profile[profile["bucket"] == "1-2"].set_index("measure")
    assert opening.loc["reverse_kl", "n_null"] == first.sum()
    assert opening.loc["reverse_kl", "n"] + first.sum() == opening.loc["kl", "n"]
    assert np.isfinite(opening.loc["reverse_kl", ["value", "low", "high"]].to_numpy(float)).all()
    assert (profile.loc[profile["measure"] != "reverse_kl", "n_null"] == 0).all()


def test_a_difference_leaves_out_positions_that_are_infinite_under_either_update_or_both():
    table = positions(40)
    first = table.assign(reverse_kl=table["reverse_kl"].mask(table["position"] == 1, np.inf))
    second = table.assign(reverse_kl=(table["reverse_kl"] + 0.25).mask(table["position"] <= 2, np.inf))
    found = paired_difference(first, second, measures=["reverse_kl"]).iloc[0]
    assert (found["value"], found["low"], found["high"]) == pytest.approx((0.25, 0.25, 0.25))
    assert found["n"] == (table["position"] > 2).sum()


def test_few_prompts_have_a_value_but_no_interval():
    found = rate_estimates(positions(9), "chosen")["kl"]
    assert found.value is not None
    assert found.low is None
    assert "too few prompts" in found.reason


def test_the_profile_has_a_row_a_source_bucket_and_measure():
    table = pd.concat([positions(), positions(seed=1, source="rejected").assign(prompt_id=lambda t: t.prompt_id)])
    profile = profile_table(table, ["1-2", "3+", "end"])
    assert set(profile["bucket"]) == {"1-2", "3+"}  # an empty bucket has no row
    assert len(profile) == 2 * 2 * (len(MEASURES) + 1)
    row = profile.query("source == 'chosen' and bucket == '3+' and measure == 'kl'").iloc[0]
    part = table[(table["source"] == "chosen") & (table["bucket"] == 1)]
    assert row["value"] == pytest.approx(
        part.groupby(["prompt_id", "history"])["kl"].mean().groupby("prompt_id").mean().mean()
    )
    assert row["n"] == len(part)


def test_an_update_against_itself_has_no_difference_and_a_shift_is_found_exactly():
    table = positions(40)
    same = paired_difference(table, table)
    assert (same["value"] == 0).all()
    assert (same["low"] == 0).all()
    moved = paired_difference(table, table.assign(kl=table["kl"] + 0.25), measures=["kl"]).iloc[0]
    assert (moved["value"], moved["low"], moved["high"]) == pytest.approx((0.25, 0.25, 0.25))


def test_updates_over_other_histories_are_not_subtracted():
    table = positions()
    with pytest.raises(ValueError, match="no position in common"):
        paired_difference(table, table.assign(history=table["history"] + 1000))


def test_tilt_counts_the_positions_that_have_none():
    table = positions()
    table.loc[table["position"] == 1, "tilt"] = np.nan
    found = tilt_table(table, ["1-2", "3+"])
    whole = found[found["bucket"] == "all"].iloc[0]
    known = table[table["tilt"].notna()]
    assert whole["n_null"] == (table["position"] == 1).sum()
    assert whole["n"] == len(known)
    assert whole["median"] == pytest.approx(known["tilt"].median())
    assert list(found["bucket"]) == ["all", "1-2", "3+"]
