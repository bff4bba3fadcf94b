"""Does an ensemble's uncertainty know where its model errs? On Pendulum, where the truth is known.

    python -m experiments.studies.penalties --workdir=runs/mopo

The policy of each seed of a run plays ten steps in its world model, from rows of its data. For
each imagined step the true one is made from the same observation and action. Prints, for each
measure that the model reports, its rank correlation (Spearman's) with the true error of that step,
‖(o', r) imagined - true‖, and its mean; the protocol of Lu et al. 2022 (arXiv 2110.04135).
"""

import functools

import jax
import jax.numpy as jnp
from absl import flags

from experiments.studies.penalty_errors import errors, rank_correlation
from launch import flags as launch_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run on gymnax's Pendulum-v1.")
_STARTS = flags.DEFINE_integer("starts", 500, "Rows of the data to start from.", lower_bound=1)
_STEPS = flags.DEFINE_integer("num_steps", 10, "Imagined steps from each.", lower_bound=1)


def main() -> None:
    """Print a row for each measure, with a column for each member of the run."""
    from mbrl_jax import datasets
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.experiment.config import with_numbers
    from mbrl_jax.experiment.experiment import build
    from mbrl_jax.train import trained

    if not _WORKDIR.value:
        raise ConfigError("--workdir is needed; see --help")
    experiment, programs, agent, _ = trained.restore_run(_WORKDIR.value)
    if not experiment.data or getattr(experiment.env, "name", "") != "Pendulum-v1":
        raise ConfigError(f"{_WORKDIR.value} is no run on a data set of Pendulum-v1")
    members, table = programs.members, []
    for i, numbers in enumerate(members.settings):
        system = build(with_numbers(experiment, numbers))
        behaviour = experiment.behaviour.make(system.env.spec)
        rows = datasets.load(experiment.data[0][1], system.env.spec)
        key = jax.random.key(0)
        chosen = jax.random.randint(key, (_STARTS.value,), 0, len(rows.timestep.reward))
        starts = jnp.asarray(rows.timestep.observation)[chosen]
        found = jax.jit(functools.partial(errors, system.world_model, behaviour, _STEPS.value))
        for seed in range(members.num_seeds):
            state = jax.tree.map(lambda x, m=i * members.num_seeds + seed: x[m], agent)
            table.append(
                (numbers, members.first_seed + seed, *jax.device_get(found(state, key, starts)))
            )
    for numbers, seed, error, reported in table:
        setting = "".join(f"{path}={number:g}, " for path, number in numbers.items())
        print(f"{setting}seed {seed}: mean true error {error.mean():.3g}")
        for name, value in sorted(reported.items()):
            print(f"  {name:20s} {rank_correlation(value, error):6.2f}  mean {value.mean():.3g}")


if __name__ == "__main__":
    launch_flags.run_main(main)
