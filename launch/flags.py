"""What the launchers share: flag parsing, experiments by name, errors as one sentence.

Nothing heavy is imported here: `--help` answers at once.
"""

import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from absl import app, flags

EXPERIMENTS = Path(__file__).resolve().parent.parent / "experiments"
FAMILIES = ("gymnax", "envpool", "atari", "probe")  # of environments that ship


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

    try:
        main()
    except Preempted as sentence:
        # Everything is saved. Python's exit would wait for programs that still compile.
        print(sentence, file=sys.stderr, flush=True)
        sys.stdout.flush()
        os._exit(PREEMPTED)
    except ConfigError as error:
        fail(str(error))
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
    return load_module(name).get_experiment()


def load_module(name: str) -> Any:
    """The module of an experiment: it defines `get_experiment`. Raises ConfigError otherwise."""
    from mbrl_jax.errors import ConfigError

    if name.endswith(".py"):
        module = _load_file(Path(name))
    else:
        module = _load_module(name)
    if not hasattr(module, "get_experiment"):
        raise ConfigError(f"--experiment={name} defines no get_experiment()")
    return module


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
    from mbrl_jax.errors import ConfigError

    family, colon, name = text.partition(":")
    if colon and family in FAMILIES:
        return importlib.import_module(f"mbrl_jax.envs.{family}").Config(name)
    if not colon:
        return _named_environment(text)
    where, _, function = text.rpartition(":")
    if where.endswith(".py"):
        module = _load_file(Path(where), "env")
    else:
        try:
            module = importlib.import_module(where)
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--env={text}: {error}; write FILE.py:FUNCTION, dotted.module:FUNCTION, or one of "
                f"{', '.join(FAMILIES)} before the colon"
            ) from error
    found = getattr(module, function, None)
    if not callable(found):
        raise ConfigError(f"--env={text}: {where} has no function {function!r}")
    return found


def _named_environment(name: str):
    """The config of a bare name: of gymnax, else of EnvPool."""
    from mbrl_jax.envs import atari, envpool, gymnax
    from mbrl_jax.errors import ConfigError

    if name in (known := gymnax.known_names()):
        return gymnax.Config(name)
    if name in (tasks := envpool.known_tasks()):
        return (atari if envpool.is_atari(name) else envpool).Config(name)
    near = difflib.get_close_matches(name, [*known, *tasks], n=3, cutoff=0.4)
    advice = f"; the nearest names are {', '.join(near)}" if near else ""
    raise ConfigError(
        f"--env={name}: neither gymnax nor EnvPool has such an environment{advice} (your own: "
        "FILE.py:FUNCTION)"
    )


def experiment_names() -> list[str]:
    """Names of the experiments in the repository."""
    return sorted(p.stem for p in EXPERIMENTS.glob("*.py") if not p.stem.startswith("_"))


def required(flag: flags.FlagHolder) -> str:
    """The value of a flag that cannot be left out. Raises ConfigError where it is."""
    from mbrl_jax.errors import ConfigError

    if not flag.value:
        raise ConfigError(f"--{flag.name} is missing; see --help")
    return flag.value


def _load_file(path: Path, flag: str = "experiment"):
    from mbrl_jax.errors import ConfigError

    if not path.is_file():
        raise ConfigError(f"--{flag}={path}: there is no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[path.stem] = module  # configs defined there can then be read back by name
    spec.loader.exec_module(module)
    return module


def _load_module(name: str):
    from mbrl_jax.errors import ConfigError

    known = experiment_names()
    if name in known:
        return importlib.import_module(f"experiments.{name}")
    found = None
    if "." in name:
        try:
            found = importlib.util.find_spec(name)
        except ModuleNotFoundError:
            found = None
    if found is None:
        near = difflib.get_close_matches(name, known, n=3, cutoff=0.4) or known
        raise ConfigError(
            f"unknown experiment {name!r}; the nearest names are {', '.join(near)} (a dotted "
            "module or a path to a .py file serves as well)"
        )
    return importlib.import_module(name)
