"""Run an experiment for S seeds: the shell around the pure loop."""

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.keys import named
from mbrl_jax.train import checkpoint, config, preflight, seeds, workdir
from mbrl_jax.train.experiment import Experiment, System, build
from mbrl_jax.train.host_loop import Film
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.loop import Evaluation, Phase, TrainState
from mbrl_jax.train.metrics import MetricsWriter, last_fifth, read_metrics
from mbrl_jax.train.programs import Programs, make_programs
from mbrl_jax.train.progress import Quiet, Reporter
from mbrl_jax.train.report import gif_paths, write_evaluation, write_film, write_pictures
from mbrl_jax.train.runtime import versions
from mbrl_jax.types import AgentState

PROTOCOLS = ("clean", "published")  # of an evaluation


class Result(NamedTuple):
    """What a finished run leaves in memory; everything else is in the workdir."""

    final_return: list[float | None]  # [S] mean training return over the last fifth of the steps
    evaluation: Evaluation  # [S, E] greedy episodes
    pictures: list[Path]
    frozen_at: list[int]  # [S] iteration of the first non-finite loss, or -1


def run(
    experiment: Experiment,
    directory: str | Path,
    seed: int = 0,
    num_seeds: int = 1,
    *,
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
      resume: "auto", "never" or "must"; see `workdir.prepare`.
      reporter: where progress goes; silent by default.
      allow_oversize: begin even where too little memory is free; see `preflight`.

    Raises ConfigError (a ValueError) for whatever the caller can mend.
    """
    _check_seeds(seed, num_seeds)
    config.validate(experiment)
    system, reporter = _build(experiment), reporter or Quiet()
    plan = preflight.plan(experiment, system, num_seeds, allow_oversize)
    reporter.planned(plan)
    preflight.require_fit(plan)
    path = workdir.as_path(directory)
    resumed = workdir.prepare(path, workdir.RunConfig(experiment, seed, num_seeds), resume)
    keys = seeds.seed_keys(seed, num_seeds)
    with contextlib.closing(make_programs(experiment, system, num_seeds)) as programs:
        programs.compile_ahead(keys, fresh=resumed is None)
        return _run(plan, programs, path, keys, resumed, reporter)


def survey(experiment: Experiment, seed: int = 0, num_seeds: int = 1) -> preflight.Plan:
    """What `run` would take: compiles and times updates, and writes nothing.

    Raises ConfigError for whatever the caller can mend.
    """
    _check_seeds(seed, num_seeds)
    config.validate(experiment)
    system = _build(experiment)
    plan = preflight.plan(experiment, system, num_seeds)
    with contextlib.closing(make_programs(experiment, system, num_seeds)) as programs:
        return preflight.measure(programs, seeds.seed_keys(seed, num_seeds), plan)


def _run(
    plan: preflight.Plan,
    programs: Programs | HostPrograms,
    path: Path,
    keys: jax.Array,
    resumed: int | None,
    reporter: Reporter,
) -> Result:
    """Train to the last step, evaluate, draw."""
    experiment = plan.experiment
    state, meta = _initial(path, programs, keys, resumed)
    with (
        reporter.running(experiment, programs, meta),
        MetricsWriter(
            path, programs.num_seeds, resumed and resumed * experiment.num_envs
        ) as writer,
        checkpoint.Checkpointer(path) as saver,
    ):
        if meta["iteration"] < experiment.iterations:
            preflight.require_room(plan, programs)
        state = _train(experiment, programs, state, meta, writer, saver, reporter)
    evaluation = evaluate_seeds(experiment, programs, state.agent, keys)
    write_evaluation(path, experiment, evaluation)
    rows = read_metrics(path)
    picture_keys = jax.vmap(lambda key: named(key, "open_loop"))(keys)
    predictions = programs.open_loop(state.agent, picture_keys)
    pictures = write_pictures(path, experiment, predictions, rows)
    frozen_at = np.asarray(state.agent.frozen_at).tolist()
    return Result(last_fifth(rows), evaluation, pictures, frozen_at)


def _build(experiment: Experiment) -> System:
    """`build`, with what does not fit told as the caller's error."""
    try:
        return build(experiment)
    except ValueError as error:
        raise config.ConfigError(str(error)) from error


def _check_seeds(seed: int, num_seeds: int) -> None:
    if num_seeds < 1:
        raise config.ConfigError(f"--num_seeds={num_seeds} must be at least 1")
    if not 0 <= seed < 2**32:
        raise config.ConfigError(f"--seed={seed} must lie in 0 … 2^32 - 1")


def restore_state(
    path: Path, programs: Programs | HostPrograms, keys: jax.Array
) -> tuple[int, TrainState, dict[str, Any]]:
    """The newest checkpoint of a run as a TrainState [S]."""
    return checkpoint.restore(path, programs.state_template(keys))


def _initial(
    path: Path, programs: Programs | HostPrograms, keys: jax.Array, resumed: int | None
) -> tuple[TrainState, dict[str, Any]]:
    if resumed is not None:
        iteration, state, meta = restore_state(path, programs, keys)
        return programs.resume(keys, state, iteration), meta
    meta = {"iteration": 0, "env_steps": [0] * programs.num_seeds, "versions": versions()}
    return programs.init(keys), meta


def chunk_bounds(experiment: Experiment, start: int) -> Iterator[tuple[Phase, int, int]]:
    """(phase, start, stop) of every chunk from iteration `start` on.

    Stops lie at absolute multiples of `log_every` and at ends of phases, so a resumed run has the
    chunks of an uninterrupted one.
    """
    phase_end = 0
    for phase in experiment.phases:
        phase_end = min(phase_end + phase.iterations, experiment.iterations)
        while start < phase_end:
            grid = (start // experiment.log_every + 1) * experiment.log_every
            stop = min(grid, phase_end)
            yield phase, start, stop
            start = stop


def _train(
    experiment: Experiment,
    programs: Programs | HostPrograms,
    state: TrainState,
    meta: dict[str, Any],
    writer: MetricsWriter,
    saver: checkpoint.Checkpointer,
    reporter: Reporter,
) -> TrainState:
    for phase, start, stop in chunk_bounds(experiment, meta["iteration"]):
        state, metrics, seconds = programs.chunk(phase, state, start, stop)
        meta["iteration"] = stop
        rows = _rows(metrics, meta, stop * experiment.num_envs)
        writer.write(stop * experiment.num_envs, rows)
        reporter.chunk_done(stop * experiment.num_envs, rows, seconds)
        if stop % experiment.checkpoint_every == 0 or stop == experiment.iterations:
            saver.save(stop, state, meta)
    return state


def _rows(metrics: dict, meta: dict[str, Any], step: int) -> list[dict[str, Any]]:
    """One row of numbers for each seed; advances the host's step counts in `meta`."""
    steps, _ = metrics.pop("count/env_steps", (np.zeros(len(meta["env_steps"])), None))
    meta["env_steps"] = [
        total + round(float(new)) for total, new in zip(meta["env_steps"], steps, strict=True)
    ]
    rows = []
    for i, env_steps in enumerate(meta["env_steps"]):
        row = {"step": step, "seed": i, "env_steps": env_steps}
        for name, (total, count) in sorted(metrics.items()):
            row[name] = float(total[i]) / float(count[i]) if count[i] else None
        row["count/updates"] = round(float(metrics["count/updates"][1][i]))
        if "episode/return" in metrics:
            row["episode/count"] = round(float(metrics["episode/return"][1][i]))
        rows.append(row)
    return rows


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
    return programs.evaluate(episodes, explore, agent, _eval_keys(keys), max_steps, protocol)


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
    films = programs.film(agent, _eval_keys(keys), experiment.eval_max_steps)
    for target, film in zip(paths, films, strict=True):
        write_film(target, experiment, film.frames)
    return list(zip(paths, films, strict=True))


def _eval_keys(keys: jax.Array) -> jax.Array:
    return jax.vmap(lambda key: named(key, "evaluate"))(keys)


def load_policy(directory: str | Path, seed_index: int = 0, *, explore: bool = False):
    """The trained policy of one seed of a run: (policy, carry).

    `policy(key, carry, timestep) -> (carry, action)` is jitted and acts in one environment;
    `carry` is what it starts from. Begin each episode with a timestep whose `is_first` is true.

    Raises ConfigError when the workdir holds no run or no such seed.
    """
    path = workdir.as_path(directory)
    saved = workdir.read_config(path)
    if not 0 <= seed_index < saved.num_seeds:
        raise config.ConfigError(
            f"seed_index={seed_index}: {path} holds the seeds 0 … {saved.num_seeds - 1}"
        )
    system = build(saved.experiment)
    programs = make_programs(saved.experiment, system, saved.num_seeds)
    _, state, _ = restore_state(path, programs, seeds.seed_keys(saved.seed, saved.num_seeds))
    agent_state = jax.tree.map(lambda x: x[seed_index], state.agent)
    act = jax.jit(functools.partial(system.agent.act, agent_state, explore=explore))
    return act, system.agent.initial_carry()


def restore_run(
    directory: str | Path,
) -> tuple[Experiment, Programs | HostPrograms, AgentState, jax.Array]:
    """A run's newest checkpoint, to be evaluated: (experiment, programs, agent [S], keys [S]).

    Raises ConfigError when the workdir holds no run.
    """
    path = workdir.as_path(directory)
    saved = workdir.read_config(path)
    programs = make_programs(saved.experiment, _build(saved.experiment), saved.num_seeds)
    keys = seeds.seed_keys(saved.seed, saved.num_seeds)
    _, state, _ = restore_state(path, programs, keys)
    return saved.experiment, programs, state.agent, keys


def evaluate_run(
    directory: str | Path, num_episodes: int, *, explore: bool = False, protocol: str = "clean"
) -> Evaluation:
    """Evaluate every seed of a run's newest checkpoint; complete episodes [S, E].

    `explore` and `protocol` as for `evaluate_seeds`.
    """
    return evaluate_seeds(*restore_run(directory), num_episodes, explore, protocol)
