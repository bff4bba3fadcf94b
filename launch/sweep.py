"""Train many configurations, on this machine or on Slurm.

    python -m launch.sweep --experiment=drama_catch --root=runs/cores --num_seeds=4 \\
        --grid=model.core=mamba2,gru --grid=behaviour.entropy=1e-2,2e-2 --jobs=2
    python -m launch.sweep --experiment=drama_catch --root=runs/cores --num_seeds=4 \\
        --file=cores.txt --executor=slurm --time=4:00:00 --gpus=1 --cpus=8
    python -m launch.sweep --root=runs/cores --status

Each member, a configuration with its seeds, trains in a workdir below --root that is named after
its settings. The same command goes on: members that are done are left alone, all others go on from
their newest checkpoints. Another --grid or --file in the same root adds members; everything that
the members share must stay as it was (--steps may grow).

--grid takes the product of its values; a list among them stands in brackets ([32,64]). A --file has
a member on each line, assignments path=value between blanks, as in a shell: quotes where a value
has blanks, # for comments. With both, each line is combined with each point of the grid.

A process that fails is started again from its newest checkpoint, --retries times; one that was
preempted and saved (status 75) as often as it gets on. SIGTERM or Ctrl-C saves and stops all.

--seeds_per_program=fit asks `launch.train --preflight` of every configuration, on Slurm in a job of
the members' kind, how many seeds the memory takes, and packs as many into each program; the number
is kept in the root. --mirror and --allow_oversize are handed on to every member, and may be others
when the same command goes on.
"""

import os
import shlex
import shutil
import signal
import sys
import time
from pathlib import Path

from absl import flags

from launch import flags as launch_flags

_EXPERIMENT = flags.DEFINE_string(
    "experiment", None, "Name in experiments/, dotted module, or path to a .py file."
)
_ROOT = flags.DEFINE_string("root", None, "Directory of the sweep; made if absent.")
_GRID = flags.DEFINE_multi_string("grid", [], "path=value,value: one dimension; repeatable.")
_FILE = flags.DEFINE_string("file", None, "A file with a member on each line.")
_SET = flags.DEFINE_multi_string("set", [], "path=value for all members; repeatable.")
_INSIDE = flags.DEFINE_multi_string(
    "sweep_inside", [], "path=value,value: numbers that vary within each program; repeatable."
)
_SEED = flags.DEFINE_integer("seed", 0, "Seed i of a member derives from (seed, i).")
_NUM_SEEDS = flags.DEFINE_integer("num_seeds", 1, "Seeds of each configuration.")
_SEEDS_PER_PROGRAM = flags.DEFINE_string(
    "seeds_per_program", None, "Most seeds in one program: a number, or fit; default: all seeds."
)
_STEPS = flags.DEFINE_integer("steps", None, "Steps of each seed; default: the experiment's.")
_DEBUG = flags.DEFINE_bool("debug", False, "Shrink the experiment to seconds.")
_MIRROR = flags.DEFINE_multi_string(
    "mirror", [], "As for launch.train: where each member's rows go too; repeatable."
)
_ALLOW_OVERSIZE = flags.DEFINE_bool(
    "allow_oversize", False, "As for launch.train: begin even where memory seems to be too little."
)
_EXECUTOR = flags.DEFINE_enum("executor", "local", ["local", "slurm"], "Where members run.")
_JOBS = flags.DEFINE_integer("jobs", None, "Members at a time; default: 1 here, on Slurm all.")
_RETRIES = flags.DEFINE_integer("retries", 2, "Further attempts at a member that fails.")
_STATUS = flags.DEFINE_bool("status", False, "Print how far all members are, and end.")
_DRY_RUN = flags.DEFINE_bool("dry_run", False, "Print what would be run or submitted, and end.")
_TIME = flags.DEFINE_string("time", "24:00:00", "Slurm: limit of a task; it is then requeued.")
_PARTITION = flags.DEFINE_string("partition", None, "Slurm: partition.")
_GPUS = flags.DEFINE_integer("gpus", None, "Slurm: GPUs of a task.")
_CPUS = flags.DEFINE_integer("cpus", None, "Slurm: cores of a task.")
_MEM = flags.DEFINE_string("mem", None, "Slurm: memory of a task, such as 16G.")
_GRACE = flags.DEFINE_integer("grace", 120, "Slurm: seconds before the limit to save in.")
_SLURM = flags.DEFINE_multi_string("slurm", [], "option=value of sbatch; repeatable.")
_ONLY_SLURM = ("time", "partition", "gpus", "cpus", "mem", "grace", "slurm")


