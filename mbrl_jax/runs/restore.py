"""Reading checkpoints back: each is checked before it is used, and a bad one is passed over."""

import json
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import files, host_arrays, replay_log
from mbrl_jax.runs.checkpoint import (
    FORMAT,
    MANIFEST,
    best_iteration,
    complete,
    load_leaves,
    segments_of,
)
from mbrl_jax.runs.layout import CHECKPOINTS, META, iteration_of
from mbrl_jax.runs.replay_log import Segment
from mbrl_jax.types import PyTree, RowStore

REFUSED = "refused_"  # in front of the name of a checkpoint that was put aside


class Wanted(NamedTuple):
    """What is to be restored."""

    template: PyTree  # TrainState of `jax.ShapeDtypeStruct`s with shardings
    store: RowStore | None  # where the replay keeps its rows
    num_seeds: int
    # (meta): raises ConfigError for one of another configuration; OtherSettings ends the search
    check: Callable[[dict], Any]
    with_rows: bool = True  # whether stored rows are read too; without, None stands for them


class Restored(NamedTuple):
    """A checkpoint, and what was wrong with those that would have been taken before it."""

    iteration: int
    state: PyTree
    meta: dict[str, Any]
    segments: list[Segment]
    refused: list[str]  # a sentence for each


class OtherSettings(ConfigError):
    """The run is good, and this process has settings under which it would be another one."""


class _Refused(Exception):
    """Why a checkpoint cannot be used."""

    whole = False  # whether it is one that others can use


class _Unlike(_Refused):
    """A checkpoint is whole, and not of what is run now."""

    whole = True


def restore(workdir: Path, wanted: Wanted, which: str = "newest") -> Restored:
    """The checkpoint that `which` names, or the next good one.

    Args:
      workdir: of the run.
      wanted: shapes and checks.
      which: "newest", "best" (in training return) or an iteration; where the first two are damaged,
        the next older one is taken.

    Raises ConfigError when there is none, or none can be used.
    """
    workdir = Path(workdir)
    candidates = _candidates(workdir, which)
    reasons: dict[int, _Refused] = {}
    for iteration in candidates:
        try:
            found = _restore(workdir, wanted, iteration)
        except _Refused as reason:
            reasons[iteration] = reason
            continue
        return found._replace(
            refused=[
                f"the checkpoint of iteration {bad} in {workdir} is refused: {reason}; that of "
                f"iteration {iteration} is used"
                for bad, reason in reasons.items()
            ]
        )
    if which == "newest" and complete(workdir) != candidates:  # a training run goes on meanwhile
        return restore(workdir, wanted, which)
    said = "; ".join(f"iteration {bad}: {reason}" for bad, reason in reasons.items())
    remedy = "move that folder away to begin afresh"
    if any(reason.whole for reason in reasons.values()):
        remedy = "go on with the version and the settings that made them, or choose another workdir"
    raise ConfigError(f"no checkpoint in {workdir / CHECKPOINTS} can be used ({said}); {remedy}")


def _candidates(workdir: Path, which: str) -> list[int]:
    found = complete(workdir)
    if not found:
        raise ConfigError(f"{workdir} holds no checkpoint; train there first")
    if which == "newest":
        return found
    if which == "best":
        best = best_iteration(workdir)
        return found if best is None else [best, *(i for i in found if i != best)]
    if (iteration := iteration_of(which)) in found and iteration is not None:
        return [iteration]
    raise ConfigError(
        f"checkpoint={which} is not there; choose newest, best, or one of "
        f"{', '.join(map(str, found))}"
    )


def _restore(workdir: Path, wanted: Wanted, iteration: int) -> Restored:
    """One checkpoint, or _Refused."""
    folder = workdir / CHECKPOINTS / str(iteration)
    try:
        meta = checked_meta(folder)
        _check(wanted, meta)
        segments = segments_of(workdir, iteration)
        state = _small_state(folder, wanted)
        if wanted.store is not None and wanted.with_rows:
            rows = _rows(workdir, wanted, segments, meta["rows"])
            state = state._replace(replay=wanted.store.put(state.replay, rows))
        return Restored(int(meta["iteration"]), state, meta, segments, [])
    except OtherSettings:  # older ones would be refused as well, and none is at fault
        raise
    except ConfigError as error:
        raise _Refused(str(error)) from error
    except (OSError, EOFError, KeyError, ValueError, TypeError, zipfile.BadZipFile) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise _Refused(f"it is damaged ({lines[0][:200]})") from error


def _check(wanted: Wanted, meta: dict[str, Any]) -> None:
    try:
        wanted.check(meta)
    except OtherSettings:
        raise
    except ConfigError as error:
        raise _Unlike(str(error)) from error


