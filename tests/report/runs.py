"""Workdirs written by hand, as a run would leave them."""

import json
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from experiments import drama_atari100k, drama_catch
from mbrl_jax.evaluate.scores import references
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.experiment.members import Members
from mbrl_jax.runs import workdir

STEPS = 100
VERSIONS = {"python": "3.12.1", "jax": "0.10.2", "jaxlib": "0.10.2", "git": "abc123"}


def catch(*settings: str) -> Experiment:
    """Catch in 100 steps, with a row of metrics every ten."""
    short = ("phases.0.iterations=40", "phases.1.iterations=30", "phases.2.iterations=30")
    every = ("log_every=10", "checkpoint_every=10")
    return config.override(drama_catch.get_experiment(), (*short, *every, *settings))


def atari(game: str, *settings: str) -> Experiment:
    """A game as published."""
    return config.override(drama_atari100k.get_experiment(), [f"env.name={game}", *settings])


def score_of(game: str, normalised: float) -> float:
    """The score whose human-normalised value is given."""
    reference = references()[game]
    return reference.random + normalised * (reference.human - reference.random)


def write(
    path: Path,
    experiment: Experiment,
    returns: Sequence[float | None],
    members: Members | None = None,
    *,
    greedy: Sequence[float] | None = None,
    until: float = 1.0,
    frozen: dict | None = None,
    quality: dict | None = None,
    versions: dict | None = None,
) -> Path:
    """Write a workdir.

    Args:
      path: of the directory, which is made.
      experiment, members: its configuration; as many seeds as returns by default.
      returns: of each lane, in every row; None where no episode ends.
      greedy: means of the evaluation, none by default.
      until: share of the steps that were made.
      frozen: as in the meta.json of a checkpoint.
      quality: what quality.json holds.
      versions: of the checkpoint, which there is if they or `frozen` are given.
    """
    members = members or Members(num_seeds=len(returns))
    assert len(members) == len(returns)
    path.mkdir(parents=True, exist_ok=True)
    run = workdir.RunConfig(experiment, members)
    (path / "config.json").write_text(json.dumps(workdir.as_json(run)))
    lines = []
    for tenth in range(1, 1 + round(10 * until)):
        step = experiment.steps * tenth // 10
        seeds = enumerate(returns, members.first_seed)
        lines += [json.dumps(row(step, seed, value)) for seed, value in seeds]
    (path / "metrics.jsonl").write_text("".join(line + "\n" for line in lines))
    if greedy is not None:
        write_evaluation(path, experiment.steps, greedy)
    if versions or frozen:
        folder = path / "checkpoints" / str(round(experiment.iterations * until))
        folder.mkdir(parents=True)
        meta = {"versions": versions or VERSIONS, "frozen": frozen or {}}
        (folder / "meta.json").write_text(json.dumps(meta))
    if quality is not None:
        (path / "quality.json").write_text(json.dumps(quality))
    return path


def row(step: int, seed: int, value: float | None, count: int = 2, **more) -> dict:
    """A row of metrics."""
    ended = {"episode/return": value, "episode/count": 0 if value is None else count}
    return {"step": step, "seed": seed, "env_steps": step, "agent/frozen": 0.0, **ended, **more}


def write_evaluation(path: Path, step: int, means: Sequence[float]) -> None:
    """Write evaluation.json of ten episodes of each seed."""
    data = {"step": step, "episodes": 10, "mean": list(means), "finished": [10] * len(means)}
    (path / "evaluation.json").write_text(json.dumps(data))


def write_strips(path: Path, size: tuple[int, int] = (60, 20)) -> None:
    """Write a picture where that of predictions lies."""
    Image.new("RGB", size, (20, 80, 160)).save(path / "open_loop.png")