def main() -> None:
    """Plan, and do what the flags say with the plan."""
    from mbrl_jax.sweeps import plan

    root = _root()
    if _STATUS.value:
        _print_status(root)
        return
    _check_flags()
    common, before = _common(), plan.read_manifest(root)
    sizes = _check_configurations(common)
    common = common._replace(seeds_per_program=_seeds_per_program(common, sizes, before))
    members = plan.plan_members(common, sizes)
    plan.merge(root, before, common, members)  # refused before anything is shown or written
    tasks = [_task(common, member, root) for member in members]
    if _DRY_RUN.value:
        _print_plan(tasks)
        return
    plan.add_members(root, common, members)
    left = [t for t, m in zip(tasks, members, strict=True) if not _is_done(root, m)]
    if len(left) < len(tasks):
        print(f"{len(tasks) - len(left)} of {len(tasks)} members are done already")
    if _EXECUTOR.value == "slurm":
        _submit(root, left)
    else:
        _run_here(root, left)


# --------------------------------------------------------------------------------------- the plan


def _root() -> Path:
    from mbrl_jax.errors import ConfigError

    if not _ROOT.value:
        raise ConfigError("--root is missing; see --help")
    return Path(_ROOT.value)


def _check_flags() -> None:
    """Raise ConfigError for flags that are missing or do not go together."""
    from mbrl_jax.errors import ConfigError

    launch_flags.required(_EXPERIMENT)
    given = [name for name in _ONLY_SLURM if flags.FLAGS[name].present]
    if given and _EXECUTOR.value != "slurm":
        raise ConfigError(f"--{given[0]} goes with --executor=slurm only")
    for flag, least in ((_JOBS, 1), (_RETRIES, 0), (_GPUS, 0), (_CPUS, 1)):
        if flag.value is not None and flag.value < least:
            raise ConfigError(f"--{flag.name}={flag.value} must be at least {least}")
    from mbrl_jax.mirrors import mirror

    mirror.load(_MIRROR.value)  # here, and not in every member


def _common():
    from mbrl_jax.sweeps.plan import Common

    experiment = launch_flags.required(_EXPERIMENT)
    if experiment.endswith(".py"):  # a task may run in another directory
        experiment = str(Path(experiment).absolute())
    return Common(
        experiment,
        tuple(_SET.value),
        _SEED.value,
        _NUM_SEEDS.value,
        inside=tuple(_INSIDE.value),
        debug=_DEBUG.value,
        steps=_STEPS.value,
    )


def _seeds_per_program(common, configurations, before) -> int | None:
    """The number of the flag, None for all; "fit" is what the sweep has, or else what fits."""
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.sweeps import packing

    text = _SEEDS_PER_PROGRAM.value
    if text is None:
        return None
    if text.isdecimal() and int(text):
        return int(text)
    if text != "fit":
        raise ConfigError(f"--seeds_per_program={text} must be a number of 1 or more, or fit")
    if before is not None:
        return before["common"].get("seeds_per_program")
    if _EXECUTOR.value == "slurm":
        from mbrl_jax.sweeps import slurm

        fit = packing.seeds_that_fit(common, configurations, slurm.srun(_parameters()))
    else:
        fit = packing.seeds_that_fit(common, configurations, programs=_JOBS.value or 1)
    print(f"{fit} of {common.num_seeds} seeds fit into one program")
    return fit


def _configurations() -> list[tuple[str, ...]]:
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.sweeps import plan

    grids = [plan.parse_grid(grid) for grid in _GRID.value]
    if _FILE.value is None:
        return plan.configurations(grids)
    try:
        text = Path(_FILE.value).read_text(encoding="utf-8")
        return plan.configurations(grids, plan.parse_lines(text))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--file={_FILE.value} cannot be read ({error})") from error
    except ConfigError as error:
        raise ConfigError(f"--file={_FILE.value}: {error}") from error


def _check_configurations(common) -> dict[tuple[str, ...], tuple[int, int]]:
    """{settings: (steps, iterations)}, each built as `launch.train` would build it.

    Raises ConfigError for the first that cannot be, or that is the same as another.
    """
    import jax

    from mbrl_jax.experiment import config
    from mbrl_jax.experiment.members import Members, parse_inside
    from mbrl_jax.sweeps import plan

    jax.config.update("jax_platforms", "cpu")  # the accelerators are for the members
    Members(common.seed, common.num_seeds)
    base = launch_flags.load_experiment(common.experiment)
    sizes: dict[tuple[str, ...], tuple[int, int]] = {}
    seen: dict[str, str] = {}
    for settings in _configurations():
        name = plan.member_name(settings)
        try:
            experiment = _build((*common.settings, *settings), base)
            parse_inside(experiment, common.inside, (*common.settings, *settings))
        except config.ConfigError as error:
            raise config.ConfigError(f"member {name}: {error}") from error
        text = str(config.to_json(experiment))
        if text in seen:
            raise config.ConfigError(f"the members {seen[text]} and {name} are the same")
        seen[text] = name
        sizes[settings] = experiment.steps, experiment.iterations
    return sizes


def _build(settings: tuple[str, ...], base):
    """The experiment of a member. Raises ConfigError where it cannot be built."""
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.experiment.config import validate
    from mbrl_jax.experiment.experiment import build

    experiment = launch_flags.adjust_experiment(base, settings, _STEPS.value, _DEBUG.value)
    validate(experiment)
    try:
        build(experiment)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return experiment


