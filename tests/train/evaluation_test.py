"""Evaluation: which episodes count, human-normalised scores, films."""

import contextlib
import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from mbrl_jax.envs import atari, envpool, gymnax
from mbrl_jax.evaluate import quality
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import build
from mbrl_jax.experiment.members import Members
from mbrl_jax.loops import play, seeds
from mbrl_jax.loops.steps import Evaluation
from mbrl_jax.train import report, run, tables, trained
from mbrl_jax.train.programs import make_programs
from tests import small
from tests.loops.scripted import no_action, scripted

pytestmark = pytest.mark.usefixtures("programs_kept")

KEYS = functools.partial(seeds.seed_keys, 3, 2)


def evaluation(*returns) -> Evaluation:
    returns = np.array(returns, np.float32)
    return Evaluation(returns, np.full(returns.shape, 7), np.ones(returns.shape, bool))


# ---------------------------------------------------------------------------------- which episodes


def both_protocols(lengths, num_episodes, max_steps=1_000):
    ways = (play.play_episodes, play.play_first_episodes)
    return [p(scripted(lengths), no_action, None, num_episodes, max_steps) for p in ways]


def test_the_published_protocol_is_biased_to_short_episodes():
    # Lane 0 plays episodes of 3 steps, lane 1 of 20; a row between two episodes is no step.
    clean, published = both_protocols([[3], [20]], num_episodes=6)
    # Lane 0 ends episodes at rows 3, 7, 11, 15, 19, lane 1 its first one at row 20.
    np.testing.assert_array_equal(published.length, [[3, 3, 3, 3, 3, 20]])
    np.testing.assert_array_equal(clean.length, [[3, 20, 3, 20, 3, 20]])
    assert clean.episode_return.mean() == (3 * 3 + 3 * 20) / 6 == 11.5
    assert published.episode_return.mean() == (5 * 3 + 20) / 6
    assert published.finished.all()


def test_episodes_that_end_at_the_same_step_count_by_lane_and_the_rest_is_dropped():
    _, published = both_protocols([[9], [4, 1], [4, 2], [4]], num_episodes=4)
    np.testing.assert_array_equal(published.length, [[4, 4, 4, 1]])
    _, published = both_protocols([[9], [4, 1], [4, 2], [4]], num_episodes=2)
    np.testing.assert_array_equal(published.length, [[4, 4]])


def test_an_episode_that_does_not_end_is_cut_under_the_published_protocol_too():
    _, published = both_protocols([[30, 5], [4]], num_episodes=4, max_steps=10)
    # Lane 1 ends at rows 4, 9, 14; lane 0 is cut at 10.
    np.testing.assert_array_equal(published.length, [[4, 4, 10, 4]])
    np.testing.assert_array_equal(published.finished, [[True, True, False, True]])


@pytest.fixture(scope="module")
def catch():
    """Fresh agents on Catch, whose episodes all take nine steps: what `restore_run` returns."""
    experiment = small.catch()
    programs = make_programs(experiment, build(experiment), Members(3, 2))
    return experiment, programs, programs.init(KEYS()).agent, KEYS()


def test_the_published_protocol_on_a_jax_environment(catch):
    found = trained.evaluate_seeds(*catch, 40, protocol="published")
    assert found.length.shape == (2, 40) and (found.length == 9).all() and found.finished.all()
    assert set(np.unique(found.episode_return)) <= {-1.0, 1.0}
    # 32 lanes differ: their balls fall in other columns.
    assert len(np.unique(found.episode_return[:, :32])) == 2


def test_an_unknown_protocol_is_refused(catch):
    with pytest.raises(config.ConfigError, match="'best' is none of clean, published"):
        trained.evaluate_seeds(*catch, 2, protocol="best")


