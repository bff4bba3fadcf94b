"""The rows that offline Pendulum learns from: what the file holds, and how it was played."""

import zipfile

import jax
import numpy as np
import pytest

from experiments import mopo_pendulum
from experiments.studies import pendulum_episodes
from mbrl_jax import datasets
from mbrl_jax.envs import gymnax, rules

pytestmark = pytest.mark.usefixtures("quick_compile")

(_, STORED), *_ = mopo_pendulum.get_experiment().data


def test_the_stored_rows_are_those_that_the_experiment_names():
    rows = datasets.load(STORED, gymnax.Config("Pendulum-v1").make().spec)
    summary = datasets.summarise(rows)
    assert (summary.transitions, summary.episodes, summary.terminals) == (8000, 40, 0)
    assert f"{summary.mean_return:.0f}" in mopo_pendulum.__doc__
    described = datasets.read_metadata(STORED.path)
    assert (described["num_random"], described["num_controlled"], described["noise"]) == (20, 20, 1)
    within = ~rows.timestep.is_last[:-1]
    before = rows.timestep.observation[:-1][within]
    action = rows.action[:-1][within]
    reward = jax.vmap(rules.pendulum_reward, (0, 0, None))(before, action, None)
    np.testing.assert_allclose(rows.timestep.reward[1:][within], reward, rtol=1e-3, atol=1e-3)
    names = {name.removesuffix(".npy") for name in zipfile.ZipFile(STORED.path).namelist()}
    of_d4rl = {"observations", "actions", "rewards", "terminals", "timeouts", "next_observations"}
    assert of_d4rl <= names


def test_one_part_is_uniform_and_the_other_swings_up():
    rows = jax.device_get(pendulum_episodes.episodes(3, num_random=4, num_controlled=4, noise=0.0))
    assert rows.timestep.reward.shape == (201, 8)
    np.testing.assert_array_equal(rows.timestep.is_last[-1], True)
    returns = rows.timestep.reward.sum(0)
    assert returns[4:].min() > -450.0 and returns[:4].mean() < -700.0
    uniform = np.sort(rows.action[:, :4].ravel())
    np.testing.assert_allclose(uniform, np.linspace(-1.0, 1.0, uniform.size), atol=0.15)
    assert (rows.timestep.observation[-50:, 4:, 0] > 0.95).all()  # upright, and held
