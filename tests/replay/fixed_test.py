"""A fixed data set: windows from every legal start, streams of their own, no copy for a seed."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.replay import dyna, fixed
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec, ReplayState, Step, Timestep, Windows

SPEC = EnvSpec(ArraySpec((2,), "float32"), BoundedSpec(1))
CONFIG = fixed.Config(data="logged", batch_size=8, length=3)
STREAMS = (("imagine", Windows(5, 1)), ("transition", Windows(6, 2)))
ROWS = 11


def data(num_rows=ROWS, episode=4, offset=0):
    """Rows whose reward tells their number; episodes of `episode` rows, the last one cut."""
    index = np.arange(num_rows)
    first, last = index % episode == 0, (index % episode == episode - 1) | (index == num_rows - 1)
    number = (offset + index).astype(np.float32)
    observation = np.stack([number, -number], axis=-1)
    return Step(Timestep(observation, number, first, last, last & (index == 3)), number[:, None])


def empty(replay):
    """The state that `replay.init` makes, without a program for it."""
    shapes = jax.eval_shape(replay.init, _row())
    return jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), shapes)


def _row():
    return jax.tree.map(lambda x: x[0], data())


def _state(rows):
    return empty(CONFIG.make(1, STREAMS))._replace(fixed={"logged": rows})


@jax.jit
def _often(state):
    """50 independent draws of two streams: {stream: (windows, starts)}, leading [50]."""
    sample = CONFIG.make(1, STREAMS).sample
    draw = lambda key: {s: sample(state, key, stream=s)[1:] for s in ("model", "imagine")}  # noqa: E731
    return jax.vmap(draw)(jax.random.split(jax.random.key(0), 50))


def test_windows_are_consecutive_rows_from_every_legal_start():
    drawn = jax.tree.map(np.asarray, _often(_state(data())))
    for stream, num, length in (("model", 8, 4), ("imagine", 5, 1)):
        windows, starts = drawn[stream]
        numbers = windows.timestep.reward
        assert numbers.shape == (50, num, length)
        np.testing.assert_array_equal(numbers, starts[..., None] + np.arange(length))
        # They may cross episodes (row 3 is a last one), and reach the last row, but not beyond.
        assert set(np.unique(starts)) == set(range(ROWS - length + 1))
        np.testing.assert_array_equal(windows.action[..., 0], numbers)
        np.testing.assert_array_equal(windows.timestep.is_first, numbers % 4 == 0)


def test_data_as_long_as_a_window_are_drawn_and_shorter_ones_refused():
    sample = functools.partial(CONFIG.make(1, STREAMS).sample, stream="model")
    numbers = sample(_state(data(4)), jax.random.key(0))[1].timestep.reward
    np.testing.assert_array_equal(numbers, np.broadcast_to(np.arange(4), (8, 4)))
    with pytest.raises(ValueError, match="'logged' has 3 rows, and a window has 4"):
        sample(_state(data(3)), jax.random.key(0))


def test_what_is_not_there_is_told():
    replay, key = CONFIG.make(1, STREAMS), jax.random.key(0)
    with pytest.raises(ValueError, match="'dreams'.*imagine.*model"):
        replay.sample(_state(data()), key, stream="dreams")
    with pytest.raises(ValueError, match="reads the data set 'logged', and there is other"):
        replay.sample(ReplayState((), (), 0, {"other": data()}), key, stream="model")


def test_collected_rows_are_counted_and_not_kept():
    replay, state = CONFIG.make(1, STREAMS), _state(data())
    assert CONFIG.least_rows(4, STREAMS) == 0 and replay.rows is None
    after = replay.add(state, data(1))
    assert int(after.position) == 1
    assert jax.tree.structure(after) == jax.tree.structure(state)
    assert sum(x.size for x in jax.tree.leaves(empty(replay))) == 1  # all that is saved of it


def _sizes(jaxpr):
    """Numbers of elements of everything that a program computes, in whatever it calls too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.size for variable in equation.outvars)
        for inner in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from _sizes(inner)


@pytest.mark.parametrize("wrapped", [False, True])
def test_seeds_share_the_data_and_copy_none(wrapped):
    seeds, num_rows = 8, 5000
    buffer = dyna.Config(8, rows_per_update=2, batch_size=4, num_batches=3, real_fraction=0.5)
    replay = CONFIG.make(1, (("transition", Windows(buffer.num_real_windows, 2)),))
    replay = buffer.make(replay, SPEC) if wrapped else replay
    state = jax.tree.map(lambda x: np.stack([x] * seeds), empty(replay))
    state = state._replace(fixed={"logged": jax.tree.map(jnp.asarray, data(num_rows))})
    keys = jax.random.split(jax.random.key(0), seeds)
    stream = "behaviour" if wrapped else "model"
    sample = functools.partial(replay.sample, stream=stream)
    batched = jax.vmap(sample, (ReplayState(0, 0, 0, None), 0))
    assert max(_sizes(jax.make_jaxpr(batched)(state, keys).jaxpr)) < num_rows
    program = jax.jit(batched).lower(state, keys).compile()
    assert program.memory_analysis().temp_size_in_bytes < 4 * num_rows
    _, batch, _ = program(state, keys)
    drawn = np.asarray(batch.reward[:, :, :2] if wrapped else batch.timestep.reward)
    assert len({tuple(one.ravel()) for one in drawn}) == seeds  # each draws for itself


def test_an_every_seeds_copy_would_be_noticed():
    batched = jax.vmap(lambda x: x * 2)
    sizes = list(_sizes(jax.make_jaxpr(jax.jit(batched))(jnp.zeros((8, 5000))).jaxpr))
    assert max(sizes) == 40_000
