"""Metrics on disk: `metrics.jsonl` (the record) and TensorBoard (a mirror of it)."""

import collections
import contextlib
import itertools
import json
import math
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from mbrl_jax.errors import ConfigError

FILE = "metrics.jsonl"
FOLDER = "tensorboard"
_LEADING = ("step", "seed", "env_steps")  # integers, first in each line
_LONGEST = 2**24  # bytes of a line that is believed


class MetricsWriter:
    """Appends one row per seed and step; a context manager.

    What a resumed run writes continues the file exactly: rows beyond the checkpoint are dropped
    first, and a row has one spelling only.
    """

    def __init__(
        self, workdir: str | Path, num_seeds: int, resume_step: int | None, window: int = 0
    ):
        """Open the files.

        Args:
          workdir: directory of the run.
          num_seeds: S, rows of each step.
          resume_step: step of the checkpoint that training goes on from, or None for a run from
            the beginning; later rows are dropped.
          window: steps that `score` looks back.
        """
        self._path = Path(workdir) / FILE
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._num_seeds = num_seeds
        last_kept = -1 if resume_step is None else int(resume_step)
        self._score = _Score(window)
        for row in _drop_rows_after(self._path, last_kept):
            self._score.add(row)
        self._file = self._path.open("a", encoding="utf-8", newline="\n")
        boards = Path(workdir) / FOLDER
        self._boards = [_Board(boards / f"seed_{i}", last_kept + 1) for i in range(num_seeds)]

    def __enter__(self) -> "MetricsWriter":
        return self

    def __exit__(self, *exc_info) -> None:
        self.close()

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Append `rows`, one for each seed in order: "env_steps" and "group/name" -> number.

        None, NaN and infinities are stored as null.
        """
        if len(rows) != self._num_seeds:
            raise ValueError(f"{len(rows)} rows for {self._num_seeds} seeds")
        clean = [_clean(step, seed, row) for seed, row in enumerate(rows)]
        # In one piece, so that a killed process leaves at most one broken line behind.
        self._file.write("".join(json.dumps(row, allow_nan=False) + "\n" for row in clean))
        self._file.flush()
        for board, row in zip(self._boards, clean, strict=True):
            board.write(step, row)
            self._score.add(row)

    def score(self) -> float | None:
        """Mean over seeds of their mean episode return in the window that ends with the last row.

        None while no episode has ended there.
        """
        return self._score.value()

    def close(self) -> None:
        """Close the files; nothing can be written afterwards."""
        with contextlib.ExitStack() as stack:  # all of them, also if one is on a full disk
            for close in (*(board.close for board in self._boards), self._file.close):
                stack.callback(close)


class _Board:
    """An event file of one seed for TensorBoard.

    Written in the caller's thread: those of `SummaryWriter` would wait for ever on a full disk.
    """

    def __init__(self, folder: Path, purge_step: int):
        from tensorboardX.event_file_writer import EventsWriter

        is_new = not folder.exists()
        folder.mkdir(parents=True, exist_ok=True)
        # The time in its name has seconds only: two processes must not share a file.
        self._file = EventsWriter(str(folder / "events"), f".{os.getpid()}")
        if not is_new:
            # Event files cannot be cut; this mark hides what an earlier process wrote from there.
            self._write(step=purge_step, session_log={"status": "START"})

    def write(self, step: int, row: Mapping[str, Any]) -> None:
        """Append the numbers of one row."""
        numbers = {k: v for k, v in row.items() if k not in ("step", "seed") and v is not None}
        values = [{"tag": name, "simple_value": value} for name, value in numbers.items()]
        self._write(step=step, summary={"value": values})

    def _write(self, **fields: Any) -> None:
        from tensorboardX.proto.event_pb2 import Event

        self._file.write_event(Event(wall_time=time.time(), **fields))
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class _Score:
    """Episode returns of the rows of the last `window` steps."""

    def __init__(self, window: int):
        self._window = window
        self._rows: collections.deque = collections.deque()  # (step, seed, sum, count)
        self._step = 0

    def add(self, row: Mapping[str, Any]) -> None:
        """See one row."""
        self._step = row["step"]
        mean, count = row.get("episode/return"), row.get("episode/count")
        if mean is not None and count:
            self._rows.append((self._step, row["seed"], mean * count, count))
        while self._rows and self._rows[0][0] <= self._step - self._window:
            self._rows.popleft()

    def value(self) -> float | None:
        """Mean over seeds of their mean return, or None."""
        totals: dict[int, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
        for _, seed, total, count in self._rows:
            totals[seed][0] += total
            totals[seed][1] += count
        means = [total / count for total, count in totals.values()]
        return sum(means) / len(means) if means else None


class NoMetrics:
    """Writes nothing: what processes beside the first have."""

    def __enter__(self) -> "NoMetrics":
        return self

    def __exit__(self, *exc_info) -> None:
        """Nothing to close."""

    def write(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """Nothing."""

    def score(self) -> None:
        """No score: the first process has it."""


def _clean(step: int, seed: int, row: Mapping[str, Any]) -> dict[str, Any]:
    """The row with its keys in their one order, and plain numbers or None as values."""
    found = {"seed": seed, **row, "step": step}
    leading = {name: int(found.pop(name)) for name in _LEADING if name in found}
    return leading | {name: _number(found[name]) for name in sorted(found)}


def _number(value: Any) -> int | float | None:
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def _drop_rows_after(path: Path, last_kept: int) -> list[dict[str, Any]]:
    """Rewrite the file without the rows of later steps and without a broken last line.

    Returns the rows that are kept.
    """
    if not path.exists():
        return []
    rows = [(row, line) for row, line in _parse_lines(path) if row["step"] <= last_kept]
    kept = [line + "\n" for _, line in rows]
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(kept)
        file.flush()
        os.fsync(file.fileno())  # a rename may reach the disk before the contents do
    temporary.replace(path)
    return [row for row, _ in rows]


def _parse_lines(path: Path, tolerant: bool = False) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield (row, its line) of every complete line; ConfigError for a damaged one.

    `tolerant`: yield whatever has a step, and let the caller choose.
    """
    with path.open("rb") as file:
        for number in itertools.count(1):
            # Bytes that are no text can stand in the broken last line only.
            read = file.readline(_LONGEST)
            if not read.endswith(b"\n") and len(read) < _LONGEST:  # nothing, or half a line
                return
            line = read.decode("utf-8", errors="replace")
            try:
                row = json.loads(line)
                is_row = "step" in row if tolerant else _is_row(row)
            except (ValueError, TypeError, RecursionError):  # no JSON, no text, or nested too deep
                is_row = False
            if not is_row:
                raise ConfigError(
                    f"line {number} of {path} is damaged ({line[:60]!r}); remove that line"
                )
            yield row, line.removesuffix("\n")


