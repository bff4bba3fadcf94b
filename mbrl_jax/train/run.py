"""Run an experiment for S seeds: the shell around the pure loop."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mbrl_jax.evaluate import quality
from mbrl_jax.keys import named
from mbrl_jax.train import (
    checkpoint,
    config,
    files,
    preemption,
    preflight,
    restore,
    runtime,
    seeds,
    workdir,
)
from mbrl_jax.train.experiment import Experiment, System, build
from mbrl_jax.train.host_loop import Film
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.loop import Evaluation, TrainState
from mbrl_jax.train.members import Inside, Members
from mbrl_jax.train.metrics import MetricsWriter, NoMetrics, last_fifth, read_metrics
from mbrl_jax.train.programs import Programs, make_programs
from mbrl_jax.train.progress import Quiet, Reporter, warn
from mbrl_jax.train.replay_log import Segment
from mbrl_jax.train.report import (
    gif_paths,
    write_evaluation,
    write_film,
    write_open_loop,
    write_pictures,
)
from mbrl_jax.train.training import train
from mbrl_jax.types import AgentState

PROTOCOLS = ("clean", "published")  # of an evaluation


class Result(NamedTuple):
    """What a finished run leaves in memory; everything else is in the workdir."""

    final_return: list[float | None]  # [S] mean training return over the last fifth of the steps
    evaluation: Evaluation  # [S, E] greedy episodes
    pictures: list[Path]
    frozen_at: list[int]  # [S] iteration of the first non-finite loss, or -1
    causes: dict[str, str]  # of each frozen seed, the metric that was not finite first
    members: Members  # what each of the S is


def run(
    experiment: Experiment,
    directory: str | Path,
    seed: int = 0,
    num_seeds: int = 1,
    *,
    inside: Inside = (),
    first_seed: int = 0,
    resume: str = "auto",
    reporter: Reporter | None = None,
    allow_oversize: bool = False,
) -> Result:
    """Train, or go on training, `num_seeds` seeds in one program.

    Args:
      experiment: what to run.
      directory: the workdir; the same call goes on from its newest checkpoint.
      seed: lane i trains with `fold_in(key(seed), i)`.
      num_seeds: S.
      inside: (path, values) of numbers that vary beside the seeds; then S below is the number of
        members, every setting with every seed (see `members.Members`).
      first_seed: the lanes are first_seed … first_seed + S - 1, for seeds spread over programs.
      resume: "auto", "never" or "must"; see `workdir.prepare`.
      reporter: where progress goes; silent by default.
      allow_oversize: begin even where too little memory is free; see `preflight`.

    Raises ConfigError (a ValueError) for whatever the caller can mend, and `preemption.Preempted`
    where a signal asked the run to end: it is saved, and the same call goes on.
    """
    members = Members(seed, num_seeds, inside, first_seed)
    config.validate(experiment)
    system, reporter = _build(experiment), reporter or Quiet()
    plan = preflight.plan(experiment, system, len(members), allow_oversize)
    reporter.planned(plan)
    preflight.require_fit(plan)
    path = workdir.as_path(directory)
    workdir.check_usable(path)
    this = workdir.RunConfig(experiment, members)
    with preemption.listening(), _prepared(path, this, resume) as resumed:
        keys = members.keys()
        with contextlib.closing(make_programs(experiment, system, members)) as programs:
            programs.compile_ahead(keys, fresh=resumed is None)
            return _run(this, plan, programs, path, keys, resumed is not None, reporter)


def survey(experiment: Experiment, members: Members) -> preflight.Plan:
    """What `run` would take: compiles and times updates, and writes nothing.

    Raises ConfigError for whatever the caller can mend.
    """
    config.validate(experiment)
    system = _build(experiment)
    plan = preflight.plan(experiment, system, len(members))
    with contextlib.closing(make_programs(experiment, system, members)) as programs:
        return preflight.measure(programs, members.keys(), plan)


@contextlib.contextmanager
def _prepared(path: Path, this: workdir.RunConfig, resume: str) -> Iterator[int | None]:
    """Hold the workdir; yields the iteration to resume from. The first process does it for all."""
    if runtime.is_first_process():
        with files.locked(path):
            resumed = workdir.prepare(path, this, resume)
            runtime.wait_for_each_other("prepared")
            yield resumed
    else:
        runtime.wait_for_each_other("prepared")
        yield checkpoint.latest_iteration(path)


def _run(
    this: workdir.RunConfig,
    plan: preflight.Plan,
    programs: Programs | HostPrograms,
    path: Path,
    keys: jax.Array,
    resumed: bool,
    reporter: Reporter,
) -> Result:
    """Train to the last step, evaluate, draw."""
    experiment, num_seeds = this.experiment, programs.num_seeds
    with preemption.at_once():
        state, meta, segments = _initial(this, path, programs, keys, resumed)
    meta["first_seed"] = this.members.first_seed
    step = meta["iteration"] * experiment.num_envs
    with (
        reporter.running(experiment, programs, meta),
        _writer(path, num_seeds, step if resumed else None, experiment) as writer,
        checkpoint.Saver(
            path,
            num_seeds,
            programs.replay.rows,
            experiment.checkpoint_every,
            (meta["iteration"], meta["rows"], segments),
        ) as saver,
    ):
        if meta["iteration"] < experiment.iterations:
            preflight.require_room(plan, programs)
        state = train(experiment, programs, state, meta, writer, saver, reporter)
    with preemption.at_once():  # the last step is saved, and evaluation can be repeated
        return _finish(experiment, programs, path, keys, state, meta)


def _finish(
    experiment: Experiment,
    programs: Programs | HostPrograms,
    path: Path,
    keys: jax.Array,
    state: TrainState,
    meta: dict[str, Any],
) -> Result:
    """Evaluate and draw."""
    evaluation = evaluate_seeds(experiment, programs, state.agent, keys)
    predictions = programs.open_loop(state.agent, _keys_of(keys, "open_loop"))
    rows, pictures = read_metrics(path), []
    if runtime.is_first_process():
        write_evaluation(path, experiment, evaluation)
        pictures = write_pictures(path, experiment, predictions, rows)
    frozen_at = seeds.gather(state.agent.frozen_at, programs.num_seeds).tolist()
    found = {seed: frozen["metric"] for seed, frozen in meta["frozen"].items()}
    return Result(last_fifth(rows), evaluation, pictures, frozen_at, found, programs.members)


def _writer(path: Path, num_seeds: int, resume_step: int | None, experiment: Experiment):
    """The writer of metrics; of several processes only the first has files."""
    if not runtime.is_first_process():
        return NoMetrics()
    return MetricsWriter(path, num_seeds, resume_step, window=max(1, experiment.steps // 5))


def _build(experiment: Experiment) -> System:
    """`build`, with what does not fit told as the caller's error."""
    try:
        return build(experiment)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error


