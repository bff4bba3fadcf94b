"""Open-loop prediction: what the world model expects when it sees nothing more."""

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.imagination import follow_actions
from mbrl_jax.keys import at, named
from mbrl_jax.types import (
    Agent,
    AgentState,
    Array,
    Environment,
    Key,
    LearnerState,
    PyTree,
    Step,
    WorldModel,
    bind,
)

OPEN_LOOP_ROWS = 12  # of the report's picture: some are seen, the rest is predicted


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

    Single lane of one seed.
    """
    rows = play_rows(env, agent, context + horizon, state, key)
    return predict_rows(world_model, context, state.world_model, key, rows)


def play_rows(env: Environment, agent: Agent, num_rows: int, state: AgentState, key: Key) -> Step:
    """Act `num_rows` rows from a reset, exploring; rows [T] of a single lane of one seed."""
    act = functools.partial(agent.act, explore=True)

    def body(loop, t):
        carry, env_state, timestep = loop
        carry, action = act(state, at(key, "act", t), carry, timestep)
        env_state, following = env.step(env_state, at(key, "env", t), action)
        return (carry, env_state, following), Step(timestep, action)

    loop = (agent.initial_carry(), *env.reset(named(key, "reset")))
    return jax.lax.scan(body, loop, jnp.arange(num_rows))[1]


def predict_rows(
    world_model: WorldModel, context: int, state: LearnerState, key: Key, rows: Step
) -> OpenLoop:
    """Predict rows [T] of one lane that begin with a reset.

    The model filters the first `context` of them, then imagines with the actions that were really
    taken.
    """
    model = bind(world_model, state)
    assert model.decode is not None  # see `train.report.require_drawn`
    decode = model.decode

    def body(loop, scanned):
        latent, prev_action = loop
        t, row = scanned
        observe_key = named(at(key, "act", t), "observe")  # as `agent.act` does it
        latent = model.observe(observe_key, latent, row.timestep, prev_action)
        return (latent, row.action), decode(latent)

    seen = jax.tree.map(lambda x: x[:context], rows)
    nothing = jax.tree.map(jnp.zeros_like, jax.tree.map(lambda x: x[0], rows.action))
    loop = (model.initial_latent(), nothing)
    (latent, _), decoded = jax.lax.scan(body, loop, (jnp.arange(context), seen))
    actions = jax.tree.map(lambda x: x[context - 1 : -1], rows.action)
    imagined = follow_actions(model, named(key, "imagine"), latent, actions, decode)
    predicted = jax.tree.map(lambda a, b: jnp.concatenate([a, b]), decoded, imagined)
    return OpenLoop(rows.timestep.observation, predicted, rows.timestep.is_first)