def test_the_table_says_what_the_published_protocol_does(capsys, catch):
    tables.print_evaluation(evaluation([1.0, 1.0]), catch[0], "runs/x", "published")
    said = capsys.readouterr().out
    assert "the first 2 episodes to end in any of 32 lanes" in said and "biased" in said
    tables.print_evaluation(evaluation([1.0, 1.0]), catch[0], "runs/x", "clean")
    said = capsys.readouterr().out
    assert not any(word in said for word in ("biased", "human", "cut"))
    some_cut = evaluation([1.0, 1.0])._replace(finished=np.array([[True, False]]))
    tables.print_evaluation(some_cut, catch[0], "runs/x", "clean")
    assert "cut at eval_max_steps" in capsys.readouterr().out


def test_the_world_model_is_measured_on_episodes_of_a_jax_environment(catch):
    _, programs, agent, keys = catch
    measured = quality.Config(lanes=4, rows=30, context=1, horizon=4, starts=26)
    found = programs.quality(agent, keys, measured)
    assert found.error.shape == (2, 4, 26, 4) and np.isfinite(found.error).all()
    counts = found.is_counted
    # An episode of Catch ends after nine steps, with a catch (1) or a miss (-1), and only then.
    np.testing.assert_array_equal(abs(found.real_reward[counts]), found.is_terminal[counts])
    assert found.is_terminal[counts].any()
    # Ten rows an episode: h rows ahead of the row at place p lie in it where p + h < 10.
    place = np.arange(26) % 10
    expected = place[:, None] + np.arange(1, 5) < 10
    np.testing.assert_array_equal(counts, np.broadcast_to(expected, counts.shape))
    # The ball moves at every step and the paddle may; at the end they can share a pixel.
    changed = 50 * found.copied[..., 0][counts[..., 0]]
    assert set(np.unique(changed.round())) <= {1.0, 2.0, 3.0, 4.0}


def test_the_world_model_is_measured_beside_the_policys_path(catch):
    _, programs, agent, keys = catch
    # A policy that always goes right, by a large bias, soon stands at the wall: one pixel falls.
    actor = dict(agent.behaviour.params["actor"])
    output = max(name for name in actor if name.startswith("Dense"))
    bias = actor[output]["bias"] + jnp.array([0.0, 0.0, 50.0])
    actor[output] = {**actor[output], "bias": bias}
    learner = agent.behaviour._replace(params={**agent.behaviour.params, "actor": actor})
    agent = agent._replace(behaviour=learner)

    def moves(share):
        """Share of rows in which the paddle moves too, after the first three of an episode."""
        measured = quality.Config(4, 30, context=1, horizon=4, starts=26, random_share=share)
        found = programs.quality(agent, keys, measured)
        late = np.broadcast_to(np.arange(26) % 10 > 2, found.is_counted.shape[:-1])
        return (50 * found.copied[..., 0] > 2.5)[late & found.is_counted[..., 0]].mean()

    # At a wall an action moves the paddle one time in three, elsewhere two times in three.
    assert moves(0.0) == 0.0 and 0.05 < moves(0.3) < 0.4 < moves(1.0) < 2 / 3
    with pytest.raises(ValueError, match="random_share=1.5 must lie between 0 and 1"):
        quality.Config(random_share=1.5).possible()


# ------------------------------------------------------------------------ human-normalised scores


def playing(env):
    return dataclasses.replace(small.catch(), env=env)


def test_pong_is_normalised_in_the_table_and_the_file(tmp_path, capsys):
    experiment, found = playing(atari.Config("Pong-v5")), evaluation([13.0, 15.0], [-21.0, -20.0])
    report.write_evaluation(tmp_path, experiment, found)
    written = json.loads((tmp_path / "evaluation.json").read_text())["human_normalised"]
    # Random play scores -20.7 and a human tester 14.6.
    by_hand = [(14.0 + 20.7) / 35.3, (-20.5 + 20.7) / 35.3]
    np.testing.assert_allclose(written.pop("mean"), by_hand, rtol=1e-6)
    assert written == {"game": "Pong", "random": -20.7, "human": 14.6}
    tables.print_evaluation(found, experiment, "runs/pong", "clean")
    said = capsys.readouterr().out
    assert "0.983" in said and "0.006" in said
    assert "random play (-20.7)" in said and "human tester (14.6) in Pong" in said
    assert "1511.06581" in said


