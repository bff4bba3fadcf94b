"""The page in a browser: it shows the run, follows it, and complains of nothing."""

import email.utils
import re

import numpy as np
import pytest
from PIL import Image

from mbrl_jax.runs import files
from mbrl_jax.watch import server
from tests import browser, small
from tests.watch.workdirs import append, row, served, write_config

pytestmark = browser.needed

EVIL = "<script>throw 1</script><img src=x onerror=throw(2)>&amp;\"'"


@pytest.fixture
def open_page(tmp_path, tmp_path_factory, monkeypatch):
    """Open the page of `tmp_path`."""
    with served(tmp_path, monkeypatch) as ask:

        def open_(**options):
            return browser.open_page(ask.url, tmp_path_factory.mktemp("browser"), **options)

        open_.ask = ask
        yield open_


def text(page, ident):
    """The text of an element that has no element of its own name within it."""
    found = re.search(rf'<(\w+)[^>]* id="{ident}"[^>]*>(.*?)</\1>', page.dom, re.S)
    return re.sub(r"<[^>]+>", " ", found[2])


def rows(first, last, **metrics):
    return [row(step, seed, **metrics) for step in range(first, last) for seed in (0, 1)]


def test_a_run_that_trains_is_shown(tmp_path, open_page):
    write_config(tmp_path)
    append(tmp_path, rows(1, 20, model__loss=0.5, agent__frozen=0.0))
    with files.locked(tmp_path):
        page = open_page()
    assert page.console == []
    assert text(page, "name") == "drama_catch" and text(page, "state") == "training"
    assert f"<dd>19 of {small.catch().steps}</dd>" in page.dom
    assert page.dom.count('class="seed blue"') == 2 and page.dom.count('class="mean tone-0"') == 1
    assert "mean of 2 seeds, ± standard error" in text(page, "returns-key")
    titles = re.findall(r"<b><i>(\w+) </i>(\w+)</b>", page.dom)
    assert titles == [("model", "loss"), ("episode", "count"), ("agent", "frozen")]


def test_the_page_follows_the_run_without_being_loaded_again(tmp_path, open_page):
    write_config(tmp_path)
    asked = []

    def growing(path, replies=open_page.ask.server.replies):
        asked.append(path)
        if path == "/data.json":
            append(tmp_path, rows(len(asked), len(asked) + 1))
        return replies(path)

    open_page.ask.server.replies = growing
    page = open_page(milliseconds=20_000)
    assert page.console == [] and asked.count("/") == 1 and asked.count("/data.json") >= 3
    # The last answer may have come too late to be drawn.
    assert int(re.search(r"<dd>(\d+)", page.dom)[1]) >= len(asked) - 1


@pytest.mark.parametrize("begun", [False, True])
def test_a_run_without_rows_is_waited_for(tmp_path, open_page, begun):
    if begun:
        write_config(tmp_path)
    page = open_page()
    assert page.console == []
    assert text(page, "state") == "waiting for the first row"
    assert "There is no row of metrics yet" in text(page, "notes")
    assert "no episode has ended yet" in text(page, "returns")


def test_names_of_others_are_text(tmp_path, open_page):
    write_config(tmp_path, name=EVIL)
    append(tmp_path, rows(1, 4, **{EVIL: 1.0, f"model/{EVIL}": 2.0}))
    page = open_page()
    assert page.console == []
    assert "<script>throw" not in page.dom and "<img src=x" not in page.dom
    assert page.dom.count("&lt;script&gt;throw 1&lt;/script&gt;") >= 3


def test_frozen_seeds_damaged_lines_and_stopped_runs_are_said(tmp_path, open_page):
    write_config(tmp_path)
    append(
        tmp_path, [row(step, seed, agent__frozen=float(seed)) for step in (1, 2) for seed in (0, 1)]
    )
    append(tmp_path, ["no row"])
    said = text(open_page(), "notes")
    assert (
        "Seed 1 is frozen since step 1" in said
        and "damaged lines of metrics.jsonl that are left out: 1" in said
    )
    assert "Nobody trains here now" in said


def test_odd_numbers_are_drawn(tmp_path, open_page):
    write_config(tmp_path)
    odd = {"tiny": 1e-300, "huge": 1e300, "flat": 0.0, "minus": -5.0, "nothing": None}
    append(tmp_path, rows(1, 9, **odd))
    append(tmp_path, rows(9, 10, lonely=3.0))
    page = open_page()
    assert page.console == [] and "NaN" not in page.dom and "Infinity" not in page.dom
    assert page.dom.count("no value yet") == 1 and page.dom.count("metric") > 6


