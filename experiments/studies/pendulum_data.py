"""Makes the rows of Pendulum that offline experiments learn from, and says what is in them.

    python -m experiments.studies.pendulum_data --out=runs/pendulum.npz

Whole episodes of 200 steps: a part of uniform actions, and a part of a controller that pumps energy
into the pendulum and holds it near the top, with normal noise on its actions. Prints the mean
return of each part and of all. The file has the flat keys of D4RL (arXiv 2004.07219), among them
next_observations and timeouts; `mbrl_jax.datasets` reads it. Equal flags give equal rows.
"""

import functools

import jax
import jax.numpy as jnp
from absl import flags

from launch import flags as launch_flags
from mbrl_jax.types import Array, Environment, Key, Step

STEPS = 200  # of an episode

_OUT = flags.DEFINE_string("out", None, "The .npz file to write.")
_RANDOM = flags.DEFINE_integer("num_random", 20, "Episodes of uniform actions.", lower_bound=0)
_CONTROLLED = flags.DEFINE_integer("num_controlled", 20, "Of the controller.", lower_bound=0)
_NOISE = flags.DEFINE_float("noise", 1.0, "Deviation of its noise; actions lie in [-1, 1].")
_SEED = flags.DEFINE_integer("data_seed", 0, "Seed of the episodes.")


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


def main() -> None:
    """Write the file and print the returns."""
    from mbrl_jax import datasets
    from mbrl_jax.errors import ConfigError

    if not _OUT.value or not _RANDOM.value + _CONTROLLED.value:
        raise ConfigError("--out and at least one episode are needed; see --help")
    numbers = (_SEED.value, _RANDOM.value, _CONTROLLED.value, _NOISE.value)
    lanes = jax.device_get(episodes(*numbers))
    described = dict(zip(("seed", "num_random", "num_controlled", "noise"), numbers, strict=True))
    rows = datasets.from_lanes(lanes)
    summary = datasets.summarise(rows)
    described |= {"env_id": "Pendulum-v1", "max_episode_steps": STEPS}
    try:
        datasets.save_npz(rows, _OUT.value, **described)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--out={_OUT.value} cannot be written ({error})") from error
    returns = lanes.timestep.reward.sum(0)
    for name, part in (("random", returns[: numbers[1]]), ("controlled", returns[numbers[1] :])):
        if part.size:
            print(f"{name}: {part.size} episodes, mean return {part.mean():.1f}")
    print(
        f"{_OUT.value}: {summary.transitions} transitions of {summary.episodes} episodes, mean "
        f"return {summary.mean_return:.1f} ({summary.least_return:.1f} to "
        f"{summary.largest_return:.1f})"
    )


if __name__ == "__main__":
    launch_flags.run_main(main)
