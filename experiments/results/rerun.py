"""Run a row of results again, and say whether it falls inside its interval.

    python -m experiments.results.rerun --list
    python -m experiments.results.rerun --row=catch
    python -m experiments.results.rerun --row=catch --seed=0
    python -m experiments.results.rerun --row=catch --seed=40 --seed=41

Runs `launch.train` as `rows.jsonl` says, once for each recorded seed or for those of `--seed`, and
measures as it was measured then. The same command goes on where it was stopped. The exit status is
0 if the mean of the new runs falls inside the interval of every measure, and 1 if not.

The interval is a prediction interval: where the mean of so many new runs lies in 95 of 100 cases,
if they are like the recorded ones (`mbrl_jax.evaluate.statistics.prediction_interval`). One of
twenty falls outside by chance; other seeds then tell chance from change. Recorded seeds test
whether machine and versions give the same numbers, which is said in a sentence of its own, and not
whether the result holds: for that take seeds that are not recorded.
"""

import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from absl import flags

from launch import flags as launch_flags

ROOT = Path(__file__).resolve().parents[2]

_ROW = flags.DEFINE_string("row", None, "Name of a row; --list shows them.")
_LIST = flags.DEFINE_bool("list", False, "Print the rows and exit.")
_SEED = flags.DEFINE_multi_integer(
    "seed", None, "As for launch.train; repeatable. Default: the recorded ones."
)
_PLACE = flags.DEFINE_string("root", None, "Where the runs lie; default: runs/rerun/ROW.")
_TABLE = flags.DEFINE_string("table", None, "Another file of rows.")


class Finding(NamedTuple):
    """What is to be said of one measure."""

    inside: bool
    sentences: tuple[str, ...]


def main() -> None:
    """List the rows, or run one and exit with 1 if it falls outside."""
    from experiments.results import rows
    from mbrl_jax.experiment import config
    from mbrl_jax.runs import workdir
    from mbrl_jax.runs.shown import shown

    table = rows.read_rows(_TABLE.value or rows.TABLE)
    if _LIST.value:
        for row in table.values():
            print(shown(describe(row)))
        return
    if _ROW.value not in table:
        asked = "--row is missing" if _ROW.value is None else f"there is no row {_ROW.value!r}"
        raise config.ConfigError(f"{asked}; the rows are {', '.join(table)} (see --list)")
    row = table[_ROW.value]
    seeds = tuple(dict.fromkeys(_SEED.value or row.seeds))
    place = workdir.as_path(_PLACE.value or ROOT / "runs" / "rerun" / row.name).resolve()
    found = {seed: rerun(row, seed, place / f"seed_{seed}") for seed in seeds}
    findings = [
        judge(row, measure, {seed: found[seed][measure.name] for seed in seeds}, setting)
        for measure in row.measures
        for setting in range(row.settings)
    ]
    for finding in findings:
        for sentence in finding.sentences:
            print(shown(sentence))
    outside = sum(not finding.inside for finding in findings)
    print(f"{row.name}: " + (f"{outside} of {len(findings)} outside" if outside else "inside"))
    sys.exit(1 if outside else 0)


def describe(row) -> str:
    """A line of `--list`."""
    scores = []
    for measure in row.measures:
        every = [score for own in measure.recorded.values() for score in own]
        scores.append(f"{measure.name} {sum(every) / len(every):.4g}")
    seeds = ", ".join(map(str, row.seeds))
    return (
        f"{row.name}: {row.title}; {', '.join(scores)}; {row.num_seeds} seeds with each of "
        f"--seed={seeds}, about {row.cpu_minutes * len(row.seeds):g} CPU-minutes"
    )


# ---------------------------------------------------------------------------------------- running


def command(row, seed: int, workdir: Path) -> list[str]:
    """Arguments of `launch.train`."""
    steps = [] if row.steps is None else [f"--steps={row.steps}"]
    return [
        f"--experiment={row.experiment}",
        *(f"--set={assignment}" for assignment in row.set),
        *(f"--sweep_inside={text}" for text in row.sweep_inside),
        *steps,
        f"--num_seeds={row.num_seeds}",
        f"--seed={seed}",
        f"--workdir={workdir}",
    ]


