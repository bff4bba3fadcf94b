"""What can be done with a run that was trained: evaluate, film, draw, measure, act."""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

from mbrl_jax.envs.spec import require_observation
from mbrl_jax.evaluate import quality
from mbrl_jax.evaluate.animations import ROW_MILLISECONDS
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment, System, build, with_settings
from mbrl_jax.keys import named
from mbrl_jax.loops.play import Film
from mbrl_jax.loops.steps import Evaluation
from mbrl_jax.runs import circumstances, restore, workdir
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.programs import Programs, make_programs
from mbrl_jax.train.progress import warn
from mbrl_jax.train.report import (
    gif_paths,
    require_drawn,
    write_film,
    write_imagined_episodes,
    write_open_loop,
)
from mbrl_jax.types import AgentState, PyTree

PROTOCOLS = ("clean", "published")  # of an evaluation


def build_system(experiment: Experiment) -> System:
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
    One that is refused is named on stderr. Raises ConfigError, too where this process has settings
    under which a good one cannot be read.
    """
    saved = workdir.read_config(path)

    def check(meta):
        circumstances.require_readable(path, meta)
        workdir.check_meta(saved, meta)

    template = programs.state_template(keys)
    store, num_seeds = programs.replay.rows, programs.num_seeds
    wanted = restore.Wanted(template, store, num_seeds, check, with_rows)
    restored = restore.restore(path, wanted, which)
    for sentence in restored.refused:
        warn(sentence)
    return restored


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
      num_episodes: E; by default the experiment's. 0: nothing is played.
      explore: sample the actions instead of taking the best.
      protocol: which episodes count. "clean": a number for each lane that is fixed before.
        "published": the first E that end in any of 32 lanes, as in Drama's `eval.py`; this favours
        short ones (see `play.play_first_episodes`).

    Raises ConfigError for another protocol.
    """
    if protocol not in PROTOCOLS:
        raise config.ConfigError(f"protocol={protocol!r} is none of {', '.join(PROTOCOLS)}")
    episodes = experiment.eval_episodes if num_episodes is None else num_episodes
    if episodes == 0:
        shape = (programs.num_seeds, 0)
        none: list[Any] = [np.zeros(shape, dtype) for dtype in (np.float32, np.int32, bool)]
        return Evaluation(*none)
    max_steps = experiment.eval_max_steps
    return programs.evaluate(
        episodes, explore, agent, keys_of(keys, "evaluate"), max_steps, protocol
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

    Returns (where it lies, what it shows) of each seed: images that the agent sees, else what the
    environment renders. Raises ConfigError where there is neither, or the path cannot be written.
    """
    paths = gif_paths(path, experiment, programs.num_seeds)
    films = programs.film(agent, keys_of(keys, "evaluate"), experiment.eval_max_steps)
    for target, film in zip(paths, films, strict=True):
        write_film(target, experiment, film.frames)
    return list(zip(paths, films, strict=True))


def keys_of(keys: jax.Array, purpose: str) -> jax.Array:
    """A key of each seed for one purpose."""
    return jax.jit(jax.vmap(lambda key: named(key, purpose)))(keys)


class TrainedPolicy(NamedTuple):
    """One member of a run, as its checkpoint has it."""

    experiment: Experiment
    system: System
    state: AgentState  # of this member alone
    seed: int  # its lane
    step: int  # of the checkpoint


def restore_policy(
    directory: str | Path, seed_index: int = 0, which: str | int = "newest"
) -> TrainedPolicy:
    """The agent of one seed of a run.

    Args:
      directory: the workdir.
      seed_index: which of the run's members.
      which: "newest", "best" in training return, or an iteration.

    Raises ConfigError when the workdir holds no run, no such seed or no such checkpoint.
    """
    path = workdir.as_path(directory)
    saved = workdir.read_config(path)
    members = saved.members
    if not 0 <= seed_index < len(members):
        raise config.ConfigError(
            f"seed_index={seed_index}: {path} holds the seeds 0 … {len(members) - 1}"
        )
    experiment = config.with_numbers(saved.experiment, members.setting(seed_index))
    system = build(experiment)
    programs = make_programs(experiment, system, members)
    restored = restore_state(path, programs, members.keys(), str(which), with_rows=False)
    state = jax.tree.map(lambda x: x[seed_index], restored.state.agent)
    seed = members.first_seed + seed_index % members.num_seeds
    return TrainedPolicy(experiment, system, state, seed, restored.iteration * experiment.num_envs)


def load_policy(
    directory: str | Path,
    seed_index: int = 0,
    which: str | int = "newest",
    *,
    explore: bool = False,
) -> tuple[Callable, PyTree]:
    """The trained policy of one seed of a run: (policy, carry).

    `policy(key, carry, timestep) -> (carry, action)` is jitted and acts in one environment;
    `carry` is what it starts from. Begin each episode with a timestep whose `is_first` is true.
    It raises ValueError for an observation of another shape or dtype than the agent was trained
    with. Arguments as for `restore_policy`, and

    Args:
      explore: sample actions instead of taking the best.

    Raises ConfigError as `restore_policy` does.
    """
    trained = restore_policy(directory, seed_index, which)
    agent, spec = trained.system.agent, trained.system.env.spec
    act = jax.jit(functools.partial(agent.act, trained.state, explore=explore))

    def policy(key, carry, timestep):
        require_observation(spec, timestep.observation)
        return act(key, carry, timestep)

    return policy, agent.initial_carry()


def restore_run(
    directory: str | Path, which: str = "newest", settings: Sequence[str] = ()
) -> tuple[Experiment, Programs | HostPrograms, AgentState, jax.Array]:
    """A run's checkpoint, to be evaluated: (experiment, programs, agent [S], keys [S]).

    Args:
      directory: the workdir.
      which: "newest", "best" in training return, or an iteration.
      settings: "path=value" of fields that are to differ from the run's, for judging it alone: how
        a planner plans, or the environment. Nothing is written to the workdir.

    Raises ConfigError when the workdir holds no run or no such checkpoint, and for a setting under
    which the trained state would have another shape.
    """
    saved, programs, keys, restored = _restored(directory, which, settings)
    return saved.experiment, programs, restored.state.agent, keys


def _restored(
    directory: str | Path, which: str, settings: Sequence[str] = ()
) -> tuple[workdir.RunConfig, Programs | HostPrograms, jax.Array, restore.Restored]:
    """A run's checkpoint without the rows of its replay."""
    path = workdir.as_path(directory)
    saved = workdir.read_config(path)
    programs = make_programs(saved.experiment, build_system(saved.experiment), saved.members)
    keys = saved.members.keys()
    if settings:
        saved = saved._replace(experiment=_with_settings(saved, settings))
        trained = programs.state_template(keys)
        programs = make_programs(saved.experiment, build_system(saved.experiment), saved.members)
        if _shapes(programs.state_template(keys)) != _shapes(trained):
            raise config.ConfigError(
                f"{' '.join(settings)} would change the shapes of what was trained; a run can be "
                "judged under other settings only where its state stays the same"
            )
    return saved, programs, keys, restore_state(path, programs, keys, which, with_rows=False)


def _with_settings(saved: workdir.RunConfig, settings: Sequence[str]) -> Experiment:
    """The experiment of a run under other settings."""
    experiment = with_settings(saved.experiment, settings)
    config.validate(experiment)
    saved.members.require_unset(saved.experiment, experiment)
    return experiment


def _shapes(template: Any) -> tuple[Any, list]:
    """Tree, shapes and dtypes of a template."""
    leaves, tree = jax.tree.flatten(template)
    return tree, [(leaf.shape, leaf.dtype) for leaf in leaves]


def draw_open_loop(directory: str | Path, picture: str | Path, which: str = "newest") -> int:
    """Write the open-loop predictions of a checkpoint as a PNG; returns the step it is of.

    `which` as for `restore_run`. Raises ConfigError when the workdir holds no run or no such
    checkpoint. The run may go on training meanwhile: nothing is written to its workdir.
    """
    saved, programs, keys, restored = _restored(directory, which)
    require_drawn(programs.system)
    predictions = programs.open_loop(restored.state.agent, keys_of(keys, "open_loop"))
    step, spec = restored.iteration * saved.experiment.num_envs, programs.system.env.spec
    when = f", step {step}"
    write_open_loop(Path(picture), saved.experiment, spec.observation, predictions, when)
    return step


class Imagined(NamedTuple):
    """What an animation of real beside imagined shows."""

    episodes: int = 3  # one after the other, of the run's seeds in turn
    context: int | None = None  # rows that the model sees; None: the experiment's
    rows: int = 40  # of an episode at most, those seen included
    milliseconds: int = ROW_MILLISECONDS  # that a row lasts


def animate_open_loop(
    directory: str | Path,
    picture: str | Path,
    which: str = "newest",
    told: Imagined | None = None,
) -> int:
    """Write real episodes beside what the model imagines of them as a GIF; returns the step.

    Args and errors as for `draw_open_loop`, and ConfigError where `told` leaves nothing to imagine.
    """
    told = told or Imagined()
    if min(told.episodes, told.milliseconds) < 1:
        raise config.ConfigError("there is nothing to show: give at least 1 episode and 1 ms a row")
    saved, programs, keys, restored = _restored(directory, which)
    require_drawn(programs.system)
    experiment, agent = saved.experiment, restored.state.agent
    context = experiment.open_loop_context if told.context is None else told.context
    if not 1 <= context < told.rows:
        raise config.ConfigError(
            f"of {told.rows} rows the model cannot see {context} and imagine the rest: give a "
            "--context of at least 1 and more --rows than that"
        )
    shown: list[Any] = []
    while len(shown) < told.episodes:
        turn = keys_of(keys, f"imagined_{len(shown)}")
        found = programs.open_loop(agent, turn, context, told.rows)
        shown += [jax.tree.map(lambda x, i=i: x[i], found) for i in range(programs.num_seeds)]
    step, spec = restored.iteration * experiment.num_envs, programs.system.env.spec
    del shown[told.episodes :]
    parts = (shown, context, told.milliseconds, f", step {step:,}")
    write_imagined_episodes(Path(picture), experiment, spec.observation, *parts)
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
    require_drawn(programs.system)
    found = programs.quality(restored.state.agent, keys_of(keys, "quality"), measured)
    seeds_of = range(programs.num_seeds)
    return {
        "iteration": restored.iteration,
        "step": restored.iteration * saved.experiment.num_envs,
        **measured._asdict(),
        "seeds": [quality.summarise(jax.tree.map(lambda x, i=i: x[i], found)) for i in seeds_of],
    }


def film_run(
    directory: str | Path, path: str | Path | None = None, which: str = "newest"
) -> list[Film]:
    """A greedy episode of each seed of a run, to be looked at: Film [S] with its `frames`.

    Args:
      directory: the workdir.
      path: also write GIFs there, as `film_seeds` does.
      which: of the checkpoints, as for `restore_run`.

    Raises ConfigError as `restore_run` and `film_seeds` do.
    """
    experiment, programs, agent, keys = restore_run(directory, which)
    if path is not None:
        return [film for _, film in film_seeds(experiment, programs, agent, keys, path)]
    return programs.film(agent, keys_of(keys, "evaluate"), experiment.eval_max_steps)
