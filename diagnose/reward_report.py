"""Does the reward hidden in a DPO policy generalise as well as a trained reward model? (arXiv 2409.03650)

report = reward_report({"in_distribution": scores, "maths": shifted_scores}, beta=0.1)
report.summary()

Implicit: dw - dl, with dw, dl = log pi - log pi_ref of chosen and rejected (beta moves calibration only). Explicit:
score of chosen minus score of rejected under a reward head.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from ..errors import InputError
from ..probes.pair_table import PairScores
from .objectives import reward_trainer_metrics, trl_metrics
from .phrases import assumed_beta
from .ranking import DEFAULT_BETA, TIES
from .ranking_report import unmoved
from .report import Estimate, Finding, Section, SectionResult
from .reward_breakdowns import agreement_table, disagreement_table, pairs_table
from .reward_calibration import NAMES as CALIBRATION_NAMES
from .reward_calibration import calibration_estimates
from .reward_estimates import (
    DROPS,
    SETTING_NAMES,
    SHIFTED_GAPS,
    SettingNumbers,
    adjusted,
    by_setting_table,
    drop_estimates,
    setting_numbers,
    shifted_gaps,
    without_setting,
)
from .reward_findings import reward_findings, reward_headline
from .reward_rows import RewardRows, settings_rows, voted_rows

if TYPE_CHECKING:
    import plotly.graph_objects as go

TABLES = {
    "by_setting": "a number of a setting, with its interval",
    "tests": "a setting: what was left out, the gap's p (adjusted by Holm over the shifted settings), and the gap that "
    "so many pairs could show",
    "agreement": "a cell of implicit right? x explicit right? (a tie only with ties='ge'), a setting",
    "disagreement": "a quarter of a setting's pairs by length, overlap or difficulty: how often the two rewards decide "
    "differently there, and which of them is right more often",
    "calibration": "a bin of folded confidence of a reward, in-distribution: what it claims and what the votes say",
    "pairs": "a pair of a setting: both margins (implicit: times beta, nats; explicit: its units), and who is right",
}
QUESTION = "Does the reward hidden in the policy generalise as well as a trained reward model?"
BETA_MOVES = "implicit margins, their calibration and beta_ratio"
RESERVED = ("p", "normalised")
# what two settings must have in common to be compared
SCORERS = (
    "policy_fingerprint",
    "reference_fingerprint",
    "reference_kind",
    "explicit",
    "dtype",
    "template",
    "template_hash",
    "eos",
    "eos_id",
    "vocabulary",
    "tokenizer_hash",
)
CONFOUNDED = (
    "confounded: policy and reward model were not declared to share base, training pairs and template "
    "(--same-training), so a gap between them need not come from the kind of reward"
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class RewardReport:
    """Estimates by name, tables by name (`TABLES`), and what follows from them.

    Names without a setting are of the in-distribution set; those of a shifted set NAME end in _NAME.
    """

    estimates: Mapping[str, Estimate]
    tables: Mapping[str, pd.DataFrame]
    findings: tuple[Finding, ...]
    text: str
    settings: Mapping[str, Any]
    counts: Mapping[str, int]
    warnings: tuple[str, ...]
    trl: Mapping[str, float]

    def trl_metrics(self, prefix: str = "eval_") -> dict[str, float]:
        """The in-distribution numbers by TRL's names: those of its DPO trainer, and of its reward trainer."""
        return {f"{prefix}{name}": value for name, value in self.trl.items()}

    def to_frame(self, table: str = "by_setting") -> pd.DataFrame:
        """A copy of a table of `TABLES`, or "estimates": a row an estimate."""
        if table == "estimates":
            return pd.DataFrame([{"estimate": name, **e.model_dump()} for name, e in self.estimates.items()])
        if table not in self.tables:
            raise KeyError(f"no table '{table}'; choose from estimates, {', '.join(self.tables)}")
        return self.tables[table].copy()

    def summary(self) -> str:
        return self.text

    def figure(self) -> "go.Figure":
        """Accuracy of both rewards, setting by setting."""
        from ..dashboards.figures import reward_figures

        figures: dict[str, go.Figure] = reward_figures(dict(self.tables), dict(self.estimates))
        if not figures:
            raise InputError("there is nothing to draw: neither reward has an accuracy")
        return figures.get("accuracies", next(iter(figures.values())))

    def section(self) -> SectionResult:
        """The section "rewards" of a report."""
        section = Section(
            name="rewards",
            title="Implicit against explicit reward",
            question=QUESTION,
            summary=self.text,
            estimates=dict(self.estimates),
            tables=dict(TABLES),
            settings=dict(self.settings),
            counts=dict(self.counts),
            warnings=list(self.warnings),
        )
        return SectionResult(section=section, tables=dict(self.tables), findings=self.findings)


