"""Figures that compare groups of runs: lines with bands, and points with intervals.

Colours stand for groups: `COLOURS[style % 8]`, and from the ninth group on another dash. Whoever
shows a figure on pages of two themes may put other colours in their places.
"""

import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.evaluate.plots import INK, dress, dress_curve, new_figure, on_common_steps, plain
from mbrl_jax.evaluate.statistics import interval, mean_of_each

# After Okabe and Ito, for colour-blind readers; darkened until text in them is legible.
COLOURS = (
    *("#1f6fb2", "#c2410c", "#00805f", "#a8497f"),
    *("#8a6d00", "#3b8fb8", "#6b4fa0", "#5c5f66"),
)
FAINT = "#8b9098"  # of what is drawn for comparison only
_DASHES = ("-", "--", ":", "-.")
MAX_POINTS = 100  # of a curve


class Line(NamedTuple):
    """A line, with a band where `low` and `high` are given; NaN leaves a gap."""

    label: str
    style: int  # number of its group
    x: np.ndarray
    y: np.ndarray
    low: np.ndarray | None = None
    high: np.ndarray | None = None
    is_baseline: bool = False  # dashed, thin, without points
    is_part: bool = False  # of a whole: one seed, drawn faintly and without label


class Points(NamedTuple):
    """Seeds of a group: each a small point, their mean a large one with an interval."""

    label: str
    style: int
    values: Sequence[float]
    mean: float
    low: float  # NaN where there is no interval
    high: float
    is_open: bool = False  # another kind of score of the same group


class Baseline(NamedTuple):
    """A number from elsewhere that scores are held against: random play, another system."""

    name: str
    value: float


# ------------------------------------------------------------------------------ lines over seeds


def thin(curve: np.ndarray, most: int = MAX_POINTS) -> tuple[np.ndarray, np.ndarray]:
    """(steps, returns) of a curve [T, 3] of (steps, mean return, episodes), at most `most` points.

    Longer ones are averaged in bins of as many rows, where each episode counts once.
    """
    steps, returns, counts = curve.T
    if len(curve) <= most:
        return steps, returns
    starts = np.linspace(0, len(curve), most, endpoint=False).astype(int)
    total = np.add.reduceat(counts, starts)
    mean = np.add.reduceat(returns * counts, starts) / total
    return np.add.reduceat(steps * counts, starts) / total, mean


def mean_line(label: str, style: int, curves: Sequence[tuple]) -> Line:
    """The mean over curves (steps, returns), with a 95 % interval (Student) if there are several.

    It covers the steps where all curves have points.
    """
    steps, values = on_common_steps(curves)
    kept = np.unique(np.linspace(0, len(steps) - 1, MAX_POINTS).round().astype(int))
    steps, values = steps[kept], values[:, kept]
    if len(values) < 2:
        return Line(label, style, steps, values[0])
    found = interval(mean_of_each, values)
    return Line(label, style, steps, found.estimate, found.low, found.high)


def range_line(label: str, style: int, x: np.ndarray, values: np.ndarray, **options: Any) -> Line:
    """The mean over seeds [S, X] with a band from the least to the greatest; NaN is left out."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)  # columns without a number stay NaN
        mean = np.nanmean(values, 0)
        if len(values) < 2:
            return Line(label, style, x, mean, **options)
        low, high = np.nanmin(values, 0), np.nanmax(values, 0)
    return Line(label, style, x, mean, low, high, **options)


WIDTH = 5.2  # inches of a figure: two stand beside each other on a page


def draw_curves(
    lines: Sequence[Line],
    whole: float | None = None,
    *,
    baselines: Sequence[Baseline] = (),
    width: float = WIDTH,
) -> Any:
    """Learning curves of one task: a figure. `whole` is the last step, if runs are under way."""
    figure, axes = _axes(width)
    for line in lines:
        _draw_line(axes, line)
    if not lines:
        axes.text(0.5, 0.5, "no episode was finished", transform=axes.transAxes, ha="center")
    if whole is not None:
        axes.set_xlim(right=whole)
    dress_curve(axes)
    axes.locator_params(axis="x", nbins=5 if width <= WIDTH else 9)
    draw_baselines(axes, baselines)
    _legend(axes)
    return figure


def draw_baselines(axes: Any, baselines: Sequence[Baseline], vertical: bool = False) -> None:
    """Faint dashed lines with their names; upright where scores lie along x."""
    along = axes.get_xaxis_transform() if vertical else axes.get_yaxis_transform()
    for one in baselines:
        style: dict[str, Any] = {"color": FAINT, "linewidth": 1.0, "linestyle": "--", "zorder": 1}
        (axes.axvline if vertical else axes.axhline)(one.value, **style)
        words: dict[str, Any] = {"fontsize": 7, "color": FAINT, "transform": along}
        text = plain(f"{one.name} {one.value:.3g}")
        if vertical:
            axes.text(one.value, 1.0, text, ha="center", va="bottom", **words)
        else:
            axes.text(0.995, one.value, text, ha="right", va="bottom", **words)


def draw_lines(
    lines: Sequence[Line],
    x_label: str,
    y_label: str,
    *,
    y_range: tuple[float, float] | None = None,
    diagonal: bool = False,
    width: float = WIDTH,
) -> Any:
    """Lines over an axis: a figure.

    Args:
      lines: to be drawn.
      x_label, y_label: of the axes.
      y_range: of the y axis; by default what is drawn.
      diagonal: draw where y equals x, from 0 to 1.
      width: of the figure, in inches.
    """
    figure, axes = _axes(width)
    if diagonal:
        axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1.0, linestyle="--")
        axes.set(xlim=(-0.03, 1.03), ylim=(-0.03, 1.03))
    for line in lines:
        _draw_line(axes, line, marked=diagonal or len(line.x) < 3)
    if y_range is not None:
        axes.set_ylim(*y_range)
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    dress(axes)
    _legend(axes)
    return figure


def _axes(width: float = WIDTH, height: float = 3.3):
    figure = new_figure(width, height)
    return figure, figure.add_subplot()


def _draw_line(axes, line: Line, marked: bool = False) -> None:
    colour, dash = COLOURS[line.style % len(COLOURS)], _DASHES[line.style // len(COLOURS) % 4]
    if line.is_part:
        axes.plot(line.x, line.y, color=colour, linewidth=0.9, alpha=0.55, linestyle=":")
        return
    if line.is_baseline:
        axes.plot(line.x, line.y, color=colour, linewidth=1.2, alpha=0.7, linestyle="--")
        return
    style = {"marker": "o", "markersize": 4} if marked or len(line.x) < 3 else {}
    label = plain(line.label)
    axes.plot(line.x, line.y, color=colour, linewidth=1.9, linestyle=dash, label=label, **style)
    if line.low is not None:
        axes.fill_between(line.x, line.low, line.high, color=colour, alpha=0.16, linewidth=0)


def _legend(axes) -> None:
    """Which letter is which line; with many of them beside the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) > 1:
        where: dict[str, Any] = {"loc": "best"} if len(labels) <= 8 else {"loc": "center left"}
        where |= {} if len(labels) <= 8 else {"bbox_to_anchor": (1.0, 0.5)}
        legend = axes.legend(
            handles, labels, frameon=False, fontsize=8, ncols=1 + (len(labels) - 1) // 16, **where
        )
        legend.set_in_layout(True)


