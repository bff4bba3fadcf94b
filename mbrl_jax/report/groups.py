"""Runs pooled into groups: the same configuration except for seed and task."""

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from mbrl_jax.experiment import config
from mbrl_jax.experiment.annotations import is_config
from mbrl_jax.experiment.experiment import Experiment, task_of
from mbrl_jax.report.records import Lane, Run

TASK = "env.name"  # the field that names the task: it splits a group's seeds and not the groups
# What --debug or --set would have changed changes nothing otherwise.
_WITHOUT_EFFECT = (TASK, "debug", "with_parts")
NOTHING = "–"
FORK = "fork"  # stands in for a field: the history of runs that did not begin at step 0
_MAX_SETTINGS = 3  # in a label
_MAX_LABEL = 48  # letters

_PARTS = [field.name for field in dataclasses.fields(Experiment)]

History = tuple[tuple[str, tuple[str, ...]], ...]  # (step, what was changed) of every fork


class Source(NamedTuple):
    """A seed and the run that it comes from."""

    run: Run
    lane: Lane


class Pool(NamedTuple):
    """What a group did on one task."""

    task: str
    sources: tuple[Source, ...]  # by seed, each once

    @property
    def complete(self) -> tuple[Source, ...]:
        """Those that made all of their steps."""
        return tuple(source for source in self.sources if source.lane.is_complete)

    @property
    def runs(self) -> list[Run]:
        """The runs, each once."""
        return list({id(source.run): source.run for source in self.sources}.values())


class Group(NamedTuple):
    """A configuration."""

    letter: str  # in figures: A, B, …
    label: str  # what tells it from the other groups
    experiment: Experiment  # of one of its tasks
    history: History
    pools: tuple[Pool, ...]  # by task

    def pool(self, task: str) -> Pool | None:
        """What it did on a task."""
        return next((pool for pool in self.pools if pool.task == task), None)


class Grouping(NamedTuple):
    """All that was read, pooled."""

    groups: tuple[Group, ...]
    notes: tuple[str, ...]  # seeds that two runs have

    @property
    def tasks(self) -> list[str]:
        """Of all groups, in the order of the alphabet."""
        return sorted({pool.task for group in self.groups for pool in group.pools})


class Difference(NamedTuple):
    """A field that is not the same in all groups."""

    path: str
    values: tuple[str, ...]  # of each group; NOTHING where it has no such field


def group_runs(runs: Sequence[Run]) -> Grouping:
    """Pool the lanes of runs.

    A seed that two runs of a group have on a task counts once: of the run that got farthest.
    """
    found: dict[tuple, list[Source]] = {}
    keys: dict[Experiment, tuple] = {}  # those of equal seeds are computed once
    for run in runs:
        history = tuple(
            (str(link["step"]), tuple(map(str, link["changed"]))) for link in run.lineage
        )
        for lane in run.lanes:
            if lane.experiment not in keys:
                keys[lane.experiment] = _key(lane.experiment)
            found.setdefault((history, keys[lane.experiment]), []).append(Source(run, lane))
    notes: list[str] = []
    groups = [
        Group(letter(i), "", own[0].lane.experiment, key[0], _pools(letter(i), own, notes))
        for i, (key, own) in enumerate(found.items())
    ]
    labels = _labels(groups)
    named = (group._replace(label=label) for group, label in zip(groups, labels, strict=True))
    return Grouping(tuple(named), tuple(notes))


def letter(index: int) -> str:
    """A, B, … Z, AA, AB, …"""
    more, last = divmod(index, 26)
    return (letter(more - 1) if more else "") + chr(ord("A") + last)


def _key(experiment: Experiment) -> tuple[tuple[str, str], ...]:
    """What experiments of one group have in common."""
    texts = config.texts(experiment)
    return tuple(item for item in sorted(texts.items()) if item[0] not in _WITHOUT_EFFECT)


def _pools(name: str, sources: Sequence[Source], notes: list[str]) -> tuple[Pool, ...]:
    best: dict[tuple[str, tuple[int, int]], Source] = {}
    for source in sources:
        key = task_of(source.lane.experiment), source.lane.seed
        if key not in best:
            best[key] = source
            continue
        kept, left = sorted((best[key], source), key=_progress, reverse=True)
        best[key] = kept
        notes.append(
            f"Seed {seed_text(source.lane)} of group {name} on {key[0]} is in {left.run.path} and "
            f"in {kept.run.path}: only the latter counts."
        )
    tasks = sorted({task for task, _ in best})
    of = {task: sorted(key for key in best if key[0] == task) for task in tasks}
    return tuple(Pool(task, tuple(best[key] for key in of[task])) for task in tasks)


def _progress(source: Source) -> tuple[int, bool]:
    return source.lane.step, source.lane.greedy is not None


def seed_text(lane: Lane) -> str:
    """A seed as "0/3": of `--seed=0` the lane 3."""
    return "{}/{}".format(*lane.seed)


# ---------------------------------------------------------------------------- what differs in them


