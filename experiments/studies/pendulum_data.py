"""Makes the rows of Pendulum that offline experiments learn from, and says what is in them.

    python -m experiments.studies.pendulum_data --out=runs/pendulum.npz

Whole episodes of 200 steps: a part of uniform actions, and a part of a controller that pumps energy
into the pendulum and holds it near the top, with normal noise on its actions. Prints the mean
return of each part and of all. The file has the flat keys of D4RL (arXiv 2004.07219), among them
next_observations and timeouts; `mbrl_jax.datasets` reads it. Equal flags give equal rows.
"""

import jax
from absl import flags

from experiments.studies.pendulum_episodes import STEPS, episodes
from launch import flags as launch_flags

_OUT = flags.DEFINE_string("out", None, "The .npz file to write.")
_RANDOM = flags.DEFINE_integer("num_random", 20, "Episodes of uniform actions.", lower_bound=0)
_CONTROLLED = flags.DEFINE_integer("num_controlled", 20, "Of the controller.", lower_bound=0)
_NOISE = flags.DEFINE_float("noise", 1.0, "Deviation of its noise; actions lie in [-1, 1].")
_SEED = flags.DEFINE_integer("data_seed", 0, "Seed of the episodes.")


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
