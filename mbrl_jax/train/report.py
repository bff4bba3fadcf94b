"""What a finished run leaves beside its metrics: evaluation and pictures."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mbrl_jax.evaluate.open_loop import OpenLoop, open_loop
from mbrl_jax.evaluate.plots import plot_learning_curve, plot_open_loop
from mbrl_jax.train.experiment import Experiment, System
from mbrl_jax.train.loop import Evaluation
from mbrl_jax.types import AgentState

OPEN_LOOP_ROWS = 12
MAX_EXAMPLES = 4


def write_evaluation(path: Path, evaluation: Evaluation, step: int) -> None:
    """Write the greedy episodes of every seed to `evaluation.json`."""
    data = {
        "step": step,
        "episodes": int(evaluation.episode_return.shape[1]),
        "mean": evaluation.episode_return.mean(axis=1).tolist(),
        "finished": evaluation.finished.sum(axis=1).tolist(),
        "returns": evaluation.episode_return.tolist(),
    }
    (path / "evaluation.json").write_text(json.dumps(data) + "\n")


def open_loop_of_seed(
    experiment: Experiment, system: System, agent: AgentState, key: jax.Array
) -> OpenLoop:
    """What the pictures show of one seed; run under `over_seeds`."""
    context = experiment.open_loop_context
    horizon = OPEN_LOOP_ROWS - context
    return open_loop(system.env, system.agent, system.world_model, context, horizon, agent, key)


def write_pictures(
    path: Path, experiment: Experiment, predictions: OpenLoop, rows: list[dict[str, Any]]
) -> list[Path]:
    """Write `learning_curve.png` and `open_loop.png` (predictions [S]); returns their paths."""
    curve, strips = path / "learning_curve.png", path / "open_loop.png"
    plot_learning_curve(rows, curve, experiment.name)
    examples = [
        _example(jax.tree.map(lambda x, i=i: x[i], predictions), experiment.open_loop_context)
        for i in range(min(len(predictions.real), MAX_EXAMPLES))
    ]
    plot_open_loop(examples, strips, f"{experiment.name}: prediction without observations")
    return [curve, strips]


def _example(prediction: OpenLoop, context: int) -> dict[str, Any]:
    """Cut at the end of the episode, and bring integers to the model's scale."""
    seams = np.flatnonzero(prediction.is_first[1:]) + 1
    stop = max(int(seams[0]) if len(seams) else len(prediction.is_first), context + 1)
    real = prediction.real[:stop]
    if real.dtype == np.uint8:
        real = real.astype(np.float32) / 255.0
    return {"real": real, "predicted": prediction.predicted[:stop], "first_imagined": context}
