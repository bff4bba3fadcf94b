"""Phases of a run, and the pace at which an agent's updates run in them."""

import dataclasses
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.types import bounded


@dataclasses.dataclass(frozen=True)
class Due:
    """An update of the agent that runs where iteration % every == 0, `times` in a row.

    "all" trains everything; "model" and "behaviour" one part, the other staying as it is bit for
    bit; parts may have further ones by their own names.
    """

    name: str = "all"
    every: int = bounded(1, low=1)
    times: int = bounded(1, low=1)


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

    iterations: int = bounded(low=0)
    collect: bool = True
    learn: bool = True
    learn_every: int = bounded(1, low=1)
    random_share: float = bounded(0.0, low=0, high=1)
    random_rows: int = bounded(1, low=1)
    schedule: tuple[Due, ...] = ()

    def validate(self) -> None:
        """Raise ValueError for an update that is named twice."""
        names = [due.name for due in self.schedule]
        if len(set(names)) < len(names):
            raise ValueError("an update stands twice in a schedule: say how often with times")

    @property
    def dues(self) -> tuple[Due, ...]:
        """The updates of this phase, whichever way they are said."""
        return self.schedule or (Due("all", self.learn_every),)


class Exploration(NamedTuple):
    """How actions are mixed with random ones: traced, and the same for all seeds."""

    random_share: Any  # [] float32
    random_rows: Any  # [] uint32


class Cadence(NamedTuple):
    """A phase as scalars: traced, and the same for all seeds."""

    every: tuple[Any, ...]  # [] uint32 of each update of the phase; 0 means never
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
