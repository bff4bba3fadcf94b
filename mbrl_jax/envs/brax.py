"""Brax (github.com/google/brax) in our time convention; extra `brax`.

Its environments end by themselves where they say so; the time limit is ours, and is not terminal.
"""

import dataclasses
import difflib
import functools
import warnings
from typing import Literal

import jax
import jax.numpy as jnp

from mbrl_jax.envs.names import library
from mbrl_jax.envs.spec import make_environment
from mbrl_jax.types import BoundedSpec, Environment, bounded


@dataclasses.dataclass(frozen=True)
class Config:
    """One environment of Brax, e.g. "inverted_pendulum", "halfcheetah", "ant"."""

    name: str
    # What computes the physics: Brax's three pipelines, or MuJoCo's MJX.
    backend: Literal["generalized", "positional", "spring", "mjx"] = "generalized"
    max_steps: int = bounded(1_000, low=1)  # time limit, in steps of the agent
    # Steps of the environment with each action: rewards are summed, an end cuts them short.
    action_repeat: int = bounded(1, low=1)

    @property
    def comes_from(self) -> tuple[str, ...]:
        """Packages that decide what the environment does."""
        return ("brax", "mujoco")

    def make(self) -> Environment:
        """Build the environment. Raises ValueError for a name that Brax lacks, or without Brax."""
        return make(self)


@functools.cache
def make(config: Config) -> Environment:
    """Adapt an environment: actions lie in [-1, 1] already."""
    envs = library("brax.envs", "pip install 'mbrl_jax[brax]'")
    known = sorted(envs._envs)  # Brax has no public list
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=3, cutoff=0.3) or known
        raise ValueError(f"unknown environment {config.name!r}; Brax has {', '.join(near)}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that Brax is not maintained any more
        env = envs.get_environment(config.name, backend=config.backend)

    def reset_inner(key):
        state = env.reset(key)
        return (state, jnp.zeros((), jnp.int32)), state.obs

    def step_inner(key, inner, action):
        del key  # Brax draws in `reset` alone
        state, count = inner
        action, total = jnp.clip(action, -1.0, 1.0), jnp.zeros(())
        over = jnp.zeros((), bool)
        for _ in range(config.action_repeat):
            new = env.step(state, action)
            total += jnp.where(over, 0.0, new.reward)
            state = jax.tree.map(functools.partial(jnp.where, over), state, new)
            over = state.done > 0
        count += 1
        return (state, count), state.obs, total, over, (count >= config.max_steps) & ~over

    return make_environment(BoundedSpec(env.action_size), reset_inner, step_inner)
