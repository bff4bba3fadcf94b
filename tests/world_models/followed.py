"""What a world model imagines of an environment in which all follows from the action."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.types import Step, Timestep


class Imagined(NamedTuple):
    """Sixteen samples of what is imagined after each of two actions."""

    prediction: tuple  # `Prediction` [2, 16]
    observation: np.ndarray  # [2, 16, 3]


def imagined(model) -> Imagined:
    """Train a model for 300 updates, then let it imagine both actions, each behind the other.

    What follows action a depends on it alone: observation (a, 1 - a, a), reward 3a - 1, and a
    terminal where a = 1.
    """

    def batch(key):
        actions = jax.random.randint(key, (8, 6), 0, 2)
        before = jnp.concatenate([jnp.zeros((8, 1), int), actions[:, :-1]], axis=1)
        is_first = jnp.broadcast_to(jnp.arange(6) == 0, (8, 6))
        seen = jnp.stack([before, 1 - before, before], axis=-1).astype(jnp.float32)
        return Step(Timestep(seen, 3.0 * before - 1.0, is_first, ~is_first, before == 1), actions)

    @jax.jit
    def run(key):
        def body(state, step_key):
            return model.update(state, step_key, batch(step_key))[0], None

        state, _ = jax.lax.scan(body, model.init(key), jax.random.split(key, 300))

        def one(key, action):
            latent = model.imagine(state, key, model.initial_latent(), 1 - action)
            latent = model.imagine(state, key, latent, action)
            return model.predict(state, latent), model.decode(state, latent)

        keys = jax.random.split(key, 16)
        return jax.vmap(lambda action: jax.vmap(one, (0, None))(keys, action))(jnp.arange(2))

    return Imagined(*jax.tree.map(np.asarray, run(jax.random.key(0))))


def assert_followed(found: Imagined) -> None:
    """Rewards, discounts and observations are those that followed the action."""
    for action, reward, discount, seen in ((0, -1.0, 1.0, (0, 1, 0)), (1, 2.0, 0.0, (1, 0, 1))):
        np.testing.assert_allclose(found.prediction.reward[action].mean(), reward, atol=0.3)
        np.testing.assert_allclose(found.prediction.discount[action].mean(), discount, atol=0.1)
        np.testing.assert_allclose(found.observation[action].mean(0), seen, atol=0.15)
