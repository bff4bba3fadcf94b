"""What can be said of few runs: aggregates over runs and tasks with bootstrap intervals.

After Agarwal et al., "Deep Reinforcement Learning at the Edge of the Statistical Precipice"
(arXiv:2108.13264). Scores are arrays [R, K]: R runs (seeds) of each of K tasks, normalised where
tasks differ in scale. Intervals are studentised (`intervals`); `form="percentile"` gives those of
rliable, for comparison with papers that use them: percentiles of a stratified bootstrap, in which
the runs of every task are drawn anew, with replacement, and no task is left out.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from mbrl_jax.evaluate import intervals
from mbrl_jax.evaluate.intervals import Interval, quantile_t

__all__ = ["AGGREGATES", "Interval", "difference", "interval", "iqm", "mean", "mean_of_each"]
__all__ += ["median", "optimality_gap", "performance_profile", "prediction_interval"]
__all__ += ["probability_of_improvement"]

REPETITIONS = 2_000
LEVEL = 0.95
_AT_ONCE = 2**22  # numbers of resampled scores in memory


# -------------------------------------------------------------- aggregates: scores [..., R, K]


def mean(scores: np.ndarray) -> np.ndarray:
    """Mean over runs and tasks."""
    return np.mean(scores, (-2, -1))


def mean_of_each(scores: np.ndarray) -> np.ndarray:
    """Mean over runs of each column: [..., K]."""
    return np.mean(scores, -2)


def difference(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """By how much the mean over runs and tasks of one side is above that of the other."""
    return mean(ours) - mean(theirs)


def median(scores: np.ndarray) -> np.ndarray:
    """Median over tasks of the mean over runs."""
    return np.median(np.mean(scores, -2), -1)


def iqm(scores: np.ndarray) -> np.ndarray:
    """Interquartile mean: that of the middle half of all R·K scores; a quarter is cut at each end.

    Where a quarter is no whole number, fewer are cut.
    """
    flat = np.sort(np.reshape(scores, (*np.shape(scores)[:-2], -1)), -1)
    cut = flat.shape[-1] // 4
    return flat[..., cut : flat.shape[-1] - cut].mean(-1)


def optimality_gap(scores: np.ndarray, target: float = 1.0) -> np.ndarray:
    """By how much runs fall short of `target`, where those above it count as having reached it."""
    return target - np.minimum(scores, target).mean((-2, -1))


AGGREGATES: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "IQM": iqm,
    "mean": mean,
    "median": median,
    "optimality gap": optimality_gap,
}


def probability_of_improvement(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """How likely a run of ours is above one of theirs on the same task, in the mean over tasks.

    Args:
      ours: [..., R, K].
      theirs: [..., R', K]; a tie counts as one half (the Mann-Whitney statistic).
    """
    above = ours[..., :, None, :] > theirs[..., None, :, :]
    equal = ours[..., :, None, :] == theirs[..., None, :, :]
    return (above + 0.5 * equal).mean((-3, -2, -1))


def performance_profile(scores: np.ndarray, thresholds: Sequence[float] | np.ndarray) -> np.ndarray:
    """Share of runs above each of T thresholds, in the mean over tasks: [..., T]."""
    above = np.asarray(scores)[..., None, :, :] > np.asarray(thresholds, float)[:, None, None]
    return above.mean((-2, -1))


# ------------------------------------------------------------------------------------- intervals


def interval(
    statistic: Callable[..., np.ndarray],
    *scores: np.ndarray,
    form: Literal["studentised", "percentile"] = "studentised",
    repetitions: int = REPETITIONS,
    level: float = LEVEL,
    seed: int = 0,
) -> Interval:
    """A statistic with its confidence interval.

    Args:
      statistic: (scores [..., R, K], …) -> [..., *shape], such as those above.
      scores: [R, K] of each argument; runs of several arguments are independent.
      form: "studentised" by a formula where `intervals` has one for the statistic, elsewhere by a
        bootstrap that is widened for few runs; or "percentile", the plain bootstrap.
      repetitions: of a bootstrap.
      level: share of such intervals that hold the truth.
      seed: of the draws.

    Raises ValueError for other shapes, no scores, or scores that are not finite; studentised also
    for a table of one run.
    """
    tables = [_checked(table) for table in scores]
    if form == "studentised":
        if min(len(table) for table in tables) < 2:
            raise ValueError("an interval needs two runs of each task at least")
        if statistic in _FORMULAS:
            return _FORMULAS[statistic](level, *tables)
    rng = np.random.default_rng(seed)
    largest = max(table.size for table in tables)
    each = max(1, _AT_ONCE // largest)
    drawn = []
    for start in range(0, repetitions, each):
        count = min(each, repetitions - start)
        drawn.append(statistic(*(_resample(rng, table, count) for table in tables)))
    found = np.concatenate(drawn)
    widened = form == "studentised"
    return intervals.of_bootstrap(level, statistic, tables, found, widened=widened)


def _of_median(level: float, table: np.ndarray) -> Interval:
    """Of one task it is the mean; over several it has no formula."""
    if table.shape[1] == 1:
        return intervals.of_mean(level, table)
    return interval(_median_over_tasks, table, level=level)


def _median_over_tasks(scores: np.ndarray) -> np.ndarray:
    return median(scores)


def _of_gap(level: float, table: np.ndarray) -> Interval:
    reached = intervals.of_mean(level, np.minimum(table, 1.0))
    return Interval(1.0 - reached.estimate, 1.0 - reached.high, 1.0 - reached.low)


def _of_iqm(level: float, table: np.ndarray) -> Interval:
    return intervals.of_trimmed_mean(level, table, table.size // 4)


def _of_improvement(level: float, ours: np.ndarray, theirs: np.ndarray) -> Interval:
    estimate = float(probability_of_improvement(ours, theirs))
    sizes = len(ours), len(theirs), ours.shape[1]
    return intervals.of_probability(level, estimate, *sizes)


_FORMULAS: dict[Callable, Callable[..., Interval]] = {
    mean: intervals.of_mean,
    mean_of_each: intervals.of_each_mean,
    difference: intervals.of_mean,
    median: _of_median,
    iqm: _of_iqm,
    optimality_gap: _of_gap,
    probability_of_improvement: _of_improvement,
}


def _checked(table: np.ndarray) -> np.ndarray:
    table = np.asarray(table, float)
    if table.ndim != 2 or not table.size:
        raise ValueError(f"scores have shape {table.shape} and not [runs, tasks]")
    if not np.isfinite(table).all():
        raise ValueError("scores hold a number that is not finite")
    return table


def _resample(rng: np.random.Generator, table: np.ndarray, count: int) -> np.ndarray:
    """[count, R, K]: the runs of each task drawn with replacement."""
    rows = rng.integers(len(table), size=(count, *table.shape))
    return np.take_along_axis(table[None], rows, axis=1)


def prediction_interval(
    recorded: Sequence[float], number: int, level: float = LEVEL, resolution: float = 0.0
) -> Interval:
    """Where the mean of `number` new runs should lie, if they are like n recorded ones.

    m ± t s √(1/n + 1/number): the recorded mean is uncertain itself, and so is that of the new
    runs, which a confidence interval of the recorded mean would leave out. The spread s is of the
    recorded runs alone, so that new runs which scatter do not widen the interval that judges them.
    Assumes runs that scatter normally; with few runs, or scores at their upper limit, take it as a
    rule and not as an exact probability.

    Args:
      recorded: one score of each run.
      number: of new runs.
      level: share of such means that should lie inside.
      resolution: the half-width is at least this. Where all recorded scores are equal (each at its
        maximum, say) the formula has none, though a single episode can end otherwise.

    Raises ValueError for fewer than two recorded scores, ones that are not finite, or no new run.
    """
    scores = np.asarray(recorded, float)
    if scores.ndim != 1 or len(scores) < 2:
        raise ValueError(f"an interval needs two recorded scores at least, and there are {scores}")
    if not np.isfinite(scores).all() or number < 1:
        raise ValueError("recorded scores must be finite, and new runs at least one")
    half = (
        quantile_t(len(scores) - 1, level)
        * scores.std(ddof=1)
        * np.sqrt(1.0 / len(scores) + 1.0 / number)
    )
    half, mean = max(half, resolution), scores.mean()
    return Interval(mean, mean - half, mean + half)
