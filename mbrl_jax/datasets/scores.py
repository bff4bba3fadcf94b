"""Normalised scores of data sets: 0 is a random policy, 100 an expert.

score = 100 · (R - minimum) / (maximum - minimum); Fu et al. 2020, "D4RL: Datasets for Deep
Data-Driven Reinforcement Learning", https://arxiv.org/abs/2004.07219

The references belong to the tasks they were measured on: of D4RL's MuJoCo-v2 tasks they say nothing
of Gymnasium's v4 and v5, whose physics differ. Data made in-house carries its own, as metadata.
"""

from typing import Any, NamedTuple

import numpy as np


class Reference(NamedTuple):
    """Undiscounted returns that a score is measured against."""

    minimum: float  # of a random policy
    maximum: float  # of an expert


REFERENCES = {  # D4RL's, of its MuJoCo-v0 to v2 tasks
    "halfcheetah": Reference(-280.178953, 12135.0),
    "hopper": Reference(-20.272305, 3234.3),
    "walker2d": Reference(1.629008, 4592.3),
}


def normalised_score(returns: Any, reference: Reference | tuple[float, float]) -> np.ndarray:
    """Scores of undiscounted returns, or of their mean.

    Args:
      returns: numbers of any shape.
      reference: (minimum, maximum).

    Raises ValueError where the maximum is not above the minimum.
    """
    return 100.0 * (np.asarray(returns, np.float64) - reference[0]) / _range(reference)


def normalised_deviation(deviation: Any, reference: Reference | tuple[float, float]) -> np.ndarray:
    """Standard deviation of scores, of the standard deviation of returns.

    A deviation is scaled and not shifted; published tables have put it through `normalised_score`.
    """
    return 100.0 * np.asarray(deviation, np.float64) / _range(reference)


def _range(reference) -> float:
    if not reference[1] > reference[0]:
        raise ValueError(f"the maximum {reference[1]} is not above the minimum {reference[0]}")
    return reference[1] - reference[0]
