"""A model that never imagines ends, where episodes end: a sentence, once."""

import dataclasses

import jax.numpy as jnp
import pytest

import mbrl_jax
from mbrl_jax.envs.spec import make_environment
from mbrl_jax.experiment.experiment import with_settings, with_steps
from mbrl_jax.train.progress import Quiet
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec
from mbrl_jax.world_models import ensemble, sindy, tdmpc
from mbrl_jax.world_models.combinators import early_stopped, known, pessimistic
from tests import small

SPEC = EnvSpec(ArraySpec((1,), "float32"), BoundedSpec(1))


@dataclasses.dataclass(frozen=True)
class Short:
    """Episodes of three steps with reward 1, which end for good or by a time limit."""

    dies: bool = True

    def make(self):
        def reset(key):
            return jnp.zeros(()), jnp.zeros((1,))

        def step(key, state, action):
            ends = state >= 2
            terminal = jnp.logical_and(ends, self.dies)
            truncated = jnp.logical_and(ends, not self.dies)
            return state + 1, jnp.full((1,), state), jnp.ones(()), terminal, truncated

        return make_environment(SPEC.action, reset, step)


class Listener(Quiet):
    """Keeps what a run warns of."""

    def __init__(self):
        self.said = []

    def warn(self, sentence):
        self.said.append(sentence)


def warnings(path, dies, *settings):
    listener = Listener()
    experiment = dataclasses.replace(small.pendulum(), env=Short(dies))
    mbrl_jax.run(with_steps(with_settings(experiment, settings), 60), path, reporter=listener)
    return [said for said in listener.said if "always go on" in said]


@pytest.mark.usefixtures("quick_compile")
def test_ends_that_are_never_imagined_are_named_once(tmp_path):
    phases = ("log_every=20",)
    (said,) = warnings(tmp_path / "default", True, *phases)
    assert said.startswith("until step ") and "termination=true" in said
    assert not warnings(tmp_path / "limit", False, *phases)
    assert not warnings(tmp_path / "learned", True, "model.termination=true", *phases)


def test_models_say_whether_they_imagine_ends():
    wrapped = pessimistic.Config(model=early_stopped.Config(model=ensemble.Config()))
    for never in (ensemble.Config(), tdmpc.Config(), sindy.Config(), wrapped):
        assert never.make(SPEC).endless
    assert known.Config(model=ensemble.Config()).make(SPEC).endless
    for config in (
        *(ensemble.Config(termination=True), tdmpc.Config(termination=True)),
        known.Config(model=ensemble.Config(), ends="never"),
    ):
        assert not config.make(SPEC).endless