def differences(groups: Sequence[Group]) -> list[Difference]:
    """The fields that differ between groups, but for the task."""
    texts = [config.texts(group.experiment) for group in groups]
    every = {
        path
        for i, one in enumerate(texts)
        for other in texts[:i]
        for path in config.changed(other, one)
    }
    paths = sorted(every - set(_WITHOUT_EFFECT), key=_place)
    if len({group.history for group in groups}) > 1:
        paths.append(FORK)
    return [Difference(path, tuple(_value(group, path) for group in groups)) for path in paths]


class Grid(NamedTuple):
    """Groups that two settings tell apart, as rows and columns."""

    paths: tuple[str, str]  # of the rows, of the columns
    values: tuple[tuple[str, ...], tuple[str, ...]]
    places: dict[str, tuple[int, int]]  # of each group, by its letter


def grid_of(groups: Sequence[Group]) -> Grid | None:
    """The grid that groups form, at least two by two and two thirds full; None where they do not.

    A field that follows from one of the two, such as those of a chosen core, is no third one.
    """
    found = differences(groups)
    for i, one in enumerate(found):
        for other in found[i + 1 :]:
            several = [len(set(d.values)) for d in (one, other)]
            together = set(zip(one.values, other.values, strict=True))
            if len(together) < len(groups) or 3 * len(groups) < 2 * several[0] * several[1]:
                continue
            if min(several) < 2 or len(groups) < 4:
                continue
            if all(_follows(d, one) or _follows(d, other) for d in found):
                return _grid(groups, *((one, other) if several[0] <= several[1] else (other, one)))
    return None


def _follows(field: Difference, other: Difference) -> bool:
    """Whether the value of one field says that of another."""
    pairs = set(zip(other.values, field.values, strict=True))
    return len(pairs) == len(set(other.values))


def _grid(groups: Sequence[Group], rows: Difference, columns: Difference) -> Grid:
    values = (_in_order(rows.values), _in_order(columns.values))
    places = {
        group.letter: (values[0].index(rows.values[i]), values[1].index(columns.values[i]))
        for i, group in enumerate(groups)
    }
    return Grid((rows.path, columns.path), values, places)


def _in_order(values: Sequence[str]) -> tuple[str, ...]:
    """Each once: numbers by size, words as they come."""
    once = tuple(dict.fromkeys(values))
    try:
        return tuple(sorted(once, key=float))
    except ValueError:
        return once


def _place(path: str) -> tuple[int, str]:
    """Where a field stands in a list: by the part of the experiment, then by name."""
    return _PARTS.index(path.partition(".")[0]), path


def _value(group: Group, path: str) -> str:
    if path == FORK:
        return "; ".join(_fork_text(*link) for link in group.history) or NOTHING
    value: Any = group.experiment
    for key in path.split("."):
        if isinstance(value, tuple):
            value = value[int(key)] if int(key) < len(value) else None
        else:
            value = getattr(value, key, None)
        if value is None:
            break
    known = path in config.flatten(group.experiment)
    return value_text(value) if value is not None else "none" if known else NOTHING


def _fork_text(step: str, changed: Sequence[str]) -> str:
    return f"at step {step}: {', '.join(changed) or 'nothing changed'}"


def value_text(value: Any) -> str:
    """A field as launch.train takes it; a config by its name."""
    if is_config(value):
        return config.name(type(value))
    if isinstance(value, tuple) and any(map(is_config, value)):
        return f"{len(value)} configs"
    if isinstance(value, tuple):
        return ",".join(map(value_text, value)) or "()"
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _labels(groups: Sequence[Group]) -> list[str]:
    """For each group what tells it from the others, in few words.

    The name of its experiment, where there are several, and what differs among those of one name.
    """
    names = [group.experiment.name for group in groups]
    several = len(set(names)) > 1
    labels, found = [], {}
    for group in groups:
        name = group.experiment.name
        same = [other for other in groups if other.experiment.name == name]
        if name not in found:
            found[name] = differences(same)
        head = [group.experiment.name] if several or len(same) == 1 else []
        label = " ".join(head + _settings(found[name], same.index(group)))
        labels.append(label if len(label) <= _MAX_LABEL else label[: _MAX_LABEL - 1] + "…")
    return labels


def _settings(found: Sequence[Difference], own: int) -> list[str]:
    """The first few settings of group `own`, those before others that few of the groups have."""
    if len(found) > _MAX_SETTINGS:
        found = [d for d in found if d.values[own] != NOTHING]
        kept = sorted(found, key=lambda d: d.values.count(d.values[own]))[:_MAX_SETTINGS]
        found = [d for d in found if d in kept]
    return [f"{_short(d.path, found)}={d.values[own]}" for d in found if d.values[own] != NOTHING]


def _short(path: str, among: Sequence[Difference]) -> str:
    """The last word of a path, where no other field that differs ends in it."""
    word = path.rpartition(".")[2]
    same = [d.path for d in among if d.path.rpartition(".")[2] == word]
    return path if len(same) > 1 or word.isdigit() else word
