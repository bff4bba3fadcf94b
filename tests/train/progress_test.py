"""What people see of a run: the bar at every width, the pace, and lines where no terminal is."""

import io
import re
import sys
import types

import pytest
from rich.console import Console as RichConsole

from mbrl_jax.train import progress, tables
from tests import small

SEEDS = 8


def shown(monkeypatch, width, terminal, chunks):
    """What is printed for chunks of (last step, updates, seconds), with 8 seeds."""
    file = io.StringIO()
    monkeypatch.setattr(
        tables,
        "plain_console",
        lambda: RichConsole(file=file, force_terminal=terminal, width=width, markup=False),
    )
    console = progress.Console()
    with console.running(small.catch(), {"iteration": 0}):
        for step, updates, seconds in chunks:
            returns = [-0.125 * (seed + 1) for seed in range(SEEDS)]
            rows = [
                {"env_steps": step, "count/updates": updates, "episode/return": value}
                for value in returns
            ]
            console.chunk_done(step, rows, seconds)
    return file.getvalue()


@pytest.mark.parametrize("width", [80, 100, 140])
def test_a_terminal_shows_bar_time_and_every_return_at_any_width(monkeypatch, width):
    total = small.catch().steps
    text = shown(monkeypatch, width, True, [(total - 4, 2, 1.0)])
    lines = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n").split("\n")
    assert max(map(len, lines)) <= width
    last = lines[-3:] if lines[-1] else lines[-4:-1]
    where = f" step {total - 4}/{total}  ETA 0:"
    assert re.search(rf"[━╸╺]{{{width - 40},}}.*{where}", last[0]), last[0]
    assert "s/update" in last[1] and "steps/s of all seeds" in last[1]
    assert last[2].split() == ["return", *(f"{-0.125 * (seed + 1):.3g}" for seed in range(SEEDS))]


@pytest.mark.parametrize("width", [80, 100, 140])
def test_before_the_first_chunk_a_terminal_says_where_the_run_is(monkeypatch, width):
    text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown(monkeypatch, width, True, []))
    assert re.search(rf"━{{{width - 40},}}.* step 0/{small.catch().steps}  ETA –", text)


def test_what_a_run_takes_is_broken_between_words_on_a_terminal_and_is_a_line_elsewhere():
    experiment = small.catch()
    plan = types.SimpleNamespace(
        experiment=experiment,
        parameters={"world model": 111_586, "behaviour": 20_930},
        num_seeds=8,
        of_seed=3_770_000,
        state=3_770_000,
        replay=2_110_000,
        temporaries=None,
        most_seeds=None,
        hours=None,
        memory=types.SimpleNamespace(free=None),
        more=lambda: "without what an update takes for itself",
    )
    lines = {}
    for terminal in (True, False):
        file = io.StringIO()
        tables.print_plan(RichConsole(file=file, force_terminal=terminal, width=80), plan)
        lines[terminal] = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", file.getvalue()).splitlines()
    assert len(lines[False]) == 2 and max(map(len, lines[True])) <= 80
    words = " ".join(line.strip() for line in lines[True])
    assert words == " ".join(lines[False])  # no word is cut in two


def test_elsewhere_the_same_is_a_line(monkeypatch):
    text = shown(monkeypatch, 80, False, [(4, 0, 2.0), (small.catch().steps, 2, 1.0)])
    lines = [line for line in text.splitlines() if line.startswith("step")]
    assert len(lines) == 2
    assert "ETA –  16 steps/s of all seeds  env steps 4  return -0.125 " in lines[0]
    assert "ETA 0:00" in lines[1]


def test_speed_is_that_of_the_newest_chunk():
    pace = progress.Pace()
    pace.add(100, 0, 1.0)
    pace.add(100, 100, 50.0)
    assert pace.steps_per_second == pytest.approx(2.0)


def test_of_many_seeds_the_mean_is_shown():
    rows = [{"episode/return": float(i % 2)} for i in range(100)] + [{"episode/return": None}]
    assert progress._returns(rows) == "return 0.5 in the mean of 101 seeds"


def test_a_notebook_shows_progress_by_itself_and_a_program_does_not(monkeypatch):
    assert isinstance(progress.usual(), progress.Quiet)
    for shell, kind in ((None, progress.Quiet), (object(), progress.Console)):
        inside = types.SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", inside)
        assert isinstance(progress.usual(), kind)


def test_the_time_left_counts_steps_and_updates_for_themselves():
    pace = progress.Pace()
    pace.add(100, 0, 2.0)  # a step takes 0.02 s
    assert pace.left(50, 0) == pytest.approx(1.0)
    assert pace.left(100, 10) is None  # what an update takes is not known yet
    pace.add(100, 50, 27.0)  # an update 0.5 s
    assert pace.left(100, 10) == pytest.approx(7.0)
    for _ in range(30):
        pace.add(100, 50, 52.0)  # 1 s of late
    assert pace.left(100, 10) == pytest.approx(12.0)


@pytest.mark.parametrize(
    ("seconds", "said"), [(None, "–"), (59.9, "0:59"), (600, "10:00"), (3 * 3600 + 65, "3:01:05")]
)
def test_the_time_left_is_said_as_a_clock_does(seconds, said):
    assert progress.clock(seconds) == said
