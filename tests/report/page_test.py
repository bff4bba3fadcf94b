"""The page: whole, escaped, without scripts and requests; every number leads to its runs."""

import collections
import html
import re
import warnings
from html.parser import HTMLParser

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.evaluate import comparison
from mbrl_jax.experiment.members import Members
from mbrl_jax.report import figures, page, records, report, tables
from mbrl_jax.report.html import Html, escape, join, tag
from tests import browser
from tests.report import runs
from tests.report.numbers_test import lane

EVIL = "<script>alert(1)<!-- & \"'ü#~`|*_ $x$"


class Page(HTMLParser):
    """Elements, ids, links and addresses of a document; fails where elements do not close."""

    VOID = ("meta", "img", "br", "hr", "link", "input")

    def __init__(self, text):
        super().__init__()
        self.tags, self.ids, self.links, self.open = collections.Counter(), [], [], []
        self.attributes, self.tables, self.cells = [], [], []
        self.feed(text)
        assert self.open == [], self.open

    def handle_starttag(self, name, attributes):
        given = dict(attributes)
        self.tags[name] += 1
        self.attributes += given.items()
        self.ids += [given["id"]] if "id" in given else []
        if name == "a":
            self.links.append(given["href"])
        if name == "td":
            self.cells.append([given.get("class") or "", False, ""])
        elif name == "a" and "td" in self.open:
            self.cells[-1][1] = True
        if name not in self.VOID:
            self.open.append(name)

    def handle_startendtag(self, name, attributes):
        self.handle_starttag(name, attributes)
        if name not in self.VOID:
            self.handle_endtag(name)

    def handle_endtag(self, name):
        assert self.open.pop() == name

    def handle_data(self, data):
        if "td" in self.open:
            self.cells[-1][2] += data


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A report of everything at once: games, groups, quality, pictures, damage, odd names."""
    root = tmp_path_factory.mktemp("runs")
    paths = []
    for game, level in (("Pong", 0.2), ("Breakout", 0.5)):
        for rewards in ("shifted", "aligned"):
            values = [runs.score_of(game, level + 0.1 * i) for i in range(3)]
            settings = (f"{game}-v5", f"behaviour.rewards={rewards}")
            quality = {"step": 105_000, "seeds": [lane(), lane(2.0), lane(1.5)]}
            path = root / f"{game} {rewards}"
            runs.write(path, runs.atari(*settings), values, greedy=values, quality=quality)
            paths.append(path)
    runs.write_strips(paths[0])
    inside = (("behaviour.entropy", (0.01, 0.02)),)
    evil = root / EVIL
    paths.append(runs.write(evil, runs.catch(f"name={EVIL}"), [1, 2], Members(0, 1, inside)))
    (evil / "open_loop.png").write_bytes(b"\x89PNG no picture")
    frozen = {"0": {"step": 30, "metric": EVIL}}
    half = runs.catch("model.core=gru")
    paths.append(runs.write(root / "half", half, [1.0], until=0.5, frozen=frozen))
    (root / "half" / "quality.json").write_text("[")
    (root / "broken").mkdir()
    (root / "broken" / "config.json").write_text(EVIL)
    paths.append(root / "broken")
    found = report.make_report(records.read_runs(paths), f"T {EVIL}", f"python {EVIL}")
    return root, found


def test_nothing_of_others_becomes_markup(made):
    _, found = made
    parsed = Page(found.html)
    assert parsed.tags["script"] == 0 and "<!--" not in found.html
    assert "alert(1)" in found.html and html.escape("<script>alert(1)<!-- & \"'ü#") in found.html
    names = {name for name, _ in parsed.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"srcdoc", "action"}
    assert not any(str(value).lower().startswith("javascript") for _, value in parsed.attributes)


def test_nothing_is_asked_of_anybody(made):
    _, found = made
    parsed = Page(found.html)
    assert ("content", page.POLICY) in parsed.attributes
    assert parsed.tags["link"] == 0 and parsed.tags["iframe"] == 0
    assert all(link.startswith("#") for link in parsed.links)
    sources = [value for name, value in parsed.attributes if name in ("src", "href", "xlink:href")]
    assert all(value.startswith(("#", "data:image/png;base64,")) for value in sources)
    outside = re.sub(r'xmlns(:xlink)?="[^"]*"', "", found.html)
    assert "url(http" not in outside and "@import" not in outside and "://" not in outside


def test_every_link_has_a_place_and_every_place_one_name(made):
    parsed = Page(made[1].html)
    assert len(parsed.ids) == len(set(parsed.ids))
    assert {link[1:] for link in parsed.links} <= set(parsed.ids)


def test_every_number_leads_to_where_it_comes_from(made):
    parsed = Page(made[1].html)
    numbers = [cell for cell in parsed.cells if not cell[0] and re.search(r"\d", cell[2])]
    assert len(numbers) > 80
    # Random play and a human have 0 and 1 by definition.
    assert all(linked or text in ("0", "1") for _, linked, text in numbers)
    runs_of = {i for i in parsed.ids if re.fullmatch(r"runs-[A-Z]-\d+", i)}
    linked = {link[1:] for link in parsed.links}
    assert len(runs_of) == 7 and runs_of <= linked


def test_all_parts_are_there(made):
    root, found = made
    text = html.unescape(found.html)
    for words in (
        *("7 runs: 4 finished, 2 stopped, 1 unreadable", "Aggregates over tasks"),
        *("Probability of improvement", "Beside published systems", "Learning curves"),
        *("Ends of episodes and reconstruction", "What differs", "Where the numbers come from"),
        *("performance profiles, greedy episodes", "calibration of the discount"),
        *("unknown: no experiment of this name", "quality.json is damaged"),
        *(f"{root / 'broken'} cannot be read", "so far: step 50 of 100"),
    ):
        assert words in text, words
    parsed = Page(found.html)
    assert (
        parsed.tags["img"] == 1 and parsed.tags["details"] == 5 + 1
    )  # groups, and the many fields that differ
    assert "open_loop.png is no picture that can be shown" in text
    assert parsed.tags["svg"] == 3 + 5 + 3 + 2 * 3


def test_the_markdown_has_the_same_tables_and_no_markup_of_others(made):
    text = made[1].markdown
    assert text.startswith("# T \\<script\\>alert(1)\\<!-- \\& ")
    for block in re.findall(r"(?:^\|.*\n)+", text, flags=re.M):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in block.splitlines()}) == 1
    assert "## Scores" in text and "## Beside published systems" in text
    assert re.search(r"\| Pong-v5 +\|.*\| +3 \| +-10.11 \[", text)
    assert all(c.isprintable() for c in text.replace("\n", ""))


@browser.needed
@pytest.mark.parametrize("dark", [False, True])
def test_a_browser_has_nothing_to_complain_of(made, tmp_path, dark):
    path, _ = report.write_report(made[1], tmp_path / "ü #a.html")
    picture = tmp_path / "page.png"
    shown = browser.open_page(path.as_uri(), tmp_path, picture, (1200, 900), dark=dark)
    assert shown.console == []
    assert "Where the numbers come from" in shown.dom and picture.stat().st_size > 20_000


@browser.needed
def test_the_policy_would_stop_what_slips_through(made, tmp_path):
    bad = "<script>document.title = 'owned'</script><img src='https://example.org/x.png'>"
    broken = made[1].html.replace("</body>", f"{bad}</body>")
    (tmp_path / "bad.html").write_text(broken)
    shown = browser.open_page((tmp_path / "bad.html").as_uri(), tmp_path)
    assert "<title>owned" not in shown.dom
    assert sum("Content Security Policy" in line for line in shown.console) >= 2


# ------------------------------------------------------------------------------------------- parts


def test_text_is_escaped_and_markup_is_not():
    assert tag("p", "<b>", class_="a") == '<p class="a">&lt;b&gt;</p>'
    assert tag("p", tag("b", 1), id=None) == "<p><b>1</b></p>"
    assert join(["<", Html("<br>")], "&") == "&lt;&amp;<br>"
    assert escape("a\x1b[0m\u202e") == r"a\x1b[0m\u202e"
    assert tag("meta", name="x", http_equiv='"') == '<meta name="x" http-equiv="&quot;">'


@pytest.mark.parametrize(
    "value, text",
    [
        *((0, "0.00"), (0.5, "0.50"), (-12.345, "-12.35"), (123.4, "123"), (12345.6, "12,346")),
        *((0.0123, "0.012"), (1e-7, "1e-07"), (None, "–"), (float("nan"), "–")),
    ],
)
def test_numbers_have_digits_that_one_reads(value, text):
    assert tables.number_text(value) == text


def test_long_tables_are_folded():
    rows = tuple((tables.text_cell(i),) for i in range(41))
    table = tables.Table("T", ("x",), rows)
    assert Page(page.section("n", "title", table).content).tags["details"] == 1
    assert Page(page.section("n", "T", table).content).tags["details"] == 0
    assert "<h3>T</h3>" in page.section("n", "x", table._replace(rows=rows[:40])).content


def test_markdown_shows_text_as_it_is():
    assert tables.plain_markdown("a_b |x| <i> *y* _z_") == r"a_b \|x\| \<i\> \*y\* \_z\_"


def test_a_figure_keeps_its_names_and_colours_to_itself():
    line = comparison.Line("A", 1, [0, 1], [0, 1])
    pair = [figures.svg(comparison.draw_lines([line], "x < y", "漢"), "la<bel") for _ in range(2)]
    for made in pair:
        parsed = Page(made)
        assert {"style", "script", "metadata"}.isdisjoint(parsed.tags)
        assert "var(--g1)" in made and "var(--ink)" in made and "#c2410c" not in made
        assert "x &lt; y" in made and "漢" in made and 'aria-label="la&lt;bel"' in made
        used = set(re.findall(r"url\(#([^)]*)\)", made)) | set(re.findall(r'href="#([^"]*)"', made))
        assert used == set(parsed.ids) and used
    assert not set(Page(pair[0]).ids) & set(Page(pair[1]).ids)


def test_letters_that_a_font_lacks_are_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = comparison.Line("\U0001f600 $x^{", 0, [0.0], [1.0])
        figures.svg(comparison.draw_lines([line, line], "x", "y"), "")


def test_large_pictures_are_shrunk_and_others_refused(tmp_path):
    import numpy as np
    from PIL import Image

    noise = np.random.default_rng(0).integers(0, 255, (200, 1100, 3), np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    assert len(figures._small_png(tmp_path / "a.png", 100_000)) < 100_000
    runs.write_strips(tmp_path)
    with Image.open(tmp_path / "open_loop.png") as small:
        size = small.size
    shown = figures.picture(tmp_path / "open_loop.png", "x")
    assert shown.startswith('<img src="data:image/png;base64,') and size == (60, 20)
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    Image.fromarray(noise[:1]).save(tmp_path / "c.png", "gif")
    for name in ("b.png", "c.png", "none.png"):
        with pytest.raises(ValueError, match="is no picture that can be shown"):
            figures.picture(tmp_path / name, "x")


def test_a_report_goes_to_html_only(tmp_path):
    found = report.Report("x", "y")
    with pytest.raises(ConfigError, match=r"must end in \.html"):
        report.write_report(found, tmp_path / "report.md")
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match="cannot be written"):
        report.write_report(found, tmp_path / "file" / "report.html")
    paths = report.write_report(found, tmp_path / "new" / "r.html")
    assert [path.read_text() for path in paths] == ["x", "y"] and paths[1].name == "r.md"
