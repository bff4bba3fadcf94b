"""SINDy as a world model: the Pendulum's equations found again, resets, circles, laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import testing
from mbrl_jax.envs import gymnax
from mbrl_jax.envs.spec import random_action
from mbrl_jax.experiment.config import validate
from mbrl_jax.types import ArraySpec, BoundedSpec, DiscreteSpec, EnvSpec, Step
from mbrl_jax.world_models import sindy, sparse_regression

pytestmark = pytest.mark.usefixtures("quick_compile")

REGRESSION = sparse_regression.Config(threshold=1e-3, members=5)
CONFIG = sindy.Config(
    dynamics=dataclasses.replace(REGRESSION, degree=3), reward=REGRESSION, circles=((0, 1),)
)


@functools.cache
def _fitted():
    """(model, initial state, 300 windows of a reset and a step of the Pendulum, fitted state)."""
    env = gymnax.Config("Pendulum-v1").make()

    def window(key):
        keys = jax.random.split(key, 3)
        state, first = env.reset(keys[0])
        action = random_action(env.spec.action, keys[1])
        rows = first, env.step(state, keys[2], action)[1]
        return Step(jax.tree.map(lambda *x: jnp.stack(x), *rows), jnp.stack([action] * 2))

    model = CONFIG.make(env.spec)
    batch = jax.jit(jax.vmap(window))(jax.random.split(jax.random.key(0), 300))
    state = jax.jit(model.init)(jax.random.key(1))
    update = jax.jit(model.update)
    return model, state, batch, update, *update(state, jax.random.key(2), batch)


def test_finds_the_equations_of_the_pendulum():
    _, _, _, _, state, _, metrics = _fitted()
    cos, sin, speed = range(3)
    terms = sparse_regression.monomials(CONFIG.dynamics, 3)
    found = state.params["dynamics"]
    torque = len(terms)
    # θ̇' = θ̇ + (3 g / 2 l sin θ + 3 u / m l²) dt with g = 10, m = l = 1, dt = 0.05, u = 2 a
    expected = np.zeros(found.shape[0])
    expected[[speed, sin, torque]] = 1.0, 0.75, 0.3
    np.testing.assert_allclose(found[:, speed], expected, atol=1e-5)
    np.testing.assert_array_equal(found[:, speed] != 0, expected != 0)
    # cos' is not a polynomial: cos θ - sin θ θ̇' dt + …
    assert float(found[terms.index((sin, speed)), cos]) == pytest.approx(-0.05, abs=2e-3)
    assert metrics["model/dynamics_mse"][0] / metrics["model/dynamics_mse"][1] < 1e-5
    counted = sum(int((x != 0).sum()) for x in state.params.values())
    assert int(metrics["model/terms"][0]) == counted < 40


def test_imagines_what_it_fitted_and_stays_on_the_circle():
    model, _, batch, _, state, entries, _ = _fitted()
    keys = jax.random.split(jax.random.key(0), 300)
    latents = jax.vmap(model.latent_at, (0, None))(entries, 0)
    imagined = jax.jit(jax.vmap(model.imagine, (None, 0, 0, 0)))(
        state, keys, latents, batch.action[:, 0]
    )
    following = batch.timestep.observation[:, 1]
    np.testing.assert_allclose(imagined.observation, following, atol=5e-3)
    lengths = np.linalg.norm(np.asarray(imagined.observation)[:, :2], axis=1)
    np.testing.assert_allclose(lengths, 1.0, atol=1e-6)
    error = np.asarray(imagined.reward - batch.timestep.reward[:, 1])
    assert error.std() < 0.2 * np.asarray(batch.timestep.reward[:, 1]).std()


def test_rows_before_a_reset_do_not_count_and_without_any_row_nothing_changes():
    _, initial, batch, update, state, _, _ = _fitted()
    broken = batch.timestep.observation.at[::3, 1].set(jnp.nan)

    def fitted(observation, is_last):
        timestep = batch.timestep._replace(observation=observation, is_last=is_last)
        return update(initial, jax.random.key(2), batch._replace(timestep=timestep))

    ends = batch.timestep.is_last.at[::3, 0].set(True)
    with_nan, _, metrics = fitted(broken, ends)
    without, *_ = fitted(batch.timestep.observation, ends)
    jax.tree.map(np.testing.assert_array_equal, with_nan, without)
    assert all(np.isfinite(total) for total, _ in metrics.values())
    assert not np.array_equal(without.params["reward"], state.params["reward"])
    nothing, *_ = fitted(broken, jnp.ones_like(ends))
    jax.tree.map(np.testing.assert_array_equal, nothing, initial)


def test_stays_finite_where_nothing_moves():
    _, initial, batch, update, *_ = _fitted()
    still = jax.tree.map(lambda x: jnp.broadcast_to(x[:1, :1], x.shape), batch)
    state, _, metrics = update(initial, jax.random.key(3), still)
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((state, metrics)))


def test_projection_on_the_circle_golden():
    project = functools.partial(sindy.on_circles, ((1, 2),))
    found = project(jnp.array([5.0, 0.9, 0.3]))
    np.testing.assert_allclose(found, [5.0, 0.9486832981, 0.3162277660], rtol=1e-6)
    np.testing.assert_array_equal(project(jnp.array([5.0, 0.0, 0.0])), [5.0, 0.0, 0.0])


def test_before_the_first_fit_nothing_moves():
    model, initial, *_ = _fitted()
    latent = model.initial_latent()._replace(observation=jnp.array([0.6, 0.8, 3.0]))
    following = model.imagine(initial, jax.random.key(0), latent, jnp.ones(1))
    np.testing.assert_allclose(following.observation, latent.observation, rtol=1e-6)
    assert float(following.reward) == 0.0 and float(following.discount) == 1.0


@pytest.mark.parametrize("action", [BoundedSpec(2), DiscreteSpec(3)])
def test_keeps_the_laws_of_world_models(action):
    config = dataclasses.replace(CONFIG, dynamics=REGRESSION)
    testing.check_world_model(config, EnvSpec(ArraySpec((3,), "float32"), action))


def test_refuses_angles_outside_the_observation_and_equal_configs_give_one_record():
    spec = EnvSpec(ArraySpec((3,), "float32"), BoundedSpec(1))
    with pytest.raises(ValueError, match="circles"):
        dataclasses.replace(CONFIG, circles=((2, 3),)).make(spec)
    with pytest.raises(ValueError, match="members"):
        validate(sindy.Config(reward=dataclasses.replace(REGRESSION, members=0)))
    assert CONFIG.make(spec) is dataclasses.replace(CONFIG).make(spec)
