"""A fixed data set as a replay: windows of the rows in `ReplayState.fixed`, and nothing else.

The rows [R, …] have no lane axis and are the same for all seeds: an argument that `vmap` does not
batch, of which no seed holds a copy. They are as `mbrl_jax.datasets.load` gives them.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mbrl_jax.replay import samplers
from mbrl_jax.replay.ring import Streams, all_streams
from mbrl_jax.types import (
    Array,
    Key,
    PyTree,
    Replay,
    ReplayState,
    Step,
    Windows,
    bounded,
    cached_make,
)


@dataclasses.dataclass(frozen=True)
class Config:
    """Which data set, and the batches drawn from it."""

    data: str = "data"  # its name in `Experiment.data`
    batch_size: int = bounded(16, low=1)  # windows of the "model" stream
    # L: windows of the "model" stream hold L + 1 rows, the last as target
    length: int = bounded(128, low=1)

    def least_rows(self, num_envs: int, streams: Streams = ()) -> int:
        """Rows a lane must hold before every stream can be sampled: none, the data are there."""
        del num_envs, streams
        return 0

    def make(self, num_envs: int, streams: Streams = ()) -> Replay:
        """Build the record; it serves the stream "model" and these."""
        del num_envs
        return make(self, streams)


@cached_make
def make(config: Config, streams: Streams) -> Replay:
    """Bind the functions of this module."""
    served = tuple(all_streams(config, streams).items())
    return Replay(
        init=init,
        add=add,
        sample=functools.partial(sample, config.data, served),
        write_back=write_back,
    )


def init(row: Step) -> ReplayState:
    """Nothing but a count of rows; the data come as `fixed`."""
    del row
    return ReplayState(storage=(), counters=(), position=jnp.zeros((), jnp.int32))


def add(state: ReplayState, rows: Step) -> ReplayState:
    """Count a row and keep nothing of it.

    A phase that collects serves here to watch episodes while learning from the data alone;
    `replay.mixture` learns from both.
    """
    del rows
    return state._replace(position=jnp.minimum(state.position, 2**31 - 2) + 1)


def sample(
    data: str,
    streams: Streams,
    state: ReplayState,
    key: Key,
    *,
    stream: str,
) -> tuple[PyTree, Step, Array]:
    """Draw windows: (counters, rows [num, length], starts [num]); the key is consumed.

    Raises ValueError for an unknown stream, without the data set, and where it is shorter than a
    window.
    """
    samplers.check_stream(stream, dict(streams))
    windows, starts = draw(state, key, data, dict(streams)[stream])
    return state.counters, windows, starts


def draw(state: ReplayState, key: Key, data: str, windows: Windows) -> tuple[Step, Array]:
    """Windows that are uniform over all starts in a data set, with replacement.

    They may cross episodes, never the end of the data.

    Args:
      state: holds the data set in `fixed`.
      key: consumed.
      data: its name.
      windows: how many, and of how many rows.

    Returns:
      rows [num, length], starts [num]. Raises ValueError where `state` lacks the data set, or it is
      shorter than a window.
    """
    if data not in state.fixed:
        there = ", ".join(sorted(state.fixed)) or "none"
        raise ValueError(f"the replay reads the data set {data!r}, and there is {there}")
    rows = state.fixed[data]
    num_rows = rows.timestep.reward.shape[0]
    if num_rows < windows.length:
        raise ValueError(
            f"the data set {data!r} has {num_rows} rows, and a window has {windows.length}"
        )
    starts = jax.random.randint(key, (windows.num,), 0, num_rows - windows.length + 1)
    index = starts[:, None] + jnp.arange(windows.length)
    return jax.tree.map(lambda x: jnp.asarray(x)[index], rows), starts


def write_back(counters: PyTree, indices: PyTree, values: PyTree) -> PyTree:
    """Nothing to write back: the data stay as they are."""
    del indices, values
    return counters