def restore_state(
    path: Path,
    programs: Programs | HostPrograms,
    keys: jax.Array,
    which: str = "newest",
    with_rows: bool = True,
) -> restore.Restored:
    """A checkpoint of a run, with the TrainState [S]; see `restore.restore` for `which`.

    `with_rows`: read the stored rows of the replay too, which take most of the time and memory.
    One that is refused is named on stderr.
    """
    check = functools.partial(workdir.check_meta, workdir.read_config(path))
    template = programs.state_template(keys)
    store, num_seeds = programs.replay.rows, programs.num_seeds
    wanted = restore.Wanted(template, store, num_seeds, check, with_rows)
    restored = restore.restore(path, wanted, which)
    for sentence in restored.refused:
        warn(sentence)
    return restored


def _initial(
    this: workdir.RunConfig,
    path: Path,
    programs: Programs | HostPrograms,
    keys: jax.Array,
    resumed: bool,
) -> tuple[TrainState, dict[str, Any], list[Segment]]:
    """(state, meta, segments of the replay) to go on from."""
    if resumed:
        restored = restore_state(path, programs, keys)
        _clean(path, restored.iteration)
        state = programs.resume(keys, restored.state, restored.iteration)
        return state, restored.meta | {"config": workdir.as_json(this)}, restored.segments
    _clean(path, None)
    meta = {
        "iteration": 0,
        "rows": 0,  # of each lane that were stored
        "env_steps": [0] * programs.num_seeds,
        "score": None,  # training return of the last fifth of the steps, mean over seeds
        "frozen": {},
        "versions": runtime.versions(),
        "config": workdir.as_json(this),
    }
    return programs.init(keys), meta, []


def _clean(path: Path, used: int | None) -> None:
    """`restore.clean`, when every process has read what it needs."""
    runtime.wait_for_each_other("read")
    if runtime.is_first_process():
        restore.clean(path, used)
    runtime.wait_for_each_other("cleaned")


def evaluate_seeds(
    experiment: Experiment,
    programs: Programs | HostPrograms,
    agent: AgentState,
    keys: jax.Array,
    num_episodes: int | None = None,
    explore: bool = False,
    protocol: str = "clean",
) -> Evaluation:
    """Complete episodes [S, E] with keys of their own.

    Args:
      experiment, programs, agent, keys: as `restore_run` returns them.
      num_episodes: E; by default the experiment's.
      explore: sample the actions instead of taking the best.
      protocol: which episodes count. "clean": a number for each lane that is fixed before.
        "published": the first E that end in any of 32 lanes, as in Drama's `eval.py`; this favours
        short ones (see `host_loop.play_first_episodes`).

    Raises ConfigError for another protocol.
    """
    if protocol not in PROTOCOLS:
        raise config.ConfigError(f"protocol={protocol!r} is none of {', '.join(PROTOCOLS)}")
    episodes = num_episodes or experiment.eval_episodes
    max_steps = experiment.eval_max_steps
    return programs.evaluate(
        episodes, explore, agent, _keys_of(keys, "evaluate"), max_steps, protocol
    )


