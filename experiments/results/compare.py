"""Print recorded rows side by side, as a Markdown table.

    python -m experiments.results.compare --rows='memory_*'
    python -m experiments.results.compare --rows='catch_ablations_*' --measures=whole \\
        --base=catch_ablations_model_core_mamba2

A line for each measure of each row: the score of every seed, and their mean with its
95 % interval, as `launch.report` has it. With `--base` also how far the row lies above that one,
seed by seed: the mean of the differences ± its standard error. A row whose settings vary inside its
programs has a line for each, in the order of `rows.py`; as a base it stands for its first.
"""

import fnmatch
import itertools
import math
import statistics
from collections.abc import Iterator, Sequence

from absl import flags

from launch import flags as launch_flags

_ROWS = flags.DEFINE_list("rows", ["*"], "Names of rows, or patterns with * and ?.")
_MEASURES = flags.DEFINE_list("measures", [], "Which measures; default: all.")
_BASE = flags.DEFINE_string("base", None, "Row that the others are compared with.")


def main() -> None:
    """Read the rows and print the table."""
    from experiments.results import rows
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.runs.shown import shown

    table = rows.read_rows()
    if _BASE.value is not None and _BASE.value not in table:
        raise ConfigError(f"there is no row {_BASE.value!r}; the rows are {', '.join(table)}")
    chosen = [
        row for row in table.values() if any(fnmatch.fnmatch(row.name, p) for p in _ROWS.value)
    ]
    lines = list(compare(chosen, table.get(_BASE.value), _MEASURES.value))
    if not lines:
        raise ConfigError(
            f"no measure {' or '.join(_MEASURES.value) or 'at all'} of a row "
            f"{' or '.join(_ROWS.value)} is recorded; the rows are {', '.join(table)}"
        )
    heads = ["row", "measure", "each seed", "mean [95 %]"] + ["less the base"] * bool(_BASE.value)
    for cells in (heads, ["---"] * len(heads), *lines):
        print(shown(f"| {' | '.join(cells)} |"))


def compare(chosen: Sequence, base=None, measures: Sequence[str] = ()) -> Iterator[list[str]]:
    """Yield the cells of a line for every setting of every measure of rows (`rows.Row`)."""
    for row in chosen:
        for measure in row.measures:
            if measures and measure.name not in measures:
                continue
            for setting, text in enumerate(settings_of(row)):
                scores = scores_of(row, measure.name, setting)
                each = ", ".join(f"{score:.4g}" for score in scores.values())
                cells = [" ".join(filter(None, [row.name, text])), measure.name, each]
                cells.append(_mean(list(scores.values())))
                if base is not None:
                    cells.append(_less(scores, scores_of(base, measure.name)))
                yield cells


def settings_of(row) -> list[str]:
    """Each setting inside the programs of a row; a single "" where none varies.

    The last of `sweep_inside` varies fastest, as in `launch.train`.
    """
    varied = []
    for text in row.sweep_inside:
        path, _, values = text.partition("=")
        varied.append([f"{path.strip()}={value.strip()}" for value in values.split(",")])
    return [" ".join(chosen) for chosen in itertools.product(*varied)]


def scores_of(row, name: str, setting: int = 0) -> dict[tuple[int, int], float]:
    """{(value of --seed, seed of the run): score} of one setting; empty without that measure."""
    found = {}
    for measure in row.measures:
        if measure.name != name:
            continue
        for seed, scores in measure.recorded.items():
            own = scores[setting * row.num_seeds : (setting + 1) * row.num_seeds]
            found |= {(seed, i): score for i, score in enumerate(own)}
    return found


def _mean(scores: Sequence[float]) -> str:
    import numpy as np

    from mbrl_jax.evaluate.statistics import interval, mean

    if len(scores) < 2:
        return f"{scores[0]:.4g}"
    found = interval(mean, np.array(scores)[:, None])
    return f"{found.estimate:.4g} [{found.low:.4g}, {found.high:.4g}]"


def _less(scores: dict[tuple[int, int], float], base: dict[tuple[int, int], float]) -> str:
    """Mean of the differences on the seeds of both ± its standard error."""
    gaps = [scores[seed] - base[seed] for seed in scores if seed in base]
    if not gaps:
        return "–"
    mean = f"{statistics.fmean(gaps):+.2g}"
    return (
        mean if len(gaps) < 2 else f"{mean} ± {statistics.stdev(gaps) / math.sqrt(len(gaps)):.2g}"
    )


if __name__ == "__main__":
    launch_flags.run_main(main)
