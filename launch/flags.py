"""What the launchers share: flag parsing, experiments by name, errors as one sentence.

Nothing heavy is imported here: `--help` answers at once.
"""

import difflib
import importlib
import importlib.util
import math
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

from launch import own

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"


def run_main(main: Callable[[], None]) -> None:
    """Parse the flags and run `main`; what a user can mend ends as one sentence on stderr."""
    streams: Any = (sys.stdout, sys.stderr)
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")  # where a terminal lacks a letter
    app.define_help_flags()  # --help prints the module's docstring and flags, and exits
    try:
        rest = flags.FLAGS(sys.argv)
        if len(rest) > 1:
            fail(f"unexpected argument {rest[1]!r}; every setting is a flag: --name=value")
    except flags.Error as error:
        fail(f"{error}; see --help")
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.train.preemption import PREEMPTED, Preempted
    from mbrl_jax.train.runtime import out_of_memory, refused_by_jax

    try:
        main()
    except Preempted as sentence:
        # Everything is saved. Python's exit would wait for programs that still compile.
        print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(PREEMPTED)
    except ConfigError as error:
        fail(str(error))
    except ValueError as error:
        if not (variable := refused_by_jax(error)):
            raise
        fail(variable)
    except (MemoryError, RuntimeError) as error:
        if not (told := out_of_memory(error)):
            raise
        fail(
            f"memory ran out ({told}); what was saved is whole: free some, or ask for less (seeds, "
            "batch, episodes), and the same command goes on from the newest checkpoint"
        )
    except OSError as error:
        # Disk full, quota, permissions: checkpoints are complete or absent, so nothing is lost.
        fail(
            f"{error.strerror or error} ({error.filename or 'while writing the workdir'}); mend "
            "that and run the same command again: it goes on from the newest checkpoint"
        )
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from the newest checkpoint", status=130)


def fail(sentence: str, status: int = 1) -> None:
    """Print one sentence as the last line and exit."""
    from mbrl_jax.runs.shown import shown
    from mbrl_jax.train import runtime

    print(f"error: {shown(' '.join(sentence.split()))}", file=sys.stderr, flush=True)
    if runtime.is_joined():  # an orderly exit would wait for the other processes
        sys.stdout.flush()
        os._exit(status)
    sys.exit(status)


def load_experiment(name: str) -> Any:
    """`get_experiment()` of an experiment: a name, a dotted module, or a path to a .py file."""
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.experiment.experiment import Experiment

    function = load_module(name).get_experiment
    found = own.called(f"get_experiment() of --experiment={name}", lambda: function())
    if not isinstance(found, Experiment):
        raise ConfigError(
            f"get_experiment() of --experiment={name} returns a {type(found).__name__} and no "
            "mbrl_jax.Experiment"
        )
    return found


def load_module(name: str) -> Any:
    """The module of an experiment: it defines `get_experiment`. Raises ConfigError otherwise."""
    from mbrl_jax.errors import ConfigError

    module = own.load_file(Path(name), "experiment") if name.endswith(".py") else _load_module(name)
    if not callable(getattr(module, "get_experiment", None)):
        raise ConfigError(f"--experiment={name} defines no get_experiment()")
    return module


def define_types() -> flags.FlagHolder:
    """The flag `--experiment` of launchers that read a run back."""
    return flags.DEFINE_multi_string(
        "experiment",
        [],
        "As for launch.train, or a module: for runs whose configuration has types from there; "
        "repeatable.",
    )


def load_types(names: Sequence[str]) -> None:
    """Import what defines types of a run's configuration. Raises ConfigError where that fails."""
    for name in names:
        if name.endswith(".py"):
            own.load_file(Path(name), "experiment")
        elif name.isidentifier() and name not in experiment_names() and _exists(name):
            own.import_module(name, "experiment")
        else:
            _load_module(name)


