"""Environments by the names that they have outside, wherever an environment is named."""

import pytest

from launch import flags
from mbrl_jax.envs import atari, envpool, gymnax, names, probe
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment.experiment import with_settings

NAMES = {
    "CheetahRun-v1": envpool.Config("CheetahRun-v1"),
    "envpool:WalkerWalk-v1": envpool.Config("WalkerWalk-v1"),
    "envpool:CartPole-v1": envpool.Config("CartPole-v1"),
    "CartPole-v1": gymnax.Config("CartPole-v1"),
    "gymnax:Breakout-MinAtar": gymnax.Config("Breakout-MinAtar"),
    "Pong-v5": atari.Config("Pong-v5"),
    "probe:delay": probe.Config("delay"),
}


@pytest.mark.parametrize("text", NAMES)
def test_a_name_stands_for_its_config(text):
    experiment = flags.load_experiment("drama_catch")
    assert with_settings(experiment, [f"env={text}"]).env == NAMES[text]
    assert flags.load_environment(text) == NAMES[text]


def test_what_is_set_stays_where_it_fits():
    experiment = flags.load_experiment("drama_catch")
    found = with_settings(experiment, ["env.max_steps=7", "env=CartPole-v1"]).env
    assert found == gymnax.Config("CartPole-v1", max_steps=7)


def test_near_names_stand_there_once():
    near = names.nearest("CartPol-v1")
    assert near[0] == "CartPole-v1" and len(set(near)) == len(near)
    experiment = flags.load_experiment("drama_catch")
    with pytest.raises(ConfigError, match="names like it are CheetahRun-v1") as error:
        with_settings(experiment, ["env=CheetaRun-v1"])
    assert "mbrl_jax.envs has" in str(error.value)
    with pytest.raises(ConfigError, match="write FILE.py:FUNCTION"):
        flags.load_environment("envpol:Pong-v5")