def rerun(row, seed: int, workdir: Path) -> dict[str, list[float | None]]:
    """Run one seed of a row; {measure: score of each member}."""
    from experiments.results import rows
    from mbrl_jax.runs.shown import shown

    arguments = command(row, seed, workdir)
    line = shlex.join(["python", "-m", "launch.train", *arguments])
    print(shown(f"{row.name}, about {row.cpu_minutes:g} CPU-minutes: {line}"), flush=True)
    train(arguments)
    return {m.name: rows.measured_run(m.name, workdir) for m in row.measures}


def train(arguments: Sequence[str]) -> None:
    """Run `launch.train` in a process of its own, which ends with this one.

    What stops it is told by itself; this process then ends with its status.
    """
    start = [str(ROOT / "mbrl_jax" / "sweeps" / "start.py"), str(os.getpid()), "all"]
    training = [sys.executable, "-m", "launch.train", *arguments]
    status = subprocess.run([sys.executable, *start, *training], cwd=ROOT, check=False).returncode
    if status:
        sentence = "the run did not come to its end, as told above; the same command goes on"
        launch_flags.fail(sentence, status if status > 0 else 128 - status)


# ---------------------------------------------------------------------------------------- judging


def judge(row, measure, found: Mapping[int, Sequence[float | None]], setting: int = 0) -> Finding:
    """Compare new scores {seed: of each member} of one setting with what was recorded."""
    from experiments.results.rows import is_number
    from mbrl_jax.evaluate.statistics import LEVEL, prediction_interval

    own = slice(setting * row.num_seeds, (setting + 1) * row.num_seeds)
    new = {seed: list(scores)[own] for seed, scores in found.items()}
    old = {seed: scores[own] for seed, scores in measure.recorded.items()}
    name = f"{row.name}, {measure.name}" + (f", setting {setting}" if row.settings > 1 else "")
    for seed, scores in new.items():
        if len(scores) != row.num_seeds or not all(map(is_number, scores)):
            lane = next((i for i, s in enumerate(scores) if not is_number(s)), len(scores))
            sentence = f"{name}: outside, for lane {lane} of --seed={seed} has no such number"
            return Finding(False, (sentence,))
    scores, recorded = ([x for own in table.values() for x in own] for table in (new, old))
    if len(recorded) < 2:
        sentence = f"{name}: no interval, for a single run is recorded ({recorded[0]:.4g})"
        return Finding(True, (sentence, *_equality(name, new, old)))
    interval = prediction_interval(recorded, len(scores), resolution=measure.resolution)
    mean = sum(scores) / len(scores)
    inside = bool(interval.low <= mean <= interval.high)
    sentence = (
        f"{name}: the mean {mean:.4g} of {len(scores)} new runs is "
        f"{'inside' if inside else 'OUTSIDE'} {interval.low:.4g} … {interval.high:.4g}, where "
        f"{LEVEL:.0%} of such means lie after the {len(recorded)} recorded ones "
        f"(mean {interval.estimate:.4g})"
    )
    return Finding(inside, (sentence, *_equality(name, new, old)))


def _equality(name: str, new: Mapping[int, list], old: Mapping[int, list]) -> list[str]:
    """Of every seed that is recorded: whether the very numbers came again."""
    said = []
    for seed in sorted(set(new) & set(old)):
        gaps = [abs(a - b) for a, b in zip(new[seed], old[seed], strict=True)]
        how = "the recorded numbers came again"
        if max(gaps) > 1e-9:
            how = (
                f"not the recorded numbers ({sum(gap > 1e-9 for gap in gaps)} of {len(gaps)} "
                f"differ, by up to {max(gaps):.3g}), as on other machines or versions, or where "
                "rounded ones were recorded"
            )
        said.append(f"{name}, --seed={seed}: {how}")
    return said


if __name__ == "__main__":
    launch_flags.run_main(main)