def _task(common, member, root: Path):
    from mbrl_jax.sweeps.plan import train_command
    from mbrl_jax.sweeps.supervise import Task

    workdir = root.absolute() / member.name
    more = [f"--mirror={name}" for name in _MIRROR.value]
    more += ["--allow_oversize"] * _ALLOW_OVERSIZE.value
    command = train_command(sys.executable, common, member, workdir, more)
    return Task(member.name, str(workdir), tuple(command), member.steps)


def _is_done(root: Path, member) -> bool:
    from mbrl_jax.sweeps.status import is_done

    return is_done(root, member)


# ------------------------------------------------------------------------------------- what is done


def _print_status(root: Path) -> None:
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.sweeps import plan, status

    manifest = plan.read_manifest(root)
    if manifest is None:
        raise ConfigError(f"{root} holds no sweep: there is no {plan.MANIFEST} in it")
    rows = [status.member_status(root, member) for member in plan.members_of(manifest)]
    status.print_status(root, rows)


def _parameters() -> dict:
    from mbrl_jax.sweeps import slurm

    return slurm.make_parameters(
        time=_TIME.value,
        partition=_PARTITION.value,
        gpus=_GPUS.value,
        cpus=_CPUS.value,
        mem=_MEM.value,
        jobs=_JOBS.value,
        grace=_GRACE.value,
        free=_SLURM.value,
    )


def _print_plan(tasks) -> None:
    if _EXECUTOR.value == "slurm":
        from mbrl_jax.sweeps import slurm

        print("\n".join(slurm.describe(_parameters(), len(tasks))))
    for index, task in enumerate(tasks):
        print(f"\n# {index}: {task.name}\n{shlex.join(task.command)}")


def _submit(root: Path, tasks) -> None:
    """Submit what is not in the queue already."""
    from mbrl_jax.sweeps import slurm

    parameters = _parameters()
    waiting = slurm.queued(root)
    left = [task for task in tasks if task.name not in waiting]
    if len(left) < len(tasks):
        print(f"{len(tasks) - len(left)} members are in the queue already")
    if left:
        os.environ["PYTHONPATH"] = os.pathsep.join(
            filter(None, [str(launch_flags.EXPERIMENTS.parent), os.environ.get("PYTHONPATH")])
        )
        jobs = slurm.submit(root, left, parameters, retries=_RETRIES.value, grace=_GRACE.value)
        slurm.say_submitted(jobs)
    print(f"how far it is: python -m launch.sweep --root={shlex.quote(str(root))} --status")


def _run_here(root: Path, tasks) -> None:
    """Run the members on this machine, and end with the status that tells how it went."""
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.sweeps import supervise
    from mbrl_jax.sweeps.status import kept_by

    for task in tasks:
        if keeper := kept_by(Path(task.workdir)):
            raise ConfigError(f"{task.name} is being run by {keeper}; wait for it or end it")
    console = Console()
    supervisor = supervise.Supervisor(tasks, console, jobs=_JOBS.value or 1, retries=_RETRIES.value)
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)
    with supervise.receiving(signals, supervisor.receive):
        states = supervisor.run()
    console.clear()
    _print_status(root)
    failed = [name for name, state in states.items() if state == "failed"]
    if supervisor.signals:
        launch_flags.fail("stopped; the same command goes on", status=supervise.PREEMPTED)
    if failed:
        launch_flags.fail(
            f"{len(failed)} of {len(states)} members failed ({', '.join(failed)}); when the cause "
            "is mended, the same command goes on from their checkpoints"
        )


class Console:
    """A line for each event; below them, on a terminal, one that tells how far the members are."""

    def __init__(self):
        """Say nothing yet."""
        from mbrl_jax.sweeps.supervise import Lines

        self._lines, self._next = Lines(), 0.0

    def started(self, task, attempt: int) -> None:
        """Above the live line."""
        self.clear()
        self._lines.started(task, attempt)

    def ended(self, task, sentence: str) -> None:
        """Above the live line."""
        self.clear()
        self._lines.ended(task, sentence)

    def clear(self) -> None:
        """Remove the live line."""
        self._next = 0.0
        if sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)

    def tick(self, running, num_waiting: int) -> None:
        """Draw the live line, once a second."""
        if not sys.stdout.isatty() or time.monotonic() < self._next:
            return
        from mbrl_jax.sweeps.status import progress

        self.clear()
        self._next = time.monotonic() + 1.0
        steps = [f"{t.name} {progress(Path(t.workdir))[0]}/{t.steps}" for t in running]
        line = f"{len(running)} running, {num_waiting} waiting: {'; '.join(steps)}"
        print(line[: shutil.get_terminal_size().columns - 1], end="", flush=True)


if __name__ == "__main__":
    launch_flags.run_main(main)
