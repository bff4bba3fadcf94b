"""Craftax (github.com/MichaelTMatthews/Craftax) in our time convention; extra `craftax`."""

import dataclasses
import difflib
import functools

from mbrl_jax.envs.names import library
from mbrl_jax.envs.spec import make_environment
from mbrl_jax.types import DiscreteSpec, Environment, bounded

NAMES = (
    *("Craftax-Classic-Symbolic-v1", "Craftax-Classic-Pixels-v1"),
    *("Craftax-Symbolic-v1", "Craftax-Pixels-v1"),
)
_NEVER = 2**31 - 1  # a time limit that the counter of steps does not reach


@dataclasses.dataclass(frozen=True)
class Config:
    """One of `NAMES`, e.g. "Craftax-Classic-Symbolic-v1"; observations lie between 0 and 1."""

    name: str
    # Time limit; None keeps the environment's own: 10,000 steps of Classic, 100,000 of the other.
    max_steps: int | None = bounded(None, low=1)

    @property
    def comes_from(self) -> tuple[str, ...]:
        """Packages that decide what the environment does."""
        return ("craftax",)

    def make(self) -> Environment:
        """Build the environment. Raises ValueError for another name, or without Craftax."""
        return make(self)


@functools.cache
def make(config: Config) -> Environment:
    """Adapt an environment: Craftax's one `done` becomes an end for good, or a time limit."""
    if config.name not in NAMES:
        near = difflib.get_close_matches(config.name, NAMES, n=2, cutoff=0.3) or NAMES
        raise ValueError(f"unknown environment {config.name!r}; Craftax has {', '.join(near)}")
    module = library("craftax.craftax_env", "pip install 'mbrl_jax[craftax]'")
    env = module.make_craftax_env_from_name(config.name, auto_reset=False)
    params = env.default_params
    limit = config.max_steps or params.max_timesteps
    # Without a limit of its own, `done` is death (or, in Craftax, the last boss's).
    params = params.replace(max_timesteps=_NEVER)

    def reset_inner(key):
        observation, state = env.reset_env(key, params)
        return state, observation

    def step_inner(key, state, action):
        observation, state, reward, terminated, _ = env.step_env(key, state, action, params)
        return state, observation, reward, terminated, (state.timestep >= limit) & ~terminated

    return make_environment(DiscreteSpec(env.num_actions), reset_inner, step_inner)
