"""The answer that the page shows, made from a run's directory while it grows."""

import hashlib
import json
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mbrl_jax.runs import liveness
from mbrl_jax.runs.layout import CONFIG, OPEN_LOOP
from mbrl_jax.runs.metrics import FILE, FOLDER
from mbrl_jax.runs.shown import shown
from mbrl_jax.watch import described
from mbrl_jax.watch.pace import Pace
from mbrl_jax.watch.series import Curves, Follower, parse_row, short
from mbrl_jax.watch.strips import Strip, Strips

MIN_SECONDS = 0.5  # between looks at the directory
MAX_SECONDS = 1.0  # that a look reads rows: of a long run, what comes first is shown first
_LARGEST_PICTURE = 2**24
_PNG = b"\x89PNG\r\n\x1a\n"


class View:
    """A run as a page sees it; its methods may be called from several threads."""

    def __init__(self, workdir: Path, strips: Strips | None = None):
        """`strips`: who draws open-loop pictures while the run trains, if anybody does."""
        self._workdir, self._strips = Path(workdir), strips
        self._lock = threading.Lock()
        self._looked_at = -MIN_SECONDS
        self._metrics = Follower(self._workdir / FILE)
        self._pace = Pace(self._workdir / FOLDER / "seed_0")
        self._curves, self._damaged, self._began_anew = Curves(), 0, 0
        self._body: tuple[bytes, str] = (b"", "")
        self._picture: tuple[bytes, str] | None = None
        self._finished: Strip | None = None

    def body(self) -> tuple[bytes, str]:
        """(the answer as JSON, its tag); both stay while nothing changes."""
        with self._lock:
            self._look()
            return self._body

    def picture(self) -> tuple[bytes, str] | None:
        """(the newest open-loop PNG, its tag), or None."""
        with self._lock:
            self._look()
            return self._picture

    def _look(self) -> None:
        if time.monotonic() - self._looked_at < MIN_SECONDS:
            return
        self._read_rows()
        self._pace.read()
        last_row_at = described.modified(self._workdir / FILE) if self._curves.seeds else None
        if last_row_at is not None and self._metrics.share() == 1:
            self._pace.watched(last_row_at, self._curves.step, self._began_anew)
        answer = self._answer(last_row_at)
        text = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
        self._body = (text, _tag(text))
        self._looked_at = time.monotonic()

    def _read_rows(self) -> None:
        began = time.monotonic()
        for piece in self._metrics.read():
            if piece.anew:
                self._curves, self._damaged = Curves(), 0
                self._began_anew += 1
            for line in piece.lines:
                row = parse_row(line)
                if row is None:
                    self._damaged += 1
                else:
                    self._curves.add(row)
            if time.monotonic() - began > MAX_SECONDS:
                return

    def _answer(self, last_row_at: float | None) -> dict[str, Any]:
        curves, run = self._curves, described.describe(self._workdir)
        process = liveness.trainer(self._workdir, last_row_at)
        groups = run.groups or {"": sorted(curves.seeds)}
        checkpoint = described.newest_checkpoint(self._workdir)
        read = self._metrics.share()
        state = _state(bool(process), curves.step, run.steps, bool(curves.seeds))
        state = state if read == 1 else "reading"
        evaluation = described.evaluation(self._workdir) if state == "ended" else None
        seconds, rates = self._pace.rate()
        num_seeds = len(curves.seeds) or sum(map(len, groups.values()))
        return {
            "name": shown(run.name),
            "workdir": shown(self._workdir),
            "environment": shown(run.environment),
            "state": state,
            "read": short(read),
            "process": shown(process),
            "num_seeds": num_seeds,
            "step": curves.step,
            "steps": run.steps,
            "env_steps": _mean(curves.seeds.values()),
            "newest_return": _mean(curves.newest.values()),
            "last_row_at": last_row_at,
            "speed": self._speeds(run, num_seeds, bool(process)),
            "checkpoint": checkpoint
            and {"step": checkpoint.iteration * run.num_envs, "saved_at": checkpoint.saved_at},
            "evaluation": evaluation,
            "frozen": self._frozen(run, checkpoint),
            "notes": self._notes(run),
            "returns": curves.returns(groups),
            "env_steps_of_metrics": curves.env_steps(),
            "metrics": [{**m, "name": shown(m["name"])} for m in curves.metrics()],
            "throughput": {
                "seconds": seconds,
                "rows": [None if rate is None else short(rate * num_seeds) for rate in rates],
            },
            "picture": self._newest_picture(run.num_envs),
        }

    def _speeds(self, run: described.Run, num_seeds: int, trains: bool) -> dict[str, float | None]:
        """Rows of all seeds per second now and on the average, and the seconds that are left."""
        recent, average = self._pace.recent(), self._pace.average()
        step, left = self._curves.step, run.steps - self._curves.step
        going = trains and left > 0 and (step > run.learns_from or run.learns_from == run.steps)
        return {
            "recent": recent and short(recent * num_seeds),
            "average": average and short(average * num_seeds),
            "left": short(left / recent) if going and recent else None,
        }

    def _frozen(self, run: described.Run, checkpoint: described.Checkpoint | None) -> list[dict]:
        """Seeds that do not learn any more; the checkpoint knows why."""
        causes = checkpoint.frozen if checkpoint else {}
        return [
            {"seed": seed, "step": step, "metric": shown(causes.get(seed - run.first_seed, ""))}
            for seed, step in sorted(self._curves.frozen.items())
        ]

    def _notes(self, run: described.Run) -> list[str]:
        notes = []
        if not run.groups and (self._workdir / CONFIG).exists():
            notes.append(f"{CONFIG} cannot be read: names and steps are not known")
        if self._damaged:
            notes.append(f"damaged lines of {FILE} that are left out: {self._damaged}")
        if self._curves.left_out:
            notes.append(f"{FILE} names more seeds or metrics than are shown")
        return notes

    def _newest_picture(self, num_envs: int) -> dict[str, Any] | None:
        """What the page says of the picture; the picture itself is kept for `picture`."""
        drawn = self._strips.newest if self._strips else None
        found = [strip for strip in (self._picture_of_run(), drawn) if strip is not None]
        newest = max(found, key=lambda strip: strip.drawn_at, default=None)
        self._picture = newest and (newest.png, _tag(newest.png))
        said = {"error": "", "drawing": False}
        if self._strips:
            said = {"error": shown(self._strips.error), "drawing": self._strips.drawing}
        if newest is None or self._picture is None:
            return {"tag": None, **said} if self._strips else None
        step = None if newest.iteration is None else newest.iteration * num_envs
        return {"tag": self._picture[1], "step": step, "drawn_at": newest.drawn_at, **said}

    def _picture_of_run(self) -> Strip | None:
        """What the run itself has drawn at its end."""
        path = self._workdir / OPEN_LOOP
        written_at = described.modified(path)
        if written_at is None:
            self._finished = None
        elif self._finished is None or self._finished.drawn_at != written_at:
            png = _png(path)
            self._finished = None if png is None else Strip(png, None, written_at)
        return self._finished


def _state(trains: bool, step: int, steps: int, begun: bool) -> str:
    """In a word; steps are 0 where they are not known."""
    if trains and not begun:
        return "starting"
    if trains:
        return "evaluating" if step >= steps > 0 else "training"
    if not begun:
        return "waiting"
    return "ended" if step >= steps > 0 else "stopped"


def _mean(values: Iterable[float]) -> float | None:
    values = list(values)
    return short(sum(values) / len(values)) if values else None


def _tag(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:16]


def _png(path: Path) -> bytes | None:
    """A PNG of reasonable size, or None."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_PICTURE + 1)
    except OSError:
        return None
    return data if data.startswith(_PNG) and len(data) <= _LARGEST_PICTURE else None
