"""A replay that keeps the model's latent of every row, and renews it with every update.

DreamerV3 begins a window with the latent that stands beside its first row (`replay_context` of its
code): the policy's when the row was collected, and from then on that of the last update that saw
the row. Rows lie in the wrapped replay, latents beside them; windows of the stream "model" have
them as `extras["latent"]`.

An update may not write to storage, so that what `write_back` gets waits in a small leaf of the
counters until the next `add` or `settle`, as in `replay.dyna`. Of a checkpoint the latents are a
part that is written whole.
"""

import dataclasses
import functools
from typing import NamedTuple

import chex
import jax
import jax.numpy as jnp

from mbrl_jax.types import (
    Array,
    Key,
    PyTree,
    Replay,
    ReplayState,
    RowStore,
    Step,
    Windows,
    cached_make,
)

NAME = "latent"  # in `Step.extras`


@dataclasses.dataclass(frozen=True)
class Config:
    """What is renewed at once: the first rows of all windows of the stream "model"."""

    windows: Windows  # B windows of L + 1 rows, of which L have latents to write back

    def make(self, real: Replay) -> Replay:
        """The record; see the module. Raises ValueError for a replay without a ring of rows."""
        if real.rows is None:
            raise ValueError(
                "latents are kept beside the rows of a ring, and this replay has none: use "
                "replay=ring, or agent.context=empty"
            )
        return make(self, real)


class Storage(NamedTuple):
    """Written by `add` and `settle` alone."""

    real: PyTree  # of the wrapped replay
    latents: PyTree  # [C, N, …]


class Pending(NamedTuple):
    """What an update made of its windows."""

    latents: PyTree  # [B, L, …]
    slot: Array  # [B] of the first rows
    lane: Array  # [B]
    is_new: Array  # [] bool


class Counters(NamedTuple):
    """The small leaves that leave the learning branch."""

    real: PyTree
    pending: Pending


@cached_make
def make(config: Config, real: Replay) -> Replay:
    """Bind the functions of this file to a wrapped replay."""
    assert real.rows is not None
    return Replay(
        init=functools.partial(init, config, real),
        add=functools.partial(add, real),
        sample=functools.partial(sample, real),
        write_back=write_back,
        settle=functools.partial(settle, real),
        rows=_real_rows(real.rows),
    )


def init(config: Config, real: Replay, example: Step) -> ReplayState:
    """An empty replay; `example.extras["latent"]` is a latent of one row."""
    row, latent = _apart(example)
    state = real.init(row)
    assert real.rows is not None
    num_envs = jax.tree.leaves(real.rows.get(state))[0].shape[1]
    num, length = config.windows

    def zeros(*lead: int):
        return jax.tree.map(lambda x: jnp.zeros(lead + jnp.shape(x), jnp.asarray(x).dtype), latent)

    # Two leaves of their own: shared buffers cannot be donated.
    first = Pending(
        zeros(num, length - 1),
        jnp.zeros(num, jnp.int32),
        jnp.zeros(num, jnp.int32),
        jnp.array(False),
    )
    storage = Storage(state.storage, zeros(real.rows.capacity, num_envs))
    return state._replace(storage=storage, counters=Counters(state.counters, first))


def add(real: Replay, state: ReplayState, rows: Step) -> ReplayState:
    """Write one row [N] of every lane and its latent; first what is pending."""
    rows, latent = _apart(rows)
    state = _renewed(state)
    assert real.rows is not None
    slot = state.position % real.rows.capacity
    latents = jax.tree.map(
        lambda ring, x: jax.lax.dynamic_update_index_in_dim(ring, x.astype(ring.dtype), slot, 0),
        state.storage.latents,
        latent,
    )
    return _joined(state, real.add(_real_state(state), rows), latents)


def settle(real: Replay, state: ReplayState) -> ReplayState:
    """Write what is pending; `add` does so too."""
    state = _renewed(state)
    return _joined(state, real.settle(_real_state(state)), state.storage.latents)


def sample(
    real: Replay, state: ReplayState, key: Key, *, stream: str
) -> tuple[Counters, PyTree, PyTree]:
    """Windows of the wrapped replay; those of the stream "model" with their latents."""
    counters, batch, indices = real.sample(_real_state(state), key, stream=stream)
    if stream == "model":
        slot, lane = indices
        slots, lane = _slots(state, slot, lane, batch.timestep.reward.shape[1])
        latents = jax.tree.map(lambda x: x[slots, lane], state.storage.latents)
        batch = batch._replace(extras=batch.extras | {NAME: latents})
    return state.counters._replace(real=counters), batch, indices


def write_back(counters: Counters, indices: tuple[Array, Array], values: PyTree) -> Counters:
    """Keep new latents [B, L, …] of windows, whose `indices` `sample` gave, for the next `add`.

    What is not finite (a model that ran away) is not kept. At most one such call between two calls
    of `add` or `settle` is.
    """
    chex.assert_trees_all_equal_shapes(values, counters.pending.latents)
    finite = jnp.stack([jnp.isfinite(x).all() for x in jax.tree.leaves(values)]).all()
    return counters._replace(pending=Pending(values, *indices, is_new=finite))


# --------------------------------------------------------------------------------------- private


def _apart(rows: Step) -> tuple[Step, PyTree]:
    """Rows without their latents, and these."""
    rest = {name: x for name, x in rows.extras.items() if name != NAME}
    return rows._replace(extras=rest), rows.extras[NAME]


def _slots(state: ReplayState, slot: Array, lane: Array, length: int) -> tuple[Array, Array]:
    """Slots [B, T] and lanes [B, 1] of the rows of windows."""
    capacity = jax.tree.leaves(state.storage.latents)[0].shape[0]
    return (slot[:, None] + jnp.arange(length)) % capacity, lane[:, None]


def _renewed(state: ReplayState) -> ReplayState:
    """The state with what is pending written; where nothing is, rows are written as they are."""
    pending, storage = state.counters.pending, state.storage
    length = jax.tree.leaves(pending.latents)[0].shape[1]
    slots, lane = _slots(state, pending.slot, pending.lane, length)
    capacity = jax.tree.leaves(storage.latents)[0].shape[0]
    slots = jnp.where(pending.is_new, slots, capacity)  # nothing new: out of range, and dropped

    def write(b, latents):
        return jax.tree.map(
            lambda ring, new: ring.at[slots[b], lane[b]].set(new[b], mode="drop"),
            latents,
            pending.latents,
        )

    # One after the other: of a row that stands in two windows the last one's latent stays.
    latents = jax.lax.fori_loop(0, len(slots), write, storage.latents)
    counters = state.counters._replace(pending=pending._replace(is_new=jnp.array(False)))
    return state._replace(storage=storage._replace(latents=latents), counters=counters)


def _real_state(state: ReplayState) -> ReplayState:
    return state._replace(storage=state.storage.real, counters=state.counters.real)


def _joined(state: ReplayState, real: ReplayState, latents: PyTree) -> ReplayState:
    """The state with what the wrapped replay made of its own."""
    counters = state.counters._replace(real=real.counters)
    return real._replace(storage=Storage(real.storage, latents), counters=counters)


def _real_rows(rows: RowStore) -> RowStore:
    """Where the wrapped replay keeps its rows."""

    def get(state):
        return rows.get(_real_state(state))

    def put(state, new):
        real = rows.put(_real_state(state), new)
        return state._replace(storage=state.storage._replace(real=real.storage))

    return RowStore(get, put, rows.capacity)