def flags_of_types(experiment: Any, name: str | None, settings: Sequence[str]) -> list[str]:
    """Flags with which launch.evaluate finds the types of a run: none where all are shipped.

    Args:
      experiment: of the run.
      name: that launch.train was given, of the file or module that imports most of them.
      settings: path=value; a value "module:Class" is of that module.
    """
    from mbrl_jax.experiment.annotations import modules_of

    outside = [module for module in modules_of(experiment) if module.split(".")[0] != "mbrl_jax"]
    set_here = {setting.partition("=")[2].partition(":")[0] for setting in settings}
    others = [module for module in outside if module not in set_here]
    named = [name] if name and others else []
    told = [*named, *(m for m in outside if m in set_here), *getattr(experiment.env, "imports", ())]
    return [f"--experiment={one}" for one in dict.fromkeys(told)]


def _exists(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):
        return False


def adjust_experiment(
    experiment: Any, settings: Sequence[str], steps: int | None, debug: bool
) -> Any:
    """The experiment as --debug, --set and --steps change it. Raises ConfigError."""
    from mbrl_jax.experiment.config import check_ranges
    from mbrl_jax.experiment.experiment import (
        for_debug,
        has_part,
        with_settings,
        with_steps,
    )

    if debug:
        experiment = for_debug(experiment)
    before, experiment = experiment, with_settings(experiment, settings)
    for part, told in experiment.with_parts:
        if has_part(experiment, part) and not has_part(before, part):
            brought = ", ".join(told)
            print(f"{part} brings {brought}, unless --set says otherwise", file=sys.stderr)
    check_ranges(experiment)  # --steps divides by some of them
    return experiment if steps is None else with_steps(experiment, steps)


def load_environment(text: str) -> Any:
    """What `--env` names: a config, or a function that gives an environment or a config.

    Raises ConfigError where there is no such environment, file, module or function.
    """
    from mbrl_jax.envs.names import FAMILIES, named, nearest
    from mbrl_jax.errors import ConfigError

    if (found := named(text)) is not None:
        return found
    if ":" not in text:
        near = nearest(text)
        advice = f"; the nearest names are {', '.join(near)}" if near else ""
        raise ConfigError(
            f"--env={text}: neither gymnax nor EnvPool has such an environment{advice} (your own: "
            "FILE.py:FUNCTION)"
        )
    where, _, function = text.rpartition(":")
    if where.endswith(".py"):
        module = own.load_file(Path(where), "env")
    elif not _exists(where):
        raise ConfigError(
            f"--env={text}: there is no module {where!r}; write FILE.py:FUNCTION, "
            f"dotted.module:FUNCTION, or one of {', '.join(FAMILIES)} before the colon"
        )
    else:
        module = own.import_module(where, "env")
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"--env={text}: {where} has no function {function!r}")
    return found


def experiment_names() -> list[str]:
    """Names of the experiments in the repository."""
    return sorted(p.stem for p in EXPERIMENTS.glob("*.py") if not p.stem.startswith("_"))


def required(flag: flags.FlagHolder) -> str:
    """The value of a flag that cannot be left out. Raises ConfigError where it is."""
    from mbrl_jax.errors import ConfigError

    if not flag.value:
        raise ConfigError(f"--{flag.name} is missing; see --help")
    return flag.value


def _load_module(name: str):
    from mbrl_jax.errors import ConfigError

    known = experiment_names()
    if name in known:
        return own.import_module(f"experiments.{name}", "experiment")
    if "." not in name or not _exists(name):
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise ConfigError(
            f"unknown experiment {name!r}; the nearest names are {', '.join(near)} (a dotted "
            "module or a path to a .py file serves as well)"
        )
    return own.import_module(name, "experiment")


def read_baseline(text: str) -> tuple:
    """(task or None, baseline) of one --baseline. Raises ConfigError where it is none."""
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.evaluate.comparison import Baseline

    head, _, value = text.rpartition("=")
    task, _, name = head.rpartition(":")
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not name or not math.isfinite(number):
        raise ConfigError(
            f"--baseline={text} is not of the form NAME=VALUE or TASK:NAME=VALUE with a number"
        )
    return task or None, Baseline(name, number)
