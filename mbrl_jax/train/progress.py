"""Progress of a run, for people: a rich bar on a terminal, plain lines elsewhere."""

import contextlib
import math
import sys
from collections.abc import Iterator
from typing import Any, Protocol

from mbrl_jax.train.experiment import Experiment
from mbrl_jax.train.host_programs import PUBLISHED_LANES
from mbrl_jax.train.members import Members
from mbrl_jax.train.report import human_normalised


class Reporter(Protocol):
    """Where a run tells how it goes."""

    def running(self, experiment: Experiment, programs: Any, meta: dict[str, Any]):
        """A context manager around the training."""

    def chunk_done(self, step: int, rows: list[dict[str, Any]], seconds: float) -> None:
        """After every chunk: its last step, its metrics, and its time without compilation."""

    def warn(self, sentence: str) -> None:
        """Whenever there is something to look after."""


def warn(sentence: str) -> None:
    """A sentence on stderr."""
    print(sentence, file=sys.stderr, flush=True)


class Quiet:
    """Says nothing but warnings."""

    @contextlib.contextmanager
    def running(self, experiment, programs, meta):
        """Nothing to set up."""
        yield

    def chunk_done(self, step, rows, seconds):
        """Nothing to say."""

    def warn(self, sentence):
        """Say it on stderr."""
        warn(sentence)


class Console:
    """A progress bar on a terminal; elsewhere a line at every twentieth of the run."""

    def __init__(self):
        from rich.console import Console as RichConsole

        self.console = RichConsole()
        self._bar = self._task = None
        self._timed_steps = self._seconds = 0.0

    @contextlib.contextmanager
    def running(
        self, experiment: Experiment, programs: Any, meta: dict[str, Any]
    ) -> Iterator[None]:
        """Show the bar while the run lasts."""
        self._total, self._last = experiment.steps, meta["iteration"] * experiment.num_envs
        self._next_line = self._last
        if self._last:
            self.console.print(f"going on from step {self._last} of {self._total}")
        self._flops_of_update = programs.flops_of_update
        parameters = ", ".join(f"{name} {n:,}" for name, n in programs.parameters().items())
        self.console.print(
            f"{experiment.name}: {_count(programs.members)}, {self._total} steps each; "
            f"parameters: {parameters}; compiling …",
            soft_wrap=True,
        )
        if not self.console.is_terminal:
            yield
            return
        from rich import progress

        self._bar = progress.Progress(
            progress.BarColumn(), progress.TextColumn("{task.description}"), console=self.console
        )
        with self._bar:
            self._task = self._bar.add_task("", total=self._total, completed=self._last)
            yield
        self._bar = None

    def chunk_done(self, step: int, rows: list[dict[str, Any]], seconds: float) -> None:
        """Move the bar."""
        self._timed_steps += step - self._last
        self._seconds += seconds
        self._last = step
        text = self._describe(step, rows, seconds)
        if self._bar is not None:
            self._bar.update(self._task, completed=step, description=text)
        elif step >= self._next_line or step == self._total:
            self.console.print(text, soft_wrap=True)
            self._next_line = step + self._total / 20

    def _describe(self, step: int, rows: list[dict[str, Any]], seconds: float) -> str:
        env_steps = sum(row["env_steps"] for row in rows) // len(rows)
        speed = self._timed_steps * len(rows) / max(self._seconds, 1e-9)
        left = (self._total - step) * len(rows) / max(speed, 1e-9)
        returns = " ".join(_short(row.get("episode/return")) for row in rows[:8])
        more = " …" if len(rows) > 8 else ""
        updates = rows[0]["count/updates"]
        update = ""
        if updates:
            gflop = self._flops_of_update() / 1e9
            update = f"  {seconds / updates:.3g} s/update of {gflop:.3g} GFLOP a seed"
        return (
            f"step {step}/{self._total}  env steps {env_steps}  {speed:,.0f} steps/s (all seeds)"
            f"{update}  ETA {int(left // 60)}:{int(left % 60):02d}  return {returns}{more}"
        )

    def warn(self, sentence: str) -> None:
        """Say it above the bar, or on stderr."""
        if self._bar is None:
            warn(sentence)
        else:
            self.console.print(sentence, style="yellow", markup=False, soft_wrap=True)


