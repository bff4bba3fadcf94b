"""Numbers of a report against numbers computed by hand."""

import numpy as np
import pytest

from mbrl_jax.evaluate import scores
from mbrl_jax.experiment.members import Members
from mbrl_jax.report import content, groups, numbers, quality, records
from tests.report import runs


def read(*paths):
    grouping = groups.group_runs(records.read_runs(paths))
    rows = numbers.score_rows(grouping)
    return grouping, rows, numbers.compare(grouping, rows), content.places(grouping)


def texts(table):
    return [[cell.text for cell in row] for row in table.rows]


def test_pooled_seeds_have_the_mean_and_interval_of_all(tmp_path):
    a = runs.write(tmp_path / "a", runs.catch(), [1.0, 0.5], greedy=[0.9, 0.3])
    b = runs.write(tmp_path / "b", runs.catch(), [0.0], Members(7), greedy=[0.0])
    _, (row,), _, at = read(a, b)
    assert row.training.values == (1.0, 0.5, 0.0)
    half = 4.302652729696 * 0.5 / 3**0.5  # Student's, with two degrees
    assert tuple(row.training.mean) == pytest.approx((0.5, 0.5 - half, 0.5 + half))
    assert row.training.iqm == 0.5 and row.greedy.mean.estimate == pytest.approx(0.4)
    (cells,) = texts(content.score_table([row], at))
    assert cells[2:6] == ["3", "0.50 [-0.74, 1.74]", "0.50", "0.00 … 1.00"]
    assert cells[6:] == ["0.40 [-0.74, 1.54]", "0.40", "0.00 … 0.90"]


def test_the_interquartile_mean_leaves_a_quarter_out_at_each_end(tmp_path):
    path = runs.write(tmp_path, runs.catch(), [-100.0, 1.0, 2.0, 100.0])
    _, (row,), _, _ = read(path)
    assert row.training.iqm == 1.5 and row.training.mean.estimate == 0.75


def test_one_seed_has_no_interval_and_it_is_said(tmp_path):
    path = runs.write(tmp_path, runs.catch(), [0.25], greedy=[0.5])
    _, (row,), _, at = read(path)
    assert np.isnan(row.training.mean.low)
    table = content.score_table([row], at)
    (cells,) = texts(table)
    assert cells[2:] == ["1", "0.25", "–", "–", "0.50", "–", "–", "one seed: no interval"]
    assert any("One seed: there is no interval" in note for note in table.notes)


def test_seeds_under_way_are_left_out_unless_there_are_no_others(tmp_path):
    a = runs.write(tmp_path / "a", runs.catch(), [1.0, 1.0], greedy=[1.0, 1.0])
    b = runs.write(tmp_path / "b", runs.catch(), [-9.0], Members(7), until=0.5)
    c = runs.write(tmp_path / "c", runs.catch("model.core=gru"), [0.2, 0.4], until=0.5)
    _, rows, compared, at = read(a, b, c)
    (whole, partial) = texts(content.score_table(rows, at))
    assert whole[2:4] == ["2 of 3", "1.00 [1.00, 1.00]"]
    assert whole[-1] == "1 seed not at the last step, left out"
    assert partial[2:4] == ["2", "0.30 [-0.97, 1.57]"] and partial[-1] == "so far: step 50 of 100"
    assert compared.pairs == ()  # a run under way is compared with nothing


def test_seeds_without_episodes_and_frozen_ones_are_named(tmp_path):
    frozen = {"1": {"step": 30, "metric": "model/kl"}}
    path = runs.write(tmp_path, runs.catch(), [None, 0.5], frozen=frozen)
    _, (row,), _, at = read(path)
    (cells,) = texts(content.score_table([row], at))
    assert cells[3] == "0.50" and cells[6] == "–"
    assert "seed 0/1 frozen at step 30: model/kl was not finite" in cells[-1]
    assert "1 without an episode in the last fifth" in cells[-1]
    assert "not evaluated" in cells[-1]


def test_no_episode_at_all_is_no_number(tmp_path):
    path = runs.write(tmp_path, runs.catch(), [None, None])
    _, (row,), compared, at = read(path)
    assert row.training is None and compared.pairs == ()
    (cells,) = texts(content.score_table([row], at))
    assert cells[3:9] == ["–"] * 6


