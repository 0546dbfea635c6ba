"""The report: it says what it must, survives a round trip, and refuses what it cannot read."""

import json

import pandas as pd
import pytest
from pydantic import BaseModel, ValidationError

from alignscope import Estimate, InputError, Report
from alignscope.diagnose import report as report_module
from alignscope.diagnose.gates import Gate
from alignscope.diagnose.report import Cost, Finding, Manifest, Section, SectionResult, finite

MANIFEST = Manifest(
    command="alignscope audit",
    models={},
    data={},
    settings={},
    packages={},
    device="cpu",
    dtype="float32",
    seed=0,
    wall_seconds=1.0,
)


def share(value, low, high, **more):
    return Estimate(
        label="a share", value=value, low=low, high=high, n=100, n_clusters=90, unit="share", method="bootstrap", **more
    )


def sample() -> Report:
    ranking = Section(
        name="ranking",
        title="Ranking",
        question="Does it rank?",
        summary="Yes.",
        estimates={"accuracy": share(0.6, 0.5, 0.7), "idealized": share(None, None, None, reason="one label a pair")},
        tables={"pairs": "one pair a row"},
    )
    findings = (
        Finding(severity="info", section="ranking", sentence="fine", rests_on=["ranking.accuracy"]),
        Finding(severity="alarm", section="ranking", sentence="bad", rests_on=["ranking.accuracy"]),
    )
    table = pd.DataFrame({"pair_id": ["a", "b"], "loss": [0.5, float("nan")]})
    result = SectionResult(section=ranking, tables={"pairs": table}, findings=findings)
    return Report.assemble("Audit", "What?", MANIFEST, [result])


def test_round_trip_keeps_everything(tmp_path):
    report = sample()
    report.save(tmp_path / "run")
    again = Report.load(tmp_path / "run")
    assert again == report
    pd.testing.assert_frame_equal(again.to_frame("ranking.pairs"), report.to_frame("ranking.pairs"))
    assert Report.load(tmp_path / "run" / "report.json") == report


def test_a_report_that_is_being_written_over_is_not_there(tmp_path, monkeypatch):
    sample().save(tmp_path)
    monkeypatch.setattr(pd.DataFrame, "to_parquet", None)
    with pytest.raises(TypeError):
        sample().save(tmp_path)
    assert not (tmp_path / "report.json").exists()


def test_findings_come_worst_first():
    assert [f.severity for f in sample().findings] == ["alarm", "info"]


def test_estimates_are_found_by_section_and_name():
    report = sample()
    assert report.estimate("ranking.accuracy").value == 0.6
    with pytest.raises(KeyError, match="it has: accuracy, idealized"):
        report.estimate("ranking.acuracy")
    assert list(report.to_frame("ranking").estimate) == ["accuracy", "idealized"]


@pytest.mark.parametrize(("value", "low", "high"), [(None, None, None), (0.5, None, None), (0.5, 0.4, None)])
def test_a_missing_value_or_interval_needs_a_reason(value, low, high):
    with pytest.raises(ValidationError, match="needs a reason"):
        share(value, low, high)
    assert share(value, low, high, reason="18 clusters").reason == "18 clusters"


def test_a_missing_exact_number_needs_a_reason_too():
    with pytest.raises(ValidationError, match="needs a reason"):
        share(None, None, None, level=None)
    assert share(None, None, None, level=None, reason="no adapter").value is None
    assert share(0.5, None, None, level=None).reason is None


@pytest.mark.parametrize("model", [Estimate, Finding, Cost, Section, Manifest, Report])
def test_every_field_of_the_schema_is_described_in_one_line(model):
    described = {name: field.description for name, field in model.model_fields.items()}
    assert all(text and text.endswith(".") and "\n" not in text for text in described.values()), described


def test_no_model_of_the_schema_is_left_out_above():
    models = [m for m in vars(report_module).values() if isinstance(m, type) and issubclass(m, BaseModel)]
    public = {m for m in models if not m.__name__.startswith("_") and m is not BaseModel}
    assert public == {Estimate, Finding, Cost, Section, Manifest, Report}


@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_not_a_number_never_enters(number):
    with pytest.raises(ValidationError):
        share(number, 0.0, 1.0)
    assert finite(number) is None
    assert finite(0.25) == 0.25


