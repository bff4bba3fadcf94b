"""Open-loop prediction: what the world model expects when it sees nothing more."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.imagination import follow_actions
from mbrl_jax.keys import at, named
from mbrl_jax.types import Agent, AgentState, Array, Environment, Key, PyTree, WorldModel, bind


class OpenLoop(NamedTuple):
    """One stretch of real rows beside what the model says of them."""

    real: PyTree  # [T, *observation]
    predicted: PyTree  # [T, *observation]: reconstructed rows first, then imagined ones
    is_first: Array  # [T] where the stretch runs into a new episode


def open_loop(
    env: Environment,
    agent: Agent,
    world_model: WorldModel,
    context: int,
    horizon: int,
    state: AgentState,
    key: Key,
) -> OpenLoop:
    """Act `context + horizon` rows from a reset; predict the last `horizon` without seeing them.

    The model filters the first `context` rows, then imagines with the actions that were really
    taken. Single lane of one seed.
    """
    act = functools.partial(agent.act, explore=True)
    model = bind(world_model, state.world_model)

    def body(loop, t):
        carry, env_state, timestep = loop
        carry, action = act(state, at(key, "act", t), carry, timestep)
        decoded = model.decode(carry.latent)
        env_state, following = env.step(env_state, at(key, "env", t), action)
        return (carry, env_state, following), (timestep, action, decoded)

    loop = (agent.initial_carry(), *env.reset(named(key, "reset")))
    loop, (seen, seen_actions, decoded) = jax.lax.scan(body, loop, jnp.arange(context))
    latent = loop[0].latent
    _, (hidden, hidden_actions, _) = jax.lax.scan(body, loop, context + jnp.arange(horizon))
    actions = jax.tree.map(
        lambda a, b: jnp.concatenate([a[-1:], b[:-1]]), seen_actions, hidden_actions
    )
    imagined = follow_actions(model, named(key, "imagine"), latent, actions, model.decode)
    join = lambda a, b: jnp.concatenate([a, b])  # noqa: E731
    return OpenLoop(
        real=jax.tree.map(join, seen.observation, hidden.observation),
        predicted=jax.tree.map(join, decoded, imagined),
        is_first=join(seen.is_first, hidden.is_first),
    )
