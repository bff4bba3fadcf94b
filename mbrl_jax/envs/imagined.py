"""An environment that a trained world model dreams: any agent can train in it.

    trained = mbrl_jax.restore_policy("runs/catch")
    keys = jax.random.split(jax.random.key(0), 256)
    first = jax.vmap(trained.system.env.reset)(keys)[1].observation
    dream = imagined_environment(
        trained.system.world_model, trained.state.world_model, trained.system.env.spec, first
    )

It keeps the time convention of `spec`: whatever plays in an environment of ours plays in it.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs.spec import first_timestep, make_environment, only_array, zero_action
from mbrl_jax.types import Array, Environment, EnvSpec, LearnerState, PyTree, WorldModel, bind


class DreamState(NamedTuple):
    """Where a dream stands."""

    latent: PyTree
    steps: Array  # [] int32 since the first observation


def imagined_environment(
    world_model: WorldModel,
    state: LearnerState,
    spec: EnvSpec,
    first_observations: Array,
    max_steps: int = 1000,
) -> Environment:
    """An environment whose steps are imagined rows.

    An episode begins with one of the given observations, which the model observes. A step is
    `imagine`; reward and discount are what the model predicts, the observation what it decodes, and
    the episode ends with the probability 1 - discount. Rewards and observations are means.

    Args:
      world_model: it must decode.
      state: of its learner.
      spec: of the environment that it was trained in; one array is observed.
      first_observations: [N, *observation] of first rows.
      max_steps: after which an episode is cut.

    Raises ValueError for a model without a decoder, or observations of several leaves or of another
    shape or dtype than the spec's.
    """
    leaf = only_array(spec, "an imagined environment")
    if world_model.decode is None:
        raise ValueError("this world model decodes nothing, so that nobody can see its dream")
    first = jnp.asarray(first_observations)
    if first.ndim == 0 or first.shape[1:] != leaf.shape or first.dtype != leaf.dtype:
        raise ValueError(
            f"first_observations are {first.dtype}{list(first.shape)}, and should be "
            f"{leaf.dtype}[N, {', '.join(map(str, leaf.shape))}]"
        )
    model = bind(world_model, state)
    assert model.decode is not None
    decode = model.decode

    def reset_inner(key):
        choose, observe = jax.random.split(key)
        observation = first[jax.random.randint(choose, (), 0, first.shape[0])]
        timestep = first_timestep(observation, spec.extras)
        latent = model.observe(observe, model.initial_latent(), timestep, zero_action(spec.action))
        return DreamState(latent, jnp.zeros((), jnp.int32)), observation

    def step_inner(key, dream, action):
        imagine, end = jax.random.split(key)
        latent = model.imagine(imagine, dream.latent, action)
        prediction, steps = model.predict(latent), dream.steps + 1
        terminated = jax.random.uniform(end) >= prediction.discount
        seen = decode(latent)
        if jnp.issubdtype(leaf.dtype, jnp.integer):  # bytes are decoded as numbers in [0, 1]
            seen = jnp.round(255.0 * jnp.clip(seen, 0.0, 1.0))
        seen = seen.astype(leaf.dtype)
        return DreamState(latent, steps), seen, prediction.reward, terminated, steps >= max_steps

    return make_environment(spec.action, reset_inner, step_inner)
