"""Progress of a run, for people: a rich bar on a terminal, plain lines elsewhere."""

import contextlib
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from mbrl_jax.experiment.experiment import Experiment, title_of
from mbrl_jax.experiment.members import Members
from mbrl_jax.runs.shown import shown
from mbrl_jax.train import preflight
from mbrl_jax.train.host_programs import PUBLISHED_LANES
from mbrl_jax.train.report import human_normalised, nothing_done

_CHUNKS = 20  # newest ones, over which the time of an update is taken


class Reporter(Protocol):
    """Where a run tells how it goes."""

    def planned(self, plan: preflight.Plan) -> None:
        """Before anything is compiled: how large the run is."""

    def running(self, experiment: Experiment, programs: Any, meta: dict[str, Any]):
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
    def running(self, experiment, programs, meta):
        """Nothing to set up."""
        yield

    def chunk_done(self, step, rows, seconds):
        """Nothing to say."""

    def warn(self, sentence):
        """Say it on stderr."""
        warn(sentence)


def _console():
    """Where text is printed as it is: names of runs are no markup."""
    from rich.console import Console as RichConsole

    return RichConsole(markup=False, emoji=False)


class Pace:
    """What a step and an update take, for phases differ in how many of them they make."""

    def __init__(self):
        self._collected = self._collecting = 0.0  # steps without updates, and their seconds
        self._chunks: list[tuple[int, int, float]] = []  # (steps, updates, seconds) of the others

    def add(self, steps: int, updates: int, seconds: float) -> None:
        """A chunk was made."""
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
    """A progress bar on a terminal; elsewhere a line at every twentieth of the run."""

    def __init__(self):
        self.console = _console()
        self._bar = self._task = None
        self._timed_steps = self._seconds = 0.0
        self._pace = Pace()

    def planned(self, plan: preflight.Plan) -> None:
        """Say what the run is, and what memory it takes; time a product to foretell its time."""
        self._plan, self._peak = plan, preflight.product_peak()
        self.surveyed(plan)

    def surveyed(self, plan: preflight.Plan) -> None:
        """The size of a run, without its beginning."""
        print_plan(self.console, plan)

    @contextlib.contextmanager
    def running(
        self, experiment: Experiment, programs: Any, meta: dict[str, Any]
    ) -> Iterator[None]:
        """Show the bar while the run lasts."""
        self._total, self._last = experiment.steps, meta["iteration"] * experiment.num_envs
        self._experiment = experiment
        self._next_line = self._last
        if self._last:
            self.console.print(f"going on from step {self._last} of {self._total}")
        self._flops_of_update = programs.flops_of_update
        self.console.print("compiling …")
        if self._last < self._total:
            self._foretell()
        if not self.console.is_terminal:
            yield
            return
        from rich import progress

        self._bar = progress.Progress(
            progress.BarColumn(),
            progress.TextColumn("{task.description}", markup=False),
            console=self.console,
        )
        with self._bar:
            self._task = self._bar.add_task("", total=self._total, completed=self._last)
            yield
        self._bar = None

    def _foretell(self) -> None:
        """How long the whole run may take, by the work of an update."""
        gflops = self._flops_of_update() / 1e9
        hours = preflight.expected_hours(self._plan, 1e9 * gflops, self._peak)
        share = f"{preflight.EFFICIENCY:.0%} of the {self._peak / 1e9:,.0f} GFLOP/s of a product"
        self.console.print(
            f"estimate: {in_words(hours)} for updates of {gflops:.3g} GFLOP a seed, at {share}",
            soft_wrap=True,
        )

    def chunk_done(self, step: int, rows: list[dict[str, Any]], seconds: float) -> None:
        """Move the bar."""
        self._timed_steps += step - self._last
        self._seconds += seconds
        self._pace.add(step - self._last, rows[0]["count/updates"], seconds)
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
        updates_left = preflight.updates(self._experiment, step // self._experiment.num_envs)
        left = clock(self._pace.left(self._total - step, updates_left))
        returns = " ".join(_short_number(row.get("episode/return")) for row in rows[:8])
        more = " …" if len(rows) > 8 else ""
        updates = rows[0]["count/updates"]
        update = ""
        if updates:
            gflop = self._flops_of_update() / 1e9
            update = f"  {seconds / updates:.3g} s/update of {gflop:.3g} GFLOP a seed"
        return (
            f"step {step}/{self._total}  env steps {env_steps}  {speed:,.0f} steps/s (all seeds)"
            f"{update}  ETA {left}  return {returns}{more}"
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


def _evaluation_columns(evaluation, i: int) -> tuple[str, str]:
    """(mean ± standard error, finished / all) of the greedy episodes of seed i."""
    returns, finished = evaluation.episode_return[i], evaluation.finished[i]
    if not len(returns):
        return "–", "–"
    if not all(map(math.isfinite, returns)):
        return "not finite", f"{finished.sum()}/{len(finished)}"
    error = returns.std() / math.sqrt(max(len(returns), 1))
    return f"{returns.mean():.3f} ± {error:.3f}", f"{finished.sum()}/{len(finished)}"


def print_table(result: Any, directory: Any, flags: Sequence[str] = ()) -> None:
    """Returns per seed, where the pictures are, how to evaluate again (with further `flags`)."""
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
            _short_number(final, 3),
            *_evaluation_columns(result.evaluation, i),
            "ok" if frozen == -1 else f"frozen at iteration {frozen % 2**32}{_cause(result, i)}",
        )
    console = _console()
    console.print(table)
    for line in nothing_done(result):
        console.print(line, soft_wrap=True, highlight=False)
    for picture in result.pictures:
        console.print(shown(picture), soft_wrap=True, highlight=False)
    command = shlex.join((f"--workdir={directory}", *flags))
    command = f"evaluate again: python -m launch.evaluate {command}"
    console.print(shown(command), soft_wrap=True, highlight=False)


def _cause(result, seed: int) -> str:
    metric = result.causes.get(str(seed))
    return f" ({metric})" if metric else ""


def print_evaluation(
    evaluation: Any, experiment: Experiment, directory: str, protocol: str
) -> None:
    """One row for each seed, and below how the episodes were counted and scores normalised."""
    from rich.table import Table

    table = Table(title=shown(f"evaluation of {directory}"))
    normalised = human_normalised(experiment, evaluation)
    names = ("seed", "return", "length", "finished")
    for name in (*names, "human-normalised") if normalised else names:
        table.add_column(name, justify="right")
    for i, lengths in enumerate(evaluation.length):
        mean, finished = _evaluation_columns(evaluation, i)
        score = [_short_number(normalised["mean"][i], 3)] if normalised else []
        table.add_row(str(i), mean, f"{lengths.mean():.1f}", finished, *score)
    console = _console()
    console.print(table)
    for line in _notes(evaluation, normalised, protocol):
        console.print(shown(line), soft_wrap=True, highlight=False)


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


_SHOWN_HORIZONS = (1, 2, 4, 8, 15, 30, 60)


def print_quality(found: dict[str, Any], directory: Any) -> None:
    """Errors against the rows ahead, mean over seeds; below, the rest of `quality.summarise`."""
    from rich.table import Table

    title = f"world model of {directory} at step {found['step']}, {len(found['seeds'])} seeds"
    table = Table(title=shown(title))
    columns = {
        "observation": "squared error",
        "observation_copied": "of the last one seen",
        "reward": "reward error",
        "reward_constant": "of the mean reward",
        "reward_accuracy": "rewards hit",
    }
    for name in ("rows ahead", *columns.values()):
        table.add_column(name, justify="right")
    for h in sorted({*_SHOWN_HORIZONS, found["horizon"]}):
        if h <= found["horizon"]:
            cells = [_over_seeds(found, name, h - 1) for name in columns]
            table.add_row(str(h), *map(_short_number, cells))
    console = _console()
    console.print(table)
    ends = {name: _over_seeds(found, "ends", name) for name in found["seeds"][0]["ends"]}
    told = ", ".join(f"{name} {_short_number(value)}" for name, value in ends.items())
    console.print(f"ends of episodes, one row ahead: {told}", soft_wrap=True)
    seen = [seed["reconstruction"] for seed in found["seeds"]]
    console.print(f"reconstruction of what was seen: {_short_number(_mean_of(seen))}")


def _over_seeds(found: dict[str, Any], name: str, place: int | str) -> float | None:
    """The mean over seeds of an entry's place; None where no seed has it."""
    return _mean_of([seed[name][place] for seed in found["seeds"] if seed[name] is not None])


def _mean_of(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def _short_number(value: float | None, decimals: int | None = None) -> str:
    if value is None:
        return "–"
    return f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}"


def print_films(films: Any) -> None:
    """What each GIF shows, and where it lies."""
    console = _console()
    for seed, (path, film) in enumerate(films):
        thinned = f", every {film.every}th step is shown" if film.every > 1 else ""
        cut = "" if film.finished else " (cut there)"
        console.print(
            f"seed {seed}, one episode: return {film.episode_return:g} in {film.length} steps{cut}"
            f"{thinned}: {shown(path)}",
            soft_wrap=True,
            highlight=False,
        )


def print_plan(console: Any, plan: preflight.Plan) -> None:
    """The size of a run: of a seed, and of all of them beside what is free."""
    experiment, size = plan.experiment, preflight.size
    parameters = ", ".join(f"{name} {number:,}" for name, number in plan.parameters.items())
    of_all = f"{plan.num_seeds} seeds take {size(plan.num_seeds * plan.of_seed)}"
    free = "it is not known how much is free"
    place = plan.memory
    if plan.most_seeds is not None and place.free is not None:
        several = f" each of {place.pools} times" if place.pools > 1 else ""
        fits = f"the state of {plan.most_seeds} fits"
        if plan.temporaries is not None:
            fits = f"at most {plan.most_seeds} fit"
        free = f"{size(place.free)} of {place.place}{several} are free: {fits}"
    lines = [
        f"{title_of(experiment)}: {plan.num_seeds} seeds, {experiment.steps} steps each; "
        f"parameters: {parameters}",
        f"memory of a seed: {size(plan.state)}, of it replay {size(plan.replay)}, {plan.more()}; "
        f"{of_all}; {free}",
    ]
    if plan.hours is not None:
        lines.append(
            f"time: about {in_words(plan.hours)} for all seeds and steps, from timed updates; "
            "compiling and evaluating come on top"
        )
    for line in lines:
        console.print(shown(line), soft_wrap=True, highlight=False)


def in_words(hours: float) -> str:
    """A time as hours, minutes or seconds."""
    for unit, number in (("hours", hours), ("minutes", hours * 60)):
        if number >= 1:
            return f"{number:.2g} {unit}"
    return f"{hours * 3600:.2g} seconds"


def print_findings(findings: Any, name: str) -> None:
    """A line for each finding of the environment doctor, and how many there are of each kind."""
    console = _console()
    styles = {"error": "bold red", "warning": "yellow", "ok": "green"}
    for severity, topic, sentence in findings:
        console.print(f"{severity:8}", style=styles[severity], end="")
        console.print(shown(f"{topic}: {sentence}"), soft_wrap=True, highlight=False)
    severities = [severity for severity, _, _ in findings]
    errors, warnings, fine = (severities.count(kind) for kind in styles)
    console.print(
        shown(f"{name}: {errors} errors, {warnings} warnings, {fine} in order"),
        soft_wrap=True,
        highlight=False,
    )
