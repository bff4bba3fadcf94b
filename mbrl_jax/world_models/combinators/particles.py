"""Trajectory sampling of PETS: an ensemble whose latent is n particles that imagine side by side.

A row that is really seen stands in all particles. For an imagined step they stand in E equal
blocks, and member e moves block e by a sample of its normal, so that each moves exactly n / E:

  TSinf  a particle stays with one member as long as it is imagined;
  TS1    particles change members at every step, by a random permutation;
  E      one particle, which moves by the mean of all members' means, without a sample.

What is predicted are means over particles: the reward over those that have not ended, the discount
the share of them that goes on, so that a plan's score is the mean of the particles' own. A
particle whose sum of rewards is no number, for whatever reason, costs 1e6 in all, as published.

Reference: Chua et al. 2018, https://arxiv.org/abs/1805.12114; facts beyond the paper are those of
its code (dmbrl/controllers/MPC.py, commit 77fd880), which knows no ends. Its modes DS and MM, which
draw new particles from moments of the old ones, are not here.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.envs import rules
from mbrl_jax.envs.spec import action_vector, from_flat
from mbrl_jax.keys import named
from mbrl_jax.types import (
    Array,
    EnvSpec,
    Key,
    LearnerState,
    Prediction,
    PyTree,
    Timestep,
    WorldModel,
    bounded,
    cached_make,
    part,
)
from mbrl_jax.world_models import ensemble, markov

COST = 1e6  # of a particle that is no number


@dataclasses.dataclass(frozen=True)
class Config:
    """The ensemble, and how particles go through it; published numbers by default."""

    model: Any = part("mbrl_jax.world_models", ensemble.Config())
    mode: Literal["TSinf", "TS1", "E"] = "TSinf"
    particles: int = bounded(20, low=1)  # n, a multiple of the members; of mode E 1
    # (o, a, o') -> [] by the name that `rules.find` reads; None: what the members learned
    reward: str | None = None
    ends: str | None = None  # (o, a, o') -> [] bool; None: what the members learned, if they did

    def make(self, spec: EnvSpec) -> WorldModel:
        """The record. Raises ValueError for particles that cannot be shared out."""
        return make(self, spec)


class Latent(NamedTuple):
    """Particles, and what arrived with them."""

    observation: Array  # [n, D] flat
    alive: Array  # [n] probability that a particle has not ended
    total: Array  # [n] of its rewards since the row that was seen
    reward: Array  # []
    discount: Array  # []


class Parts(NamedTuple):
    """Static pieces."""

    config: Config
    spec: EnvSpec
    model: WorldModel
    reward: Callable | None
    ends: Callable | None


@cached_make
def make(config: Config, spec: EnvSpec) -> WorldModel:
    """Bind the functions of this module to a config and an environment."""
    _validate(config)
    model = config.model.make(spec)
    known = [rules.find(name) if name else None for name in (config.reward, config.ends)]
    parts = Parts(config, spec, model, *known)
    functions = (initial_latent, observe, latent_at, imagine, features, decode)
    bound: dict[str, Any] = {f.__name__: functools.partial(f, parts) for f in functions}
    # Entries are the ensemble's own: its windows are observed and trained on as ever.
    return model._replace(predict=predict, endless="" if config.ends else model.endless, **bound)


def _validate(config: Config) -> None:
    if not isinstance(config.model, ensemble.Config):
        raise ValueError(
            "particles go through the members of an ensemble, and this model has none: use "
            "model.model=ensemble, and wrap particles in what else there is to wrap"
        )
    if config.mode == "E" and config.particles != 1:
        raise ValueError(
            f"particles is {config.particles}, and with mode=E all would be the same: use 1"
        )
    if config.mode != "E" and config.particles % config.model.members:
        raise ValueError(
            f"particles is {config.particles}, and has to be a multiple of the "
            f"{config.model.members} members, each of which moves as many"
        )
    if not config.model.learn_reward and config.reward is None:
        raise ValueError("learn_reward=false leaves no reward: name the known one in reward")


def seen(parts: Parts, inner: markov.Latent) -> Latent:
    """A row that was really seen, in all particles."""
    ones = jnp.ones((parts.config.particles,))
    observation = ones[:, None] * inner.observation
    return Latent(observation, ones, 0.0 * ones, inner.reward, inner.discount)


def initial_latent(parts: Parts) -> Latent:
    """The ensemble's."""
    return seen(parts, parts.model.initial_latent())


def observe(
    parts: Parts,
    state: LearnerState,
    key: Key,
    latent: Latent,
    timestep: Timestep,
    prev_action: PyTree,
) -> Latent:
    """The latent of a real row."""
    return seen(parts, parts.model.observe(state, key, latent, timestep, prev_action))


def latent_at(parts: Parts, entries: markov.Latent, t: Array) -> Latent:
    """The latent of row t."""
    return seen(parts, parts.model.latent_at(entries, t))


def imagine(parts: Parts, state: LearnerState, key: Key, latent: Latent, action: PyTree) -> Latent:
    """One step of all particles."""
    vector = action_vector(parts.spec.action, action)
    after, reward, discount = _moved(parts, state, key, latent.observation, vector)
    shaped = functools.partial(from_flat, parts.spec.observation)

    def told(function):
        one = lambda before, after: function(shaped(before), action, shaped(after))  # noqa: E731
        return jnp.asarray(jax.vmap(one)(latent.observation, after), jnp.float32)

    if parts.reward is not None:
        reward = told(parts.reward)
    if parts.ends is not None:
        discount = 1.0 - told(parts.ends)
    return counted(latent, after, reward, discount)