def reward_report(
    scores_by_setting: Mapping[str, PairScores] | PairScores,
    *,
    beta: float = DEFAULT_BETA,
    beta_given: bool = True,
    in_distribution: str = "in_distribution",
    shifts: Mapping[str, str] | None = None,
    same_training: bool = False,
    ties: str = "half",
    bootstrap: int = 2000,
    seed: int = 0,
) -> RewardReport:
    """Accuracy of implicit and explicit reward in every setting, and how their gap changes under shift.

    scores_by_setting: name -> pair table; a table alone is the in-distribution one. Names are letters, digits and _.
    beta: of the DPO training; it moves calibration and beta's ratio only, no accuracy. beta_given=False: it is an
        assumption, and the warnings say so.
    shifts: name -> "prompt shift" or "response shift"; left out, a set of which half the prompts are asked
        in-distribution too is a response shift. Prompts of a prompt shift that are asked in-distribution are removed.
    same_training: policy and reward model share base, training pairs and template; else the report says "confounded".
    Intervals: cluster bootstrap over prompts. p of a gap: exact McNemar where every pair has its own prompt, else sign
    flips of prompts; Holm over the shifted settings. Drops: every setting is resampled apart.
    Raises InputError (a ValueError) for a setting outside its range and where no table holds a pair.
    """
    if isinstance(scores_by_setting, PairScores):
        scores_by_setting = {in_distribution: scores_by_setting}
    require_reward_settings(scores_by_setting, beta=beta, ties=ties, bootstrap=bootstrap)
    if not any(len(scores) for scores in scores_by_setting.values()):
        raise InputError("rewards: no pair was scored; see the rows set aside, by reason, in scores.invalid_counts")
    require_same_scorers(scores_by_setting)
    settings = settings_rows(scores_by_setting, in_distribution=in_distribution, shifts=shifts or {})
    apart = [in_distribution, *sorted({*settings} - {in_distribution})]  # each with its own draws, in any order given
    numbers = {
        name: setting_numbers(rows, ties=ties, bootstrap=bootstrap, seed=seed + apart.index(name))
        for name, rows in settings.items()
    }
    base, main = numbers.get(in_distribution), scores_by_setting.get(in_distribution)
    voted = None if main is None else voted_rows(main, in_distribution=in_distribution)
    has_implicit = any(rows.has_implicit for rows in settings.values())
    shifted = {name: number for name, number in numbers.items() if name != in_distribution}
    holms = adjusted(shifted)
    estimates, calibration = _estimates(
        base, voted, shifted, in_distribution=in_distribution, beta=beta, ties=ties, bootstrap=bootstrap, seed=seed
    )
    tables = {
        "by_setting": by_setting_table(
            {name: _of_setting(number, base if name != in_distribution else None, name != in_distribution)
             for name, number in numbers.items()},
            {name: rows.shift for name, rows in settings.items()},
        ),
        "tests": _tests_table(numbers, holms),
        "agreement": agreement_table(settings, ties=ties),
        "disagreement": disagreement_table(settings, ties=ties, bootstrap=bootstrap, seed=seed),
        "calibration": calibration,
        "pairs": pairs_table(settings, beta=beta, ties=ties),
    }  # fmt: skip
    return RewardReport(
        estimates=estimates,
        tables=tables,
        findings=reward_findings(
            estimates,
            list(shifted),
            holms,
            beta=beta,
            noise_floor=None if main is None else main.settings.get("noise_floor"),
            same_training=same_training,
            unmoved=main is not None and unmoved(main),
        ),
        text=reward_headline(estimates, list(shifted)),
        settings=dict({} if main is None else main.settings)
        | {
            "beta": beta,
            "beta_given": beta_given,
            "in_distribution": in_distribution,
            "shifts": {name: rows.shift for name, rows in settings.items() if name != in_distribution},
            "same_training": same_training,
            "ties": ties,
            "bootstrap": bootstrap,
            "seed": seed,
            "explicit": {name: table.settings.get("explicit") for name, table in scores_by_setting.items()},
        },
        counts=_counts(scores_by_setting, settings, in_distribution),
        warnings=((assumed_beta(beta, BETA_MOVES),) if has_implicit and not beta_given else ())
        + _warnings(scores_by_setting, settings, in_distribution, same_training=same_training),
        trl=_trl(main, beta),
    )


