"""What a finished run leaves beside its metrics: evaluation and pictures."""

import math
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mbrl_jax.envs import atari
from mbrl_jax.evaluate import scores
from mbrl_jax.evaluate.open_loop import OPEN_LOOP_ROWS, OpenLoop, open_loop
from mbrl_jax.evaluate.plots import plot_learning_curve, plot_open_loop, write_animation
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment, System, task_of, title_of
from mbrl_jax.loops.steps import Evaluation
from mbrl_jax.runs import files, layout
from mbrl_jax.types import AgentState, Array, ArraySpec

MAX_EXAMPLES = 4


def draws(system: System) -> bool:
    """Whether predictions of this system can be shown: the model decodes, into one array."""
    return system.world_model.decode is not None and isinstance(
        system.env.spec.observation, ArraySpec
    )


def require_drawn(system: System) -> None:
    """Raise ConfigError where a world model's predictions cannot be shown or measured."""
    if not draws(system):
        raise config.ConfigError(
            "this world model does not predict observations as one array, so there is nothing to "
            "draw or to measure"
        )


def write_evaluation(path: Path, experiment: Experiment, evaluation: Evaluation) -> None:
    """Write the greedy episodes of every seed to `evaluation.json`."""
    data = {
        "step": experiment.steps,
        "episodes": int(evaluation.episode_return.shape[1]),
        "mean": _means(evaluation.episode_return),
        "finished": evaluation.finished.sum(axis=1).tolist(),
        "returns": evaluation.episode_return.tolist(),
    }
    if evaluation.extras:
        data["extras"] = {name: _means(x) for name, x in evaluation.extras.items()}
    if normalised := human_normalised(experiment, evaluation):
        data["human_normalised"] = normalised
    files.write_text(path / layout.EVALUATION, files.as_json(data) + "\n")


def _means(episodes: Array) -> list[float | None]:
    """Of each seed's episodes [S, E]; None where none was played, or one is not finite."""
    if not episodes.shape[1]:
        return [None] * len(episodes)
    with np.errstate(invalid="ignore"):  # inf - inf
        means = np.asarray(episodes).mean(axis=1).tolist()
    return [mean if math.isfinite(mean) else None for mean in means]


def write_quality(path: Path, measured: dict[str, Any]) -> Path:
    """Write what `trained.measure_quality` found to `quality.json`; returns its path."""
    target = path / "quality.json"
    files.write_text(target, files.as_json(measured) + "\n")
    return target


def human_normalised(experiment: Experiment, evaluation: Evaluation) -> dict[str, Any] | None:
    """(return - random) / (human - random) of every seed, with the references; see `scores`.

    None unless the experiment plays one of the 26 Atari games (MinAtar's are others), and where no
    episode was played.
    """
    if not isinstance(experiment.env, atari.Config) or not evaluation.episode_return.shape[1]:
        return None
    try:
        game = scores.game_of(experiment.env.name)
    except ValueError:  # a game without references
        return None
    means = _means(evaluation.episode_return)
    normalised = [None if x is None else scores.human_normalised(game, x) for x in means]
    return {"game": game, **scores.references()[game]._asdict(), "mean": normalised}


def nothing_done(result: Any) -> list[str]:
    """Sentences on what a reader of a `run.Result` takes for granted, where it did not happen."""
    lines = []
    if result.updates and None in result.final_return:
        known = [f"{value:.3f}" for value in result.whole_return if value is not None]
        before = f": over all steps it returned {', '.join(known)}" if known else ", nor before"
        lines.append(f"no episode of training ended in the last fifth of the steps{before}")
    if not result.updates:
        lines.append(
            "nothing was learned: the run ended before its first update (take more --steps, or a "
            "shorter first phase)"
        )
    if not result.evaluation.episode_return.shape[1]:
        lines.append("nothing was evaluated: eval_episodes is 0")
    return lines


def gif_paths(path: str | Path, experiment: Experiment, num_seeds: int) -> list[Path]:
    """Where the episode of each seed goes: PATH, or of several seeds NAME_0.gif, NAME_1.gif, …

    Raises ConfigError where there is nothing to show, or nowhere to put it.
    """
    path, seen = Path(path), experiment.env.make().spec.observation
    if not isinstance(seen, ArraySpec) or len(seen.shape) < 2:
        what = f"vectors of shape {seen.shape}" if isinstance(seen, ArraySpec) else "a dictionary"
        raise config.ConfigError(
            f"there is nothing to show: {task_of(experiment)} is seen as {what}, "
            "and not as images or grids; leave out --gif"
        )
    if path.suffix.lower() != ".gif" or not path.parent.is_dir():
        raise config.ConfigError(f"--gif={path} must end in .gif and lie in an existing directory")
    if num_seeds == 1:
        return [path]
    return [path.with_stem(f"{path.stem}_{seed}") for seed in range(num_seeds)]


def write_film(path: Path, experiment: Experiment, frames: np.ndarray) -> None:
    """Write what was seen, [F, *observation], as an animated GIF."""
    if isinstance(experiment.env, atari.Config):  # of stacked frames, the newest
        colour = atari.protocol_of(experiment.env).colour
        frames = frames[..., -3 if colour else -1 :]
    elif np.issubdtype(frames.dtype, np.integer):  # kinds of things, and not brightness
        frames = frames / max(frames.max(), 1)
    write_animation(frames, path)


def open_loop_of_seed(
    experiment: Experiment, system: System, agent: AgentState, key: jax.Array
) -> OpenLoop:
    """What the pictures show of one seed; run under `over_seeds`."""
    context = experiment.open_loop_context
    horizon = OPEN_LOOP_ROWS - context
    return open_loop(system.env, system.agent, system.world_model, context, horizon, agent, key)


def write_pictures(
    path: Path, experiment: Experiment, predictions: OpenLoop | None, rows: list[dict[str, Any]]
) -> list[Path]:
    """Write `learning_curve.png` and, of predictions [S], `open_loop.png`; returns their paths."""
    curve, strips = path / "learning_curve.png", path / layout.OPEN_LOOP
    plot_learning_curve(rows, curve, title_of(experiment))
    if predictions is None:
        return [curve]
    write_open_loop(strips, experiment, predictions)
    return [curve, strips]


def write_open_loop(
    path: Path, experiment: Experiment, predictions: OpenLoop, when: str = ""
) -> None:
    """Write predictions [S] of the first seeds as a PNG; `when` stands behind the name."""
    examples = [
        _example(jax.tree.map(lambda x, i=i: x[i], predictions), experiment.open_loop_context)
        for i in range(min(len(predictions.real), MAX_EXAMPLES))
    ]
    title = f"{title_of(experiment)}{when}: prediction without observations"
    plot_open_loop(examples, path, title)


def _example(prediction: OpenLoop, context: int) -> dict[str, Any]:
    """Cut at the end of the episode, and bring integers to the model's scale."""
    seams = np.flatnonzero(prediction.is_first[1:]) + 1
    stop = max(int(seams[0]) if len(seams) else len(prediction.is_first), context + 1)
    real = prediction.real[:stop]
    if real.dtype == np.uint8:
        real = real.astype(np.float32) / 255.0
    return {"real": real, "predicted": prediction.predicted[:stop], "first_imagined": context}
