"""Experiments and environments of one's own: loaded from files, their faults told in a sentence.

Nothing heavy is imported here.
"""

import importlib
import importlib.util
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

_SHIPPED = ("mbrl_jax", "launch", "experiments")


def load_file(path: Path, flag: str) -> ModuleType:
    """The module of a file. Raises ConfigError where it is absent, faulty or hides another."""
    from mbrl_jax.errors import ConfigError

    if not path.is_file():
        raise ConfigError(f"--{flag}={path}: there is no such file")
    if hidden := _hidden_by(path):
        raise ConfigError(
            f"--{flag}={path} has the name of {hidden}, which it would hide; rename the file"
        )
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    execute = spec.loader.exec_module
    module, before = importlib.util.module_from_spec(spec), sys.modules.get(path.stem)
    sys.modules[path.stem] = module  # configs defined there can then be read back by name
    try:
        called(f"--{flag}={path}", lambda: execute(module))
    except BaseException:
        sys.modules.pop(path.stem, None)
        if before is not None:
            sys.modules[path.stem] = before
        raise
    return module


def _hidden_by(path: Path) -> str:
    """What of the name of a file is not the user's: "" where nothing is."""
    name = path.stem
    if name in sys.stdlib_module_names:
        return f"the module {name} of Python"
    if name in _SHIPPED:
        return f"the package {name}"
    try:
        found = importlib.util.find_spec(name) if name.isidentifier() else None
    except (ImportError, ValueError):  # ValueError: a module without a specification, __main__ say
        found = None
    places = [found.origin, *(found.submodule_search_locations or [])] if found else []
    parts = {part for place in places if place for part in Path(place).parts}
    return f"the installed package {name}" if {"site-packages", "dist-packages"} & parts else ""


def import_module(name: str, flag: str) -> ModuleType:
    """A module by its dotted name. Raises ConfigError where it is faulty."""
    return called(f"--{flag}={name}", lambda: importlib.import_module(name))


def called(what: str, function: Callable[[], Any]) -> Any:
    """What a function of the user's returns. Raises ConfigError, with the line, where it fails."""
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.train.runtime import refused_by_jax

    try:
        return function()
    except ConfigError:
        raise
    except (Exception, SystemExit) as error:
        if variable := refused_by_jax(error):
            raise ConfigError(variable) from error
        raise ConfigError(f"{what}: {_told(error)}") from error


def _told(error: BaseException) -> str:
    """An error and where it was raised, in words."""
    if isinstance(error, SyntaxError):
        return f"{error.msg} in line {error.lineno} of {error.filename}; mend it there"
    first = (str(error).strip().splitlines() or [""])[0]
    frames = [f for f in traceback.extract_tb(error.__traceback__) if _is_own(f.filename)]
    place = f" in line {frames[-1].lineno} of {frames[-1].filename}" if frames else ""
    advice = "install it, or mend that line" if isinstance(error, ImportError) else "mend it there"
    return f"{type(error).__name__}: {first}{place}; {advice}"


def _is_own(filename: str) -> bool:
    """Whether a frame lies in the user's code, and not in what imports or calls it."""
    parts = Path(filename).parts
    ours = Path(filename).parent == Path(__file__).parent
    return not (ours or filename.startswith("<") or {"site-packages", "importlib"} & set(parts))
