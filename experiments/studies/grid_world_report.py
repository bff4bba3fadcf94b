"""Table and pictures of the grid-world study, from the folders that its runs wrote."""

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

from experiments.studies.grid_world_model import CORES

FOLDER = Path(__file__).resolve().parents[1] / "results" / "grid_world"
METRICS = ("agent", "geometry", "frame")
TABLE = (
    *("core", "tokens", "seeds", "updates", "batch", "learning_rate", "parameters"),
    *(f"{metric}_error_{part}" for metric in METRICS for part in ("mean", "std")),
    *(
        "excess_loss",
        "solved_at",
        "train_cpu_ms",
        "solo_cpu_ms",
        "solo_cpu_us_per_token",
        "temp_mb",
        "run_cpu_seconds",
    ),
)
COLOURS = dict(zip(CORES, ("#0072b2", "#56b4e9", "#009e73", "#d55e00", "#cc79a7"), strict=True))


def finished(workdir: Path) -> dict[tuple[str, int], Path]:
    """Folders of the runs that reached their end, by core and length."""
    found = {}
    for path in workdir.glob("*/result.json"):
        result = json.loads(path.read_text())
        found[result["core"], result["tokens"]] = path.parent
    order = sorted(found, key=lambda run: (run[1], CORES.index(run[0])))
    return {run: found[run] for run in order}


def summary(folder: Path) -> dict[str, Any]:
    """One row of the table; std is the sample deviation over seeds."""
    result = json.loads((folder / "result.json").read_text())
    cost_file = folder / "cost.json"
    cost = json.loads(cost_file.read_text()) if cost_file.exists() else {}
    row = {name: result[name] for name in TABLE[1:7] if name != "seeds"}
    row |= {"core": result["core"], "seeds": len(result["seeds"])}
    for metric in METRICS:
        values = result["errors"][metric]
        row[f"{metric}_error_mean"] = f"{statistics.mean(values):.5f}"
        row[f"{metric}_error_std"] = f"{statistics.stdev(values):.5f}" if len(values) > 1 else ""
    row["excess_loss"] = f"{statistics.mean(result['loss']) - least_loss(result['tokens']):.6f}"
    with (folder / "rows.csv").open(newline="") as file:
        solved = solved_at(list(csv.DictReader(file)))
    row["solved_at"] = "/".join("never" if s is None else str(s) for s in solved.values())
    row["train_cpu_ms"] = f"{result['cpu_ms']:.1f}"
    row["run_cpu_seconds"] = f"{result['cpu_seconds']:.0f}"
    if cost:
        row["solo_cpu_ms"] = f"{cost['cpu_ms']:.1f}"
        row["solo_cpu_us_per_token"] = f"{cost['cpu_us_per_token']:.1f}"
        row["temp_mb"] = f"{cost['temp_mb']:.0f}"
    return row


def least_loss(tokens: int) -> float:
    """Loss of a model that knows all there is to know: only the start, one of 9 cells, is open."""
    from experiments.studies import grid_world_data as data

    return math.log((~data.IS_WALL).sum()) / data.is_cell(tokens).sum()


def solved_at(rows: list[dict[str, str]], bound: float = 0.01) -> dict[str, int | None]:
    """For each seed the update from which on the agent's error stayed within `bound`, or None."""
    solved: dict[str, int | None] = {}
    for row in rows:
        if float(row["agent"]) > bound:
            solved[row["seed"]] = None
        elif solved.get(row["seed"]) is None:
            solved[row["seed"]] = int(row["update"])
    return solved


def references(tokens: int = 208, num: int = 4096) -> dict[str, dict[str, float]]:
    """Errors of the predictors that know the geometry but not the actions."""
    import jax
    import jax.numpy as jnp

    from experiments.studies import grid_world_data as data
    from experiments.studies.grid_world_model import sample_batch

    batch = sample_batch(jax.random.key(0), num, tokens)
    errors = {
        predictor.__name__: jax.jit(jax.vmap(lambda s, p=predictor: data.errors(p(s), s)))(batch)
        for predictor in (data.copy_last, data.ignore_action)
    }
    return {
        name: {k: float(jnp.mean(v)) for k, v in e._asdict().items()} for name, e in errors.items()
    }


def collect(workdir: Path, folder: Path = FOLDER) -> str:
    """Write `table.csv`, `curves.csv` and `curves.png`; the table as text.

    Raises FileNotFoundError where no run of `workdir` is finished.
    """
    runs = finished(workdir)
    if not runs:
        raise FileNotFoundError(f"no finished run in {workdir}")
    folder.mkdir(parents=True, exist_ok=True)
    rows = [summary(path) for path in runs.values()]
    _write(folder / "table.csv", TABLE, rows)
    curves = []
    for (core, tokens), path in runs.items():
        with (path / "rows.csv").open(newline="") as file:
            curves += [{"core": core, "tokens": tokens, **row} for row in csv.DictReader(file)]
    _write(folder / "curves.csv", tuple(curves[0]), curves)
    known = references()
    _plot(curves, known, folder / "curves.png")
    lines = [" | ".join(TABLE)]
    lines += [" | ".join(str(row.get(name, "")) for name in TABLE) for row in rows]
    lines += [f"{name}: {errors}" for name, errors in known.items()]
    return "\n".join(lines)


def _write(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def _plot(curves: list[dict[str, Any]], known: dict, path: Path) -> None:
    """Agent and geometry error against updates: a thin line for each seed, one for their mean."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    lengths = sorted({row["tokens"] for row in curves})
    figure = Figure(figsize=(10, 3.6 * len(lengths)), layout="constrained", facecolor="white")
    axes = figure.subplots(len(lengths), 2, squeeze=False)
    for row_axes, tokens in zip(axes, lengths, strict=True):
        for axis, metric in zip(row_axes, ("agent", "geometry"), strict=True):
            for core in CORES:
                chosen = [r for r in curves if (r["core"], r["tokens"]) == (core, tokens)]
                _lines(axis, chosen, metric, core)
            axis.axhline(known["copy_last"][metric], color="#888888", ls=":", label="last frame")
            axis.set(title=f"{metric} error, {tokens} tokens", xlabel="updates", ylim=(-0.02, None))
            axis.legend(fontsize=8, frameon=False)
            axis.spines[["top", "right"]].set_visible(False)
    FigureCanvasAgg(figure).print_png(str(path))


def _lines(axis, rows: list[dict[str, Any]], metric: str, core: str) -> None:
    by_seed: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        by_seed.setdefault(row["seed"], []).append((int(row["update"]), float(row[metric])))
    if not by_seed:
        return
    for points in by_seed.values():
        axis.plot(*zip(*points, strict=True), color=COLOURS[core], lw=0.6, alpha=0.5)
    updates = [update for update, _ in next(iter(by_seed.values()))]
    values = zip(*([value for _, value in points] for points in by_seed.values()), strict=True)
    axis.plot(updates, [statistics.mean(v) for v in values], color=COLOURS[core], lw=2, label=core)
