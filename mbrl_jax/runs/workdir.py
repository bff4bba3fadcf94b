"""The run directory: what belongs where, and the refusals that keep finished work safe."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.config import difference, from_json, to_json
from mbrl_jax.experiment.experiment import Experiment, with_steps
from mbrl_jax.experiment.members import Members
from mbrl_jax.runs import checkpoint, files
from mbrl_jax.runs.layout import CONFIG, as_path
from mbrl_jax.runs.metrics import read_metrics

__all__ = ["RunConfig", "as_json", "as_path", "check_meta", "check_usable", "holds_run"]
__all__ += ["prepare", "read_config"]


class RunConfig(NamedTuple):
    """What `config.json` holds."""

    experiment: Experiment
    members: Members


def read_config(workdir: Path) -> RunConfig:
    """Read `config.json`. Raises ConfigError when it is missing or not readable."""
    path = Path(workdir) / CONFIG
    if not path.is_file():
        raise ConfigError(f"{workdir} holds no run: there is no {CONFIG} in it")
    try:
        return _from_json(json.loads(path.read_text()))
    except ConfigError:
        raise
    # RecursionError: brackets within brackets. ValueError: no JSON, or no text.
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ConfigError(f"{path} is not a run's configuration ({error})") from error


def holds_run(workdir: Path) -> bool:
    """Whether a directory belongs to a configuration: one that saved something, or wrote a row.

    A command that failed before, while it compiled or by a kill, leaves it free for another.
    """
    if not (workdir / CONFIG).exists():
        return False
    return checkpoint.latest_iteration(workdir) is not None or bool(read_metrics(workdir))


def prepare(workdir: Path, run: RunConfig, resume: str) -> int | None:
    """Create or check the directory; returns the iteration to resume from, or None.

    Args:
      workdir: of the run.
      run: what is to be run now.
      resume: "auto" goes on where a checkpoint is, "must" refuses to begin afresh, "never"
        refuses to touch a directory that holds a run.

    Raises ConfigError where the directory cannot be used, or belongs to another configuration.
    """
    workdir = Path(workdir)
    check_usable(workdir)
    iteration = checkpoint.latest_iteration(workdir)
    exists = holds_run(workdir)
    if resume == "must" and (iteration is None or not exists):
        raise ConfigError(
            f"--resume=must, but {workdir} holds no checkpoint; use --resume=auto to begin there"
        )
    if exists and resume == "never":
        raise ConfigError(
            f"--resume=never, but {workdir} holds a run already; choose another --workdir"
        )
    if exists:
        _check_same(workdir, read_config(workdir), run)
    _check_long_enough(workdir, run, iteration)
    _write_config(workdir, run)
    return iteration


def check_usable(workdir: Path) -> None:
    """Make the directory if it is absent. Raises ConfigError where it cannot be used."""
    try:
        str(workdir.absolute()).encode()
    except UnicodeEncodeError as error:
        shown = os.fsencode(workdir.absolute()).decode(errors="backslashreplace")
        raise ConfigError(
            f"--workdir={shown} holds bytes that are no UTF-8, and checkpoints cannot be written "
            "there; name another directory"
        ) from error
    if workdir.exists() and not workdir.is_dir():
        raise ConfigError(f"--workdir={workdir} is a file; name a directory")
    try:
        workdir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(
            f"--workdir={workdir} cannot be created ({error.strerror}); name another directory"
        ) from error
    if not os.access(workdir, os.W_OK | os.X_OK):
        raise ConfigError(f"--workdir={workdir} cannot be written; name another directory")


def _check_same(workdir: Path, saved: RunConfig, run: RunConfig) -> None:
    """More steps may follow; everything else must be equal."""
    if lines := _differences(saved, run):
        raise ConfigError(
            f"{workdir} belongs to another configuration ({'; '.join(lines)}); choose another "
            "--workdir or repeat the settings of that run"
        )


def check_meta(run: RunConfig, meta: dict[str, Any]) -> None:
    """Raise ConfigError where a checkpoint's `meta.json` is of another configuration than `run`."""
    if lines := _differences(_from_json(meta["config"]), run):
        raise ConfigError(f"it belongs to another configuration ({'; '.join(lines)})")


def _differences(saved: RunConfig, run: RunConfig) -> list[str]:
    """Lines "name: old -> new", but of the number of steps."""
    try:
        saved_experiment = with_steps(saved.experiment, run.experiment.steps)
    except ConfigError:  # a different number of steps is the smaller difference
        saved_experiment = saved.experiment
    # What --set would have brought along changes nothing of what was trained.
    saved_experiment = dataclasses.replace(saved_experiment, with_parts=run.experiment.with_parts)
    lines = difference(saved_experiment, run.experiment)
    before, after = (_flags(one.members) for one in (saved, run))
    lines += [f"--{n}: {before[n]} -> {after[n]}" for n in before if before[n] != after[n]]
    return lines


def _flags(members: Members) -> dict[str, str]:
    """The flags of `launch.train` that name the members."""
    inside = [f"{path}={','.join(map(str, values))}" for path, values in members.inside]
    return {
        "seed": str(members.seed),
        "num_seeds": str(members.num_seeds),
        "first_seed": str(members.first_seed),
        "sweep_inside": " ".join(inside) or "none",
    }


def _check_long_enough(workdir: Path, run: RunConfig, iteration: int | None) -> None:
    if iteration is not None and iteration > run.experiment.iterations:
        done = iteration * run.experiment.num_envs
        raise ConfigError(
            f"{workdir} is already at step {done}, beyond --steps={run.experiment.steps}; "
            "ask for more steps or choose another --workdir"
        )


def as_json(run: RunConfig) -> dict[str, Any]:
    """What `config.json` and the `meta.json` of a checkpoint say of a run."""
    return {
        "experiment": to_json(run.experiment),
        "seed": run.members.seed,
        "num_seeds": run.members.num_seeds,
        "first_seed": run.members.first_seed,
        "sweep_inside": run.members.inside,
    }


def _from_json(data: dict[str, Any]) -> RunConfig:
    inside = tuple((path, tuple(values)) for path, values in data["sweep_inside"])
    numbers = [data[name] for name in ("seed", "num_seeds", "first_seed")]
    varied = [value for _, values in inside for value in values]
    if not all(type(one) is int for one in numbers):
        raise TypeError("seeds are whole numbers")
    if not all(type(one) in (int, float) for one in varied) or not all(v for _, v in inside):
        raise TypeError("what varies inside a program are numbers")
    members = Members(data["seed"], data["num_seeds"], inside, data["first_seed"])
    return RunConfig(from_json(data["experiment"]), members)


def _write_config(workdir: Path, run: RunConfig) -> None:
    files.write_text(workdir / CONFIG, json.dumps(as_json(run), indent=2) + "\n")
