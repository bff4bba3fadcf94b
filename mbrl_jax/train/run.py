"""Run an experiment for S seeds: the shell around the pure loop."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax

from mbrl_jax.experiment import config, first_look
from mbrl_jax.experiment.experiment import Experiment, System
from mbrl_jax.experiment.members import Inside, Members
from mbrl_jax.loops import seeds
from mbrl_jax.loops.steps import Evaluation, TrainState
from mbrl_jax.mirrors import mirror
from mbrl_jax.runs import checkpoint, circumstances, files, restore, workdir
from mbrl_jax.runs.metrics import MetricsWriter, NoMetrics, last_fifth, mean_return, read_metrics
from mbrl_jax.runs.replay_log import Segment
from mbrl_jax.train import preemption, preflight, progress, runtime
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.programs import Programs, make_programs
from mbrl_jax.train.progress import Reporter
from mbrl_jax.train.report import draws, write_evaluation, write_pictures
from mbrl_jax.train.trained import build_system, evaluate_seeds, keys_of, restore_state
from mbrl_jax.train.training import Judges, train
from mbrl_jax.types import AgentState


class Result(NamedTuple):
    """What a finished run leaves in memory; everything else is in the workdir."""

    final_return: list[float | None]  # [S] mean training return over the last fifth of the steps
    evaluation: Evaluation  # [S, E] greedy episodes
    pictures: list[Path]
    frozen_at: list[int]  # [S] iteration of the first non-finite loss, or -1
    causes: dict[str, str]  # of each frozen seed, the metric that was not finite first
    members: Members  # what each of the S is
    updates: int  # of each seed
    whole_return: Sequence[float | None] = ()  # [S] as final_return, over all steps


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
    mirrors: Sequence[str] = (),
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
      reporter: where progress goes; by default it is shown in a notebook, and elsewhere not.
      allow_oversize: begin even where too little memory is free; see `preflight`.
      mirrors: names of places that rows of metrics go to beside the workdir; see `mirrors.mirror`.

    Raises ConfigError (a ValueError) for whatever the caller can mend, and `preemption.Preempted`
    where a signal asked the run to end: it is saved, and the same call goes on.
    """
    members = Members(seed, num_seeds, inside, first_seed)
    with contextlib.closing(Runner(experiment, reporter, allow_oversize, mirrors)) as runner:
        return runner.run(directory, members, resume)


class Runner:
    """Runs one experiment, time after time, with programs that are compiled once."""

    def __init__(
        self,
        experiment: Experiment,
        reporter: Reporter | None = None,
        allow_oversize: bool = False,
        mirrors: Sequence[str] = (),
    ):
        """Nothing is compiled yet; arguments as for `run`. Raises ConfigError as `run` does."""
        config.validate(experiment)
        self.experiment, self.reporter = experiment, reporter or progress.usual()
        self._allow_oversize = allow_oversize
        self._mirrors = mirror.load(mirrors) if runtime.is_first_process() else {}
        self._system = build_system(experiment)
        self._programs: Programs | HostPrograms | None = None

    def run(self, directory: str | Path, members: Members, resume: str = "auto") -> Result:
        """As `run`; members after the first ones may differ in seeds and in values alone."""
        experiment, system, reporter = self.experiment, self._system, self.reporter
        plan = preflight.plan(experiment, system, len(members), self._allow_oversize)
        reporter.planned(plan)
        preflight.require_fit(plan)
        path = workdir.as_path(directory)
        workdir.check_usable(path)
        this = workdir.RunConfig(experiment, members)
        with preemption.listening(), _prepared(path, this, resume) as resumed:
            if resumed is None:
                first_look.require_choices(experiment.env)
                if warning := first_look.require_reconstructed(experiment):
                    reporter.warn(warning)
            keys = members.keys()
            programs = self._programs_for(members, keys, fresh=resumed is None)
            went_on = resumed is not None
            return _run(this, plan, programs, path, keys, went_on, reporter, self._mirrors)

    def _programs_for(
        self, members: Members, keys: jax.Array, *, fresh: bool
    ) -> Programs | HostPrograms:
        if self._programs is not None:
            self._programs.serve(members)
            return self._programs
        self._programs = make_programs(self.experiment, self._system, members)
        self._programs.compile_ahead(keys, fresh=fresh)
        if fresh:  # what would fail at the end fails before anything is saved
            self._programs.require_traced()
        return self._programs

    def close(self) -> None:
        """Close what the programs hold."""
        if self._programs is not None:
            self._programs.close()


