"""Rows that a run of this package has stored: read from its log, without its environment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.datasets import files
from mbrl_jax.datasets.rows import (
    by_name,
    concatenate,
    fit_action,
    fit_number,
    fit_observation,
    from_lanes,
)
from mbrl_jax.envs.spec import action_tree
from mbrl_jax.runs import checkpoint, host_arrays, replay_log, restore
from mbrl_jax.runs.layout import CHECKPOINTS, iteration_of
from mbrl_jax.types import EnvSpec, Step, Timestep

UNBOUNDED: tuple[tuple[float, ...], ...] = ((), ())  # stored actions lie in [-1, 1] already


class Which(NamedTuple):
    """Which rows of a run; see `datasets.Config`."""

    seed_index: int | None
    checkpoint: str
    num_rows: int | None  # of each lane, the oldest that are kept


def read(workdir: Path, spec: EnvSpec, which: Which) -> Step:
    """Rows [R, …] of a checkpoint: seed after seed, lane after lane.

    A ring that was full has lost the oldest ones. What the agent stored beside (`Step.extras`) is
    left out. Raises ValueError where the workdir holds no such rows, or they do not fit `spec`.
    """
    folder = _folder(workdir, which.checkpoint)
    try:
        total = restore.checked_meta(folder)["rows"]
    except (OSError, KeyError, ValueError) as error:
        raise ValueError(f"the checkpoint {folder} cannot be used ({error})") from error
    segments = checkpoint.segments_of(workdir, int(folder.name))
    if not segments:
        raise ValueError(f"{workdir} keeps no rows in {replay_log.FOLDER}")
    num_seeds = max(segment.seeds[1] for segment in segments)
    if which.seed_index is not None and not 0 <= which.seed_index < num_seeds:
        raise ValueError(
            f"seed_index={which.seed_index}: {workdir} holds the seeds 0 … {num_seeds - 1}"
        )
    wanted = range(num_seeds) if which.seed_index is None else [which.seed_index]
    stop = total
    if which.num_rows is not None:
        stop = min(total, min(segment.rows[0] for segment in segments) + which.num_rows)
    parts = [
        _episodes(rows, spec, workdir) for rows in _rows(workdir, segments, spec, wanted, stop)
    ]
    if not sum(len(part.timestep.reward) for part in parts):
        raise ValueError(f"{workdir} holds no transition")
    return concatenate(*parts)


def _folder(workdir: Path, which: str) -> Path:
    """The checkpoint's folder."""
    found = checkpoint.complete(workdir)
    if not found:
        raise ValueError(f"{workdir} is neither a data set nor a run with a checkpoint")
    if which != "newest" and iteration_of(which) not in found:
        raise ValueError(
            f"checkpoint={which} is not in {workdir}; choose newest, or one of "
            f"{', '.join(map(str, found))}"
        )
    return workdir / CHECKPOINTS / (str(found[0]) if which == "newest" else which)


def _rows(
    workdir: Path,
    segments: list[replay_log.Segment],
    spec: EnvSpec,
    wanted: Sequence[int],
    stop: int,
) -> list[Step]:
    """The rows [T, N, …] before row `stop` of each wanted seed, as they were stored."""
    segments = sorted((s for s in segments if s.rows[0] < stop), key=lambda segment: segment.rows)
    names = host_arrays.names(_shape(spec))
    leaves: dict[int, list[list]] = {seed: [[] for _ in names] for seed in wanted}
    found = dict.fromkeys(wanted, segments[0].rows[0])  # rows of each seed are read up to here
    for segment in segments:
        of_seeds = [seed for seed in wanted if segment.seeds[0] <= seed < segment.seeds[1]]
        path = files.existing(str(workdir / replay_log.FOLDER / segment.file))
        if path.stat().st_size != segment.size:
            raise ValueError(f"{path} is damaged: it has not {segment.size} bytes")
        with files.opened(path) as arrays:
            for i, name in enumerate(names if of_seeds else ()):
                values = arrays.get(name)[:, : stop - segment.rows[0]]
                for seed in of_seeds:
                    leaves[seed][i].append(values[seed - segment.seeds[0]].copy())
        for seed in of_seeds:
            if found[seed] != segment.rows[0]:
                raise ValueError(f"rows of seed {seed} are missing in {path.parent}")
            found[seed] = min(segment.rows[1], stop)
    if late := [seed for seed in wanted if found[seed] < stop]:
        raise ValueError(f"rows of seed {late[0]} are missing in {workdir / replay_log.FOLDER}")
    treedef = jax.tree.structure(_shape(spec))
    return [jax.tree.unflatten(treedef, map(np.concatenate, leaves[seed])) for seed in wanted]


def _episodes(rows: Step, spec: EnvSpec, workdir: Path) -> Step:
    """Rows [R, …] of one seed, lane after lane, that fit the environment."""
    try:
        rows = from_lanes(rows)
    except ValueError as error:
        raise ValueError(f"{workdir} was trained with another seam: {error}") from error
    timestep: Any = rows.timestep
    return Step(
        timestep._replace(
            observation=fit_observation(timestep.observation, spec.observation, workdir),
            reward=fit_number(timestep.reward, "rewards", workdir),
            extras={n: fit_number(x, n, workdir) for n, x in timestep.extras.items()},
        ),
        fit_action(rows.action, spec.action, UNBOUNDED, workdir),
    )


def _shape(spec: EnvSpec) -> Step:
    """A row of zeros, for the names of its leaves."""
    observation = by_name(spec.observation, lambda leaf: np.zeros(()))
    zero: Any = np.zeros(())
    timestep = Timestep(observation, zero, zero, zero, zero, dict.fromkeys(spec.extras, zero))
    return Step(timestep, jax.tree.map(lambda leaf: zero, action_tree(spec.action)))
