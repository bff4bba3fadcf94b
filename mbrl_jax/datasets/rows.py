"""Rows as a replay would hold them: their marks, and whether they fit an environment."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.types import (
    ActionSpec,
    ArraySpec,
    DictActionSpec,
    DictSpec,
    DiscreteSpec,
    MultiDiscreteSpec,
    ObservationSpec,
    PyTree,
    Step,
)

SLACK = 1e-4  # by which stored actions may lie outside of [-1, 1]: they were rounded


class Summary(NamedTuple):
    """What a data set holds."""

    rows: int
    episodes: int
    transitions: int
    terminals: int  # rows with discount 0
    mean_return: float  # of the episodes as they stand there, cut ones included
    least_return: float
    largest_return: float


def summarise(rows: Step) -> Summary:
    """Count what rows [R] hold."""
    timestep = rows.timestep
    first, last = np.asarray(timestep.is_first), np.asarray(timestep.is_last)
    starts = np.flatnonzero(first)
    returns = np.add.reduceat(np.asarray(timestep.reward, np.float64), starts)
    return Summary(
        rows=len(first),
        episodes=len(starts),
        transitions=int((~last[:-1]).sum()),
        terminals=int(np.asarray(timestep.is_terminal).sum()),
        mean_return=float(returns.mean()),
        least_return=float(returns.min()),
        largest_return=float(returns.max()),
    )


def concatenate(*parts: Step) -> Step:
    """Data sets one after the other: each begins and ends an episode, so nothing is joined.

    Args:
      *parts: rows [R, …] as `load` returns them.
    """
    return jax.tree.map(lambda *leaves: np.concatenate(leaves), *parts)


def from_lanes(rows: Step) -> Step:
    """Lanes one after the other, as one data set of episodes.

    Where a lane begins or ends within an episode the cut is marked: no window joins two lanes. An
    episode of which a lane has a single row is left out.

    Args:
      rows: consecutive rows [T, N, …] of N lanes, in the convention of `mbrl_jax.envs.spec`.

    Returns:
      NumPy's rows [R, …] with R ≤ N · T. Raises ValueError where a lane does not begin a new
      episode after each `is_last`, or does elsewhere (its seam is "merged").
    """
    rows = jax.tree.map(np.asarray, rows)
    timestep: Any = rows.timestep
    first, last = (np.array(x) for x in (timestep.is_first, timestep.is_last))  # [T, N]
    if not np.array_equal(first[1:], last[:-1]):
        raise ValueError("not every row after an is_last is is_first, and no other")
    first[0], last[-1] = True, True
    keep = ~(first & last)
    in_order = lambda x: np.swapaxes(x, 0, 1)[keep.T]  # noqa: E731
    rows = jax.tree.map(in_order, rows)
    first, last = in_order(first), in_order(last)
    blank = lambda x: np.where(first, np.zeros((), x.dtype), x)  # noqa: E731
    timestep = rows.timestep
    timestep = timestep._replace(
        reward=blank(timestep.reward),
        is_first=first,
        is_last=last,
        is_terminal=timestep.is_terminal & ~first,
        extras={name: blank(x) for name, x in timestep.extras.items()},
    )
    return rows._replace(timestep=timestep)


def by_name(observation: ObservationSpec, read: Callable[[str], np.ndarray]) -> PyTree:
    """Observations as the environment has them: `read("")`, or `read("/NAME")` for each leaf."""
    if isinstance(observation, DictSpec):
        return {name: read(f"/{name}") for name, _ in observation.leaves}
    return read("")


# ------------------------------------------------------------------------------ fitting a spec


def fit_observation(value: PyTree, spec: ObservationSpec, path: Path) -> PyTree:
    """Observations [R, …] in the dtypes of `spec`. Raises ValueError where they do not fit."""
    if isinstance(spec, DictSpec):
        return {name: _fit(value[name], leaf, name, path) for name, leaf in spec.leaves}
    return _fit(value, spec, "observations", path)


def fit_action(value: PyTree, spec: ActionSpec, bounds: tuple, path: Path) -> PyTree:
    """Actions [R, …] as the replay stores them: int32, or float32 in [-1, 1].

    Args:
      value: as stored.
      spec: of the environment.
      bounds: (low, high) of the stored ones, each a tuple of 0, 1 or A numbers.
      path: of the file.

    Raises ValueError where they do not fit.
    """
    if isinstance(spec, DictActionSpec):
        return {name: fit_action(value[name], leaf, bounds, path) for name, leaf in spec.leaves}
    if isinstance(spec, DiscreteSpec | MultiDiscreteSpec):
        shape = () if isinstance(spec, DiscreteSpec) else (len(spec.num_actions),)
        value = _fit(value, ArraySpec(shape, "int32"), "actions", path)
        if bool((value < 0).any() or (value >= np.asarray(spec.num_actions)).any()):
            raise ValueError(
                f"{path}: actions lie in {value.min()} … {value.max()}, and the environment has "
                f"{spec.num_actions}"
            )
        return value
    value = _fit(value, ArraySpec((spec.size,), "float32"), "actions", path)
    low, high = (np.asarray(bound, np.float32) for bound in bounds)
    if low.size:
        if low.size not in (1, spec.size):
            raise ValueError(
                f"{path}: action_low has {low.size} numbers, and an action {spec.size} entries"
            )
        value = (value - low) / (high - low) * 2 - 1
    if len(value) and (worst := float(np.abs(value).max())) > 1 + SLACK:
        how = "outside of action_low … action_high" if low.size else "not in [-1, 1]"
        raise ValueError(
            f"{path}: actions are {how} (the largest is {worst:.4g} where 1 is the most); set "
            "action_low and action_high to the bounds of the stored ones"
        )
    return np.clip(value, -1.0, 1.0)


def fit_number(value: np.ndarray, name: str, path: Path) -> np.ndarray:
    """Numbers [R] as float32, of [R] or [R, 1]. Raises ValueError where they do not fit."""
    value = value[:, 0] if value.ndim == 2 and value.shape[1] == 1 else value
    value = value.astype(np.float32) if value.dtype.kind in "iub" else value
    return _fit(value, ArraySpec((), "float32"), name, path)


def _fit(value: Any, spec: ArraySpec, name: str, path: Path) -> np.ndarray:
    """`value` [R, …] in the dtype of `spec`, where that keeps what it says."""
    value = np.asarray(value)
    if value.shape[1:] != spec.shape:
        raise ValueError(
            f"{path}: {name} have the shape {value.shape[1:]} in the file and {spec.shape} in the "
            "environment"
        )
    dtype = np.dtype(spec.dtype)
    kinds = "f" if dtype.kind == "f" else "iub"
    fitting = value.astype(dtype, copy=False) if value.dtype.kind in kinds else None
    lossless = kinds == "f" or fitting is value
    if fitting is None or not (lossless or np.array_equal(fitting, value)):
        raise ValueError(
            f"{path}: {name} of the dtype {value.dtype} in the file do not fit {dtype}, which the "
            "environment has"
        )
    if dtype.kind == "f" and not np.isfinite(fitting).all():
        bad = np.flatnonzero(~np.isfinite(fitting.reshape(len(fitting), -1)).all(axis=1))
        raise ValueError(f"{path}: {name} are not finite in row {bad[0]} and {len(bad) - 1} others")
    return fitting
