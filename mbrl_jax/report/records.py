"""What lies in runs' directories, read into values.

A run may be finished, running, failed or damaged: what cannot be read is left out of its record,
and a sentence in `Run.notes` says so. Files are only read, and no lock is taken.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.experiment.members import Members
from mbrl_jax.report import curves
from mbrl_jax.runs import checkpoint, circumstances, liveness, metrics, workdir
from mbrl_jax.runs.layout import CHECKPOINTS, CONFIG, EVALUATION, META, OPEN_LOOP
from mbrl_jax.sweeps import plan, status
from mbrl_jax.train import fork

STATES = ("finished", "running", "stopped", "failed", "not begun", "unreadable")
QUALITY = "quality.json"
_MOST_LANES = 10_000  # of a run
_LARGEST = 1e60  # of a number


class Greedy(NamedTuple):
    """Episodes after the last step, without exploration."""

    mean: float
    episodes: int
    finished: float | None  # of them, before the time limit of the evaluation


class Lane(NamedTuple):
    """One seed of a run, under one setting of the numbers that vary inside it."""

    index: int  # type: ignore[assignment]  # the "seed" of its rows
    seed: tuple[int, int]  # (--seed, lane): what its random numbers derive from
    experiment: Experiment  # with the numbers of its setting
    curve: np.ndarray  # [T, 3]: environment steps, mean episode return, episodes
    greedy_curve: np.ndarray  # [T, 3]: the same of greedy episodes during training
    step: int  # of the newest row
    training: float | None  # mean return over the last fifth of the steps so far
    greedy: Greedy | None
    frozen: str  # why it learns no more; "" where it does
    quality: Mapping[str, Any] | None  # of its world model, as in quality.json

    @property
    def is_complete(self) -> bool:
        """Whether it made all of its steps."""
        return self.step >= self.experiment.steps


class Run(NamedTuple):
    """One workdir."""

    path: Path
    state: str  # of `STATES`
    error: str  # why it failed or cannot be read
    saved: workdir.RunConfig | None
    lanes: tuple[Lane, ...]
    lineage: tuple[Mapping[str, Any], ...]  # of a fork, the oldest first
    versions: Mapping[str, str | None]  # of what it began with; {} where no checkpoint is left
    written: float | None  # time of its newest row or evaluation
    command: tuple[str, ...] | None  # of its sweep's plan
    notes: tuple[str, ...]

    @property
    def step(self) -> int:
        """Of the newest row."""
        return max((lane.step for lane in self.lanes), default=0)

    @property
    def strips(self) -> Path | None:
        """The picture of its predictions, if there is one."""
        path = self.path / OPEN_LOOP
        return path if path.is_file() else None


# ------------------------------------------------------------------------------------- workdirs


def read_run(path: Path, command: Sequence[str] | None = None) -> Run:
    """The record of a workdir. Never raises for what lies in it."""
    path = Path(path)
    try:
        return _read_run(path, command)
    except Exception as error:  # one damaged directory must not end the report on all others
        lines = str(error).strip().splitlines() or [""]
        why = f"{path} is damaged ({type(error).__name__}: {lines[0][:200]})"
        return _unreadable(path, str(error) if isinstance(error, ConfigError) else why, command)


def _read_run(path: Path, command: Sequence[str] | None) -> Run:
    try:
        saved = workdir.read_config(path)
        if not isinstance(saved.experiment, Experiment):
            raise ConfigError(f"{path / CONFIG} holds no experiment")
        if (size := _size(saved.members)) > _MOST_LANES:
            raise ConfigError(
                f"{path / CONFIG} names {size} members, and a report shows {_MOST_LANES} at most"
            )
    except (ConfigError, OSError) as error:
        return _unreadable(path, str(error), command)
    notes: list[str] = []
    meta = _newest_meta(path)
    rows = _rows(path, saved.members, notes)
    evaluated = _evaluation(path, saved, notes)
    greedy = evaluated or [None] * len(saved.members)
    quality = _quality(path, len(saved.members), notes)
    of_lane: dict[int, list[dict[str, Any]]] = {}
    for row in rows:
        of_lane.setdefault(row["lane"], []).append(row)
    lanes = tuple(
        _lane(saved, index, of_lane.get(index, []), greedy[index], quality[index], meta)
        for index in range(len(saved.members))
    )
    state, why = _state(path, saved, evaluated is not None, any(rows))
    return Run(
        path,
        state,
        why,
        saved,
        lanes,
        _lineage(path, notes),
        _versions(meta, notes),
        _written(path),
        None if command is None else tuple(command),
        tuple(notes),
    )


def read_runs(paths: Sequence[Path]) -> list[Run]:
    """Records of workdirs, each once.

    Raises ConfigError for a path that is no directory or an empty one, and where none can be read.
    """
    runs, seen = [], set()
    for path in map(Path, paths):
        if not path.is_dir():
            raise ConfigError(
                f"--workdirs: there is no directory {path} (a name with a comma stands in double "
                "quotes)"
            )
        if path.resolve() in seen:
            continue
        seen.add(path.resolve())
        if not any(path.iterdir()):
            raise ConfigError(f"--workdirs: {path} is empty; name directories of runs")
        runs.append(read_run(path))
    return _some(runs)


def read_sweep(root: Path) -> list[Run]:
    """Records of all members of a sweep, with the commands of its plan.

    Raises ConfigError where there is no sweep, or none of its members can be read.
    """
    root = Path(root)
    manifest = plan.read_manifest(root)
    if manifest is None:
        raise ConfigError(f"{root} holds no sweep: there is no {plan.MANIFEST} in it")
    common = _common(root, manifest)
    runs = []
    for member in plan.members_of(manifest):
        path = root / member.name
        runs.append(read_run(path, plan.train_command("python", common, member, path)))
    return _some(runs)


def _common(root: Path, manifest: Mapping[str, Any]) -> plan.Common:
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in manifest["common"].items()}
    try:
        return plan.Common(**dict[str, Any](fields))
    except TypeError as error:
        raise ConfigError(f"{root / plan.MANIFEST} is no manifest of a sweep ({error})") from error


def _some(runs: list[Run]) -> list[Run]:
    if not any(run.saved for run in runs):
        why = f" ({runs[0].error})" if runs else ""
        raise ConfigError(f"there is nothing to report: no run can be read{why}")
    return runs


def _unreadable(path: Path, error: str, command: Sequence[str] | None) -> Run:
    """A workdir without a configuration: of a sweep, a member that has not got that far."""
    state = "unreadable"
    if command is not None and not (path / CONFIG).exists():
        known = status.member_status(path.parent, plan.Member(path.name, (), 0, 1, 1, 1))
        state = "stopped" if known.state == "preempted" else known.state
        error = known.error
    command = None if command is None else tuple(command)
    return Run(path, state, error, None, (), (), {}, _written(path), command, ())


# ---------------------------------------------------------------------------------------- a lane


def _lane(
    saved: workdir.RunConfig,
    index: int,
    own: Sequence[Mapping[str, Any]],
    greedy: Greedy | None,
    quality: Mapping[str, Any] | None,
    meta: Mapping[str, Any],
) -> Lane:
    members = saved.members
    return Lane(
        index,
        (members.seed, members.first_seed + index % members.num_seeds),
        config.with_numbers(saved.experiment, members.setting(index)),
        curves.training(own),
        curves.greedy(own),
        max((row["step"] for row in own), default=0),
        next(iter(metrics.last_fifth(own)), None),
        greedy,
        _frozen(index, own, meta),
        quality,
    )


def _frozen(index: int, own: Sequence[Mapping[str, Any]], meta: Mapping[str, Any]) -> str:
    known = meta.get("frozen")
    found = known.get(str(index)) if isinstance(known, dict) else None
    if isinstance(found, dict):
        return f"frozen at step {found.get('step')}: {found.get('metric')} was not finite"
    step = next((row["step"] for row in own if row["agent/frozen"]), None)
    return "" if step is None else f"frozen by step {step}: a metric was not finite"


def _rows(path: Path, members: Members, notes: list[str]) -> list[dict[str, Any]]:
    """What a report needs of the rows of metrics, as numbers or None; "lane" counts from 0."""
    try:
        found = metrics.read_metrics(path, tolerant=True)
    except (ConfigError, OSError, RecursionError) as error:
        notes.append(f"its metrics are left out: {error}")
        return []
    rows = [_clean(row, members.first_seed) for row in found if _is_row(row, members)]
    if lost := len(found) - len(rows):
        notes.append(f"{lost} lines of {metrics.FILE} are no rows of it: left out")
    return rows


def _is_row(row: Any, members: Members) -> bool:
    ints = isinstance(row, dict) and all(type(row.get(name)) is int for name in ("step", "seed"))
    return ints and row["step"] >= 0 and 0 <= row["seed"] - members.first_seed < len(members)


def _clean(row: Mapping[str, Any], first_seed: int) -> dict[str, Any]:
    names = ("episode/return", "episode/count", "agent/frozen", curves.GREEDY)
    env_steps = number(row.get("env_steps"))
    return {
        "step": row["step"],
        "seed": row["seed"],
        "lane": row["seed"] - first_seed,
        "env_steps": row["step"] if env_steps is None else env_steps,
        **{name: number(row.get(name)) for name in names},
    }


def number(value: Any) -> float | None:
    """A finite number of a file as it is, anything else as None."""
    # Sums and squares of what is larger are not finite; no return in float32 is.
    return value if type(value) in (int, float) and abs(value) < _LARGEST else None


def _size(members: Members) -> int:
    """Their number, which may be more than `len` can say."""
    return members.num_seeds * math.prod(len(values) for _, values in members.inside)


# -------------------------------------------------------------------------- files beside the rows


def read_json(path: Path) -> Any:
    """What a JSON file holds, None where there is none. Raises ValueError for a damaged one."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path.name} is damaged ({str(error)[:80]}): left out") from error


