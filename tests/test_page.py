"""The page: whole, self-contained, escaped, and drawn by a real browser from the file system without a network."""

import html
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pandas as pd
import pytest
from spinal_models import letters, tiny_model
from tiny_tokenizer import tiny_tokenizer

import alignscope
from alignscope import Estimate, Report
from alignscope.dashboards.drawing import PALETTE
from alignscope.dashboards.figures import report_figures
from alignscope.dashboards.page import BROWSED_COLUMNS, BROWSED_OBJECTIVES, BROWSED_ROWS, SHOWN_ROWS, render_page
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
    assert not any("title" in made["layout"] for made in embedded.values())  # the page's own headings say it
    for figure in figures.values():
        assert f"<h3>{html.escape(figure.layout.meta['title'], quote=False)}</h3>" in page
        assert " ".join(figure.layout.meta["how_to_read"].split()) in text
        assert figure.layout.height > 100


def test_a_long_table_is_cut_and_says_where_the_rest_is(report, page):
    n = len(report.to_frame("ranking.pairs"))
    assert n > SHOWN_ROWS
    assert f"The first {SHOWN_ROWS} of {n} rows" in Elements(page).text
    assert "tables/ranking.pairs.parquet" in page


def pairs_report(section: str, pairs: pd.DataFrame) -> Report:
    """A report of one section that holds a table of pairs and nothing else."""
    made = Section(name=section, title="S", question="?", summary=".", estimates={}, tables={"pairs": "a pair"})
    manifest = Manifest(
        command="c", models={}, data={}, settings={}, packages={}, device="cpu", dtype="float32", seed=0,
        wall_seconds=1.0,
    )  # fmt: skip
    return Report.assemble("t", "q", manifest, [SectionResult(section=made, tables={"pairs": pairs})])


def browsed(page: str) -> dict[str, dict]:
    return json.loads(re.search(r'id="browsed-json">(.*?)</script>', page, re.S)[1])


def test_tables_of_pairs_are_browsed_and_no_others(report, page):
    assert set(browsed(page)) == {
        f"table-{section.name}-pairs"
        for section in report.sections
        if section.name in ("ranking", "rewards", "objectives") and len(report.to_frame(f"{section.name}.pairs"))
    }
    assert "table-ranking-pairs" in browsed(page)
    pairs = pd.DataFrame({"pair_id": ["a"]})
    assert browsed(render_page(pairs_report("spinal", pairs))) == {}
    assert browsed(render_page(pairs_report("ranking", pairs.iloc[:0]))) == {}


def test_browsed_values_are_those_of_the_table(report, page):
    table = report.to_frame("ranking.pairs")
    columns = browsed(page)["table-ranking-pairs"]["columns"]
    assert {"pair_id", "prompt_id", "difficulty_class", "ranked_right", "loss"} <= {c["name"] for c in columns}
    assert len(columns) == BROWSED_COLUMNS
    for column in columns:
        values = table[column["name"]]
        assert column["numeric"] == pd.api.types.is_numeric_dtype(values)
        if column["numeric"]:
            read = [math.nan if v is None else float(v) for v in column["values"]]
            assert read == pytest.approx(values.tolist(), rel=1e-5, nan_ok=True)
        else:
            assert column["values"] == values.astype(str).tolist()


def test_what_is_missing_or_infinite_can_stand_in_json():
    pairs = pd.DataFrame(
        {"pair_id": ["a", None, "c"], "loss": [math.inf, math.nan, -math.inf], "tie": [True, False, True]}
    )
    columns = browsed(render_page(pairs_report("ranking", pairs)))["table-ranking-pairs"]["columns"]
    assert [c["values"] for c in columns] == [["a", None, "c"], ["Infinity", None, "-Infinity"], ["yes", "no", "yes"]]
    assert [c["numeric"] for c in columns] == [False, True, False]


def test_columns_that_hold_nothing_are_left_out():
    pairs = pd.DataFrame({"pair_id": ["a"], "explicit_right": [math.nan], "loss": [1.0]})
    columns = browsed(render_page(pairs_report("ranking", pairs)))["table-ranking-pairs"]["columns"]
    assert [c["name"] for c in columns] == ["pair_id", "loss"]


def test_of_many_objectives_losses_and_views_of_a_few_are_browsed():
    names = [f"other_{i}" for i in range(9)] + ["orpo", "dpo"]
    parts = ("loss", "view", "pull_chosen", "pull_rejected")
    pairs = pd.DataFrame({"pair_id": ["a"]} | {f"{name}_{part}": [1.0] for name in names for part in parts})
    page = render_page(pairs_report("objectives", pairs))
    found = [c["name"] for c in browsed(page)["table-objectives-pairs"]["columns"]]
    assert found[:5] == ["pair_id", "dpo_loss", "dpo_view", "orpo_loss", "orpo_view"]
    assert len(found) == 1 + 2 * BROWSED_OBJECTIVES
    assert "all rows and 17 of 45 columns" in Elements(page).text
    assert "tables/objectives.pairs.parquet" in page


