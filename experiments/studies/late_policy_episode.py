"""One episode of a policy that takes over late; see `late_policy`, whose flags stay out of here."""

import jax
import jax.numpy as jnp

from mbrl_jax.envs.spec import random_action
from mbrl_jax.keys import at, named
from mbrl_jax.types import Agent, AgentState, Array, Environment, Key


def episode_return(
    env: Environment,
    agent: Agent,
    num_rows: int,
    state: AgentState,
    key: Key,
    random_rows: Array | int,
) -> Array:
    """Return [] of the first episode of one lane of one seed, as far as `num_rows` rows hold it.

    The first `random_rows` actions are uniform, and the agent remembers them as its own.
    """

    def body(loop, t):
        carry, env_state, timestep, total, over = loop
        carry, action = agent.act(state, at(key, "act", t), carry, timestep, explore=False)
        uniform = random_action(env.spec.action, at(key, "random", t))
        action = jnp.where(t < random_rows, uniform, action)
        env_state, timestep = env.step(env_state, at(key, "env", t), action)
        total = total + jnp.where(over, 0.0, timestep.reward)
        carry = carry._replace(prev_action=action)
        return (carry, env_state, timestep, total, over | timestep.is_last), None

    reset = env.reset(named(key, "reset"))
    loop = (agent.initial_carry(), *reset, jnp.zeros(()), jnp.zeros((), bool))
    return jax.lax.scan(body, loop, jnp.arange(num_rows))[0][3]
