"""Minari's HDF5 layout: a group `episode_<i>` of T steps and T + 1 observations for each episode.

https://minari.farama.org (github.com/Farama-Foundation/Minari, `hdf5_storage.py`). Data sets that
Minari has stored with Arrow are not read.
"""

from pathlib import Path

import jax
import numpy as np

from mbrl_jax.datasets import files
from mbrl_jax.datasets.flat import Steps
from mbrl_jax.datasets.rows import by_name
from mbrl_jax.types import EnvSpec

MAIN = "main_data.hdf5"


def main_file(folder: Path) -> Path | None:
    """The file with the episodes of a data set's folder, or None."""
    candidates = (folder / "data" / MAIN, folder / MAIN)
    return next((path for path in candidates if path.is_file()), None)


def looks_like(arrays: files.Arrays) -> bool:
    """Whether an HDF5 file holds episodes."""
    return any(name.startswith("episode_") for name in arrays.names)


def read(path: Path, spec: EnvSpec, num_rows: int | None) -> Steps:
    """The first steps of a file, or of the folder that holds it; s' is known everywhere.

    Raises ValueError for what is no such file, and where an episode's arrays do not belong
    together.
    """
    file = main_file(path) if path.is_dir() else path
    if file is None:
        raise ValueError(f"{path} holds no {MAIN}, which is all that is read of Minari's layouts")
    parts, total = [], 0
    with files.opened(file) as arrays:
        for group in _groups(arrays):
            if num_rows is None or total < num_rows:
                parts.append(_episode(arrays, group, spec, file))
                total += len(parts[-1].reward)
    if not parts:
        raise ValueError(f"{file} holds no episode_0, …")
    steps = jax.tree.map(lambda *leaves: np.concatenate(leaves)[:num_rows], *parts)
    steps.is_end[-1:] = True
    return steps


def _groups(arrays: files.Arrays) -> list[str]:
    """Names of the episodes, in the order of their numbers."""
    groups = {name.split("/")[0] for name in arrays.names}
    numbers = {g: g.removeprefix("episode_") for g in groups if g.startswith("episode_")}
    return sorted((g for g, i in numbers.items() if i.isdecimal()), key=lambda g: int(numbers[g]))


def _episode(arrays: files.Arrays, group: str, spec: EnvSpec, file: Path) -> Steps:
    get = lambda name: arrays.get(f"{group}/{name}")  # noqa: E731
    observation = by_name(spec.observation, lambda leaf: get("observations" + leaf))
    reward, terminal = get("rewards").reshape(-1), get("terminations").reshape(-1) != 0
    steps = len(reward)
    for leaf in jax.tree.leaves(observation):
        if len(leaf) != steps + 1:
            raise ValueError(
                f"{file}: {group} holds {steps} rewards and {len(leaf)} observations; "
                f"{steps + 1} belong to them"
            )
    extras = {name: get(f"infos/{name}") for name in spec.extras}
    extras = {name: value[len(value) - steps :] for name, value in extras.items()}
    action = get("actions")
    if {len(leaf) for leaf in (action, terminal, *extras.values())} - {steps}:
        raise ValueError(f"{file}: {group} holds {steps} rewards and another number of actions, …")
    return Steps(
        observation=jax.tree.map(lambda x: x[:-1], observation),
        action=action,
        reward=reward,
        terminal=terminal,
        is_end=np.arange(steps) == steps - 1,
        is_known=np.ones(steps, bool),
        next_observation=jax.tree.map(lambda x: x[1:], observation),
        extras=extras,
    )