def test_a_newer_report_is_refused(tmp_path):
    path = sample().save(tmp_path)
    raw = json.loads(path.read_text())
    path.write_text(json.dumps(raw | {"schema_version": 99}))
    with pytest.raises(InputError, match="schema version 99, this alignscope reads up to 1; upgrade"):
        Report.load(tmp_path)


@pytest.mark.parametrize("version", [0, -1])
def test_a_version_that_never_was_is_refused(tmp_path, version):
    path = sample().save(tmp_path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"schema_version": version}))
    with pytest.raises(InputError, match=f"schema version {version} is not known .*reads 1 to 1; run the audit again"):
        Report.load(tmp_path)


def test_an_older_report_migrates_step_by_step(tmp_path, monkeypatch):
    def rename(raw):
        return {name if name != "asked" else "question": value for name, value in raw.items()}

    report = sample()
    path = report.save(tmp_path)
    old = json.loads(path.read_text()) | {"schema_version": 0}
    path.write_text(json.dumps({name if name != "question" else "asked": value for name, value in old.items()}))
    monkeypatch.setitem(report_module.MIGRATIONS, 0, rename)
    assert Report.load(tmp_path) == report


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not JSON"),
        ("{}", "no schema_version"),
        ("[1]", "no schema_version"),
        ('{"schema_version": true}', "no schema_version"),
        ('{"schema_version": 1}', "not a valid report"),
    ],
)
def test_a_damaged_report_is_refused_with_its_path(tmp_path, text, message):
    (tmp_path / "report.json").write_text(text)
    with pytest.raises(InputError, match=message) as caught:
        Report.load(tmp_path)
    assert "report.json" in str(caught.value)


def test_a_report_that_is_not_text_is_refused_with_its_path(tmp_path):
    (tmp_path / "report.json").write_bytes(b'{"title": "\xff"}')
    with pytest.raises(InputError, match=r"report\.json: not JSON .*run the audit again"):
        Report.load(tmp_path)


@pytest.mark.parametrize("kept", [0, 4, 300])
def test_a_torn_table_is_refused_with_its_path(tmp_path, kept):
    sample().save(tmp_path)
    table = tmp_path / "tables" / "ranking.pairs.parquet"
    table.write_bytes(table.read_bytes()[:kept])
    with pytest.raises(InputError, match=r"ranking\.pairs\.parquet: not a readable table .*copy it again"):
        Report.load(tmp_path)


def test_a_missing_report_or_table_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="Expected the folder that audit or trace wrote"):
        Report.load(tmp_path)
    (tmp_path / "run.json").write_text("{}")
    with pytest.raises(InputError, match="give its command again"):
        Report.load(tmp_path)
    sample().save(tmp_path)
    (tmp_path / "tables" / "ranking.pairs.parquet").unlink()
    with pytest.raises(InputError, match="copy the whole run directory"):
        Report.load(tmp_path)


def test_a_table_that_is_not_declared_is_a_bug():
    section = Section(name="s", title="s", question="?", summary=".", estimates={})
    with pytest.raises(ValueError, match="not both declared and given"):
        Report.assemble("t", "q", MANIFEST, [SectionResult(section=section, tables={"extra": pd.DataFrame()})])


@pytest.mark.parametrize(
    ("text", "fires"),
    [
        ("ranking.accuracy<0.61", True),
        ("ranking.accuracy<0.6", False),
        ("ranking.accuracy<=0.6", True),
        ("ranking.accuracy.low < 0.55", True),
        ("ranking.accuracy.high>7e-1", False),
        ("ranking.accuracy >= .6", True),
    ],
)
def test_a_gate_compares_value_or_interval_end(text, fires):
    assert Gate.parse(text).fires(sample()) is fires


@pytest.mark.parametrize(
    "text", ["ranking.accuracy", "accuracy<0.5", "ranking.accuracy=0.5", "ranking.accuracy<a", "x.y<1e"]
)
def test_a_malformed_gate_shows_an_example(text):
    with pytest.raises(InputError, match="for instance"):
        Gate.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ranking.idealized<0.5", "one label a pair"),
        ("ranking.x<1", "it has:"),
        ("nothing.x<1", "the report has: ranking"),
    ],
)
def test_a_gate_on_a_missing_number_never_passes(text, message):
    with pytest.raises(InputError, match=message):
        Gate.parse(text).fires(sample())
