"""A ring of rows of any pytree [C, N, …] on device, sampled in windows of time."""

import dataclasses
import functools
from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp

from mbrl_jax.replay import samplers
from mbrl_jax.types import (
    Array,
    Key,
    PyTree,
    Replay,
    ReplayState,
    RowStore,
    Step,
    Windows,
    bounded,
    cached_make,
)

Streams = tuple[tuple[str, Windows], ...]  # (name, windows) that a replay serves
_MOST_ROWS = 2**31 - 1  # that a position can count


@dataclasses.dataclass(frozen=True)
class Config:
    """Ring size and the batches drawn from it."""

    capacity: int = bounded(100_000, low=2, high=_MOST_ROWS // 2)  # rows of each lane
    batch_size: int = bounded(16, low=1)  # windows of the "model" stream
    # L: windows of the "model" stream hold L + 1 rows, the last as target
    length: int = bounded(128, low=1)
    sampler: samplers.Uniform | samplers.DynamicFrequency = samplers.Uniform()

    def least_rows(self, num_envs: int, streams: Streams = ()) -> int:
        """Rows a lane must hold before the stream "model" and these can be sampled."""
        return max(
            self.sampler.least_rows(windows.length, windows.num, num_envs)
            for windows in all_streams(self, streams).values()
        )

    def validate(self) -> None:
        """Raise ValueError where the ring cannot hold one window."""
        if self.capacity <= self.length:
            raise ValueError(
                f"replay capacity {self.capacity} holds no window of length + 1 = "
                f"{self.length + 1} rows"
            )

    def make(self, num_envs: int, streams: Streams = ()) -> Replay:
        """Build the record for N lanes; it serves the stream "model" and these."""
        self.validate()
        return make(self, num_envs, streams)


def all_streams(config: Any, streams: Streams) -> dict[str, Windows]:
    """The windows that models train on, and those that an agent asks for beside them."""
    return {"model": Windows(config.batch_size, config.length + 1)} | dict(streams)


class Parts(NamedTuple):
    """Static pieces."""

    config: Config
    sampler: samplers.Sampler
    num_envs: int
    streams: Streams


@cached_make
def make(config: Config, num_envs: int, streams: Streams = ()) -> Replay:
    """Bind the functions of this module."""
    parts = Parts(config, config.sampler.make(), num_envs, streams)
    return Replay(
        init=functools.partial(init, parts),
        add=functools.partial(add, parts),
        sample=functools.partial(sample, parts),
        write_back=write_back,
        rows=RowStore(
            get=lambda state: state.storage,
            put=lambda state, rows: state._replace(storage=rows),
            capacity=config.capacity,
        ),
    )


def init(parts: Parts, row: Step) -> ReplayState:
    """An empty ring for rows like `row` (one lane, no leading axes)."""
    capacity, num_envs = parts.config.capacity, parts.num_envs
    storage = jax.tree.map(
        lambda x: jnp.zeros((capacity, num_envs) + jnp.shape(x), jnp.asarray(x).dtype), row
    )
    counters = parts.sampler.init(capacity, num_envs)
    return ReplayState(storage, counters, jnp.zeros((), jnp.int32))


def add(parts: Parts, state: ReplayState, rows: Step) -> ReplayState:
    """Write one row [N] of every lane, over the oldest when full."""
    chex.assert_tree_shape_prefix(rows, (parts.num_envs,))
    slot = state.position % parts.config.capacity
    storage = jax.tree.map(
        lambda ring, x: jax.lax.dynamic_update_index_in_dim(ring, x.astype(ring.dtype), slot, 0),
        state.storage,
        rows,
    )
    position = advance(state.position, parts.config.capacity)
    counters = state.counters
    if parts.sampler.add is not None:
        counters = parts.sampler.add(counters, slot, rows)
    return state._replace(storage=storage, counters=counters, position=position)


def advance(position: Array, capacity: int) -> Array:
    """The position [] after one more row.

    Before int32 would overflow it falls back by a multiple of the capacity, to where the ring is
    still full and the slot is the same: a run may write any number of rows.
    """
    top = _MOST_ROWS // capacity * capacity
    following = position + 1
    return jnp.where(following >= top, capacity, following)


def sample(
    parts: Parts, state: ReplayState, key: Key, *, stream: str
) -> tuple[PyTree, PyTree, tuple[Array, Array]]:
    """Draw windows: (counters, rows [num, length], (slot [num], lane [num]) of their starts).

    Windows may cross episodes, never the write head. Raises ValueError for an unknown stream.
    """
    streams = all_streams(parts.config, parts.streams)
    samplers.check_stream(stream, streams)
    num, length = streams[stream]
    ring = samplers.Ring(parts.config.capacity, parts.num_envs, state.position)
    counters, slot, lane = parts.sampler.sample(state.counters, key, ring, length, num, stream)
    rows = (slot[:, None] + jnp.arange(length)) % parts.config.capacity
    window = jax.tree.map(lambda x: x[rows, lane[:, None]], state.storage)
    return counters, window, (slot, lane)


def write_back(counters: PyTree, indices: PyTree, values: PyTree) -> PyTree:
    """Nothing to write back: the sampler counts by itself."""
    del indices, values
    return counters
