"""Two sides of one computation, number by number: relative errors, and the table of them.

A side is a dictionary: names to arrays, or to dictionaries of arrays by name (gradients by tensor),
which give a line for the worst of them and one for the median. The authors' side comes twice, in
float32 and in float64. The latter is the reference, and what their own float32 is away from it is
the noise that ours is measured by.
"""

import csv
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

Side = Mapping[str, Any]
LIMIT = 3.0  # times the noise
# Four roundings of float32, relatively: a single number of the authors' can be right by luck, so
# that no noise counts as less.
LEAST_NOISE = 4 * float(np.finfo(np.float32).eps)
COLUMNS = ("case", "group", "quantity", "ours", "noise", "ratio", "verdict")


class Case(NamedTuple):
    """One computation of both sides."""

    name: str
    theirs: Callable[[bool], Side]  # (whether in float64) -> numbers
    ours: Callable[[], Side]
    declared: str = ""  # why its lines are known to be beyond; "" where they have to be within


class Line(NamedTuple):
    """One row of the table."""

    case: str
    name: str  # "group/quantity"
    ours: float  # relative error of ours against the authors' float64
    noise: float  # that of the authors' own float32
    declared: str = ""

    @property
    def ratio(self) -> float:
        """Our error in units of the noise."""
        return self.ours / max(self.noise, LEAST_NOISE)

    @property
    def verdict(self) -> str:
        """Whether ours is as near as three times the authors' own noise."""
        if self.ratio <= LIMIT:  # not so for NaN
            return "within"
        return f"declared: {self.declared}" if self.declared else "beyond"

    def cells(self) -> tuple[str, ...]:
        """As `COLUMNS` has them."""
        group, _, quantity = self.name.partition("/")
        numbers = (f"{self.ours:.1e}", f"{self.noise:.1e}", f"{self.ratio:.2f}")
        return (self.case, group, quantity, *numbers, self.verdict)


def relative_error(found: Any, expected: Any) -> float:
    """‖found - expected‖ / ‖expected‖; ‖found‖ where nothing but zeros was expected.

    Raises ValueError for another shape.
    """
    found, expected = np.asarray(found, np.float64), np.asarray(expected, np.float64)
    if found.shape != expected.shape:
        raise ValueError(f"the shape {found.shape} was found where {expected.shape} was expected")
    norm = np.linalg.norm(expected)
    return float(np.linalg.norm(found - expected) / (norm if norm > 0 else 1.0))


def compare(case: Case) -> Iterator[Line]:
    """All lines of a case, in the order of the reference.

    Raises KeyError for a quantity of the reference that another side lacks.
    """
    reference, narrow, ours = case.theirs(True), case.theirs(False), case.ours()
    for name, expected in reference.items():
        if isinstance(expected, Mapping):
            if not expected:
                continue
            errors = [
                [relative_error(side[name][tensor], expected[tensor]) for tensor in expected]
                for side in (ours, narrow)
            ]
            for statistic in (np.max, np.median):
                word = "worst" if statistic is np.max else "median"
                found, noise = (float(statistic(column)) for column in errors)
                label = f"{name}, {word} of {len(expected)}"
                yield Line(case.name, label, found, noise, case.declared)
        else:
            found, noise = (relative_error(side[name], expected) for side in (ours, narrow))
            yield Line(case.name, name, found, noise, case.declared)


def in_columns(cells: tuple[str, ...]) -> str:
    """One row for the terminal."""
    return "{:28} {:28} {:30} {:>8} {:>8} {:>8}  {}".format(*cells)


def summary(lines: list[Line]) -> list[str]:
    """The worst ratio of each group, and how many lines are within."""
    worst: dict[str, Line] = {}
    for line in lines:
        group = line.name.partition("/")[0]
        if group not in worst or not line.ratio <= worst[group].ratio:
            worst[group] = line
    said = [f"{group}: at most {line.ratio:.2f} ({line.case})" for group, line in worst.items()]
    within = sum(line.verdict == "within" for line in lines)
    return [*said, f"{within} of {len(lines)} lines within {LIMIT:g} times the authors' noise"]


def write_csv(path: Path, lines: list[Line]) -> None:
    """The table as a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(line.cells() for line in lines)
