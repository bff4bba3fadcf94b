"""What a run says for people before and after training: its size, returns, evaluations, films."""

import math
import shlex
from collections.abc import Sequence
from typing import Any

from mbrl_jax.experiment.experiment import Experiment, title_of
from mbrl_jax.runs.shown import shown
from mbrl_jax.train import preflight
from mbrl_jax.train.host_programs import PUBLISHED_LANES
from mbrl_jax.train.report import human_normalised, nothing_done


def plain_console() -> Any:
    """Where text is printed as it is: names of runs are no markup."""
    from rich.console import Console

    return Console(markup=False, emoji=False)


def print_sentence(console: Any, sentence: str, *before: tuple[str, str]) -> None:
    """A sentence: a terminal would break it within words, and files keep it as one line.

    `before` are words with their style that stand in front of it.
    """
    from rich.text import Text

    line = Text.assemble(*before, shown(sentence))
    console.print(line, soft_wrap=not console.is_terminal, highlight=False)


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
            short_number(final, 3),
            *_evaluation_columns(result.evaluation, i),
            "ok" if frozen == -1 else f"frozen at iteration {frozen % 2**32}{_cause(result, i)}",
        )
    console = plain_console()
    console.print(table)
    for line in nothing_done(result):
        print_sentence(console, line)
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
        score = [short_number(normalised["mean"][i], 3)] if normalised else []
        table.add_row(str(i), mean, f"{lengths.mean():.1f}", finished, *score)
    console = plain_console()
    console.print(table)
    for line in _notes(evaluation, normalised, protocol):
        print_sentence(console, line)


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
            table.add_row(str(h), *map(short_number, cells))
    console = plain_console()
    console.print(table)
    ends = {name: _over_seeds(found, "ends", name) for name in found["seeds"][0]["ends"]}
    told = ", ".join(f"{name} {short_number(value)}" for name, value in ends.items())
    console.print(f"ends of episodes, one row ahead: {told}", soft_wrap=True)
    seen = [seed["reconstruction"] for seed in found["seeds"]]
    console.print(f"reconstruction of what was seen: {short_number(_mean_of(seen))}")


def _over_seeds(found: dict[str, Any], name: str, place: int | str) -> float | None:
    """The mean over seeds of an entry's place; None where no seed has it."""
    return _mean_of([seed[name][place] for seed in found["seeds"] if seed[name] is not None])


def _mean_of(values: list[float | None]) -> float | None:
    there = [value for value in values if value is not None]
    return sum(there) / len(there) if there else None


def short_number(value: float | None, decimals: int | None = None) -> str:
    """A number in three digits, or with so many decimals; a dash for None."""
    if value is None:
        return "–"
    return f"{value:.3g}" if decimals is None else f"{value:.{decimals}f}"


def print_films(films: Any) -> None:
    """What each GIF shows, and where it lies."""
    console = plain_console()
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
        print_sentence(console, line)


def in_words(hours: float) -> str:
    """A time as hours, minutes or seconds."""
    for unit, number in (("hours", hours), ("minutes", hours * 60)):
        if number >= 1:
            return f"{number:.2g} {unit}"
    return f"{hours * 3600:.2g} seconds"


def print_findings(findings: Any, name: str) -> None:
    """A line for each finding of the environment doctor, and how many there are of each kind."""
    console = plain_console()
    styles = {"error": "bold red", "warning": "yellow", "ok": "green"}
    for severity, topic, sentence in findings:
        print_sentence(console, f"{topic}: {sentence}", (f"{severity:8}", styles[severity]))
    severities = [severity for severity, _, _ in findings]
    errors, warnings, fine = (severities.count(kind) for kind in styles)
    console.print(
        shown(f"{name}: {errors} errors, {warnings} warnings, {fine} in order"),
        soft_wrap=True,
        highlight=False,
    )
