"""Human-normalised Atari scores, and the published scores to compare with.

    h = (score - random) / (human - random): 0 is random play, 1 a professional tester.

The tables lie in `evaluate/data`. References have one decimal, as printed since 1511.06581 (here
read from google-deepmind/dqn_zoo 359945d, `atari_data.py`; episodes begin with up to 30 no-ops);
Drama's own evaluation used the same numbers rounded. Every published score carries a mark of how
far to trust it: C read in a published repository or data file, T computed here from such a file,
S read in a third party's table, R recollection. S and R are *unconfirmed*: no result to quote.
"""

import csv
import functools
import math
from collections.abc import Mapping
from importlib import resources
from typing import NamedTuple

import numpy as np

MARKS = ("C", "T", "S", "R")
CONFIRMED = ("C", "T")
_STICKY = {"yes": True, "no": False, "": None}
_ACTION_SETS = {"minimal": "minimal", "full": "full", "": None}


class Reference(NamedTuple):
    """What a game's scores are measured against."""

    random: float
    human: float


class System(NamedTuple):
    """A published row of the Atari100k table."""

    name: str
    arxiv: str
    frames: int  # emulator frames, four for each agent step
    sticky_actions: bool | None  # with repeat probability 0.25; None: not known
    action_set: str | None  # "minimal" or "full"; None: not known
    source: str
    trust: str  # of what stands in this record
    mean_percent: int  # as printed there
    median_percent: int
    scores: dict[str, float]  # by game
    marks: dict[str, str]  # trust in each score

    @property
    def unconfirmed(self) -> tuple[str, ...]:
        """Games whose score is not confirmed by a published data file."""
        return tuple(game for game, mark in self.marks.items() if mark not in CONFIRMED)


class Summary(NamedTuple):
    """Human-normalised scores of one system."""

    by_game: dict[str, float]
    mean: float
    median: float
    superhuman: int  # games above 1


@functools.cache
def references() -> dict[str, Reference]:
    """Precise random and human scores of the 26 games of Atari100k, by name as in "MsPacman".

    Raises ValueError where the table is damaged.
    """
    table = {}
    for row in _rows("atari100k_references.csv", ("game", "random", "human")):
        reference = Reference(_number(row, "random"), _number(row, "human"))
        if row["game"] in table or reference.human <= reference.random:
            raise _damaged("atari100k_references.csv", row, "twice, or human is not above random")
        table[row["game"]] = reference
    if len(table) != 26:
        raise ValueError(f"atari100k_references.csv holds {len(table)} games instead of 26")
    return table


@functools.cache
def systems() -> dict[str, System]:
    """Published systems by name, in the order of the table.

    Raises ValueError where a table is damaged or a game is missing.
    """
    file = "atari100k_systems.csv"
    scores, marks = _scores()
    table = {}
    for row in _rows(file, System._fields[:-2], {"name": "system"}):
        name = row["name"]
        if name in table or row["trust"] not in MARKS:
            raise _damaged(file, row, "twice, or the trust is none of " + ", ".join(MARKS))
        if row["sticky_actions"] not in _STICKY or row["action_set"] not in _ACTION_SETS:
            raise _damaged(file, row, "sticky_actions is yes, no or empty; action_set minimal, …")
        if set(scores.get(name, ())) != set(references()):
            raise _damaged(file, row, "atari100k_scores.csv has not just the 26 games")
        table[name] = System(
            name,
            row["arxiv"],
            int(row["frames"]),
            _STICKY[row["sticky_actions"]],
            _ACTION_SETS[row["action_set"]],
            row["source"],
            row["trust"],
            int(row["mean_percent"]),
            int(row["median_percent"]),
            scores[name],
            marks[name],
        )
    if unknown := sorted(set(scores) - set(table)):
        raise ValueError(f"{file} does not describe {', '.join(unknown)}")
    return table


def game_of(environment: str) -> str:
    """The game of an environment's name: "Pong" of "Pong-v5" and of "ALE/Pong-v5".

    Raises ValueError for what is no game of Atari100k.
    """
    game = environment.rpartition("/")[2].partition("-")[0]
    if game not in references():
        raise ValueError(
            f"{environment!r} is none of the 26 games of Atari100k, which are "
            f"{', '.join(references())}"
        )
    return game


def human_normalised(
    game: str, score: float, table: Mapping[str, Reference] | None = None
) -> float:
    """(score - random) / (human - random) for a game by name or environment.

    Args:
      game: "Pong" or "Pong-v5".
      score: mean undiscounted return of unclipped rewards.
      table: other references than `references()`.
    """
    table = references() if table is None else table
    reference = table[game if game in table else game_of(game)]
    return (score - reference.random) / (reference.human - reference.random)


def summarise(scores: Mapping[str, float], table: Mapping[str, Reference] | None = None) -> Summary:
    """Human-normalised scores of any number of games, their mean and median.

    Raises ValueError for no score at all, or one that is not finite.
    """
    if not scores or not all(map(math.isfinite, scores.values())):
        raise ValueError("there must be at least one score, and all must be finite")
    by_game = {game: human_normalised(game, score, table) for game, score in scores.items()}
    values = np.array(list(by_game.values()))
    superhuman = int((values > 1).sum())
    return Summary(by_game, float(values.mean()), float(np.median(values)), superhuman)


def rounded_references() -> dict[str, Reference]:
    """References as Drama's evaluation used them: rounded to whole points."""
    return {game: Reference(*map(float, map(round, r))) for game, r in references().items()}


# --------------------------------------------------------------------------------------- private


def _scores() -> tuple[dict[str, dict[str, float]], dict[str, dict[str, str]]]:
    """(scores, marks) by system and game."""
    file = "atari100k_scores.csv"
    scores: dict[str, dict[str, float]] = {}
    marks: dict[str, dict[str, str]] = {}
    for row in _rows(file, ("system", "game", "score", "trust")):
        system, game = row["system"], row["game"]
        if game in scores.setdefault(system, {}) or row["trust"] not in MARKS:
            raise _damaged(file, row, "twice, or the trust is none of " + ", ".join(MARKS))
        scores[system][game] = _number(row, "score")
        marks.setdefault(system, {})[game] = row["trust"]
    return scores, marks


def _rows(
    file: str, fields: tuple[str, ...], renamed: Mapping[str, str] | None = None
) -> list[dict[str, str]]:
    """The rows of a table with just the columns `fields` (some `renamed` in the file)."""
    text = resources.files("mbrl_jax.evaluate").joinpath("data", file).read_text("utf-8")
    reader = csv.DictReader(text.splitlines())
    columns = tuple((renamed or {}).get(field, field) for field in fields)
    if tuple(reader.fieldnames or ()) != columns:
        raise ValueError(f"{file} has the columns {reader.fieldnames} instead of {columns}")
    rows = []
    for row in reader:
        if None in row or None in row.values():
            raise _damaged(file, row, "too many or too few columns")
        rows.append({field: row[column] for field, column in zip(fields, columns, strict=True)})
    return rows


def _number(row: Mapping[str, str], field: str) -> float:
    value = float(row[field])
    if not math.isfinite(value):
        raise ValueError(f"{field} is not finite in the row {dict(row)}")
    return value


def _damaged(file: str, row: Mapping, what: str) -> ValueError:
    return ValueError(f"{file}: {what}, in the row {dict(row)}")
