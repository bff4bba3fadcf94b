"""Human-normalised scores: known means and medians, marks of trust, damaged tables.

Golden numbers: shared/specs/drama.md sections 7.3 and 10.20.
"""

import configparser
import csv
from importlib import resources
from pathlib import Path

import pytest

from mbrl_jax.evaluate import scores

SYSTEMS = ("PPO", "SimPLe", "SPR", "TWM", "IRIS", "STORM", "DreamerV3", "Drama")


@pytest.fixture
def tables(tmp_path, monkeypatch):
    """Copies of the tables, read instead of the shipped ones, with fresh caches."""
    source = resources.files("mbrl_jax.evaluate").joinpath("data")
    (tmp_path / "data").mkdir()
    for file in source.iterdir():
        (tmp_path / "data" / file.name).write_text(file.read_text())
    monkeypatch.setattr(resources, "files", lambda package: tmp_path)
    scores.references.cache_clear()
    scores.systems.cache_clear()
    yield tmp_path / "data"
    scores.references.cache_clear()
    scores.systems.cache_clear()


def test_the_26_games_and_all_systems_are_there():
    assert len(scores.references()) == 26
    assert tuple(scores.systems()) == SYSTEMS
    for system in scores.systems().values():
        assert set(system.scores) == set(system.marks) == set(scores.references())


@pytest.mark.parametrize(
    "name, mean, median, superhuman",
    [("Drama", 1.0488, 0.2697, 8), ("STORM", 1.2221, 0.4246, 9)],
)
def test_golden_summaries_with_precise_references(name, mean, median, superhuman):
    summary = scores.summarise(scores.systems()[name].scores)
    assert summary.mean == pytest.approx(mean, abs=5e-5)
    assert summary.median == pytest.approx(median, abs=5e-5)
    assert summary.superhuman == superhuman


# The specification's recomputed numbers, with one or the other kind of references.
@pytest.mark.parametrize(
    "name, mean, median",
    [
        ("DreamerV3", 1.247, 0.494),
        ("IRIS", 1.047, 0.289),
        ("TWM", 0.957, 0.505),
        ("SPR", 0.617, 0.401),
        ("SimPLe", 0.333, 0.134),
        ("PPO", 0.106, 0.025),
    ],
)
def test_recomputed_summaries(name, mean, median):
    summary = scores.summarise(scores.systems()[name].scores)
    assert summary.mean == pytest.approx(mean, abs=1e-3)
    assert summary.median == pytest.approx(median, abs=1e-3)


def test_golden_mean_of_drama_with_rounded_references():
    rounded = scores.summarise(scores.systems()["Drama"].scores, scores.rounded_references())
    assert rounded.mean == pytest.approx(1.0481, abs=5e-5)


@pytest.mark.parametrize("name", SYSTEMS)
def test_printed_means_and_medians_follow_from_the_rows(name):
    system = scores.systems()[name]
    summary = scores.summarise(system.scores, scores.rounded_references())
    assert 100 * summary.mean == pytest.approx(system.mean_percent, abs=0.6)
    # PPO's printed median agrees with the precise references only (specification 7.3).
    median = min(
        (s.median for s in (summary, scores.summarise(system.scores))),
        key=lambda m: abs(100 * m - system.median_percent),
    )
    assert 100 * median == pytest.approx(system.median_percent, abs=0.8)


@pytest.mark.parametrize(
    "game, ratio",
    [
        ("Boxing", 6.5),
        ("CrazyClimber", 2.9),
        ("Gopher", 1.16),
        ("Jamesbond", 1.25),
        ("Krull", 7.6),
        ("KungFuMaster", 1.05),
        ("Pong", 1.01),
        ("RoadRunner", 1.8),
    ],
)
def test_games_in_which_drama_exceeds_the_human_score(game, ratio):
    by_game = scores.summarise(scores.systems()["Drama"].scores).by_game
    assert by_game[game] == pytest.approx(ratio, rel=0.02) and by_game[game] > 1


