"""Make a page of any runs or of a sweep: tables, curves, predictions, and where numbers come from.

    python -m launch.report --workdirs=runs/a,runs/b --out=report.html
    python -m launch.report --sweep=runs/cores --out=report.html --title="Five cores on Catch"

Runs may be finished, running or failed: the page says which. Those that differ in nothing but seed
and task are pooled, whichever directories and programs they lie in. The page is one file without
scripts that asks for nothing else; the tables stand in Markdown beside it, and on the terminal.
`--csv=rows.csv` writes the metrics themselves, the table that `mbrl_jax.read_runs` gives;
`--figures=FOLDER` every figure of the page as SVG and PNG.

`--baseline=NAME=VALUE` (repeatable) draws a number that scores are held against, on one task alone
as `--baseline=TASK:NAME=VALUE`; Atari's games have random play and a human by themselves.
"""

import shlex
import sys
from pathlib import Path

from absl import flags

from launch import flags as launch_flags

_WORKDIRS = flags.DEFINE_list("workdirs", [], "Directories of runs, separated by commas.")
_SWEEP = flags.DEFINE_string("sweep", None, "Root of a sweep, whose members are reported.")
_OUT = flags.DEFINE_string("out", "report.html", "File to write; the Markdown lies beside it.")
_TITLE = flags.DEFINE_string("title", None, "Title of the page.")
_CSV = flags.DEFINE_string("csv", None, "File for all rows of metrics, with what differs.")
_FIGURES = flags.DEFINE_string("figures", None, "Folder for the figures as SVG and PNG.")
_BASELINE = flags.DEFINE_multi_string(
    "baseline", [], "NAME=VALUE or TASK:NAME=VALUE, drawn beside scores; repeatable."
)
_EXPERIMENT = flags.DEFINE_string(
    "experiment", None, "As for launch.train: for runs whose configuration has types from there."
)


def main() -> None:
    """Read the runs, write the page and the Markdown, print the latter."""
    from mbrl_jax.errors import ConfigError

    if bool(_WORKDIRS.value) == bool(_SWEEP.value):
        raise ConfigError("give one of --workdirs and --sweep; see --help")
    baselines = [launch_flags.read_baseline(text) for text in _BASELINE.value]
    bases = _bases()  # first: it may define types of the runs' configurations
    from mbrl_jax.report import content, figures, frame, records
    from mbrl_jax.report.report import make_report, write_report
    from mbrl_jax.runs.shown import shown
    from mbrl_jax.runs.workdir import as_path

    if _SWEEP.value:
        root = as_path(_SWEEP.value)
        runs, title = records.read_sweep(root), f"Sweep {root.name or root}"
    else:
        runs = records.read_runs([as_path(path) for path in _WORKDIRS.value])
        title = "Report"
    title = " on ".join(filter(None, [title, content.tasks_text(runs)]))
    command = shlex.join(["python", "-m", "launch.report", *sys.argv[1:]])
    report = make_report(runs, _TITLE.value or title, command, bases, baselines)
    paths = list(write_report(report, as_path(Path(_OUT.value))))
    if _CSV.value:
        frame.write_csv(_CSV.value, runs)
    if _FIGURES.value:
        paths += figures.write_drawings(report.drawings, as_path(Path(_FIGURES.value)))
    print("\n".join(map(shown, report.markdown.splitlines())))
    print("\n" + "\n".join(map(shown, paths)))
    if _CSV.value:
        print(shown(_CSV.value))


def _bases() -> dict:
    """Experiments from which commands are reconstructed: those that ship, and the named one."""
    from mbrl_jax.report.commands import Base

    names = launch_flags.experiment_names()
    found = [Base(name, launch_flags.load_experiment(name)) for name in names]
    if _EXPERIMENT.value:
        found.append(Base(_EXPERIMENT.value, launch_flags.load_experiment(_EXPERIMENT.value)))
    return {base.experiment.name: base for base in found}


if __name__ == "__main__":
    launch_flags.run_main(main)
