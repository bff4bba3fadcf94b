"""Every experiment file runs from the first row to its pictures, small."""

import dataclasses
import importlib
import math

import pytest

from launch.flags import experiment_names
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import build, for_debug, with_steps
from mbrl_jax.loops.phases import Phase
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.train.run import run
from mbrl_jax.train.training import chunk_bounds
from tests import small

pytestmark = pytest.mark.usefixtures("quick_compile")


def _get(name: str):
    return importlib.import_module(f"experiments.{name}").get_experiment()


# Other tasks for the systems of `drama_catch`, `dreamerv3_catch` and `storm_catch`; their
# environments and nets have tests of their own.
SIBLINGS = ("drama_memory", "drama_minatar", "drama_pong_small", "dreamerv3_dmc")
SIBLINGS += ("dreamerv3_minatar", "storm_atari100k")


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] if name in SIBLINGS else [])
        for name in experiment_names()
    ],
)
def test_an_experiment_runs_in_debug(name, tmp_path):
    experiment = for_debug(_get(name))
    result = run(experiment, tmp_path, seed=1, num_seeds=2)
    assert len(result.final_return) == 2 and result.frozen_at == [-1, -1]
    assert result.evaluation.episode_return.shape == (2, experiment.eval_episodes)
    rows = read_metrics(tmp_path)
    assert rows[-1]["step"] == experiment.steps
    # A model that is fitted in closed form has no gradient, and says how many terms it has.
    names = ("model/gradient_norm", "model/terms")
    learned = [row[name] for row in rows for name in names if row.get(name) is not None]
    assert any(0 < value < math.inf for value in learned)
    for picture in result.pictures:
        assert picture.stat().st_size > 5_000


@pytest.mark.parametrize("name", experiment_names())
def test_an_experiment_says_how_to_run_it_and_what_to_expect(name):
    text = importlib.import_module(f"experiments.{name}").__doc__
    assert f"python -m launch.train --experiment={name}" in text
    assert "Expect" in text and "minute" in text


@pytest.mark.parametrize("name", experiment_names())
def test_an_experiment_survives_json_and_validation(name):
    experiment = _get(name)
    config.validate(experiment)
    config.override(experiment, experiment.debug)  # each of them names a field
    assert config.from_json(config.to_json(experiment)) == experiment


def test_equal_configs_build_equal_records():
    experiment = _get("drama_catch")
    assert build(experiment).world_model is build(_get("drama_catch")).world_model


def test_a_phase_without_collecting_learns_from_what_is_stored(tmp_path):
    phases = (Phase(20, learn=False), Phase(5, collect=False))
    experiment = dataclasses.replace(small.catch(), phases=phases)
    result = run(experiment, tmp_path)
    rows = read_metrics(tmp_path)
    assert rows[-1]["count/updates"] == 5 and rows[-1]["step"] == 25
    assert rows[-1]["env_steps"] == rows[-2]["env_steps"] == 18
    assert result.frozen_at == [-1]


def test_ppo_takes_over_what_the_actor_critic_was_told(tmp_path):
    before = small.catch()
    experiment = small.catch_with_ppo()
    assert experiment.behaviour.actor_width == before.behaviour.actor_width
    assert experiment.behaviour.optimiser == before.behaviour.optimiser
    assert config.from_json(config.to_json(experiment)) == experiment
    result = run(experiment, tmp_path)
    rows = read_metrics(tmp_path)
    assert result.frozen_at == [-1] and rows[-1]["behaviour/kl"] >= 0


def test_steps_change_the_last_phase_or_stop_before_it():
    whole = _get("drama_catch")
    experiment = with_steps(whole, 2_000)
    assert [phase.iterations for phase in experiment.phases] == [500, 1_400, 100]
    short = with_steps(experiment, 700)
    assert short.steps == 700 and short.phases == experiment.phases
    bounds = [(start, stop) for _, start, stop in chunk_bounds(short, 450)]
    assert bounds == [(450, 500), (500, 600), (600, 700)]
    assert with_steps(short, whole.steps) == whole  # a run that stopped early can go on
    with pytest.raises(config.ConfigError, match="must be positive"):
        with_steps(whole, 0)
