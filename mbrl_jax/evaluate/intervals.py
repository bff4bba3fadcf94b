"""Confidence intervals of few runs, whose coverage holds at three of them.

A percentile bootstrap of R runs is too narrow: where it says 95 % it covers 75 % at three runs and
91 % at ten (`python -m experiments.studies.coverage` has the table). These are studentised: the
spread is estimated within each task, with R - 1, and the quantile is that of Student's t for as
many degrees of freedom as the estimate of the variance has (Welch 1947, Satterthwaite 1946).

Scores are arrays [R, K]: R runs (seeds) of each of K tasks. They are taken as nearly normal; scores
at their upper limit in most runs are not.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Interval(NamedTuple):
    """An estimate and the bounds of its confidence interval (numbers, or arrays of one shape)."""

    estimate: np.ndarray
    low: np.ndarray
    high: np.ndarray


def quantile_t(degrees: np.ndarray | float, level: float) -> np.ndarray:
    """Half-width of a two-sided interval in standard errors."""
    from scipy.special import stdtrit

    return stdtrit(degrees, 0.5 + 0.5 * level)


def of_mean(level: float, *tables: np.ndarray) -> Interval:
    """Mean over runs and tasks of a table, less that of a second one where there are two."""
    signs = (1.0, -1.0)[: len(tables)]
    estimate = sum(sign * table.mean() for sign, table in zip(signs, tables, strict=True))
    parts = [table.var(0, ddof=1) / (len(table) * table.shape[1] ** 2) for table in tables]
    degrees = [np.full(table.shape[1], len(table) - 1.0) for table in tables]
    half = _half_width(np.concatenate(parts), np.concatenate(degrees), level)
    return Interval(np.asarray(estimate), estimate - half, estimate + half)


def of_each_mean(level: float, table: np.ndarray) -> Interval:
    """Mean over runs of each column: [K]."""
    estimate, runs = table.mean(0), len(table)
    half = quantile_t(runs - 1.0, level) * np.sqrt(table.var(0, ddof=1) / runs)
    return Interval(estimate, estimate - half, estimate + half)


def of_trimmed_mean(level: float, table: np.ndarray, cut: int) -> Interval:
    """Mean of all scores but the `cut` lowest and highest of the R · K.

    Its variance is that of the winsorised scores, within tasks (Yuen 1974, for one task).
    """
    ordered = np.sort(table, axis=None)
    kept = table.size - 2 * cut
    estimate = ordered[cut : table.size - cut].mean()
    winsorised = np.clip(table, ordered[cut], ordered[table.size - cut - 1])
    runs, tasks = table.shape
    # With one task (R - 1) s² / (h (h - 1)); h scores are kept, and a task's mean takes one degree.
    free = max(kept - tasks, 1)
    parts = winsorised.var(0, ddof=1) * (runs - 1) / (kept * free)
    half = _half_width(parts, np.full(tasks, free / tasks), level)
    return Interval(estimate, estimate - half, estimate + half)


def _half_width(parts: np.ndarray, degrees: np.ndarray, level: float) -> float:
    """Of a sum of independent parts with these variances, each estimated from so many degrees."""
    total = parts.sum()
    if not total > 0:
        return 0.0
    return float(quantile_t(total**2 / (parts**2 / degrees).sum(), level) * np.sqrt(total))


def of_probability(level: float, estimate: float, ours: int, theirs: int, tasks: int) -> Interval:
    """Probability that a run of one side is above one of the other, from all pairs of each task.

    The score interval of Newcombe (2006, method 5): all θ with (estimate - θ)² ≤ z² V(θ), where V
    is Hanley and McNeil's variance at θ. It does not shrink to a point where all pairs agree.

    Args:
      level: of confidence.
      estimate: mean over the tasks of the share of pairs.
      ours: runs of one side.
      theirs: runs of the other.
      tasks: K; each has pairs of its own.
    """
    z, theta = quantile_t(np.inf, level), np.linspace(0.0, 1.0, 2_001)
    between = (ours + theirs) / 2 - 1
    spread = 1 + between * ((1 - theta) / (2 - theta) + theta / (1 + theta))
    variance = theta * (1 - theta) * spread / (ours * theirs * tasks)
    inside = theta[(estimate - theta) ** 2 <= z**2 * variance + 1e-12]
    return Interval(np.asarray(estimate), inside.min(), inside.max())


def of_bootstrap(
    level: float,
    statistic: Callable[..., np.ndarray],
    tables: list[np.ndarray],
    drawn: np.ndarray,
    *,
    widened: bool,
) -> Interval:
    """From repetitions [N, …] of a stratified bootstrap: their percentiles.

    `widened`: their distances from the estimate are multiplied by t/z · √(R / (R - 1)), because
    resampled runs scatter less than runs and their spread is an estimate.
    """
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(drawn, (tail, 100.0 - tail), axis=0)
    estimate = statistic(*tables)
    if widened:
        runs = min(len(table) for table in tables)
        degrees = sum((len(table) - 1) * table.shape[1] for table in tables)
        factor = quantile_t(degrees, level) / quantile_t(np.inf, level)
        factor = factor * np.sqrt(runs / (runs - 1))
        low, high = (estimate + factor * (bound - estimate) for bound in (low, high))
    return Interval(estimate, low, high)
