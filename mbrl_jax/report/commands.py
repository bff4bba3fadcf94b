"""The command that made a run: of its sweep's plan, or found again from its configuration."""

import dataclasses
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment, for_debug, with_settings, with_steps
from mbrl_jax.experiment.members import Members
from mbrl_jax.report.records import Run, read_run
from mbrl_jax.runs.workdir import RunConfig

_ROUNDS = 8  # a type is set first, then what lies below it


class Base(NamedTuple):
    """An experiment that can be named on the command line."""

    flag: str  # as --experiment takes it
    experiment: Experiment


class Command(NamedTuple):
    """A command and how it is known."""

    text: str  # "" where it is not
    source: str


def command_of(run: Run, bases: Mapping[str, Base]) -> Command:
    """The command that makes a run.

    Args:
      run: its record.
      bases: by the name that stands in a configuration.

    The text is that of the sweep's plan, or one that was *reconstructed*: applied to the named
    experiment, its flags give the configuration of the run.
    """
    if run.command is not None:
        return Command(shlex.join(run.command), "plan of the sweep")
    if run.saved is None:
        return Command("", "unknown: the configuration cannot be read")
    try:
        return _found_again(run, run.saved, bases)
    except Exception as error:  # of a damaged directory; the others are reported all the same
        return Command("", f"unknown: it cannot be reconstructed ({type(error).__name__})")


def _found_again(run: Run, saved: RunConfig, bases: Mapping[str, Base]) -> Command:
    if run.lineage:
        return _of_fork(run)
    base = bases.get(saved.experiment.name)
    if base is None:
        return Command("", "unknown: no experiment of this name lies in experiments/")
    settings = flags_between(base.experiment, saved.experiment)
    if settings is None:
        return Command("", f"unknown: flags do not lead there from --experiment={base.flag}")
    text = _train(run, f"--experiment={base.flag}", *settings, *_flags(saved.members))
    return Command(text, "reconstructed from config.json")


def _of_fork(run: Run) -> Command:
    link = run.lineage[-1]
    origin = f"{link['parent']}@{link['step']}"
    parent = read_run(Path(str(link["parent"]))).saved
    settings = None
    if parent is not None and run.saved is not None:
        settings = flags_between(parent.experiment, run.saved.experiment)
    if settings is None or "--debug" in settings:
        changed = "; ".join(map(str, link["changed"])) or "nothing changed"
        return Command("", f"unknown: forked from {origin} ({changed})")
    return Command(_train(run, f"--fork={origin}", *settings), "reconstructed from meta.json")


def _train(run: Run, *flags: str) -> str:
    return shlex.join(["python", "-m", "launch.train", *flags, f"--workdir={run.path}"])


def _flags(members: Members) -> list[str]:
    found = [f"--seed={members.seed}", f"--num_seeds={members.num_seeds}"]
    found += [f"--first_seed={members.first_seed}"] if members.first_seed else []
    inside = [f"{path}={','.join(map(repr, values))}" for path, values in members.inside]
    return found + [f"--sweep_inside={setting}" for setting in inside]


# ---------------------------------------------------------------------- from one config to another


def flags_between(base: Experiment, wanted: Experiment) -> list[str] | None:
    """Flags of launch.train that make `wanted` of `base`, as few as are found; None if none do."""
    found = []
    # An older run may lack what --set brings along by now, which its flags do not need.
    base = dataclasses.replace(base, with_parts=wanted.with_parts)
    for start, debug in ((base, []), (for_debug(base), ["--debug"])):
        if (settings := _settings_and_steps(start, wanted)) is not None:
            found.append(debug + settings)
    return min(found, key=len, default=None)


def _settings_and_steps(base: Experiment, wanted: Experiment) -> list[str] | None:
    """With --steps where that changes the phases, else with a --set for each of their fields."""
    try:
        same_length = with_steps(base, wanted.steps)
        short = assignments(same_length, wanted)
        if short is not None and with_steps(with_settings(base, short), wanted.steps) == wanted:
            steps = [] if same_length == base else [f"--steps={wanted.steps}"]
            return [f"--set={setting}" for setting in short] + steps
    except (ConfigError, ValueError):
        pass  # a number of steps that this base cannot make
    whole = assignments(base, wanted)
    return None if whole is None else [f"--set={setting}" for setting in whole]


def assignments(base: Experiment, wanted: Experiment) -> list[str] | None:
    """Assignments path=value that make `wanted` of `base`; None where there are none."""
    values = config.flatten(wanted)
    found: list[str] = []
    for _ in range(_ROUNDS):
        paths = [line.partition(": ")[0] for line in config.difference(base, wanted)]
        if not paths:
            return found if base == wanted else None
        if not all(path in values for path in paths):
            return None  # a phase more or less, say
        step = [f"{path}={_text(values[path])}" for path in paths]
        try:
            base = with_settings(base, step)
        except ConfigError:
            return None
        found += step
    return None


def _text(value: object) -> str:
    if isinstance(value, tuple):
        return f"[{','.join(map(_text, value))}]"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
