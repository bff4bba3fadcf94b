"""Collect chosen metrics of runs, such as losses, into a table beside this file.

    python -m experiments.results.collect_metrics --name=memory_hundred_losses \\
        --run=mamba2:runs/memory/MEMBER --run=gru:runs/memory/MEMBER \\
        --metrics=model/reward,model/gradient_norm

Writes `<name>.csv` with a line for each seed and step at which one of the metrics is known: the
label of the run, seed, step, and the metrics in four digits, or as they are (`--digits=0`). Runs of
one label are parts of one, with other seeds (`--first_seed`); a run that was stopped has rows too.
"""

import csv
from collections.abc import Iterator, Sequence
from pathlib import Path

from absl import flags

from experiments.results.shared_flags import NAME
from launch import flags as launch_flags

_RUNS = flags.DEFINE_multi_string("run", [], "LABEL:WORKDIR; repeatable.")
_METRICS = flags.DEFINE_list("metrics", [], "Names of metrics, as metrics.jsonl has them.")
_DIGITS = flags.DEFINE_integer("digits", 4, "Of a number; 0: all that metrics.jsonl has.", 0)


def main() -> None:
    """Read the runs, write the table."""
    from experiments.results.rows import FOLDER, read_labelled
    from mbrl_jax.errors import ConfigError

    if not NAME.value or not _RUNS.value or not _METRICS.value:
        raise ConfigError("--name, --run and --metrics are needed; see --help")
    labelled = read_labelled(_RUNS.value, "--run")
    lines = list(collected(labelled, _METRICS.value, _DIGITS.value))
    path = FOLDER / f"{NAME.value}.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["run", "seed", "step", *_METRICS.value])
        writer.writerows(lines)
    print(f"{len(lines)} lines: {path}")


def collected(
    runs: Sequence[tuple[str, Path]], metrics: Sequence[str], digits: int = 4
) -> Iterator[list[str]]:
    """Yield the cells of a line for each (label, seed, step), ordered by them within a label.

    Args:
      runs: label and workdir of each.
      metrics: names.
      digits: of a number; 0: all.

    Raises ConfigError for a run without these metrics, and for a line that is there twice.
    """
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.runs.metrics import read_metrics

    found: dict[str, dict[tuple[int, int], list[str]]] = {}
    for label, workdir in runs:
        rows = [
            row for row in read_metrics(workdir) if any(row.get(m) is not None for m in metrics)
        ]
        if not rows:
            raise ConfigError(f"{workdir} holds no metrics {' or '.join(metrics)}")
        own = found.setdefault(label, {})
        for row in rows:
            place = row["seed"], row["step"]
            if place in own:
                raise ConfigError(f"seed {place[0]} of {label} is in two runs, one is {workdir}")
            values = [row.get(metric) for metric in metrics]
            own[place] = ["" if value is None else shown(value, digits) for value in values]
    for label, own in found.items():
        for (seed, step), cells in sorted(own.items()):
            yield [label, str(seed), str(step), *cells]


def shown(value: float, digits: int) -> str:
    """A number in so many digits; 0: as it is."""
    return f"{value:.{digits}g}" if digits else str(value)


if __name__ == "__main__":
    launch_flags.run_main(main)
