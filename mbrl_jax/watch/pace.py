"""How fast a run trains: the times of its rows, which TensorBoard's files have.

`metrics.jsonl` has none on purpose. Of an event file only the heads of its records are read: eight
bytes of length, four of checksum, then a message whose first fields are time, step and what it is.
"""

import math
import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from mbrl_jax.watch.series import short

MAX_PROCESSES = 100  # the newest ones are shown
MAX_POINTS = 300  # of an answer
RECENT = 20  # rows at most over which the present speed is taken; of a young process a quarter
_FRAME, _HEAD = 16, 32  # bytes around a record, and of it that are looked at
_LONGEST = 2**26  # bytes of a record that is believed
_TIME, _STEP, _SUMMARY = 0x09, 0x10, 0x2A  # tags: double 1, varint 2, message 5


class Rate(NamedTuple):
    """Rows of a seed per second at times of training."""

    seconds: list[float | None]  # of training until then, without what lay between processes
    rows: list[float | None]  # None between processes


def read_event(head: bytes) -> tuple[float, int] | None:
    """(wall time, step) of a record with metrics, from its first bytes; None for another one."""
    if len(head) < 10 or head[0] != _TIME:
        return None
    (wall,) = struct.unpack_from("<d", head, 1)
    step, place = 0, 9
    if head[place] == _STEP:
        shift, place = 0, place + 1
        while place < len(head):
            step |= (head[place] & 127) << shift
            shift, place = shift + 7, place + 1
            if head[place - 1] < 128:
                break
    if place >= len(head) or head[place] != _SUMMARY or not math.isfinite(wall):
        return None
    return wall, step


def read_events(file: BinaryIO, offset: int) -> tuple[list[tuple[float, int]], int]:
    """New (wall time, step) of an event file from a place on, and the place to go on from.

    A half-written record is left for the next time; behind a damaged one nothing is read.
    """
    size, found = file.seek(0, os.SEEK_END), []
    while offset + _FRAME <= size:
        file.seek(offset)
        (length,) = struct.unpack("<Q", file.read(8))
        if length > _LONGEST or offset + _FRAME + length > size:
            break
        file.seek(offset + 12)
        if (event := read_event(file.read(min(length, _HEAD)))) is not None:
            found.append(event)
        offset += _FRAME + length
    return found, offset


class _Process:
    """Times of the rows that one process wrote."""

    def __init__(self) -> None:
        self.kept: list[tuple[float, int]] = []  # every stride-th
        self.newest: list[tuple[float, int]] = []
        self._stride = 1
        self._seen = 0

    def add(self, wall: float, step: int) -> None:
        """See a row."""
        self.newest = [*self.newest[-RECENT:], (wall, step)]
        if self._seen % self._stride == 0:
            self.kept.append((wall, step))
        self._seen += 1
        if len(self.kept) > 2 * MAX_POINTS:
            self.kept, self._stride = self.kept[::2], 2 * self._stride

    def recent(self) -> float | None:
        """Rows per second of late: phases differ, so not of all the time."""
        num = min(max(self._seen // 4, 2), RECENT)
        return _speed(self.newest[-num - 1 :][0], self.newest[-1])

    @property
    def points(self) -> list[tuple[float, int]]:
        """What is kept, and the last row."""
        last = [point for point in self.newest[-1:] if point != self.kept[-1]]
        return [*self.kept, *last]


class Pace:
    """Speeds of all processes of a run, in bounded memory."""

    def __init__(self, folder: Path):
        """`folder`: `tensorboard/seed_0` of the run, there or not."""
        self._folder = Path(folder)
        self._processes: dict[str, _Process] = {}
        self._offsets: dict[str, int] = {}
        self._watched = False  # no event file: times are those of looks at metrics.jsonl

    def read(self) -> None:
        """See what came since the last look."""
        try:
            names = sorted(e.name for e in os.scandir(self._folder) if ".tfevents." in e.name)
        except OSError:
            names = []
        if names and self._watched:
            self._processes, self._watched = {}, False
        if set(self._offsets) - set(names):  # removed: the workdir began anew
            self._processes, self._offsets = {}, {}
        for name in names[-MAX_PROCESSES:]:
            before = self._offsets.get(name, 0)
            try:
                with (self._folder / name).open("rb") as file:
                    events, self._offsets[name] = read_events(file, before)
            except OSError:
                continue
            for event in events:
                self._processes.setdefault(name, _Process()).add(*event)
        self._keep_newest()

    def watched(self, wall: float, step: int, process: int) -> None:
        """A look at `metrics.jsonl`, where a run has no event files: it had come so far by then."""
        if self._offsets:
            return
        self._watched = True
        rows = self._processes.setdefault(str(process), _Process())
        if not rows.newest or step > rows.newest[-1][1]:
            rows.add(wall, step)
        self._keep_newest()

    def _keep_newest(self) -> None:
        for name in list(self._processes)[:-MAX_PROCESSES]:
            del self._processes[name]

    def recent(self) -> float | None:
        """Rows of a seed per second over the last rows of the newest process; None: not known."""
        last = next(reversed(self._processes.values()), None)
        return None if last is None else last.recent()

    def average(self) -> float | None:
        """The same over all that is known, without what lay between processes."""
        ends = [(rows.kept[0], rows.newest[-1]) for rows in self._processes.values()]
        seconds = sum(last[0] - first[0] for first, last in ends)
        return sum(last[1] - first[1] for first, last in ends) / seconds if seconds > 0 else None

    def rate(self) -> Rate:
        """The speed over the time of training, at most about `MAX_POINTS` of them."""
        every = [rows.points for rows in self._processes.values()]
        size = -(-sum(map(len, every)) // MAX_POINTS) or 1
        seconds, rates, before = [], [], 0.0
        for points in every:
            for first, last in _pairs(points, size):
                if (speed := _speed(first, last)) is not None:
                    seconds.append(short(before + last[0] - points[0][0]))
                    rates.append(short(speed))
            before += max(points[-1][0] - points[0][0], 0.0)
            if rates and rates[-1] is not None:
                seconds.append(short(before))
                rates.append(None)
        return Rate(seconds[:-1], rates[:-1])


def _pairs(
    points: list[tuple[float, int]], size: int
) -> Iterator[tuple[tuple[float, int], tuple[float, int]]]:
    """Neighbours among every size-th point and the last one."""
    chosen = [*points[:-1:size], points[-1]]
    return zip(chosen, chosen[1:], strict=False)


def _speed(first: tuple[float, int], last: tuple[float, int]) -> float | None:
    """Rows per second between two (wall time, step); None where the clock did not go forward."""
    seconds = last[0] - first[0]
    return (last[1] - first[1]) / seconds if seconds > 0 else None