def test_the_probability_of_improvement_counts_ties_by_half(tmp_path):
    a = runs.write(tmp_path / "a", runs.catch(), [1.0, 0.5, 0.0])
    b = runs.write(tmp_path / "b", runs.catch("model.core=gru"), [0.5])
    c = runs.write(tmp_path / "c", runs.catch("model.core=s5"), [-1.0, -1.0])
    _, _, compared, at = read(a, b, c)
    assert {pair.kind for pair in compared.pairs} == {numbers.TRAINING}
    assert np.isnan(compared.pairs[0].probability.low)  # of one seed
    found = {p.ours.letter + p.theirs.letter: float(p.probability.estimate) for p in compared.pairs}
    assert found == {"AB": pytest.approx(0.5), "AC": 1.0, "BC": 1.0}
    assert texts(content.pair_table(compared, at))[1][2] == "1.00 [0.44, 1.00]"


# ------------------------------------------------------------------------------------------- Atari


def atari_runs(tmp_path, name, table, *settings, **options):
    paths = []
    for game, normalised in table.items():
        values = [runs.score_of(game, value) for value in normalised]
        experiment = runs.atari(f"{game}-v5", *settings)
        path = tmp_path / f"{name}{game}"
        paths.append(runs.write(path, experiment, values, greedy=values, **options))
    return paths


def test_aggregates_over_games(tmp_path):
    # A third seed of one game has no partner in the other, and is left out with a note.
    table = {"Pong": [0.2, 0.4], "Breakout": [0.6, 1.2, 9.0]}
    _, rows, compared, _ = read(*atari_runs(tmp_path, "a", table))
    (overall,) = compared.overall
    found = {a.name: float(a.interval.estimate) for a in overall.aggregates}
    assert found == {
        "IQM": pytest.approx(0.5),
        "mean": pytest.approx(0.6),
        "median": pytest.approx(0.6),
        "optimality gap": pytest.approx(0.45),
    }
    for aggregate in overall.aggregates:
        assert aggregate.interval.low <= aggregate.interval.estimate <= aggregate.interval.high
    assert overall.seeds == 2 and "has 2 to 3 seeds of a task" in compared.notes[0]
    assert overall.profile.estimate[0] == 1.0 and overall.profile.estimate[-1] == 0.0
    assert compared.kind == numbers.GREEDY and len(rows) == 2


def test_tasks_without_references_are_left_out_of_the_aggregates_and_named(tmp_path):
    table = {"Pong": [0.2], "Breakout": [0.6]}
    catch = runs.write(tmp_path / "c", runs.catch(), [1.0], greedy=[1.0])
    _, _, compared, _ = read(catch, *atari_runs(tmp_path, "a", table))
    assert [one.tasks for one in compared.overall] == [("Breakout-v5", "Pong-v5")]
    assert "Left out of the aggregates: Catch-bsuite, for scores" in compared.notes[0]
    other = runs.write(tmp_path / "d", runs.catch("env.name=Breakout-MinAtar"), [5.0])
    _, _, compared, _ = read(catch, other)
    assert compared.overall == () and "There are no aggregates over tasks" in compared.notes[0]


def test_groups_are_aggregated_over_the_tasks_of_all(tmp_path):
    a = atari_runs(tmp_path, "a", {"Pong": [0.1], "Breakout": [0.2], "Alien": [9.0]})
    b = atari_runs(tmp_path, "b", {"Pong": [0.3], "Breakout": [0.4]}, "behaviour.rewards=aligned")
    _, _, compared, _ = read(*a, *b)
    means = [float(one.aggregates[1].interval.estimate) for one in compared.overall]
    np.testing.assert_allclose(means, [0.15, 0.35])
    assert "over the 2 tasks that all groups" in compared.notes[0]
    (pair,) = compared.pairs
    assert pair.tasks == ("Breakout-v5", "Pong-v5") and pair.probability.estimate == 0.0