def _trl(scores: PairScores | None, beta: float) -> dict[str, float]:
    """TRL's names -> values of both trainers; empty where there is no pair."""
    if scores is None or not len(scores):
        return {}
    found = trl_metrics(scores, beta, prefix="")
    explicit = np.stack([scores.explicit_chosen, scores.explicit_rejected], axis=1)
    explicit = explicit[np.isfinite(explicit).all(1)]
    return found | (reward_trainer_metrics(explicit[:, 0], explicit[:, 1], prefix="") if len(explicit) else {})


def estimate_names(shifted: Collection[str]) -> tuple[str, ...]:
    """The names that the estimates of the section "rewards" can have; shifted: the names of the shifted sets."""
    once = (*SETTING_NAMES, *CALIBRATION_NAMES, *SHIFTED_GAPS)
    return (*once, *(f"{name}_{setting}" for setting in shifted for name in (*SETTING_NAMES, *DROPS)))


def require_reward_settings(names: Mapping[str, object], *, beta: float, ties: str, bootstrap: int) -> None:
    """Refuse a setting outside its range. Raises InputError."""
    if not names:
        raise InputError("rewards: no setting was given; pass {'in_distribution': scores, ...}")
    for name in names:
        require_setting_name(name)
    if not (np.isfinite(beta) and beta > 0):
        raise InputError(f"beta={beta}: expected a positive, finite number, the beta of the DPO training")
    if ties not in TIES:
        raise InputError(f"ties={ties!r}: choose from {', '.join(TIES)}")
    if bootstrap < 1:
        raise InputError(f"bootstrap={bootstrap}: expected at least 1 draw; 2000 is the default")


def require_same_scorers(scores: Mapping[str, PairScores]) -> None:
    """Refuse tables of other models, precision or text policy: a drop between them would not be one of the data.

    Only what both tables state is compared. Raises InputError naming the setting, the key and both values.
    """
    names = list(scores)
    for name in names[1:]:
        here, there = scores[names[0]].settings, scores[name].settings
        for key in SCORERS:
            if here.get(key) is not None and there.get(key) is not None and here[key] != there[key]:
                raise InputError(
                    f"'{name}' was not scored like '{names[0]}': {key} is {there[key]!r}, there {here[key]!r}; score "
                    "both with the same models and options"
                )


def require_setting_name(name: str) -> None:
    """A name that can stand in the name of an estimate: letters, digits and _, no ending of one. Raises InputError."""
    if not name or not name.replace("_", "a").isalnum() or not name.isascii():
        raise InputError(f"setting '{name}' (of --shifted): use letters, digits and _, as names of estimates end in it")
    if name.split("_")[0] in RESERVED:  # gap_p is the p of a gap, and gap_p_x that of setting x
        raise InputError(f"setting '{name}': names of estimates end in p and normalised already; choose another one")


def _estimates(
    base: SettingNumbers | None,
    voted: RewardRows | None,
    shifted: Mapping[str, SettingNumbers],
    *,
    in_distribution: str,
    beta: float,
    ties: str,
    bootstrap: int,
    seed: int,
) -> tuple[dict[str, Estimate], pd.DataFrame]:
    """All estimates by name, and the table "calibration"."""
    missing = f"there is no setting called '{in_distribution}'"
    found = dict(base.estimates) if base is not None else without_setting(missing)
    calibrated, table = calibration_estimates(voted, beta=beta, bootstrap=bootstrap, seed=seed)
    found |= calibrated
    found |= shifted_gaps(shifted, ties=ties, bootstrap=bootstrap, seed=seed)
    for name, number in shifted.items():
        found |= {f"{key}_{name}": e for key, e in _of_setting(number, base, True).items()}
    return found, table


