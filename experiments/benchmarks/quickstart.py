"""README's first run, from a cold start, now and as another commit has it.

    python -m experiments.benchmarks.quickstart --against=bc4452f

runs the command in this tree and in a worktree of the other commit, in turns, each with a
compilation cache of its own that is empty, and writes `quickstart.csv`, or beside it
`quickstart_COMMIT.csv` for another commit than the default. Nothing else should run meanwhile: wall
time is what a newcomer waits for.
"""

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from absl import app, flags

from experiments.benchmarks import timing
from experiments.benchmarks.trees import ROOT, environment_of, tree_of
from mbrl_jax.runs.metrics import last_fifth, read_metrics

COLUMNS = ("commit", "round", "wall_s", "cpu_s", "times_ours", "last_fifth", "greedy")
LANDED = "bc4452f"  # where Catch landed
COMMAND = ("-m", "launch.train", "--experiment=drama_catch", "--num_seeds=4")

_AGAINST = flags.DEFINE_string("against", LANDED, "The other commit.")
_ROUNDS = flags.DEFINE_integer("rounds", 3, "Runs of either.", lower_bound=1)


def run_once(tree: Path) -> dict[str, Any]:
    """Run the command in a tree; seconds, and the returns of each seed."""
    with tempfile.TemporaryDirectory() as folder:
        workdir = Path(folder) / "run"
        environment = environment_of(tree, Path(folder) / "cache")
        before, start = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        command = [sys.executable, *COMMAND, f"--workdir={workdir}"]
        subprocess.run(command, cwd=tree, env=environment, check=True, stdout=subprocess.DEVNULL)
        wall, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
        greedy = json.loads((workdir / "evaluation.json").read_text())["mean"]
        returns = last_fifth(read_metrics(workdir))
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    shown = (" ".join(f"{x:.2f}" for x in values) for values in (returns, greedy))
    return dict(zip(("last_fifth", "greedy"), shown, strict=True)) | {"wall_s": wall, "cpu_s": cpu}


def measure(against: str, rounds: int) -> list[dict[str, Any]]:
    """A row for each run, and two of medians."""
    rows = []
    with tree_of(against) as other:
        for number in range(rounds):
            for commit, tree in ((against, other), ("this", ROOT)):
                rows.append({"commit": commit, "round": number, **run_once(tree)})
                print("  ".join(timing.shown(v) for v in rows[-1].values()), flush=True)
    medians = []
    for commit in (against, "this"):
        own = [row for row in rows if row["commit"] == commit]
        seconds = {c: statistics.median(row[c] for row in own) for c in ("wall_s", "cpu_s")}
        medians.append({"commit": commit, "round": "median", **seconds})
    for row in medians:
        row["times_ours"] = row["wall_s"] / medians[-1]["wall_s"]
    return rows + medians


def main(_: list[str]) -> None:
    """Measure and write the table."""
    rows = measure(_AGAINST.value, _ROUNDS.value)
    name = "quickstart.csv" if _AGAINST.value == LANDED else f"quickstart_{_AGAINST.value}.csv"
    timing.write_csv(ROOT / "experiments/results/benchmarks" / name, COLUMNS, rows)
    for row in rows[-2:]:
        print("  ".join(timing.shown(value) for value in row.values()))


if __name__ == "__main__":
    app.run(main)