def _evaluation(
    path: Path, saved: workdir.RunConfig, notes: list[str]
) -> list[Greedy | None] | None:
    """Greedy episodes of each lane after the last step; None where no file says."""
    size, steps = len(saved.members), saved.experiment.steps
    try:
        if (data := read_json(path / EVALUATION)) is None:
            return None
        if (step := data["step"]) != steps:
            notes.append(f"{EVALUATION} is of step {step} and not of the last, {steps}: left out")
            return None
        means, done = data["mean"], data.get("finished") or [None] * size
        episodes = data["episodes"]
        if not len(means) == len(done) == size or type(episodes) is not int:
            raise TypeError
        if episodes and (lacking := [i for i, mean in enumerate(means) if number(mean) is None]):
            which = ", ".join(map(str, lacking))
            notes.append(f"{EVALUATION}: returns of member {which} are not finite: left out")
        return [
            None if (known := number(mean)) is None else Greedy(known, episodes, number(ended))
            for mean, ended in zip(means, done, strict=True)
        ]
    except ValueError as error:
        notes.append(str(error))
    except (KeyError, TypeError, AttributeError):
        notes.append(f"{EVALUATION} is damaged: left out")
    return None


def _quality(path: Path, size: int, notes: list[str]) -> list[Mapping[str, Any] | None]:
    """Of each lane what quality.json says, with the "step", … of the whole."""
    try:
        data = read_json(path / QUALITY)
        if data is None:
            return [None] * size
        of_all = {name: data.get(name) for name in ("step", "context", "horizon")}
        of_all["random_share"] = data.get("random_share", 0.0)  # older files have none
        lanes = data["seeds"]
        if len(lanes) == size:
            return [{**of_all, **lane} if isinstance(lane, dict) else None for lane in lanes]
        notes.append(f"{QUALITY} is of {len(lanes)} seeds, and the run has {size}: left out")
    except ValueError as error:
        notes.append(str(error))
    except (KeyError, TypeError, AttributeError):
        notes.append(f"{QUALITY} is damaged: left out")
    return [None] * size


