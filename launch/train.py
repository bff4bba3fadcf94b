"""Train an experiment for many seeds at once.

    python -m launch.train --experiment=drama_catch --num_seeds=4 --workdir=runs/catch

The same command goes on from the newest checkpoint. `--set=path=value` changes any field of the
experiment (repeatable), e.g. --set=model.core=gru --set=behaviour.entropy=1e-3.
"""

from absl import flags

from launch import flags as launch_flags

_EXPERIMENT = flags.DEFINE_string(
    "experiment", None, "Name in experiments/, dotted module, or path to a .py file."
)
_SET = flags.DEFINE_multi_string("set", [], "path=value: change one field; repeatable.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; made if absent.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed i of the run derives from (seed, i).")
_NUM_SEEDS = flags.DEFINE_integer("num_seeds", 1, "Seeds trained in one program.")
_FIRST_SEED = flags.DEFINE_integer(
    "first_seed", 0, "Lane of the first seed: a sweep spreads the lanes over programs with it."
)
_STEPS = flags.DEFINE_integer("steps", None, "Steps of each seed; default: the experiment's.")
_DEBUG = flags.DEFINE_bool("debug", False, "Shrink the experiment to seconds.")
_RESUME = flags.DEFINE_enum(
    "resume", "auto", ["auto", "never", "must"], "What to do with a workdir that holds a run."
)


def main() -> None:
    """Build the experiment from the flags, run it, print the table."""
    from mbrl_jax.train import config, runtime

    for flag in (_EXPERIMENT, _WORKDIR):
        if not flag.value:
            raise config.ConfigError(f"--{flag.name} is missing; see --help")
    runtime.configure_runtime(quick_compile=_DEBUG.value, num_seeds=_NUM_SEEDS.value)
    runtime.require_devices()
    from mbrl_jax.train.progress import Console, print_table
    from mbrl_jax.train.run import run

    experiment = launch_flags.adjust_experiment(
        launch_flags.load_experiment(_EXPERIMENT.value), _SET.value, _STEPS.value, _DEBUG.value
    )
    result = run(
        experiment,
        _WORKDIR.value,
        seed=_SEED.value,
        num_seeds=_NUM_SEEDS.value,
        first_seed=_FIRST_SEED.value,
        resume=_RESUME.value,
        reporter=Console(),
    )
    print_table(result, _WORKDIR.value)


if __name__ == "__main__":
    launch_flags.run_main(main)
