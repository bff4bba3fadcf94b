"""Metrics files: what a resumed run leaves equals what an uninterrupted one leaves."""

import json

import numpy as np
import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import checkpoint, metrics, restore
from mbrl_jax.runs.metrics import FILE, MetricsWriter, last_fifth, read_metrics


def rows_at(step: int) -> list[dict]:
    rng = np.random.default_rng(step)
    return [
        {"model/loss": np.float32(rng.normal()), "env_steps": step - i, "episode/count": 3}
        for i in range(2)
    ]


def train(workdir, steps, resume_step=None):
    with MetricsWriter(workdir, 2, resume_step) as writer:
        for step in steps:
            writer.write(step, rows_at(step))


def test_lines_are_json_with_one_order_and_no_nan(tmp_path):
    row = {"model/z": np.float32(0.1), "a/b": float("nan"), "c/d": float("inf"), "e/f": None}
    with MetricsWriter(tmp_path, 2, None) as writer:
        writer.write(10, [row | {"env_steps": np.int64(9)}, {"x/y": 2, "env_steps": 8, "step": 10}])
    lines = (tmp_path / FILE).read_text().splitlines()
    assert list(json.loads(lines[0])) == [
        "step", "seed", "env_steps", "a/b", "c/d", "e/f", "model/z",
    ]  # fmt: skip
    first, second = read_metrics(tmp_path)
    assert first["step"] == 10
    assert first["model/z"] == float(np.float32(0.1))
    assert first["a/b"] is first["c/d"] is first["e/f"] is None
    assert second == {"step": 10, "seed": 1, "env_steps": 8, "x/y": 2}


def test_rows_are_on_disk_after_every_write(tmp_path):
    with MetricsWriter(tmp_path, 2, None) as writer:
        writer.write(1, rows_at(1))
        assert len(read_metrics(tmp_path)) == 2


@pytest.mark.parametrize("broken", [b"", b'{"step": 50, "se', b'{"step": 50, "n": "\xc3'])
def test_a_resumed_file_equals_an_uninterrupted_one(tmp_path, broken):
    train(tmp_path / "whole", [10, 20, 30, 40])
    train(tmp_path / "parts", [10, 20, 30])
    with (tmp_path / "parts" / FILE).open("ab") as file:
        file.write(broken)
    train(tmp_path / "parts", [30, 40], resume_step=20)
    whole, parts = ((tmp_path / name / FILE).read_bytes() for name in ("whole", "parts"))
    assert parts == whole
    assert not list((tmp_path / "parts").glob("*.tmp"))


def test_a_run_from_the_beginning_drops_older_rows(tmp_path):
    train(tmp_path, [0, 10])
    train(tmp_path, [10])
    assert [row["step"] for row in read_metrics(tmp_path)] == [10, 10]


def test_a_half_written_line_is_not_read(tmp_path):
    assert read_metrics(tmp_path) == []
    (tmp_path / FILE).write_text('{"step": 1, "seed": 0}\n{"step": 2')
    assert read_metrics(tmp_path) == [{"step": 1, "seed": 0}]


def test_damage_elsewhere_is_told(tmp_path):
    (tmp_path / FILE).write_text('{"step": 1, "seed": 0}\nxx\n{"step": 2, "seed": 0}\n')
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)


def test_one_row_for_each_seed(tmp_path):
    with MetricsWriter(tmp_path, 3, None) as writer, pytest.raises(ValueError, match="3 seeds"):
        writer.write(1, rows_at(1))


def test_tensorboard_mirrors_each_seed_and_hides_dropped_steps(tmp_path):
    from tensorboardX.proto.event_pb2 import Event

    train(tmp_path, [10, 20])
    train(tmp_path, [20], resume_step=10)
    for seed in range(2):
        files = sorted((tmp_path / "tensorboard" / f"seed_{seed}").iterdir())
        events = [event for file in files for event in _events(file, Event)]
        values = [(e.step, v.tag) for e in events for v in e.summary.value]
        assert (20, "model/loss") in values
        assert (20, "env_steps") in values
        purges = [e.step for e in events if e.HasField("session_log")]
        assert purges == [11]


def _events(file, event_type):
    """Events of a file in TensorFlow's record format: length, its crc, data, its crc."""
    data = file.read_bytes()
    while data:
        size = int.from_bytes(data[:8], "little")
        yield event_type.FromString(data[12 : 12 + size])
        data = data[16 + size :]


def test_last_fifth_weighs_by_episodes():
    def row(step, seed, mean, count):
        return {"step": step, "seed": seed, "episode/return": mean, "episode/count": count}

    rows = [
        row(80, 0, -1.0, 100),  # 80 is not beyond 0.8 · 100
        row(90, 0, 1.0, 3),
        row(100, 0, 0.0, 1),
        row(90, 1, None, 0),
        row(100, 1, 0.5, 2),
        row(100, 2, None, 0),
    ]
    assert last_fifth(rows) == [0.75, 0.5, None]
    assert last_fifth([]) == []


@pytest.mark.parametrize(
    "line",
    [
        *('{"step": "x"}', '{"step": 1}', '{"step": true, "seed": 0}', "[1]", "1", '"step"'),
        *(50_000 * "[", '{"step": -1, "seed": 0}', '{"step": 1, "seed": 1e400}'),
        '{"step": 1, "seed": 0, "episode/return": "high"}',
        '{"step": 1, "seed": 0, "episode/return": ' + 5_000 * "9" + "}",
        '{"step": 1, "seed": 0, "x": ' + 500 * "9" + "}",
    ],
    ids=lambda line: line[:40],
)
def test_a_line_that_is_no_row_is_told(tmp_path, line):
    (tmp_path / FILE).write_text('{"step": 1, "seed": 0}\n' + line + "\n")
    with pytest.raises(ValueError, match="line 2 of .* is damaged"):
        read_metrics(tmp_path)


def test_a_line_without_end_is_not_read_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(metrics, "_LONGEST", 100)
    (tmp_path / FILE).write_text('{"step": 1, "seed": 0}\n' + 1_000 * "é")
    with pytest.raises(ValueError, match="line 2"):
        read_metrics(tmp_path)


@pytest.mark.parametrize("name", ["²", "٣", "007", "-1", "1.0", 30 * "9", "5.tmp"])
def test_folders_that_are_no_checkpoints_are_passed_over(tmp_path, name):
    for one in (name, "12"):
        (tmp_path / "checkpoints" / one).mkdir(parents=True)
    assert checkpoint.complete(tmp_path) == [12]
    with pytest.raises(ConfigError, match=r"choose newest, best, or one of 12$"):
        restore.restore(tmp_path, None, name)