def _of_setting(number: SettingNumbers, base: SettingNumbers | None, is_shifted: bool) -> dict[str, Estimate]:
    return number.estimates | (drop_estimates(number, base) if is_shifted else {})


def _tests_table(numbers: Mapping[str, SettingNumbers], holms: Mapping[str, float]) -> pd.DataFrame:
    rows = []
    for name, number in numbers.items():
        e, counts = number.estimates, number.rows.counts
        removed = counts.get("overlap_removed", 0) + counts.get("identical_pairs_removed", 0)
        left_out = sum(counts.get(reason, 0) for reason in ("human_tie", "no_implicit", "no_explicit"))
        values = [e[key].value for key in ("gap", "gap_p")] + [holms.get(name)]
        values += [e[key].value for key in ("disagreement", "minimum_detectable_gap")]
        row = (name, number.rows.shift, len(number.rows), len(np.unique(number.rows.clusters)), removed, left_out)
        rows.append((*row, *(np.nan if v is None else v for v in values), number.gap_test))
    names = ["setting", "shift", "n", "n_prompts", "removed", "left_out", "gap", "gap_p", "gap_p_holm"]
    names += ["disagreement", "minimum_detectable_gap", "test"]
    return pd.DataFrame(rows, columns=names).astype(
        {"n": int, "n_prompts": int, "removed": int, "left_out": int}
        | dict.fromkeys(["gap", "gap_p", "gap_p_holm", "disagreement", "minimum_detectable_gap"], float)
    )


def _counts(
    scores: Mapping[str, PairScores], settings: Mapping[str, RewardRows], in_distribution: str
) -> dict[str, int]:
    found: dict[str, int] = {}
    for name, rows in settings.items():
        end = "" if name == in_distribution else f"_{name}"
        found[f"pairs{end}"] = len(rows)
        found[f"prompts{end}"] = len(np.unique(rows.clusters))
        found |= {f"{reason}{end}": n for reason, n in rows.counts.items() if n}
        for scorer, margin in (("implicit", rows.implicit_margin), ("explicit", rows.explicit_margin)):
            found[f"{scorer}_ties{end}"] = int((margin == 0).sum())
        found |= {f"set_aside_{reason}{end}": n for reason, n in scores[name].invalid_counts.items()}
        found |= {f"{flag}{end}": int(n) for flag, n in scores[name].counts.items() if flag not in rows.counts}
    return found


def _warnings(
    scores: Mapping[str, PairScores], settings: Mapping[str, RewardRows], in_distribution: str, *, same_training: bool
) -> tuple[str, ...]:
    found = []
    if not same_training and any(rows.has_explicit and rows.has_implicit for rows in settings.values()):
        found.append(CONFOUNDED)
    for name, rows in settings.items():
        if n := rows.counts.get("overlap_removed"):
            found.append(f"{name}: {n} pairs ask prompts of the in-distribution set too and were left out here")
        if n := rows.counts.get("prompt_not_known"):
            found.append(
                f"{name}: {n} pairs name no prompt that could be compared (prompt_hash, or prompt_id in both tables): "
                "what they share with the in-distribution set is not known, and was not left out"
            )
        if n := rows.counts.get("shared_prompt_pairs"):
            same = rows.counts.get("identical_pairs_removed", 0)
            found.append(
                f"{name}: {n} pairs ask prompts of the in-distribution set, so it was taken as a shift of the responses"
                + (f"; {same} of them are the same pairs there and were left out" if same else "")
            )
        if n := rows.counts.get("no_explicit"):
            found.append(f"{name}: {n} pairs have no finite explicit reward and were left out for both rewards")
        if not len(rows):
            found.append(f"{name}: no pair is left")
    for name, table in scores.items():
        found += [notice if name == in_distribution else f"{name}: {notice}" for notice in table.notices]
    return tuple(dict.fromkeys(found))
