"""Dyna replay: real rows beside a ring of imagined transitions, mixed for the behaviour.

A `Replay` that wraps another one. Imagined rows are made inside the learning branch, where
storage is read-only, so they travel in two steps: `extend` puts them into the small `pending`
leaf of the counters; the next `add` or `settle`, one of which runs at every row and outside any
branch, flushes them into the ring. When nothing is pending the same write lands on scratch rows
past the capacity: no conditional ever depends on the state of a seed.

Reference: Janner et al. 2019, "When to Trust Your Model" (MBPO), https://arxiv.org/abs/1906.08253
"""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import (
    Array,
    EnvSpec,
    Key,
    PyTree,
    Replay,
    ReplayState,
    RowStore,
    Step,
    Transition,
    bounded,
    cached_make,
)

REAL_ROWS, MODEL_ROWS = 0, 1  # purposes of the key of `sample`


@dataclasses.dataclass(frozen=True)
class Config:
    """Sizes of the model buffer and of the batches that mix it with real rows."""

    # Imagined transitions kept; `agents.branched` rounds it down to whole updates.
    capacity: int = bounded(100_000, low=1)
    # Imagined transitions that one agent update hands back; `agents.branched` fills in
    # num_starts · branch_length.
    rows_per_update: int = bounded(0, low=0)
    batch_size: int = bounded(256, low=1)  # rows of one gradient step, real and imagined together
    num_batches: int = bounded(20, low=1)  # gradient steps per behaviour update
    real_fraction: float = bounded(0.05, low=0, high=1)  # share of real rows in a batch

    @property
    def real_rows(self) -> int:
        """Real transitions in one batch."""
        return round(self.real_fraction * self.batch_size)

    @property
    def num_real_windows(self) -> int:
        """Windows of 2 rows that the wrapped replay's stream "transition" must return."""
        return self.num_batches * self.real_rows

    def make(self, real: Replay, spec: EnvSpec) -> Replay:
        """The record; see the module."""
        return make(self, real, spec)


class DynaStorage(NamedTuple):
    """Written by `add` alone."""

    real: PyTree  # storage of the wrapped replay
    model: Transition  # [capacity + rows_per_update]: the ring, then the scratch rows
    cursor: Array  # [] int32: where the next imagined rows go, a multiple of rows_per_update
    size: Array  # [] int32: rows of the ring in use


class DynaCounters(NamedTuple):
    """The small leaves that leave the learning branch."""

    real: PyTree  # counters of the wrapped replay
    pending: Transition  # [rows_per_update] imagined rows that wait for the next `add`
    is_pending: Array  # [] bool


@cached_make
def make(config: Config, real: Replay, spec: EnvSpec) -> Replay:
    """Binds the functions of this file to a wrapped replay."""
    del spec  # shapes come from the example row
    _validate(config)
    return Replay(
        init=functools.partial(init, config, real),
        add=functools.partial(add, config, real),
        sample=functools.partial(sample, config, real),
        write_back=functools.partial(write_back, real),
        settle=functools.partial(settle, config, real),
        extend=extend,
        rows=real.rows and _real_rows(real.rows),
    )


def init(config: Config, real: Replay, example: Step) -> ReplayState:
    """An empty buffer; the model ring takes shapes and dtypes from one example row."""
    state = real.init(example)
    row = Transition(
        observation=example.timestep.observation,
        action=example.action,
        reward=jnp.zeros((), jnp.float32),
        next_observation=example.timestep.observation,
        discount=jnp.zeros((), jnp.float32),
        valid=jnp.zeros((), jnp.float32),
    )
    zero = jnp.zeros((), jnp.int32)
    ring = _empty(row, config.capacity + config.rows_per_update)
    pending = _empty(row, config.rows_per_update)
    return ReplayState(
        storage=DynaStorage(state.storage, ring, cursor=zero, size=jnp.zeros((), jnp.int32)),
        counters=DynaCounters(state.counters, pending, is_pending=jnp.zeros((), bool)),
        position=state.position,
    )


def add(config: Config, real: Replay, state: ReplayState, rows: Step) -> ReplayState:
    """Appends real rows `[N]`, and flushes pending imagined rows into the model ring."""
    return _flush(config, state, real.add(_real_state(state), rows))


def settle(config: Config, real: Replay, state: ReplayState) -> ReplayState:
    """Flushes pending imagined rows into the model ring; `add` does so too."""
    return _flush(config, state, real.settle(_real_state(state)))


def _flush(config: Config, state: ReplayState, added: ReplayState) -> ReplayState:
    """The state with `added` as the wrapped one, and what was pending in the ring."""
    storage, counters = state.storage, state.counters
    start = jnp.where(counters.is_pending, storage.cursor, config.capacity)
    write = functools.partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
    rows_written = jnp.where(counters.is_pending, config.rows_per_update, 0)
    storage = DynaStorage(
        real=added.storage,
        model=jax.tree.map(write, storage.model, counters.pending),
        cursor=(storage.cursor + rows_written) % config.capacity,
        size=jnp.minimum(storage.size + rows_written, config.capacity),
    )
    counters = DynaCounters(added.counters, counters.pending, is_pending=jnp.zeros((), bool))
    return state._replace(storage=storage, counters=counters, position=added.position)


