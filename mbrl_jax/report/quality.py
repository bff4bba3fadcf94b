"""World-model quality of groups, from what quality.json says of their seeds."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.report.groups import Group, Grouping, Pool
from mbrl_jax.report.records import number

ENDS = ("rows", "found", "accuracy", "precision", "recall", "brier")
_COUNTED = ("rows", "found")  # sums over seeds; the others are means


class Quality(NamedTuple):
    """What the seeds of a group have of a task; entries that no seed has are None."""

    group: Group
    pool: Pool
    seeds: int
    steps: tuple[int, ...]  # of the checkpoints that were looked at
    contexts: tuple[int, ...]  # rows that were seen before the predictions
    shares: tuple[float, ...]  # of the actions, that were random
    curves: Mapping[str, np.ndarray]  # [S, H] by name, NaN where there is no number
    ends: Mapping[str, float | None]
    reconstruction: float | None
    calibration: tuple[np.ndarray, np.ndarray, np.ndarray] | None  # predicted, found, rows


CURVES = (*("observation", "observation_copied", "reward", "reward_constant", "reward_accuracy"),)


def qualities(grouping: Grouping) -> list[Quality]:
    """Of every group and task that has any, by task and then by group."""
    found = []
    for task in grouping.tasks:
        for group in grouping.groups:
            pool = group.pool(task)
            if pool is None:
                continue
            if lanes := [s.lane.quality for s in pool.sources if s.lane.quality]:
                found.append(_pooled(group, pool, lanes))
    return found


def _pooled(group: Group, pool: Pool, lanes: Sequence[Mapping[str, Any]]) -> Quality:
    curves = {}
    for name in CURVES:
        rows = [row for lane in lanes if (row := _numbers(lane.get(name))) is not None]
        if rows:
            curves[name] = _stack(rows)
    ends = [lane["ends"] for lane in lanes if isinstance(lane.get("ends"), dict)]
    values = {name: [number(one.get(name)) for one in ends] for name in ENDS}
    return Quality(
        group,
        pool,
        len(lanes),
        _distinct(lanes, "step"),
        _distinct(lanes, "context"),
        _distinct(lanes, "random_share"),
        curves,
        {n: _total(v) if n in _COUNTED else _mean(v) for n, v in values.items()},
        _mean([number(lane.get("reconstruction")) for lane in lanes]),
        _calibration(lanes),
    )


def _distinct(lanes: Sequence[Mapping[str, Any]], name: str) -> tuple:
    return tuple(sorted({lane[name] for lane in lanes if number(lane.get(name)) is not None}))


def _numbers(values: Any) -> np.ndarray | None:
    """A list of numbers and nulls as an array with NaN; None where there is no number in it."""
    if not isinstance(values, list):
        return None
    row = np.array([np.nan if (v := number(x)) is None else v for x in values], float)
    return row if np.isfinite(row).any() else None


def _stack(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Rows of several lengths one below the other, filled up with NaN."""
    longest = max(map(len, rows))
    return np.stack([np.pad(row, (0, longest - len(row)), constant_values=np.nan) for row in rows])


def _total(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _calibration(lanes: Sequence[Mapping[str, Any]]):
    """Bins of all seeds, each row counting once."""
    tables = []
    for lane in lanes:
        known = lane.get("calibration")
        table = known if isinstance(known, dict) else {}
        found = (_numbers(table.get(name)) for name in ("predicted", "found", "rows"))
        columns = [column for column in found if column is not None]
        if len(columns) == 3 and len({len(c) for c in columns}) == 1:
            tables.append(np.stack(columns))
    tables = [one for one in tables if one.shape == tables[0].shape]
    if not tables:
        return None
    predicted, found, rows = np.moveaxis(np.stack(tables), 1, 0)  # [S, bins] each
    weights = np.where(np.isfinite(predicted) & np.isfinite(found) & (rows > 0), rows, 0.0)
    total = weights.sum(0)
    used = total > 0
    if not used.any():
        return None
    means = [(np.nan_to_num(x) * weights).sum(0)[used] / total[used] for x in (predicted, found)]
    return means[0], means[1], total[used]