def test_a_server_that_is_gone_is_said(tmp_path, tmp_path_factory, monkeypatch):
    write_config(tmp_path)
    append(tmp_path, rows(1, 5))
    with served(tmp_path, monkeypatch) as ask:
        answers = []

        def then_gone(path, replies=ask.server.replies):
            answers.append(path)
            if answers.count("/data.json") > 1:
                raise ConnectionAbortedError
            return replies(path)

        ask.server.replies = then_gone
        page = browser.open_page(ask.url, tmp_path_factory.mktemp("browser"), milliseconds=9000)
    assert text(page, "state") == "no connection"
    assert "The server has not answered since" in text(page, "notes")
    assert "mean of 2 seeds" in text(page, "returns-key")  # what it said last


def test_it_is_dark_for_those_who_like_that_and_fits_narrow_windows(tmp_path, open_page):
    write_config(tmp_path)
    append(
        tmp_path, rows(1, 9, **{f"model/a_rather_long_name_of_a_loss_{i}": 1.0 for i in range(9)})
    )
    picture = tmp_path / "page.png"
    for dark, tone in ((False, 0xF5F6F8), (True, 0x14171C)):
        page = open_page(screenshot=picture, size=(500, 900), dark=dark)
        assert page.console == []
        pixels = np.asarray(Image.open(picture).convert("RGB"))
        assert tuple(pixels[-1, 0]) == tuple(tone.to_bytes(3))  # the page's edge
        assert (pixels[:, -4:] == pixels[-1, 0]).all()  # nothing reaches over it


def test_the_age_of_the_last_row_grows_while_nothing_else_changes(tmp_path, open_page, monkeypatch):
    write_config(tmp_path)
    append(tmp_path, rows(1, 5))
    written, dates = (tmp_path / "metrics.jsonl").stat().st_mtime, []

    def date(self, timestamp=None):
        dates.append(written + 600 * (1 + len(dates)))
        return email.utils.formatdate(dates[-1], usegmt=True)

    monkeypatch.setattr(server.Handler, "date_time_string", date)
    page = open_page(milliseconds=30_000)
    ages = [int(age) for age in re.findall(r"<dd>(?:\d+ h )?(\d+) min ago</dd>", page.dom)]
    hours = [int(age) for age in re.findall(r"<dd>(\d+) h \d+ min ago</dd>", page.dom)] or [0]
    assert page.console == [] and len(dates) > 8
    assert 60 * hours[0] + ages[0] >= 10 * (len(dates) - 2)


HAND = """
setTimeout(() => {
  document.querySelector(".metric").click();
  document.getElementById("log").click();
  document.querySelectorAll("#groups input")[1].click();
  const at = document.getElementById("returns").getBoundingClientRect();
  const point = { clientX: at.left + at.width / 2, clientY: at.top + 50, bubbles: true };
  document.getElementById("returns").dispatchEvent(new PointerEvent("pointermove", point));
}, 1000);
"""


def test_charts_answer_to_the_hand_and_stay_so_when_rows_come(tmp_path, open_page):
    write_config(tmp_path)
    for step in range(1, 9):
        append(tmp_path, rows(step, step + 1, model__loss=10.0**-step, behaviour__loss=1.0))
    replies = open_page.ask.server.replies

    def handled(path):
        found = replies(path)
        if path == "/data.json":
            append(tmp_path, rows(9, 10, model__loss=1e-9, behaviour__loss=1.0))
        return found._replace(body=found.body + HAND.encode()) if path == "/watch.js" else found

    open_page.ask.server.replies = handled
    picture = tmp_path / "page.png"
    page = open_page(screenshot=picture)
    assert page.console == []
    assert page.dom.count('class="card metric large"') == 1
    assert "<b><i>model </i>loss</b>" in page.dom and "<i>behaviour </i>" not in page.dom
    ticks = re.findall(r'text-anchor="end">(1e-\d)</text>', page.dom)
    assert {"1e-5", "1e-7"} <= set(ticks)  # powers of ten
    tip = re.search(r'<div class="tip"[^>]*>([^<]*)</div>', page.dom)[1]
    x, mean = tip.split("\n")
    assert re.fullmatch(r"\d+ steps", x)
    assert float(mean) == pytest.approx(0.5 + (int(x.split()[0]) + 1) / 1000, abs=0.006)


# ------------------------------------------------------------------------------------- many runs

FRAME = b"""<!doctype html><iframe id=f src="PAGE" width=390 height=900></iframe><p id=width></p>
<script src="frame.js"></script>"""
MEASURE = b"""setTimeout(() => { document.getElementById("width").textContent =
document.getElementById("f").contentDocument.documentElement.scrollWidth; }, 2500);"""


