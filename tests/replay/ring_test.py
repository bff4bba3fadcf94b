"""The ring: windows come back in time order and from the right lane, also after it has wrapped."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs.spec import example_row
from mbrl_jax.experiment.config import validate
from mbrl_jax.replay import ring, samplers
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec, Step, Timestep, Windows

CAPACITY, LANES, LENGTH = 9, 3, 3
SPEC = EnvSpec(ArraySpec((2,), "uint8"), BoundedSpec(1))
CONFIG = ring.Config(
    capacity=CAPACITY,
    batch_size=8,
    length=LENGTH,
    sampler=samplers.DynamicFrequency(),
)
STREAMS = (("imagine", Windows(4, 2)), ("transition", Windows(6, 2)))


def _rows(index):
    """Row `index` of every lane: its number is the reward, its lane the action."""
    lane = jnp.arange(LANES, dtype=jnp.float32)
    no = jnp.zeros(LANES, bool)
    observation = jnp.stack([jnp.full(LANES, index % 256), lane.astype(jnp.int32)], axis=-1)
    reward = jnp.full(LANES, index, jnp.float32)
    return Step(
        Timestep(observation.astype(jnp.uint8), reward, no, no, (index % 4 == 0) | no),
        lane[:, None],
    )


@functools.partial(jax.jit, static_argnums=0)
def _filled(config, count):
    """State after `count` rows; one compiled program for every count."""
    replay = config.make(LANES, STREAMS)
    return jax.lax.fori_loop(
        0, count, lambda i, state: replay.add(state, _rows(i)), replay.init(example_row(SPEC))
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _sample_often(config, stream, state):
    """40 independent draws: (counters, windows, (slot, lane)), each with leading [40]."""
    keys = jax.random.split(jax.random.key(0), 40)
    sample = functools.partial(config.make(LANES, STREAMS).sample, state, stream=stream)
    return jax.vmap(sample)(keys)


@pytest.fixture(
    params=[CONFIG.least_rows(LANES, STREAMS), CAPACITY, CAPACITY + 4, 3 * CAPACITY + 1]
)
def rows_written(request):
    return request.param


@pytest.fixture
def windows(rows_written):
    return _sample_often(CONFIG, "model", _filled(CONFIG, rows_written))[1]


def test_windows_hold_consecutive_rows_oldest_first(windows):
    reward = np.asarray(windows.timestep.reward)
    assert reward.shape == (40, 8, LENGTH + 1)
    np.testing.assert_array_equal(np.diff(reward, axis=-1), 1.0)


def test_windows_lie_in_what_was_written_last(windows, rows_written):
    reward = np.asarray(windows.timestep.reward)
    oldest = max(0, rows_written - CAPACITY)
    assert (reward.min(), reward.max()) == (oldest, rows_written - 1)


def test_windows_stay_in_one_lane(windows):
    lane = np.asarray(windows.action)[..., 0]
    assert (lane == lane[..., :1]).all() and set(np.unique(lane)) == {0, 1, 2}


def test_all_leaves_of_a_row_stay_together(windows):
    timestep = jax.tree.map(np.asarray, windows.timestep)
    np.testing.assert_array_equal(timestep.observation[..., 0], timestep.reward)
    np.testing.assert_array_equal(timestep.observation[..., 1], windows.action[..., 0])
    np.testing.assert_array_equal(timestep.is_terminal, timestep.reward % 4 == 0)


def test_indices_point_at_the_starts_of_the_windows():
    state = _filled(CONFIG, CAPACITY + 4)
    _, windows, (slot, lane) = _sample_often(CONFIG, "model", state)
    np.testing.assert_array_equal(
        state.storage.timestep.reward[slot, lane], windows.timestep.reward[..., 0]
    )
    np.testing.assert_array_equal(lane, windows.action[..., 0, 0])


def test_rows_keep_their_dtype():
    window = _sample_often(CONFIG, "model", _filled(CONFIG, CAPACITY))[1]
    assert window.timestep.observation.dtype == jnp.uint8


@pytest.mark.parametrize("stream, shape", [("imagine", (4, 2)), ("transition", (6, 2))])
def test_streams_have_their_own_numbers_and_lengths(stream, shape):
    counters, windows, _ = _sample_often(CONFIG, stream, _filled(CONFIG, CAPACITY))
    assert windows.timestep.reward.shape[1:] == shape
    touched = counters.imagine if stream == "imagine" else counters.model
    assert (np.asarray(touched).sum((1, 2)) == shape[0]).all()


def test_an_unknown_stream_is_an_error_that_names_the_known_ones():
    with pytest.raises(ValueError, match=r"'dreams'.*imagine.*model"):
        CONFIG.make(LANES, STREAMS).sample(_filled(CONFIG, 5), jax.random.key(0), stream="dreams")


def test_a_ring_shorter_than_a_window_is_refused():
    with pytest.raises(ValueError, match="length"):
        ring.Config(capacity=16, length=16).make(1)


def test_the_smallest_ring_that_is_accepted_holds_one_window():
    assert ring.Config(capacity=17, length=16).make(1)


@pytest.mark.parametrize(
    "config, streams, num_envs, expected",
    [
        (ring.Config(batch_size=16, length=128), (), 1, 129),
        (ring.Config(length=16), (("imagine", Windows(1024, 8)),), 1, 17),
        (
            CONFIG,
            STREAMS,
            LANES,
            6,
        ),  # 8 different windows of 4 rows in 3 lanes need 3 starts a lane
    ],
)
def test_least_rows_is_what_the_most_demanding_stream_needs(config, streams, num_envs, expected):
    assert config.least_rows(num_envs, streams) == expected


def test_with_the_least_rows_all_windows_of_a_draw_differ():
    state = _filled(CONFIG, CONFIG.least_rows(LANES, STREAMS))
    _, windows, (slot, lane) = _sample_often(CONFIG, "model", state)
    np.testing.assert_array_equal(np.diff(windows.timestep.reward, axis=-1), 1.0)
    starts = np.sort(np.asarray(slot) * LANES + np.asarray(lane), axis=-1)
    assert (np.diff(starts, axis=-1) > 0).all()


def test_a_position_near_two_to_the_31_falls_back_to_a_full_ring_at_the_same_slot():
    top = (2**31 - 1) // CAPACITY * CAPACITY
    state = _filled(CONFIG, 3 * CAPACITY)._replace(position=jnp.int32(top - 2))
    seen = []
    for index in range(4):
        slot = int(state.position) % CAPACITY
        state = CONFIG.make(LANES).add(state, _rows(100 + index))
        assert float(state.storage.timestep.reward[slot, 0]) == 100 + index
        seen.append(int(state.position))
    assert seen == [top - 1, CAPACITY, CAPACITY + 1, CAPACITY + 2]
    with pytest.raises(ValueError, match="capacity=2147483647 is out of range"):
        validate(ring.Config(capacity=2**31 - 1))