def _count(members: Members) -> str:
    settings = len(members.settings)
    return f"{settings} settings × " * (settings > 1) + f"{members.num_seeds} seeds"


def _short(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g}"


def _evaluation_columns(evaluation, i: int) -> tuple[str, str]:
    """(mean ± standard error, finished / all) of the greedy episodes of seed i."""
    returns, finished = evaluation.episode_return[i], evaluation.finished[i]
    error = returns.std() / math.sqrt(max(len(returns), 1))
    return f"{returns.mean():.3f} ± {error:.3f}", f"{finished.sum()}/{len(finished)}"


def print_table(result, directory) -> None:
    """Returns per seed, and where the pictures are."""
    from rich.console import Console as RichConsole
    from rich.table import Table

    table = Table(title="returns per seed")
    varied = [path for path, _ in result.members.inside]
    for name in (*varied, "seed", "training, last fifth", "greedy episodes", "finished", "state"):
        table.add_column(name, justify="right")
    for i, final in enumerate(result.final_return):
        frozen = result.frozen_at[i]
        setting = result.members.setting(i)
        table.add_row(
            *(f"{setting[path]:g}" for path in varied),
            str(result.members.first_seed + i % result.members.num_seeds),
            "–" if final is None else f"{final:.3f}",
            *_evaluation_columns(result.evaluation, i),
            "ok" if frozen == -1 else f"frozen at iteration {frozen % 2**32}{_cause(result, i)}",
        )
    console = RichConsole()
    console.print(table)
    for picture in result.pictures:
        console.print(str(picture), soft_wrap=True, markup=False, highlight=False)
    console.print(
        f"evaluate again: python -m launch.evaluate --workdir={directory}",
        soft_wrap=True,
        markup=False,
        highlight=False,
    )


def _cause(result, seed: int) -> str:
    metric = result.causes.get(str(seed))
    return f" ({metric})" if metric else ""


def print_evaluation(evaluation, experiment: Experiment, directory, protocol: str) -> None:
    """One row for each seed, and below how the episodes were counted and scores normalised."""
    from rich.console import Console as RichConsole
    from rich.table import Table

    table = Table(title=f"evaluation of {directory}")
    normalised = human_normalised(experiment, evaluation)
    names = ("seed", "return", "length", "finished")
    for name in (*names, "human-normalised") if normalised else names:
        table.add_column(name, justify="right")
    for i, lengths in enumerate(evaluation.length):
        mean, finished = _evaluation_columns(evaluation, i)
        score = [f"{normalised['mean'][i]:.3f}"] if normalised else []
        table.add_row(str(i), mean, f"{lengths.mean():.1f}", finished, *score)
    console = RichConsole()
    console.print(table)
    for line in _notes(evaluation, normalised, protocol):
        console.print(line, soft_wrap=True, markup=False, highlight=False)


def _notes(evaluation, normalised: dict[str, Any] | None, protocol: str) -> list[str]:
    """What has to be known to read the table."""
    notes = []
    if protocol == "published":
        notes.append(
            f"published protocol: the first {evaluation.length.shape[1]} episodes to end in any of "
            f"{PUBLISHED_LANES} lanes. Short episodes are favoured, so that the mean is biased; "
            "that of --protocol=clean is not"
        )
    if not evaluation.finished.all():
        notes.append("episodes that were cut at eval_max_steps count as far as they went")
    if normalised:
        notes.append(
            f"human-normalised: 0 is random play ({normalised['random']}), 1 a human tester "
            f"({normalised['human']}) in {normalised['game']}; references to one decimal as "
            "printed in arXiv 1511.06581"
        )
    return notes


def print_films(films) -> None:
    """What each GIF shows, and where it lies."""
    from rich.console import Console as RichConsole

    console = RichConsole()
    for seed, (path, film) in enumerate(films):
        thinned = f", every {film.every}th step is shown" if film.every > 1 else ""
        cut = "" if film.finished else " (cut there)"
        console.print(
            f"seed {seed}, one episode: return {film.episode_return:g} in {film.length} steps{cut}"
            f"{thinned}: {path}",
            soft_wrap=True,
            markup=False,
            highlight=False,
        )