def test_returns_that_are_not_finite_are_null_in_the_file_and_named_in_the_table(tmp_path, capsys):
    experiment = playing(atari.Config("Pong-v5"))
    found = evaluation([1.0, 3.0], [np.inf, -np.inf], [np.inf, 0.0], [np.nan, 0.0])
    report.write_evaluation(tmp_path, experiment, found)

    def refuse(name):
        raise AssertionError(name)

    text = (tmp_path / "evaluation.json").read_text()
    written = json.loads(text, parse_constant=refuse)
    assert written["mean"] == [2.0, None, None, None]
    assert written["returns"] == [[1.0, 3.0], [None, None], [None, 0.0], [None, 0.0]]
    assert written["human_normalised"]["mean"][1:] == [None, None, None]
    tables.print_evaluation(found, experiment, "runs/pong", "clean")
    said = capsys.readouterr().out
    assert said.count("not finite") == 3 and "nan" not in said and "inf" not in said


@pytest.mark.parametrize(
    "env",
    [
        gymnax.Config("Breakout-MinAtar"),  # not the game of that name
        atari.Config("Tennis-v5"),
        envpool.Config("CartPole-v1"),
    ],
)
def test_other_tasks_have_no_human_score(tmp_path, env):
    report.write_evaluation(tmp_path, playing(env), evaluation([1.0]))
    assert "human_normalised" not in json.loads((tmp_path / "evaluation.json").read_text())


# ------------------------------------------------------------------------------------------- films


def test_a_film_shows_an_episode_from_its_first_row_to_its_last():
    (film,) = play.play_film(scripted([[5, 3]]), no_action, None, 1_000)
    np.testing.assert_array_equal(film.frames, np.arange(6)[:, None])
    assert film[1:] == (1, 5.0, 5, True)
    (film,) = play.play_film(scripted([[5]]), no_action, None, 3)
    np.testing.assert_array_equal(film.frames, np.arange(4)[:, None])
    assert film[1:] == (1, 3.0, 3, False)


@pytest.mark.parametrize(("length", "every"), [(7, 1), (8, 2), (14, 2), (15, 4), (50, 8)])
def test_of_a_long_episode_every_kth_frame_is_kept_and_the_last(monkeypatch, length, every):
    monkeypatch.setattr("mbrl_jax.loops.play.MAX_FRAMES", 8)
    (film,) = play.play_film(scripted([[length]]), no_action, None, 1_000)
    shown = film.frames[:, 0].tolist()
    assert film.every == every and len(shown) <= 8
    assert shown == [*range(0, length, every), length] and film.length == length


def test_a_gif_of_each_seed_is_written(tmp_path, capsys, catch):
    films = trained.film_seeds(*catch, tmp_path / "play.gif")
    assert [path.name for path, _ in films] == ["play_0.gif", "play_1.gif"]
    for path, film in films:
        assert film.frames.shape == (10, 10, 5) and film.length == 9
        with Image.open(path) as gif:
            # Ten by five pixels, 25 times as large; in Catch the ball moves at every step.
            assert gif.n_frames == 10 and gif.size == (125, 250)
            for i, frame in enumerate(film.frames):
                gif.seek(i)
                seen = np.asarray(gif.convert("L"))
                np.testing.assert_array_equal(seen, 255 * np.kron(frame, np.ones((25, 25))))
    tables.print_films(films)
    said = capsys.readouterr().out
    assert said.count("in 9 steps: ") == 2 and str(films[1][0]) in said


