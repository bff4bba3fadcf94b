"""The time convention, on an environment made by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import spec
from mbrl_jax.types import ArraySpec, BoundedSpec, DiscreteSpec


def _reset_inner(key):
    """State (where: float, steps: int); starts at a random place below 1."""
    where = jax.random.uniform(key, ())
    return (where, 0), jnp.array([where, 0.0])


def _step_inner(key, state, action):
    """Actions move; beyond 10 is terminal, four steps are the time limit. Dtypes are sloppy."""
    del key
    where, steps = state
    where, steps = where + action, steps + 1.0
    return (where[None], steps), jnp.array([where, steps]), action, where > 10, steps >= 4


@pytest.fixture(scope="module")
def environment():
    return spec.make_environment(DiscreteSpec(12), _reset_inner, _step_inner)


@pytest.fixture(scope="module")
def play(environment):
    """Function (actions [T]) -> timesteps [T+1], one compiled program for all."""

    @jax.jit
    def run(actions):
        key = jax.random.key(0)
        state, first = environment.reset(key)

        def body(state, row):
            return environment.step(state, jax.random.fold_in(key, row[0]), row[1])

        _, rest = jax.lax.scan(body, state, (jnp.arange(6), actions))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest)

    return lambda *actions: jax.tree.map(np.asarray, run(jnp.array(actions)))


TIMED_OUT = (1, 2, 1, 2, 7, 1)
TERMINATED = (1, 11, 7, 1, 1, 1)


@pytest.mark.parametrize("actions, last", [(TIMED_OUT, 4), (TERMINATED, 2)])
def test_the_row_after_the_last_is_a_first_one_and_no_other_is(play, actions, last):
    rows = play(*actions)
    assert np.flatnonzero(rows.is_last)[0] == last
    assert np.flatnonzero(rows.is_first).tolist() == [0, last + 1]


@pytest.mark.parametrize("actions, last", [(TIMED_OUT, 4), (TERMINATED, 2)])
def test_rewards_arrive_with_what_they_are_for_and_resets_bring_none(play, actions, last):
    rows = play(*actions)
    expected = np.array([0.0, *actions])
    expected[last + 1] = 0.0  # a first row
    np.testing.assert_array_equal(rows.reward, expected)


def test_the_true_last_observation_is_emitted(play):
    rows = play(*TERMINATED)
    np.testing.assert_allclose(rows.observation[2] - rows.observation[0], [12.0, 2.0], rtol=1e-6)


def test_a_time_limit_is_last_and_not_terminal(play):
    assert not play(*TIMED_OUT).is_terminal.any()


def test_a_termination_is_terminal_where_it_is_last(play):
    rows = play(*TERMINATED)
    np.testing.assert_array_equal(rows.is_terminal, rows.is_last)


def test_terminating_at_the_time_limit_is_terminal(play):
    rows = play(1, 1, 1, 11, 0, 0)
    assert rows.is_last[4] and rows.is_terminal[4]


def test_the_action_on_the_last_row_is_ignored(play):
    rows, others = play(*TIMED_OUT), play(1, 2, 1, 2, 0, 1)
    jax.tree.map(np.testing.assert_array_equal, rows, others)


def test_an_episode_begins_with_fresh_state(play):
    rows = play(*TIMED_OUT)
    np.testing.assert_array_equal(rows.observation[[5, 6], 1], [0.0, 1.0])


def test_every_reset_draws_a_new_start(play):
    rows = play(*TERMINATED)
    starts = rows.observation[rows.is_first, 0]
    assert len(starts) == 2 and starts[0] != starts[1] and (starts < 1.0).all()


def test_the_spec_is_read_off_the_reset(environment):
    assert environment.spec.observation == ArraySpec((2,), "float32")


@pytest.mark.parametrize(
    "action, expected", [(DiscreteSpec(3), [0.0, 0.0, 1.0]), (BoundedSpec(2), [2.0, 2.0])]
)
def test_actions_as_vectors(action, expected):
    value = jnp.int32(2) if isinstance(action, DiscreteSpec) else jnp.array([2.0, 2.0])
    np.testing.assert_array_equal(spec.action_vector(action, value), expected)
    assert spec.action_size(action) == len(expected)


@pytest.mark.parametrize("action", [DiscreteSpec(3), BoundedSpec(2)])
def test_zero_and_random_actions_have_one_shape_and_dtype(action):
    zero, drawn = spec.zero_action(action), spec.random_action(action, jax.random.key(0))
    assert (zero.shape, zero.dtype) == (drawn.shape, drawn.dtype)


@pytest.mark.parametrize(
    "action, extremes", [(DiscreteSpec(3), (0, 2)), (BoundedSpec(2), (-1.0, 1.0))]
)
def test_random_actions_fill_their_range(action, extremes):
    keys = jax.random.split(jax.random.key(0), 2000)
    drawn = np.asarray(jax.vmap(lambda key: spec.random_action(action, key))(keys))
    np.testing.assert_allclose([drawn.min(), drawn.max()], extremes, atol=0.01)
