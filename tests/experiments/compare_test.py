"""The table of recorded rows says what `rows.jsonl` holds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.results import compare, rows

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def table(tmp_path) -> Path:
    """Two rows that share --seed=1, and one whose settings vary inside its program."""
    common = {"title": "Made up", "experiment": "drama_catch", "cpu_minutes": 1}
    base = {"whole": {"values": [[1.0, 2.0], [4.0, 5.0]]}, "greedy": {"values": [[0, 1], [1, 1]]}}
    other = {"whole": {"values": [[4.0, 6.5], [8.0, 9.0]]}}
    inside = {"whole": {"values": [[1.0, 2.0, 3.0, 5.0]]}}
    lines = [
        common | {"name": "base", "num_seeds": 2, "seeds": [0, 1], "measures": base},
        common | {"name": "other", "num_seeds": 2, "seeds": [1, 2], "measures": other},
        common
        | {"name": "inside", "num_seeds": 1, "seeds": [5], "measures": inside}
        | {"sweep_inside": ["behaviour.entropy=1e-2,2e-2", "behaviour.gamma=0.9,0.99"]},
    ]
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_seeds_that_both_rows_have_are_compared_one_by_one(table):
    read = rows.read_rows(table)
    of_base, of_other, *_ = compare.compare(read.values(), read["base"], ["whole"])
    assert of_base == ["base", "whole", "1, 2, 4, 5", "3 [0.09484, 5.905]", "+0 ± 0"]
    # Of --seed=1 alone: 4.0 less 4.0, and 6.5 less 5.0.
    assert of_other[-1] == f"+0.75 ± {np.std([0.0, 1.5], ddof=1) / 2**0.5:.2g}"


def test_the_mean_stands_in_the_interval_of_the_report(table):
    from mbrl_jax.evaluate import statistics

    (row,) = compare.compare([rows.read_rows(table)["other"]])
    found = statistics.interval(statistics.mean, np.array([[4.0], [6.5], [8.0], [9.0]]))
    assert row[3] == f"6.875 [{found.low:.4g}, {found.high:.4g}]"


def test_settings_inside_a_program_are_told_as_the_launcher_orders_them(table):
    found = list(compare.compare([rows.read_rows(table)["inside"]]))
    assert [(cells[0], cells[2]) for cells in found] == [
        ("inside behaviour.entropy=1e-2 behaviour.gamma=0.9", "1"),
        ("inside behaviour.entropy=1e-2 behaviour.gamma=0.99", "2"),
        ("inside behaviour.entropy=2e-2 behaviour.gamma=0.9", "3"),
        ("inside behaviour.entropy=2e-2 behaviour.gamma=0.99", "5"),
    ]


def test_a_row_without_the_measure_of_the_base_has_no_difference(table):
    read = rows.read_rows(table)
    _, greedy = compare.compare([read["base"]], read["other"])
    assert greedy[1] == "greedy" and greedy[-1] == "–"


def start(*arguments):
    command = [sys.executable, "-m", "experiments.results.compare", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def test_the_command_prints_a_markdown_table():
    done = start("--rows=pend*,none", "--measures=training", "--base=pendulum")
    assert done.returncode == 0, done.stderr
    head, _, line = done.stdout.splitlines()
    assert head == "| row | measure | each seed | mean [95 %] | less the base |"
    assert line.startswith("| pendulum | training | -217")
    assert line.endswith("] | +0 ± 0 |")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--rows=none*"], "no measure at all of a row none* is recorded; the rows are catch,"),
        (["--measures=speed"], "no measure speed of a row * is recorded"),
        (["--base=none"], "there is no row 'none'; the rows are catch,"),
    ],
)
def test_what_is_not_there_is_told_in_a_sentence(arguments, said):
    done = start(*arguments)
    assert done.returncode == 1 and said in done.stderr and "Traceback" not in done.stderr
