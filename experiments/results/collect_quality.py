"""Record measurements of world models, and print what they come to.

    python -m launch.evaluate --workdir=runs/breakout_0 --quality   # writes its quality.json
    python -m experiments.results.collect_quality --name=minatar_breakout_quality \\
        --file=runs/breakout_0:runs/breakout_0/quality.json
    python -m experiments.results.collect_quality --name=minatar_breakout_quality

Each --file is added to `<name>.jsonl` beside this file, shortened to five digits, in the place of
the line with its label and its share of random actions. Prints a Markdown table of all seeds of
every share: rewards hit and squared error in the last of the rows ahead, and ends in sums.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import flags

from experiments.results.shared_flags import NAME
from launch import flags as launch_flags

_FILES = flags.DEFINE_multi_string("file", [], "LABEL:PATH of a quality.json; repeatable.")
HEADS = (
    *("random share", "rows ahead", "seeds", "rewards hit", "error, of standing still"),
    *("ends one row ahead, found", "ends expected (discount below 0.1), of them wrongly"),
)


def main() -> None:
    """Add the files, print the table."""
    from experiments.results.rows import FOLDER, read_labelled
    from mbrl_jax.errors import ConfigError

    if not NAME.value:
        raise ConfigError("--name is needed; see --help")
    path = FOLDER / f"{NAME.value}.jsonl"
    lines = read_lines(path) if path.exists() else []
    for label, file in read_labelled(_FILES.value, "--file"):
        lines = with_line(lines, {"workdir": label, **read_lines(file)[0]})
    if not lines:
        raise ConfigError(f"{path} holds nothing yet; name measurements with --file")
    if _FILES.value:
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    for cells in (HEADS, ["---"] * len(HEADS), *summed(lines)):
        print(f"| {' | '.join(cells)} |")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Measurements, one on each line; raises ConfigError where it has none or something else."""
    from mbrl_jax.errors import ConfigError

    try:
        lines = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
        if not lines or any("calibration" not in seed for line in lines for seed in line["seeds"]):
            raise ValueError("no seeds with a calibration")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"{path} is no measurement of launch.evaluate --quality ({error})"
        ) from None
    return lines


def with_line(lines: Sequence[Mapping], new: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The lines with another one, in the place of that of its workdir and random share."""
    place = lambda line: (line["workdir"], line["random_share"])  # noqa: E731
    new = json.loads(json.dumps(new), parse_float=lambda text: float(f"{float(text):.5g}"))
    kept = {place(line): line for line in lines}
    return [*(kept | {place(new): new}).values()]


def summed(lines: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The cells of a line for each share of random actions and number of rows ahead.

    Of what is measured by seed, the least and the most; of ends, sums over all seeds.
    """
    groups: dict[tuple[float, int], list[Mapping[str, Any]]] = {}
    for line in lines:
        groups.setdefault((line["random_share"], line["horizon"]), []).extend(line["seeds"])
    return [[f"{share:g}", str(ahead), *_cells(own)] for (share, ahead), own in groups.items()]


def _cells(seeds: Sequence[Mapping[str, Any]]) -> list[str]:
    hit = [seed["reward_accuracy"][-1] for seed in seeds if seed["reward_accuracy"]]
    pairs = [(seed["observation"][-1], seed["observation_copied"][-1]) for seed in seeds]
    error = [own / still for own, still in pairs if own is not None and still]
    ends = [seed["ends"] for seed in seeds]
    found = round(sum(one["found"] * (one["recall"] or 0.0) for one in ends))
    lowest = [(seed["calibration"]["rows"][0], seed["calibration"]["found"][0]) for seed in seeds]
    wrongly = round(sum(rows * (went_on or 0.0) for rows, went_on in lowest))
    return [
        str(len(seeds)),
        _range(hit),
        _range(error),
        f"{found} of {sum(one['found'] for one in ends)}",
        f"{wrongly} of {sum(rows for rows, _ in lowest)}",
    ]


def _range(shares: Sequence[float]) -> str:
    if not shares:
        return "–"
    return f"{100 * min(shares):.1f} to {100 * max(shares):.1f} %"


if __name__ == "__main__":
    launch_flags.run_main(main)
