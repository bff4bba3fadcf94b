"""Benchmarks now and as another commit has them, in turns in one run.

    python -m experiments.benchmarks.versions --against=8588115

runs `python -m experiments.benchmarks --only=NAME` in this tree and in a worktree of the other
commit, round by round, and writes `versions.csv`: of every row the medians of its CPU-seconds, and
how many times ours the other's are. 8588115 is the version before the rooms and the seams for
thirty systems. A difference of one row by a tenth is the noise of these machines. Nothing else
should run meanwhile.
"""

import csv
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.benchmarks import timing
from experiments.benchmarks.trees import ROOT, environment_of, tree_of

COLUMNS = ("benchmark", "row", "cpu_s", "cpu_s_before", "times_ours", "rounds")

_AGAINST = flags.DEFINE_string("against", "8588115", "The other commit.")
_ONLY = flags.DEFINE_list("only", ["seeds", "published"], "Names of benchmarks.")
_ROUNDS = flags.DEFINE_integer("rounds", 2, "Runs of either.", lower_bound=1)

Seconds = dict[tuple[str, str], float]  # by benchmark and row


def run_once(tree: Path, name: str) -> Seconds:
    """One benchmark in a tree."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "experiments.benchmarks", f"--only={name}"]
        command.append(f"--out={folder}")
        environment = environment_of(tree, Path(folder) / "cache")
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        with (Path(folder) / f"{name}.csv").open() as file:
            rows = list(csv.DictReader(file))
    label = lambda row: " ".join(row[c] for c in ("program", "seeds", "side") if row.get(c))  # noqa: E731
    return {(name, label(row)): float(row["cpu_s"]) for row in rows if row.get("cpu_s")}


def measure(against: str, names: list[str], rounds: int) -> list[dict[str, Any]]:
    """A row for each row that both versions have."""
    found: dict[str, dict[tuple[str, str], list[float]]] = {
        side: defaultdict(list) for side in ("ours", "before")
    }
    with tree_of(against) as other:
        for number in range(rounds):
            for name in names:
                for side, tree in (("before", other), ("ours", ROOT)):
                    for row, seconds in run_once(tree, name).items():
                        found[side][row].append(seconds)
                    print(f"round {number}: {name}, {side}", flush=True)
    rows = []
    for row, ours in found["ours"].items():
        if row not in found["before"]:
            continue
        now, before = statistics.median(ours), statistics.median(found["before"][row])
        seconds = {"cpu_s": now, "cpu_s_before": before, "times_ours": before / now}
        rows.append({"benchmark": row[0], "row": row[1], **seconds, "rounds": rounds})
    return rows


def main(_: list[str]) -> None:
    """Measure and write the table."""
    rows = measure(_AGAINST.value, _ONLY.value, _ROUNDS.value)
    timing.write_csv(ROOT / "experiments/results/benchmarks/versions.csv", COLUMNS, rows)
    for row in rows:
        print("  ".join(timing.shown(value) for value in row.values()))


if __name__ == "__main__":
    app.run(main)
