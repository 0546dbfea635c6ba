"""An audit from pair tables alone: the sections of the reports, from any kind of file, once per run directory."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from ranking_tables import frame, mixed

from alignscope import InputError, PairScores, Report, ranking_report
from alignscope.diagnose.gates import Gate
from alignscope.diagnose.preference_sections import PreferenceSettings
from alignscope.diagnose.reward_report import reward_report
from alignscope.diagnose.table_audit import audit_tables

FEW = PreferenceSettings(bootstrap=50)


def shifted() -> pd.DataFrame:
    table = mixed(seed=1)
    return table.assign(prompt_id="maths " + table.prompt_id)


def saved(table: pd.DataFrame, path: Path, **settings) -> Path:
    return PairScores.from_frame(table, settings=settings).save(path)


def audited(**more) -> Report:
    scores, other = (PairScores.from_frame(table) for table in (mixed(), shifted()))
    return audit_tables(scores, **({"shifted": {"maths": other}, "settings": FEW} | more))


def same_numbers(one: Report, two: Report) -> None:
    """All but the manifest and what it cost."""
    for here, there in zip(one.sections, two.sections, strict=True):
        costless = {"cost": None}
        assert here.model_copy(update=costless) == there.model_copy(update=costless)
        for table in here.tables:
            name = f"{here.name}.{table}"
            pd.testing.assert_frame_equal(one.to_frame(name), two.to_frame(name))
    assert one.findings == two.findings


def test_the_sections_are_those_of_the_reports():
    report = audited()
    names = ["ranking", "length", "displacement", "rewards", "objectives"]
    assert [section.name for section in report.sections] == names
    scores, other = (PairScores.from_frame(table) for table in (mixed(), shifted()))
    ranking = ranking_report(scores, bootstrap=50)
    rewards = reward_report({"in_distribution": scores, "maths": other}, bootstrap=50)
    for section, own in (("ranking", ranking), ("rewards", rewards)):
        assert report.section(section).estimates == own.estimates
        assert report.section(section).summary == own.summary()
        for name in own.section().tables:
            pd.testing.assert_frame_equal(report.to_frame(f"{section}.{name}"), own.to_frame(name))
    assert all(finding in report.findings for finding in (*ranking.findings, *rewards.findings))


def test_every_setting_reaches_the_reports():
    settings = PreferenceSettings(
        beta=0.3, ties="ge", smoothing="laplace", assumed_preference=0.8, same_training=True, seed=3, bootstrap=30
    )
    table = mixed().drop(columns=["preference", "n_votes"])
    scores = PairScores.from_frame(table)
    report = audit_tables(scores, settings=settings)
    ranking = ranking_report(
        scores, beta=0.3, ties="ge", smoothing="laplace", assumed_preference=0.8, seed=3, bootstrap=30
    )
    rewards = reward_report(scores, beta=0.3, ties="ge", same_training=True, seed=3, bootstrap=30)
    assert report.section("ranking").estimates == ranking.estimates
    assert report.section("rewards").estimates == rewards.estimates
    assert not any(text.startswith("confounded") for text in report.section("rewards").warnings)
    assert report.section("objectives").settings["beta"] == 0.3
    assert "loss_dpo_soft" in report.section("objectives").estimates
    assert report.manifest.seed == 3


@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_table_from_a_file_gives_the_numbers_of_the_one_in_memory(suffix, tmp_path):
    files = {name: saved(table, tmp_path / f"{name}.{suffix}") for name, table in (("id", mixed()), ("m", shifted()))}
    report = audit_tables(files["id"], shifted={"maths": str(files["m"])}, settings=FEW)
    memory = audited()
    for name in ("ranking", "length", "displacement", "rewards", "objectives"):
        assert report.section(name).estimates == memory.section(name).estimates
    data = report.manifest.data
    assert data["scores"]["source"] == str(files["id"])
    assert data["shifted maths"]["scored"] == 120
    assert len({facts["sha256"] for facts in data.values()}) == 2


def test_anybody_s_csv_of_two_columns_is_enough(tmp_path):
    file = tmp_path / "mine.csv"
    frame([1.0, -1.0, 2.0] * 10).to_csv(file, index=False)
    report = audit_tables(file, settings=FEW)
    assert report.estimate("ranking.accuracy").value == pytest.approx(2 / 3)
    assert report.estimate("rewards.gap").reason == "no reference model was given"
    assert Gate.parse("ranking.accuracy<0.7").fires(report)


def test_what_the_table_says_of_its_models_stands_in_the_manifest(tmp_path):
    file = saved(mixed(), tmp_path / "t.parquet", policy="runs/dpo/final", policy_fingerprint="abc", explicit="rm")
    manifest = audit_tables(file, settings=FEW).manifest
    assert manifest.models["policy"] == {"name": "runs/dpo/final", "fingerprints": {"combined": "abc"}}
    assert manifest.models["reward"]["name"] == "rm"


# ---- beta

ASSUMED = "beta 0.1 (TRL's default; not given)"


def assumes_beta(report: Report) -> list[str]:
    """Sections that say that beta was assumed."""
    return [section.name for section in report.sections if any(text.startswith(ASSUMED) for text in section.warnings)]


def test_a_beta_that_was_not_given_is_told_where_numbers_depend_on_it():
    report = audited()
    assert assumes_beta(report) == ["ranking", "rewards", "objectives"]
    assert report.section("ranking").settings["beta_given"] is False
    assert (report.manifest.settings["beta"], report.manifest.settings["beta_given"]) == (0.1, False)


def test_a_beta_that_was_given_is_not_called_assumed_whatever_it_is():
    report = audited(settings=PreferenceSettings(bootstrap=50, beta=0.1))
    assert assumes_beta(report) == []
    assert report.manifest.settings["beta_given"] is True
    assert report.section("ranking").estimates == audited().section("ranking").estimates


def test_without_a_reference_only_the_losses_that_need_none_depend_on_beta():
    table = mixed().drop(columns=["reference_chosen", "reference_rejected"])
    assert assumes_beta(audit_tables(PairScores.from_frame(table), settings=FEW)) == ["objectives"]  # cpo
    bare = table.drop(columns=["n_chosen", "n_rejected"])
    assert assumes_beta(audit_tables(PairScores.from_frame(bare), settings=FEW)) == []


# ---- run directories


def test_a_finished_run_is_read_back(tmp_path):
    file, out = saved(mixed(), tmp_path / "t.parquet"), tmp_path / "run"
    first = audit_tables(file, settings=FEW, out=out)
    stamp = (out / "report.json").stat().st_mtime_ns
    again = audit_tables(file, settings=FEW, out=out)
    assert (again == first, (out / "report.json").stat().st_mtime_ns) == (True, stamp)

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    json.loads((out / "report.json").read_text(), parse_constant=refuse)


def test_a_run_directory_of_another_table_or_setting_is_refused(tmp_path):
    file, out = saved(mixed(), tmp_path / "t.parquet"), tmp_path / "run"
    other = saved(shifted(), tmp_path / "other.parquet")
    audit_tables(file, settings=FEW, out=out)
    for scores, more in (
        (other, {}),
        (file, {"shifted": {"maths": other}}),
        (file, {"only": "rewards"}),
        (file, {"settings": PreferenceSettings(bootstrap=50, beta=0.2)}),
        (file, {"settings": PreferenceSettings(bootstrap=50, seed=1)}),
        (file, {"settings": PreferenceSettings(bootstrap=50, same_training=True)}),
    ):
        with pytest.raises(InputError, match="holds a run with other settings"):
            audit_tables(scores, out=out, **({"settings": FEW} | more))


def test_a_table_in_memory_has_its_run_directory_too(tmp_path):
    scores = PairScores.from_frame(mixed())
    first = audit_tables(scores, settings=FEW, out=tmp_path)
    assert audit_tables(scores, settings=FEW, out=tmp_path) == first
    with pytest.raises(InputError, match="other settings"):
        audit_tables(PairScores.from_frame(shifted()), settings=FEW, out=tmp_path)


def test_the_same_call_gives_the_same_report():
    same_numbers(audited(), audited())


# ---- what is chosen, and what is refused


@pytest.mark.parametrize(
    ("only", "names"),
    [
        ("ranking", ["ranking", "length", "displacement"]),
        (["rewards"], ["rewards", "objectives", "length", "displacement"]),
        ("rewards, ranking", ["ranking", "length", "displacement", "rewards", "objectives"]),
    ],
)
def test_only_what_was_asked_is_computed(only, names):
    report = audit_tables(PairScores.from_frame(mixed()), only=only, settings=FEW)
    assert [section.name for section in report.sections] == names
    assert report.section(names[0]).cost is not None


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"only": "spinal"}, "--only spinal: pair tables hold no more than ranking, rewards"),
        ({"only": []}, "--only"),
        ({"only": "ranking"}, "--shifted: shifted sets are read by the section rewards"),
        ({"shifted": {"two words": mixed()}}, "setting 'two words'"),
        ({"shifted": {"p": mixed()}}, "setting 'p'"),
        ({"shifted": {"in_distribution": mixed()}}, "the name of the main pairs"),
        ({"shifted": {"a": mixed().iloc[:0]}}, "a: no pair is left"),
        ({"settings": PreferenceSettings(beta=-1.0)}, "beta=-1.0"),
        ({"settings": PreferenceSettings(smoothing="none")}, "smoothing='none'"),
        ({"settings": PreferenceSettings(bootstrap=0)}, "bootstrap=0"),
        ({"settings": PreferenceSettings(assumed_preference=0.5)}, "assumed_preference=0.5"),
    ],
)
def test_what_cannot_be_computed_is_refused(more, message):
    if "shifted" in more:
        more = more | {"shifted": {name: PairScores.from_frame(table) for name, table in more["shifted"].items()}}
    with pytest.raises(InputError, match=message):
        audited(**more)


def test_files_that_are_no_tables_are_refused_by_name(tmp_path):
    for name, text, message in (
        ("a.csv", "prompt,chosen\nx,y\n", "no column policy_chosen, policy_rejected"),
        ("a.txt", "x", "unknown kind of table"),
        ("a.parquet", "x", "a.parquet"),
    ):
        (tmp_path / name).write_text(text)
        with pytest.raises(InputError, match=message):
            audit_tables(tmp_path / name)
    with pytest.raises(InputError, match=r"gone\.csv"):
        audit_tables(tmp_path / "gone.csv")


def test_a_table_that_lost_more_than_its_share_is_refused_with_the_reasons():
    table = mixed()
    table.loc[:9, "reference_chosen"] = np.nan
    scores = PairScores.from_frame(table)
    with pytest.raises(InputError, match=r"10 of 120 rows cannot be used.*10 non_finite_reference \(first: row 1 "):
        audit_tables(scores, settings=FEW)
    report = audit_tables(scores, settings=FEW, max_invalid=0.1)
    assert any("10 rows were set aside: 10 non_finite_reference" in text for text in report.section("ranking").warnings)


def test_bad_preferences_count_against_the_share_and_are_listed(tmp_path):
    table = mixed()
    table.loc[[3, 7], "preference"] = [1.25, -1.0]
    table.loc[9, "preference"] = np.nan
    file = tmp_path / "theirs.csv"
    table.to_csv(file, index=False)
    with pytest.raises(
        InputError, match=r"3 of 120 rows cannot be used, .*2 votes_invalid, 1 missing_field \(first: row"
    ):
        audit_tables(file, settings=FEW, max_invalid=0.02)
    report = audit_tables(file, settings=FEW)
    facts = report.manifest.data["scores"]
    assert (facts["scored"], facts["set_aside"]) == (117, {"votes_invalid": 2, "missing_field": 1})
    assert report.to_frame("ranking.set_aside").row.tolist() == [4, 8, 10]
    rest = ranking_report(PairScores.from_frame(table.drop(index=[3, 7, 9])), bootstrap=50)
    assert report.section("ranking").estimates == rest.estimates


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_a_share_that_is_none_is_refused(share):
    with pytest.raises(InputError, match=r"--max-invalid .*: a share between 0 and 1"):
        audited(max_invalid=share)