def test_rivals_stand_beside_ours_with_their_marks(tmp_path):
    _, rows, compared, at = read(*atari_runs(tmp_path, "a", {"Pong": [0.5], "Breakout": [1.5]}))
    games = numbers.games(rows)
    table = content.rivals_table(games, compared.kind, at)
    columns = dict(zip(table.header, zip(*texts(table), strict=True), strict=True))
    assert columns["game"][:2] == ("Breakout", "Pong")
    assert columns["random"][:2] == ("1.70", "-20.70") and columns["human"][1] == "14.60"
    assert columns["STORM"][0] == "15.90" and columns["DreamerV3"][1] == "-4.00"
    ours = [runs.score_of("Breakout", 1.5), runs.score_of("Pong", 0.5)]
    assert columns["A"][:2] == tuple(f"{score:.2f}" for score in ours)
    assert columns["A"][2:] == ("1.00", "1.00")  # mean and median of 1.5 and 0.5
    drama = scores.systems()["Drama"]
    assert drama.unconfirmed and all(text.endswith("?") for text in columns["Drama"])
    assert not any(text.endswith("?") for text in columns["STORM"])
    storm = [
        scores.human_normalised(g, scores.systems()["STORM"].scores[g]) for g in columns["game"][:2]
    ]
    assert columns["STORM"][2] == f"{np.mean(storm):.2f}"
    assert any("no result to quote" in note for note in table.notes)
    assert any("420,000 frames" in note for note in table.notes)
    normalised = texts(content.normalised_table(games, compared.kind, at))
    assert [row[4] for row in normalised] == ["1.50", "0.50"]


def test_games_of_other_families_are_no_atari(tmp_path):
    path = runs.write(tmp_path, runs.catch("env.name=Breakout-MinAtar"), [5.0])
    _, rows, compared, at = read(path)
    assert numbers.games(rows) == []
    assert content.rivals_table([], compared.kind, at) is None


# ----------------------------------------------------------------------------------------- quality


def lane(scale=1.0, **changes):
    known = {
        "observation": [scale * h for h in (1.0, 2.0, 3.0)],
        "observation_copied": [2.0, 4.0, 6.0],
        "reward": [0.1, 0.2, None],
        "reward_constant": [0.5, 0.5, 0.5],
        "reward_accuracy": None,
        "ends": {"rows": 100, "found": 3, "accuracy": 0.9, "precision": None, "recall": 0.5},
        "calibration": {"predicted": [0.1, 0.9], "found": [0.0, 1.0], "rows": [10, 30]},
        "reconstruction": 0.5 * scale,
    }
    return {**known, **changes}


def of_quality(tmp_path, *lanes):
    data = {"iteration": 100, "step": 100, "context": 5, "horizon": 3, "seeds": list(lanes)}
    path = runs.write(tmp_path, runs.catch(), [1.0] * len(lanes), quality=data)
    return quality.qualities(groups.group_runs(records.read_runs([path])))


def test_quality_is_pooled_over_seeds(tmp_path):
    other = {"predicted": [0.3, 0.7], "found": [0.4, 1.0], "rows": [30, 0]}
    (found,) = of_quality(tmp_path, lane(), lane(3.0, calibration=other))
    assert found.curves["observation"].mean(0).tolist() == [2.0, 4.0, 6.0]
    assert np.isnan(found.curves["reward"][:, 2]).all() and "reward_accuracy" not in found.curves
    assert found.steps == (100,) and found.contexts == (5,) and found.shares == (0.0,)
    ends = found.ends
    assert ends["rows"] == 200 and ends["found"] == 6 and ends["accuracy"] == pytest.approx(0.9)
    assert ends["precision"] is None and ends["brier"] is None and found.reconstruction == 1.0
    predicted, real, rows = found.calibration
    np.testing.assert_allclose(predicted, [0.25, 0.9])  # (10 · 0.1 + 30 · 0.3) / 40
    np.testing.assert_allclose(real, [0.3, 1.0])
    np.testing.assert_array_equal(rows, [40, 30])


def test_quality_tolerates_what_is_missing(tmp_path):
    (found,) = of_quality(tmp_path, {}, lane(observation=[1.0], ends=None, calibration={}), None)
    assert found.seeds == 2 and found.curves["observation"].shape == (1, 1)
    assert found.calibration is None and found.ends["rows"] is None
    (empty,) = of_quality(tmp_path, {"observation": "x", "calibration": 3, "ends": [1]})
    assert empty.curves == {} and empty.reconstruction is None