def _newest_meta(path: Path) -> Mapping[str, Any]:
    """`meta.json` of the newest checkpoint that has a readable one; {} where none has."""
    for iteration in checkpoint.complete(path):
        try:
            meta = read_json(path / CHECKPOINTS / str(iteration) / META)
        except ValueError:
            continue
        if isinstance(meta, dict):
            return meta
    return {}


def _versions(meta: Mapping[str, Any], notes: list[str]) -> dict[str, str | None]:
    """What the run began with: versions of packages, hashes of the files of its own parts."""
    if changed := circumstances.changed_on_the_way(meta):
        notes.append(f"it was gone on with under other circumstances: {', '.join(changed)}")
    kinds = [meta.get(kind) for kind in ("versions", "files")]
    found = [item for kind in kinds if isinstance(kind, dict) for item in kind.items()]
    return {str(name): None if v is None else str(v)[:48] for name, v in found}


def _lineage(path: Path, notes: list[str]) -> tuple[Mapping[str, Any], ...]:
    try:
        meta = fork.read_meta(path)
    except (ConfigError, OSError) as error:
        notes.append(str(error))
        return ()
    return tuple(meta["lineage"]) if meta else ()


def _written(path: Path) -> float | None:
    times = []
    for name in (metrics.FILE, EVALUATION):
        try:
            times.append((path / name).stat().st_mtime)
        except (OSError, ValueError):  # ValueError: a path that no system has
            continue
    return max(times, default=None)


# ---------------------------------------------------------------------------------------- states


def _state(
    path: Path, saved: workdir.RunConfig, evaluated: bool, has_rows: bool
) -> tuple[str, str]:
    """(state, why it failed) of a run whose configuration is known."""
    experiment = saved.experiment
    if status.read_record(path):
        sizes = (experiment.steps, experiment.iterations)
        member = plan.Member(path.name, (), 0, saved.members.num_seeds, *sizes)
        known = status.member_status(path.parent, member)
        if known.state in ("running", "failed"):
            return known.state, known.error
    if liveness.trainer(path, _written(path)):
        return "running", ""
    if evaluated:
        return "finished", ""
    return ("stopped" if has_rows or checkpoint.complete(path) else "not begun"), ""
