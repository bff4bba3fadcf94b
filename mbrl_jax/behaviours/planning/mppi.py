"""Model predictive path integral control: sample action sequences, move towards what scores well.

Weights, bounds and the choice of the action are those of TD-MPC2. `control_cost` is the term of the
information-theoretic form (Williams et al. 2017, https://arxiv.org/abs/1707.02342) that TD-MPC2
leaves out.

References: Williams et al. 2015, https://arxiv.org/abs/1509.01149;
Hansen et al. 2024 (TD-MPC2), appendix, https://arxiv.org/abs/2310.16828
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mbrl_jax.behaviours.planning import plans
from mbrl_jax.behaviours.planning.plans import Plan, Planner, Score
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
    # λ: a sequence a pays λ Σ_t μₜᵀ Σ⁻¹ (a - μ)ₜ. There λ is one over the temperature
    control_cost: float = bounded(0.0, low=0)

    def validate(self) -> None:
        """Raise ValueError for numbers that cannot work together."""
        plans.require_elites(self.num_samples, self.num_proposals, self.num_elites)

    def make(self, size: int) -> Planner:
        """The record for actions of `size` numbers."""
        noisy = functools.partial(plans.drawn_action, noise=1.0)
        return plans.from_mean(self, size, plan, plans.first_of_mean, noisy)


def plan(config: Config, key: Key, mean: Array, score: Score, proposals: Array) -> Plan:
    """Refine a normal over sequences of actions in [-1, 1].

      a⁽ⁿ⁾ = clip(μ + σ ε);  wₖ ∝ exp(τ (sₖ - max s)) of the K best;  μ = Σ wₖ aₖ;
      σ² = Σ wₖ (aₖ - μ)², within its bounds

    Args:
      config: sizes.
      key: consumed.
      mean: [H, A] to begin with: zeros, or from the plan before.
      score: of sequences [N, H, A].
      proposals: [P, H, A] sequences that compete in every iteration.
    """

    def improve(state, iteration_key):
        noise_key, score_key = jax.random.split(iteration_key)
        shape = (config.num_samples - proposals.shape[0], *mean.shape)
        sampled = state.mean + state.std * jax.random.normal(noise_key, shape)
        actions = jnp.concatenate([proposals, jnp.clip(sampled, -1.0, 1.0)])
        scores = score(score_key, actions)
        if config.control_cost:
            away = state.mean * (actions - state.mean) / jnp.square(state.std)
            scores -= config.control_cost * away.sum(axis=(1, 2))
        best, elites = plans.best(scores, actions, config.num_elites)
        weights = jax.nn.softmax(config.temperature * best)
        new_mean, variance = plans.moments(weights, elites)
        std = jnp.clip(jnp.sqrt(variance), config.min_std, config.max_std)
        return Plan(new_mean, std, elites, weights), None

    nothing = (
        jnp.zeros((config.num_elites, *mean.shape)),
        jnp.zeros((config.num_elites,)),
    )
    start = Plan(mean, jnp.full_like(mean, config.max_std), *nothing)
    return jax.lax.scan(improve, start, jax.random.split(key, config.iterations))[0]
