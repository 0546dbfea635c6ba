"""The page: whole, self-contained, escaped, and drawn by a real browser from the file system without a network."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from spinal_models import letters, tiny_model
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import Estimate, Report
from alignscope.dashboards.drawing import PALETTE
from alignscope.dashboards.figures import report_figures
from alignscope.dashboards.page import SHOWN_ROWS, render_page
from alignscope.diagnose.report import Finding, Manifest, Section, SectionResult
from report_samples import HOSTILE, audited


@pytest.fixture(scope="module")
def report() -> Report:
    return audited()


@pytest.fixture(scope="module")
def page(report) -> str:
    return render_page(report)


class Elements(HTMLParser):
    """Start tags with their attributes, and the visible text."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.hidden = False
        self.feed(text)

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attributes)))
        self.hidden = tag in ("script", "style")

    def handle_endtag(self, tag: str) -> None:
        self.hidden = False

    def handle_data(self, data: str) -> None:
        if not self.hidden:
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def test_it_answers_what_was_asked_found_how_sure_and_what_to_do(report, page):
    text = Elements(page).text
    for heading in ("What was asked", "What was found", "How sure", "What to do"):
        assert heading in text
    assert " ".join(report.question.split()) in text
    for finding in report.findings:
        assert " ".join(finding.sentence.split()) in text
    assert "120 of 120 pairs were scored; none was set aside." in text
    assert "60 of 60 prompts were traced; none was set aside." in text
    assert report.manifest.command in text


def decided(n: int) -> list[dict]:
    return [{"prompt": f"p {i}:", "chosen": text, "rejected": text[::-1] + "x"} for i, text in enumerate(letters(n))]


def test_it_says_only_of_rows_that_were_used_that_they_were():
    texts = [*letters(60), *letters(10)]
    pairs = [dict(row, chosen=" ") if i == 3 else row for i, row in enumerate(decided(40))]
    models = [alignscope.wrap(tiny_model(blocks=3, scale=s, changed=2), tiny_tokenizer()) for s in (1.1, 1.0)]
    text = Elements(render_page(alignscope.audit(*models, pairs, prompts=texts))).text
    assert "39 of 40 pairs were scored; not used: 1 a completion is empty." in text
    assert "60 of 70 prompts were traced; not used: 10 repeat the tokens of another." in text
    alone = Elements(render_page(alignscope.audit(*models, pairs, prompts=texts, only="spinal"))).text
    assert "pairs were scored" not in alone


def test_every_estimate_stands_there_with_its_interval_or_its_reason(report, page):
    elements = Elements(page)
    anchors = {attributes.get("id") for _, attributes in elements.tags}
    for section in report.sections:
        for name, estimate in section.estimates.items():
            assert f"estimate-{section.name}-{name}".replace("_", "-") in anchors
            assert " ".join(estimate.label.split()) in elements.text
            if estimate.reason:
                assert " ".join(estimate.reason.split()) in elements.text


def test_links_lead_somewhere(page):
    elements = Elements(page)
    anchors = {attributes.get("id") for _, attributes in elements.tags}
    links = [attributes["href"] for tag, attributes in elements.tags if tag == "a"]
    assert len(links) > 10
    assert [link for link in links if link is None or not link.startswith("#") or link[1:] not in anchors] == []


def test_nothing_is_fetched(page):
    for tag, attributes in Elements(page).tags:
        assert tag not in ("link", "img", "iframe", "object", "embed")
        assert "src" not in attributes
    style = page[page.index("<style>") : page.index("</style>")]
    assert "url(" not in style
    assert "@import" not in style


def test_every_figure_has_its_place_its_title_and_how_to_read_it(report, page):
    figures = report_figures(report)
    assert len(figures) >= 10
    embedded = json.loads(re.search(r'id="figures-json">(.*?)</script>', page, re.S)[1])
    assert len(embedded) == len(figures) == page.count('class="plot"')
    text = Elements(page).text
    for figure in figures.values():
        assert " ".join(figure.layout.meta["how_to_read"].split()) in text
        assert figure.layout.height > 100


