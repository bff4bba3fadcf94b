"""A first look at the environment before a run begins: rows that its settings cannot mean."""

import functools
from typing import Any

import jax
import numpy as np

from mbrl_jax.envs.spec import random_action
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.annotations import choices, hints_of
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.keys import at, named
from mbrl_jax.types import ArraySpec, Environment, HostEnvironments

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
        kind = getattr(value, FIELD, None)
        if kind in ("bernoulli", "sigmoid"):
            kinds = choices(hints_of(_type_of(value))[FIELD])
            others = [other for other in kinds if other in ("symlog", "squared")]
            found.append((f"{path}.{FIELD}", str(kind), others))
    return found


def _type_of(value: Any) -> Any:
    return type(value)


@functools.lru_cache(maxsize=16)
def seen(env: Any) -> tuple[float, float]:
    """(lowest, highest) number that the first rows of random play show to a decoder."""
    made = env.make()
    spec = made.spec
    if not isinstance(spec.observation, ArraySpec) or spec.observation.dtype in ("uint8", "bool"):
        return 0.0, 1.0  # bytes are scaled
    played = _on_device(made) if isinstance(made, Environment) else _on_host(made)
    return float(np.nanmin(played)), float(np.nanmax(played))


def _on_device(env: Environment) -> np.ndarray:
    """Observations of lanes of a JAX environment."""

    def lane(key):
        state, first = env.reset(named(key, "reset"))

        def step(state, t):
            action = random_action(env.spec.action, at(key, "action", t))
            state, row = env.step(state, at(key, "env", t), action)
            return state, row.observation

        return first.observation, jax.lax.scan(step, state, np.arange(ROWS))[1]

    first, rows = jax.jit(jax.vmap(lane))(jax.random.split(jax.random.key(0), LANES))
    return np.append(np.asarray(first, np.float64), np.asarray(rows, np.float64))


def _on_host(env: HostEnvironments) -> np.ndarray:
    """Observations of lanes that are opened and closed again."""
    draw = jax.jit(jax.vmap(functools.partial(random_action, env.spec.action)))
    lanes = env.open(np.arange(LANES, dtype=np.int32)[None], evaluation=False)
    try:
        rows = [lanes.reset(None)]
        for i in range(ROWS):
            action = jax.device_get(draw(jax.random.split(jax.random.key(i), LANES)))
            lanes.send(action[None])
            rows.append(lanes.receive())
    finally:
        lanes.close()
    return np.stack([np.asarray(row.observation, np.float64) for row in rows])
