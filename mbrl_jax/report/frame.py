"""Metrics of many runs as one table: of pandas for notebooks and plots of one's own, or as CSV.

    import mbrl_jax

    frame = mbrl_jax.read_runs(["runs/a", "runs/b", "runs/sweep"])
    frame.groupby(["model.core", "step"])["episode/return"].mean()

`read_runs` needs pandas (the extra `frame`), `write_csv` does not.
"""

import csv
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.report.records import Run, read_runs, read_sweep
from mbrl_jax.runs.layout import as_path
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.sweeps import plan

if TYPE_CHECKING:
    import pandas

FIRST = ("workdir", "experiment", "environment", "run_seed", "seed", "step", "env_steps")


def frame_of_runs(
    workdirs: str | Path | Iterable[str | Path], settings: Sequence[str] = ()
) -> "pandas.DataFrame":
    """A row for each seed and logged step of every run.

    Columns are where the row comes from (`FIRST`), the settings, and all metrics of
    `metrics.jsonl`; a metric that a row lacks is NaN. A field in which the runs, or the members of
    one, differ is a column by its path ("behaviour.entropy"; "model" itself where the models do);
    where a run does not have the field its cell is None.

    Args:
      workdirs: directories of runs, and roots of sweeps, which stand for their members.
      settings: paths of further fields that are to be columns.

    Raises ConfigError for a directory without a run, for a field that no run has, and without
    pandas.
    """
    try:
        import pandas
    except ImportError:
        raise ConfigError(
            "a table of runs needs pandas: pip install -c constraints.txt -e '.[frame]'"
        ) from None
    one = isinstance(workdirs, str | Path)
    paths: list[Any] = [workdirs] if one else list(workdirs)  # type: ignore[arg-type]
    columns, rows = _table(list(_runs(paths)), settings)
    return pandas.DataFrame(rows).reindex(columns=columns)


def write_csv(path: str | Path, runs: Sequence[Run]) -> None:
    """The same table of `runs` as a CSV file; a cell without a value is empty.

    Raises ConfigError for a run that cannot be read, and where the file cannot be written.
    """
    columns, rows = _table(list(map(_readable, runs)), ())
    try:
        with as_path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(rows)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error}): name another file") from error


def _table(runs: list[Run], settings: Sequence[str]) -> tuple[list[str], list[dict[str, Any]]]:
    """(names of columns, rows)."""
    fields = [[config.flatten(lane.experiment) for lane in run.lanes] for run in runs]
    columns = _columns([of_lane for of_run in fields for of_lane in of_run], settings)
    rows: list[dict[str, Any]] = []
    for run, of_lanes in zip(runs, fields, strict=True):
        assert run.saved is not None
        first = run.saved.members.first_seed
        for row in read_metrics(run.path):
            index = row["seed"] - first
            if not 0 <= index < len(of_lanes):
                continue  # of no member: the file was edited
            env = run.saved.experiment.env
            said = {
                "workdir": str(run.path),
                "experiment": run.saved.experiment.name,
                "environment": getattr(env, "name", type(env).__module__),
                "run_seed": run.saved.members.seed,
            }
            chosen = {path: _cell(of_lanes[index].get(path)) for path in columns}
            rows.append(said | chosen | row)
    names = dict.fromkeys(name for row in rows for name in row)
    metrics = [name for name in names if name not in (*FIRST, *columns)]
    return [*FIRST, *columns, *metrics], rows


def _runs(paths: Sequence[str | Path]) -> Iterable[Run]:
    """Records of runs, and of the members of sweeps. Raises ConfigError for one without a run."""
    for path in map(as_path, paths):
        found = read_sweep(path) if (path / plan.MANIFEST).is_file() else read_runs([path])
        yield from map(_readable, found)


def _readable(run: Run) -> Run:
    """The run. Raises ConfigError where it cannot be read."""
    if run.saved is None:
        raise ConfigError(f"{run.path} cannot be read: {run.error}")
    return run


def _columns(fields: list[dict[str, Any]], settings: Sequence[str]) -> list[str]:
    """Paths in which lanes differ, and those that are asked for."""
    paths = list(dict.fromkeys(path for of_lane in fields for path in of_lane))
    if unknown := [path for path in settings if path not in paths]:
        raise ConfigError(f"no run has the field {unknown[0]!r}")
    own = ("name", "env.name")  # columns already
    texts = {path: {str(of_lane.get(path)) for of_lane in fields} for path in paths}
    differ = [path for path in paths if len(texts[path]) > 1 and path not in own]
    return list(dict.fromkeys([*differ, *settings]))


def _cell(value: Any) -> Any:
    """A number, text or truth value; anything else as text."""
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
