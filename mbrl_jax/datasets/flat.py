"""Flat arrays over steps, as in D4RL: read into rows, and written from rows.

Step i is (o_i, a_i, r_i, terminal_i, timeout_i) and, where the file has it, the next observation
s'_i. Elsewhere s'_i is o_{i+1}, but never across the end of an episode: there it is unknown, and
the step is no transition (Fu et al. 2020, https://arxiv.org/abs/2004.07219, `qlearning_dataset`).
"""

from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from mbrl_jax.datasets import files
from mbrl_jax.datasets.rows import by_name, fit_action, fit_number, fit_observation
from mbrl_jax.types import DictActionSpec, EnvSpec, PyTree, Step, Timestep

TRUE_LAST = files.METADATA + "true_last"  # in files that this package wrote


class Ends(NamedTuple):
    """How ends of episodes are read; see `datasets.Config`."""

    timeouts: Literal["auto", "keep", "drop"]
    max_episode_steps: int | None


class Steps(NamedTuple):
    """Steps of episodes in order, as they are stored; [T, …]."""

    observation: PyTree
    action: np.ndarray
    reward: np.ndarray
    terminal: np.ndarray  # [T] bool: s' is terminal
    is_end: np.ndarray  # [T] bool: the next step belongs to another episode
    is_known: np.ndarray  # [T] bool: at an end, s' is known
    next_observation: PyTree | None  # None: s' is known at no end
    extras: dict[str, np.ndarray]  # arrive with s', as the reward does


_NO_DICTIONARY = (
    "{path}: flat files hold one array of actions, and here they are a dictionary: take the "
    "workdir of a run instead, whose log of rows has all of them"
)


def to_rows(steps: Steps, spec: EnvSpec, bounds: tuple, path: Path) -> Step:
    """Rows [R, …] of steps [T, …]; an episode of k transitions has k + 1 rows.

    Args:
      steps: as stored.
      spec: of the environment that they must fit.
      bounds: (low, high) of the stored actions.
      path: of the file.

    Raises ValueError where they do not fit, or hold no transition.
    """
    if isinstance(spec.action, DictActionSpec):
        raise ValueError(_NO_DICTIONARY.format(path=path))
    source, is_extra = _sources(steps)
    if not len(source):
        raise ValueError(f"{path} holds no transition")
    starts = np.append(True, steps.is_end[:-1])[source] & ~is_extra
    before = np.where(is_extra, source, source - 1)  # the step that led to a row

    def arrived(value, name):
        value = fit_number(value, name, path)[before]
        return np.where(starts, np.float32(0), value)

    def observed(value, after):
        value = value[source]
        if after is not None:
            value[is_extra] = after[source[is_extra]]
        return value

    now, after = _observations(steps, spec, path)
    observation = jax.tree.map(observed, now, after, is_leaf=lambda x: x is None)
    action = fit_action(steps.action, spec.action, bounds, path)[source]
    action[is_extra] = 0
    timestep = Timestep(
        observation=observation,
        reward=arrived(steps.reward, "rewards"),
        is_first=starts,
        is_last=is_extra | (steps.is_end & ~steps.is_known)[source],
        is_terminal=is_extra & steps.terminal[source],
        extras={name: arrived(value, name) for name, value in steps.extras.items()},
    )
    return Step(timestep, action)


def _sources(steps: Steps) -> tuple[np.ndarray, np.ndarray]:
    """(the step [R] that each row is taken from, whether the row is its s' [R])."""
    is_extra = steps.is_end & steps.is_known
    starts = np.append(True, steps.is_end[:-1])
    rows_of = np.where(is_extra, 2, 1)  # a step with a known end is two rows
    rows_of[starts & steps.is_end & ~is_extra] = 0  # alone: it is part of no transition
    source = np.repeat(np.arange(len(rows_of)), rows_of)
    return source, np.append(False, source[1:] == source[:-1])[: len(source)]


def _observations(steps: Steps, spec: EnvSpec, path: Path) -> tuple[PyTree, PyTree]:
    """(o, s') as the environment has them; None for each leaf of an unknown s'."""
    now = fit_observation(steps.observation, spec.observation, path)
    if steps.next_observation is None:
        return now, jax.tree.map(lambda x: None, now)
    return now, fit_observation(steps.next_observation, spec.observation, path)


# ----------------------------------------------------------------------------------------- reading


def read(path: Path, spec: EnvSpec, ends: Ends, num_rows: int | None) -> Steps:
    """The first steps of a file.

    Raises ValueError for a file that cannot be read or lacks an array, for arrays of different
    lengths, and where nothing says how episodes end.
    """
    with files.opened(path) as arrays:
        get = lambda name: arrays.get(name)[:num_rows]  # noqa: E731
        observation = by_name(spec.observation, lambda leaf: get("observations" + leaf))
        following = None
        if any(n.split("/")[0] == "next_observations" for n in arrays.names):
            following = by_name(spec.observation, lambda leaf: get("next_observations" + leaf))
        names = ("actions", "rewards", "terminals") + ("timeouts",) * ("timeouts" in arrays.names)
        stored = {name: get(name) for name in names}
        extras = {name: get(_key_of_extra(arrays, name, path)) for name in spec.extras}
        is_ours = TRUE_LAST in arrays.names
    whole = jax.tree.leaves([observation, following, stored, extras])
    if len(lengths := {len(leaf) for leaf in whole}) > 1:
        raise ValueError(f"{path} holds arrays of different lengths: {sorted(lengths)}")
    flags = {n: stored[n].reshape(-1) != 0 for n in ("terminals", "timeouts") if n in stored}
    is_end, is_known = _ends(path, flags, observation, following, ends, is_ours)
    return Steps(
        observation=observation,
        action=stored["actions"],
        reward=stored["rewards"],
        terminal=flags["terminals"],
        is_end=is_end,
        is_known=is_known,
        next_observation=following,
        extras=extras,
    )


