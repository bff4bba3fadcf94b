"""The cross-entropy method as PETS plans with it: a normal moves to what its best samples share.

Reference: Chua et al. 2018 (PETS), https://arxiv.org/abs/1805.12114; facts beyond the paper are
those of its code (misc/optimizers/cem.py).
"""

import dataclasses

import jax
import jax.numpy as jnp

from mbrl_jax import optim
from mbrl_jax.behaviours.planning import plans
from mbrl_jax.behaviours.planning.plans import Plan, Planner, Score
from mbrl_jax.types import Array, Key, bounded, number

LIMIT = 2.0  # standard deviations behind which the normal is cut off
START_VARIANCE = 0.25  # (high - low)² / 16


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of the published cart-pole by default."""

    horizon: int = bounded(25, low=1)  # H, actions of a plan
    iterations: int = bounded(5, low=1)
    # sequences scored in each iteration, proposals among them
    num_samples: int = bounded(400, low=1)
    num_proposals: int = bounded(0, low=0)
    num_elites: int = bounded(40, low=1)
    momentum: float = number(0.1, "share of the old mean and variance that stays", low=0, high=1)
    min_variance: float = number(
        1e-3, "the search stops where no variance is as large", low=0, high=1
    )

    def validate(self) -> None:
        """Raise ValueError for numbers that cannot work together."""
        plans.require_elites(self.num_samples, self.num_proposals, self.num_elites)

    def make(self, size: int) -> Planner:
        """The record for actions of `size` numbers."""
        return plans.from_mean(self, size, plan, plans.first_of_mean, plans.first_of_mean)


def plan(config: Config, key: Key, mean: Array, score: Score, proposals: Array) -> Plan:
    """Refine a normal over sequences in [-1, 1].

      a⁽ⁿ⁾ ~ N(μ, σ'²) within two deviations;  μ ← α μ + (1 - α) mean of the K best;  σ² likewise

    Args:
      config: sizes.
      key: consumed.
      mean: [H, A] to begin with: zeros, or from the plan before.
      score: of sequences [N, H, A].
      proposals: [P, H, A] sequences that compete in every iteration.
    """
    weights = jnp.full((config.num_elites,), 1.0 / config.num_elites)

    def improve(state, iteration_key):
        noise_key, score_key = jax.random.split(iteration_key)
        shape = (config.num_samples - proposals.shape[0], *mean.shape)
        noise = jax.random.truncated_normal(noise_key, -LIMIT, LIMIT, shape)
        std = jnp.sqrt(inside(state.mean, jnp.square(state.std)))
        actions = jnp.concatenate([proposals, state.mean + std * noise])
        _, elites = plans.best(score(score_key, actions), actions, config.num_elites)
        moved = plans.moments(weights, elites)
        old = state.mean, jnp.square(state.std)
        new_mean, variance = optim.moving_average(old, moved, 1.0 - config.momentum)
        found = Plan(new_mean, jnp.sqrt(variance), elites, weights)
        done = jnp.square(state.std).max() < config.min_variance
        return jax.tree.map(lambda new, kept: jnp.where(done, kept, new), found, state), None

    elites = jnp.broadcast_to(mean, (config.num_elites, *mean.shape))
    start = Plan(mean, jnp.full_like(mean, START_VARIANCE**0.5), elites, weights)
    return jax.lax.scan(improve, start, jax.random.split(key, config.iterations))[0]


def inside(mean: Array, variance: Array) -> Array:
    """The variance with which two deviations stay within [-1, 1]."""
    room = jnp.minimum(jnp.square((mean + 1.0) / 2.0), jnp.square((1.0 - mean) / 2.0))
    return jnp.minimum(variance, room)
