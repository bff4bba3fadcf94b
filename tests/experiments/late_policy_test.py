"""The study of a policy that takes over late: which rows are random, and which rewards count."""

import types

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.late_policy_episode import episode_return
from mbrl_jax.types import AgentCarry, ArraySpec, DiscreteSpec, EnvSpec, Timestep

EPISODE = 40  # steps, each of which pays the action's number


def _timestep(reward, t):
    is_last = t % EPISODE == 0
    return Timestep(jnp.zeros((1,)), reward, t == 0, is_last & (t > 0), is_last & (t > 0))


def _step(t, key, action):
    return t + 1, _timestep(action.astype(jnp.float32), t + 1)


ENV = types.SimpleNamespace(
    spec=EnvSpec(ArraySpec((1,), "float32"), DiscreteSpec(2)),
    reset=lambda key: (
        jnp.zeros((), jnp.int32),
        _timestep(jnp.zeros(()), jnp.zeros((), jnp.int32)),
    ),
    step=_step,
)


def _act(state, key, carry, timestep, explore):
    assert not explore
    # Repeats what was executed, and so tells whether it was told.
    return carry, jnp.where(timestep.is_first, state, carry.prev_action)


AGENT = types.SimpleNamespace(
    initial_carry=lambda: AgentCarry((), jnp.zeros((), jnp.int32), ()), act=_act
)


def _returns(random_rows: int) -> np.ndarray:
    play = lambda key: episode_return(ENV, AGENT, 100, jnp.int32(1), key, random_rows)  # noqa: E731
    return np.asarray(jax.vmap(play)(jax.random.split(jax.random.key(0), 50)))


def test_a_policy_that_begins_at_once_plays_one_episode():
    np.testing.assert_array_equal(_returns(0), EPISODE)


def test_it_goes_on_from_the_last_random_action():
    found = _returns(10)
    went_on = found >= EPISODE - 10  # the tenth action was 1, and is repeated
    np.testing.assert_array_equal(found <= 10, ~went_on)
    assert 0.3 < went_on.mean() < 0.7 and len(set(found[went_on])) > 3


def test_all_rows_random():
    np.testing.assert_allclose(_returns(100).mean(), EPISODE / 2, atol=2.0)
