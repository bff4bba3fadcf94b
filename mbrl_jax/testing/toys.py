"""A world model of sixty numbers that keeps every law: what behaviours are checked in."""

import dataclasses
import functools
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs.spec import (
    action_size,
    action_vector,
    flat_observation,
    flat_size,
    from_flat,
)
from mbrl_jax.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Metrics,
    Prediction,
    PyTree,
    Timestep,
    Trajectory,
    WorldModel,
    bounded,
)

RATE = 0.1  # of gradient descent
NOISE = 0.1  # of what is imagined


@dataclasses.dataclass(frozen=True)
class Model:
    """z_t = tanh(E o_t + T (z_{t-1}, a_{t-1})); heads for reward, going on and o_t are linear.

    In imagination noise takes the place of the observation. Deterministic where rows are observed.
    """

    width: int = bounded(4, low=1)
    markov: bool = False  # True: nothing of the row before is remembered

    def make(self, spec: EnvSpec) -> WorldModel:
        """The record; learned by plain gradient descent."""
        functions = (init, initial_latent, observe, observe_sequence, imagine, decode, loss)
        bound = {f.__name__: functools.partial(f, self, spec) for f in functions}
        unbound = {f.__name__: f for f in (latent_at, predict, features, apply)}
        return WorldModel(**bound, **unbound, markov=self.markov)


class Latent(NamedTuple):
    """What the model knows at a row."""

    z: Array  # [width]


def init(config: Model, spec: EnvSpec, key: Key) -> LearnerState:
    """Normal weights."""
    size, width = flat_size(spec.observation), config.width
    shapes = {
        "encode": (size, width),
        "transit": (width + action_size(spec.action), width),
        "reward": (width,),
        "go_on": (width,),
        "decode": (width, size),
    }
    params = {
        name: jax.random.normal(jax.random.fold_in(key, i), shape) / math.sqrt(shape[0])
        for i, (name, shape) in enumerate(shapes.items())
    }
    return LearnerState(params, (), ())


def initial_latent(config: Model, spec: EnvSpec) -> Latent:
    """Nothing was seen."""
    del spec
    return Latent(jnp.zeros((config.width,)))


def observe(
    config: Model,
    spec: EnvSpec,
    state: LearnerState,
    key: Key,
    latent: Latent,
    timestep: Timestep,
    prev_action: PyTree,
) -> Latent:
    """One real row."""
    del key
    past = _past(spec, state.params, latent, prev_action)
    forget = timestep.is_first | config.markov
    seen = _vector(spec, timestep.observation) @ state.params["encode"]
    return Latent(jnp.tanh(seen + jnp.where(forget, 0.0, past)))


def observe_sequence(
    config: Model,
    spec: EnvSpec,
    state: LearnerState,
    key: Key,
    latent: Latent,
    prev_action: PyTree,
    trajectory: Trajectory,
) -> Latent:
    """Entries are the latents [T]."""

    def body(carry, row):
        latent, prev_action = carry
        timestep, action = row
        latent = observe(config, spec, state, key, latent, timestep, prev_action)
        return (latent, action), latent

    rows = trajectory.timestep, trajectory.action
    return jax.lax.scan(body, (latent, prev_action), rows)[1]


def latent_at(entries: Latent, t: Array) -> Latent:
    """The latent of row t."""
    return Latent(entries.z[t])


def imagine(
    config: Model, spec: EnvSpec, state: LearnerState, key: Key, latent: Latent, action: PyTree
) -> Latent:
    """One imagined row."""
    noise = NOISE * jax.random.normal(key, (config.width,))
    return Latent(jnp.tanh(_past(spec, state.params, latent, action) + noise))


def predict(state: LearnerState, latent: Latent) -> Prediction:
    """Linear in the latent."""
    go_on = jax.nn.sigmoid(latent.z @ state.params["go_on"])
    return Prediction(latent.z @ state.params["reward"], go_on, {})


def features(state: LearnerState, latent: Latent) -> Array:
    """The latent itself [width]."""
    del state
    return latent.z


def decode(config: Model, spec: EnvSpec, state: LearnerState, latent: Latent) -> PyTree:
    """The observation, as floats, in its own leaves."""
    del config
    return from_flat(spec.observation, latent.z @ state.params["decode"])


def loss(
    config: Model, spec: EnvSpec, params: PyTree, stats: PyTree, key: Key, batch: Trajectory
) -> tuple[Array, tuple[Latent, PyTree, Metrics]]:
    """Squared errors of windows [B, L+1]; entries [B] of the first L rows."""
    state = LearnerState(params, stats, ())
    start = initial_latent(config, spec)
    still = jax.tree.map(lambda x: jnp.zeros_like(x[0, 0]), batch.action)
    see = functools.partial(observe_sequence, config, spec, state, key, start, still)
    latents = jax.vmap(see)(batch)
    said = jax.vmap(jax.vmap(functools.partial(predict, state)))(latents)
    drawn = jax.vmap(jax.vmap(functools.partial(decode, config, spec, state)))(latents)
    timestep, flat = batch.timestep, jax.vmap(jax.vmap(functools.partial(_vector, spec)))
    pairs = (
        (said.reward, timestep.reward),
        (said.discount, 1.0 - timestep.is_terminal),
        (flat(drawn), flat(timestep.observation)),
    )
    total = sum((jnp.mean(jnp.square(a - b)) for a, b in pairs), jnp.zeros(()))
    entries = jax.tree.map(lambda x: x[:, :-1], latents)
    return total, (entries, stats, {"model/loss": (total, jnp.ones(()))})


def apply(state: LearnerState, grads: PyTree, stats: PyTree) -> tuple[LearnerState, Array]:
    """One step of gradient descent; the norm [] of the gradient."""
    params = jax.tree.map(lambda p, g: p - RATE * g, state.params, grads)
    norm = jnp.sqrt(sum((jnp.sum(jnp.square(g)) for g in jax.tree.leaves(grads)), jnp.zeros(())))
    return LearnerState(params, stats, state.opt), norm


def _past(spec: EnvSpec, params: PyTree, latent: Latent, action: PyTree) -> Array:
    vector = action_vector(spec.action, action)
    return jnp.concatenate([latent.z, vector]) @ params["transit"]


def _vector(spec: EnvSpec, observation: PyTree) -> Array:
    """One observation as one vector; bytes become numbers in [0, 1]."""
    scaled = jax.tree.map(lambda x: x / 255 if x.dtype == jnp.uint8 else x, observation)
    return flat_observation(spec.observation, scaled)
