"""Aggregates against numbers worked out by hand, and intervals that hold what they promise."""

import numpy as np
import pytest

from experiments.studies.coverage import CASES, coverage
from mbrl_jax.evaluate import statistics

SCORES = np.array([[0.0, 2.0], [1.0, 4.0], [2.0, 9.0]])  # three runs of two tasks


def test_aggregates_are_those_of_the_definitions():
    assert statistics.mean(SCORES) == pytest.approx(3.0)
    assert statistics.median(SCORES) == pytest.approx((1.0 + 5.0) / 2)
    assert statistics.iqm(SCORES) == pytest.approx((1 + 2 + 2 + 4) / 4)  # one of six cut each side
    assert statistics.optimality_gap(SCORES) == pytest.approx(1 - 5 / 6)
    assert statistics.optimality_gap(SCORES, 4.0) == pytest.approx(4 - (0 + 1 + 2 + 2 + 4 + 4) / 6)


def test_all_is_as_rliable_1_2_0_has_it():
    rng = np.random.default_rng(0)
    ours, theirs = rng.gamma(2, 0.4, (10, 26)), rng.gamma(2, 0.3, (7, 26))
    golden = {  # estimate and bounds; rliable's own draws, 5,000 repetitions
        "IQM": (0.6744866643203226, 0.61779848, 0.73877312),
        "mean": (0.7833228901928772, 0.72407301, 0.84501112),
        "median": (0.778627568580673, 0.68824961, 0.84343867),
        "optimality gap": (0.3475552322784061, 0.31259056, 0.38197107),
    }
    for name, (estimate, low, high) in golden.items():
        found = statistics.interval(
            statistics.AGGREGATES[name], ours, form="percentile", repetitions=5_000
        )
        assert found.estimate == pytest.approx(estimate, rel=1e-12)
        np.testing.assert_allclose([found.low, found.high], [low, high], atol=0.006)
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx(0.6373626373626374)
    profile = statistics.performance_profile(ours, [0.0, 0.5, 1.0, 1.5, 2.0])
    wanted = [1.0, 0.63846154, 0.26538462, 0.10769231, 0.03461538]
    np.testing.assert_allclose(profile, wanted, atol=1e-8)


def test_the_middle_half_ignores_what_lies_outside():
    scores = np.arange(16.0).reshape(4, 4)
    outlier = scores.copy()
    outlier[3, 3] = 1e9
    assert statistics.iqm(scores) == statistics.iqm(outlier) == 7.5


def test_aggregates_take_leading_axes():
    stacked = np.stack([SCORES, SCORES + 1, SCORES * 2])
    for aggregate in statistics.AGGREGATES.values():
        found = aggregate(stacked)
        np.testing.assert_allclose(found, [aggregate(table) for table in stacked])


def test_improvement_counts_pairs_within_a_task():
    ours, theirs = np.array([[1.0, 5.0], [3.0, 5.0]]), np.array([[2.0, 5.0]])
    assert statistics.probability_of_improvement(ours, theirs) == pytest.approx((0.5 + 0.5) / 2)
    assert statistics.probability_of_improvement(SCORES + 100, SCORES) == 1.0
    a, b = np.random.default_rng(0).normal(size=(2, 6, 3))
    found = statistics.probability_of_improvement(a, b)
    assert found + statistics.probability_of_improvement(b, a) == pytest.approx(1.0)


def test_a_profile_falls_from_one_to_zero():
    profile = statistics.performance_profile(SCORES, [-1.0, 0.0, 2.0, 9.0])
    np.testing.assert_allclose(profile, [1.0, 5 / 6, 2 / 6, 0.0])


@pytest.mark.parametrize("name", statistics.AGGREGATES)
def test_an_interval_holds_the_estimate_and_narrows_with_runs(name):
    rng, aggregate = np.random.default_rng(1), statistics.AGGREGATES[name]
    few, many = rng.normal(0.5, 0.3, (5, 4)), rng.normal(0.5, 0.3, (80, 4))
    found = [statistics.interval(aggregate, table, seed=3) for table in (few, many)]
    for one in found:
        assert one.low <= one.estimate <= one.high
    assert found[1].high - found[1].low < 0.5 * (found[0].high - found[0].low)
    again = statistics.interval(aggregate, few, seed=3)
    assert again == found[0]


