"""Train an experiment for many seeds at once.

    python -m launch.train --experiment=drama_catch --num_seeds=4 --workdir=runs/catch

The same command goes on from the newest checkpoint. `--set=path=value` changes any field of the
experiment (repeatable), e.g. --set=model.core=gru --set=behaviour.entropy=1e-3. Numbers that decide
no shapes may vary inside one program: --sweep_inside=behaviour.entropy=1e-4,3e-4,1e-3 trains each
value with each seed.

    python -m launch.train --experiment=drama_catch --num_seeds=64 --preflight
    python -m launch.train --fork=runs/catch@2000 --set=behaviour.entropy=1e-3 --workdir=runs/branch

`--mirror=wandb` sends rows of metrics to Weights & Biases too (WANDB_MODE=offline: to its files).
`--print_config` lists every field with its value, range, default and meaning, and exits.
`--preflight` compiles, says how much memory and time the run would take, and exits. `--fork` begins
with a checkpoint of another run, replay included; seeds and experiment are that run's.
"""

import json

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
_SWEEP_INSIDE = flags.DEFINE_multi_string(
    "sweep_inside",
    [],
    "path=value,value,…: a number that varies beside the seeds in the same program; repeatable.",
)
_STEPS = flags.DEFINE_integer("steps", None, "Steps of each seed; default: the experiment's.")
_DEBUG = flags.DEFINE_bool("debug", False, "Shrink the experiment to seconds.")
_DISTRIBUTED = flags.DEFINE_bool(
    "distributed", False, "One of several processes; recognised by itself under Slurm."
)
_RESUME = flags.DEFINE_enum(
    "resume", "auto", ["auto", "never", "must"], "What to do with a workdir that holds a run."
)
_FORK = flags.DEFINE_string(
    "fork", None, "WORKDIR@STEP: begin with that checkpoint of another run, under changed settings."
)
_PREFLIGHT = flags.DEFINE_bool("preflight", False, "Compile, time, print the run's size, and exit.")
_PRINT_CONFIG = flags.DEFINE_bool(
    "print_config", False, "Print every field with its value, range and meaning, and exit."
)
_JSON = flags.DEFINE_bool("json", False, "With --preflight: print its numbers as JSON.")
_ALLOW_OVERSIZE = flags.DEFINE_bool(
    "allow_oversize", False, "Begin even where too little memory seems to be free."
)
_MIRROR = flags.DEFINE_multi_string(
    "mirror", [], "wandb, or a module of your own: rows of metrics go there too; repeatable."
)


def main() -> None:
    """Train, and end with status 75 where a signal asked for it and the same command goes on."""
    from mbrl_jax.train import preemption

    with preemption.listening():
        train()


def train() -> None:
    """Build the experiment from the flags, run it, print the table."""
    from mbrl_jax.experiment import config
    from mbrl_jax.train import preemption, runtime

    if _JSON.value and not _PREFLIGHT.value:
        raise config.ConfigError("--json goes with --preflight only")
    if _PRINT_CONFIG.value:
        from mbrl_jax.experiment.printed import listing

        if not _FORK.value:
            launch_flags.required(_EXPERIMENT)
        print(listing(_experiment()), end="")
        return
    needed = [] if _FORK.value else [_EXPERIMENT]
    for flag in needed if _PREFLIGHT.value else [*needed, _WORKDIR]:
        launch_flags.required(flag)
    experiment = _experiment()
    members = _members(experiment)
    with preemption.at_once():
        runtime.join_processes(_DISTRIBUTED.value)
    runtime.configure_runtime(quick_compile=_DEBUG.value, num_seeds=len(members))
    runtime.require_devices()
    from mbrl_jax.train.progress import Console, Quiet
    from mbrl_jax.train.run import run, survey
    from mbrl_jax.train.tables import print_table

    if _PREFLIGHT.value:
        found = survey(experiment, members)
        if runtime.is_first_process():
            print(json.dumps(found.numbers())) if _JSON.value else Console().planned(found)
        if found.refusal() and not _ALLOW_OVERSIZE.value:
            raise config.ConfigError(found.refusal())
        return
    workdir = launch_flags.required(_WORKDIR)
    if _FORK.value:
        from mbrl_jax.train import fork

        if runtime.is_first_process():  # the others wait for it in `run`
            fork.fork(fork.parse_origin(_FORK.value), workdir, experiment)
    result = run(
        experiment,
        workdir,
        seed=members.seed,
        num_seeds=members.num_seeds,
        inside=members.inside,
        first_seed=members.first_seed,
        resume=_RESUME.value,
        reporter=Console() if runtime.is_first_process() else Quiet(),
        allow_oversize=_ALLOW_OVERSIZE.value,
        mirrors=_MIRROR.value,
    )
    if runtime.is_first_process():
        named = launch_flags.flags_of_types(experiment, _EXPERIMENT.value, _SET.value)
        print_table(result, workdir, named)


def _parent():
    """Configuration of the run that is forked."""
    from mbrl_jax.runs import workdir
    from mbrl_jax.train import fork

    return workdir.read_config(fork.parse_origin(launch_flags.required(_FORK)).path)


def _members(experiment):
    """The members that the flags describe: of a fork, those of its parent."""
    from mbrl_jax.experiment import config
    from mbrl_jax.experiment.members import Members, parse_inside, require_not_set

    inside = parse_inside(experiment, _SWEEP_INSIDE.value, _SET.value)
    asked = Members(_SEED.value, _NUM_SEEDS.value, inside, _FIRST_SEED.value)
    if not _FORK.value:
        return asked
    saved = _parent().members
    require_not_set(saved.inside, _SET.value)
    for flag, value, own in (
        (_SEED, asked.seed, saved.seed),
        (_NUM_SEEDS, asked.num_seeds, saved.num_seeds),
        (_FIRST_SEED, asked.first_seed, saved.first_seed),
        (_SWEEP_INSIDE, asked.inside, saved.inside),
    ):
        if flag.present and value != own:
            raise config.ConfigError(
                f"--{flag.name}={value}, but {_FORK.value} has {own}: a fork goes on with the "
                "seeds of its parent"
            )
    return saved


def _experiment():
    """The experiment that the flags describe: of a fork without a name, that of its parent."""
    if not _EXPERIMENT.value:
        return launch_flags.adjust_experiment(
            _parent().experiment, _SET.value, _STEPS.value, debug=False
        )
    # It may define types of the parent's configuration, and comes first.
    named = launch_flags.load_experiment(_EXPERIMENT.value)
    return launch_flags.adjust_experiment(named, _SET.value, _STEPS.value, _DEBUG.value)


if __name__ == "__main__":
    launch_flags.run_main(main)
