"""A dreamed environment: its rows are the model's, in the convention of every environment."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs.doctor.examine import check, count_errors
from mbrl_jax.envs.imagined import imagined_environment
from mbrl_jax.envs.spec import first_timestep, zero_action
from mbrl_jax.experiment.experiment import build
from mbrl_jax.types import bind
from tests import small

pytestmark = pytest.mark.usefixtures("quick_compile")


@pytest.fixture(scope="module")
def trained():
    """(world model, its state, spec, first observations) of Catch, untrained as it is."""
    system = build(small.catch())
    state = system.agent.init(jax.random.key(0)).world_model
    keys = jax.random.split(jax.random.key(1), 5)
    first = jax.vmap(system.env.reset)(keys)[1].observation
    return system.world_model, state, system.env.spec, first


def test_rows_are_what_the_model_imagines(trained):
    world_model, state, spec, first = trained
    env = imagined_environment(*trained)
    assert (env.spec.observation, env.spec.action) == (spec.observation, spec.action)
    dream, timestep = env.reset(jax.random.key(3))
    assert timestep.is_first and timestep.reward == 0
    assert (np.asarray(timestep.observation) == np.asarray(first)).all((1, 2)).any()

    model = bind(world_model, state)
    choose, observe = jax.random.split(jax.random.key(3))
    observation = first[jax.random.randint(choose, (), 0, 5)]
    latent = model.observe(
        observe, model.initial_latent(), first_timestep(observation), zero_action(spec.action)
    )
    action, key = jnp.int32(1), jax.random.key(4)
    _, timestep = env.step(dream, key, action)
    imagine, end = jax.random.split(jax.random.split(key)[0])
    latent = model.imagine(imagine, latent, action)
    prediction = model.predict(latent)
    np.testing.assert_allclose(timestep.observation, model.decode(latent), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(timestep.reward, prediction.reward, rtol=1e-5, atol=1e-6)
    assert bool(timestep.is_terminal) == bool(jax.random.uniform(end) >= prediction.discount)


def test_episodes_end_as_often_as_the_model_says_and_are_cut(trained):
    env = imagined_environment(*trained, max_steps=6)

    def body(carry, key):
        state, _ = carry
        state, timestep = env.step(state, key, jnp.int32(0))
        return (state, timestep), timestep

    keys = jax.random.split(jax.random.key(0), 600)
    rows = jax.jit(lambda: jax.lax.scan(body, env.reset(jax.random.key(9)), keys)[1])()
    last, first = np.asarray(rows.is_last), np.asarray(rows.is_first)
    assert (first[1:] == last[:-1]).all() and last.sum() >= 600 // 7
    lengths = np.diff(np.flatnonzero(last))
    assert lengths.max() == 7  # six steps and the row that begins the next
    assert np.asarray(rows.is_terminal).any() and not rows.reward[first].any()


def test_the_doctor_finds_nothing(trained):
    findings = check(imagined_environment(*trained, max_steps=20), steps=200)
    assert count_errors(findings) == 0, findings


def test_what_cannot_be_dreamed_is_refused(trained):
    world_model, state, spec, first = trained
    with pytest.raises(ValueError, match="decodes nothing"):
        imagined_environment(world_model._replace(decode=None), state, spec, first)
    with pytest.raises(ValueError, match=r"float32\[10, 5\], and should be float32\[N, 10, 5\]"):
        imagined_environment(world_model, state, spec, first[0])
