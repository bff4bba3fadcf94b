"""gymnax environments as we adapt them."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import doctor, gymnax
from mbrl_jax.envs.spec import random_action
from mbrl_jax.types import ArraySpec, BoundedSpec, DiscreteSpec, EnvSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

CONFIGS = {
    "catch": gymnax.Config("Catch-bsuite"),
    "breakout": gymnax.Config("Breakout-MinAtar"),
    "cartpole": gymnax.Config("CartPole-v1", max_steps=5),
    "memory": gymnax.Config("MemoryChain-bsuite"),
    "longer memory": gymnax.Config("MemoryChain-bsuite", params=("memory_length=11",)),
    "pendulum": gymnax.Config("Pendulum-v1"),
}
SPECS = {
    "catch": EnvSpec(ArraySpec((10, 5), "float32"), DiscreteSpec(3)),
    "breakout": EnvSpec(ArraySpec((10, 10, 4), "float32"), DiscreteSpec(3)),
    "cartpole": EnvSpec(ArraySpec((4,), "float32"), DiscreteSpec(2)),
    "memory": EnvSpec(ArraySpec((3,), "float32"), DiscreteSpec(2)),
    "longer memory": EnvSpec(ArraySpec((3,), "float32"), DiscreteSpec(2)),
    "pendulum": EnvSpec(ArraySpec((3,), "float32"), BoundedSpec(1)),
}
ROWS = 420


def _play(config):
    """Environment, first row and ROWS following ones under random actions."""
    environment = config.make()

    @jax.jit
    def run(key):
        state, first = environment.reset(key)

        def body(state, step_key):
            action_key, env_key = jax.random.split(step_key)
            action = random_action(environment.spec.action, action_key)
            return environment.step(state, env_key, action)

        return first, jax.lax.scan(body, state, jax.random.split(key, ROWS))[1]

    return environment, *run(jax.random.key(0))


@pytest.fixture(scope="module")
def played():
    """By name: what `_play` gives. The scan in it fails if a state's structure changes."""
    return {name: _play(config) for name, config in CONFIGS.items()}


def _episode_lengths(rows):
    """Environment steps of the complete episodes."""
    last = np.flatnonzero(rows.is_last)
    return np.diff(last, prepend=-2) - 1  # a first row is no step; the very first is not in `rows`


@pytest.mark.parametrize("name", CONFIGS)
def test_spec(played, name):
    assert played[name][0].spec == SPECS[name]


@pytest.mark.parametrize("name", CONFIGS)
def test_rows_have_the_shape_and_dtype_that_the_spec_says(played, name):
    environment, first, rows = played[name]
    described = environment.spec.observation
    assert rows.observation.shape == (ROWS, *described.shape)
    assert first.observation.shape == described.shape
    assert {str(first.observation.dtype), str(rows.observation.dtype)} == {described.dtype}
    assert rows.reward.dtype == jnp.float32 and rows.is_terminal.dtype == bool


@pytest.mark.parametrize("name", CONFIGS)
def test_every_first_row_follows_a_last_one_and_has_no_reward(played, name):
    rows = jax.tree.map(np.asarray, played[name][2])
    np.testing.assert_array_equal(rows.is_first[1:], rows.is_last[:-1])
    assert not rows.is_first[0] and rows.is_first.any()
    assert not rows.reward[rows.is_first].any()


@pytest.mark.parametrize(
    "name, length", [("catch", 9), ("memory", 6), ("longer memory", 12), ("pendulum", 200)]
)
def test_length_of_every_episode(played, name, length):
    lengths = _episode_lengths(played[name][2])
    assert len(lengths) >= 2 and (lengths == length).all()


@pytest.mark.parametrize("name", ["catch", "breakout", "memory"])
def test_these_episodes_end_in_a_terminal(played, name):
    rows = played[name][2]
    np.testing.assert_array_equal(rows.is_terminal, rows.is_last)


def test_pendulum_is_cut_by_its_time_limit_and_never_terminal(played):
    assert not np.asarray(played["pendulum"][2].is_terminal).any()


def test_a_time_limit_of_ours_cuts_episodes(played):
    rows = played["cartpole"][2]  # never falls within 5 steps
    assert (_episode_lengths(rows) == 5).all() and not np.asarray(rows.is_terminal).any()


def test_catch_rewards_only_the_last_row(played):
    rows = jax.tree.map(np.asarray, played["catch"][2])
    assert set(rows.reward[rows.is_last]) == {-1.0, 1.0}
    assert not rows.reward[~rows.is_last].any()


def test_resets_of_catch_differ(played):
    rows = played["catch"][2]
    first = np.asarray(rows.observation)[np.asarray(rows.is_first)]
    assert len(np.unique(first, axis=0)) > 1


@pytest.mark.parametrize("action, torque", [(1.0, 2.0), (-0.5, -1.0), (3.0, 2.0)])
def test_pendulum_actions_in_minus_1_to_1_are_torques_in_minus_2_to_2(played, action, torque):
    environment = played["pendulum"][0]
    state, timestep = environment.reset(jax.random.key(1))
    _, following = environment.step(state, jax.random.key(2), jnp.array([action]))
    _, sine, speed = np.asarray(timestep.observation, np.float64)
    expected = speed + 0.05 * (15.0 * sine + 3.0 * torque)  # m = l = 1, g = 10, dt = 0.05
    np.testing.assert_allclose(following.observation[2], expected, rtol=1e-5)


def test_an_unknown_name_is_an_error_that_names_near_ones():
    with pytest.raises(ValueError, match=r"'Cartpole-v2'.*CartPole-v1"):
        dataclasses.replace(CONFIGS["cartpole"], name="Cartpole-v2").make()


@pytest.mark.parametrize(
    ("params", "sentence"),
    [
        (("length=3",), r"MemoryChain-bsuite has no number 'length'; it has .*memory_length"),
        (("memory_length=many",), r"'memory_length=many' is not of the form memory_length=5"),
        (("memory_length",), r"'memory_length' is not of the form memory_length=5"),
    ],
)
def test_parameters_that_do_not_fit_are_refused(params, sentence):
    with pytest.raises(ValueError, match=sentence):
        gymnax.Config("MemoryChain-bsuite", params=params).make()


class Fork:
    """An environment of stable-gymnax 0.0.1, as far as it goes."""

    def reset_env(self, key, params): ...

    def step_env(self, key, state, action, params): ...


def test_another_package_of_that_name_is_told_when_it_is_built(monkeypatch):
    import gymnax as package

    monkeypatch.setattr(package, "make", lambda name: (Fork(), None))
    with pytest.raises(ValueError, match=r"\(gymnax 1.*\) has environments without is_truncated"):
        gymnax.make(gymnax.Config("Catch-bsuite"))
    (finding,) = doctor.check(gymnax.Config("Catch-bsuite"))
    assert "cannot be built" in finding.sentence and "install gymnax 1.x" in finding.sentence
