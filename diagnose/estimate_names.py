"""Which estimates can a report have? Known before the work, so that a misspelt gate is refused before it, not after."""

from collections.abc import Collection, Mapping

from . import (
    companions,
    information_section,
    objectives_section,
    ranking_report,
    reward_report,
    series_metrics,
    spinal_estimates,
    spinal_score,
    spinal_series_estimates,
    spinal_series_noise,
    weight_section,
)

BROUGHT = {  # what an audit is asked for -> the sections that the report then has
    "ranking": ("ranking", "length", "displacement"),
    "rewards": ("rewards", "objectives", "length", "displacement"),
    "spinal": ("spinal",),
    "information": ("information",),
    "weights": ("weights",),
}


def audit_estimate_names(wanted: Collection[str], shifted: Collection[str] = ()) -> Mapping[str, tuple[str, ...]]:
    """Section -> the names that its estimates can have; some have no value, or are left out, where the data lack it.

    wanted: of the keys of `BROUGHT`. shifted: names of the shifted sets, in which some names end.
    """
    names = {
        "ranking": ranking_report.NAMES,
        "length": companions.LENGTH_NAMES,
        "displacement": companions.DISPLACEMENT_NAMES,
        "rewards": reward_report.estimate_names(shifted),
        "objectives": objectives_section.estimate_names(),
        "information": information_section.NAMES,
        "weights": weight_section.NAMES,
        "spinal": (*spinal_estimates.COMPARISON_NAMES, *spinal_score.SCORE_NAMES, *spinal_score.DETECTED_NAMES),
    }
    made = {section for one in wanted for section in BROUGHT[one]}
    return {section: own for section, own in names.items() if section in made}


def series_estimate_names(wanted: Collection[str], *, noise: bool = False) -> Mapping[str, tuple[str, ...]]:
    """Section -> the names that the estimates of a series can have; wanted: of the keys of `BROUGHT`.

    noise: whether the noise control was asked for.
    """
    scored = {"ranking", "rewards"} & {*wanted}
    of_pairs = spinal_series_estimates.HELD_OUT_NAMES.values()
    of_series = (
        *(name for name in spinal_series_estimates.SERIES_NAMES if scored or name not in of_pairs),
        *(spinal_series_noise.NOISE_NAMES if noise else ()),
    )
    named = {
        "series": of_series if "spinal" in wanted else (),
        "metrics": tuple(
            headline.replace(".", "_")
            for headline in series_metrics.HEADLINES
            if any(headline.partition(".")[0] in BROUGHT[one] for one in wanted)
        ),
    }
    return {section: names for section, names in named.items() if names}
