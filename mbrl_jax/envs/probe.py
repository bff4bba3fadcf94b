"""Probe environments: one ability each, with values known in closed form.

Where a learner fails says what is broken: the value loss (constant), the use of observations
(observation), discounting (delay), the policy (action), policy and observation together (match),
or bootstrapping through time limits (truncation). After `rejax/tests/environments.py` in idea.
"""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from mbrl_jax.envs.spec import make_environment
from mbrl_jax.types import DiscreteSpec, Environment

PROBES = ("constant", "observation", "delay", "action", "match", "truncation")
TIME_LIMIT = 8  # of "truncation"


@dataclasses.dataclass(frozen=True)
class Config:
    """Which ability to probe.

    constant: one step, observation 0, reward 1. Best value 1.
    observation: one step, observation ±1, reward = observation. Value ±1 whatever the action.
    delay: two steps, observation 0 then 1, reward 1 at the end. First value gamma.
    action: one step, reward +1 for action 1, -1 for action 0. Best value 1.
    match: one step, observation ±1; +1 for action 1 at +1 and action 0 at -1, else -1.
    truncation: reward 1 at every step for ever, cut by a time limit: value 1 / (1 - gamma).
    """

    name: Literal["constant", "observation", "delay", "action", "match", "truncation"] = "match"

    def make(self) -> Environment:
        """Build the environment."""
        return make(self)


def make(config: Config) -> Environment:
    """A probe environment with observation [1] and two actions."""

    def reset_inner(key):
        observation = jnp.zeros((1,), jnp.float32)
        if config.name in ("observation", "match"):
            observation = jax.random.choice(key, jnp.array([-1.0, 1.0]), (1,))
        return (observation, jnp.zeros((), jnp.int32)), observation

    def step_inner(key, state, action):
        del key
        observation, count = state
        count = count + 1
        sign = 2.0 * action - 1.0
        reward = {
            "constant": 1.0,
            "observation": observation[0],
            "delay": (count == 2).astype(jnp.float32),
            "action": sign,
            "match": sign * observation[0],
            "truncation": 1.0,
        }[config.name]
        endless = config.name == "truncation"
        steps = 2 if config.name == "delay" else 1
        after = jnp.ones((1,)) if config.name == "delay" else jnp.zeros((1,))
        terminated = jnp.zeros((), bool) if endless else count >= steps
        truncated = count >= TIME_LIMIT if endless else jnp.zeros((), bool)
        return (after, count), after, reward, terminated, truncated

    return make_environment(DiscreteSpec(2), reset_inner, step_inner)
