"""What a greedy policy returns if it takes over late: the first rows of an episode act at random.

    python -m experiments.studies.late_policy --workdir=runs/memory --random_rows=0,99

Tells whether a policy forgets because its own actions lead off the path that its model learned from
(drama_memory: all actions but the last are free there, and random in training). Prints the mean
return of the first episode of 100 lanes, by seed and number of random rows. JAX environments only.
"""

import functools

import jax
from absl import flags

from experiments.studies.late_policy_episode import episode_return
from launch import flags as launch_flags
from mbrl_jax.types import Environment

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run.")
_RANDOM_ROWS = flags.DEFINE_list("random_rows", ["0"], "Numbers of random rows to try.")
_ROWS = flags.DEFINE_integer("rows", 200, "Rows that hold a whole episode.")
_LANES = flags.DEFINE_integer("lanes", 100, "Episodes.")


def main() -> None:
    """Play every seed of the newest checkpoint and print a row for each."""
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.experiment.config import with_numbers
    from mbrl_jax.experiment.experiment import build
    from mbrl_jax.train import trained

    if not _WORKDIR.value or not all(text.isdecimal() for text in _RANDOM_ROWS.value):
        raise ConfigError("--workdir and numbers as --random_rows are needed; see --help")
    experiment, programs, agent, _ = trained.restore_run(_WORKDIR.value)
    members = programs.members
    keys = jax.random.split(jax.random.key(0), _LANES.value)
    for i, numbers in enumerate(members.settings):
        system = build(with_numbers(experiment, numbers))
        if not isinstance(system.env, Environment):
            raise ConfigError(f"{_WORKDIR.value} plays on the host; a JAX environment is needed")
        play = functools.partial(episode_return, system.env, system.agent, _ROWS.value)
        lanes = jax.jit(jax.vmap(play, (None, 0, None)))
        setting = "".join(f"{path}={number:g}, " for path, number in numbers.items())
        for seed in range(members.num_seeds):
            member = i * members.num_seeds + seed
            state = jax.tree.map(lambda x, member=member: x[member], agent)
            for count in map(int, _RANDOM_ROWS.value):
                mean = float(lanes(state, keys, count).mean())
                label = f"{setting}seed {members.first_seed + seed}"
                print(f"{label}: {count} random rows, then greedy: {mean:.2f}")


if __name__ == "__main__":
    launch_flags.run_main(main)