def test_rounded_references_are_the_published_rows():
    rounded = scores.rounded_references()
    assert rounded["Alien"] == (228, 7128) and rounded["Breakout"] == (2, 30)
    assert rounded["Pong"] == (-21, 15) and rounded["CrazyClimber"] == (10780, 35829)
    assert rounded["KungFuMaster"] == (258, 22736) and rounded["Krull"] == (1598, 2666)


def test_what_is_not_confirmed_says_so():
    systems = scores.systems()
    drama = systems["Drama"]
    remembered = [game for game, mark in drama.marks.items() if mark == "R"]
    assert remembered == ["Breakout", "Freeway", "Pong", "PrivateEye"]
    assert len(drama.unconfirmed) == 26 and drama.trust == "S"
    assert not any(systems[name].unconfirmed for name in SYSTEMS[:-1])


def test_protocols_that_differ_say_so():
    systems = scores.systems()
    assert [systems[n].sticky_actions for n in ("Drama", "STORM", "SimPLe")] == [False, True, True]
    assert systems["PPO"].sticky_actions is None and systems["PPO"].action_set is None
    assert systems["DreamerV3"].action_set == "full" and systems["Drama"].action_set == "minimal"
    assert all(system.frames == 400_000 for system in systems.values())


def test_random_is_0_and_human_is_1():
    for game, reference in scores.references().items():
        assert scores.human_normalised(game, reference.random) == 0
        assert scores.human_normalised(f"{game}-v5", reference.human) == 1


@pytest.mark.parametrize("name", ["Pong", "Pong-v5", "ALE/Pong-v5"])
def test_an_environment_names_its_game(name):
    assert scores.game_of(name) == "Pong"


def test_other_games_are_refused():
    with pytest.raises(ValueError, match="none of the 26 games.*MsPacman"):
        scores.game_of("Tennis-v5")


@pytest.mark.parametrize("bad", [{}, {"Pong": float("nan")}])
def test_a_summary_needs_finite_scores(bad):
    with pytest.raises(ValueError, match="all must be finite"):
        scores.summarise(bad)


def test_part_of_the_games_can_be_summarised():
    summary = scores.summarise({"Pong-v5": 14.6, "Boxing": 0.1})
    assert summary == ({"Pong-v5": 1.0, "Boxing": 0.0}, 0.5, 0.5, 0)


@pytest.mark.parametrize(
    "file, old, new, sentence",
    [
        ("references", "Pong,-20.7,14.6", "Pong,14.6,-20.7", "human is not above random"),
        ("references", "Pong,-20.7,14.6\n", "", "25 games instead of 26"),
        ("references", "game,random", "game,rand", "instead of"),
        ("references", "Pong,-20.7,14.6", "Pong,-20.7", "too many or too few"),
        ("scores", "IRIS,Pong,15,C", "IRIS,Pong,15,X", "the trust is none of"),
        ("scores", "IRIS,Pong,15,C", "IRIS,Pong,inf,C", "not finite"),
        ("scores", "IRIS,Pong,15,C\n", "", "not just the 26 games"),
        ("scores", "IRIS,Pong,15,C", "IRIS,Qbert,15,C", "twice"),
        ("scores", "IRIS,Pong,15,C", "IRIS,Pong,15,C\nMine,Pong,15,C", "does not describe Mine"),
        ("systems", "400000,no,full", "400000,perhaps,full", "yes, no or empty"),
    ],
)
def test_damaged_tables_are_refused(tables, file, old, new, sentence):
    path = tables / f"atari100k_{file}.csv"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    with pytest.raises(ValueError, match=sentence):
        scores.systems()


def test_the_tables_are_installed_with_the_package():
    setup = configparser.ConfigParser()
    setup.read(Path(__file__).parents[2] / "setup.cfg")
    pattern = setup["options.package_data"]["mbrl_jax.evaluate"]
    folder = Path(str(resources.files("mbrl_jax.evaluate")))
    assert {path.name for path in folder.glob(pattern)} == {
        f"atari100k_{name}.csv" for name in ("references", "scores", "systems")
    }


def test_the_tables_are_plain_csv():
    for file in resources.files("mbrl_jax.evaluate").joinpath("data").iterdir():
        rows = list(csv.reader(file.read_text().splitlines()))
        assert len({len(row) for row in rows}) == 1
