"""iCEM: the cross-entropy method with coloured noise, fewer samples, and elites that are kept.

Noise that is correlated in time moves further than white noise of the same size, and what scored
well is kept from iteration to iteration and from row to row.

Reference: Pinneri et al. 2020, https://arxiv.org/abs/2008.06389; facts beyond the paper are those
of its code (icem/controllers/icem.py).
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.behaviours.planning import plans
from mbrl_jax.behaviours.planning.plans import Plan, Planner, Score
from mbrl_jax.keys import named
from mbrl_jax.types import Array, Key, bounded, number


@dataclasses.dataclass(frozen=True)
class Config:
    """Published numbers by default."""

    horizon: int = bounded(30, low=2)  # H, actions of a plan
    iterations: int = bounded(3, low=1)
    num_samples: int = bounded(40, low=1)  # of the first iteration
    num_proposals: int = bounded(0, low=0)  # of a policy, in the first iteration
    num_elites: int = bounded(10, low=1)
    decay: float = bounded(1.25, low=1)  # by which each iteration has fewer samples
    colour: float = bounded(2.0, low=0)  # β of the noise; 0 is white
    start_std: float = number(0.5, "as a share of half of the range", above=0)
    momentum: float = number(0.1, "share of the old mean and deviation that stays", low=0, high=1)
    kept: float = bounded(0.3, low=0, high=1)  # share of the elites that is kept

    def validate(self) -> None:
        """Raise ValueError for numbers that cannot work together."""
        plans.require_elites(self.num_samples, self.num_proposals, self.num_elites)

    @property
    def num_kept(self) -> int:
        """Elites that the next iteration, and the next row, begin with."""
        return int(self.kept * self.num_elites)

    def make(self, size: int) -> Planner:
        """The record for actions of `size` numbers."""
        self.validate()
        return Planner(
            self.horizon,
            self.num_proposals,
            initial=functools.partial(initial, self, size),
            plan=functools.partial(plan, self),
            shifted=functools.partial(shifted, self),
            action=plans.first_of_best,
            explore=plans.first_of_best,
        )


class Memory(NamedTuple):
    """What a plan begins with."""

    mean: Array  # [H, A]
    elites: Array  # [E, H, A] kept from the row before
    there: Array  # [] bool: whether there was one


def initial(config: Config, size: int) -> Memory:
    """Zeros, and no elites."""
    mean = jnp.zeros((config.horizon, size))
    return Memory(mean, jnp.zeros((config.num_kept, *mean.shape)), jnp.zeros((), bool))


def sizes(config: Config) -> tuple[int, ...]:
    """Samples of each iteration: fewer from one to the next, but twice the elites at least."""
    found = [config.num_samples]
    for _ in range(config.iterations - 1):
        found.append(max(2 * config.num_elites, int(found[-1] / config.decay)))
    return tuple(found)


def plan(config: Config, key: Key, memory: Memory, score: Score, proposals: Array) -> Plan:
    """Refine a normal over sequences in [-1, 1] whose noise is coloured in time.

    Args:
      config: sizes.
      key: consumed.
      memory: of the plan before.
      score: of sequences [N, H, A].
      proposals: [P, H, A] sequences that compete in the first iteration.
    """
    mean, std = memory.mean, jnp.full_like(memory.mean, config.start_std)
    weights = jnp.full((config.num_elites,), 1.0 / config.num_elites)
    # Elites of the iteration before come with the scores that they had.
    old_scores, old = jnp.zeros((0,)), jnp.zeros((0, *mean.shape))
    elites = jnp.broadcast_to(mean, (config.num_elites, *mean.shape))
    every = sizes(config)
    for index, num in enumerate(every):
        noise_key, score_key = jax.random.split(jax.random.fold_in(key, index))
        extra = proposals if index == 0 else proposals[:0]
        noise = coloured(noise_key, config.colour, (num - len(extra), *mean.shape))
        actions = jnp.concatenate([extra, jnp.clip(mean + std * noise, -1.0, 1.0)])
        if index == len(every) - 1:
            actions = actions.at[0].set(mean)
        if index == 0:
            actions = jnp.concatenate([actions, memory.elites])
        scores = plans.clean(score(score_key, actions))
        if index == 0:
            worst = jnp.finfo(scores.dtype).min
            known = jnp.arange(len(scores)) < num
            scores = jnp.where(known | memory.there, scores, worst)
        scores, actions = (
            jnp.concatenate([scores, old_scores]),
            jnp.concatenate([actions, old]),
        )
        best, elites = plans.best(scores, actions, config.num_elites)
        old_scores, old = best[: config.num_kept], elites[: config.num_kept]
        new_mean, variance = plans.moments(weights, elites)
        mean = config.momentum * mean + (1.0 - config.momentum) * new_mean
        std = config.momentum * std + (1.0 - config.momentum) * jnp.sqrt(variance)
    return Plan(mean, std, elites, weights)


def shifted(config: Config, key: Key, found: Plan) -> Memory:
    """One action later: the mean repeats its last action, elites end in a new one."""
    elites = found.elites[: config.num_kept]
    noise = jax.random.normal(named(key, "last"), elites[:, -1].shape)
    last = jnp.clip(found.mean[-1] + config.start_std * noise, -1.0, 1.0)
    mean = jnp.concatenate([found.mean[1:], found.mean[-1:]])
    moved = jnp.concatenate([elites[:, 1:], last[:, None]], axis=1)
    return Memory(mean, moved, jnp.ones((), bool))


def coloured(key: Key, colour: float, shape: tuple[int, ...]) -> Array:
    """Noise [N, H, A] whose power falls with the frequency f as f^-β; see `from_spectrum`."""
    num, length, size = shape
    real, imaginary = jax.random.normal(key, (2, num, size, length // 2 + 1))
    return jnp.swapaxes(from_spectrum(real, imaginary, colour, length), 1, 2)


def from_spectrum(real: Array, imaginary: Array, colour: float, length: int) -> Array:
    """Noise [..., H] of standard normal draws [..., H/2 + 1] for each frequency.

    Its variance is 1 but for the constant part, which is as strong as the lowest frequency: more
    than 1 in all, as published (Timmer & König 1995 have the spectrum).
    """
    frequency = np.maximum(np.fft.rfftfreq(length), 1.0 / length)
    scale = frequency ** (-colour / 2.0)
    counted = scale[1:].copy()
    if length % 2 == 0:
        counted[-1] *= 0.5
    deviation = 2.0 / length * np.sqrt(np.square(counted).sum())
    real_only = np.zeros(len(scale), bool)
    real_only[0] = True
    real_only[-1] |= length % 2 == 0
    spectrum = (real + 1j * jnp.where(real_only, 0.0, imaginary)) * scale
    return jnp.fft.irfft(spectrum, n=length) / deviation
