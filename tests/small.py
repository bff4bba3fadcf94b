"""Systems small enough to compile in seconds."""

import dataclasses

from experiments import drama_catch, mbpo_pendulum
from mbrl_jax.cores import gru
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment, for_debug


def catch() -> Experiment:
    """Drama with a tiny GRU core on Catch."""
    experiment = for_debug(drama_catch.get_experiment())
    model = dataclasses.replace(experiment.model, core=gru.Config(width=8))
    return dataclasses.replace(experiment, model=model)


def catch_with_ppo() -> Experiment:
    """The same learned by PPO, with two minibatches."""
    return config.override(catch(), ["behaviour=ppo", "behaviour.num_minibatches=2"])


def pendulum() -> Experiment:
    """The tiny ensemble with SAC on Pendulum."""
    return for_debug(mbpo_pendulum.get_experiment())
