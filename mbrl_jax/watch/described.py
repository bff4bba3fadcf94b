"""What a run's directory says of the run beside its metrics; nothing here raises for what is there.

Files are read as plain JSON: configurations with types of an experiment's own file show as well.
"""

import itertools
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax.runs.layout import CHECKPOINTS, CONFIG, EVALUATION, META, iteration_of
from mbrl_jax.runs.shown import shown
from mbrl_jax.watch.series import short

_LARGEST = 2**22  # bytes of a file that is read whole
_MOST_GROUPS = 6  # settings with curves of their own
_LONGEST = 1_000  # letters of a label
_MOST_SETTINGS, _DEEPEST = 2_000, 30
_NO_SETTINGS = ("schema_version", "debug", "with_parts")  # they say what flags would do


class Run(NamedTuple):
    """What `config.json` says; with 0 steps and no groups where it does not."""

    name: str
    environment: str
    steps: int  # of a seed in the whole run
    learns_from: int  # steps before the first phase that learns: they are far faster
    num_envs: int
    first_seed: int
    groups: dict[str, list[int]]  # label -> seeds, as rows call them; "" is the label of a sole one


class Checkpoint(NamedTuple):
    """The newest complete one."""

    iteration: int
    saved_at: float  # seconds since 1970
    frozen: dict[int, str]  # index of a seed -> the metric that was not finite


def describe(workdir: Path) -> Run:
    """The run of a directory; a damaged or absent configuration leaves the directory's name."""
    try:
        return _described(_json(workdir / CONFIG))
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return Run(workdir.resolve().name, "", 0, 0, 1, 0, {})


def _described(data: Mapping[str, Any]) -> Run:
    experiment = data["experiment"]
    iterations = without = 0
    for phase in experiment["phases"]:
        without += int(phase["iterations"]) if without == iterations and not phase["learn"] else 0
        iterations += int(phase["iterations"])
    if experiment.get("stop_after") is not None:
        iterations = min(iterations, int(experiment["stop_after"]))
    num_envs, first = int(experiment["num_envs"]), int(data["first_seed"])
    groups = _groups(data["sweep_inside"], int(data["num_seeds"]), first)
    environment = experiment.get("env") or {}
    name = str(environment.get("name", "")) if isinstance(environment, dict) else ""
    steps, learns_from = iterations * num_envs, min(without, iterations) * num_envs
    return Run(str(experiment["name"]), name, steps, learns_from, num_envs, first, groups)


def _groups(inside: Any, num_seeds: int, first: int) -> dict[str, list[int]]:
    """Members of each setting, by its assignments."""
    if not inside:
        return {"": list(range(first, first + min(num_seeds, 10_000)))}
    pairs = [[f"{path}={value:g}" for value in values] for path, values in inside]
    settings = itertools.islice(itertools.product(*pairs), _MOST_GROUPS)
    labels = [", ".join(setting)[:_LONGEST] for setting in settings]
    begins = (first + i * num_seeds for i in range(len(labels)))
    return {
        label: list(range(begin, begin + min(num_seeds, 10_000)))
        for label, begin in zip(labels, begins, strict=True)
    }


def settings(workdir: Path) -> list[tuple[str, str]]:
    """(path, value) of every field of `config.json`, as --set names them; [] where it is none."""
    try:
        data = _json(workdir / CONFIG)
        experiment = {k: v for k, v in data["experiment"].items() if k not in _NO_SETTINGS}
        members = [(k, v) for k, v in data.items() if k != "experiment"]
    except (KeyError, TypeError, ValueError, AttributeError):
        return []
    fields = itertools.chain(_fields("", experiment, 0), members)
    return [
        (
            shown(path)[:_LONGEST],
            shown(value if type(value) is str else json.dumps(value))[:_LONGEST],
        )
        for path, value in itertools.islice(fields, _MOST_SETTINGS)
    ]


def _fields(path: str, value: Any, depth: int) -> Iterator[tuple[str, Any]]:
    """The leaves of a part; the part itself has its type as value."""
    if isinstance(value, list) and any(isinstance(one, dict) for one in value):
        value = {str(i): one for i, one in enumerate(value)}
    if not isinstance(value, dict) or depth > _DEEPEST:
        yield path, value
        return
    if path and "type" in value:
        yield path, value["type"]
    for name, one in value.items():
        if name != "type":
            yield from _fields(f"{path}.{name}".lstrip("."), one, depth + 1)


def newest_checkpoint(workdir: Path) -> Checkpoint | None:
    """The newest checkpoint that has its name, or None."""
    try:
        entries = os.scandir(workdir / CHECKPOINTS)
        names = [entry.name for entry in entries if iteration_of(entry.name) is not None]
        name = max(names, key=int)
        meta = workdir / CHECKPOINTS / name / META
        saved_at, frozen = meta.stat().st_mtime, _json(meta).get("frozen")
        causes = {int(seed): str(cause["metric"]) for seed, cause in (frozen or {}).items()}
        return Checkpoint(int(name), saved_at, causes)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):  # none, or just removed
        return None


def evaluation(workdir: Path) -> dict[str, Any] | None:
    """Greedy episodes after the last step: {"step", "episodes", "mean"} over all seeds, or None."""
    try:
        data = _json(workdir / EVALUATION)
        known = [float(mean) for mean in data["mean"] if mean is not None]
        mean = short(sum(known) / len(known))
        return {"step": int(data["step"]), "episodes": int(data["episodes"]), "mean": mean}
    except (ValueError, KeyError, TypeError, ArithmeticError):
        return None


def modified(path: Path) -> float | None:
    """When a file was written last, or None."""
    try:
        return path.stat().st_mtime
    except OSError:
        return None


def _text(path: Path, most: int) -> str:
    try:
        with path.open("rb") as file:
            return file.read(most).decode("utf-8", errors="replace")
    except OSError:
        return ""


def _json(path: Path) -> Any:
    """What a file holds. Raises ValueError where there is none, or it is no JSON."""
    try:
        return json.loads(_text(path, _LARGEST))
    except RecursionError as error:
        raise ValueError(f"{path} nests too deep") from error
