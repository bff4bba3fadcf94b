"""Numbers of the authors' float64 at small sizes, kept so that tests need none of their code.

    python -m experiments.studies.authors --checkout=PATH --golden=golden.json

Weights, rows and draws come from seeds (`problem`), so that a test makes them again. Of results
only digests are kept: small arrays whole, of others the norm and a projection, of gradients these
two for each net.
"""

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from experiments.studies.authors import ours
from experiments.studies.authors.problem import SMALL
from experiments.studies.authors.table import Side

FILE = Path(__file__).with_name("golden.json")
WHOLE = 4  # numbers of an array that is kept as it is
TOLERANCE = 1e-4  # relative; single lines of the study's table lie below a tenth of it
LEFT_OUT = ("parameters", "slow critic", "running statistics", "counts of parameters")
NAMES = {
    "drama": (
        *("Mamba2, updates", "Mamba, updates", "Transformer, updates", "Mamba2, nets"),
        *("Mamba2, AC, empty", "Mamba2, PPO, warm", "Transformer, AC, warm", "replay"),
    ),
    "mamba": (
        *("T=16 N=8 D z bias softplus", "T=16 N=8 D z bias softplus groups=2"),
        *("T=64 H=4 P=8 G=2 N=16 Q=16 D z bias softplus", "T=33 C=16 W=3"),
        *("T=8 H=4 P=8 G=1 N=16 Q=8 plain", "D=1024 N=64 G=4"),
    ),
}


class Stored:
    """Stands for the authors' side where only shapes are asked for."""

    def __init__(self, shapes: Mapping[str, Mapping[str, list[int]]]):
        self._shapes = shapes

    def shapes(self, one: ours.Setup, part: str) -> dict[str, tuple[int, ...]]:
        """As they were when the numbers were made."""
        names = ("every backbone", one.backbone) if part == "world model" else (part,)
        return {name: tuple(shape) for key in names for name, shape in self._shapes[key].items()}


def shapes(theirs: Any) -> dict[str, Mapping[str, tuple[int, ...]]]:
    """What `Stored` needs: those of each sequence model apart from all others."""
    found, common = {}, {}
    for backbone in ours.CORES:
        every = theirs.shapes(ours.setup(backbone, SMALL), "world model")
        core = {name: shape for name, shape in every.items() if name.startswith("sequence_model")}
        found[backbone] = core
        common = {name: shape for name, shape in every.items() if name not in core}
    behaviour = theirs.shapes(ours.setup("Mamba2", SMALL), "behaviour")
    return found | {"every backbone": common, "behaviour": behaviour}


def digest(side: Side) -> dict[str, Any]:
    """A few numbers for each quantity, with eight digits."""
    kept = {name: x for name, x in side.items() if name.partition("/")[0] not in LEFT_OUT}
    return {name: _digest(x) for name, x in kept.items()}


def _digest(found: Any) -> Any:
    if isinstance(found, Mapping):
        nets: dict[str, list[np.ndarray]] = {}
        for name in sorted(found):
            nets.setdefault(re.split(r"['\[\]]+", name.strip("['"))[0], []).append(found[name])
        return {net: _norm_and_projection(arrays) for net, arrays in nets.items()}
    if np.size(found) <= WHOLE:
        return [_short(x) for x in np.ravel(found)]
    return _norm_and_projection([found])


def _norm_and_projection(arrays: Iterable[np.ndarray]) -> list[float]:
    """[‖x‖, x · p / ‖p‖], p the cosines of 1, 2, … of each array."""
    flat = [np.ravel(x).astype(np.float64) for x in arrays]
    squares = sum((x**2).sum() for x in flat)
    along = sum((x * np.cos(np.arange(1, x.size + 1))).sum() for x in flat)
    return [_short(squares**0.5), _short(along / (sum(x.size for x in flat) / 2) ** 0.5)]


def _short(x: Any) -> float:
    return float(f"{float(x):.8g}")


def of_system(name: str, theirs: Any) -> dict[str, Any]:
    """Digests of the authors' float64, by case, and the shapes that `Stored` needs."""
    cases: dict[str, dict[str, Any]] = {}
    for case in theirs.CASES.golden_cases(theirs):
        if case.name in NAMES[name]:
            cases.setdefault(case.name, {}).update(digest(case.theirs(True)))
    return {"cases": cases} | ({"shapes": shapes(theirs)} if hasattr(theirs, "shapes") else {})


def differences(expected: Mapping[str, Any], side: Side) -> dict[str, float]:
    """Largest deviation of each quantity, relative to its largest number."""
    found = digest(side)
    return {name: _difference(x, found[name]) for name, x in expected.items()}


def _difference(expected: Any, found: Any) -> float:
    if isinstance(expected, Mapping):
        return max(_difference(x, found[net]) for net, x in expected.items())
    expected, found = np.asarray(expected), np.asarray(found)
    return float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))


def write(path: Path, system: str, numbers: Mapping[str, Any]) -> None:
    """Put the numbers of one system beside those of others."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    text = json.dumps(stored | {system: numbers}, sort_keys=True, indent=1)
    path.write_text(re.sub(r"\[\s+([^\[\]{}]*?)\s+\]", _on_one_line, text) + "\n")


def _on_one_line(found: re.Match) -> str:
    return "[" + re.sub(r"\s+", " ", found[1]) + "]"


def read(system: str) -> dict[str, Any]:
    """The numbers that are committed here."""
    return json.loads(FILE.read_text())[system]
