"""Which sentence follows from which intervals."""

import pytest

from alignscope.diagnose.identities import Identity
from alignscope.diagnose.information_findings import information_findings, sources_of
from alignscope.diagnose.report import Estimate

LOW, HIGH = 1e-4, 0.5  # nats a token; the floor is .002


def rate(value: float | None, *, low=None, high=None, interval=True) -> Estimate:
    if value is None:
        return Estimate(label="", value=None, n=0, method="", reason="no tokens")
    if not interval:
        return Estimate(label="", value=value, n=12, method="", reason="too few prompts")
    ends = {"low": 0.9 * value if low is None else low, "high": 1.1 * value if high is None else high}
    return Estimate(label="", value=value, n=1000, n_clusters=40, unit="nats/token", method="", **ends)


def panel(information: Estimate, plausible: Estimate, kl: Estimate, source: str = "chosen") -> dict[str, Estimate]:
    return {
        f"{source}_information": information,
        f"{source}_plausible_information": plausible,
        f"{source}_kl": kl,
        f"{source}_reverse_kl": rate(HIGH),
    }


def said(*rates: Estimate, **more) -> list[tuple[str, str]]:
    found = information_findings(panel(*rates), **more)
    return [(f.severity, f.sentence) for f in found]


def test_upper_bounds_under_the_floor_are_no_measurable_change():
    (finding,) = information_findings(panel(*[rate(LOW)] * 3))
    assert finding.severity == "info"
    assert "no measurable change along chosen histories" in finding.sentence
    assert finding.rests_on == [f"information.chosen_{x}" for x in ("information", "plausible_information", "kl")]
    assert "alone" not in finding.sentence


@pytest.mark.parametrize("which", range(3))
def test_one_upper_bound_over_the_floor_takes_the_sentence_back(which):
    rates = [rate(LOW)] * 3
    rates[which] = rate(LOW, high=0.0021)
    assert said(*rates) == []


def test_a_measured_floor_replaces_the_default():
    assert said(*[rate(0.01)] * 3) == []
    assert "below the floor of 0.02" in said(*[rate(0.01)] * 3, floor=0.02)[0][1]


def test_without_intervals_no_change_is_said_of_these_rows_alone():
    ((severity, sentence),) = said(*[rate(0.0, interval=False)] * 3)
    assert severity == "info"
    assert "said of these 12 rows alone" in sentence
    assert said(*[rate(HIGH, interval=False)] * 3) == []


def test_a_rate_that_is_null_says_nothing():
    assert said(rate(LOW), rate(None), rate(LOW)) == []


def test_only_d_above_the_floor_is_a_change_in_tokens_never_said():
    ((severity, sentence),) = said(rate(HIGH), rate(LOW), rate(LOW))
    assert severity == "notice"
    assert "the change is in tokens the models never say" in sentence


@pytest.mark.parametrize(
    "rates",
    [
        (rate(HIGH, low=0.001), rate(LOW), rate(LOW)),
        (rate(HIGH), rate(LOW, high=0.003), rate(LOW)),
        (rate(HIGH), rate(LOW), rate(LOW, high=0.003)),
        (rate(HIGH, interval=False), rate(LOW), rate(LOW)),
        (rate(HIGH), rate(HIGH), rate(HIGH)),
    ],
)
def test_tokens_never_said_need_all_three_intervals(rates):
    assert said(*rates) == []


# ---- the opening


def buckets(first: Estimate, *others: Estimate) -> dict[str, dict[str, Estimate]]:
    return {"chosen": dict(zip(("1-5", "6-50", "51+", "eos"), (first, *others), strict=False))}


CHANGED = (rate(HIGH),) * 3


def test_an_opening_over_three_times_the_rest_is_told():
    ((severity, sentence),) = said(*CHANGED, buckets=buckets(rate(1.0), rate(0.2), rate(0.1)))
    assert severity == "notice"
    assert "mostly in the opening tokens" in sentence
    assert "1-5" in sentence


@pytest.mark.parametrize(
    "parts",
    [
        (rate(1.0, low=0.6), rate(0.2), rate(0.1)),  # .6 < 3 x .22
        (rate(1.0), rate(0.2, high=0.31), rate(0.1)),  # .9 < 3 x .31
        (rate(1.0), rate(0.1), rate(0.1), rate(0.5)),  # the end of the answer moved too
        (rate(1.0, interval=False), rate(0.1)),
        (rate(1.0), rate(0.1, interval=False)),
        (rate(1.0), rate(None)),
        (rate(1.0),),
        (rate(0.0015), rate(1e-5)),  # below the floor
    ],
)
def test_the_opening_is_not_told_without_intervals_that_say_so(parts):
    assert said(*CHANGED, buckets=buckets(*parts)) == []


def test_a_bucket_that_no_answer_reaches_is_passed_over():
    assert len(said(*CHANGED, buckets=buckets(rate(1.0), rate(0.2), rate(None)))) == 1


def test_buckets_of_another_source_are_not_read():
    assert said(*CHANGED, buckets={"rejected": buckets(rate(1.0), rate(0.1))["chosen"]}) == []


# ---- identities, sources


def test_a_failing_identity_is_an_alarm_and_the_only_finding():
    rows = [
        Identity(name="kl", value=-0.5, bound=-1e-6, ok=False, n=3),
        Identity(name="swapped", value=None, bound=1e-6, ok=False, n=3, reason="1 are not a number"),
        Identity(name="ratio_mass", value=0.0, bound=1e-5, ok=True, n=3),
        Identity(name="policy_samples", value=None, bound=0.0, ok=None, n=0, reason="no such samples were given"),
    ]
    found = information_findings(panel(*[rate(LOW)] * 3), identities=rows)
    assert [f.severity for f in found] == ["alarm", "alarm"]
    assert "kl is -0.5, bound -1e-06 (n = 3)" in found[0].sentence
    assert "swapped has no value (1 are not a number)" in found[1].sentence


def test_identities_not_judged_leave_the_other_findings():
    rows = [Identity(name="swapped", value=None, bound=1e-6, ok=None, n=0, reason="not computed")]
    assert len(information_findings(panel(*[rate(LOW)] * 3), identities=rows)) == 1


def test_every_source_is_judged_apart():
    rates = panel(*[rate(LOW)] * 3) | panel(rate(HIGH), rate(LOW), rate(LOW), source="policy")
    assert sources_of(rates) == ["chosen", "policy"]
    assert [(f.severity, f.rests_on[0]) for f in information_findings(rates)] == [
        ("info", "information.chosen_information"), ("notice", "information.policy_information")
    ]  # fmt: skip


def test_a_source_without_its_panel_and_a_floor_of_zero_are_refused():
    with pytest.raises(ValueError, match="rates of source chosen lack kl"):
        information_findings({"chosen_information": rate(LOW), "chosen_plausible_information": rate(LOW)})
    with pytest.raises(ValueError, match="floor=0"):
        information_findings({}, floor=0)
