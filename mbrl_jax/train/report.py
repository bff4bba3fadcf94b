"""What a finished run leaves beside its metrics: evaluation and pictures."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mbrl_jax.envs import atari
from mbrl_jax.evaluate import scores, views
from mbrl_jax.evaluate.animations import write_animation, write_imagined
from mbrl_jax.evaluate.open_loop import OpenLoop, open_loop
from mbrl_jax.evaluate.plots import plot_learning_curve, plot_open_loop
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment, System, task_of, title_of
from mbrl_jax.loops.steps import Evaluation
from mbrl_jax.runs import files, layout
from mbrl_jax.types import AgentState, Array, ArraySpec, ObservationSpec, PyTree

MAX_EXAMPLES = 4


def draws(system: System) -> bool:
    """Whether predictions of this system can be shown: the model decodes."""
    return system.world_model.decode is not None


def require_drawn(system: System) -> None:
    """Raise ConfigError where a world model's predictions cannot be shown or measured."""
    if not draws(system):
        raise config.ConfigError(
            "this world model does not predict observations, so there is nothing to draw or to "
            "measure: train one with a decoder, such as model=drama"
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
    path, env = Path(path), experiment.env.make()
    seen = env.spec.observation
    if not views.image_leaves(seen) and not films_rendered(env):
        what = "a dictionary without images"
        if isinstance(seen, ArraySpec):
            what = f"vectors of shape {seen.shape}"
        raise config.ConfigError(
            f"there is nothing to show: {task_of(experiment)} is seen as {what}, and not as images "
            "or grids, and renders no pictures; leave out --gif"
        )
    if path.suffix.lower() != ".gif" or not path.parent.is_dir():
        raise config.ConfigError(f"--gif={path} must end in .gif and lie in an existing directory")
    if num_seeds == 1:
        return [path]
    return [path.with_stem(f"{path.stem}_{seed}") for seed in range(num_seeds)]


def films_rendered(env: Any) -> bool:
    """Whether a film shows what the environment renders, because the agent sees no images."""
    rendering = getattr(env, "open_rendered", None)
    return rendering is not None and not views.image_leaves(env.spec.observation)


def write_film(path: Path, experiment: Experiment, frames: PyTree) -> None:
    """Write what was seen or rendered, [F, *observation], as an animated GIF.

    Several images of an observation stand beside each other.
    """
    images = views.image_leaves(experiment.env.make().spec.observation)
    if not images:
        write_animation(frames, path)
        return
    reels = [_in_brightness(newest(experiment, views.leaf_of(frames, name))) for name in images]
    write_animation(reels[0] if len(reels) == 1 else reels, path)


def _in_brightness(frames: np.ndarray) -> np.ndarray:
    """Integers that are no pixels are kinds of things: [F, …] in [0, 1]."""
    is_pixels = frames.dtype == np.uint8 and frames.shape[-1] in (1, 3)
    if is_pixels or not np.issubdtype(frames.dtype, np.integer):
        return frames
    return frames / max(frames.max(), 1)


def newest(experiment: Experiment, frames: Any) -> np.ndarray:
    """Of Atari's stacked frames [..., C], the newest; any others as they are."""
    if not isinstance(experiment.env, atari.Config):
        return frames
    return frames[..., -3 if atari.protocol_of(experiment.env).colour else -1 :]


def open_loop_of_seed(
    system: System, context: int, rows: int, agent: AgentState, key: jax.Array
) -> OpenLoop:
    """What the pictures show of one seed; run under `over_seeds`."""
    horizon = rows - context
    return open_loop(system.env, system.agent, system.world_model, context, horizon, agent, key)


def write_pictures(
    path: Path,
    experiment: Experiment,
    spec: ObservationSpec,
    predictions: OpenLoop | None,
    rows: list[dict[str, Any]],
) -> list[Path]:
    """Write `learning_curve.png`, and of predictions [S] `open_loop.png`; returns their paths.

    The curve's SVG lies beside it.
    """
    curve, strips = path / "learning_curve.png", path / layout.OPEN_LOOP
    plot_learning_curve(rows, curve, title_of(experiment), vector=True)
    if predictions is None:
        return [curve]
    write_open_loop(strips, experiment, spec, predictions)
    return [curve, strips]


def write_open_loop(
    path: Path,
    experiment: Experiment,
    spec: ObservationSpec,
    predictions: OpenLoop,
    when: str = "",
) -> None:
    """Write predictions [S] of the first seeds as a PNG; `when` stands behind the name."""
    several = len(predictions.is_first) > 1
    examples = []
    for i in range(min(len(predictions.is_first), MAX_EXAMPLES)):
        for example in examples_of(experiment, spec, _of_seed(predictions, i)):
            names = [f"seed {i}"] * several + [example["leaf"]] * bool(example["leaf"])
            examples.append({**example, "name": "\n".join(names)})
    title = f"{title_of(experiment)}{when}: prediction without observations"
    plot_open_loop(examples, path, title)


def examples_of(
    experiment: Experiment,
    spec: ObservationSpec,
    prediction: OpenLoop,
    context: int | None = None,
) -> list[dict[str, Any]]:
    """What `plot_open_loop` takes, of one seed: an example for each image, or one of a vector.

    It is cut where the episode ends. `context`: rows that were seen; by default the experiment's.
    """
    first = experiment.open_loop_context if context is None else context
    seams = np.flatnonzero(prediction.is_first[1:]) + 1
    stop = max(int(seams[0]) if len(seams) else len(prediction.is_first), first + 1)
    both = [
        {name: newest(experiment, x[:stop]) for name, x in views.views(spec, tree).items()}
        for tree in (prediction.real, prediction.predicted)
    ]
    told = {"first_imagined": first, "dimensions": views.dimension_names(spec)}
    return [
        {"real": real, "predicted": both[1][leaf], "leaf": leaf, **told}
        for leaf, real in both[0].items()
    ]


def _of_seed(predictions: OpenLoop, seed: int) -> OpenLoop:
    return jax.tree.map(lambda x: x[seed], predictions)


def write_imagined_episodes(
    path: Path,
    experiment: Experiment,
    spec: ObservationSpec,
    predictions: Sequence[OpenLoop],
    context: int,
    milliseconds: int,
    when: str = "",
) -> None:
    """Write predictions, each of one seed, beside what was real as a GIF, one after the other."""
    episodes = [examples_of(experiment, spec, one, context) for one in predictions]
    write_imagined(episodes, path, f"{title_of(experiment)}{when}", milliseconds)