def _moved(
    parts: Parts, state: LearnerState, key: Key, rows: Array, action: Array
) -> tuple[Array, Array, Array]:
    """(observations [n, D], rewards [n], discounts [n]) of the members for particles [n, D]."""
    config, members = parts.config, parts.config.model
    if config.mode == "E":
        return _expect(members, parts.spec, state, rows, action)
    step = functools.partial(_sample, members, parts.spec, state, named(key, "noise"), action)
    order = jnp.arange(config.particles)
    if config.mode == "TS1":
        order = jax.random.permutation(named(key, "order"), config.particles)
    return in_blocks(step, members.members, order, rows)


def in_blocks(step: Callable, members: int, order: Array, rows: Array) -> PyTree:
    """What `step` makes of particles [n, D] that stand in blocks of equal size.

    Args:
      step: (blocks [E, n / E, D]) -> a pytree of [E, n / E, …].
      members: E.
      order: [n] int32: the i-th place is taken by particle `order[i]`.
      rows: [n, D].

    Returns:
      The pytree with leaves [n, …], in the order of `rows`.
    """
    blocks = rows[order].reshape(members, -1, rows.shape[-1])
    back = jnp.argsort(order)
    return jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:])[back], step(blocks))


def counted(latent: Latent, after: Array, reward: Array, discount: Array) -> Latent:
    """The latent behind `latent`, of what its particles came to.

    Args:
      latent: of the row before.
      after: their observations [n, D].
      reward: [n].
      discount: [n] whether each goes on.
    """
    total = latent.total + reward
    whole, lost = ~jnp.isnan(latent.total), jnp.isnan(total)
    # The whole sum of a particle that is no number any more is -COST, at once.
    worst = jnp.where(whole, -COST - latent.total, 0.0)
    reward = jnp.where(lost, worst, reward)
    going = latent.alive * jnp.where(jnp.isnan(discount), 1.0, discount)
    share = latent.alive.sum()
    left = jnp.where(share > 0, share, 1.0)
    return Latent(
        after,
        going,
        total,
        jnp.sum(jnp.where(latent.alive > 0, latent.alive * reward, 0.0)) / left,
        going.sum() / left,
    )


def predict(state: LearnerState, latent: Latent) -> Prediction:
    """What arrived with this latent."""
    del state
    return Prediction(latent.reward, latent.discount, {})


def features(parts: Parts, state: LearnerState, latent: Latent) -> Array:
    """The ensemble's [F] of the particles' mean."""
    return parts.model.features(state, _middle(latent))


def decode(parts: Parts, state: LearnerState, latent: Latent) -> PyTree:
    """The particles' mean observation, in its own shape."""
    assert parts.model.decode is not None
    return parts.model.decode(state, _middle(latent))


def _middle(latent: Latent) -> markov.Latent:
    mean = latent.observation.mean(axis=0)
    return markov.Latent(mean, latent.reward, latent.discount, {})


# ------------------------------------------------------------------------- through the ensemble


def _sample(
    config: ensemble.Config,
    spec: EnvSpec,
    state: LearnerState,
    key: Key,
    action: Array,
    rows: Array,
) -> tuple[Array, Array, Array]:
    """Each member moves the rows [E, B, D] of its own block, and nobody else's, by a sample."""
    output, shift, scale = _network(config, spec, state, action, rows)
    noise = jnp.exp(0.5 * output.log_variance) * jax.random.normal(key, output.mean.shape)
    reward, change = ensemble.parted(config, shift + scale * (output.mean + noise))
    go_on = jnp.ones(reward.shape) if output.go_on is None else jax.nn.sigmoid(output.go_on)
    return rows + change, reward, go_on


def _expect(
    config: ensemble.Config, spec: EnvSpec, state: LearnerState, rows: Array, action: Array
) -> tuple[Array, Array, Array]:
    """The mean over members of what they expect of rows [B, D]: ([B, D], [B], [B])."""
    every = jnp.broadcast_to(rows, (config.members, *rows.shape))
    output, shift, scale = _network(config, spec, state, action, every)
    reward, change = ensemble.parted(config, shift + scale * output.mean.mean(axis=0))
    go_on = jnp.ones(reward.shape)
    if output.go_on is not None:
        go_on = jax.nn.sigmoid(output.go_on).mean(axis=0)
    return rows + change, reward, go_on


def _network(
    config: ensemble.Config, spec: EnvSpec, state: LearnerState, action: Array, rows: Array
) -> tuple[ensemble.Output, Array, Array]:
    """(output, shift and scale of its targets) of rows [E, B, D] that all take one action [A]."""
    read = jax.vmap(jax.vmap(ensemble.reader(config, spec)))(rows)
    actions = jnp.broadcast_to(action, (*read.shape[:2], action.shape[0]))
    inputs = ensemble.network_input(state.stats, read, actions)
    output = ensemble.network(config, state.params, inputs)
    return output, *ensemble.target_scaling(config, state.stats)