@pytest.fixture
def open_folder(tmp_path, tmp_path_factory, monkeypatch):
    """Open a page of the folder `tmp_path`, `path` below its server."""
    with served(tmp_path, monkeypatch, many=True) as ask:

        def open_(path="", **options):
            return browser.open_page(ask.url + path, tmp_path_factory.mktemp("browser"), **options)

        open_.ask = ask
        yield open_


def make_run(folder, last, **metrics):
    folder.mkdir()
    write_config(folder)
    append(folder, rows(1, last + 1, **metrics))


def test_all_runs_of_a_folder_are_shown_and_lead_to_their_pages(tmp_path, open_folder):
    make_run(tmp_path / "first", 9)
    make_run(tmp_path / EVIL.replace("/", ""), 5)
    page = open_folder()
    assert page.console == [] and page.dom.count("<tr>") == 3
    assert re.search(r'<a href="run/1/">first</a>', page.dom)
    assert "<script>throw" not in page.dom and "<img src=x" not in page.dom
    assert f'<td data-label="step">9 of {small.catch().steps}</td>' in page.dom
    assert len(re.findall(r'<path class="tone-\d dash-0"', page.dom)) == 2
    one = open_folder("run/1/")
    assert one.console == [] and '<a id="back" href="../../">all runs</a>' in one.dom


def test_a_run_that_begins_appears_without_being_loaded_again(tmp_path, open_folder):
    replies, asked = open_folder.ask.server.replies, []

    def growing(path):
        asked.append(path)
        if path == "/runs.json" and asked.count(path) == 2:
            make_run(tmp_path / "new", 4)
        return replies(path)

    open_folder.ask.server.replies = growing
    page = open_folder(milliseconds=20_000)
    assert page.console == [] and asked.count("/") == 1 and ">new</a>" in page.dom


@pytest.mark.parametrize("path", [b"/", b"/run/0/"])
def test_nothing_is_wider_than_a_telephone(tmp_path, open_folder, monkeypatch, path):
    name = "model.core=a_long_name,behaviour.entropy=0.0001,replay.capacity=100000,and_so_on"
    make_run(tmp_path / name, 9, **{f"model/{name}": 1.0})
    monkeypatch.delitem(server.HEADERS, "X-Frame-Options")
    policy = server.POLICY.replace("frame-ancestors 'none'", "frame-src 'self'")
    monkeypatch.setitem(server.HEADERS, "Content-Security-Policy", policy)
    made = {
        "/frame": server.Reply(200, "text/html", FRAME.replace(b"PAGE", path)),
        "/frame.js": server.Reply(200, "text/javascript", MEASURE),
    }
    replies = open_folder.ask.server.replies
    open_folder.ask.server.replies = lambda asked: made.get(asked) or replies(asked)
    page = open_folder("frame")
    assert page.console == [] and text(page, "width") == "390"


def test_greedy_returns_smoothing_and_the_configuration_are_shown(tmp_path, open_page):
    write_config(tmp_path)
    for step in range(1, 9):
        greedy = {"eval/return": float(step), "eval/hard/return": 0.0} if step % 2 == 0 else {}
        append(tmp_path, rows(step, step + 1, **greedy))
    hand = b"""
setTimeout(() => {
  document.getElementById("settings-section").open = true;
  document.getElementById("settings-filter").value = "core.width";
  const slider = document.getElementById("smoothing");
  slider.value = 0.9;
  slider.dispatchEvent(new Event("input"));
}, 500);"""
    replies = open_page.ask.server.replies

    def handled(path):
        found = replies(path)
        return found._replace(body=found.body + hand) if path == "/watch.js" else found

    open_page.ask.server.replies = handled
    page = open_page(milliseconds=12_000)
    assert page.console == []
    assert len(re.findall(r'<path class="greedy tone-\d"', page.dom)) == 2
    key = text(page, "returns-key")
    assert "greedy episodes" in key and "greedy episodes in hard" in key
    card = page.dom[page.dom.index("<i>eval </i>return") :]
    newest = re.search(r"<span>([^<]*)</span>", card)[1]
    assert newest == "8"  # the number itself is not smoothed
    ticks = [float(t) for t in re.findall(r'text-anchor="end">([\d.]+)</text>', card[:3000])]
    assert max(ticks) < 6  # and the line is: its last value is a mean of 2, 4, 6 and 8
    shown = page.dom[page.dom.index('id="settings"') :]
    assert "<th>model.core.width</th><td>8</td>" in shown.replace(' class=""', "")
    assert "<th>num_envs</th>" not in shown
