"""Rows that a run of this package has stored: read from its log, without its environment."""

import zipfile
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from mbrl_jax.datasets.rows import (
    by_name,
    concatenate,
    fit_action,
    fit_number,
    fit_observation,
    from_lanes,
)
from mbrl_jax.train import checkpoint, host_arrays, replay_log, restore
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
        segments = checkpoint.segments_of(workdir, int(folder.name))
        if not segments:
            raise ValueError(f"{workdir} keeps no rows in {replay_log.FOLDER}")
        num_seeds = max(segment.seeds[1] for segment in segments)
        if which.seed_index is not None and not 0 <= which.seed_index < num_seeds:
            raise ValueError(
                f"seed_index={which.seed_index}: {workdir} holds the seeds 0 … {num_seeds - 1}"
            )
        wanted = range(num_seeds) if which.seed_index is None else [which.seed_index]
        parts = [_seed(workdir, segments, total, spec, seed, which.num_rows) for seed in wanted]
    except (OSError, EOFError, KeyError, zipfile.BadZipFile) as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise ValueError(f"the rows of {folder} cannot be read ({lines[0][:200]})") from error
    return concatenate(*parts)


def _folder(workdir: Path, which: str) -> Path:
    """The checkpoint's folder."""
    found = checkpoint.complete(workdir)
    if not found:
        raise ValueError(f"{workdir} is neither a data set nor a run with a checkpoint")
    if which != "newest" and not (which.isdigit() and int(which) in found):
        raise ValueError(
            f"checkpoint={which} is not in {workdir}; choose newest, or one of "
            f"{', '.join(map(str, found))}"
        )
    return workdir / checkpoint.FOLDER / (str(found[0]) if which == "newest" else which)


def _seed(
    workdir: Path,
    segments: list[replay_log.Segment],
    total: int,
    spec: EnvSpec,
    seed: int,
    num_rows: int | None,
) -> Step:
    """Rows [R, …] of one seed."""
    own = [segment for segment in segments if segment.seeds[0] <= seed < segment.seeds[1]]
    own.sort(key=lambda segment: segment.rows)
    if not own or any(a.rows[1] != b.rows[0] for a, b in zip(own, own[1:], strict=False)):
        raise ValueError(f"rows of seed {seed} are missing in {workdir / replay_log.FOLDER}")
    names = _names(spec)
    parts: list[list[np.ndarray]] = [[] for _ in names]
    stop = total if num_rows is None else min(total, own[0].rows[0] + num_rows)
    for segment in own:
        if segment.rows[0] >= stop:
            break
        with np.load(workdir / replay_log.FOLDER / segment.file, allow_pickle=False) as data:
            for part, name in zip(parts, names, strict=True):
                if name not in data.files:
                    raise ValueError(f"{workdir}: its rows hold no {name}, which is asked for")
                part.append(data[name][seed - segment.seeds[0], : stop - segment.rows[0]])
    rows = jax.tree.unflatten(jax.tree.structure(_shape(spec)), map(np.concatenate, parts))
    try:
        rows = from_lanes(rows)
    except ValueError as error:
        raise ValueError(f"{workdir} was trained with another seam: {error}") from error
    return _fitted(rows, spec, workdir)


def _fitted(rows: Step, spec: EnvSpec, workdir: Path) -> Step:
    timestep = rows.timestep
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
    flags = (np.zeros(()),) * 4
    return Step(
        Timestep(observation, *flags, dict.fromkeys(spec.extras, np.zeros(()))), np.zeros(())
    )


def _names(spec: EnvSpec) -> list[str]:
    """Names of the leaves of a row in the log."""
    return host_arrays.names(_shape(spec))