def test_only_the_first_rows_of_many_are_embedded_and_the_page_says_so():
    n = BROWSED_ROWS + 1
    page = render_page(pairs_report("ranking", pd.DataFrame({"pair_id": [f"pair-{i}" for i in range(n)]})))
    assert len(browsed(page)["table-ranking-pairs"]["columns"][0]["values"]) == BROWSED_ROWS
    assert "the first 5,000 of 5,001 rows and 1 of 1 columns" in Elements(page).text
    whole = render_page(pairs_report("ranking", pd.DataFrame({"pair_id": [f"pair-{i}" for i in range(BROWSED_ROWS)]})))
    assert "This page holds" not in Elements(whole).text


def test_text_from_files_stays_text():
    hostile = audited(name=HOSTILE, only=["ranking"])
    page = render_page(hostile)
    assert HOSTILE not in page
    assert "&lt;script&gt;document.title=" in page
    scripts = [attributes for tag, attributes in Elements(page).tags if tag == "script"]
    assert len(scripts) == 5
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


MEASURE = """<script>(function measure() {
  const figures = Array.from(document.querySelectorAll("figure"));
  if (figures.some((figure) => !figure.querySelector(".modebar"))) { setTimeout(measure, 50); return; }
  const box = (figure, what) => {
    const found = figure.querySelector(what).getBoundingClientRect();
    return [found.top, found.bottom];
  };
  const cut = (heading) => heading.scrollWidth - heading.clientWidth;
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(figures.map((figure) => ({
    title: box(figure, "h3"), drawing: box(figure, ".main-svg"), buttons: box(figure, ".modebar"),
    text: box(figure, "figcaption"), cut: cut(figure.querySelector("h3")),
  })));
  document.body.append(result);
})();</script>"""


@pytest.mark.parametrize("width", [390, 1080])
def test_the_buttons_of_a_figure_cover_neither_its_title_nor_its_marks_at_any_width(browser, page, tmp_path, width):
    made = page.replace("</style>", f"html {{ width: {width}px }}</style>", 1).replace("</body>", MEASURE + "</body>")
    (tmp_path / "report.html").write_text(made, encoding="utf-8")
    dom, _ = drawn(browser, tmp_path / "report.html", tmp_path / "profile")
    found = json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)[1]))
    assert len(found) == page.count("<figure>")
    for figure in found:
        parts = [figure[part] for part in ("title", "drawing", "buttons", "text")]
        assert all(above[1] <= below[0] + 0.5 for above, below in pairwise(parts)), figure
        assert figure["buttons"][1] > figure["buttons"][0]
        assert figure["cut"] <= 0


def test_a_hostile_name_runs_nothing_in_a_browser(browser, tmp_path):
    file = tmp_path / "report.html"
    file.write_text(render_page(audited(name=HOSTILE, only=["ranking"])), encoding="utf-8")
    dom, log = drawn(browser, file, tmp_path / "profile")
    assert "<title>broken" not in dom
    assert dom.count('data-drawn="') > 3
    assert '<td class="">&lt;script&gt;document.title=' in dom  # in the browser of pairs, by textContent
    assert "CONSOLE" not in log


DRIVER = """<script>(function () {
  const place = document.querySelector(".browser"), filter = place.querySelector("input"), found = [];
  const [back, on] = place.querySelectorAll(".pages button");
  const heads = Array.from(place.querySelectorAll("th"));
  const read = () => ({
    ids: Array.from(place.querySelectorAll("tbody tr")).map((row) => row.cells[0].textContent),
    status: place.querySelector(".status").textContent,
    problem: place.querySelector(".problem").textContent,
    sort: heads.map((head) => head.getAttribute("aria-sort")),
    turns: [!back.disabled, !on.disabled],
    sizes: Array.from(place.querySelectorAll("tbody td:last-child")).map((cell) => cell.textContent),
    focusable: place.querySelectorAll("button:not(:disabled), input, [tabindex='0']").length,
  });
  STEPS.forEach(([what, which]) => {
    if (what === "filter") { filter.value = which; filter.dispatchEvent(new Event("input")); }
    if (what === "sort") heads.find((head) => head.textContent === which).querySelector("button").click();
    if (what === "turn") (which === "next" ? on : back).click();
    found.push(read());
  });
  const result = document.createElement("pre");
  result.id = "result";
  result.textContent = JSON.stringify(found);
  document.body.append(result);
})();</script>"""


