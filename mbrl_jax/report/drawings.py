"""The figures of a report, each with its caption."""

import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.evaluate import comparison
from mbrl_jax.evaluate.comparison import Baseline, Line, Points, Square
from mbrl_jax.report.figures import MAX_BYTES, Drawing, figure, picture
from mbrl_jax.report.groups import Grid, Group, Grouping, Pool, seed_text
from mbrl_jax.report.html import Html, join, tag
from mbrl_jax.report.numbers import GREEDY, Estimate, Overall, Score, kind_of, used
from mbrl_jax.report.quality import Quality
from mbrl_jax.report.tables import number_text

Baselines = Mapping[str, Sequence[Baseline]]  # by task

_PICTURES = 2_500_000  # bytes of all embedded pictures, as files


class Styles(NamedTuple):
    """The number of each group, which decides its colour and dash."""

    order: dict[str, int]

    def of(self, group: Group) -> int:
        """The number of a group."""
        return self.order[group.letter]


def styles(grouping: Grouping) -> Styles:
    """Numbers in the order of the groups."""
    return Styles({group.letter: i for i, group in enumerate(grouping.groups)})


# ---------------------------------------------------------------------------------------- curves


def learning_curves(grouping: Grouping, of: Styles, held: Baselines) -> list[Drawing]:
    """A figure for each task."""
    return [_learning_curve(grouping, of, task, held.get(task, ())) for task in grouping.tasks]


def _learning_curve(
    grouping: Grouping, of: Styles, task: str, baselines: Sequence[Baseline]
) -> Drawing:
    lines: list[Line] = []
    whole = None
    for group in grouping.groups:
        pool = group.pool(task)
        if pool is None:
            continue
        mean, parts = _curve_lines(group, pool, of.of(group))
        lines += [*parts, *mean]
        if not pool.complete and mean:
            # The axis shows how much is left; environment steps are fewer than rows, a little.
            share = max(s.lane.step for s in pool.sources) / group.experiment.steps
            whole = max(whole or 0.0, float(mean[0].x[-1]) / share if share else 0.0)
    whole = None if whole is None else max([whole, *(float(line.x[-1]) for line in lines)])

    def draw(width: float) -> Any:
        return comparison.draw_curves(lines, whole, baselines=baselines, width=width)

    return Drawing(f"learning curves of {task}", task, draw)


def _curve_lines(group: Group, pool: Pool, style: int) -> tuple[list[Line], list[Line]]:
    """(the mean of the complete seeds, or of all; the others one by one, and greedy episodes)."""
    counted = pool.complete or pool.sources
    curves = [comparison.thin(s.lane.curve) for s in counted if len(s.lane.curve)]
    rest = [s for s in pool.sources if s not in counted and len(s.lane.curve)]
    parts = [
        Line(seed_text(s.lane), style, *comparison.thin(s.lane.curve), is_part=True) for s in rest
    ]
    mean = [comparison.mean_line(group.letter, style, curves)] if curves else []
    greedy = [comparison.thin(s.lane.greedy_curve) for s in counted if len(s.lane.greedy_curve)]
    if greedy:
        line = comparison.mean_line(group.letter, style, greedy)
        parts.append(line._replace(low=None, high=None, is_baseline=True))
    return mean, parts


# ----------------------------------------------------------------------------------------- scores


def score_charts(rows: Sequence[Score], of: Styles, held: Baselines) -> list[Drawing]:
    """A chart for each task: every group's greedy and training score."""
    found = []
    for task in sorted({row.pool.task for row in rows}):
        points = []
        for row in (row for row in rows if row.pool.task == task):
            both = row.greedy is not None and row.training is not None
            for estimate, name, is_open in (
                (row.greedy, "greedy", False),
                (row.training, "training", True),
            ):
                if estimate is not None:
                    label = f"{row.group.letter} {name}" if both else row.group.letter
                    points.append(_points(label, of.of(row.group), estimate, is_open))
        if points:
            draw = functools.partial(_draw_points, points, "return", held.get(task, ()))
            found.append(Drawing(f"scores on {task}", task, draw))
    return found


def _draw_points(
    points: Sequence[Points], label: str, baselines: Sequence[Baseline], width: float
) -> Any:
    return comparison.draw_points(points, label, baselines=baselines, width=width)


def grids(grid: Grid, rows: Sequence[Score]) -> list[Drawing]:
    """A heat map for each task of groups that form a grid: means with their intervals."""
    found = []
    for task in sorted({row.pool.task for row in rows}):
        own = [row for row in rows if row.pool.task == task]
        kind = kind_of(own)
        squares = [
            square for row in own if (square := _square(grid, row, used(row, kind))) is not None
        ]
        if squares:
            draw = functools.partial(_draw_grid, grid, squares)
            what = "greedy return" if kind == GREEDY else "training return"
            caption = f"{task}: {what}, mean over seeds [95 % interval]"
            found.append(Drawing(f"settings on {task}", caption, draw))
    return found


