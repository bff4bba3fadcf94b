"""Collect finished runs into a table and a picture, beside this file or in `--folder`.

    python -m experiments.results.collect --name=drama_catch --workdirs=runs/seed0,runs/seed1

Writes `<name>.csv` (every episode mean of every seed), `<name>.png` and `<name>.svg` (learning
curve) and prints one row for each seed: training return over the last fifth of the steps, and
greedy episodes. Runs of several configurations are drawn as the mean of each, with its 95 %
interval. `--baseline=NAME=VALUE` (repeatable) draws what the text holds them against.

    python -m experiments.results.collect --redraw=breakout --name=minatar_breakout \\
        --title="drama_minatar on Breakout-MinAtar" --baseline=random=0.4 --baseline=PPO=3.45

draws the picture of a recorded row anew, from its CSV alone.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.results.shared_flags import NAME
from launch import flags as launch_flags

_WORKDIRS = flags.DEFINE_list("workdirs", [], "Finished runs, separated by commas.")
_FOLDER = flags.DEFINE_string("folder", None, "Where to write; default: beside this file.")
_REDRAW = flags.DEFINE_string("redraw", None, "A row of rows.jsonl whose picture is drawn anew.")

_TITLE = flags.DEFINE_string("title", None, "Title of the picture; default: --name.")
_BASELINE = flags.DEFINE_multi_string("baseline", [], "NAME=VALUE, drawn in; repeatable.")


def main() -> None:
    """Read the runs, write the table and the picture, print the summary."""
    from experiments.results.rows import FOLDER, write_csv
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.report.records import read_runs
    from mbrl_jax.runs.metrics import read_metrics

    if not NAME.value or not (_WORKDIRS.value or _REDRAW.value):
        raise ConfigError("--name and --workdirs are needed; see --help")
    folder = FOLDER if _FOLDER.value is None else Path(_FOLDER.value)
    if _REDRAW.value:
        redraw(folder / f"{NAME.value}.csv", _REDRAW.value)
        return
    rows, summary = [], []
    runs = read_runs(_WORKDIRS.value)
    for run in runs:
        evaluated = all(lane.greedy for lane in run.lanes)
        if run.state != "finished" or run.notes or not evaluated:
            why = "; ".join((run.error, *run.notes)).strip("; ") or "train it to its end"
            raise ConfigError(f"{run.path} is {run.state} and cannot be collected ({why})")
        for lane in run.lanes:
            greedy = lane.greedy
            summary.append((lane.seed[0], lane.index, lane.training, greedy.mean, greedy.episodes))
        rows += [{"run_seed": run.saved.members.seed, **row} for row in read_metrics(run.path)]
    write_csv(folder / f"{NAME.value}.csv", rows)
    _draw(runs, rows, folder / f"{NAME.value}.csv")
    print("run seed  lane  last fifth  greedy (episodes)")
    for seed, lane, final, mean, episodes in summary:
        last = "no episode" if final is None else f"{final:.3f}"
        print(f"{seed:8d}  {lane:4d}  {last:>10}  {mean:.3f} ({episodes})")


def redraw(table: Path, name: str) -> None:
    """Write the picture of the recorded row `name` beside its CSV."""
    import csv

    import numpy as np

    from experiments.results.compare import settings_of
    from experiments.results.rows import read_rows
    from mbrl_jax.evaluate import comparison

    row = read_rows()[name]
    with table.open() as file:
        rows = [one for one in csv.DictReader(file) if one["episode/return"]]
    labels = settings_of(row)
    if len(labels) == 1:
        _plot_seeds([{k: float(v) for k, v in one.items() if v} for one in rows], table)
        return
    curves: dict[int, list[tuple[float, float, float]]] = {}
    for one in rows:
        numbers = (one["step"], one["episode/return"], one["episode/count"])
        curves.setdefault(int(one["seed"]), []).append(tuple(map(float, numbers)))
    lines = []
    for i, label in enumerate(labels):
        own = range(i * row.num_seeds, (i + 1) * row.num_seeds)
        thinned = [comparison.thin(np.array(curves[seed])) for seed in own]
        lines.append(comparison.mean_line(label.replace(" ", ", "), i, thinned))
    _plot_lines(lines, table)


def _draw(runs: Sequence[Any], rows: Sequence[dict[str, Any]], path: Path) -> None:
    """A picture of every seed, or of every configuration on every task if there are several."""
    from mbrl_jax.evaluate import comparison
    from mbrl_jax.report.groups import group_runs

    grouping = group_runs(runs)
    pools = [(group.label, pool) for group in grouping.groups for pool in group.pools]
    if len(pools) == 1:
        _plot_seeds(rows, path)
        return
    lines = []
    for i, (label, pool) in enumerate(pools):
        curves = [comparison.thin(source.lane.curve) for source in pool.sources]
        named = f"{pool.task} {label}" if len(grouping.tasks) > 1 else label
        lines.append(comparison.mean_line(named, i, curves))
    _plot_lines(lines, path)


def _plot_seeds(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """One configuration: lanes of different runs are different seeds of one picture."""
    from mbrl_jax.evaluate import plots

    lanes = {key: i for i, key in enumerate(sorted({(r["run_seed"], r["seed"]) for r in rows}))}
    curve = [{**row, "seed": lanes[row["run_seed"], row["seed"]]} for row in rows]
    title = _TITLE.value or path.stem
    picture = path.with_suffix(".png")
    plots.plot_learning_curve(curve, picture, title, baselines=_baselines(), vector=True)


def _plot_lines(lines: Sequence[Any], path: Path) -> None:
    """Several configurations: a line each, with its interval."""
    from mbrl_jax.evaluate import comparison, plots

    figure = comparison.draw_curves(lines, baselines=_baselines())
    if _TITLE.value:
        figure.suptitle(
            plots.plain(_TITLE.value), x=0.01, ha="left", fontweight="bold", color=plots.INK
        )
    plots.save_both(figure, path.with_suffix(".png"))


def _baselines() -> list[Any]:
    return [launch_flags.read_baseline(text)[1] for text in _BASELINE.value]


if __name__ == "__main__":
    launch_flags.run_main(main)
