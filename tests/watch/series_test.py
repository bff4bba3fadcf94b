"""Rows that are read while they are written, and kept short."""

import json
import math

import numpy as np
import pytest

from mbrl_jax.runs import metrics
from mbrl_jax.watch import series
from mbrl_jax.watch.series import Curves, Follower, parse_row
from tests.watch.workdirs import append, row


def read(follower):
    """(whether it began anew, steps of the rows that came)."""
    pieces = list(follower.read())
    lines = [line for piece in pieces for line in piece.lines]
    return any(piece.anew for piece in pieces), [json.loads(line)["step"] for line in lines]


@pytest.fixture
def follower(tmp_path):
    return Follower(tmp_path / "metrics.jsonl")


def test_every_line_comes_once_and_a_half_written_one_when_it_is_whole(tmp_path, follower):
    assert read(follower) == (False, [])  # there is no file yet
    append(tmp_path, [row(1, 0), row(2, 0)])
    assert read(follower) == (False, [1, 2])
    append(tmp_path, [row(3, 0)], end='\n{"step": 4, "se')
    assert read(follower) == (False, [3])
    assert read(follower) == (False, [])
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('ed": 0}\n')
    assert read(follower) == (False, [4])


def test_what_a_resumed_run_writes_replaces_the_later_rows(tmp_path, follower):
    append(tmp_path, [row(step, 0) for step in (1, 2, 3)])
    assert read(follower) == (False, [1, 2, 3])
    with metrics.MetricsWriter(tmp_path, num_seeds=1, resume_step=2) as writer:
        for step in (4, 5, 6, 7):  # now it is longer than it was
            writer.write(step, [{"env_steps": step}])
    assert read(follower) == (True, [1, 2, 4, 5, 6, 7])
    assert read(follower) == (False, [])


@pytest.mark.parametrize("text", ["", '{"step": 9, "seed": 0}\n', '{"step": 9, "seed": 0}\n' * 99])
def test_a_file_that_is_cut_or_rewritten_in_its_place_is_read_anew(tmp_path, follower, text):
    append(tmp_path, [row(1, 0), row(2, 0)])
    read(follower)
    (tmp_path / "metrics.jsonl").write_text(text)  # the same inode
    assert read(follower) == (True, [9] * text.count("\n"))


def test_a_file_that_is_removed_is_forgotten(tmp_path, follower):
    append(tmp_path, [row(1, 0)])
    read(follower)
    (tmp_path / "metrics.jsonl").unlink()
    assert read(follower) == (True, [])
    append(tmp_path, [row(5, 0)])
    assert read(follower)[1] == [5]


def test_a_line_without_end_is_passed_over(tmp_path, follower, monkeypatch):
    monkeypatch.setattr(series, "_BLOCK", 1000)
    path = tmp_path / "metrics.jsonl"
    path.write_text("x" * 2500 + "\n" + '{"step": 1, "seed": 0}\n')
    lines = [line for piece in follower.read() for line in piece.lines]
    assert [parse_row(line) for line in lines][-1] == {"step": 1, "seed": 0}
    assert all(parse_row(line) is None for line in lines[:-1])


@pytest.mark.parametrize(
    "line",
    [
        *(b"", b"{", b"[]", b"3", b"null", b"\xff", b'{"step": 1}', b'{"step": "1", "seed": 0}'),
        *(b'{"step": true, "seed": 0}', b'{"step": -1, "seed": 0}', b'{"step": 1.5, "seed": 0}'),
        *(b'{"step": 1, "seed": ' + b"9" * 30 + b"}", b"[" * 100_000, b"9" * 5000),
    ],
)
def test_what_is_no_row_is_none(line):
    assert parse_row(line) is None


def fed(rows):
    curves = Curves()
    for one in rows:
        curves.add(one)
    return curves


def test_short_runs_are_kept_as_they_are():
    rows = [row(step, seed, model__loss=step + seed) for step in (10, 20, 30) for seed in (0, 1)]
    curves = fed(rows)
    assert curves.env_steps() == [9, 19, 29] and curves.step == 30
    metric = {metric["name"]: metric for metric in curves.metrics()}["model/loss"]
    assert metric == {
        "name": "model/loss",
        "mean": [10.5, 20.5, 30.5],
        "low": [10, 20, 30],
        "high": [11, 21, 31],
    }
    (group,) = curves.returns({"": [0, 1]})
    assert group["seeds"][1] == {"seed": 1, "x": [9, 19, 29], "y": [1.01, 1.02, 1.03]}
    assert group["mean"]["mean"] == pytest.approx([0.51, 0.52, 0.53])
    error = np.std([0, 1], ddof=1) / math.sqrt(2)
    assert group["mean"]["high"] == pytest.approx([0.51 + error, 0.52 + error, 0.53 + error], 1e-4)


