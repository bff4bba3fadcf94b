"""The study of penalties: true steps are the environment's, errors are measured against them."""

import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import penalty_errors
from mbrl_jax.envs import gymnax
from mbrl_jax.envs.spec import random_action
from mbrl_jax.types import AgentState, Prediction, WorldModel

pytestmark = pytest.mark.usefixtures("quick_compile")


def _off_by(change):
    """A model of the true steps, less `change` (o', r); it reports how far that is, and 1."""

    def imagine(state, key, latent, action):
        observation, reward = penalty_errors.true_step(latent[0], action)
        return observation - change[:3], reward - change[3]

    def predict(state, latent):
        extras = {"far": jnp.linalg.norm(change), "penalty": jnp.ones(())}
        return Prediction(latent[1] - 1.0, jnp.ones(()), extras)

    unused = None
    return WorldModel(
        init=unused,
        initial_latent=lambda: (jnp.zeros(3), jnp.zeros(())),
        observe=lambda state, key, latent, timestep, action: (timestep.observation, jnp.zeros(())),
        observe_sequence=unused,
        latent_at=unused,
        imagine=imagine,
        predict=predict,
        features=unused,
        decode=lambda state, latent: latent[0],
        update=lambda state, key, batch: unused,
    )


def test_errors_are_measured_against_the_environments_own_steps():
    env = gymnax.Config("Pendulum-v1").make()
    change = jnp.array([0.0, 0.3, 0.0, 0.4])
    behaviour = types.SimpleNamespace(
        initial_carry=tuple,
        act=lambda state, key, carry, latent, model, explore: (
            carry,
            random_action(env.spec.action, key),
        ),
    )

    @jax.jit
    def run(key):
        keys = jax.random.split(key, 20)
        states, rows = jax.vmap(env.reset)(keys)
        actions = jax.vmap(lambda k: random_action(env.spec.action, k))(keys)
        after = jax.vmap(env.step)(states, keys, actions)[1]
        true = jax.vmap(penalty_errors.true_step)(rows.observation, actions)
        state = AgentState((), (), ())
        found = penalty_errors.errors(_off_by(change), behaviour, 3, state, key, rows.observation)
        return (after.observation, after.reward), true, found

    after, true, (error, reported) = run(jax.random.key(0))
    jax.tree.map(lambda a, t: np.testing.assert_allclose(a, t, atol=1e-4), after, true)
    assert error.shape == (20, 3)
    np.testing.assert_allclose(error, reported["far"], rtol=1e-3)  # the penalty is no error


def test_rank_correlation():
    x = np.array([[0.1, 3.0], [2.0, 9.0]])
    assert penalty_errors.rank_correlation(x, np.exp(x)) == pytest.approx(1.0)
    assert penalty_errors.rank_correlation(x, -x) == pytest.approx(-1.0)
    mixed = np.array([[1.0, 2.0], [3.0, 0.0]])
    assert penalty_errors.rank_correlation(x, mixed) == pytest.approx(-0.4)
    assert np.isnan(penalty_errors.rank_correlation(x, np.zeros((2, 2))))