def _square(grid: Grid, row: Score, estimate: Estimate | None) -> Square | None:
    if estimate is None:
        return None
    value, low, high = map(float, estimate.mean)
    bounds = "one seed" if estimate.is_single else f"[{number_text(low)}, {number_text(high)}]"
    lines = (number_text(value), bounds, *(("so far",) * row.is_partial))
    return Square(*grid.places[row.group.letter], value, lines)


def _draw_grid(grid: Grid, squares: Sequence[Square], width: float) -> Any:
    del width  # it has as many columns as there are
    return comparison.draw_grid(squares, *grid.values, grid.paths)


def _points(label: str, style: int, estimate: Estimate, is_open: bool) -> Points:
    bounds = (float(estimate.mean.low), float(estimate.mean.high))
    return Points(label, style, estimate.values, float(estimate.mean.estimate), *bounds, is_open)


def aggregate_charts(overall: Sequence[Overall], of: Styles, kind: str) -> list[Drawing]:
    """A chart for each aggregate, and the performance profiles."""
    if not overall:
        return []
    found = []
    for i, aggregate in enumerate(overall[0].aggregates):
        points = []
        for one in overall:
            interval = one.aggregates[i].interval
            numbers = (float(interval.estimate), float(interval.low), float(interval.high))
            points.append(Points(one.group.letter, of.of(one.group), (), *numbers))
        draw = functools.partial(_draw_points, points, "human-normalised score", ())
        found.append(Drawing(aggregate.name, f"{aggregate.name} over tasks", draw))
    lines = [
        Line(one.group.letter, of.of(one.group), one.thresholds, *one.profile)
        if np.isfinite(one.profile.low).all()
        else Line(one.group.letter, of.of(one.group), one.thresholds, one.profile.estimate)
        for one in overall
    ]
    what = "greedy episodes" if kind == GREEDY else "training return"
    labels = ("human-normalised score τ", "share of runs above τ")
    profiles = _lines_drawing(lines, *labels, y_range=(-0.02, 1.02))
    return [*found, Drawing("performance profiles", f"performance profiles, {what}", profiles)]


def _lines_drawing(lines: Sequence[Line], *labels: str, **options: Any) -> Callable[[float], Any]:
    return lambda width: comparison.draw_lines(lines, *labels, width=width, **options)


# --------------------------------------------------------------------------------------- pictures


def strips(grouping: Grouping) -> tuple[list[Html], list[str]]:
    """(open_loop.png of one run of each group, what could not be shown)."""
    chosen = {group.letter: _strips_of(group) for group in grouping.groups}
    count = max(1, sum(1 for path in chosen.values() if path))
    most = min(MAX_BYTES, _PICTURES // count)
    found, notes = [], []
    for group in grouping.groups:
        path = chosen[group.letter]
        if path is None:
            continue
        try:
            shown = picture(path, f"open-loop predictions of group {group.letter}", most)
        except ValueError as error:
            notes.append(f"Group {group.letter}: {error}")
            continue
        words = join([tag("b", group.letter), f" {group.label}, from {path.parent}"])
        found.append(figure(shown, words))
    return found, notes


def _strips_of(group: Group) -> Path | None:
    """Of the first run that has the picture, finished ones before others."""
    runs = [run for pool in group.pools for run in pool.runs]
    runs = sorted(runs, key=lambda run: run.state != "finished")
    return next((run.strips for run in runs if run.strips), None)


# ---------------------------------------------------------------------------------------- quality

_PANELS = (
    ("observation", "observation_copied", "squared error", "observation", "last one seen"),
    ("reward", "reward_constant", "absolute error", "reward", "mean reward"),
    ("reward_accuracy", None, "share of rows", "reward accuracy", ""),
)


def quality_figures(found: Sequence[Quality], of: Styles) -> list[Drawing]:
    """Errors against the horizon and calibration of each task."""
    drawn = []
    for task in sorted({one.pool.task for one in found}):
        own = [one for one in found if one.pool.task == task]
        for name, baseline, unit, title, copied in _PANELS:
            lines = [line for one in own for line in _quality_lines(one, of, name, baseline)]
            if lines:
                y_range = (-0.02, 1.02) if name == "reward_accuracy" else None
                draw = _lines_drawing(lines, "rows ahead", unit, y_range=y_range)
                beside = f"; dashed: {copied}" if baseline else ""
                drawn.append(Drawing(f"{title} of {task}", f"{task}: {title}{beside}", draw))
        lines = [
            Line(one.group.letter, of.of(one.group), *one.calibration[:2])
            for one in own
            if one.calibration is not None
        ]
        if lines:
            labels = ("predicted discount", "share of rows that went on")
            draw = _lines_drawing(lines, *labels, diagonal=True)
            caption = f"{task}: calibration of the discount; dashed: perfect"
            drawn.append(Drawing(f"calibration on {task}", caption, draw))
    return drawn


def _quality_lines(one: Quality, of: Styles, name: str, baseline: str | None) -> list[Line]:
    lines = []
    for key, is_baseline in ((name, False), (baseline, True)):
        if key is not None and key in one.curves:
            values = one.curves[key]
            ahead = np.arange(1, values.shape[1] + 1)
            letter, style = one.group.letter, of.of(one.group)
            lines.append(
                comparison.range_line(letter, style, ahead, values, is_baseline=is_baseline)
            )
    return lines
