"""What a run's numbers depend on beside its configuration, and what of it has changed since.

`meta.json` of a checkpoint records versions, settings of the process, and hashes of the files that
the experiment's own parts come from; `later` holds what the run went on under. Older checkpoints
lack some of it: what was not recorded is not compared.
"""

import hashlib
import itertools
import sys
from collections.abc import Iterable, Iterator, Mapping
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

from mbrl_jax.experiment.annotations import sources_of
from mbrl_jax.experiment.experiment import Experiment
from mbrl_jax.runs.restore import OtherSettings
from mbrl_jax.train import runtime

_STATE = ("jax_default_prng_impl", "jax_enable_x64")  # which the shapes of the state depend on
_RANDOM = ("jax_threefry_partitionable", "jax_random_seed_offset")
_ROUNDING = ("jax_default_matmul_precision", "jax_numpy_dtype_promotion")
SETTINGS = (*_STATE, *_RANDOM, *_ROUNDING)
LATER = "later"
_SHIPPED = ("mbrl_jax", "launch")  # whose state the git commit says
_KINDS = ("versions", "settings", "files")


def record(experiment: Experiment) -> dict[str, dict[str, Any]]:
    """What `meta.json` says of the circumstances of this process."""
    files, packages = _own_files([experiment])
    versions = runtime.versions()
    more = {name: _version(name) for name in sorted(packages) if name not in versions}
    return {
        "versions": versions | {name: found for name, found in more.items() if found},
        "settings": settings(),
        "files": {name: _hash(path) for name, path in sorted(files.items())},
    }


def settings() -> dict[str, Any]:
    """Settings of jax that change numbers."""
    import jax

    return {name: jax.config.values[name] for name in SETTINGS if name in jax.config.values}


def require_readable(path: Path, meta: Mapping[str, Any]) -> None:
    """Raise OtherSettings where states have other shapes in this process than in a checkpoint."""
    _require(path, meta, _STATE)


def require_same_numbers(path: Path, meta: Mapping[str, Any]) -> None:
    """Raise OtherSettings where this process draws other random numbers than the run before."""
    _require(path, meta, (*_STATE, *_RANDOM))


def _require(path: Path, meta: Mapping[str, Any], names: Iterable[str]) -> None:
    before, now = newest(meta, "settings"), settings()
    other = [name for name in names if name in before and before[name] != now.get(name)]
    if other:
        was = ", ".join(f"{name}={before[name]}" for name in other)
        told = ", ".join(f"{now.get(name)}" for name in other)
        remedy = " ".join(f"{name.upper()}={_as_variable(before[name])}" for name in other)
        raise OtherSettings(
            f"{path} was trained with {was}, and this process has {told}, with which it would draw "
            f"or hold other numbers: run the same command with {remedy} in the environment"
        )


def _as_variable(value: Any) -> str:
    return str(int(value)) if isinstance(value, bool) else str(value)


