"""Episodes of Pendulum by uniform actions and by a controller; `pendulum_data` writes them."""

import functools

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Environment, Key, Step

STEPS = 200  # of an episode


def controller(observation: Array) -> Array:
    """An action `[1]` for (cos θ, sin θ, θ'): energy up to that of standing, then a spring."""
    cos, sin, speed = observation[0], observation[1], observation[2]
    energy = 0.5 * speed**2 + 15.0 * cos  # 15 when it stands upright at rest
    swing = jnp.sign(speed) * jnp.where(energy < 15.0, 1.0, -1.0)
    hold = -4.0 * jnp.arctan2(sin, cos) - speed
    return jnp.clip(jnp.where(cos > 0.9, hold, swing), -1.0, 1.0)[None]


def play(env: Environment, key: Key, controlled: Array, noise: Array) -> Step:
    """The rows `[STEPS + 1]` of one episode."""

    def body(carry, step_key):
        state, timestep = carry
        env_key, action_key, noise_key = jax.random.split(step_key, 3)
        noisy = controller(timestep.observation) + noise * jax.random.normal(noise_key, (1,))
        uniform = jax.random.uniform(action_key, (1,), minval=-1.0, maxval=1.0)
        action = jnp.where(controlled, jnp.clip(noisy, -1.0, 1.0), uniform)
        return env.step(state, env_key, action), Step(timestep, action)

    reset_key, steps_key = jax.random.split(key)
    return jax.lax.scan(body, env.reset(reset_key), jax.random.split(steps_key, STEPS + 1))[1]


def episodes(seed: int, num_random: int, num_controlled: int, noise: float) -> Step:
    """Rows `[STEPS + 1, N]` of N episodes, the uniform ones first."""
    from mbrl_jax.envs import gymnax

    num = num_random + num_controlled
    keys = jax.random.split(jax.random.key(seed), num)
    lanes = functools.partial(play, gymnax.Config("Pendulum-v1").make())
    controlled = jnp.arange(num) >= num_random
    return jax.jit(jax.vmap(lanes, (0, 0, None), 1))(keys, controlled, noise)
