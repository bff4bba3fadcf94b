"""Record the finished members of a sweep as rows that can be rerun.

    python -m experiments.results.collect_sweep --sweep=runs/memory --name=memory \\
        --by=env.params,model.core --cpu_minutes=4,memory_length=100:58 --resolution=0.02

Writes `<name>.csv` (every episode mean of every seed, and the row that it belongs to) and the lines
of `rows.jsonl`, both in the place of those of the same row, so that the members of a sweep may be
recorded in parts; prints one line for each row, and which members are left out: a configuration
whose seeds were packed into programs (`--seeds_per_program`) has a row when all are finished. A row
is called by the settings of `--by`, or by all of them. The minutes are those of each configuration,
or, behind a text and a colon, of those that have it in a setting.
"""

import csv
import json
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.results.shared_flags import NAME
from launch import flags as launch_flags

_SWEEP = flags.DEFINE_string("sweep", None, "Root of a sweep.")
_BY = flags.DEFINE_list("by", [], "Paths of the settings that name a row; default: all.")
_MINUTES = flags.DEFINE_list("cpu_minutes", [], "That one row takes, about: [TEXT:]MINUTES.")
_RESOLUTION = flags.DEFINE_float("resolution", 0.0, "Differences of means that do not count.")


def main() -> None:
    """Read the sweep, write the table and the rows, print the summary."""
    from experiments.results import rows
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.runs.metrics import read_metrics

    if not _SWEEP.value or not NAME.value or not _MINUTES.value:
        raise ConfigError("--sweep, --name and --cpu_minutes are needed; see --help")
    found, metrics = {}, []
    told = (NAME.value, _BY.value, read_minutes(_MINUTES.value), _RESOLUTION.value)
    for runs, row in recorded(Path(_SWEEP.value), *told):
        if row is None:
            for run in runs:
                print(f"left out: {run.path.name} ({run.state})")
            continue
        if row["name"] in found:
            raise ConfigError(f"two members are called {row['name']}; name more settings in --by")
        found[row["name"]] = row
        own = {"row": row["name"], "run_seed": row["seeds"][0]}
        metrics += [own | line for run in runs for line in read_metrics(run.path)]
        for name, measure in row["measures"].items():
            scores = ", ".join(f"{score:.3g}" for score in measure["values"][0])
            print(f"{row['name']:40s} {name:8s} {scores}")
    replace_metrics(rows.FOLDER / f"{NAME.value}.csv", found, metrics)
    replace_rows(rows.TABLE, found.values())


def read_minutes(texts: Sequence[str]) -> dict[str, float]:
    """`[TEXT:]MINUTES`, …: minutes by text, "" for all; raises ConfigError where there are none."""
    from mbrl_jax.errors import ConfigError

    minutes = {}
    for where, _, value in (text.rpartition(":") for text in texts):
        try:
            minutes[where] = float(value)
        except ValueError:
            raise ConfigError(f"--cpu_minutes: {value!r} is no number of minutes") from None
    return minutes


def minutes_of(minutes: Mapping[str, float], settings: Sequence[str]) -> float:
    """Of the last text that a setting has; raises ConfigError where none does."""
    from mbrl_jax.errors import ConfigError

    fitting = [value for text, value in minutes.items() if any(text in own for own in settings)]
    if not fitting:
        raise ConfigError(f"--cpu_minutes says nothing of {' '.join(settings)}")
    return fitting[-1]


def recorded(
    root: Path, name: str, by: Sequence[str], minutes: Mapping[str, float], resolution: float
) -> Iterator[tuple[list[Any], dict[str, Any] | None]]:
    """Yield (the runs of a configuration, its row as an object of `rows.jsonl`).

    Runs are several where its seeds were packed into programs; the row is None unless all of them
    are finished. Raises ConfigError for a sweep of `--debug`, which a row cannot name, for one of
    packed seeds with numbers that vary inside, or where there is no sweep.
    """
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.report import records
    from mbrl_jax.sweeps import plan

    runs = records.read_sweep(root)
    manifest = plan.read_manifest(root)
    common = manifest["common"]
    if common["debug"]:
        raise ConfigError(f"{root} is a sweep of --debug, whose numbers are no results")
    packed: dict[tuple[str, ...], list[Any]] = {}
    for run, member in zip(runs, plan.members_of(manifest), strict=True):
        packed.setdefault(tuple(member.settings), []).append((member.first_seed, run))
    for settings, parts in packed.items():
        own = [run for _, run in sorted(parts, key=lambda part: part[0])]
        if common["inside"] and len(own) > 1:
            raise ConfigError(
                f"{root} varies numbers inside of packed seeds, which no row can tell"
            )
        measures = _measures(own, resolution)
        if measures is None:
            yield own, None
            continue
        row = {
            "name": row_name(name, settings, by),
            "title": f"{name}: {' '.join(_chosen(settings, by))}",
            "experiment": common["experiment"],
            "set": [*common["settings"], *settings],
            "sweep_inside": common["inside"],
            "num_seeds": common["num_seeds"],
            "seeds": [common["seed"]],
            "cpu_minutes": minutes_of(minutes, settings),
            "measures": measures,
        }
        yield own, row | ({} if common["steps"] is None else {"steps": common["steps"]})


def _measures(runs: Sequence[Any], resolution: float) -> dict[str, Any] | None:
    """What was measured of the runs of a row; None unless all finished and every seed has it."""
    from experiments.results.rows import GREEDY, TRAINING, WHOLE, measured
    from mbrl_jax.runs.metrics import read_metrics

    lanes = [lane for run in runs for lane in run.lanes]
    training = [lane.training for lane in lanes]
    greedy = [lane.greedy and lane.greedy.mean for lane in lanes]
    finished = all(run.lanes and run.state == "finished" for run in runs)
    if not finished or None in training or None in greedy:
        return None
    whole = [score for run in runs for score in measured(WHOLE, read_metrics(run.path))]
    found = {TRAINING: training, WHOLE: whole, GREEDY: greedy}
    return {name: {"values": [own], "resolution": resolution} for name, own in found.items()}


def _chosen(settings: Sequence[str], by: Sequence[str]) -> list[str]:
    return [text for text in settings if not by or text.partition("=")[0] in by]


def row_name(name: str, settings: Sequence[str], by: Sequence[str]) -> str:
    """An identifier of the name and the chosen settings."""
    return re.sub(r"[\W_]+", "_", "_".join([name, *_chosen(settings, by)])).strip("_")


def replace_metrics(
    path: Path, names: Container[str], metrics: Sequence[Mapping[str, Any]]
) -> None:
    """Put the metrics of the rows of these names behind those of the others in a table.

    Raises ConfigError where the file is another table.
    """
    from experiments.results import rows
    from mbrl_jax.errors import ConfigError

    kept = []
    if path.exists():
        with path.open(newline="", encoding="utf-8") as file:
            table = csv.DictReader(file)
            if "row" not in (table.fieldnames or ()):
                raise ConfigError(f"{path} is no table of a sweep; choose another --name")
            kept = [line for line in table if line["row"] not in names]
    rows.write_csv(path, [*kept, *metrics], ("row", *rows.COLUMNS))


def replace_rows(table: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Put rows in the place of those of the same name, and the others behind."""
    new = {row["name"]: json.dumps(row) for row in rows}
    lines = []
    for line in table.read_text(encoding="utf-8").splitlines():
        name = json.loads(line)["name"] if line.strip() else None
        lines.append(new.pop(name, line))
    table.write_text("\n".join([*lines, *new.values()]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    launch_flags.run_main(main)
