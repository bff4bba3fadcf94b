"""Rows of a run that grows: only new lines are read, and what is kept of them stays short."""

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np

MAX_BUCKETS = 300  # stretches of a run that are told apart; even, as neighbours are merged
MAX_METRICS, MAX_SEEDS = 200, 1_000  # that are kept, should a file name more
MAX_LINES = 64  # curves of single seeds that are drawn
MAX_POINTS = 6_000  # of all those curves
RETURN, COUNT, FROZEN = "episode/return", "episode/count", "agent/frozen"
_LEADING = ("step", "seed", "env_steps")
_BLOCK = 2**20  # bytes that are read at a time
_MARK = 64  # bytes before the place of reading that must still be there


# ------------------------------------------------------------------------------------- new lines


class Lines(NamedTuple):
    """What came since the last look."""

    anew: bool  # forget what came before: the file was replaced, cut, or removed
    lines: list[bytes]  # whole ones


class Follower:
    """Reads a text file that grows, each line once."""

    def __init__(self, path: Path):
        self._path = Path(path)
        self._forget()

    def _forget(self) -> None:
        self._identity: tuple[int, int] | None = None
        self._offset, self._mark = 0, b""

    def read(self) -> Iterator[Lines]:
        """New lines in pieces of a megabyte; a half-written last one waits.

        Whoever stops after a piece goes on behind it the next time.

        A run that goes on from a checkpoint replaces its file by one without the later rows, which
        may meanwhile be longer than the old one was: then it is read from its beginning.
        """
        try:
            file = self._path.open("rb")
        except OSError:
            if self._identity is not None:
                self._forget()
                yield Lines(True, [])
            return
        with file:
            status = os.fstat(file.fileno())
            identity = (status.st_dev, status.st_ino)
            if self._identity is not None and not self._goes_on(file, identity, status.st_size):
                self._forget()
                yield Lines(True, [])
            self._identity = identity
            yield from self._pieces(file)

    def share(self) -> float:
        """How much of the file has been read; a half-written last line counts as read."""
        try:
            size = self._path.stat().st_size
        except OSError:
            return 1.0
        return 1.0 if size - self._offset < _BLOCK else self._offset / size

    def _goes_on(self, file: BinaryIO, identity: tuple[int, int], size: int) -> bool:
        if identity != self._identity or size < self._offset:
            return False
        file.seek(self._offset - len(self._mark))
        return file.read(len(self._mark)) == self._mark

    def _pieces(self, file: BinaryIO) -> Iterator[Lines]:
        file.seek(self._offset)
        while block := file.read(_BLOCK):
            end = block.rfind(b"\n") + 1
            if not end and len(block) < _BLOCK:
                return
            whole = block[: end or _BLOCK]  # a line of that length is no row, and is passed over
            self._offset += len(whole)
            self._mark = (self._mark + whole[-_MARK:])[-_MARK:]
            file.seek(self._offset)
            yield Lines(False, whole.removesuffix(b"\n").split(b"\n"))


