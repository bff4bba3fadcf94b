"""Lines and points of groups, against values computed by hand."""

import numpy as np
import pytest

from mbrl_jax.evaluate import comparison
from mbrl_jax.evaluate.comparison import Line, Points


def test_short_curves_stay_and_long_ones_are_averaged_with_each_episode_once():
    curve = np.array([[10.0, 1.0, 1.0], [20.0, 4.0, 2.0], [30.0, 0.0, 3.0], [40.0, 2.0, 1.0]])
    steps, returns = comparison.thin(curve)
    assert steps.tolist() == [10, 20, 30, 40] and returns.tolist() == [1, 4, 0, 2]
    steps, returns = comparison.thin(curve, 2)
    np.testing.assert_allclose(steps, [50 / 3, 130 / 4])
    np.testing.assert_allclose(returns, [9 / 3, 2 / 4])


def test_the_mean_of_curves_has_a_band_where_there_are_several():
    steps = np.array([0.0, 10.0])
    curves = [(steps, np.array([0.0, v])) for v in (0.0, 1.0, 2.0)]
    line = comparison.mean_line("A", 0, curves)
    np.testing.assert_allclose(line.y, [0, 1])
    half = 4.302652729696 / np.sqrt(3)  # Student's, with two degrees
    np.testing.assert_allclose(line.low, [0, 1 - half])
    np.testing.assert_allclose(line.high, [0, 1 + half])
    assert comparison.mean_line("A", 0, curves[:1]).low is None


def test_a_mean_curve_has_no_more_points_than_one_sees():
    rng = np.random.default_rng(0)
    curves = [(np.sort(rng.random(90)), rng.random(90)) for _ in range(8)]
    line = comparison.mean_line("A", 0, curves)
    assert len(line.x) == len(line.low) == comparison.MAX_POINTS


def test_a_range_reaches_over_the_seeds_and_leaves_gaps():
    values = np.array([[1.0, np.nan, np.nan], [3.0, 4.0, np.nan]])
    line = comparison.range_line("A", 0, np.arange(3), values)
    np.testing.assert_array_equal(line.y, [2, 4, np.nan])
    np.testing.assert_array_equal(line.low, [1, 4, np.nan])
    np.testing.assert_array_equal(line.high, [3, 4, np.nan])
    assert comparison.range_line("A", 0, np.arange(3), values[:1]).low is None


def drawn(figure):
    (axes,) = figure.axes
    return axes


def test_every_group_has_a_line_in_its_colour_and_a_band():
    x = np.arange(3.0)
    lines = [Line("A", 0, x, x, x - 1, x + 1), Line("B", 9, x, x, is_baseline=True)]
    lines.append(Line("0/1", 0, x, x, is_part=True))
    axes = drawn(comparison.draw_curves(lines, whole=50.0))
    assert [line.get_color() for line in axes.lines] == [
        comparison.COLOURS[0],
        comparison.COLOURS[1],
        comparison.COLOURS[0],
    ]
    assert len(axes.collections) == 1 and axes.get_xlim()[1] == 50.0
    assert drawn(comparison.draw_curves([])).texts[0].get_text() == "no episode was finished"


def test_points_stand_in_the_order_of_the_rows_with_intervals():
    rows = [
        Points("A", 0, [1.0, 2.0], 1.5, 1.0, 2.0),
        Points("B", 1, [3.0], 3.0, np.nan, np.nan, is_open=True),
    ]
    axes = drawn(comparison.draw_points(rows, "return"))
    assert [label.get_text() for label in axes.get_yticklabels()] == ["A", "B"]
    (interval,) = axes.lines
    assert interval.get_xdata() == pytest.approx([1, 2]) and axes.get_ylim()[0] > axes.get_ylim()[1]


def test_many_groups_have_their_legend_beside_the_axes():
    x = np.arange(2.0)
    lines = [Line(str(i), i, x, x + i) for i in range(20)]
    axes = drawn(comparison.draw_lines(lines, "x", "y"))
    assert len(axes.get_legend().get_texts()) == 20
    styles = {(line.get_color(), line.get_linestyle()) for line in axes.lines}
    assert len(styles) == 20  # eight colours, and dashes from the ninth on
