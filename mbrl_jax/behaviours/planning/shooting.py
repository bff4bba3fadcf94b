"""Random shooting: the best of uniform action sequences, with nothing learned from the others."""

import dataclasses
import functools

import jax
import jax.numpy as jnp

from mbrl_jax.behaviours.planning import plans
from mbrl_jax.behaviours.planning.plans import Plan, Planner, Score
from mbrl_jax.types import Array, Key, bounded


@dataclasses.dataclass(frozen=True)
class Config:
    """Numbers of PETS' cart-pole by default."""

    horizon: int = bounded(25, low=1)  # H, actions of a plan
    num_samples: int = bounded(2000, low=1)  # proposals among them
    num_proposals: int = bounded(0, low=0)

    def validate(self) -> None:
        """Raise ValueError for numbers that cannot work together."""
        plans.require_elites(self.num_samples, self.num_proposals, 1)

    def make(self, size: int) -> Planner:
        """The record for actions of `size` numbers."""
        self.validate()
        return Planner(
            self.horizon,
            self.num_proposals,
            initial=tuple,
            plan=functools.partial(plan, self, size),
            shifted=lambda key, found: (),
            action=plans.first_of_best,
            explore=plans.first_of_best,
        )


def plan(
    config: Config, size: int, key: Key, memory: tuple, score: Score, proposals: Array
) -> Plan:
    """The best of N - P uniform sequences [H, A] and of P proposals."""
    del memory
    sample_key, score_key = jax.random.split(key)
    shape = (config.num_samples - proposals.shape[0], config.horizon, size)
    uniform = jax.random.uniform(sample_key, shape, minval=-1.0, maxval=1.0)
    actions = jnp.concatenate([proposals, uniform])
    _, elites = plans.best(score(score_key, actions), actions, 1)
    return Plan(elites[0], jnp.zeros_like(elites[0]), elites, jnp.ones((1,)))
