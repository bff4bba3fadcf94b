"""Speeds of a run, from the times in TensorBoard's files."""

import time

import pytest

from mbrl_jax.runs import metrics
from mbrl_jax.watch import pace
from mbrl_jax.watch.pace import Pace, read_event, read_events


@pytest.fixture
def clock(monkeypatch):
    """The time that rows are written at; it stands until it is set."""
    now = [1_000_000.0]
    monkeypatch.setattr(time, "time", lambda: now[0])
    return now


def write(path, clock, steps, seconds, resume=None):
    """A process that writes rows of two seeds; `seconds` between rows."""
    with metrics.MetricsWriter(path, 2, resume) as writer:
        for step in steps:
            clock[0] += seconds
            writer.write(step, [{"env_steps": step, "loss": 1.5, "none": None}] * 2)


def test_the_times_of_rows_are_found_in_what_the_run_writes(tmp_path, clock):
    write(tmp_path, clock, [0, 10, 300, 2**40], 2.0)
    (file,) = (tmp_path / "tensorboard" / "seed_0").iterdir()
    with file.open("rb") as opened:
        found, end = read_events(opened, 0)
        assert read_events(opened, end) == ([], end)
    assert found == [(1_000_002.0, 0), (1_000_004.0, 10), (1_000_006.0, 300), (1_000_008.0, 2**40)]
    assert end == file.stat().st_size


def test_a_half_written_record_waits_and_a_damaged_one_ends_it(tmp_path, clock):
    write(tmp_path, clock, [10, 20], 2.0)
    (file,) = (tmp_path / "tensorboard" / "seed_0").iterdir()
    whole = file.read_bytes()
    seen, offset = [], 0
    for end in range(len(whole) + 1):  # as it grows, byte after byte
        file.write_bytes(whole[:end])
        with file.open("rb") as opened:
            found, offset = read_events(opened, offset)
        seen += found
    assert [step for _, step in seen] == [10, 20]
    file.write_bytes(whole + b"\xff" * 100)
    with file.open("rb") as opened:
        assert read_events(opened, offset) == ([], offset)


@pytest.mark.parametrize(
    "head",
    [
        *(b"", b"\x09", b"\x09" + bytes(8), b"\x10\x01\x2a" * 8, b"\x09" + bytes(8) + b"\x10\xff"),
        b"\x09" + bytes(8) + b"\x10" + b"\xff" * 22,
        b"\x09\0\0\0\0\0\0\xf8\x7f\x10\x01\x2a",  # not a number
        b"\x09" + bytes(8) + b"\x10\x01\x3a",  # a mark, and no metrics
    ],
)
def test_other_records_are_none(head):
    assert read_event(head) is None


def test_processes_are_counted_without_what_lay_between_them(tmp_path, clock):
    speed = Pace(tmp_path / "tensorboard" / "seed_0")
    speed.read()
    assert speed.recent() is None and speed.average() is None and speed.rate() == ([], [])
    write(tmp_path, clock, range(10, 60, 10), 2.0)  # 5 a second
    speed.read()
    assert speed.recent() == 5 and speed.average() == 5
    clock[0] += 5000.0
    write(tmp_path, clock, range(30, 80, 10), 1.0, resume=20)
    speed.read()
    assert speed.recent() == 10
    assert speed.average() == pytest.approx(80 / 12)
    seconds, rows = speed.rate()
    assert seconds == [2, 4, 6, 8, 8, 9, 10, 11, 12]
    assert rows == [5, 5, 5, 5, None, 10, 10, 10, 10]


def test_the_present_speed_is_that_of_late(tmp_path, clock):
    write(tmp_path, clock, range(100), 0.01)
    write(tmp_path, clock, range(100, 180), 10.0, resume=99)
    speed = Pace(tmp_path / "tensorboard" / "seed_0")
    speed.read()
    assert speed.recent() == pytest.approx(0.1)
    assert speed.average() > 0.2


def test_long_runs_are_bounded():
    rows = pace._Process()
    for i in range(100_000):
        rows.add(float(i), 3 * i)
    assert len(rows.points) <= 2 * pace.MAX_POINTS + 1 and rows.points[-1] == (99_999.0, 299_997)
    speed = Pace("nowhere")
    speed._processes = {str(i): rows for i in range(3)}
    seconds, found = speed.rate()
    assert len(seconds) == len(found) <= pace.MAX_POINTS + 10
    assert set(found) == {3.0, None}


def test_a_clock_that_goes_back_gives_no_speed():
    speed = Pace("nowhere")
    rows = pace._Process()
    for wall, step in ((10.0, 1), (5.0, 2), (6.0, 3)):
        rows.add(wall, step)
    speed._processes = {"0": rows}
    assert speed.rate().rows == [1.0] and speed.recent() is None and speed.average() is None


def test_without_event_files_looks_at_the_metrics_serve(tmp_path, clock):
    speed = Pace(tmp_path / "tensorboard" / "seed_0")
    for wall, step, process in ((0, 10, 0), (1, 10, 0), (4, 30, 0), (9, 5, 1), (10, 15, 1)):
        speed.read()
        speed.watched(float(wall), step, process)
    assert speed.recent() == 10 and speed.rate().rows == [5, None, 10]
    write(tmp_path, clock, [10, 20, 30], 2.0)  # now there are
    speed.read()
    speed.watched(99.0, 99, 1)
    assert speed.rate() == ([2, 4], [5, 5])


def test_a_directory_that_begins_anew_is_followed(tmp_path, clock):
    speed = Pace(tmp_path / "tensorboard" / "seed_0")
    write(tmp_path, clock, [10, 20], 2.0)
    speed.read()
    (file,) = (tmp_path / "tensorboard" / "seed_0").iterdir()
    file.unlink()
    speed.read()
    assert speed.rate() == ([], []) and speed.recent() is None