def survey(experiment: Experiment, members: Members) -> preflight.Plan:
    """What `run` would take: compiles and times updates, and writes nothing.

    Raises ConfigError for whatever the caller can mend.
    """
    config.validate(experiment)
    system = build_system(experiment)
    first_look.require_choices(experiment.env)
    first_look.require_reconstructed(experiment)
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
    makes: Mapping[str, mirror.Make],
) -> Result:
    """Train to the last step, evaluate, draw."""
    experiment, num_seeds = this.experiment, programs.num_seeds
    with preemption.at_once():
        state, meta, segments = _initial(this, path, programs, keys, resumed, reporter)
    meta["first_seed"] = this.members.first_seed
    step = meta["iteration"] * experiment.num_envs
    with (
        _judges(this, programs, keys) as judges,
        reporter.running(experiment, meta),
        _writer(path, num_seeds, step if resumed else None, experiment) as writer,
        mirror.Mirrors(path, makes, _about(this, path, resumed), reporter.warn) as mirrored,
        checkpoint.Saver(
            path,
            num_seeds,
            programs.replay.rows,
            experiment.checkpoint_every,
            (meta["iteration"], meta["rows"], segments),
            lambda iteration: mirrored.settled(iteration * experiment.num_envs),
        ) as saver,
    ):
        mirrored.settled(step)  # what a kill, or a run without mirrors, left
        if meta["iteration"] < experiment.iterations:
            _tell_of_frozen(meta, reporter)
            preflight.require_room(plan, programs)
        state = train(experiment, programs, state, meta, writer, saver, reporter, judges)
    with preemption.at_once():  # the last step is saved, and evaluation can be repeated
        return _finish(experiment, programs, path, keys, state, meta)


def _about(this: workdir.RunConfig, path: Path, resumed: bool) -> mirror.About:
    """What mirrors are told of a run."""
    return mirror.About(path.resolve().name, workdir.as_json(this), begins=not resumed)


def _tell_of_frozen(meta: dict[str, Any], reporter: Reporter) -> None:
    """Name the seeds of a checkpoint that will learn no more."""
    frozen, count = meta["frozen"], len(meta["env_steps"])
    if not frozen:
        return
    told = [
        f"{meta['first_seed'] + int(seed)} at step {known['step']} ({known['metric']})"
        for seed, known in frozen.items()
    ]
    all_of_them = "all seeds are" if len(frozen) == count else f"{len(frozen)} of {count} seeds are"
    reporter.warn(
        f"{all_of_them} frozen and learn no more: seed {', '.join(told[:8])}"
        f"{' …' if len(told) > 8 else ''}"
    )


@contextlib.contextmanager
def _judges(
    this: workdir.RunConfig, programs: Programs | HostPrograms, keys: jax.Array
) -> Iterator[Judges]:
    """What plays greedy episodes during training; other environments have programs of their own."""
    experiment = this.experiment
    if not experiment.eval_every:
        yield {}
        return
    with contextlib.ExitStack() as stack:
        players = {"": programs}
        for name, env in experiment.eval_envs:
            system = build_system(dataclasses.replace(experiment, env=env))
            _require_same_kind(name, system, programs.system)
            made = make_programs(experiment, system, this.members)
            players[name] = stack.enter_context(contextlib.closing(made))
        own_keys = keys_of(keys, "evaluate")
        episodes, limit = experiment.eval_episodes, experiment.eval_max_steps
        yield {
            name: functools.partial(_judge, player, episodes, own_keys, limit)
            for name, player in players.items()
        }


