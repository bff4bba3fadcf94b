"""What the page of many runs shows: a line of each, and its mean learning curve."""

import json
import threading
import time
from pathlib import Path
from typing import Any

from mbrl_jax.runs import liveness
from mbrl_jax.runs.shown import shown
from mbrl_jax.watch import find
from mbrl_jax.watch.reading import Reading, state
from mbrl_jax.watch.view import View, mean, tag_of

MIN_SECONDS = 1.0  # between looks at the runs
FIND_SECONDS = 5.0  # between looks for new ones
MAX_SECONDS = 1.0  # that a look reads rows
MAX_VIEWS = 8  # runs whose own pages are kept up to date; the least wanted one goes
_POINTS = 6_000  # of all curves
_CURVE = (40, 200)  # least and most points of one


class _Glance:
    """A line of the table."""

    def __init__(self, number: int, name: str, path: Path):
        self.name, self.path = name, path
        self._number = number
        self._reading = Reading(path, only_returns=True)
        self._curve: tuple[tuple[int, int] | None, Any] = (None, None)

    def look(self, deadline: float, most: int) -> dict[str, Any]:
        """Read what is new, and say how far the run is. Its curve has at most `most` points."""
        reading, curves = self._reading, self._reading.curves
        reading.read_rows(deadline)
        curves, run = reading.curves, reading.run()
        last_row_at = reading.last_row_at()
        process = liveness.trainer(self.path, last_row_at)
        if process:  # what others took is not worth the reading
            reading.read_pace(last_row_at)
        num_seeds = len(curves.seeds) or sum(map(len, run.groups.values()))
        speeds = reading.speeds(run, num_seeds, process)
        return {
            "id": self._number,
            "name": shown(self.name),
            "experiment": shown(run.name) if run.groups else "",
            "environment": shown(run.environment),
            "state": self._state(process, run.steps),
            "step": curves.step,
            "steps": run.steps,
            "num_seeds": num_seeds,
            "newest_return": mean(curves.newest.values()),
            "speed": speeds["recent"] if process else None,
            "left": speeds["left"],
            "curve": self._mean_curve(most),
        }

    def _state(self, process: str, steps: int) -> str:
        curves = self._reading.curves
        found = state(process, curves.step, steps, bool(curves.seeds), self._reading.share())
        lies_still = found in ("waiting", "stopped")
        return "failed" if lies_still and find.has_failed(self.path) else found

    def _mean_curve(self, most: int) -> Any:
        """Made anew when rows have come."""
        key = (self._reading.pieces, most)
        if self._curve[0] != key:
            self._curve = (key, self._reading.curves.mean_return(most))
        return self._curve[1]


class Overview:
    """The runs of a folder as a page sees them; its methods may be called from several threads.

    A run keeps its number as long as this lives: a request names numbers, and never a path.
    """

    def __init__(self, folder: Path):
        """`folder`: what holds runs, or the root of a sweep."""
        self._folder = Path(folder)
        self._lock = threading.Lock()
        self._looked_at, self._found_at = -MIN_SECONDS, -FIND_SECONDS
        self._glances: dict[str, _Glance] = {}
        self._lines: dict[str, dict[str, Any]] = {}
        self._there: list[str] = []
        self._left_out, self._next = False, 0
        self._views: dict[int, View] = {}
        self._body: tuple[bytes, str] = (b"", "")

    def body(self) -> tuple[bytes, str]:
        """(the answer as JSON, its tag); both stay while nothing changes."""
        with self._lock:
            if time.monotonic() - self._looked_at >= MIN_SECONDS:
                self._find()
                self._look()
                self._looked_at = time.monotonic()
            return self._body

    def view(self, number: int) -> View | None:
        """The page of one run, or None."""
        with self._lock:
            self._find()
            if number >= len(self._glances):
                return None
            path = list(self._glances.values())[number].path
            view = self._views.pop(number, None) or View(path)
            self._views[number] = view  # the newest wanted one comes last
            for old in list(self._views)[:-MAX_VIEWS]:
                del self._views[old]
            return view

    def _find(self) -> None:
        if time.monotonic() - self._found_at < FIND_SECONDS:
            return
        self._there, self._left_out = find.find(self._folder)
        for name in self._there:
            if name not in self._glances:
                number, path = len(self._glances), self._folder / name
                self._glances[name] = _Glance(number, name, path)
        self._found_at = time.monotonic()

    def _look(self) -> None:
        deadline, num = time.monotonic() + MAX_SECONDS, len(self._there)
        most = min(max(_POINTS // max(num, 1), _CURVE[0]), _CURVE[1])
        for i in range(num):  # from where the time was up before
            name = self._there[(self._next + i) % num]
            self._lines[name] = self._glances[name].look(deadline, most)
            if time.monotonic() > deadline:
                self._next = (self._next + i + 1) % num
                break
        lines = [self._lines[name] for name in self._there if name in self._lines]
        waits = num - len(lines) + sum(line["state"] == "reading" for line in lines)
        answer = {
            "folder": shown(self._folder),
            "name": shown(self._folder.resolve().name),
            "is_sweep": (self._folder / find.SWEEP).is_file(),
            "reading": waits,
            "left_out": self._left_out,
            "runs": lines,
        }
        text = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
        self._body = (text, tag_of(text))