def _ends(
    path: Path, flags: dict, observation: PyTree, following: PyTree, ends: Ends, is_ours: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Whether a step is the last of its episode [T], and whether its s' is known [T]."""
    terminal, timeout = flags["terminals"], flags.get("timeouts")
    if timeout is None:
        if ends.max_episode_steps is None and following is None:
            raise ValueError(
                f"{path} has neither timeouts nor next_observations: set max_episode_steps to the "
                "steps after which an episode was cut (0: never)"
            )
        timeout = _time_limits(terminal, ends.max_episode_steps or 0)
    final = np.zeros(len(terminal), bool)
    final[-1:] = True
    is_end = terminal | timeout | final
    if following is None:
        return is_end, np.zeros(len(terminal), bool)
    is_known = np.ones(len(terminal), bool)
    if ends.timeouts == "drop" or (ends.timeouts == "auto" and not is_ours):
        is_known = ~timeout & ~final
    return is_end | ~_goes_on(observation, following), is_known


def _time_limits(terminal: np.ndarray, max_steps: int) -> np.ndarray:
    """[T] whether a step is the last one that a limit of steps allows; 0 is no limit."""
    steps = np.arange(len(terminal))
    if not max_steps:
        return np.zeros(len(terminal), bool)
    begins = np.append(True, terminal[:-1])
    age = steps - np.maximum.accumulate(np.where(begins, steps, 0))  # since the last terminal
    return age % max_steps == max_steps - 1


def _goes_on(observation: PyTree, following: PyTree) -> np.ndarray:
    """[T] whether the next step begins where this one ended, but for rounding; True at the end."""
    same = np.ones(len(jax.tree.leaves(observation)[0]), bool)
    for now, after in zip(*map(jax.tree.leaves, (observation, following)), strict=True):
        if now.shape[1:] == after.shape[1:]:  # otherwise it is refused when it is fitted
            close = now[1:] == after[:-1]
            if now.dtype.kind == "f":
                close = np.isclose(now[1:], after[:-1], rtol=1e-5, atol=1e-6)
            same[:-1] &= close.reshape(len(close), -1).all(axis=1)
    return same


def _key_of_extra(arrays: files.Arrays, name: str, path: Path) -> str:
    """Where a file has the extra `name`: "cost", "costs" or "infos/cost"."""
    keys = (name, f"{name}s", f"infos/{name}")
    found = [key for key in keys if key in arrays.names]
    if not found:
        raise ValueError(f"{path} lacks {name!r}, which the environment gives with every row")
    return found[0]


# ----------------------------------------------------------------------------------------- writing


def save_npz(rows: Step, path: str | Path, **metadata: Any) -> None:
    """Write rows [R, …] as an .npz file of flat arrays, next_observations and timeouts among them.

    `load` gives the same rows back, but for what the layout cannot say: actions of `is_last` rows
    are 0, an episode of one row is left out, a terminal row always is the last of its episode (a
    lost life begins a new one), and `Step.extras` are left out.

    Args:
      rows: as `load` returns them; of several lanes, take `from_lanes` first.
      path: ends in .npz.
      **metadata: numbers and texts that describe the file, for `read_metadata`: env_id,
        max_episode_steps, reference_min, reference_max, ….

    Raises ValueError for another ending.
    """
    _save(rows, path, metadata, hdf5=False)


def save_hdf5(rows: Step, path: str | Path, **metadata: Any) -> None:
    """`save_npz` as HDF5 (needs h5py); the path may have any ending but .npz."""
    _save(rows, path, metadata, hdf5=True)


def _save(rows: Step, path: str | Path, metadata: dict[str, Any], hdf5: bool) -> None:
    if (Path(path).suffix == ".npz") == hdf5:
        raise ValueError(f"{path}: an .npz file ends in .npz, and an HDF5 file does not")
    if isinstance(rows.action, dict):
        raise ValueError(_NO_DICTIONARY.format(path=path))
    arrays = _columns(jax.tree.map(np.asarray, rows))
    described = {files.METADATA + name: np.asarray(value) for name, value in metadata.items()}
    files.write(path, arrays | described | {TRUE_LAST: np.asarray(True)}, hdf5)


def _columns(rows: Step) -> dict[str, np.ndarray]:
    """The flat arrays of rows: a step for each pair of rows that is a transition."""
    timestep = rows.timestep
    is_step = ~timestep.is_last[:-1] & ~timestep.is_first[1:]
    is_end = ~np.append(is_step[1:], False)
    arrays = {
        "actions": rows.action[:-1],
        "rewards": timestep.reward[1:],
        "terminals": timestep.is_terminal[1:],
        "timeouts": is_end & ~timestep.is_terminal[1:],
    }
    arrays |= {name: value[1:] for name, value in timestep.extras.items()}
    named = timestep.observation if isinstance(timestep.observation, dict) else None
    for leaf, value in (named or {"": timestep.observation}).items():
        end = f"/{leaf}" if named else ""
        arrays |= {f"observations{end}": value[:-1], f"next_observations{end}": value[1:]}
    return {name: value[is_step] for name, value in arrays.items()}
