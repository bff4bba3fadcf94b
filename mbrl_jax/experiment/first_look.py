"""A first look at the environment before a run begins: rows that its settings cannot mean.

The same for rows that allow no action, where the environment says which are allowed.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax import legal
from mbrl_jax.envs.spec import random_action
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.annotations import choices, hints_of
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.keys import at, named
from mbrl_jax.types import ArraySpec, Environment, HostEnvironments, Timestep

LANES, ROWS = 8, 16
FIELD = "reconstruction"  # of a world model: how its decoder is scored
_SLACK = 1e-3  # beyond 0 and 1: rounding of what an environment scales itself


def require_reconstructed(experiment: Experiment) -> str | None:
    """A warning where a decoder's mean lies in [0, 1] and observations do not; None if all is well.

    Raises ConfigError where the loss is a likelihood of numbers in [0, 1] only: it would fall below
    zero, for ever.
    """
    for path, kind, others in _bounded_kinds(experiment):
        low, high = seen(experiment.env)
        if low >= -_SLACK and high <= 1.0 + _SLACK:
            continue
        better = " or ".join(f"--set={path}={other}" for other in others) or "another model"
        sentence = (
            f"{path}={kind} takes observations between 0 and 1, and those of "
            f"{getattr(experiment.env, 'name', 'this environment')} reach from {low:.3g} to "
            f"{high:.3g}: use {better}"
        )
        if kind == "bernoulli":
            raise ConfigError(sentence)
        return sentence
    return None


def _bounded_kinds(experiment: Experiment) -> list[tuple[str, str, list[str]]]:
    """(path, kind, kinds without bounds) of decoders whose mean lies in [0, 1]."""
    found = []
    for path, value in config.parts_of(experiment):
        owner: Any = type(value)
        kind = getattr(value, FIELD, None)
        if kind in ("bernoulli", "sigmoid"):
            kinds = choices(hints_of(owner)[FIELD])
            others = [other for other in kinds if other in ("symlog", "squared")]
            found.append((f"{path}.{FIELD}", str(kind), others))
    return found


@functools.lru_cache(maxsize=16)
def seen(env: Any) -> tuple[float, float]:
    """(lowest, highest) number that the first rows of random play show to a decoder."""
    made = env.make()
    spec = made.spec
    if not isinstance(spec.observation, ArraySpec) or spec.observation.dtype in ("uint8", "bool"):
        return 0.0, 1.0  # bytes are scaled
    observed = np.asarray(_played(made).observation, np.float64)
    return float(np.nanmin(observed)), float(np.nanmax(observed))


@functools.lru_cache(maxsize=16)
def require_choices(env: Any) -> None:
    """Raise ConfigError for a row of random play, of allowed actions, that allows none."""
    made = env.make()
    if not legal.is_masked(made.spec):
        return
    try:
        rows = _played(made)
        for t in range(ROWS + 1):
            legal.require_some(made.spec, jax.tree.map(lambda x, t=t: x[None, :, t], rows), t)
    except ValueError as error:
        raise ConfigError(f"env: {error}") from error


def _played(env: Environment | HostEnvironments) -> Timestep:
    """Rows [LANES, ROWS + 1] of random play."""
    return _on_device(env) if isinstance(env, Environment) else _on_host(env)


def _on_device(env: Environment) -> Timestep:
    """Rows of lanes of a JAX environment."""

    def lane(key):
        state, first = env.reset(named(key, "reset"))

        def step(loop, t):
            state, before = loop
            action = random_action(env.spec.action, at(key, "action", t), legal.of(before))
            loop = env.step(state, at(key, "env", t), action)
            return loop, loop[1]

        rows = jax.lax.scan(step, (state, first), np.arange(ROWS))[1]
        return jax.tree.map(lambda x, more: jnp.concatenate([x[None], more]), first, rows)

    return jax.device_get(jax.jit(jax.vmap(lane))(jax.random.split(jax.random.key(0), LANES)))


def _on_host(env: HostEnvironments) -> Timestep:
    """Rows of lanes that are opened and closed again."""
    draw = jax.jit(jax.vmap(functools.partial(random_action, env.spec.action)))
    lanes = env.open(np.arange(LANES, dtype=np.int32)[None], evaluation=False)
    try:
        rows = [lanes.reset(None)]
        for i in range(ROWS):
            keys = jax.random.split(jax.random.key(i), LANES)
            mask = legal.of(rows[-1])
            action = draw(keys) if mask is None else draw(keys, mask[0])
            lanes.send(jax.device_get(action)[None])
            rows.append(lanes.receive())
    finally:
        lanes.close()
    return jax.tree.map(lambda *x: np.stack(x, axis=2)[0], *rows)