def test_a_long_table_is_cut_and_says_where_the_rest_is(report, page):
    n = len(report.to_frame("ranking.pairs"))
    assert n > SHOWN_ROWS
    assert f"The first {SHOWN_ROWS} of {n} rows" in Elements(page).text
    assert "tables/ranking.pairs.parquet" in page


def test_text_from_files_stays_text():
    hostile = audited(name=HOSTILE, only=["ranking"])
    page = render_page(hostile)
    assert HOSTILE not in page
    assert "&lt;script&gt;document.title=" in page
    scripts = [attributes for tag, attributes in Elements(page).tags if tag == "script"]
    assert len(scripts) == 4
    assert "\\u003c" in page  # inside the figures' JSON too


def test_missing_numbers_say_why_and_are_no_zeros():
    report = audited(votes=False, only=["ranking"])
    text = Elements(render_page(report)).text
    assert "no preference strength: one label a pair" in text
    assert "numbers could not be had" in text
    assert "nan" not in re.findall(r"[a-z]+", text.lower())


def test_the_worst_finding_decides_the_verdict():
    def page_with(*severities: str) -> str:
        estimate = Estimate(label="a number", value=1.0, level=None, n=1, method="exact")
        section = Section(name="s", title="S", question="?", summary=".", estimates={"x": estimate})
        findings = tuple(
            Finding(severity=s, section="s", sentence=f"{s} here.", rests_on=["s.x"], next_step=f"Mend the {s}.")
            for s in severities
        )
        manifest = Manifest(
            command="c", models={}, data={}, settings={}, packages={}, device="cpu", dtype="float32", seed=0,
            wall_seconds=1.0,
        )  # fmt: skip
        report = Report.assemble("t", "q", manifest, [SectionResult(section=section, findings=findings)])
        return Elements(render_page(report)).text

    assert "1 alarm and 2 notices: read them before using" in page_with("notice", "alarm", "notice")
    assert "No alarm, 1 notice" in page_with("notice", "info")
    text = page_with("info")
    assert "No alarm and no notice." in text
    assert "no finding asks for an action" in text
    steps = page_with("notice", "notice", "info")
    assert steps.count("Mend the notice.") == 3  # once in short, once beside each finding


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.skip("no chromium here: the page is not drawn (apt-get install chromium)")
    return found


def drawn(browser: str, file: Path, profile: Path, *options: str) -> tuple[str, str]:
    """The page's DOM after its scripts ran, and what the browser logged."""
    done = subprocess.run(
        [
            browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
            "--disable-background-networking", "--disable-component-update", "--disable-sync",
            "--proxy-server=127.0.0.1:9", f"--user-data-dir={profile}", "--virtual-time-budget=30000",
            "--enable-logging=stderr", *options, "--dump-dom", file.as_uri(),
        ],
        capture_output=True, text=True, timeout=180, check=True,
    )  # fmt: skip
    return done.stdout, done.stderr


@pytest.mark.parametrize(("scheme", "theme"), [("1", "light"), ("0", "dark")])
def test_a_browser_draws_all_figures_offline_in_both_themes(browser, page, report, tmp_path, scheme, theme):
    file = tmp_path / "report.html"
    file.write_text(page, encoding="utf-8")
    dom, log = drawn(browser, file, tmp_path / "profile", f"--blink-settings=preferredColorScheme={scheme}")
    assert dom.count(f'data-drawn="{theme}"') == len(report_figures(report))
    assert 'class="main-svg"' in dom
    assert "CONSOLE" not in log
    ink = next(iter(PALETTE)) if theme == "light" else next(iter(PALETTE.values()))
    red, green, blue = (int(ink[i : i + 2], 16) for i in (1, 3, 5))
    assert f"rgb({red}, {green}, {blue})" in dom


def test_a_hostile_name_runs_nothing_in_a_browser(browser, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(render_page(audited(name=HOSTILE, only=["ranking"])), encoding="utf-8")
    dom, log = drawn(browser, file, tmp_path / "profile")
    assert "<title>broken" not in dom
    assert dom.count('data-drawn="') > 3
    assert "CONSOLE" not in log