def newest(meta: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """What the run was last trained under; {} where it was not recorded."""
    later = meta.get(LATER) or [{}]
    found = later[-1].get(kind, meta.get(kind))
    return found if isinstance(found, Mapping) else {}


def gone_on(
    path: Path, meta: Mapping[str, Any], experiment: Experiment
) -> tuple[dict[str, Any], list[str]]:
    """(`meta` with what has changed since, a sentence for each kind of change).

    Raises OtherSettings where the run would draw other numbers.
    """
    require_same_numbers(path, meta)
    now = record(experiment)
    if all(newest(meta, kind) == now[kind] for kind in _KINDS):
        return dict(meta), []
    entry = {"iteration": meta["iteration"], **now}
    return {**meta, LATER: [*(meta.get(LATER) or []), entry]}, _changes(path, meta, now, experiment)


def _changes(
    path: Path, meta: Mapping[str, Any], now: Mapping[str, Any], experiment: Experiment
) -> list[str]:
    """Sentences: the file of the environment first, which changes the task itself."""
    said = []
    files = differing(newest(meta, "files"), now["files"])
    of_env, _ = _own_files([experiment.env, *(env for _, env in experiment.eval_envs)])
    if mine := [text for name, text in files.items() if name in of_env]:
        said.append(
            f"{path}: the environment's own code has changed since this run was trained "
            f"({', '.join(mine)}): it goes on with another task, and its returns before and after "
            "are not comparable; put the old file back, or choose another --workdir"
        )
    if rest := [text for name, text in files.items() if name not in of_env]:
        said.append(
            f"{path}: code of the experiment has changed since this run was trained "
            f"({', '.join(rest)})"
        )
    versions = differing(newest(meta, "versions"), now["versions"])
    versions |= differing(newest(meta, "settings"), now["settings"])
    if versions:
        said.append(
            f"{path} was trained so far with other versions or settings "
            f"({', '.join(versions.values())}): its numbers may differ from here on"
        )
    return said


def changed_on_the_way(meta: Mapping[str, Any]) -> list[str]:
    """What differed whenever a run was gone on with, "name old -> new"; of any file's `meta`."""
    later = meta.get(LATER)
    entries = [meta, *(later if isinstance(later, list) else [])]
    known = [entry for entry in entries if isinstance(entry, Mapping)]
    found: dict[str, str] = {}
    for before, now in itertools.pairwise(known):
        for kind in _KINDS:
            old, new = before.get(kind), now.get(kind)
            if isinstance(old, Mapping) and isinstance(new, Mapping):
                found |= differing(old, new)
    return list(found.values())


def differing(before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """{name: "name old -> new"} of what is known of both and differs; of the absent, None."""
    names = [name for name in before if before[name] != now.get(name)]
    return {name: f"{name} {_short(before[name])} -> {_short(now.get(name))}" for name in names}


def _short(value: Any) -> str:
    text = "absent" if value is None else str(value)
    head, plus, rest = text.partition("+")
    is_hash = len(head) >= 40 and all(c in "0123456789abcdef" for c in head)
    return f"{head[:8]}{plus}{rest}" if is_hash else text


def unusual(num_members: int) -> list[str]:
    """A sentence for each setting under which the laws of a run do not hold."""
    found = settings().get("jax_default_prng_impl")
    if found == "threefry2x32" or num_members < 2:
        return []
    return [
        f"jax_default_prng_impl={found}: what a seed computes depends on how many are trained with "
        "it; unset JAX_DEFAULT_PRNG_IMPL where each has to equal its run alone"
    ]


# ------------------------------------------------------------------------------------- own files


def _own_files(roots: Iterable[Any]) -> tuple[dict[str, Path], set[str]]:
    """({name: file outside the package that parts come from}, packages that those import)."""
    waiting = {module for root in roots for module in sources_of(root)}
    files: dict[str, Path] = {}
    packages: set[str] = set()
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        seen.add(name)
        path = _own_file(name)
        if path is None:
            packages.add(name.partition(".")[0])
            continue
        files[name.replace(".", "/") + ".py"] = path
        waiting |= set(_named_in(sys.modules[name])) - seen
    return files, packages - set(_SHIPPED) - set(sys.stdlib_module_names)


def _own_file(name: str) -> Path | None:
    """The file of a module of one's own; None of what is installed, built in, or of the package."""
    module = sys.modules.get(name)
    file = getattr(module, "__file__", None)
    if name.partition(".")[0] in _SHIPPED or not file:
        return None
    path = Path(file)
    installed = "site-packages" in path.parts or "dist-packages" in path.parts
    standard = name.partition(".")[0] in sys.stdlib_module_names
    return None if installed or standard or not path.is_file() else path


def _named_in(module: ModuleType) -> Iterator[str]:
    """Modules whose names, functions or classes a module uses."""
    for value in list(vars(module).values()):
        if isinstance(value, ModuleType):
            yield value.__name__
        elif isinstance(found := getattr(value, "__module__", None), str):
            yield found


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None