def _is_row(row: Any) -> bool:
    """Whether an entry of the file is what `MetricsWriter` writes."""
    if not isinstance(row, dict):
        return False
    counts = (row.get("step"), row.get("seed"))
    are_counts = all(type(count) is int and count >= 0 for count in counts)
    return are_counts and all(map(_is_number, row.values()))


def _is_number(value: Any) -> bool:
    return value is None or type(value) is float or (type(value) is int and abs(value) < 2**63)


def read_metrics(workdir: str | Path, tolerant: bool = False) -> list[dict[str, Any]]:
    """All rows of `metrics.jsonl`, [] where there is none; a half-written last one is left out.

    Raises ConfigError for a damaged line; `tolerant`: only for one without a step.
    """
    path = Path(workdir) / FILE
    return [row for row, _ in _parse_lines(path, tolerant)] if path.exists() else []


def last_fifth(rows: Iterable[Mapping[str, Any]]) -> list[float | None]:
    """Mean episode return [S] over the last fifth of the steps; see `mean_return`."""
    return mean_return(rows, 0.2)


def mean_return(rows: Iterable[Mapping[str, Any]], share: float = 1.0) -> list[float | None]:
    """Mean episode return [S] over the last `share` of the steps, each episode counting once.

    None for a seed that finished no episode there.
    """
    rows = list(rows)
    begin = (1.0 - share) * max((row["step"] for row in rows), default=0)
    totals: dict[int, list[float]] = collections.defaultdict(lambda: [0.0, 0.0])
    for row in rows:
        total = totals[row["seed"]]
        episode_return, count = row.get("episode/return"), row.get("episode/count")
        if row["step"] > begin and episode_return is not None and count:
            total[0] += episode_return * count
            total[1] += count
    return [total / count if count else None for _, (total, count) in sorted(totals.items())]