STEPS = {
    "start": ("filter", ""),
    "second page": ("turn", "next"),
    "first page": ("turn", "previous"),
    "ascending": ("sort", "loss"),
    "descending": ("sort", "loss"),
    "unsorted": ("sort", "loss"),
    "by id": ("sort", "pair_id"),
    "by id, descending": ("sort", "pair_id"),
    "part of an id": ("filter", "PAIR-1"),
    "class and number": ("filter", "flipp loss<0.5"),
    "at least": ("filter", "loss>=2.75"),
    "class alone": ("filter", "difficulty_class=hard loss>2.6"),
    "half a term": ("filter", "loss>"),
    "nothing": ("filter", "no such pair"),
    "missing": ("filter", "pair-2"),
    "missing, ascending": ("sort", "loss"),
    "missing, descending": ("sort", "loss"),
}
SIZES = [0.5, -1.23456, 1234.5, 23456.7, 1e-7, -2.0, 1e6, math.inf, math.nan]
IDS = [f"pair-{i}" for i in range(30)]


@pytest.fixture(scope="module")
def driven(browser, tmp_path_factory) -> dict[str, dict]:
    """What the browser of 30 pairs shows after each step. The loss falls from 2.9 by tenths; the last two have none."""
    loss = [2.9 - i / 10 for i in range(28)] + [math.nan] * 2
    kinds = ["hard" if i % 3 else "flippable" for i in range(30)]
    sizes = SIZES + [1.0] * (30 - len(SIZES))
    pairs = pd.DataFrame({"pair_id": IDS, "difficulty_class": kinds, "loss": loss, "size": sizes})
    folder = tmp_path_factory.mktemp("browser")
    page = render_page(pairs_report("ranking", pairs))
    script = DRIVER.replace("STEPS", json.dumps(list(STEPS.values())))
    (folder / "report.html").write_text(page.replace("</body>", script + "</body>"), encoding="utf-8")
    dom, log = drawn(browser, folder / "report.html", folder / "profile")
    assert "CONSOLE" not in log
    found = json.loads(html.unescape(re.search(r'<pre id="result">(.*?)</pre>', dom, re.S)[1]))
    return dict(zip(STEPS, found, strict=True))


def test_pairs_are_shown_by_pages(driven):
    start, second = driven["start"], driven["second page"]
    assert (start["ids"], start["status"]) == (IDS[:25], "shown 30 of 30, page 1 of 2")
    assert (second["ids"], second["status"]) == (IDS[25:], "shown 30 of 30, page 2 of 2")
    assert driven["first page"] == start


def test_everything_in_the_browser_of_pairs_can_take_the_focus(driven):
    """The filter, a button a header, the scrolled region, and the one turn that leads somewhere."""
    assert driven["start"]["turns"] == [False, True]
    assert driven["second page"]["turns"] == [True, False]
    assert driven["start"]["focusable"] == 1 + 4 + 1 + 1


def test_a_header_sorts_up_then_down_then_not(driven):
    up, down, unsorted = driven["ascending"], driven["descending"], driven["unsorted"]
    assert (up["ids"], up["sort"]) == (IDS[27:2:-1], ["none", "none", "ascending", "none"])
    assert (down["ids"], down["sort"]) == (IDS[:25], ["none", "none", "descending", "none"])
    assert (unsorted["ids"], unsorted["sort"]) == (IDS[:25], ["none"] * 4)


def test_ids_sort_by_the_numbers_in_them(driven):
    assert driven["by id"]["ids"] == IDS[:25]  # pair-2 before pair-10
    down = driven["by id, descending"]
    assert (down["ids"], down["sort"][0]) == (IDS[:4:-1], "descending")


def test_pairs_without_a_value_come_last_in_both_directions(driven):
    up, down = driven["missing, ascending"]["ids"], driven["missing, descending"]["ids"]
    assert up[-2:] == down[-2:] == ["pair-28", "pair-29"]
    assert up[:-2] == [*IDS[27:19:-1], "pair-2"] == down[-3::-1]


def test_filters_are_parts_of_texts_and_comparisons_that_hold_together(driven):
    assert driven["part of an id"]["ids"] == [*IDS[19:9:-1], "pair-1"]
    assert driven["class and number"]["ids"] == ["pair-27"]
    assert driven["class and number"]["status"] == "shown 1 of 30, page 1 of 1"
    assert driven["at least"]["ids"] == ["pair-1", "pair-0"]
    assert driven["class alone"]["ids"] == ["pair-2", "pair-1"]
    assert (driven["nothing"]["ids"], driven["nothing"]["status"]) == ([], "shown 0 of 30, page 1 of 1")


def test_a_term_without_its_number_is_named_and_hides_nothing(driven):
    half = driven["half a term"]
    assert (half["problem"], half["status"]) == ("not understood: loss>", "shown 30 of 30, page 1 of 2")
    assert driven["nothing"]["problem"] == ""


def test_the_browser_of_pairs_writes_numbers_as_the_page_does(driven):
    assert driven["start"]["sizes"][:9] == ["0.5", "−1.235", "1,235", "23,457", "1.00e−7", "−2", "1,000,000", "∞", "–"]
