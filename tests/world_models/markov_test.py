"""Markov models from few functions: copies of real rows, both ways to learn, laws."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mbrl_jax import testing
from mbrl_jax.types import (
    ArraySpec,
    BoundedSpec,
    DictSpec,
    DiscreteSpec,
    EnvSpec,
    LearnerState,
    WorldModel,
)
from mbrl_jax.world_models import markov

pytestmark = pytest.mark.usefixtures("quick_compile")

SPEC = EnvSpec(ArraySpec((2, 3), "uint8"), DiscreteSpec(3))
OPTIMISER = optax.sgd(0.1)


def _init(key):
    params = {"w": 0.1 * jax.random.normal(key, (9, 6))}
    return LearnerState(params, {"count": jnp.zeros(())}, OPTIMISER.init(params))


def _forward(state, key, observation, action):
    following = jnp.concatenate([observation, action]) @ state.params["w"]
    return following, action[0], jax.nn.sigmoid(following[0]), {"doubt": jnp.sum(action)}


def _loss(params, stats, key, batch):
    rows = markov.flat_transitions(SPEC, batch)
    predicted = jnp.concatenate([rows.observation, rows.action], axis=-1) @ params["w"]
    errors = jnp.square((predicted - rows.next_observation) / 255.0).mean(-1)
    loss = jnp.sum(errors * rows.valid) / jnp.sum(rows.valid)
    return loss, ({"count": stats["count"] + 1}, {"model/mse": (loss, jnp.ones(()))})


def _apply(state, grads, stats):
    updates, opt = OPTIMISER.update(grads, state.opt)
    params = optax.apply_updates(state.params, updates)
    return LearnerState(params, stats, opt), optax.tree.norm(grads)


def _closed_form(state, key, batch):
    mean = markov.flat_transitions(SPEC, batch).next_observation.mean()
    params = {"w": jnp.full_like(state.params["w"], mean)}
    return state._replace(params=params), {"model/mean": (mean, jnp.ones(()))}


@dataclasses.dataclass(frozen=True)
class Config:
    closed_form: bool = False

    def make(self, spec):
        learned = {"update": _closed_form} if self.closed_form else {"loss": _loss, "apply": _apply}
        return markov.make(spec, init=_init, forward=_forward, extras={"doubt": 0.5}, **learned)


@functools.cache
def _batch():
    rows = [testing.random_trajectory(SPEC, jax.random.key(i), 4, (2,)) for i in range(3)]
    return jax.tree.map(lambda *x: jnp.stack(x), *rows)


@pytest.mark.parametrize("closed_form", [False, True])
def test_keeps_the_laws_of_world_models(closed_form):
    testing.check_world_model(Config(closed_form), SPEC)


def test_a_real_row_is_copied():
    model, row = Config().make(SPEC), jax.tree.map(lambda x: x[0, 1], _batch())
    latent = model.observe(None, None, model.initial_latent(), row.timestep, None)
    np.testing.assert_array_equal(model.decode(None, latent), row.timestep.observation)
    np.testing.assert_array_equal(
        model.features(None, latent), row.timestep.observation.ravel().astype(np.float32)
    )
    prediction = model.predict(None, latent)
    assert bool(row.timestep.is_terminal) and float(prediction.discount) == 0.0
    assert float(prediction.reward) == float(row.timestep.reward) != 0.0
    assert float(prediction.extras["doubt"]) == 0.5
    assert model.markov


def test_imagines_what_forward_says():
    model = Config().make(SPEC)
    state = model.init(jax.random.key(0))
    latent = model.initial_latent()._replace(observation=jnp.arange(6.0))
    imagined = model.imagine(state, None, latent, jnp.int32(2))
    expected = np.concatenate([np.arange(6.0), [0, 0, 1]]) @ state.params["w"]
    np.testing.assert_allclose(imagined.observation, expected, rtol=1e-5)
    prediction = model.predict(state, imagined)
    assert float(prediction.discount) == pytest.approx(1 / (1 + np.exp(-expected[0])), rel=1e-5)
    assert float(prediction.reward) == 0.0 and float(prediction.extras["doubt"]) == 1.0


def test_loss_and_apply_give_the_update_with_entries_beside_it():
    model, batch = Config().make(SPEC), _batch()
    state = model.init(jax.random.key(0))
    after, entries, metrics = jax.jit(model.update)(state, jax.random.key(1), batch)
    (loss, _), grads = jax.value_and_grad(_loss, has_aux=True)(
        state.params, state.stats, None, batch
    )
    np.testing.assert_allclose(after.params["w"], state.params["w"] - 0.1 * grads["w"], rtol=1e-5)
    assert float(after.stats["count"]) == 1.0
    np.testing.assert_allclose(metrics["model/mse"][0], loss, rtol=1e-5)
    assert float(metrics["model/gradient_norm"][0]) > 0
    np.testing.assert_array_equal(
        entries.observation.reshape(3, 4, 2, 3), batch.timestep.observation
    )
    replaced = model._replace(loss=lambda *args: jax.tree.map(lambda x: 0.0 * x, model.loss(*args)))
    same = jax.jit(replaced.update)(state, jax.random.key(1), batch)[0]
    np.testing.assert_array_equal(same.params["w"], state.params["w"])


def test_an_update_of_its_own_and_named_ones_are_kept():
    named = {"more": lambda state, key, batch: (state, {})}
    features = lambda state, observation: observation[:2]  # noqa: E731
    model = markov.make(
        SPEC, init=_init, forward=_forward, update=_closed_form, updates=named, features=features
    )
    assert model.updates == named and model.loss is None and model.apply is None
    after, entries, _ = model.update(model.init(jax.random.key(0)), None, _batch())
    assert len(np.unique(after.params["w"])) == 1
    assert entries.reward.shape == (3, 4) and entries.extras == {}
    assert model.features(after, model.initial_latent()).shape == (2,)


def test_named_leaves_become_one_vector_and_come_back():
    leaves = (("camera", ArraySpec((2, 2), "uint8")), ("speed", ArraySpec((), "float32")))
    spec = EnvSpec(DictSpec(leaves), BoundedSpec(1))
    model = markov.make(spec, init=_init, forward=_forward, update=_closed_form)
    observation = {"camera": jnp.arange(4, dtype=jnp.uint8).reshape(2, 2), "speed": jnp.float32(9)}
    row = jax.tree.map(lambda x: x[0, 0], _batch().timestep)._replace(observation=observation)
    latent = model.observe(None, None, model.initial_latent(), row, None)
    np.testing.assert_array_equal(latent.observation, [0, 1, 2, 3, 9])
    decoded = model.decode(None, latent)
    jax.tree.map(np.testing.assert_array_equal, decoded, observation)


def test_refuses_what_it_cannot_learn_from():
    with pytest.raises(ValueError, match="seam"):
        Config().make(dataclasses.replace(SPEC, seam="merged"))
    with pytest.raises(ValueError, match="update"):
        markov.make(SPEC, init=_init, forward=_forward)
    assert isinstance(Config().make(SPEC), WorldModel)