# --------------------------------------------------------------------------- points with intervals


def draw_points(
    rows: Sequence[Points],
    x_label: str,
    *,
    baselines: Sequence[Baseline] = (),
    width: float = WIDTH,
) -> Any:
    """A row for each group, the first on top: a figure."""
    height = 0.75 + 0.34 * max(len(rows), 1) + 0.2 * bool(baselines)
    figure, axes = _axes(width, height)
    for place, row in enumerate(rows):
        colour = COLOURS[row.style % len(COLOURS)]
        fill = "none" if row.is_open else colour
        spread = np.full(len(row.values), place + 0.0)
        axes.scatter(row.values, spread, s=11, color=colour, alpha=0.45, linewidths=0)
        if np.isfinite([row.low, row.high]).all():
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.2)
        axes.scatter([row.mean], [place], s=42, facecolors=fill, edgecolors=colour, zorder=3)
    axes.set_yticks(range(len(rows)), [plain(row.label) for row in rows], color=INK)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel(x_label)
    dress(axes)
    axes.grid(False, axis="y")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    draw_baselines(axes, baselines, vertical=True)
    return figure


# ------------------------------------------------------------------------------- grids of settings


class Square(NamedTuple):
    """One cell of a grid of settings."""

    row: int
    column: int
    value: float
    lines: tuple[str, ...]  # what is written in it, the first one large


def draw_grid(
    squares: Sequence[Square], row_names: Sequence[str], column_names: Sequence[str], axes_: tuple
) -> Any:
    """A heat map: the darker, the higher. `axes_`: what the rows are, and the columns."""
    height, wide = len(row_names), len(column_names)
    longest = max(map(len, row_names), default=0)
    figure, axes = _axes(1.0 + 0.07 * longest + 1.25 * wide, 0.9 + 0.62 * height)
    finite = [one.value for one in squares if np.isfinite(one.value)]
    low, spread = (min(finite), max(finite) - min(finite)) if finite else (0.0, 0.0)
    for one in squares:
        share = (one.value - low) / spread if spread > 0 else 0.5
        # One colour, more or less of it: the text in it is legible on pages of both themes.
        alpha = 0.06 + 0.5 * share if np.isfinite(one.value) else 0.0
        across = one.column + 0.47 * np.array([-1, 1, 1, -1])
        down = one.row + 0.45 * np.array([-1, -1, 1, 1])
        axes.fill(across, down, color=COLOURS[0], alpha=alpha, linewidth=0)
        for i, text in enumerate(one.lines):
            y = one.row + (i - (len(one.lines) - 1) / 2) * 0.34
            size = 10.5 if i == 0 else 8
            middle = {"ha": "center", "va": "center", "color": INK}
            axes.text(one.column, y, plain(text), fontsize=size, **middle)
    axes.set(xlim=(-0.5, wide - 0.5), ylim=(height - 0.5, -0.5))
    axes.set_xticks(range(wide), [plain(name) for name in column_names], color=INK)
    axes.set_yticks(range(height), [plain(name) for name in row_names], color=INK)
    axes.set_ylabel(plain(axes_[0]))
    axes.set_xlabel(plain(axes_[1]))
    axes.tick_params(length=0)
    axes.spines[["top", "right", "left", "bottom"]].set_visible(False)
    return figure
