"""PETS' cart-pole against MuJoCo's motion of the published model, its rewards, and its wall."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import envs
from mbrl_jax.envs import doctor, rules
from mbrl_jax.envs.tasks import cartpole_swingup
from mbrl_jax.types import ArraySpec, BoundedSpec, EnvSpec

pytestmark = pytest.mark.usefixtures("quick_compile")

# (action, motion behind it) of MuJoCo 3.17 with the published cartpole.xml, from `START`.
START = [0.1, -0.2, 0.3, -0.1]
GOLDEN = (
    (1.0, [0.1321600833, -0.1548396596, 1.3050779658, 2.3224508635]),
    (-1.0, [0.1644236597, -0.1078882454, 0.3094778635, 0.0425882451]),
    (-1.0, [0.1571831837, -0.1490095776, -0.6664751343, -2.0567916477]),
    (0.5, [0.1411822266, -0.2014784602, -0.1357930255, -0.5811697891]),
    (0.2, [0.1402394329, -0.2101616508, 0.0876777766, 0.1384191243]),
    (-0.7, [0.1304112793, -0.2309506008, -0.5761957139, -1.1534674713]),
    (2.0, [0.1277131505, -0.2258719461, 0.4377018786, 1.3726130647]),  # clipped to 1
    (-0.4, [0.1376002133, -0.1860069831, 0.0565195671, 0.6209461701]),
)


def test_the_motion_is_mujocos():
    advance, motion = jax.jit(cartpole_swingup.advance), jnp.array(START)
    for action, expected in GOLDEN:
        motion = advance(motion, jnp.array([action]))
        np.testing.assert_allclose(motion, expected, atol=3e-6)


def _played(action, steps=205):
    env = cartpole_swingup.Config().make()

    @jax.jit
    def run(key):
        def body(state, key):
            state, row = env.step(state, key, jnp.full((1,), action))
            return state, row

        state, first = env.reset(key)
        rows = jax.lax.scan(body, state, jax.random.split(key, steps))[1]
        return jax.tree.map(lambda a, b: jnp.concatenate([a[None], b]), first, rows)

    return env, jax.device_get(run(jax.random.key(0)))


def test_an_episode_runs_into_the_wall_and_stays_200_steps():
    env, rows = _played(1.0)
    assert env.spec == EnvSpec(ArraySpec((4,), "float32"), BoundedSpec(1))
    assert envs.named("CartpoleSwingup") == cartpole_swingup.Config()
    x, speed = rows.observation[:201, 0], rows.observation[:201, 2]
    assert x.max() == 2.5 and x[-1] == 2.5 and abs(speed[-1]) < 1e-5
    assert speed[np.argmax(x == 2.5)] == 0.0  # it stops dead
    np.testing.assert_array_equal(np.flatnonzero(rows.is_last), [200])
    assert rows.is_first[201] and not rows.is_terminal.any()
    told = jax.vmap(lambda o, n: rules.cartpole_swingup_reward(o, jnp.ones(1), n))
    expected = told(rows.observation[:200], rows.observation[1:201])
    np.testing.assert_allclose(rows.reward[1:201], expected, rtol=1e-5)


def test_rewards_that_are_known():
    """Specification of PETS, golden number 6; controls are three times the action."""
    reward = lambda x, angle, control: rules.cartpole_swingup_reward(
        None, jnp.array([control / 3.0]), jnp.array([x, angle, 9.0, -9.0])
    )
    np.testing.assert_allclose(reward(0.3, 2.5, 0.5), 0.9494520389, rtol=1e-6)
    np.testing.assert_allclose(reward(0.0, 0.0, 0.0), 0.0183156389, rtol=1e-6)
    np.testing.assert_allclose(reward(0.0, np.pi, 3.0), 1.0 - 0.09, rtol=1e-6)


def test_episodes_begin_hanging():
    env = cartpole_swingup.Config(max_steps=3).make()
    first = jax.jit(jax.vmap(env.reset))(jax.random.split(jax.random.key(1), 4_000))[1]
    np.testing.assert_allclose(first.observation.mean(0), 0.0, atol=0.01)
    np.testing.assert_allclose(first.observation.std(0), 0.1, rtol=0.05)


def test_the_doctor_finds_nothing():
    findings = doctor.check(cartpole_swingup.Config(max_steps=60), steps=200)
    assert [f for f in findings if f.severity != "ok"] == []
