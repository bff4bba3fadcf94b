"""Data sets: rows from files and from finished runs, in the row convention of the replays.

`load(config, spec)` gives a `Step` of NumPy's arrays [R, …]: row t holds what arrived *with* o_t
(reward, flags) and the action after it. Every episode stands there with its true last observation
as a row `is_last`, and the row after it is `is_first` with reward 0; so what is no transition is
masked by the flags that mask it in a replay. No observation is ever taken from the next episode.

Layouts that are read:

  npz, hdf5: flat arrays over T steps as in D4RL (arXiv 2004.07219): observations, actions, rewards,
    terminals, and where the file has them timeouts and next_observations.
  minari: `main_data.hdf5` with a group for each episode of T steps and T + 1 observations.
  run: the workdir of a run of this package: the rows that its newest checkpoint holds.

Named observations are `observations/NAME` in each of them. float64 becomes float32.
"""

import dataclasses
import math
from pathlib import Path
from typing import Literal

from mbrl_jax.datasets import files, flat, minari, runs
from mbrl_jax.datasets.files import read_metadata
from mbrl_jax.datasets.flat import save_hdf5, save_npz
from mbrl_jax.datasets.rows import Summary, concatenate, from_lanes, summarise
from mbrl_jax.datasets.scores import REFERENCES, normalised_deviation, normalised_score
from mbrl_jax.types import EnvSpec, Step, bounded

__all__ = [
    "REFERENCES",
    "Config",
    "Summary",
    "concatenate",
    "from_lanes",
    "load",
    "normalised_deviation",
    "normalised_score",
    "read_metadata",
    "save_hdf5",
    "save_npz",
    "summarise",
]


@dataclasses.dataclass(frozen=True)
class Config:
    """Where rows come from, and how they are read."""

    path: str  # of a file, of Minari's folder, or of a run's workdir; a leading ~ is a home
    format: Literal["auto", "npz", "hdf5", "minari", "run"] = "auto"
    # Bounds of the stored actions, one number or one for each entry: what lies in [low, high] is
    # rescaled into [-1, 1]. Empty: they are taken as they are, and must lie in [-1, 1].
    action_low: tuple[float, ...] = bounded((), low=-math.inf)
    action_high: tuple[float, ...] = bounded((), low=-math.inf)
    # Whether the step into a time limit, and an unfinished last step, count where
    # next_observations hold what followed. "drop" is D4RL's conversion; "auto" keeps them in files
    # that this package wrote and drops them in others. (npz, hdf5)
    timeouts: Literal["auto", "keep", "drop"] = "auto"
    # Of files without `timeouts`: steps after which an episode was cut; 0: never. (npz, hdf5)
    max_episode_steps: int | None = bounded(None, low=0)
    # only the first ones: steps of a file, rows of each lane of a run
    num_rows: int | None = bounded(None, low=2)
    # of a run's seeds the rows of this one; None: of all (run)
    seed_index: int | None = bounded(None, low=0)
    checkpoint: str = "newest"  # or an iteration (run)

    def validate(self) -> None:
        """Raise ValueError for settings that no file can fit."""
        if not self.path:
            raise ValueError("path is empty; name a file or a folder")
        if len(self.action_low) != len(self.action_high):
            raise ValueError(
                f"action_low has {len(self.action_low)} numbers and action_high "
                f"{len(self.action_high)}; give as many of each"
            )
        if any(low >= high for low, high in zip(self.action_low, self.action_high, strict=True)):
            raise ValueError("action_low must lie below action_high everywhere")


def load(config: Config, spec: EnvSpec) -> Step:
    """Read a data set: a `Step` of NumPy's arrays with leading [R].

    `Timestep.extras` holds the names in `spec.extras`; `Step.extras` is empty.

    Args:
      config: what to read.
      spec: of the environment that the data must fit.

    Raises ValueError, in one sentence that names the file, where it is missing, damaged, or does
    not fit the environment (shape, dtype, range of actions), and without h5py where it is needed.
    """
    config.validate()
    if spec.seam != "separate":
        raise ValueError(
            "data sets hold the true last row of every episode, and this environment's seam is "
            f"{spec.seam}; set env.protocol.seam=separate"
        )
    path = files.existing(config.path)
    if (layout := _layout(config, path)) == "run":
        which = runs.Which(config.seed_index, config.checkpoint, config.num_rows)
        return runs.read(path, spec, which)
    bounds = (config.action_low, config.action_high)
    if layout == "minari":
        return flat.to_rows(minari.read(path, spec, config.num_rows), spec, bounds, path)
    ends = flat.Ends(config.timeouts, config.max_episode_steps)
    return flat.to_rows(flat.read(path, spec, ends, config.num_rows), spec, bounds, path)


def _layout(config: Config, path: Path) -> str:
    """The layout that a config names, or that a path looks like."""
    if config.format != "auto":
        return config.format
    if path.is_dir():
        return "minari" if minari.main_file(path) else "run"
    if path.suffix == ".npz":
        return "npz"
    with files.opened(path) as arrays:
        return "minari" if minari.looks_like(arrays) else "hdf5"
