"""Model predictive path integral control: sample action sequences, move towards what scores well.

A planner for any model and any score: `plan` asks for the scores of sequences and nothing else.
Weights, bounds and the choice of the action are those of TD-MPC2.

References: Williams et al. 2015, https://arxiv.org/abs/1509.01149;
Hansen et al. 2024 (TD-MPC2), appendix, https://arxiv.org/abs/2310.16828
"""

import dataclasses
from typing import NamedTuple, Protocol

import jax
import jax.numpy as jnp

from mbrl_jax.keys import named
from mbrl_jax.types import Array, Key, bounded, number


@dataclasses.dataclass(frozen=True)
class Config:
    """Published numbers by default."""

    horizon: int = bounded(3, low=1)  # H, actions of a plan
    iterations: int = bounded(6, low=1)
    # sequences scored in each iteration, proposals among them
    num_samples: int = bounded(512, low=1)
    # sequences that a policy proposes, the same in all iterations
    num_proposals: int = bounded(24, low=0)
    num_elites: int = bounded(64, low=1)
    temperature: float = number(0.5, "multiplies scores: the larger, the fewer elites count", low=0)
    min_std: float = number(0.05, above=0)
    max_std: float = number(2.0, "also where every plan begins", above=0)

    def validate(self) -> None:
        """Raise ValueError for numbers that cannot work together."""
        if not self.num_proposals < self.num_samples >= self.num_elites:
            raise ValueError(
                f"num_samples={self.num_samples} must exceed num_proposals={self.num_proposals} "
                f"and reach num_elites={self.num_elites}"
            )


class Score(Protocol):
    """How good action sequences are."""

    def __call__(self, key: Key, actions: Array) -> Array:
        """Scores [N] of sequences [N, H, A]: more is better; NaN counts as worst."""


class Plan(NamedTuple):
    """Where planning ended."""

    mean: Array  # [H, A] of the elites, weighted
    std: Array  # [H, A]
    elites: Array  # [K, H, A] best first
    weights: Array  # [K] they sum to 1


def plan(config: Config, score: Score, key: Key, mean: Array, proposals: Array) -> Plan:
    """Refine a normal over sequences of actions in [-1, 1].

      a⁽ⁿ⁾ = clip(μ + σ ε);  wₖ ∝ exp(τ (sₖ - max s)) of the K best;  μ = Σ wₖ aₖ;
      σ² = Σ wₖ (aₖ - μ)², within its bounds

    Args:
      config: sizes.
      score: of sequences [N, H, A].
      key: consumed.
      mean: [H, A] to begin with: zeros, or `shifted` from the plan before.
      proposals: [P, H, A] sequences that compete in every iteration.
    """

    def improve(state, iteration_key):
        noise_key, score_key = jax.random.split(iteration_key)
        shape = (config.num_samples - proposals.shape[0], *mean.shape)
        sampled = state.mean + state.std * jax.random.normal(noise_key, shape)
        actions = jnp.concatenate([proposals, jnp.clip(sampled, -1.0, 1.0)])
        scores = score(score_key, actions)
        worst = jnp.finfo(scores.dtype).min
        best, index = jax.lax.top_k(jnp.nan_to_num(scores, nan=worst), config.num_elites)
        weights, elites = jax.nn.softmax(config.temperature * best), actions[index]
        new_mean = jnp.einsum("k,kha->ha", weights, elites)
        variance = jnp.einsum("k,kha->ha", weights, jnp.square(elites - new_mean))
        std = jnp.clip(jnp.sqrt(variance), config.min_std, config.max_std)
        return Plan(new_mean, std, elites, weights), None

    nothing = jnp.zeros((config.num_elites, *mean.shape)), jnp.zeros((config.num_elites,))
    start = Plan(mean, jnp.full_like(mean, config.max_std), *nothing)
    return jax.lax.scan(improve, start, jax.random.split(key, config.iterations))[0]


def shifted(mean: Array) -> Array:
    """Where the plan [H, A] of the next row begins: one action later, zeros behind."""
    return jnp.concatenate([mean[1:], jnp.zeros_like(mean[:1])])


def drawn_action(key: Key, found: Plan, noise: float) -> Array:
    """The first action [A] of an elite drawn by its weight, with `noise` deviations added."""
    elite = jax.random.categorical(named(key, "elite"), jnp.log(found.weights))
    first = found.elites[elite, 0]
    extra = noise * found.std[0] * jax.random.normal(named(key, "noise"), first.shape)
    return jnp.clip(first + extra, -1.0, 1.0)
