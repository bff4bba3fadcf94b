"""Phases of a run, and the pace at which an agent's updates run in them."""

import dataclasses
from typing import NamedTuple

import numpy as np

from mbrl_jax.types import Array


@dataclasses.dataclass(frozen=True)
class Due:
    """An update of the agent that runs where iteration % every == 0, `times` in a row.

    "all" trains everything; "model" and "behaviour" one part, the other staying as it is bit for
    bit; parts may have further ones by their own names.
    """

    name: str = "all"
    every: int = 1
    times: int = 1

    def validate(self) -> None:
        """Raise ValueError for numbers that mean nothing."""
        if self.every < 1 or self.times < 1:
            raise ValueError("every and times must be positive")


@dataclasses.dataclass(frozen=True)
class Phase:
    """A stretch of iterations; an experiment is a sequence of them.

    In each iteration every environment adds a row (`collect`) and, at every `learn_every`-th, the
    agent updates (`learn`). Each action is a uniform one with probability `random_share`: 1 for a
    stretch that explores, whether the agent learns meanwhile or not. A uniform action is held for
    `random_rows` rows: chance alone hardly leads far from the policy's path (temporally extended
    exploration: Dabney et al. 2020, arXiv 2006.01782).

    A `schedule` replaces `learn_every`: several updates, each at a pace of its own, in this order.
    With `collect=False` the agent learns from what is stored already, or from a data set.
    """

    iterations: int
    collect: bool = True
    learn: bool = True
    learn_every: int = 1
    random_share: float = 0.0
    random_rows: int = 1
    schedule: tuple[Due, ...] = ()

    def validate(self) -> None:
        """Raise ValueError for numbers that mean nothing."""
        if self.learn_every < 1 or self.random_rows < 1:
            raise ValueError("learn_every and random_rows must be positive")
        if not 0 <= self.random_share <= 1:
            raise ValueError(f"random_share={self.random_share} must lie between 0 and 1")
        names = [due.name for due in self.schedule]
        if len(set(names)) < len(names):
            raise ValueError("an update stands twice in a schedule: say how often with times")

    @property
    def dues(self) -> tuple[Due, ...]:
        """The updates of this phase, whichever way they are said."""
        return self.schedule or (Due("all", self.learn_every),)


class Exploration(NamedTuple):
    """How actions are mixed with random ones: traced, and the same for all seeds."""

    random_share: Array  # [] float32
    random_rows: Array  # [] uint32


class Cadence(NamedTuple):
    """A phase as scalars: traced, and the same for all seeds."""

    every: tuple[Array, ...]  # [] uint32 of each update of the phase; 0 means never
    exploration: Exploration


class Static(NamedTuple):
    """What of a phase decides the program; phases that share it share a program."""

    collect: bool
    updates: tuple[tuple[str, int], ...]  # (name, times)


def cadence(phase: Phase) -> Cadence:
    """The traced part of a phase."""
    every = tuple(np.uint32(due.every if phase.learn else 0) for due in phase.dues)
    return Cadence(every, exploration(phase))


def exploration(phase: Phase) -> Exploration:
    """The traced part of a phase that acting reads."""
    return Exploration(np.float32(phase.random_share), np.uint32(phase.random_rows))


def static(phase: Phase) -> Static:
    """The part of a phase that is not traced."""
    return Static(phase.collect, tuple((due.name, due.times) for due in phase.dues))
