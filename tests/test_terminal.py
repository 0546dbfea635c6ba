"""The report in a terminal: nothing is cut or torn apart, however narrow it is."""

from io import StringIO

import pytest
from rich.console import Console

from alignscope import Estimate, Report
from alignscope.cli.terminal import print_report
from alignscope.diagnose.report import Finding, Manifest, Section, SectionResult

LONG = "accuracy_implicit_normalised_held_out"  # as a shifted set makes them
WHY = "soft labels: shares of votes have no likelihood of single votes (--as-they-are)"
FEW = "12 clusters (prompts): an interval needs 20"
MANIFEST = Manifest(command="c", models={}, data={}, settings={}, packages={}, device="cpu", dtype="float32", seed=0,
                    wall_seconds=0.0)  # fmt: skip


def share(
    value: float | None = 0.78125, *, known: bool = True, reason: str | None = None, unit: str = "share"
) -> Estimate:
    ends = {"low": -0.123456, "high": 0.987654} if known else {}
    label = "the share of pairs on which something holds that needs some words"
    return Estimate(label=label, value=value, n=1264, n_clusters=128, unit=unit, method="m", reason=reason, **ends)


def shown(width: int, estimates: dict[str, Estimate] | None = None) -> list[str]:
    """The lines of a report with these estimates."""
    estimates = estimates or {
        LONG: share(),
        "chosen": share(unit="nats a completion"),
        "first": share(None, known=False, reason=WHY),
        "second": share(None, known=False, reason=WHY),
        "few": share(known=False, reason=FEW),
    }
    section = Section(
        name="s", title="Title", question="A question?", summary=".", estimates=estimates, warnings=["a warning " * 20]
    )
    finding = Finding(severity="notice", section="s", sentence="found " * 40, rests_on=[], next_step="do this " * 30)
    file = StringIO()
    report = Report.assemble("t", "q", MANIFEST, [SectionResult(section=section, findings=(finding,))])
    print_report(report, Console(file=file, width=width))
    return [line.rstrip() for line in file.getvalue().splitlines()]


def after(lines: list[str], mark: str) -> list[str]:
    """The line that begins with this mark, and those under it that go on with its text."""
    first = next(i for i, line in enumerate(lines) if line.strip().startswith(mark))
    rest = lines[first + 1 :]
    indented = next((i for i, line in enumerate(rest) if not line.startswith(" " * 6)), len(rest))
    return [lines[first], *rest[:indented]]


@pytest.mark.parametrize("width", [80, 100, 120, 200])
def test_names_and_intervals_are_whole_and_no_line_is_too_long(width):
    lines = shown(width)
    assert max(map(len, lines)) <= width
    (row,) = [line for line in lines if line.startswith(LONG)]
    assert row.split()[1] == "0.7812"
    assert "[-0.1235, 0.9877]" in row
    assert "1264 (128)" in row
    assert sum("[-0.1235, 0.9877]" in line for line in lines) == 2


@pytest.mark.parametrize("width", [80, 120])
def test_a_unit_stands_with_its_number(width):
    lines = shown(width, {"chosen": share(unit="nats a completion"), "excess_nll": share(unit="nats")})
    assert any(line.startswith("excess_nll") and "0.7812 nats" in line for line in lines)
    at = next(i for i, line in enumerate(lines) if line.startswith("chosen"))
    assert "0.7812 nats a" in lines[at]
    assert "completion" in lines[at] + lines[at + 1]


@pytest.mark.parametrize("width", [60, 80, 120])
def test_a_reason_is_told_whole_and_once_for_all_that_lack_a_number(width):
    lines = shown(width)
    text = " ".join(" ".join(lines).split())
    assert text.count(f"no value first, second: {WHY}") == text.count(WHY) == 1
    assert text.count(f"no interval few: {FEW}") == 1
    assert any(line.split()[:2] == ["first", "-"] for line in lines)


@pytest.mark.parametrize("mark", ["notice", "->", "warning"])
def test_further_lines_of_a_sentence_do_not_run_under_its_mark(mark):
    assert len(after(shown(80), mark)) > 2


def test_a_name_longer_than_the_terminal_goes_on_below_and_loses_no_letter():
    name = "drop_explicit_" + "x" * 60 + "_end"
    lines = shown(80, {name: share()})
    assert max(map(len, lines)) <= 80
    top = next(i for i, line in enumerate(lines) if line.startswith("drop_explicit"))
    assert "".join(line.split()[0] for line in lines[top : top + 3]).startswith(name)
    assert "[-0.1235, 0.9877]" in lines[top]


def test_text_in_brackets_is_no_markup():
    assert any("[bold]" in line for line in shown(120, {"a": share(None, known=False, reason="not [bold] at all")}))


@pytest.mark.parametrize(("width", "told"), [(80, False), (100, False), (120, True)])
def test_labels_are_told_where_they_have_room(width, told):
    assert any("the share of pairs" in line for line in shown(width)) == told
