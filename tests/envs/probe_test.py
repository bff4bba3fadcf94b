"""Probe environments do what they say."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs import probe
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

ROWS = 40


@pytest.fixture(scope="module")
def played():
    """By name: rows [ROWS + 1] and random actions [ROWS]; row t + 1 follows action t."""

    def play(environment, key):
        actions = jax.random.randint(jax.random.fold_in(key, 1), (ROWS,), 0, 2)
        state, first = environment.reset(key)

        def body(state, row):
            return environment.step(state, *row)

        _, rest = jax.lax.scan(body, state, (jax.random.split(key, ROWS), actions))
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rest), actions

    @jax.jit
    def play_all(key):
        return {name: play(probe.Config(name).make(), key) for name in probe.PROBES}

    return jax.tree.map(np.asarray, play_all(jax.random.key(0)))


@pytest.mark.parametrize("name", probe.PROBES)
def test_spec(name):
    expected = EnvSpec(ArraySpec((1,), "float32"), DiscreteSpec(2))
    assert probe.Config(name).make().spec == expected


@pytest.mark.parametrize("name", probe.PROBES)
def test_length_of_every_episode(played, name):
    length = {"delay": 2, "truncation": probe.TIME_LIMIT}.get(name, 1)
    first = np.flatnonzero(played[name][0].is_first)
    assert len(first) > 3 and (np.diff(first) == length + 1).all()


@pytest.mark.parametrize("name", probe.PROBES)
def test_only_truncation_is_not_terminal(played, name):
    rows, _ = played[name]
    expected = np.zeros_like(rows.is_last) if name == "truncation" else rows.is_last
    np.testing.assert_array_equal(rows.is_terminal, expected)


def _rewards(rows, actions, name):
    """Rewards [ROWS] that the docstring of the probe promises for rows that are not first."""
    seen, sign = rows.observation[:-1, 0], 2.0 * actions - 1.0
    return {
        "constant": np.ones(ROWS),
        "observation": seen,
        "delay": rows.is_last[1:].astype(float),
        "action": sign,
        "match": sign * seen,
        "truncation": np.ones(ROWS),
    }[name]


@pytest.mark.parametrize("name", probe.PROBES)
def test_rewards(played, name):
    rows, actions = played[name]
    expected = np.where(rows.is_first[1:], 0.0, _rewards(rows, actions, name))
    np.testing.assert_array_equal(rows.reward[1:], expected)
    assert expected.any()


@pytest.mark.parametrize("name", probe.PROBES)
def test_observations_at_the_start_of_episodes(played, name):
    rows, _ = played[name]
    expected = {-1.0, 1.0} if name in ("observation", "match") else {0.0}
    assert set(rows.observation[rows.is_first].ravel()) == expected


def test_delay_shows_that_the_second_step_has_come(played):
    rows, _ = played["delay"]
    assert (rows.observation[~rows.is_first] == 1.0).all()
