"""SINDy as a `WorldModel`: the next state is a sparse sum of polynomial terms (SINDy-RL).

    x_{t+1} = Θ(x_t, u_t) Ξ,    r_{t+1} = Θ'(x_t, u_t) ξ    (Θ: `sparse_regression`)

It predicts the next state itself, not the change. There is no gradient: an update fits all
coefficients anew, in closed form, to the rows of its batch, so that the batch of the replay should
hold most of what is stored, and updates are far between (`Due("model", every=250)`). Where time
steps are small the coefficients are too (of size dt): the threshold is tied to them. Episodes are
taken to go on for ever.

The published surrogate ends episodes that leave given bounds. Here branches are short, and rows
that are not finite are dropped by the model buffer.

Reference: Zolman et al. 2024 (SINDy-RL), https://arxiv.org/abs/2403.09110; its code,
https://github.com/nzolman/sindy-rl, uses pysindy 1.7.5.
"""

import dataclasses
import functools
from typing import cast

import jax.numpy as jnp

from mbrl_jax.envs.spec import action_size, flat_size
from mbrl_jax.keys import named
from mbrl_jax.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    Trajectory,
    WorldModel,
    bounded,
    cached_make,
)
from mbrl_jax.world_models import markov, sparse_regression


@dataclasses.dataclass(frozen=True)
class Config:
    """Sparse regressions of the next state and of the reward."""

    dynamics: sparse_regression.Config = sparse_regression.Config()
    reward: sparse_regression.Config = sparse_regression.Config(threshold=5e-2, ridge=1e-5)
    # (cosine, sine) of the same angle, by their places in the observation: predictions are put
    # back on the circle
    circles: tuple[tuple[int, int], ...] = bounded((), low=0)

    def make(self, spec: EnvSpec) -> WorldModel:
        """The record; see the module."""
        return make(self, spec)


@cached_make
def make(config: Config, spec: EnvSpec) -> WorldModel:
    """Binds the functions of this file to a config and an environment.

    Raises ValueError for circles that lie outside the observation.
    """
    if not set(sum(config.circles, ())) <= set(range(flat_size(spec.observation))):
        raise ValueError(f"circles={config.circles} lie outside {spec.observation}")
    return markov.make(
        spec,
        init=functools.partial(init, config, spec),
        forward=functools.partial(forward, config),
        update=functools.partial(update, config, spec),
        endless="a function `ends` of the combinator known says them",
    )


def init(config: Config, spec: EnvSpec, key: Key) -> LearnerState:
    """Before the first fit nothing moves and rewards are 0; coefficients [F, D] and [F', 1]."""
    del key
    x, u = jnp.zeros((flat_size(spec.observation),)), jnp.zeros((action_size(spec.action),))
    sizes = {name: sparse_regression.library(part, x, u).size for name, part in _parts(config)}
    params = {
        "dynamics": jnp.eye(sizes["dynamics"], x.size),
        "reward": jnp.zeros((sizes["reward"], 1)),
    }
    return LearnerState(params, stats=(), opt=())


def forward(
    config: Config, state: LearnerState, key: Key, observation: Array, action: Array
) -> tuple[Array, Array, Array, dict]:
    """The state [D] and the reward [] that follow."""
    del key
    x, reward = (
        sparse_regression.predict(
            sparse_regression.library(part, observation, action), state.params[name]
        )
        for name, part in _parts(config)
    )
    return on_circles(config.circles, x), reward[0], jnp.ones(()), {}


def on_circles(circles: tuple[tuple[int, int], ...], x: Array) -> Array:
    """States [D] whose (cosine, sine) pairs have length 1; a pair of zeros stays."""
    for circle in map(jnp.asarray, circles):
        length = jnp.linalg.norm(x[circle])
        x = x.at[circle].divide(jnp.where(length > 0, length, 1.0))
    return x


def update(
    config: Config, spec: EnvSpec, state: LearnerState, key: Key, batch: Trajectory
) -> tuple[LearnerState, Metrics]:
    """Fits everything anew to windows [B, L + 1]; without a transition in them nothing changes."""
    rows = markov.flat_transitions(spec, batch)
    inputs, number = (rows.observation, rows.action), jnp.sum(rows.valid)
    targets = {"dynamics": rows.next_observation, "reward": rows.reward[:, None]}
    params, metrics, one = {}, {}, jnp.ones(())
    for name, part in _parts(config):
        theta = sparse_regression.library(part, *inputs)
        found = sparse_regression.fit(part, named(key, name), theta, targets[name], rows.valid)
        params[name] = jnp.where(number > 0, found, state.params[name])
        errors = sparse_regression.predict(theta, params[name]) - targets[name]
        errors = jnp.where(rows.valid > 0, jnp.square(errors).mean(-1), 0.0)
        metrics[f"model/{name}_mse"] = (jnp.sum(errors), number)
        metrics[f"model/{name}_terms"] = (_terms(params[name]), one)
    metrics["model/terms"] = (cast(Array, sum(map(_terms, params.values()))), one)
    return state._replace(params=params), metrics


def _terms(coefficients: Array) -> Array:
    return jnp.sum(coefficients != 0).astype(jnp.float32)


def _parts(config: Config) -> tuple:
    return ("dynamics", config.dynamics), ("reward", config.reward)
