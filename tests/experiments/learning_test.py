"""The experiments reach what their docstrings promise (minutes each).

bash tests/run.sh -m slow tests/experiments/learning_test.py
"""

import dataclasses

import pytest

from experiments import drama_catch, drama_minatar, mbpo_pendulum
from mbrl_jax.cores import gru, mamba
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import with_steps
from mbrl_jax.train.run import run

pytestmark = pytest.mark.slow


def _count_above(returns: list[float | None], bar: float) -> int:
    return sum(value is not None and value >= bar for value in returns)


@pytest.mark.parametrize("core", [None, gru.Config(width=64, layers=2), mamba.Config(width=64)])
def test_drama_learns_catch(core, tmp_path):
    experiment = drama_catch.get_experiment()
    if core is not None:
        model = dataclasses.replace(experiment.model, core=core)
        experiment = dataclasses.replace(experiment, model=model)
    result = run(experiment, tmp_path, num_seeds=4)
    assert _count_above(result.final_return, 0.95) >= 3
    assert _count_above(result.evaluation.episode_return.mean(axis=1).tolist(), 0.98) >= 3


def test_ppo_learns_catch(tmp_path):
    experiment = config.override(drama_catch.get_experiment(), ["behaviour=ppo"])
    result = run(experiment, tmp_path, num_seeds=4)
    assert _count_above(result.final_return, 0.95) >= 3
    assert _count_above(result.evaluation.episode_return.mean(axis=1).tolist(), 0.98) >= 3


def test_mbpo_swings_the_pendulum_up(tmp_path):
    result = run(mbpo_pendulum.get_experiment(), tmp_path, num_seeds=3)
    assert _count_above(result.final_return, -400.0) >= 2


def test_drama_plays_breakout(tmp_path):
    experiment = with_steps(drama_minatar.get_experiment(), 20_000)
    result = run(experiment, tmp_path, num_seeds=2)
    # A tenth of the actions is random until then; random play has 0.5.
    assert _count_above(result.final_return, 3.0) == 2
