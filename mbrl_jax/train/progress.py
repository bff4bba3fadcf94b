"""Progress of a run, for people: a bar and the returns on a terminal, plain lines elsewhere."""

import contextlib
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.runs.shown import shown
from mbrl_jax.train import preflight, tables

_CHUNKS = 20  # newest ones, over which the time of an update is taken
_LISTED = 64  # seeds whose returns are shown one by one


class Reporter(Protocol):
    """Where a run tells how it goes."""

    def planned(self, plan: preflight.Plan) -> None:
        """Before anything is compiled: how large the run is."""

    def running(self, experiment: Experiment, meta: dict[str, Any]):
        """A context manager around the training."""

    def chunk_done(self, step: int, rows: list[dict[str, Any]], seconds: float) -> None:
        """After every chunk: its last step, its metrics, and its time without compilation."""

    def warn(self, sentence: str) -> None:
        """Whenever there is something to look after."""


def warn(sentence: str) -> None:
    """A sentence on stderr."""
    print(shown(sentence), file=sys.stderr, flush=True)


class Quiet:
    """Says nothing but warnings."""

    def planned(self, plan):
        """Nothing to say."""

    @contextlib.contextmanager
    def running(self, experiment, meta):
        """Nothing to set up."""
        yield

    def chunk_done(self, step, rows, seconds):
        """Nothing to say."""

    def warn(self, sentence):
        """Say it on stderr."""
        warn(sentence)


def usual() -> Reporter:
    """What a run reports to where nothing is said: in a notebook people watch, in programs not."""
    shell = sys.modules.get("IPython")
    return Console() if shell is not None and shell.get_ipython() is not None else Quiet()


class Pace:
    """What a step and an update take, for phases differ in how many of them they make."""

    def __init__(self):
        self._collected = self._collecting = 0.0  # steps without updates, and their seconds
        self._chunks: list[tuple[int, int, float]] = []  # (steps, updates, seconds) of the others
        self.steps_per_second = 0.0  # of one seed, in the newest chunk

    def add(self, steps: int, updates: int, seconds: float) -> None:
        """A chunk was made."""
        self.steps_per_second = steps / max(seconds, 1e-9)
        if updates:
            self._chunks = [*self._chunks[1 - _CHUNKS :], (steps, updates, seconds)]
        else:
            self._collected += steps
            self._collecting += seconds

    def left(self, steps: int, updates: int) -> float | None:
        """Seconds for so many more; None while no update was timed and there are some to come."""
        if updates and not self._chunks:
            return None
        step = self._collecting / self._collected if self._collected else 0.0
        timed = [sum(column) for column in zip(*self._chunks, strict=True)]
        update = max(timed[2] - step * timed[0], 0.0) / timed[1] if timed else 0.0
        return step * steps + update * updates


def clock(seconds: float | None) -> str:
    """Minutes and seconds, behind hours if there are any."""
    if seconds is None:
        return "–"
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


class Console:
    """On a terminal a bar with the returns below; elsewhere twenty lines or so."""

    def __init__(self):
        self.console = tables.plain_console()
        self._bar = self._task = self._below = None
        self._pace = Pace()

    def planned(self, plan: preflight.Plan) -> None:
        """Say what the run is, and what memory it takes."""
        tables.print_plan(self.console, plan)

    @contextlib.contextmanager
    def running(self, experiment: Experiment, meta: dict[str, Any]) -> Iterator[None]:
        """Show the bar while the run lasts."""
        self._experiment = experiment
        self._total, self._last = experiment.steps, meta["iteration"] * experiment.num_envs
        self._next_line = self._last
        if self._last:
            self.console.print(f"going on from step {self._last} of {self._total}")
        self.console.print("compiling …")
        if not self.console.is_terminal:
            yield
            return
        from rich import console, live, progress, text

        # The bar takes what the words beside it leave; returns have lines of their own below.
        self._bar = progress.Progress(
            progress.BarColumn(bar_width=None),
            progress.TextColumn("{task.description}", markup=False),
            console=self.console,
            expand=True,
        )
        where = f"step {self._last}/{self._total}  ETA {clock(None)}"
        # Until something is done it moves by itself: compiling can take minutes.
        self._task = self._bar.add_task(where, start=False, total=self._total, completed=self._last)
        self._below = text.Text()
        with live.Live(console.Group(self._bar, self._below), console=self.console):
            yield
        self._bar = None

    def chunk_done(self, step: int, rows: list[dict[str, Any]], seconds: float) -> None:
        """Move the bar."""
        self._pace.add(step - self._last, rows[0]["count/updates"], seconds)
        self._last = step
        updates_left = preflight.updates(self._experiment, step // self._experiment.num_envs)
        left = clock(self._pace.left(self._total - step, updates_left))
        where = f"step {step}/{self._total}  ETA {left}"
        speed, returns = self._speed(rows, seconds), _returns(rows)
        if self._bar is not None:
            assert self._below is not None and self._task is not None
            self._bar.start_task(self._task)
            self._bar.update(self._task, completed=step, description=where)
            self._below.plain = f"{speed}\n{returns}"
        elif step >= self._next_line or step == self._total:
            self.console.print(f"{where}  {speed}  {returns}", soft_wrap=True)
            self._next_line = step + self._total / 20

    def _speed(self, rows: list[dict[str, Any]], seconds: float) -> str:
        """How fast the newest chunk was."""
        env_steps = sum(row["env_steps"] for row in rows) // len(rows)
        speed = self._pace.steps_per_second * len(rows)
        updates = rows[0]["count/updates"]
        update = f"  {seconds / updates:.3g} s/update" if updates else ""
        return f"{speed:,.0f} steps/s of all seeds{update}  env steps {env_steps:,}"

    def warn(self, sentence: str) -> None:
        """Say it above the bar, or on stderr."""
        if self._bar is None:
            warn(sentence)
        else:
            self.console.print(sentence, style="yellow", markup=False)


def _returns(rows: list[dict[str, Any]]) -> str:
    """The mean return of each seed in the newest chunk; of many their mean."""
    found = [row.get("episode/return") for row in rows]
    if len(rows) > _LISTED:
        there = [value for value in found if value is not None]
        mean = sum(there) / len(there) if there else None
        return f"return {tables.short_number(mean)} in the mean of {len(rows)} seeds"
    return f"return {' '.join(map(tables.short_number, found))}"
