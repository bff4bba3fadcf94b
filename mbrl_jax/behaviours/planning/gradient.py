"""Planning by gradient ascent: sequences climb the score through the model, and the best wins.

It needs a model whose rewards have a gradient by the actions, and so real-valued actions.

Reference: Henaff, Whitney & LeCun 2017, https://arxiv.org/abs/1705.07177
"""

import dataclasses

import jax
import jax.numpy as jnp
import optax

from mbrl_jax.behaviours.planning import plans
from mbrl_jax.behaviours.planning.plans import Plan, Planner, Score
from mbrl_jax.types import Array, Key, bounded, number


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of our own; the paper's differ by task."""

    horizon: int = bounded(25, low=1)  # H, actions of a plan
    iterations: int = bounded(20, low=1)
    num_samples: int = bounded(16, low=1)  # sequences that climb, proposals among them
    num_proposals: int = bounded(0, low=0)
    learning_rate: float = number(0.1, "of Adam", low=0)
    start_std: float = number(0.5, "of the sequences around the plan before", low=0)

    def validate(self) -> None:
        """Raise ValueError for numbers that cannot work together."""
        plans.require_elites(self.num_samples, self.num_proposals, 1)

    def make(self, size: int) -> Planner:
        """The record for actions of `size` numbers."""
        best = plans.first_of_best
        return plans.from_mean(self, size, plan, best, best, differentiates=True)


def plan(config: Config, key: Key, mean: Array, score: Score, proposals: Array) -> Plan:
    """Let sequences in [-1, 1] climb the score; a gradient that is not finite moves nothing.

    Args:
      config: sizes.
      key: consumed.
      mean: [H, A] from which all but the proposals start; one starts there exactly.
      score: of sequences [N, H, A], differentiable. It is asked with the same key in all
        iterations, so that they climb one function.
      proposals: [P, H, A] sequences that climb too.
    """
    noise_key, score_key = jax.random.split(key)
    shape = (config.num_samples - proposals.shape[0], *mean.shape)
    noise = config.start_std * jax.random.normal(noise_key, shape).at[0].set(0.0)
    actions = jnp.concatenate([proposals, jnp.clip(mean + noise, -1.0, 1.0)])
    adam = optax.adam(config.learning_rate)

    def climb(state, _):
        actions, opt = state
        gradient = jax.grad(lambda a: score(score_key, a).sum())(actions)
        gradient = jnp.where(jnp.isfinite(gradient), gradient, 0.0)
        change, opt = adam.update(-gradient, opt)
        return (jnp.clip(actions + change, -1.0, 1.0), opt), None

    start = actions, adam.init(actions)
    (climbed, _), _ = jax.lax.scan(climb, start, length=config.iterations)
    every = jnp.concatenate([actions, climbed])  # who climbed into a worse place has not lost
    _, elites = plans.best(score(score_key, every), every, 1)
    return Plan(elites[0], jnp.zeros_like(elites[0]), elites, jnp.ones((1,)))