def film_seeds(
    experiment: Experiment,
    programs: Programs | HostPrograms,
    agent: AgentState,
    keys: jax.Array,
    path: str | Path,
) -> list[tuple[Path, Film]]:
    """Play a greedy episode of each seed and write it as an animated GIF.

    On the host it is the first episode of an evaluation. Arguments as for `evaluate_seeds`, and

    Args:
      path: of the GIF; of several seeds, seed i goes to NAME_i.gif.

    Returns (where it lies, what it shows) of each seed. Raises ConfigError where observations are
    vectors, or the path cannot be written.
    """
    paths = gif_paths(path, experiment, programs.num_seeds)
    films = programs.film(agent, _keys_of(keys, "evaluate"), experiment.eval_max_steps)
    for target, film in zip(paths, films, strict=True):
        write_film(target, experiment, film.frames)
    return list(zip(paths, films, strict=True))


def _keys_of(keys: jax.Array, purpose: str) -> jax.Array:
    """A key of each seed for one purpose."""
    return jax.jit(jax.vmap(lambda key: named(key, purpose)))(keys)


def load_policy(directory: str | Path, seed_index: int = 0, *, explore: bool = False):
    """The trained policy of one seed of a run: (policy, carry).

    `policy(key, carry, timestep) -> (carry, action)` is jitted and acts in one environment;
    `carry` is what it starts from. Begin each episode with a timestep whose `is_first` is true.

    Raises ConfigError when the workdir holds no run or no such seed.
    """
    path = workdir.as_path(directory)
    saved = workdir.read_config(path)
    if not 0 <= seed_index < len(saved.members):
        raise config.ConfigError(
            f"seed_index={seed_index}: {path} holds the seeds 0 … {len(saved.members) - 1}"
        )
    experiment = config.with_numbers(saved.experiment, saved.members.setting(seed_index))
    system = build(experiment)
    programs = make_programs(experiment, system, saved.members)
    state = restore_state(path, programs, saved.members.keys(), with_rows=False).state
    agent_state = jax.tree.map(lambda x: x[seed_index], state.agent)
    act = jax.jit(functools.partial(system.agent.act, agent_state, explore=explore))
    return act, system.agent.initial_carry()


def restore_run(
    directory: str | Path, which: str = "newest"
) -> tuple[Experiment, Programs | HostPrograms, AgentState, jax.Array]:
    """A run's checkpoint, to be evaluated: (experiment, programs, agent [S], keys [S]).

    `which` is "newest", "best" in training return, or an iteration. Raises ConfigError when the
    workdir holds no run or no such checkpoint.
    """
    saved, programs, keys, restored = _restored(directory, which)
    return saved.experiment, programs, restored.state.agent, keys


def _restored(
    directory: str | Path, which: str
) -> tuple[workdir.RunConfig, Programs | HostPrograms, jax.Array, restore.Restored]:
    """A run's checkpoint without the rows of its replay."""
    path = workdir.as_path(directory)
    saved = workdir.read_config(path)
    programs = make_programs(saved.experiment, _build(saved.experiment), saved.members)
    keys = saved.members.keys()
    return saved, programs, keys, restore_state(path, programs, keys, which, with_rows=False)


def draw_open_loop(directory: str | Path, picture: str | Path, which: str = "newest") -> int:
    """Write the open-loop predictions of a checkpoint as a PNG; returns the step it is of.

    `which` as for `restore_run`. Raises ConfigError when the workdir holds no run or no such
    checkpoint. The run may go on training meanwhile: nothing is written to its workdir.
    """
    saved, programs, keys, restored = _restored(directory, which)
    predictions = programs.open_loop(restored.state.agent, _keys_of(keys, "open_loop"))
    step = restored.iteration * saved.experiment.num_envs
    write_open_loop(Path(picture), saved.experiment, predictions, f", step {step}")
    return step


def evaluate_run(
    directory: str | Path, num_episodes: int, *, explore: bool = False, protocol: str = "clean"
) -> Evaluation:
    """Evaluate every seed of a run's newest checkpoint; complete episodes [S, E].

    `explore` and `protocol` as for `evaluate_seeds`.
    """
    return evaluate_seeds(*restore_run(directory), num_episodes, explore, protocol)


def measure_quality(
    directory: str | Path, which: str = "newest", measured: quality.Config | None = None
) -> dict[str, Any]:
    """How good the world model of a checkpoint is, in numbers of every seed; see `quality`.

    Args:
      directory, which: as for `restore_run`.
      measured: what is played and predicted.

    Returns what `report.write_quality` writes. Raises ConfigError as `restore_run` does, and where
    nothing could be predicted.
    """
    measured = measured or quality.Config()
    try:
        measured.possible()
    except ValueError as error:
        raise config.ConfigError(str(error)) from error
    saved, programs, keys, restored = _restored(directory, which)
    found = programs.quality(restored.state.agent, _keys_of(keys, "quality"), measured)
    seeds_of = range(programs.num_seeds)
    return {
        "iteration": restored.iteration,
        "step": restored.iteration * saved.experiment.num_envs,
        **measured._asdict(),
        "seeds": [quality.summarise(jax.tree.map(lambda x, i=i: x[i], found)) for i in seeds_of],
    }
