"""Observations that a decoder's loss does not take are found before anything is trained."""

import pytest

from mbrl_jax.envs import envpool, gymnax, probe
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config, first_look
from mbrl_jax.train import run
from tests import small


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["env.name=CartPole-v1"], "model.reconstruction=bernoulli takes observations between 0"),
        (
            ["env=envpool", "env.name=CartPole-v1"],
            "use --set=model.reconstruction=squared or --set=model.reconstruction=symlog$",
        ),
        (
            ["env=envpool", "env.name=MiniGrid-Empty-5x5-v0"],
            "and those of MiniGrid-.* reach from 0",
        ),
        (
            ["model=rssm", "model.reconstruction=bernoulli", "env.name=CartPole-v1"],
            "use --set=model.reconstruction=squared or --set=model.reconstruction=symlog$",
        ),
    ],
)
def test_a_likelihood_of_numbers_in_0_and_1_is_refused_on_others(tmp_path, settings, sentence):
    experiment = config.override(small.catch(), settings)
    with pytest.raises(ConfigError, match=sentence):
        run.run(experiment, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*"))


@pytest.mark.parametrize(
    "settings", [[], ["env.name=Breakout-MinAtar"], ["env.name=Pendulum-v1", "model=ensemble"]]
)
def test_what_fits_is_not_asked(settings):
    assert first_look.require_reconstructed(config.override(small.catch(), settings)) is None


def test_a_mean_in_0_and_1_warns_on_others():
    experiment = config.override(
        small.catch(), ["env.name=CartPole-v1", "model.reconstruction=sigmoid"]
    )
    said = first_look.require_reconstructed(experiment)
    assert said is not None and said.endswith(
        "use --set=model.reconstruction=squared or --set=model.reconstruction=symlog"
    )


@pytest.mark.parametrize(
    ("env", "low", "high"),
    [
        (gymnax.Config("Catch-bsuite"), 0, 1),
        (gymnax.Config("Breakout-MinAtar"), 0, 1),
        (probe.Config("match"), -1, 1),
        (envpool.Config("MiniGrid-Empty-5x5-v0", ("image",)), 0, 1),  # bytes are scaled
    ],
)
def test_the_range_of_the_first_rows(env, low, high):
    assert first_look.seen(env) == (low, high)
