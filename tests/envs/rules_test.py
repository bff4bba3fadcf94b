"""Known rewards and ends are those of the environments."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import gymnax, rules
from mbrl_jax.envs.spec import random_action

pytestmark = pytest.mark.usefixtures("quick_compile")


def _played(name, num):
    """Rows of random play, and whether each pair of them is a transition."""
    env = gymnax.Config(name).make()

    def body(carry, key):
        state, timestep = carry
        action = random_action(env.spec.action, key)
        return env.step(state, key, action), (timestep, action)

    keys = jax.random.split(jax.random.key(0), num)
    return jax.jit(lambda: jax.lax.scan(body, env.reset(jax.random.key(1)), keys)[1])()


@pytest.mark.parametrize(
    ("name", "rule", "field"),
    [
        ("Pendulum-v1", rules.pendulum_reward, "reward"),
        ("Pendulum-v1", rules.never, "is_terminal"),
        ("CartPole-v1", rules.cartpole_ends, "is_terminal"),
    ],
)
def test_a_rule_says_what_gymnax_does(name, rule, field):
    timestep, action = _played(name, 300)
    said = jax.vmap(rule)(timestep.observation[:-1], action[:-1], timestep.observation[1:])
    really = getattr(timestep, field)[1:]
    within = ~np.asarray(timestep.is_last[:-1])
    np.testing.assert_allclose(said[within], really[within], rtol=1e-4, atol=1e-4)
    if field == "is_terminal":
        assert really.any() == (name == "CartPole-v1")


def test_ends_of_mujoco_tasks_look_at_both_sides():
    hopper = jnp.zeros(11).at[0].set(1.2)
    walker = jnp.zeros(17).at[0].set(1.2)
    ends = lambda rule, x: bool(rule(None, None, x))  # noqa: E731
    assert not ends(rules.hopper_ends, hopper) and not ends(rules.walker2d_ends, walker)
    for index, value in ((0, 0.7), (1, 0.2), (1, -0.2), (5, 100.0), (5, -100.0), (3, jnp.nan)):
        assert ends(rules.hopper_ends, hopper.at[index].set(value)), (index, value)
    for index, value in ((0, 0.8), (0, 2.0), (1, 1.0), (1, -1.0), (0, jnp.nan)):
        assert ends(rules.walker2d_ends, walker.at[index].set(value)), (index, value)
