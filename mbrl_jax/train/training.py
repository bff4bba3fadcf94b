"""Training from a state to the last step: chunks, rows of metrics, saves, and what goes wrong."""

import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from mbrl_jax.agents.parts import CAUSE, cause_of
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.loops import seeds
from mbrl_jax.loops.host import LanesFailed
from mbrl_jax.loops.phases import Phase
from mbrl_jax.loops.steps import Evaluation, TrainState
from mbrl_jax.runs import checkpoint
from mbrl_jax.runs.metrics import MetricsWriter
from mbrl_jax.train import preemption
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.programs import Programs
from mbrl_jax.train.progress import Reporter
from mbrl_jax.types import AgentState

# By name ("" is the environment of training): (agent [S]) -> Evaluation [S, E].
Judges = Mapping[str, Callable[[AgentState], Evaluation]]
MAX_SHARE = 0.02  # of a run's time that saves may take before it is said


class EnvironmentFailed(config.ConfigError):
    """Environments on the host broke down; the run is saved as far as it had come."""


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


def train(
    experiment: Experiment,
    programs: Programs | HostPrograms,
    state: TrainState,
    meta: dict[str, Any],
    writer: MetricsWriter,
    saver: checkpoint.Saver,
    reporter: Reporter,
    judges: Judges,
) -> TrainState:
    """Chunk after chunk to the last step; see `run` for how it ends before.

    `judges`: what plays greedy episodes every `eval_every` iterations, by name.
    """
    began, slow, ending = time.perf_counter(), False, False
    endless = programs.system.world_model.endless
    for phase, start, stop in chunk_bounds(experiment, meta["iteration"]):
        # A chunk on the host can fail in its middle, when its buffers are given away.
        taken: Any = saver.take(state) if programs.on_host else None
        try:
            state, metrics, seconds = programs.chunk(phase, state, start, stop)
        except preemption.Preempted:  # while it waited for a program: nothing was done
            saver.save(start, saver.take(state), state.replay, meta)
            ending = True
            break
        except LanesFailed as error:
            later = stop - start if phase.collect else 0
            if saver.holds(meta["rows"], later):
                saver.save(start, taken, error.replay, meta)
            raise _environment_failed(error, saver.saved * experiment.num_envs) from error
        meta["iteration"], step = stop, stop * experiment.num_envs
        meta["rows"] += stop - start if phase.collect else 0
        _tell_of_frozen(experiment, metrics, state, meta, reporter)
        if endless and _holds_ends(programs, state):
            _tell_of_ends(endless, step, reporter)
            endless = ""
        rows = _rows(metrics, meta, step)
        if experiment.eval_every and stop % experiment.eval_every == 0:
            _judge(judges, state, rows)
        writer.write(step, rows)
        reporter.chunk_done(step, rows, seconds)
        due = stop % experiment.checkpoint_every == 0 or stop == experiment.iterations
        ending = seeds.any_process(preemption.received())
        if due or ending:
            meta["score"] = writer.score() if due else None
            saver.save(stop, saver.take(state), state.replay, meta)
        saver.check()
        slow = slow or _tell_of_slow_saves(experiment, saver, time.perf_counter() - began, reporter)
        if ending:
            break
    if ending or preemption.received():
        done = f"saved at step {saver.saved * experiment.num_envs} of {experiment.steps}"
        raise preemption.ended(done)
    return state


def _judge(judges: Judges, state: TrainState, rows: list[dict[str, Any]]) -> None:
    """Add the mean of greedy episodes to each seed's row."""
    for name, play in judges.items():
        played = play(state.agent)
        group = f"eval/{name}" if name else "eval"
        numbers = {"return": played.episode_return, "length": played.length} | played.extras
        for label, of_episodes in numbers.items():
            for row, episodes in zip(rows, of_episodes, strict=True):
                with np.errstate(invalid="ignore"):  # inf - inf
                    row[f"{group}/{label}"] = float(np.mean(episodes))


def _environment_failed(error: LanesFailed, step: int) -> EnvironmentFailed:
    lines = str(error.__cause__).strip().splitlines() or [type(error.__cause__).__name__]
    saved = f"step {step} is saved, and the same command goes on from there"
    if not step:
        saved = "nothing was trained yet: the same command begins afresh"
    return EnvironmentFailed(f"the environments failed ({lines[0][:200]}); {saved}")


def _tell_of_frozen(
    experiment: Experiment,
    metrics: dict[str, Any],
    state: TrainState,
    meta: dict[str, Any],
    reporter: Reporter,
) -> None:
    """Name the cause where a seed froze in this chunk, and keep it in `meta`."""
    number, froze = metrics.pop(CAUSE, (None, np.zeros(0)))
    if not froze.any():
        return
    frozen_at = seeds.gather(state.agent.frozen_at, len(meta["env_steps"]))
    for seed in np.flatnonzero(froze).tolist():
        metric = cause_of(number[seed], metrics)
        step = int(frozen_at[seed]) % 2**32 * experiment.num_envs
        meta["frozen"][str(seed)] = {"step": step, "metric": metric}
        reporter.warn(
            f"seed {meta['first_seed'] + seed}: {metric} was not finite at step {step}; its agent "
            "stays at the last good value, the other seeds go on"
        )


def _holds_ends(programs: Programs | HostPrograms, state: TrainState) -> bool:
    """Whether a stored row of this process's seeds ends an episode for good."""
    store = programs.replay.rows
    timestep = getattr(store and store.get(state.replay), "timestep", None)
    if timestep is None:
        return False
    return any(bool(part.data.any()) for part in timestep.is_terminal.addressable_shards)


def _tell_of_ends(endless: str, step: int, reporter: Reporter) -> None:
    """Once: that the model imagines what comes after the end of an episode."""
    reporter.warn(
        f"until step {step} episodes of this environment ended, and the world model imagines that "
        f"they always go on, so that values behind an end count: {endless}, in another workdir"
    )


def _tell_of_slow_saves(
    experiment: Experiment, saver: checkpoint.Saver, seconds: float, reporter: Reporter
) -> bool:
    """Once, after a minute: that training waits for saves."""
    share = saver.seconds / seconds
    if seconds < 60 or share < MAX_SHARE:
        return False
    reporter.warn(
        f"saves took {share:.1%} of the time until now: a checkpoint_every above "
        f"{experiment.checkpoint_every} takes less, and a kill then loses more"
    )
    return True


def _rows(metrics: dict, meta: dict[str, Any], step: int) -> list[dict[str, Any]]:
    """One row of numbers for each seed; advances the host's step counts in `meta`."""
    steps, _ = metrics.pop("count/env_steps", (np.zeros(len(meta["env_steps"])), None))
    meta["env_steps"] = [
        total + round(float(new)) for total, new in zip(meta["env_steps"], steps, strict=True)
    ]
    rows = []
    for i, env_steps in enumerate(meta["env_steps"]):
        row = {"step": step, "seed": meta["first_seed"] + i, "env_steps": env_steps}
        for name, (total, count) in sorted(metrics.items()):
            row[name] = float(total[i]) / float(count[i]) if count[i] else None
        row["count/updates"] = round(float(metrics["count/updates"][1][i]))
        if "episode/return" in metrics:
            row["episode/count"] = round(float(metrics["episode/return"][1][i]))
        rows.append(row)
    return rows