def checked_meta(folder: Path) -> dict[str, Any]:
    """`meta.json` of a checkpoint whose files are what its manifest says.

    Raises ConfigError where one is not, and what reading a damaged file raises.
    """
    if not (folder / MANIFEST).is_file():
        raise ConfigError(f"it is half-written, without {MANIFEST}")
    manifest = json.loads((folder / MANIFEST).read_text())
    if manifest["format"] != FORMAT:
        raise ConfigError(f"it has format {manifest['format']}, and this version reads {FORMAT}")
    found = files.checksums(folder)
    for name, expected in manifest["files"].items():
        if found.get(name) != expected:
            raise ConfigError(f"{name} is damaged or not whole")
    return json.loads((folder / META).read_text())


def _small_state(folder: Path, wanted: Wanted) -> PyTree:
    """The TrainState without stored rows."""
    template = wanted.template
    if wanted.store is not None:
        template = template._replace(replay=wanted.store.put(template.replay, None))
    leaves, treedef = jax.tree.flatten(template)
    first, last = host_arrays.own_seeds(leaves, wanted.num_seeds)
    parts = {}
    for path in folder.glob("part_*.json"):
        part = json.loads(path.read_text())
        low, high = part["seeds"]
        if low < high and low < last and first < high:
            parts[low] = load_leaves(folder / part["state"])
    placed = []
    for name, leaf in zip(host_arrays.names(template), leaves, strict=True):
        rows = np.concatenate([_leaf(parts[low], name, leaf) for low in sorted(parts)])
        shape, dtype = host_arrays.shape_and_dtype(leaf)
        rows = rows.view(dtype) if rows.dtype.kind == "V" else rows
        if rows.shape[1:] != shape or rows.dtype != dtype:
            raise _Unlike(f"{name} is {rows.dtype}{rows.shape[1:]} and not {dtype}{shape}")
        if len(rows) < last - max(first, min(parts)):
            raise _Unlike(f"it has {len(rows)} seeds and not {wanted.num_seeds}")
        placed.append(host_arrays.put(leaf, rows, min(parts)))
    return jax.tree.unflatten(treedef, placed)


# Leaves of the state, by their names now and in checkpoints of before.
_RENAMED = {"carry.memory.extras.disagreement": "carry.memory.disagreement"}
_ADDED = "carry.memory.extras."  # what a model says beside: 0 on every row that was really seen


def _leaf(saved: dict[str, np.ndarray], name: str, template: jax.ShapeDtypeStruct) -> np.ndarray:
    """A leaf [seeds of a file, …] of a checkpoint, which may be older than its name."""
    old = _RENAMED.get(name, name)
    if name in saved or old in saved:
        return saved[name if name in saved else old]
    if not name.startswith(_ADDED):
        raise _Unlike(f"it has no {name}")
    shape, dtype = host_arrays.shape_and_dtype(template)
    return np.zeros((len(next(iter(saved.values()))), *shape), dtype)


def _rows(workdir: Path, wanted: Wanted, segments: list[Segment], total: int) -> PyTree:
    """The stored rows, one leaf after the other: at Atari's size each takes a gigabyte a seed."""
    assert wanted.store is not None
    template = wanted.store.get(wanted.template.replay)
    leaves, treedef = jax.tree.flatten(template)
    first, last = host_arrays.own_seeds(leaves, wanted.num_seeds)
    placed = []
    for name, leaf in zip(host_arrays.names(template), leaves, strict=True):
        rows = np.zeros((last - first, *leaf.shape[1:]), leaf.dtype)
        replay_log.read(workdir, segments, name, rows, first, total)
        placed.append(host_arrays.put(leaf, rows, first))
    return jax.tree.unflatten(treedef, placed)


def clean(workdir: Path, used: int | None) -> None:
    """Remove what killed saves have left, and put aside what was refused.

    Args:
      workdir: of a run that this process alone trains.
      used: iteration of the checkpoint that the run goes on from; None: it begins afresh.
    """
    workdir = Path(workdir)
    for litter in (workdir / CHECKPOINTS).glob(f"*{files.TEMPORARY}"):
        shutil.rmtree(litter)
    for iteration in complete(workdir):
        if used is not None and iteration > used:
            aside = workdir / CHECKPOINTS / f"{REFUSED}{iteration}"
            shutil.rmtree(aside, ignore_errors=True)
            (workdir / CHECKPOINTS / str(iteration)).rename(aside)
    needed = {s.file for i in complete(workdir) for s in segments_of(workdir, i)}
    for path in (workdir / replay_log.FOLDER).glob("*"):
        if path.name not in needed:
            path.unlink()