def _require_same_kind(name: str, system: System, trained: System) -> None:
    """Raise ConfigError where an agent of one environment cannot play in another."""
    there, here = system.env.spec, trained.env.spec
    if (there.observation, there.action) != (here.observation, here.action):
        raise config.ConfigError(
            f"eval_envs: {name} has {there.observation} and {there.action}, and the agent is made "
            f"for {here.observation} and {here.action}"
        )


def _judge(
    player: Programs | HostPrograms, episodes: int, keys: jax.Array, limit: int, agent: AgentState
) -> Evaluation:
    """Greedy episodes of the agent of the moment."""
    return player.evaluate(episodes, False, agent, keys, limit)


def _finish(
    experiment: Experiment,
    programs: Programs | HostPrograms,
    path: Path,
    keys: jax.Array,
    state: TrainState,
    meta: dict[str, Any],
) -> Result:
    """Evaluate and draw."""
    with _enough_memory(path):
        evaluation = evaluate_seeds(experiment, programs, state.agent, keys)
        predictions = None
        if draws(programs.system):
            predictions = programs.open_loop(state.agent, keys_of(keys, "open_loop"))
    rows, pictures = read_metrics(path), []
    if runtime.is_first_process():
        write_evaluation(path, experiment, evaluation)
        spec = programs.system.env.spec.observation
        pictures = write_pictures(path, experiment, spec, predictions, rows)
    frozen_at = seeds.gather(state.agent.frozen_at, programs.num_seeds).tolist()
    found = {seed: frozen["metric"] for seed, frozen in meta["frozen"].items()}
    updates = int(sum(row.get("count/updates") or 0 for row in rows)) // programs.num_seeds
    told = (evaluation, pictures, frozen_at, found, programs.members, updates)
    return Result(last_fifth(rows), *told, mean_return(rows))


@contextlib.contextmanager
def _enough_memory(path: Path) -> Iterator[None]:
    """Raise ConfigError where what follows the training runs out of memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not (told := runtime.out_of_memory(error)):
            raise
        raise config.ConfigError(
            f"everything is trained and saved in {path}, but the evaluation ran out of memory "
            f"({told}): free some, and the same command evaluates and draws; or `python -m "
            "launch.evaluate` with a smaller --num_episodes"
        ) from error


def _writer(path: Path, num_seeds: int, resume_step: int | None, experiment: Experiment):
    """The writer of metrics; of several processes only the first has files."""
    if not runtime.is_first_process():
        return NoMetrics()
    return MetricsWriter(path, num_seeds, resume_step, window=max(1, experiment.steps // 5))


def _initial(
    this: workdir.RunConfig,
    path: Path,
    programs: Programs | HostPrograms,
    keys: jax.Array,
    resumed: bool,
    reporter: Reporter,
) -> tuple[TrainState, dict[str, Any], list[Segment]]:
    """(state, meta, segments of the replay) to go on from."""
    if resumed:
        restored = restore_state(path, programs, keys)
        meta, said = circumstances.gone_on(path, restored.meta, this.experiment)
        _warn(reporter, said)
        _clean(path, restored.iteration)
        state = programs.resume(keys, restored.state, restored.iteration)
        return state, meta | {"config": workdir.as_json(this)}, restored.segments
    _warn(reporter, circumstances.unusual(programs.num_seeds))
    _clean(path, None)
    meta = {
        "iteration": 0,
        "rows": 0,  # of each lane that were stored
        "env_steps": [0] * programs.num_seeds,
        "score": None,  # training return of the last fifth of the steps, mean over seeds
        "frozen": {},
        **circumstances.record(this.experiment),
        "config": workdir.as_json(this),
    }
    return programs.init(keys), meta, []


def _warn(reporter: Reporter, sentences: list[str]) -> None:
    """Say them, once for all processes."""
    if runtime.is_first_process():
        for sentence in sentences:
            reporter.warn(sentence)


def _clean(path: Path, used: int | None) -> None:
    """`restore.clean`, when every process has read what it needs."""
    runtime.wait_for_each_other("read")
    if runtime.is_first_process():
        restore.clean(path, used)
    runtime.wait_for_each_other("cleaned")