def test_the_film_is_the_first_episode_of_the_evaluation():
    experiment = playing(envpool.Config("CartPole-v1"))
    programs = make_programs(experiment, build(experiment), Members(3, 2))
    keys = KEYS()
    template = programs.arguments(keys)[("init",)][1]
    rows = jax.tree.map(lambda x: np.zeros(x.shape, x.dtype), template)
    with contextlib.closing(programs):
        agent = programs._compiled.call(("init",), keys, rows).agent
        found = trained.evaluate_seeds(experiment, programs, agent, keys, 3)
        films = programs.film(agent, trained.keys_of(keys, "evaluate"), 10_000)
    assert [film.length for film in films] == found.length[:, 0].tolist()
    with pytest.raises(config.ConfigError, match="nothing to show: CartPole-v1 is seen as vectors"):
        trained.film_seeds(experiment, programs, agent, keys, "play.gif")


def test_a_gif_that_cannot_be_written_is_refused(tmp_path):
    for name in ("play.mp4", "no/such/play.gif"):
        with pytest.raises(config.ConfigError, match=r"must end in \.gif and lie in"):
            report.gif_paths(tmp_path / name, small.catch(), 1)
    assert report.gif_paths(tmp_path / "a.gif", small.catch(), 1) == [tmp_path / "a.gif"]


@pytest.mark.parametrize(
    ("protocol", "shown"), [({}, slice(0, 3)), ({"colour": False, "stack": 4}, slice(3, 4))]
)
def test_of_stacked_frames_the_newest_is_shown(tmp_path, protocol, shown):
    experiment = playing(atari.Config("Pong-v5", atari.Protocol(**protocol)))
    channels = experiment.env.make().spec.observation.shape[-1]
    frames = np.random.default_rng(0).integers(0, 4, (5, 64, 64, channels), np.uint8) * 80
    report.write_film(tmp_path / "play.gif", experiment, frames)
    with Image.open(tmp_path / "play.gif") as gif:
        assert gif.n_frames == 5 and gif.size == (256, 256)
        gif.seek(4)
        seen = np.asarray(gif.convert("RGB"))[::4, ::4]
    np.testing.assert_array_equal(seen, np.broadcast_to(frames[4][..., shown], (64, 64, 3)))


@pytest.mark.slow
def test_films_of_a_run_come_with_and_without_files(tmp_path):
    run.run(small.catch(), tmp_path / "run", num_seeds=2)
    films = trained.film_run(tmp_path / "run")
    written = trained.film_run(tmp_path / "run", tmp_path / "play.gif")
    for i, (film, same) in enumerate(zip(films, written, strict=True)):
        np.testing.assert_array_equal(film.frames, same.frames)
        assert film.frames.shape == (10, 10, 5) and film[1:] == same[1:]
        with Image.open(tmp_path / f"play_{i}.gif") as gif:
            assert gif.format == "GIF"
    with pytest.raises(config.ConfigError, match="holds no run"):
        trained.film_run(tmp_path)


# ---------------------------------------------------------------------------- under other settings


def test_a_run_is_judged_under_other_settings(tmp_path):
    run.run(small.catch(), tmp_path, inside=(("behaviour.gamma", (0.9, 0.99)),))
    before = (tmp_path / "config.json").read_text()
    restored = trained.restore_run(tmp_path, settings=["eval_max_steps=3", "behaviour.entropy=0"])
    assert restored[0].behaviour.entropy == 0.0
    found = trained.evaluate_seeds(*restored, 2)
    assert (found.length == 3).all() and not found.finished.any()
    assert (tmp_path / "config.json").read_text() == before
    for settings, said in [
        (["behaviour.actor_width=9"], "actor_width=9 would change the shapes of what was trained"),
        (["behaviour.gamma=0.5"], "behaviour.gamma is 0.9, 0.99 from member to member of this run"),
        (["behaviour.width=9"], "behaviour.width"),
        (["eval_every=-1"], "eval_every=-1"),
    ]:
        with pytest.raises(config.ConfigError, match=said):
            trained.restore_run(tmp_path, settings=settings)