def test_the_answer_is_bounded_and_keeps_every_value_in_a_mean():
    num = 10_000
    rows = [row(step, 0, loss=float(step)) for step in range(1, num + 1)]
    curves = fed(rows)
    x, (_, loss) = curves.env_steps(), curves.metrics()
    assert loss["name"] == "loss"
    assert series.MAX_BUCKETS // 2 <= len(x) <= series.MAX_BUCKETS
    assert loss["low"][0] == 1 and loss["high"][-1] == num  # nothing is left out at the ends
    # All but the last stand for equally many steps, and their means lie on the line.
    width = x[1] - x[0]
    np.testing.assert_allclose(np.diff(x)[:-1], width)
    np.testing.assert_allclose(np.array(loss["mean"]) - np.array(x), 1.0)
    assert all(a <= b <= c for a, b, c in zip(loss["low"], loss["mean"], loss["high"], strict=True))
    (group,) = curves.returns({"": [0]})
    assert len(group["seeds"][0]["x"]) == len(x)


def test_a_run_of_many_seeds_is_bounded_too():
    num_seeds = 200
    rows = [row(step, seed) for step in range(1, 400) for seed in range(num_seeds)]
    curves = fed(rows)
    (group,) = curves.returns({"": range(num_seeds)})
    assert group["of"] == num_seeds and len(group["seeds"]) == series.MAX_LINES
    assert sum(len(line["x"]) for line in group["seeds"]) <= series.MAX_POINTS
    middle = len(group["mean"]["x"]) // 2
    expected = (num_seeds - 1) / 2 + (group["mean"]["x"][middle] + 1) / 1000
    assert group["mean"]["mean"][middle] == pytest.approx(expected, rel=1e-4)


def test_more_seeds_and_metrics_than_are_kept_are_said(monkeypatch):
    monkeypatch.setattr(series, "MAX_SEEDS", 2)
    monkeypatch.setattr(series, "MAX_METRICS", 4)
    curves = fed([row(1, seed, **{f"m{i}": 1 for i in range(3)}) for seed in range(3)])
    assert len(curves.seeds) == 2 and curves.left_out == 3
    assert [metric["name"] for metric in curves.metrics()] == ["episode/count", "m0", "m1"]


def test_episodes_count_once_each_and_seeds_without_one_are_left_out():
    rows = [row(1, 0), row(2, 0), row(1, 1), row(2, 1)]
    rows[1] |= {"episode/return": 7.0, "episode/count": 3}
    for one in rows[2:]:
        one |= {"episode/return": None, "episode/count": 0}
    curves = fed(rows)
    curves._buckets = [curves._buckets[0].merged(curves._buckets[1])]
    (group,) = curves.returns({"": [0, 1]})
    assert group["of"] == 1
    assert group["seeds"][0]["y"] == [pytest.approx((0.001 + 3 * 7) / 4, rel=1e-5)]
    assert curves.newest == {0: 7.0}


def test_what_is_no_number_is_left_out():
    odd = {"a": None, "b": "text", "c": True, "d": math.nan, "e": math.inf, "f": 10**400, "g": [1]}
    curves = fed([row(1, 0, **odd), {"step": 2, "seed": 0, "episode/return": 1e308, "h": -1e308}])
    found = {metric["name"]: metric["mean"] for metric in curves.metrics()}
    assert all(found[name] == [None, None] for name in odd)
    assert found["h"] == [None, -1e308]
    assert curves.env_steps() == [0, 2]
    json.dumps([curves.metrics(), curves.returns({"": [0]})], allow_nan=False)


def test_a_frozen_seed_has_the_step_of_its_first_such_row():
    rows = [
        row(step, seed, agent__frozen=float(seed == 1 and step > 2))
        for step in (1, 2, 3, 4)
        for seed in (0, 1)
    ]
    assert fed(rows).frozen == {1: 3}


def test_settings_have_means_of_their_own():
    rows = [row(step, seed) for step in (1, 2) for seed in range(4)]
    low, high = fed(rows).returns({"a=1": [0, 1], "a=2": [2, 3], "a=3": [9]})[:2]
    assert low["label"] == "a=1" and [line["seed"] for line in low["seeds"]] == [0, 1]
    assert high["mean"]["mean"] == pytest.approx([2.501, 2.502], rel=1e-5)
    assert fed(rows).returns({"a=3": [9]})[0] == {
        "label": "a=3",
        "of": 0,
        "seeds": [],
        "mean": None,
    }
