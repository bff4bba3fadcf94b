"""The numbers of a report: scores of groups, aggregates over tasks, human-normalised Atari."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from mbrl_jax.envs import atari
from mbrl_jax.errors import ConfigError
from mbrl_jax.evaluate import scores, statistics
from mbrl_jax.evaluate.comparison import Baseline
from mbrl_jax.evaluate.statistics import Interval
from mbrl_jax.report.groups import Group, Grouping, Pool, Source

TRAINING, GREEDY = "training", "greedy"
_PROFILE_POINTS = 60
_NO_REFERENCES = (
    "scores of different tasks can be put together only when they are normalised, and there are "
    "references (random play, a human) for the 26 games of Atari100k alone."
)


class Estimate(NamedTuple):
    """What seeds of one task say together."""

    values: tuple[float, ...]
    mean: Interval  # of one seed without bounds: they are NaN
    iqm: float

    @property
    def is_single(self) -> bool:
        """One seed: there is no interval."""
        return len(self.values) == 1


class Score(NamedTuple):
    """A row of the score table."""

    group: Group
    pool: Pool
    counted: tuple[Source, ...]  # the seeds that the numbers come from
    is_partial: bool  # no seed made all of its steps: returns are those of the steps so far
    training: Estimate | None
    greedy: Estimate | None
    silent: int  # counted seeds that finished no episode in the last fifth

    @property
    def frozen(self) -> tuple[Source, ...]:
        """Counted seeds that learned no more from some step on."""
        return tuple(source for source in self.counted if source.lane.frozen)


class Aggregate(NamedTuple):
    """A statistic over tasks of one group, with its interval."""

    name: str
    interval: Interval  # bounds are NaN where each task has one seed


class Overall(NamedTuple):
    """What a group did over several tasks, in human-normalised scores."""

    group: Group
    tasks: tuple[str, ...]
    seeds: int  # R of each task
    aggregates: tuple[Aggregate, ...]
    thresholds: np.ndarray  # [P]
    profile: Interval  # [P]


class Pair(NamedTuple):
    """How likely a run of one group is above a run of another, on the same task."""

    ours: Group
    theirs: Group
    tasks: tuple[str, ...]
    kind: str  # of scores: TRAINING or GREEDY
    probability: Interval  # bounds are NaN where one of them has one seed


# ------------------------------------------------------------------------------------ single tasks


def estimate(values: Sequence[float]) -> Estimate | None:
    """Mean with its 95 % confidence interval, IQM; None of no values."""
    if not values:
        return None
    table = np.array(values, float)[:, None]
    return Estimate(tuple(values), _interval(statistics.mean, table), float(statistics.iqm(table)))


def _interval(statistic: Callable[..., np.ndarray], *tables: np.ndarray) -> Interval:
    """`statistics.interval`; without bounds where a table has one run."""
    if min(len(table) for table in tables) > 1:
        return statistics.interval(statistic, *tables)
    found = np.asarray(statistic(*tables))
    none = np.full(found.shape, np.nan)
    return Interval(found, none, none)


def score(group: Group, pool: Pool) -> Score:
    """The row of a group and a task.

    Of the seeds that made all of their steps; where none did, of all as far as they are.
    """
    counted = pool.complete or pool.sources
    return Score(
        group,
        pool,
        counted,
        not pool.complete,
        estimate(_values(counted, TRAINING)),
        estimate(_values(counted, GREEDY)),
        sum(source.lane.training is None for source in counted),
    )


def _values(sources: Sequence[Source], kind: str) -> list[float]:
    lanes = [source.lane for source in sources]
    if kind == GREEDY:
        return [lane.greedy.mean for lane in lanes if lane.greedy is not None]
    return [lane.training for lane in lanes if lane.training is not None]


def score_rows(grouping: Grouping) -> list[Score]:
    """All rows, by task and then by group."""
    return [
        score(group, pool)
        for task in grouping.tasks
        for group in grouping.groups
        if (pool := group.pool(task)) is not None
    ]


def kind_of(rows: Sequence[Score]) -> str:
    """What rows are compared by: greedy scores where all complete ones have them, else training."""
    complete = [row for row in rows if not row.is_partial]
    return GREEDY if complete and all(_has_all_greedy(row) for row in complete) else TRAINING


def _has_all_greedy(row: Score) -> bool:
    return row.greedy is not None and len(row.greedy.values) == len(row.counted)


# ------------------------------------------------------------------------------------ several tasks


class Comparison(NamedTuple):
    """The part of a report that looks over tasks and groups."""

    kind: str  # of games with references: TRAINING or GREEDY
    overall: tuple[Overall, ...]
    pairs: tuple[Pair, ...]
    notes: tuple[str, ...]  # what is left out, and why


def compare(grouping: Grouping, rows: Sequence[Score]) -> Comparison:
    """Aggregates over tasks with references, and every pair of groups on the tasks of both.

    Rows without a complete seed are left out, and of tasks with more seeds than others the last.
    """
    known = [row for row in rows if is_atari(row.group) and has_reference(row.pool.task)]
    kind = kind_of(known)
    notes: list[str] = []
    overall = _overall(grouping, _by_group(grouping, known, kind), notes)
    pairs = []
    for i, ours in enumerate(grouping.groups):
        for theirs in grouping.groups[i + 1 :]:
            if (pair := _pair(ours, theirs, rows)) is not None:
                pairs.append(pair)
    return Comparison(kind, tuple(overall), tuple(pairs), tuple(notes))


def _by_group(
    grouping: Grouping, rows: Sequence[Score], kind: str
) -> dict[str, dict[str, list[float]]]:
    """{letter: {task: scores}} of the complete seeds."""
    return {group.letter: _by_task(rows, group, kind) for group in grouping.groups}


def _by_task(rows: Sequence[Score], group: Group, kind: str) -> dict[str, list[float]]:
    own = (row for row in rows if row.group.letter == group.letter and not row.is_partial)
    return {row.pool.task: values for row in own if (values := _values(row.counted, kind))}


def _pair(ours: Group, theirs: Group, rows: Sequence[Score]) -> Pair | None:
    """None where there is no task that both have played to the end."""
    complete = [row for row in rows if not row.is_partial]
    played = [{r.pool.task for r in complete if r.group.letter == g.letter} for g in (ours, theirs)]
    common = [row for row in complete if row.pool.task in played[0] & played[1]]
    common = [row for row in common if row.group.letter in (ours.letter, theirs.letter)]
    kind = kind_of(common)
    scores_of = [_by_task(common, group, kind) for group in (ours, theirs)]
    tasks = [task for task in scores_of[0] if task in scores_of[1]]
    if not tasks:
        return None
    both = [_table(values, tasks) for values in scores_of]
    found = _interval(statistics.probability_of_improvement, *both)
    return Pair(ours, theirs, tuple(tasks), kind, found)


def _overall(
    grouping: Grouping, by_group: dict[str, dict[str, list[float]]], notes: list[str]
) -> list[Overall]:
    known = {
        task for group in grouping.groups if is_atari(group) for task in by_group[group.letter]
    }
    if not known and len(grouping.tasks) > 1:
        notes.append(f"There are no aggregates over tasks, for {_NO_REFERENCES}")
    if not known:
        return []
    if without := sorted(set(grouping.tasks) - known):
        notes.append(f"Left out of the aggregates: {', '.join(without)}, for {_NO_REFERENCES}")
    tasks_of = {
        group.letter: sorted(task for task in by_group[group.letter] if task in known)
        for group in grouping.groups
        if is_atari(group)
    }
    several = {name: tasks for name, tasks in tasks_of.items() if len(tasks) > 1}
    common = set.intersection(*map(set, several.values())) if several else set()
    if len(common) > 1:
        if any(len(tasks) > len(common) for tasks in several.values()):
            notes.append(
                f"The aggregates are over the {len(common)} tasks that all groups with several "
                "tasks have played."
            )
        several = {name: sorted(common) for name in several}
    elif several:
        notes.append("The groups share no two tasks: their aggregates are over different ones.")
    found = []
    for group in grouping.groups:
        if tasks := several.get(group.letter):
            found.append(_over_tasks(group, tasks, by_group[group.letter], notes))
    return found


def _over_tasks(
    group: Group, tasks: list[str], values: dict[str, list[float]], notes: list[str]
) -> Overall:
    counts = [len(values[task]) for task in tasks]
    if min(counts) < max(counts):
        notes.append(
            f"Group {group.letter} has {min(counts)} to {max(counts)} seeds of a task: the "
            f"aggregates take the first {min(counts)} of each."
        )
    normalised = {
        task: [scores.human_normalised(task, value) for value in values[task]] for task in tasks
    }
    table = _table(normalised, tasks)
    aggregates = tuple(
        Aggregate(name, _interval(statistic, table))
        for name, statistic in statistics.AGGREGATES.items()
    )
    high = max(1.0, float(table.max()))
    thresholds = np.linspace(min(0.0, float(table.min())), high, _PROFILE_POINTS)
    profile = _interval(lambda s: statistics.performance_profile(s, thresholds), table)
    shares = Interval(*(np.clip(bound, 0.0, 1.0) for bound in profile))
    return Overall(group, tuple(tasks), len(table), aggregates, thresholds, shares)


def _table(values: dict[str, list[float]], tasks: Sequence[str]) -> np.ndarray:
    """[R, K] of the first seeds of every task, as many as the task with the fewest has."""
    least = min(len(values[task]) for task in tasks)
    return np.array([values[task][:least] for task in tasks], float).T


# ------------------------------------------------------------------------------------------- Atari


def is_atari(group: Group) -> bool:
    """Whether it plays games of the emulator (MinAtar's and others of the same names are not)."""
    return isinstance(group.experiment.env, atari.Config)


def has_reference(task: str) -> bool:
    """Whether a game has scores of random play and of a human."""
    try:
        return bool(scores.game_of(task))
    except ValueError:
        return False


def baselines(
    grouping: Grouping, given: Sequence[tuple[str | None, Baseline]] = ()
) -> dict[str, tuple[Baseline, ...]]:
    """What scores are held against on each task.

    Args:
      grouping: whose tasks count: Atari's games have random play and a human tester by themselves.
      given: further ones with their task; None: of all tasks.

    Raises ConfigError for a task that nobody played.
    """
    found: dict[str, tuple[Baseline, ...]] = {}
    for task, _ in given:
        if task is not None and task not in grouping.tasks:
            raise ConfigError(
                f"no run plays {task}: a baseline is of {', '.join(grouping.tasks)}, or of all "
                "tasks as NAME=VALUE"
            )
    for task in grouping.tasks:
        own: list[Baseline] = []
        groups = [group for group in grouping.groups if group.pool(task) is not None]
        if any(map(is_atari, groups)) and has_reference(task):
            reference = scores.references()[scores.game_of(task)]
            own += [Baseline("random", reference.random), Baseline("human", reference.human)]
        own += [one for place, one in given if place in (None, task)]
        found[task] = tuple(own)
    return found


class Game(NamedTuple):
    """A game beside the published systems."""

    game: str
    rows: tuple[Score, ...]  # of the groups that played it


def games(rows: Sequence[Score]) -> list[Game]:
    """The games of Atari100k among the rows."""
    found: dict[str, list[Score]] = {}
    for row in rows:
        if is_atari(row.group) and has_reference(row.pool.task):
            found.setdefault(scores.game_of(row.pool.task), []).append(row)
    return [Game(game, tuple(rows)) for game, rows in sorted(found.items())]


def frames(group: Group) -> int:
    """Emulator frames of a seed of a group that plays Atari."""
    return group.experiment.steps * group.experiment.env.protocol.frame_skip


def used(row: Score, kind: str) -> Estimate | None:
    """The estimate of a row of that kind."""
    return row.greedy if kind == GREEDY else row.training
