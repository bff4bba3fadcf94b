"""Learning curves of a lane, from its rows."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

GREEDY = "eval/return"  # of a row, where `eval_every` plays in the environment of training
Rows = Sequence[Mapping[str, Any]]


def training(rows: Rows) -> np.ndarray:
    """[T, 3]: environment steps, mean return of the episodes that ended, how many."""
    points = [
        (row["env_steps"], row["episode/return"], row["episode/count"])
        for row in rows
        if row["episode/return"] is not None and row["episode/count"]
    ]
    return np.array(points, float).reshape(-1, 3)


def greedy(rows: Rows) -> np.ndarray:
    """The same of greedy episodes during training, each row of them counting once."""
    points = [(row["env_steps"], row[GREEDY], 1) for row in rows if row[GREEDY] is not None]
    return np.array(points, float).reshape(-1, 3)