@pytest.mark.parametrize("name", CASES)
def test_intervals_hold_the_truth_as_often_as_they_say(name):
    """The percentile bootstrap, which was the form, holds 75 % of the means of three runs."""
    for tasks in (1, 5):
        for runs in (3, 5, 10, 30):
            share = coverage(name, tasks, runs, 500, ("studentised",))["studentised"]
            assert share > 0.93 - 0.025, (tasks, runs)  # two and a half standard errors
    narrow = coverage(name, 1, 3, 100, ("percentile",), repetitions=100)["percentile"]
    assert narrow < 0.9


def test_an_interval_of_one_task_is_that_of_student():
    found = statistics.interval(statistics.mean, np.array([[1.0], [2.0], [3.0]]))
    half = 4.302652729696 / np.sqrt(3)  # the 0.975 quantile of t with 2 degrees
    assert (found.low, found.high) == pytest.approx((2 - half, 2 + half))
    ours, theirs = np.array([[1.0], [2.0], [3.0]]), np.array([[0.0], [4.0], [5.0], [7.0]])
    found = statistics.interval(statistics.difference, ours, theirs)
    from scipy.stats import ttest_ind

    welch = ttest_ind(ours[:, 0], theirs[:, 0], equal_var=False).confidence_interval(0.95)
    assert (found.low, found.high) == pytest.approx((welch.low, welch.high))


def test_improvement_without_exception_is_not_certain_from_few_runs():
    found = statistics.interval(statistics.probability_of_improvement, SCORES + 100, SCORES)
    assert found.estimate == found.high == 1.0 and 0.4 < found.low < 0.8
    few = statistics.interval(
        statistics.probability_of_improvement, SCORES[:, :1] + 100, SCORES[:, :1]
    )
    assert few.low < found.low


def test_one_run_has_no_interval():
    with pytest.raises(ValueError, match="two runs"):
        statistics.interval(statistics.mean, SCORES[:1])


def test_runs_are_drawn_within_their_task():
    # Tasks on scales of their own: a draw across tasks would move the mean by far.
    table = np.array([[1.0, 1000.0], [1.0, 1000.0], [1.0, 1000.0]])
    found = statistics.interval(statistics.mean, table)
    assert found.low == found.high == found.estimate == 500.5


def test_several_tables_and_profiles_have_intervals():
    found = statistics.interval(statistics.probability_of_improvement, SCORES + 3, SCORES[:2])
    assert 0.2 < found.low <= found.estimate <= found.high <= 1.0
    taus = np.linspace(-1, 10, 12)
    profile = statistics.interval(lambda s: statistics.performance_profile(s, taus), SCORES)
    assert profile.estimate.shape == profile.low.shape == (12,)
    assert np.all(profile.low <= profile.estimate) and np.all(profile.estimate <= profile.high)


@pytest.mark.parametrize("bad", [np.zeros(3), np.zeros((0, 2)), np.array([[np.nan]])])
def test_what_is_no_table_of_scores_is_refused(bad):
    with pytest.raises(ValueError, match="scores h"):
        statistics.interval(statistics.mean, bad)


# --------------------------------------------------------------------------- prediction intervals


def test_a_prediction_interval_is_that_of_the_formula():
    found = statistics.prediction_interval([1.0, 2.0, 3.0], 2)
    half = 4.302652729696 * np.sqrt(1 / 3 + 1 / 2)  # the 0.975 quantile of t with 2 degrees
    assert found.estimate == 2.0
    assert (found.low, found.high) == pytest.approx((2.0 - half, 2.0 + half))
    wider = statistics.prediction_interval([1.0, 2.0, 3.0], 1, level=0.99)
    assert wider.high == pytest.approx(2.0 + 9.924843200918 * np.sqrt(1 / 3 + 1))


def test_a_prediction_interval_holds_as_many_new_means_as_it_says():
    rng = np.random.default_rng(1)
    inside = 0
    for _ in range(4_000):
        found = statistics.prediction_interval(rng.normal(3, 2, 6), 4)
        inside += found.low <= rng.normal(3, 2, 4).mean() <= found.high
    assert 0.94 <= inside / 4_000 <= 0.96


def test_scores_that_are_all_equal_leave_the_resolution():
    found = statistics.prediction_interval([1.0, 1.0, 1.0], 4, resolution=0.02)
    assert (found.low, found.high) == pytest.approx((0.98, 1.02))
    assert statistics.prediction_interval([0.0, 9.0], 4, resolution=0.02).high > 20


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, np.nan], [[1.0, 2.0], [3.0, 4.0]]])
def test_a_prediction_needs_two_finite_scores(scores):
    with pytest.raises(ValueError, match="recorded"):
        statistics.prediction_interval(scores, 3)
    with pytest.raises(ValueError, match="at least one"):
        statistics.prediction_interval([1.0, 2.0], 0)
