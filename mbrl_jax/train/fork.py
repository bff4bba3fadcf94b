"""A run that branches off another one: `--fork=WORKDIR@STEP`.

The child begins with the whole state of the parent's checkpoint, its replay included, under changed
settings; `meta.json` in its workdir says where it comes from. The parent is only read.
"""

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mbrl_jax.train import checkpoint, metrics, preflight, seeds, workdir
from mbrl_jax.train.config import ConfigError, difference
from mbrl_jax.train.experiment import Experiment, build
from mbrl_jax.train.programs import make_programs
from mbrl_jax.train.runtime import versions

META = "meta.json"


class Origin(NamedTuple):
    """Where a run branches off."""

    path: Path
    step: int


def parse_origin(text: str) -> Origin:
    """Read "WORKDIR@STEP". Raises ConfigError, with the steps that there are, for anything else."""
    where, at, step = text.rpartition("@")
    if at and step.isascii() and step.isdigit():
        return Origin(workdir.as_path(where), int(step))
    path = workdir.as_path(text)
    known = (
        f"; {path} has checkpoints at {_steps(path)}" if (path / workdir.CONFIG).exists() else ""
    )
    raise ConfigError(f"--fork={text} should read WORKDIR@STEP{known}")


def _steps(path: Path) -> str:
    """The steps of the kept checkpoints, in words."""
    num_envs = workdir.read_config(path).experiment.num_envs
    steps = [str(iteration * num_envs) for iteration in checkpoint.iterations(path)]
    return f"step {', '.join(steps)}" if steps else "no step"


def fork(origin: Origin, child: str | Path, experiment: Experiment) -> workdir.RunConfig:
    """Make `child` a run that goes on from the parent's checkpoint; `run` does the rest.

    Args:
      origin: the parent, and the step of one of its checkpoints.
      child: workdir of the new run; where it was made by the same fork before, nothing is done.
      experiment: of the child. Whatever keeps the shapes of the state may differ.

    Returns what `run` is to be called with: seed and number of seeds are those of the parent.
    Raises ConfigError where that is impossible.
    """
    child, saved = workdir.as_path(child), workdir.read_config(origin.path)
    run = workdir.RunConfig(experiment, saved.seed, saved.num_seeds)
    lineage = [*_lineage(origin.path), _link(origin, saved.experiment, experiment)]
    if _is_forked(child, lineage):
        return run
    iteration = _iteration(origin, saved.experiment)
    if iteration > experiment.iterations:
        raise ConfigError(
            f"--fork={origin.path}@{origin.step} lies beyond the {experiment.steps} steps of the "
            "new run; ask for more --steps"
        )
    _require_same_shapes(saved.experiment, experiment)
    # From here on a killed fork is one that is not complete, and is made afresh.
    child.mkdir(parents=True, exist_ok=True)
    workdir.write_json(child / META, {"lineage": lineage, "complete": False})
    _copy_state(origin.path, iteration, child, run)
    _copy_metrics(origin, child, saved.num_seeds)
    workdir.write_json(child / META, {"lineage": lineage, "complete": True})
    return run


def _iteration(origin: Origin, experiment: Experiment) -> int:
    iteration, rest = divmod(origin.step, experiment.num_envs)
    if rest or iteration not in checkpoint.iterations(origin.path):
        raise ConfigError(
            f"{origin.path} keeps no checkpoint of step {origin.step}: it has {_steps(origin.path)}"
        )
    return iteration


# ----------------------------------------------------------------------------------------- lineage


def read_meta(path: Path) -> dict[str, Any] | None:
    """`meta.json` of a workdir, None where it is no fork. Raises ConfigError for another file."""
    try:
        data = json.loads((path / META).read_text())
        for link in data["lineage"]:
            _identity(link)
        if isinstance(data["complete"], bool):
            return data
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError, RecursionError):
        pass
    raise ConfigError(f"{path / META} is no lineage of a run; choose another workdir")


def _lineage(path: Path) -> list[dict[str, Any]]:
    meta = read_meta(path)
    return meta["lineage"] if meta else []


def _link(origin: Origin, before: Experiment, after: Experiment) -> dict[str, Any]:
    """What `meta.json` holds of one fork, apart from versions that may change under it."""
    return {
        "parent": str(origin.path.resolve()),
        "step": origin.step,
        "changed": difference(before, after),
        "versions": versions(),
    }


def _is_forked(child: Path, lineage: list[dict[str, Any]]) -> bool:
    """Whether `child` was made by this fork before. Raises ConfigError if it is another run."""
    meta = read_meta(child)
    if meta is None:
        if (child / workdir.CONFIG).exists() or checkpoint.iterations(child):
            raise ConfigError(f"{child} holds a run already, which is no fork; choose another")
        return False
    if not meta["complete"]:  # killed on the way
        return False
    if [_identity(link) for link in meta["lineage"]] != [_identity(link) for link in lineage]:
        raise ConfigError(
            f"{child} was forked otherwise ({_identity(meta['lineage'][-1])}); choose another "
            "--workdir"
        )
    return True


def _identity(link: dict[str, Any]) -> str:
    changed = "; ".join(link["changed"]) or "nothing changed"
    return f"{link['parent']}@{link['step']}, {changed}"


# ----------------------------------------------------------------------------------------- copying


def _require_same_shapes(before: Experiment, after: Experiment) -> None:
    """Raise ConfigError, with the difference, where the state of one is not that of the other."""
    old, new = (_shapes(experiment) for experiment in (before, after))
    changed = [
        f"{path}: {old.get(path, 'absent')} -> {new.get(path, 'absent')}"
        for path in {**old, **new}
        if old.get(path) != new.get(path)
    ]
    if changed:
        more = f"; and {len(changed) - 3} more" if len(changed) > 3 else ""
        raise ConfigError(
            f"the changed settings ({'; '.join(difference(before, after))}) need a state of other "
            f"shapes than the checkpoint's ({'; '.join(changed[:3])}{more}): a fork cannot change "
            "them; begin a new run"
        )


def _shapes(experiment: Experiment) -> dict[str, str]:
    """{place: dtype and shape} of the state of one seed."""
    try:
        state = preflight.state_of_seed(experiment, build(experiment))
    except ValueError as error:
        raise ConfigError(str(error)) from error
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    name = lambda path: jax.tree_util.keystr(path, simple=True, separator=".")  # noqa: E731
    return {name(path): f"{leaf.dtype} {leaf.shape}" for path, leaf in leaves}


def _copy_state(parent: Path, iteration: int, child: Path, run: workdir.RunConfig) -> None:
    """Write the parent's checkpoint as the child's first."""
    keys = seeds.seed_keys(run.seed, run.num_seeds)
    programs = make_programs(run.experiment, build(run.experiment), run.num_seeds)
    _, state, meta = checkpoint.restore(parent, programs.state_template(keys), iteration)
    checkpoint.remove_all(child)
    with checkpoint.Checkpointer(child) as saver:
        saver.save(iteration, state, meta)


def _copy_metrics(origin: Origin, child: Path, num_seeds: int) -> None:
    """The parent's rows up to the step; also for TensorBoard."""
    rows = [row for row in metrics.read_metrics(origin.path) if row["step"] <= origin.step]
    (child / metrics.FILE).unlink(missing_ok=True)
    with metrics.MetricsWriter(child, num_seeds, None) as writer:
        for step, group in itertools.groupby(rows, lambda row: row["step"]):
            writer.write(step, list(group))
