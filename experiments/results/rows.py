"""The rows of results that can be rerun: `rows.jsonl`, one JSON object on each line.

    name          of the row, and of its folder below runs/rerun
    title         for people
    experiment, set, steps, num_seeds, sweep_inside     as flags of launch.train
    seeds         values of --seed, one run each
    cpu_minutes   that one of these runs takes
    measures      {measure: what was recorded of it}

A measure is "training" (mean episode return over the last fifth of the steps), "last_tenth" (over
the last tenth), "whole" (over all steps: how fast it was learned), "greedy" (mean of the greedy
episodes after it), or the name of a metric such as "model/reconstruction" (its mean over the rows
of the last fifth).
What was recorded is one score for each member of each run:

    {"csv": FILE}             rows beside this file, with run_seed, seed and step
    {"values": [[…], […]]}    for each of `seeds` a list of its members
    "resolution": r           differences of means below r do not count: rounding, one episode

With `sweep_inside` member k of a run has setting k // num_seeds and seed k % num_seeds; settings
are compared one by one.
"""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs.metrics import mean_return, read_metrics

FOLDER = Path(__file__).resolve().parent
TABLE = FOLDER / "rows.jsonl"
TRAINING, WHOLE, GREEDY = "training", "whole", "greedy"
SHARES = {TRAINING: 0.2, "last_tenth": 0.1, WHOLE: 1.0}  # of the steps, from the end
COLUMNS = (  # of a table of rows
    *("run_seed", "seed", "step", "env_steps", "episode/return", "episode/count"),
    *("model/reconstruction", "model/kl"),
)
_NUMBERS = ("run_seed", "seed", "step", "env_steps", "episode/count")  # integers of a CSV


class Measure(NamedTuple):
    """What was recorded of one measure."""

    name: str
    recorded: dict[int, list[float]]  # {value of --seed: score of each member}
    resolution: float


class Row(NamedTuple):
    """One row of results."""

    name: str
    title: str
    experiment: str
    set: tuple[str, ...]
    steps: int | None  # None: the experiment's
    num_seeds: int
    sweep_inside: tuple[str, ...]
    seeds: tuple[int, ...]
    cpu_minutes: float
    measures: tuple[Measure, ...]

    @property
    def settings(self) -> int:
        """How many settings vary inside a run."""
        return math.prod(text.count(",") + 1 for text in self.sweep_inside)


def read_rows(table: str | Path = TABLE) -> dict[str, Row]:
    """{name: row} of a table. Raises ConfigError, with the line, where it is not as said above."""
    table, found = Path(table), {}
    try:
        lines = table.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{table} cannot be read ({error}); name a file of rows") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            row = _row(json.loads(line), table.parent)
        except (ValueError, TypeError, KeyError, RecursionError) as error:
            raise ConfigError(f"line {number} of {table} is no row: {error}") from error
        if row.name in found:
            raise ConfigError(f"line {number} of {table}: a row {row.name!r} was there before")
        found[row.name] = row
    return found


def _row(data: Any, folder: Path) -> Row:
    known = {*Row._fields}
    if not isinstance(data, dict) or (unknown := set(data) - known):
        raise ValueError(f"unknown fields {sorted(unknown)}" if isinstance(data, dict) else data)
    data = {"set": [], "steps": None, "sweep_inside": []} | data
    if missing := known - set(data):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")
    if not str(data["name"]).isidentifier():
        raise ValueError(f"name {data['name']!r} must be made of letters, digits and _")
    lists = {key: tuple(data[key]) for key in ("set", "sweep_inside", "seeds")}
    row = Row(**{**data, **lists, "measures": ()})
    counts = (row.num_seeds, *row.seeds, *([] if row.steps is None else [row.steps]))
    if not row.seeds or any(type(count) is not int for count in counts):
        raise ValueError("seeds, num_seeds and steps are integers, and there is at least one seed")
    measures = [_measure(name, row, saved, folder) for name, saved in data["measures"].items()]
    return row._replace(measures=tuple(measures))


def _measure(name: str, row: Row, saved: Mapping[str, Any], folder: Path) -> Measure:
    """What is recorded, with as many scores as there are members."""
    if "csv" in saved:
        rows = read_csv(folder / saved["csv"])
        recorded = {seed: measured(name, _of_run(rows, seed)) for seed in row.seeds}
    else:
        recorded = dict(zip(row.seeds, saved["values"], strict=True))
    members = row.num_seeds * row.settings
    for seed, scores in recorded.items():
        if len(scores) != members or not all(map(is_number, scores)):
            raise ValueError(f"{name} of seed {seed} is no list of {members} numbers: {scores}")
    return Measure(name, recorded, float(saved.get("resolution", 0.0)))


def is_number(value: Any) -> bool:
    """Whether it is a finite number."""
    return type(value) in (int, float) and math.isfinite(value)


def _of_run(rows: Sequence[Mapping[str, Any]], seed: int) -> list[Mapping[str, Any]]:
    return [row for row in rows if row["run_seed"] == seed]


def read_csv(path: Path) -> list[dict[str, Any]]:
    """Rows as `collect` wrote them: numbers, and None where nothing stands.

    Raises ConfigError where the file cannot be read so.
    """
    try:
        with path.open(newline="", encoding="utf-8") as file:
            return [_numbers(row) for row in csv.DictReader(file)]
    except (OSError, ValueError, csv.Error) as error:
        raise ConfigError(f"{path} is no table of recorded rows ({error})") from error


def write_csv(
    path: Path, rows: Sequence[Mapping[str, Any]], columns: Sequence[str] = COLUMNS
) -> None:
    """Write rows of metrics, as `read_csv` reads them."""
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read_labelled(texts: Sequence[str], flag: str) -> list[tuple[str, Path]]:
    """(label, path) of each `LABEL:PATH`; raises ConfigError where one has no label or path."""
    pairs = [text.partition(":") for text in texts]
    for text, (label, _, path) in zip(texts, pairs, strict=True):
        if not label or not path:
            raise ConfigError(f"{flag}={text} is not of the form LABEL:PATH")
    return [(label, Path(path)) for label, _, path in pairs]


def _numbers(row: Mapping[str, str]) -> dict[str, Any]:
    parse = dict.fromkeys(_NUMBERS, int)
    return {k: parse.get(k, float)(text) if text else None for k, text in row.items()}


# -------------------------------------------------------------------------------------- measuring


def measured(name: str, rows: Sequence[Mapping[str, Any]]) -> list[float | None]:
    """The score of each member by rows of metrics; None where there is nothing to measure."""
    if name in SHARES:
        return mean_return(rows, SHARES[name])
    begin = 0.8 * max((row["step"] for row in rows), default=0)
    values: dict[int, list[float]] = {}
    for row in rows:
        own = values.setdefault(row["seed"], [])
        if row["step"] > begin and row.get(name) is not None:
            own.append(row[name])
    return [sum(own) / len(own) if own else None for _, own in sorted(values.items())]


def measured_run(name: str, workdir: Path) -> list[float | None]:
    """The score of each member of a finished run.

    Raises ConfigError where the workdir lacks what is measured.
    """
    if name != GREEDY:
        return measured(name, read_metrics(workdir))
    path = workdir / "evaluation.json"
    try:
        means = json.loads(path.read_text(encoding="utf-8"))["mean"]
        return [None if mean is None else float(mean) for mean in means]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} holds no evaluation ({error}); the same command makes it"
        ) from error
