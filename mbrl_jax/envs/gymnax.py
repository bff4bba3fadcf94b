"""gymnax 1.x environments (github.com/RobertTLange/gymnax) in our time convention."""

import dataclasses
import difflib
from importlib import metadata

import jax.numpy as jnp

from mbrl_jax.envs.spec import make_environment
from mbrl_jax.types import BoundedSpec, DiscreteSpec, Environment, bounded

_NEEDED = ("reset_env", "step_env", "is_truncated")  # of an environment of gymnax 1.x


@dataclasses.dataclass(frozen=True)
class Config:
    """One gymnax environment, e.g. "Catch-bsuite", "Breakout-MinAtar", "Pendulum-v1"."""

    name: str
    max_steps: int | None = bounded(None, low=1)  # time limit; None keeps the environment's own
    params: tuple[str, ...] = ()  # of the environment, as in "memory_length=30"

    def make(self) -> Environment:
        """Build the environment.

        Raises ValueError for a name that gymnax does not know, or parameters that do not fit.
        """
        return make(self)


def known_names() -> list[str]:
    """Names of all environments that gymnax holds."""
    import gymnax  # lazily: it takes two seconds

    return list(gymnax.registered_envs)


def make(config: Config) -> Environment:
    """Adapt a gymnax environment: keyed resets, three flags, actions in [-1, 1]."""
    import gymnax

    known = known_names()
    if config.name not in known:
        near = difflib.get_close_matches(config.name, known, n=3, cutoff=0.3) or known
        raise ValueError(
            f"unknown environment {config.name!r}; the nearest gymnax names are {', '.join(near)}"
        )
    env, params = gymnax.make(config.name)
    _require_version(env)
    params = params.replace(**_read_params(config, params))
    if config.max_steps is not None:
        params = params.replace(max_steps_in_episode=config.max_steps)
    space = env.action_space(params)
    to_env, action_spec = _action_adaptor(config.name, space)

    def reset_inner(key):
        observation, state = env.reset_env(key, params)
        return state, observation

    def step_inner(key, state, action):
        observation, state, reward, terminated, _ = env.step_env(key, state, to_env(action), params)
        return state, observation, reward, terminated, env.is_truncated(state, params)

    return make_environment(action_spec, reset_inner, step_inner)


def _require_version(env) -> None:
    """Raise ValueError where the package is another one of that name, or an older one."""
    lacks = [name for name in _NEEDED if not hasattr(env, name)]
    if lacks:
        found = metadata.packages_distributions().get("gymnax", [])
        named = ", ".join(f"{name} {metadata.version(name)}" for name in found) or "of no package"
        raise ValueError(
            f"the gymnax that is installed ({named}) has environments without {', '.join(lacks)}; "
            "uninstall it and install gymnax 1.x"
        )


def _read_params(config: Config, defaults) -> dict[str, bool | int | float]:
    """The values of `config.params`, each of the type of its default."""
    known = {field.name: getattr(defaults, field.name) for field in dataclasses.fields(defaults)}
    kinds = {name: type(value) for name, value in known.items() if isinstance(value, int | float)}
    found = {}
    for assignment in config.params:
        name, _, text = assignment.partition("=")
        if name not in kinds:
            raise ValueError(
                f"env.params: {config.name} has no number {name!r}; it has {', '.join(kinds)}"
            )
        read = _read_bool if kinds[name] is bool else kinds[name]
        try:
            found[name] = read(text)
        except ValueError:
            raise ValueError(
                f"env.params: {assignment!r} is not of the form {name}={known[name]}"
            ) from None
    return found


def _read_bool(text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise ValueError(text)
    return text.lower() == "true"


def _action_adaptor(name: str, space):
    """(function from our action to gymnax's, our action spec)."""
    if hasattr(space, "n"):
        return (lambda action: action), DiscreteSpec(int(space.n))
    if len(space.shape) > 1:
        raise ValueError(f"{name} has actions of shape {space.shape}; vectors are supported")
    low = jnp.broadcast_to(jnp.asarray(space.low, jnp.float32), space.shape)
    high = jnp.broadcast_to(jnp.asarray(space.high, jnp.float32), space.shape)
    size = space.shape[0] if space.shape else 1

    def rescale(action):
        return (low + 0.5 * (jnp.clip(action, -1, 1) + 1.0) * (high - low)).reshape(space.shape)

    return rescale, BoundedSpec(size)