def sample(
    config: Config, real: Replay, state: ReplayState, key: Key, *, stream: str
) -> tuple[DynaCounters, PyTree, PyTree]:
    """Samples one of three streams; the key is consumed.

    "model" and "imagine" (and whatever else the wrapped replay knows) are delegated to it.
    "behaviour" gives a `Transition` with leading `[num_batches, batch_size]`: first the real rows
    of each batch, then imagined ones drawn uniformly. Rows of an empty ring have `valid = 0`.

    Returns:
      counters, batch, indices (None for "behaviour").
    """
    if stream != "behaviour":
        counters, batch, indices = real.sample(_real_state(state), key, stream=stream)
        return state.counters._replace(real=counters), batch, indices
    counters, parts = state.counters, []
    if config.real_rows:
        real_counters, batch = _sample_real(config, real, state, jax.random.fold_in(key, REAL_ROWS))
        counters = counters._replace(real=real_counters)
        parts.append(batch)
    if config.real_rows < config.batch_size:
        parts.append(_sample_model(config, state.storage, jax.random.fold_in(key, MODEL_ROWS)))
    batch = jax.tree.map(lambda *rows: jnp.concatenate(rows, axis=1), *parts)
    return counters, batch, None


def write_back(
    real: Replay, counters: DynaCounters, indices: PyTree, values: PyTree
) -> DynaCounters:
    """What the wrapped replay does with it (priorities, latents)."""
    return counters._replace(real=real.write_back(counters.real, indices, values))


def extend(counters: DynaCounters, rows: Transition) -> DynaCounters:
    """Keeps imagined rows for the next `add` or `settle`.

    Rows that are not finite (a model that ran away) are emptied and counted as invalid.

    Args:
      counters: what `sample` returned.
      rows: rows_per_update of them, in any leading shape such as `[H, M]`; at most one such call
        between two calls of `add` is kept.
    """
    chex.assert_tree_shape_prefix(rows, rows.reward.shape)
    chex.assert_size(rows.reward, counters.pending.reward.size)
    rows = jax.tree.map(lambda x, old: x.reshape(old.shape), rows, counters.pending)
    finite = [jnp.isfinite(x).reshape(x.shape[0], -1).all(-1) for x in jax.tree.leaves(rows)]
    keep = jnp.stack(finite).all(0)  # [rows_per_update]
    pending = jax.tree.map(
        lambda x, old: jnp.where(keep.reshape((-1,) + (1,) * (x.ndim - 1)), x, 0).astype(old.dtype),
        rows,
        counters.pending,
    )
    return counters._replace(pending=pending, is_pending=jnp.ones((), bool))


def _sample_real(config: Config, real: Replay, state: ReplayState, key: Key):
    """Real transitions with leading `[num_batches, real_rows]`, and the wrapped counters."""
    counters, windows, _ = real.sample(_real_state(state), key, stream="transition")
    found = windows.timestep.reward.shape
    if found != (config.num_real_windows, 2):
        raise ValueError(
            f'The stream "transition" of the wrapped replay gives windows {found}; this buffer '
            f"needs ({config.num_real_windows}, 2): num_batches * real_rows windows of 2 rows."
        )
    lead = (config.num_batches, config.real_rows)
    rows = jax.vmap(transitions)(windows)  # [K, 1]
    return counters, jax.tree.map(lambda x: x.reshape(lead + x.shape[2:]), rows)


def _sample_model(config: Config, storage: DynaStorage, key: Key) -> Transition:
    """Imagined transitions with leading `[num_batches, batch_size - real_rows]`."""
    shape = (config.num_batches, config.batch_size - config.real_rows)
    rows = jax.random.randint(key, shape, 0, jnp.maximum(storage.size, 1))
    batch = jax.tree.map(lambda x: x[rows], storage.model)
    return batch._replace(valid=jnp.where(storage.size > 0, batch.valid, 0.0))


def _real_state(state: ReplayState) -> ReplayState:
    """The state of the wrapped replay."""
    return ReplayState(state.storage.real, state.counters.real, state.position, state.fixed)


def _real_rows(rows: RowStore) -> RowStore:
    """Where the wrapped replay keeps its rows.

    The imagined ones are renewed as a whole within a few updates: a checkpoint takes all of them.
    """

    def get(state):
        return rows.get(_real_state(state))

    def put(state, new):
        real = rows.put(_real_state(state), new)
        return state._replace(storage=state.storage._replace(real=real.storage))

    return RowStore(get, put, rows.capacity)


def _empty(row: Transition, length: int) -> Transition:
    """Zeros `[length, …]` for every leaf of `row`; `valid` is 0 too."""
    return jax.tree.map(lambda x: jnp.zeros((length, *jnp.shape(x)), jnp.asarray(x).dtype), row)


def _validate(config: Config) -> None:
    if config.rows_per_update < 1 or config.capacity % config.rows_per_update:
        raise ValueError(
            f"capacity ({config.capacity}) must be a multiple of rows_per_update "
            f"({config.rows_per_update}), so that an append never wraps."
        )
