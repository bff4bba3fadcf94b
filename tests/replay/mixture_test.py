"""Data mixed with collected rows: the shares of each stream, and nothing else about either."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.replay import dyna, mixture, ring, samplers
from mbrl_jax.replay.transitions import transitions
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec, ReplayState, Windows
from tests.replay.fixed_test import data, empty

SPEC = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1))
LANES, CAPACITY, DATA = 2, 20, 1000  # numbers of the data begin at 1000
STREAMS = (("imagine", Windows(5, 1)), ("transition", Windows(12, 2)))
CONFIG = mixture.Config(
    data="logged",
    share=0.25,
    shares=(("imagine", 0.6),),
    online=ring.Config(CAPACITY, batch_size=8, length=3, sampler=samplers.DynamicFrequency()),
)


def _filled(replay, count=15, extras=()):
    """The state after `count` rows of numbers 0 …, both lanes alike, with data beside it."""
    rows = data(CAPACITY)
    rows = rows._replace(extras={name: np.ones(CAPACITY, np.float32) for name in extras})
    both = jax.tree.map(lambda x: np.stack([x] * LANES, axis=1), rows)
    state = empty(replay)._replace(fixed={"logged": data(11, offset=DATA)})
    return replay.rows.put(state, both)._replace(position=np.int32(count))


@functools.partial(jax.jit, static_argnums=0)
def _batches(config, key):
    """30 draws of each stream of a filled replay: {stream: (counters, batch, indices)}."""
    replay = config.make(LANES, STREAMS)
    state = jax.tree.map(jnp.asarray, _filled(replay))
    streams = ("model", "imagine", "transition")
    draw = lambda key: {s: replay.sample(state, key, stream=s) for s in streams}  # noqa: E731
    return jax.vmap(draw)(jax.random.split(key, 30))


def test_each_stream_draws_its_share():
    drawn = jax.tree.map(np.asarray, _batches(CONFIG, jax.random.key(0)))
    shares = (("model", 8, 4, 2), ("imagine", 5, 1, 3), ("transition", 12, 2, 3))
    for stream, num, length, num_data in shares:
        counters, batch, indices = drawn[stream]
        numbers = batch.timestep.reward
        assert numbers.shape == (30, num, length)
        np.testing.assert_array_equal(numbers, numbers[..., :1] + np.arange(length))
        from_data = numbers[..., 0] >= DATA
        assert (from_data.sum(axis=1) == num_data).all()
        assert (from_data == from_data[0]).all()  # fixed places, spread over the batch
        assert np.diff(np.flatnonzero(from_data[0])).min() >= num // num_data
        np.testing.assert_array_equal(indices.place[0], np.flatnonzero(~from_data[0]))
        assert set(numbers[..., 0][from_data]) == set(range(DATA, DATA + 11 - length + 1))
        assert set(numbers[..., 0][~from_data]) == set(range(15 - length + 1))
        counted = counters.imagine if stream == "imagine" else counters.model
        assert (counted.sum((1, 2)) == num - num_data).all()


def test_all_of_the_ring_asks_for_no_data():
    replay = dataclasses.replace(CONFIG, share=0.0, shares=()).make(LANES, STREAMS)
    draw = functools.partial(replay.sample, key=jax.random.key(1), stream="model")
    batch = jax.eval_shape(draw, empty(replay))[1]
    assert batch.timestep.reward.shape == (8, 4)


def test_all_of_the_data_needs_no_row_and_its_seams_are_no_transitions():
    replay = dataclasses.replace(CONFIG, share=1.0, shares=()).make(LANES, STREAMS)
    state = empty(replay)._replace(fixed={"logged": data(11, offset=DATA)})
    draw = functools.partial(replay.sample, key=jax.random.key(1), stream="transition")
    counters, batch, indices = jax.jit(draw)(state)
    assert batch.timestep.reward.shape == (12, 2)
    found = jax.jit(jax.vmap(transitions))(batch)
    number = np.asarray(batch.timestep.reward[:, 0]) - DATA
    assert {2, 3} <= set(number)
    np.testing.assert_array_equal(found.valid[:, 0], number % 4 != 3)
    np.testing.assert_array_equal(found.discount[:, 0], number != 2)
    assert replay.write_back(counters, indices, jnp.zeros(12)) is counters


def test_rows_are_needed_only_of_what_is_drawn_from_the_ring():
    needs = lambda **changes: dataclasses.replace(CONFIG, **changes).least_rows(LANES, STREAMS)  # noqa: E731
    assert needs() == 6  # 6 windows of 4 rows, all different, in 2 lanes
    assert needs(share=0.0, shares=()) == 7
    assert needs(share=1.0, shares=()) == 0
    assert (CONFIG.batch_size, CONFIG.length) == (8, 3)


def test_a_share_of_a_stream_that_nobody_reads_is_refused():
    with pytest.raises(ValueError, match="share for 'dreams', and the agent reads imagine, model"):
        mixture.Config(shares=(("dreams", 0.5),)).make(1, STREAMS)


def test_written_values_reach_the_windows_they_belong_to():
    def with_priorities(num_envs, streams):
        real = ring.Config(CAPACITY, batch_size=6, length=3).make(num_envs, streams)
        write = lambda counters, indices, values: {"slot": indices[0], "value": values}  # noqa: E731
        return real._replace(write_back=write)

    online = with_priorities(LANES, ())
    _, _, parts = mixture.split(CONFIG, STREAMS)
    state = _filled(online)

    @jax.jit
    def written_of(state):
        key = jax.random.key(0)
        counters, batch, indices = mixture.sample(
            "logged", online, parts, state, key, stream="model"
        )
        return mixture.write_back(online, counters, indices, batch.timestep.reward[:, 0])

    written = written_of(state)
    np.testing.assert_array_equal(written["value"], written["slot"])


def test_what_only_collected_rows_record_is_left_out():
    replay = CONFIG.make(LANES, STREAMS)
    state = _filled(replay, extras=("log_prob",))
    draw = functools.partial(replay.sample, key=jax.random.key(0), stream="model")
    assert jax.eval_shape(draw, state)[1].extras == {}
    logged = state.fixed["logged"]._replace(extras={"log_prob": np.zeros(11, np.float32)})
    extras = jax.jit(draw)(state._replace(fixed={"logged": logged}))[1].extras
    assert extras["log_prob"].sum() == 6 * 4


def test_every_real_batch_of_a_model_buffer_has_the_share():
    buffer = dyna.Config(8, rows_per_update=2, batch_size=8, num_batches=3, real_fraction=0.5)
    replay = buffer.make(CONFIG.make(LANES, STREAMS), SPEC)
    state = _filled(replay)
    assert state.storage.real.timestep.reward.shape == (CAPACITY, LANES)
    sample = jax.jit(functools.partial(replay.sample, stream="behaviour"))
    _, batch, _ = sample(state, jax.random.key(0))
    real = np.asarray(batch.reward[:, :4])
    assert ((real >= DATA).sum(axis=1) == 1).all()
    assert replay.settle(state).fixed["logged"] is state.fixed["logged"]


def test_the_state_is_that_of_the_ring_and_fixed_stays():
    replay = CONFIG.make(LANES, STREAMS)
    state = _filled(replay)
    assert isinstance(state, ReplayState) and replay.rows.capacity == CAPACITY
    assert replay.rows.get(state) is state.storage
    assert set(replay.rows.put(state, None).fixed) == {"logged"}
