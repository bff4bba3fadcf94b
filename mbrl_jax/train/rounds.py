"""Algorithms with an outer loop: each round trains a run with numbers that the rounds before chose.

    run_rounds(experiment, outer, "runs/rounds", rounds=8)

Which task to train next (MBTL), how much to trust the model, Bayesian tuning: whatever proposes a
few numbers, is told what came out, and proposes again. A round is a whole run in `round_0000`, … of
the directory; numbers enter its programs as arguments, so that all rounds share one compilation.
`rounds.jsonl` gets a line of each finished round, and the same call goes on after the last of them:
the outer algorithm's state is made again from those lines.
"""

import contextlib
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.experiment.members import Members
from mbrl_jax.runs import files, layout
from mbrl_jax.train.progress import Reporter
from mbrl_jax.train.run import Result, Runner

ROUNDS = "rounds.jsonl"
Numbers = Mapping[str, float]  # by the paths of fields, as `config.numbers` has them


class Outcome(NamedTuple):
    """What the outer algorithm is told of a round."""

    final_return: list[float | None]  # [S] mean training return over the last fifth of the steps
    # [S, E] returns of greedy episodes; None where one is not finite
    evaluation: list[list[float | None]]


class Outer(Protocol):
    """An outer algorithm; its functions are deterministic."""

    def init(self) -> Any:
        """The state before any round."""

    def propose(self, state: Any) -> Numbers:
        """Numbers of the next round; the same fields in every round."""

    def observe(self, state: Any, numbers: Numbers, outcome: Outcome) -> Any:
        """The state after a round with these numbers."""


def run_rounds(
    experiment: Experiment,
    outer: Outer,
    directory: str | Path,
    rounds: int,
    *,
    seed: int = 0,
    num_seeds: int = 1,
    reporter: Reporter | None = None,
) -> Any:
    """Train `rounds` runs one after the other; returns the outer algorithm's last state.

    Args:
      experiment: what every round runs, but for the numbers.
      outer: proposes numbers and learns from outcomes.
      directory: where the rounds lie; the same call goes on there, also with more rounds.
      rounds: of all, finished ones included.
      seed, num_seeds: as for `run`; those of every round.
      reporter: where progress goes.

    Raises ConfigError for a number that cannot be traced, for fields that change from round to
    round, and where the outer algorithm does not propose again what a finished round had.
    """
    path = layout.as_path(directory)
    path.mkdir(parents=True, exist_ok=True)
    state, fields = outer.init(), None
    with (
        files.locked(path),
        contextlib.closing(Runner(experiment, reporter)) as runner,
    ):
        done = _read(path / ROUNDS)
        for number in range(rounds):
            numbers = _checked(experiment, outer.propose(state), number, fields)
            fields = tuple(numbers)
            if number < len(done):
                outcome = _outcome(done[number], numbers, number, path)
            else:
                inside = tuple((field, (value,)) for field, value in numbers.items())
                members = Members(seed, num_seeds, inside)
                result = runner.run(path / f"round_{number:04d}", members)
                outcome = outcome_of(result)
                done.append({"round": number, "numbers": numbers, **outcome._asdict()})
                files.write_text(path / ROUNDS, "".join(files.as_json(one) + "\n" for one in done))
            state = outer.observe(state, numbers, outcome)
    return state


def outcome_of(result: Result) -> Outcome:
    """What of a run's result can be written down."""
    returns = np.asarray(result.evaluation.episode_return, float).tolist()
    of_seeds = [[one if math.isfinite(one) else None for one in seed] for seed in returns]
    return Outcome(result.final_return, of_seeds)


def _checked(
    experiment: Experiment, proposed: Numbers, number: int, fields: tuple[str, ...] | None
) -> dict[str, float]:
    """The numbers as float32 has them, in the order of their names."""
    known = config.numbers(experiment)
    if unknown := sorted(set(proposed) - set(known)):
        raise ConfigError(
            f"round {number}: {unknown[0]} is no number that can be traced; those are "
            f"{', '.join(sorted(known))}"
        )
    numbers = {field: float(np.float32(proposed[field])) for field in sorted(proposed)}
    if fields is not None and tuple(numbers) != fields:
        raise ConfigError(
            f"round {number} proposes {', '.join(numbers)}, and the rounds before "
            f"{', '.join(fields)}: all rounds run one program"
        )
    changed = [f"{field}={value!r}" for field, value in numbers.items()]
    config.validate(config.override(experiment, changed))
    return numbers


def _read(path: Path) -> list[dict[str, Any]]:
    """Lines of the finished rounds."""
    if not path.exists():
        return []
    try:
        return [json.loads(line) for line in path.read_text().splitlines()]
    except ValueError as error:
        raise ConfigError(f"{path} is damaged ({error}); choose another directory") from error


def _outcome(
    line: dict[str, Any], numbers: dict[str, float], number: int, directory: Path
) -> Outcome:
    """The outcome of a finished round, which had these numbers."""
    if line.get("round") != number or line.get("numbers") != numbers:
        raise ConfigError(
            f"round {number} in {directory} had {line.get('numbers')}, and {numbers} is proposed "
            "now: another algorithm, or one that is not deterministic; choose another directory"
        )
    return Outcome(*(line[name] for name in Outcome._fields))
