"""The model buffer: rows travel from the branch into the ring, and batches mix both kinds."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.replay import dyna
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    EnvSpec,
    Replay,
    ReplayState,
    Step,
    Timestep,
    Transition,
)

SPEC = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1))
CONFIG = dyna.Config(capacity=6, rows_per_update=2, batch_size=4, num_batches=3, real_fraction=0.25)
REAL_REWARD = -7.0


def _step(reward=0.0, lead=()):
    zeros = functools.partial(jnp.zeros, lead)
    timestep = Timestep(jnp.zeros((*lead, 2)), zeros() + reward, *(zeros(bool) for _ in range(3)))
    return Step(timestep, jnp.zeros((*lead, 1)))


def _fake_real(num_windows):
    """A replay that counts its rows, its samples and what is written back."""

    def init(example):
        del example
        return ReplayState(jnp.zeros(()), jnp.zeros((2,)), jnp.zeros((), jnp.int32))

    def add(state, rows):
        return state._replace(
            storage=state.storage + jnp.sum(rows.timestep.reward), position=state.position + 1
        )

    def sample(state, key, *, stream):
        del key
        lead = (num_windows, 2) if stream == "transition" else (1, 5)
        return state.counters.at[0].add(1), _step(REAL_REWARD, lead), jnp.arange(lead[0])

    def write_back(counters, indices, values):
        del indices
        return counters.at[1].add(values)

    return Replay(init, add, sample, write_back)


def _replay(config=CONFIG):
    return dyna.make(config, _fake_real(config.num_real_windows), SPEC)


def _imagined(reward, valid=1.0):
    """rows_per_update rows whose rewards are `reward`, reward + 0.5."""
    rewards = reward + jnp.array([0.0, 0.5])
    pair = jnp.broadcast_to(rewards[:, None], (2, 2))
    ones = jnp.ones((2,))
    return Transition(pair, rewards[:, None], rewards, pair + 1, ones, ones * valid)


def _flush(replay, state, rows):
    state = state._replace(counters=replay.extend(state.counters, rows))
    return replay.add(state, _step(1.0, (1,)))


def _stored(state):
    size = int(state.storage.size)
    return list(np.asarray(state.storage.model.reward[:size]))


def test_rows_are_flushed_in_order_and_overwrite_the_oldest():
    replay = _replay()
    state = replay.init(_step())
    expected = []
    for reward in (1.0, 2.0, 3.0):
        state = _flush(replay, state, _imagined(reward))
        expected += [reward, reward + 0.5]
        assert _stored(state) == expected
    state = _flush(replay, state, _imagined(9.0))
    assert _stored(state) == [9.0, 9.5, 2.0, 2.5, 3.0, 3.5]
    assert int(state.position) == 4  # the wrapped replay's own position
    assert float(state.storage.real) == 4.0


def test_add_without_pending_rows_leaves_the_ring_alone():
    replay = _replay()
    state = _flush(replay, replay.init(_step()), _imagined(1.0))
    after = replay.add(replay.add(state, _step(1.0, (1,))), _step(1.0, (1,)))
    assert _stored(after) == [1.0, 1.5]
    assert int(after.storage.cursor) == 2
    np.testing.assert_array_equal(
        state.storage.model.reward[: CONFIG.capacity], after.storage.model.reward[: CONFIG.capacity]
    )


def test_behaviour_batch_mixes_real_and_imagined_rows():
    replay = _replay()
    state = _flush(replay, replay.init(_step()), _imagined(1.0))
    counters, batch, indices = replay.sample(state, jax.random.key(0), stream="behaviour")
    assert indices is None
    assert batch.reward.shape == (3, 4)
    assert batch.observation.shape == (3, 4, 2)
    assert CONFIG.real_rows == 1
    np.testing.assert_array_equal(batch.reward[:, 0], REAL_REWARD)
    assert set(np.unique(batch.reward[:, 1:])) <= {1.0, 1.5}
    np.testing.assert_array_equal(batch.valid, 1)
    np.testing.assert_array_equal(batch.next_observation[:, 1:, 0], batch.reward[:, 1:] + 1)
    assert float(counters.real[0]) == 1


def test_empty_ring_gives_invalid_rows():
    replay = _replay()
    _, batch, _ = replay.sample(replay.init(_step()), jax.random.key(0), stream="behaviour")
    np.testing.assert_array_equal(batch.valid[:, 0], 1)
    np.testing.assert_array_equal(batch.valid[:, 1:], 0)


def test_validity_of_imagined_rows_survives_and_runaway_rows_are_emptied():
    replay = _replay()
    rows = _imagined(1.0)
    rows = rows._replace(
        valid=jnp.array([0.0, 1.0]), next_observation=rows.next_observation.at[1, 0].set(jnp.inf)
    )
    state = _flush(replay, replay.init(_step()), rows)
    np.testing.assert_array_equal(state.storage.model.valid[:2], [0, 0])
    assert np.isfinite(state.storage.model.next_observation).all()


@pytest.mark.parametrize("stream", ["model", "imagine"])
def test_other_streams_and_their_write_back_are_delegated(stream):
    replay = _replay()
    state = replay.init(_step())
    counters, batch, indices = replay.sample(state, jax.random.key(0), stream=stream)
    assert batch.timestep.reward.shape == (1, 5)
    counters = replay.write_back(counters, indices, jnp.float32(3.0))
    np.testing.assert_array_equal(counters.real, [1, 3])
    assert not counters.is_pending


@pytest.mark.parametrize(("fraction", "real"), [(0.0, 0), (1.0, 4)])
def test_batches_of_one_kind_only(fraction, real):
    config = dyna.Config(6, 2, 4, 3, fraction)
    replay = _replay(config)
    state = _flush(replay, replay.init(_step()), _imagined(1.0))
    _, batch, _ = replay.sample(state, jax.random.key(0), stream="behaviour")
    assert int((batch.reward == REAL_REWARD).sum()) == 3 * real


def test_seeds_under_vmap_flush_on_their_own():
    replay = _replay()
    state = jax.vmap(lambda _: replay.init(_step()))(jnp.arange(2))
    rows = jax.tree.map(lambda x: jnp.stack([x, x + 10]), _imagined(1.0))
    counters = jax.vmap(replay.extend)(state.counters, rows)
    counters = counters._replace(is_pending=jnp.array([False, True]))
    add = jax.jit(jax.vmap(replay.add))
    state = add(state._replace(counters=counters), _step(1.0, (2, 1)))
    np.testing.assert_array_equal(state.storage.size, [0, 2])
    np.testing.assert_array_equal(state.storage.model.reward[1, :2], [11.0, 11.5])
    np.testing.assert_array_equal(state.storage.model.reward[0, : CONFIG.capacity], 0)


def test_records_are_cached_and_sizes_checked():
    real = _fake_real(3)
    assert CONFIG.make(real, SPEC) is dyna.make(CONFIG, real, SPEC)
    with pytest.raises(ValueError, match="multiple of rows_per_update"):
        dyna.make(dyna.Config(capacity=5, rows_per_update=2), real, SPEC)
    replay = dyna.make(CONFIG, _fake_real(4), SPEC)
    with pytest.raises(ValueError, match="num_batches"):
        replay.sample(replay.init(_step()), jax.random.key(0), stream="behaviour")
