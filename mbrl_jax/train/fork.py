"""A run that branches off another one: `--fork=WORKDIR@STEP`.

The child begins with the whole state of the parent's checkpoint, its replay included, under changed
settings; `meta.json` in its workdir says where it comes from. The parent is only read.
"""

import itertools
import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.config import difference
from mbrl_jax.experiment.experiment import Experiment, build, with_steps
from mbrl_jax.runs import checkpoint, files, layout, metrics, replay_log, restore, workdir
from mbrl_jax.runs.layout import CHECKPOINTS, CONFIG
from mbrl_jax.train import preflight
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
    known = f"; {path} has checkpoints at {_steps(path)}" if (path / CONFIG).exists() else ""
    raise ConfigError(f"--fork={text} should read WORKDIR@STEP{known}")


def _steps(path: Path) -> str:
    """The steps of the kept checkpoints, in words."""
    num_envs = workdir.read_config(path).experiment.num_envs
    steps = [str(iteration * num_envs) for iteration in sorted(checkpoint.complete(path))]
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
    run = workdir.RunConfig(experiment, saved.members)
    before = _lineage(origin.path)
    lineage = [*before, _link(origin, saved.experiment, experiment)]
    as_long = _link(origin, saved.experiment, _as_long_as(child, experiment))
    if _is_forked(child, lineage, [*before, as_long]):
        return run
    saved.members.require_unset(saved.experiment, experiment)
    iteration = _iteration(origin, saved.experiment)
    if iteration > experiment.iterations:
        raise ConfigError(
            f"--fork={origin.path}@{origin.step} lies beyond the {experiment.steps} steps of the "
            "new run; ask for more --steps"
        )
    _require_learning(origin, iteration, saved)
    _require_same_shapes(saved.experiment, experiment)
    workdir.check_usable(child)
    with files.locked(child):
        # From here on a killed fork is one that is not complete, and is made afresh.
        _write_meta(child, lineage, complete=False)
        for left in (CHECKPOINTS, replay_log.FOLDER, metrics.FOLDER):
            shutil.rmtree(child / left, ignore_errors=True)
        _share_checkpoint(origin.path, iteration, child, run)
        _copy_metrics(origin, child, len(saved.members))
        _write_meta(child, lineage, complete=True)
    return run


def _write_meta(child: Path, lineage: list[dict[str, Any]], complete: bool) -> None:
    text = json.dumps({"lineage": lineage, "complete": complete}, indent=2)
    files.write_text(child / META, text + "\n")


def _iteration(origin: Origin, experiment: Experiment) -> int:
    iteration, rest = divmod(origin.step, experiment.num_envs)
    if rest or iteration not in checkpoint.complete(origin.path):
        raise ConfigError(
            f"{origin.path} keeps no checkpoint of step {origin.step}: it has {_steps(origin.path)}"
        )
    return iteration


def _require_learning(origin: Origin, iteration: int, saved: workdir.RunConfig) -> None:
    """Raise ConfigError where every seed of a checkpoint is frozen."""
    path, num_members = origin.path, len(saved.members)
    frozen = _frozen(path, iteration)
    if len(frozen) < num_members:
        return
    better = [i for i in checkpoint.complete(path) if len(_frozen(path, i)) < num_members]
    steps = ", ".join(str(i * saved.experiment.num_envs) for i in sorted(better))
    advice = f"fork step {steps} instead" if steps else "no checkpoint is older; begin a new run"
    raise ConfigError(
        f"--fork={path}@{origin.step}: all seeds are frozen there "
        f"({next(iter(frozen.values()))['metric']} was not finite) and would learn nothing; "
        f"{advice}"
    )


def _frozen(path: Path, iteration: int) -> dict[str, Any]:
    """The frozen seeds of a checkpoint; {} of a damaged one, which is refused when it is copied."""
    try:
        meta = json.loads((path / CHECKPOINTS / str(iteration) / layout.META).read_text())
        return meta["frozen"]
    except (OSError, ValueError, KeyError, TypeError):
        return {}


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


def _as_long_as(child: Path, experiment: Experiment) -> Experiment:
    """`experiment` with the steps that `child` has now, if it has any."""
    try:
        return with_steps(experiment, workdir.read_config(child).experiment.steps)
    except ConfigError:  # none yet, or so many are impossible
        return experiment


def _is_forked(child: Path, lineage: list[dict[str, Any]], as_long: list[dict[str, Any]]) -> bool:
    """Whether `child` was made by this fork before, `as_long` as it is now; `run` lengthens it.

    Raises ConfigError if it is another run.
    """
    meta = read_meta(child)
    if meta is None:
        if workdir.holds_run(child) or checkpoint.complete(child):
            raise ConfigError(f"{child} holds a run already, which is no fork; choose another")
        return False
    if not meta["complete"]:  # killed on the way
        return False
    known = meta["lineage"]
    if _identities(known) == _identities(lineage):
        return True
    if _identities(known) != _identities(as_long):
        raise ConfigError(
            f"{child} was forked otherwise ({_identity(meta['lineage'][-1])}); choose another "
            "--workdir"
        )
    with files.locked(child):
        changed = {"changed": lineage[-1]["changed"]}
        _write_meta(child, [*known[:-1], known[-1] | changed], complete=True)
    return True


def _identities(lineage: list[dict[str, Any]]) -> list[str]:
    return [_identity(link) for link in lineage]


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


def _share_checkpoint(parent: Path, iteration: int, child: Path, run: workdir.RunConfig) -> None:
    """Make the parent's checkpoint, and the stored rows that it names, the child's first one.

    These files are never written to again, so that links to them serve where there can be links.
    """
    source, folder = (path / CHECKPOINTS / str(iteration) for path in (parent, child))
    try:
        meta = restore.checked_meta(source)
        for segment in checkpoint.segments_of(parent, iteration):
            name = Path(replay_log.FOLDER, segment.file)
            _share(parent / name, child / name)
        unfinished = folder.with_name(folder.name + files.TEMPORARY)
        own = (layout.META, checkpoint.MANIFEST)  # what differs
        for path in source.rglob("*"):
            if path.is_file() and path.relative_to(source).as_posix() not in own:
                _share(path, unfinished / path.relative_to(source))
        text = json.dumps(meta | {"config": workdir.as_json(run)}, indent=1)
        checkpoint.complete_folder(unfinished, text)
    except (ConfigError, OSError, KeyError, ValueError, TypeError) as error:
        raise ConfigError(
            f"the checkpoint of iteration {iteration} in {parent} cannot be forked ({error}); "
            f"there are {_steps(parent)}"
        ) from error


def _share(source: Path, target: Path) -> None:
    """A link to a file, or a copy where there can be none (another disk, say)."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.unlink(missing_ok=True)
    try:
        target.hardlink_to(source)
    except OSError:
        shutil.copyfile(source, target)


def _copy_metrics(origin: Origin, child: Path, num_seeds: int) -> None:
    """The parent's rows up to the step; also for TensorBoard."""
    rows = [row for row in metrics.read_metrics(origin.path) if row["step"] <= origin.step]
    (child / metrics.FILE).unlink(missing_ok=True)
    with metrics.MetricsWriter(child, num_seeds, None) as writer:
        for step, group in itertools.groupby(rows, lambda row: row["step"]):
            writer.write(step, list(group))
