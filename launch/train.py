"""Train an experiment for many seeds at once.

    python -m launch.train --experiment=drama_catch --num_seeds=4 --workdir=runs/catch

The same command goes on from the newest checkpoint. `--set=path=value` changes any field of the
experiment (repeatable), e.g. --set=model.core=gru --set=behaviour.entropy=1e-3.

    python -m launch.train --experiment=drama_catch --num_seeds=64 --preflight
    python -m launch.train --fork=runs/catch@2000 --set=behaviour.entropy=1e-3 --workdir=runs/branch

`--preflight` compiles, says how much memory and time the run would take, and exits. `--fork` begins
with a checkpoint of another run, replay included; seeds and experiment are that run's.
"""

import functools

from absl import flags

from launch import flags as launch_flags

_EXPERIMENT = flags.DEFINE_string(
    "experiment", None, "Name in experiments/, dotted module, or path to a .py file."
)
_SET = flags.DEFINE_multi_string("set", [], "path=value: change one field; repeatable.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of the run; made if absent.")
_SEED = flags.DEFINE_integer("seed", 0, "Seed i of the run derives from (seed, i).")
_NUM_SEEDS = flags.DEFINE_integer("num_seeds", 1, "Seeds trained in one program.")
_STEPS = flags.DEFINE_integer("steps", None, "Steps of each seed; default: the experiment's.")
_DEBUG = flags.DEFINE_bool("debug", False, "Shrink the experiment to seconds.")
_RESUME = flags.DEFINE_enum(
    "resume", "auto", ["auto", "never", "must"], "What to do with a workdir that holds a run."
)
_FORK = flags.DEFINE_string(
    "fork", None, "WORKDIR@STEP: begin with that checkpoint of another run, under changed settings."
)
_PREFLIGHT = flags.DEFINE_bool("preflight", False, "Compile, time, print the run's size, and exit.")
_ALLOW_OVERSIZE = flags.DEFINE_bool(
    "allow_oversize", False, "Begin even where too little memory seems to be free."
)


def main() -> None:
    """Train, and end with status 75 where a signal asked for it and the same command goes on."""
    from mbrl_jax.train import preemption

    with preemption.listening():
        train()


def train() -> None:
    """Build the experiment from the flags, run it, print the table."""
    from mbrl_jax.train import config, runtime

    needed = [] if _FORK.value else [_EXPERIMENT]
    for flag in needed if _PREFLIGHT.value else [*needed, _WORKDIR]:
        if not flag.value:
            raise config.ConfigError(f"--{flag.name} is missing; see --help")
    seed, num_seeds = _seeds()
    runtime.configure_runtime(quick_compile=_DEBUG.value, num_seeds=num_seeds)
    runtime.require_devices()
    from mbrl_jax.train.progress import Console, print_table
    from mbrl_jax.train.run import run, survey

    experiment, console = _experiment(), Console()
    if _PREFLIGHT.value:
        found = survey(experiment, seed, num_seeds)
        console.surveyed(found)
        if found.refusal() and not _ALLOW_OVERSIZE.value:
            raise config.ConfigError(found.refusal())
        return
    if _FORK.value:
        from mbrl_jax.train import fork

        fork.fork(fork.parse_origin(_FORK.value), _WORKDIR.value, experiment)
    result = run(
        experiment,
        _WORKDIR.value,
        seed=seed,
        num_seeds=num_seeds,
        resume=_RESUME.value,
        reporter=console,
        allow_oversize=_ALLOW_OVERSIZE.value,
    )
    print_table(result, _WORKDIR.value)


def _parent():
    """Configuration of the run that is forked."""
    from mbrl_jax.train import fork, workdir

    return workdir.read_config(fork.parse_origin(_FORK.value).path)


def _seeds() -> tuple[int, int]:
    """Seed and number of seeds: of a fork, those of its parent."""
    if not _FORK.value:
        return _SEED.value, _NUM_SEEDS.value
    from mbrl_jax.train import config

    _load_named()  # which may define types of the parent's configuration
    saved = _parent()
    for flag, value in ((_SEED, saved.seed), (_NUM_SEEDS, saved.num_seeds)):
        if flag.present and flag.value != value:
            raise config.ConfigError(
                f"--{flag.name}={flag.value}, but {_FORK.value} has {value}: a fork goes on with "
                "the seeds of its parent"
            )
    return saved.seed, saved.num_seeds


def _experiment():
    """The experiment that the flags describe."""
    from mbrl_jax.train import config
    from mbrl_jax.train.experiment import with_steps

    experiment = config.override(_load_named() or _parent().experiment, _SET.value)
    return experiment if _STEPS.value is None else with_steps(experiment, _STEPS.value)


@functools.cache
def _load_named():
    """The experiment with a name, before fields are changed; None without one."""
    if not _EXPERIMENT.value:
        return None
    from mbrl_jax.train.experiment import for_debug

    experiment = launch_flags.load_experiment(_EXPERIMENT.value)
    return for_debug(experiment) if _DEBUG.value else experiment


if __name__ == "__main__":
    launch_flags.run_main(main)
