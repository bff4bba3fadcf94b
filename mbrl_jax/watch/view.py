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
from mbrl_jax.runs.metrics import FILE
from mbrl_jax.runs.shown import shown
from mbrl_jax.watch import described
from mbrl_jax.watch.reading import Reading, state
from mbrl_jax.watch.series import short
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
        self._reading = Reading(self._workdir)
        self._body: tuple[bytes, str] = (b"", "")
        self._picture: tuple[bytes, str] | None = None
        self._finished: Strip | None = None

    def body(self) -> tuple[bytes, str]:
        """(the answer as JSON, its tag); both stay while nothing changes."""
        with self._lock:
            self._look()
            return self._body

    def settings(self) -> tuple[bytes, str]:
        """(the settings of `config.json` as JSON, their tag)."""
        text = json.dumps({"settings": described.settings(self._workdir)}).encode()
        return text, tag_of(text)

    def picture(self) -> tuple[bytes, str] | None:
        """(the newest open-loop PNG, its tag), or None."""
        with self._lock:
            self._look()
            return self._picture

    def _look(self) -> None:
        if time.monotonic() - self._looked_at < MIN_SECONDS:
            return
        self._read_rows()
        last_row_at = self._reading.last_row_at()
        self._reading.read_pace(last_row_at)
        answer = self._answer(last_row_at)
        text = json.dumps(answer, allow_nan=False, separators=(",", ":")).encode()
        self._body = (text, tag_of(text))
        self._looked_at = time.monotonic()

    def _read_rows(self) -> None:
        self._reading.read_rows(time.monotonic() + MAX_SECONDS)

    def _answer(self, last_row_at: float | None) -> dict[str, Any]:
        reading, curves, run = self._reading, self._reading.curves, self._reading.run()
        process = liveness.trainer(self._workdir, last_row_at)
        groups = run.groups or {"": sorted(curves.seeds)}
        checkpoint = described.newest_checkpoint(self._workdir)
        read = reading.share()
        now = state(process, curves.step, run.steps, bool(curves.seeds), read)
        evaluation = described.evaluation(self._workdir) if now == "ended" else None
        seconds, rates = reading.pace.rate()
        num_seeds = len(curves.seeds) or sum(map(len, groups.values()))
        return {
            "name": shown(run.name),
            "workdir": shown(self._workdir),
            "environment": shown(run.environment),
            "state": now,
            "read": short(read),
            "process": shown(process),
            "num_seeds": num_seeds,
            "step": curves.step,
            "steps": run.steps,
            "env_steps": mean(curves.seeds.values()),
            "newest_return": mean(curves.newest.values()),
            "last_row_at": last_row_at,
            "speed": reading.speeds(run, num_seeds, process),
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

    def _frozen(self, run: described.Run, checkpoint: described.Checkpoint | None) -> list[dict]:
        """Seeds that do not learn any more; the checkpoint knows why."""
        causes = checkpoint.frozen if checkpoint else {}
        return [
            {"seed": seed, "step": step, "metric": shown(causes.get(seed - run.first_seed, ""))}
            for seed, step in sorted(self._reading.curves.frozen.items())
        ]

    def _notes(self, run: described.Run) -> list[str]:
        notes = []
        if not run.groups and (self._workdir / CONFIG).exists():
            notes.append(f"{CONFIG} cannot be read: names and steps are not known")
        if self._reading.damaged:
            notes.append(f"damaged lines of {FILE} that are left out: {self._reading.damaged}")
        if self._reading.curves.left_out:
            notes.append(f"{FILE} names more seeds or metrics than are shown")
        return notes

    def _newest_picture(self, num_envs: int) -> dict[str, Any] | None:
        """What the page says of the picture; the picture itself is kept for `picture`."""
        drawn = self._strips.newest if self._strips else None
        found = [strip for strip in (self._picture_of_run(), drawn) if strip is not None]
        newest = max(found, key=lambda strip: strip.drawn_at, default=None)
        self._picture = newest and (newest.png, tag_of(newest.png))
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


def mean(values: Iterable[float]) -> float | None:
    """Of numbers, in six digits; None of none."""
    values = list(values)
    return short(sum(values) / len(values)) if values else None


def tag_of(data: bytes) -> str:
    """What names an answer: equal ones have equal tags."""
    return hashlib.sha256(data).hexdigest()[:16]


def _png(path: Path) -> bytes | None:
    """A PNG of reasonable size, or None."""
    try:
        with path.open("rb") as file:
            data = file.read(_LARGEST_PICTURE + 1)
    except OSError:
        return None
    return data if data.startswith(_PNG) and len(data) <= _LARGEST_PICTURE else None