def parse_row(line: bytes) -> dict[str, Any] | None:
    """A row of `metrics.jsonl`, or None for what is none."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):  # no JSON, no text, or brackets within brackets
        return None
    if not isinstance(row, dict):
        return None
    counts = (row.get("step"), row.get("seed"))
    return row if all(type(c) is int and 0 <= c < 2**63 for c in counts) else None


# ---------------------------------------------------------------------------------------- buckets


class _Bucket:
    """Sums over the rows of consecutive steps."""

    def __init__(self) -> None:
        self.steps = self.rows = 0
        self.env_steps = 0.0
        self.metrics: dict[str, list[float]] = {}  # name -> [sum, count, low, high]
        self.returns: dict[int, list[float]] = {}  # seed -> [episodes, sums over them: x, return]

    def merged(self, other: "_Bucket") -> "_Bucket":
        """This one and the one after it."""
        both = _Bucket()
        both.steps, both.rows = self.steps + other.steps, self.rows + other.rows
        both.env_steps = self.env_steps + other.env_steps
        both.metrics = {name: list(sums) for name, sums in self.metrics.items()}
        for name, (total, count, low, high) in other.metrics.items():
            before = both.metrics.get(name) or _nothing()
            pair = [before[0] + total, before[1] + count]
            both.metrics[name] = [*pair, min(before[2], low), max(before[3], high)]
        both.returns = {seed: list(sums) for seed, sums in self.returns.items()}
        for seed, sums in other.returns.items():
            before = both.returns.get(seed, [0.0, 0.0, 0.0])
            both.returns[seed] = [a + b for a, b in zip(before, sums, strict=True)]
        return both


def _nothing() -> list[float]:
    return [0.0, 0, math.inf, -math.inf]


class Curves:
    """A run's rows as means over at most `MAX_BUCKETS` stretches, however many rows there are.

    What it keeps depends on the rows alone, not on the pieces in which they came.
    """

    def __init__(self, only_returns: bool = False):
        """`only_returns`: other metrics are passed over."""
        self._only_returns = only_returns
        self._buckets: list[_Bucket] = []
        self._stride = 1  # steps of a full bucket
        self._names: dict[str, None] = {}  # in the order in which they came
        self._step: int | None = None
        self.step = 0  # the last one
        self.seeds: dict[int, float] = {}  # seed -> newest environment steps
        self.frozen: dict[int, int] = {}  # seed -> step of the row that says so first
        self.newest: dict[int, float] = {}  # seed -> newest episode return
        self.left_out = 0  # metrics and seeds beyond what is kept, as often as they came

    def add(self, row: Mapping[str, Any]) -> None:
        """See one row, as `parse_row` gives it."""
        seed, step = row["seed"], row["step"]
        if seed not in self.seeds and len(self.seeds) >= MAX_SEEDS:
            self.left_out += 1
            return
        bucket = self._bucket(step)
        env_steps = _finite(row.get("env_steps"))
        env_steps = float(step) if env_steps is None else env_steps
        self.step, self.seeds[seed] = max(self.step, step), env_steps
        bucket.rows += 1
        bucket.env_steps += env_steps
        for name, entry in () if self._only_returns else row.items():
            if name in _LEADING or not (name in self._names or self._knows(name)):
                continue
            if (value := _finite(entry)) is not None:
                sums = bucket.metrics.get(name)
                if sums is None:
                    bucket.metrics[name] = [value, 1, value, value]
                    continue
                sums[0] += value
                sums[1] += 1
                if value < sums[2]:
                    sums[2] = value
                elif value > sums[3]:
                    sums[3] = value
        self._add_return(bucket, row, seed, env_steps)
        if (_finite(row.get(FROZEN)) or 0) > 0:
            self.frozen.setdefault(seed, step)

    def _knows(self, name: str) -> bool:
        """Whether a new metric is kept."""
        if len(self._names) >= MAX_METRICS or len(name) > 200:
            self.left_out += 1
            return False
        self._names[name] = None
        return True

    def _add_return(self, bucket: _Bucket, row: Mapping[str, Any], seed: int, x: float) -> None:
        """Each episode counts once, as in `metrics.last_fifth`."""
        value, count = _finite(row.get(RETURN)), _finite(row.get(COUNT, 1))
        if value is None or not count or count < 0:
            return
        self.newest[seed] = value
        sums = bucket.returns.setdefault(seed, [0.0, 0.0, 0.0])
        for i, term in enumerate((count, count * x, count * value)):
            sums[i] += term

    def _bucket(self, step: int) -> _Bucket:
        """The one that rows of this step go to."""
        if step != self._step:
            self._step = step
            if not self._buckets or self._buckets[-1].steps == self._stride:
                if len(self._buckets) == MAX_BUCKETS:
                    pairs = zip(self._buckets[::2], self._buckets[1::2], strict=True)
                    self._buckets = [first.merged(second) for first, second in pairs]
                    self._stride *= 2
                self._buckets.append(_Bucket())
            self._buckets[-1].steps += 1
        return self._buckets[-1]

    def env_steps(self) -> list[float | None]:
        """Mean environment steps [K] of each bucket: the x of `metrics`."""
        return [short(bucket.env_steps / bucket.rows) for bucket in self._buckets]

    def metrics(self) -> list[dict[str, Any]]:
        """Of every metric but the return: its name, and [K] means, lowest and highest values.

        They are taken over the seeds and rows of a bucket; None where it has no value.
        """
        return [self._metric(name) for name in sorted(self._names) if name != RETURN]

    def _metric(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = {"name": name, "mean": [], "low": [], "high": []}
        for bucket in self._buckets:
            total, count, low, high = bucket.metrics.get(name) or _nothing()
            found["mean"].append(short(total / count) if count else None)
            found["low"].append(short(low))
            found["high"].append(short(high))
        return found

    def returns(self, groups: Mapping[str, Iterable[int]]) -> list[dict[str, Any]]:
        """Learning curves of groups of seeds, {label: seeds}.

        Each has its label, the "seeds" that are drawn (x, y), and their mean within ± one standard
        error (x, mean, low, high) over all of the group.
        """
        grid = np.array([bucket.env_steps / bucket.rows for bucket in self._buckets], float)
        found, of_group = [], max(1, MAX_LINES // max(len(groups), 1))
        for label, members in groups.items():
            curves = {seed: self._curve(seed) for seed in members}
            curves = {seed: curve for seed, curve in curves.items() if len(curve[0])}
            drawn = list(curves)[:of_group]
            points = max(60, MAX_POINTS // (max(len(drawn), 1) * max(len(groups), 1)))
            lines = [{"seed": seed, **_thinned(*curves[seed], points)} for seed in drawn]
            found.append({"label": label, "of": len(curves), "seeds": lines, "mean": None})
            if curves:
                band = _band(list(curves.values()), grid)
                found[-1]["mean"] = {k: list(map(short, v)) for k, v in band.items()}
        return found

    def mean_return(self, most: int) -> dict[str, list[float | None]] | None:
        """The mean curve of all seeds (x, y), in at most `most` points; None: no episode yet."""
        curves = [curve for curve in map(self._curve, self.seeds) if len(curve[0])]
        if not curves:
            return None
        grid = np.array([bucket.env_steps / bucket.rows for bucket in self._buckets], float)
        band = _band(curves, grid)
        return _thinned(band["x"], band["mean"], most)

    def _curve(self, seed: int) -> tuple[np.ndarray, np.ndarray]:
        sums = [bucket.returns[seed] for bucket in self._buckets if seed in bucket.returns]
        count, x, y = np.array(sums, float).reshape(-1, 3).T
        return x / count, y / count


def _band(curves: list[tuple[np.ndarray, np.ndarray]], grid: np.ndarray) -> dict[str, np.ndarray]:
    """Mean over curves (x, y) within ± a standard error, at x of the grid which all of them reach.

    As the picture of a finished run has it (`evaluate.plots`), but at few places however many
    seeds there are.
    """
    inside = (grid >= max(x[0] for x, _ in curves)) & (grid <= min(x[-1] for x, _ in curves))
    grid = grid[inside] if inside.any() else grid
    values = np.stack([np.interp(grid, x, y) for x, y in curves])
    with np.errstate(all="ignore"):  # of numbers near the largest ones
        mean, spread = values.mean(0), values.std(0, ddof=min(1, len(values) - 1))
        error = spread / math.sqrt(len(values))
    return {"x": grid, "mean": mean, "low": mean - error, "high": mean + error}


def _thinned(x: np.ndarray, y: np.ndarray, most: int) -> dict[str, list[float | None]]:
    """Means of neighbours, so that at most `most` points are left."""
    size = -(-len(x) // most)
    begins = np.arange(0, len(x), size)
    length = np.diff(np.append(begins, len(x)))
    means = (np.add.reduceat(values, begins) / length for values in (x, y))
    return dict(zip("xy", (list(map(short, values)) for values in means), strict=True))


def _finite(value: Any) -> float | None:
    """A number of a row, or None for what is none."""
    if type(value) is float:
        return value if -math.inf < value < math.inf else None
    if type(value) is not int:
        return None
    try:
        return float(value)
    except OverflowError:
        return None


def short(value: float) -> float | None:
    """Six digits of a number: more cannot be seen; None for what JSON cannot hold."""
    return float(f"{value:.6g}") if math.isfinite(value) else None
