"""Rules of the architecture that a linter can check."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import STALE
from tests.costly import stale

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mbrl_jax"
# Whoever reads or writes something, looks at a clock or at the machine, or starts threads. All
# other files are pure. In one place, so that a file which becomes pure can leave.
SHELL = {
    "datasets": ("__init__", "files", "flat", "minari", "rows", "runs"),
    "envs": ("gymnasium",),
    "envs/processes": ("dm_task", "vector", "worker"),
    "evaluate": ("animations", "plots", "scores"),
    "experiment": ("config", "printed"),
    "export": ("archive", "loader"),
    "mirrors": ("mirror", "wandb"),
    "report": ("commands", "drawings", "figures", "frame", "page", "records", "report"),
    "runs": (
        *("checkpoint", "circumstances", "files", "layout", "liveness", "metrics", "owner"),
        *("replay_log", "restore", "workdir"),
    ),
    "sweeps": ("packing", "plan", "slurm", "start", "status", "supervise"),
    "train": (
        *("compiled", "fork", "host_programs", "memory"),
        *("preemption", "programs"),
        *("progress", "report", "rounds", "run", "runtime", "tables", "trained", "training"),
    ),
    "watch": (
        *("described", "find", "overview", "pace", "reading", "series", "server", "strips"),
        "view",
    ),
    "world_models/drama": ("published_files",),
}
IMPURE_MODULES = {
    *("absl", "concurrent", "fcntl", "glob", "h5py", "http", "io", "logging", "matplotlib"),
    *("multiprocessing", "orbax", "os", "pathlib", "pickle", "PIL", "platform", "random", "rich"),
    *("shutil", "signal", "socket", "subprocess", "sys", "tempfile", "tensorboardX", "threading"),
    *("time", "urllib", "zipfile"),
}
IMPURE_FUNCTIONS = {"open", "print", "input", "exec", "eval", "breakpoint"}
IMPURE_METHODS = {
    *("io_callback", "pure_callback", "write_text", "read_text", "write_bytes", "read_bytes"),
}
# Rooms of parts, which know nothing of the rooms in which runs are made and looked at.
PARTS = {
    *("types", "keys", "optim", "distributions", "returns", "imagination", "acting", "errors"),
    *("ssm", "cores", "networks", "world_models", "behaviours", "agents", "replay", "envs"),
    *("loops", "testing"),
}
RUNS = {"experiment", "export", "mirrors", "runs", "train", "sweeps", "report", "watch"}
MAX_LINES = 400
MAX_FUNCTION = 60
MAX_FOLDER = 16  # files of one room
MAX_README = 7_000  # bytes


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


SHELL_FILES = [PACKAGE / room / f"{name}.py" for room, names in SHELL.items() for name in names]
CORE = [path for path in _files("mbrl_jax") if path not in SHELL_FILES]


def _impure(path: Path) -> list[str]:
    """What a file imports or does that is no pure function."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = {alias.name.split(".")[0] for alias in node.names} & IMPURE_MODULES
        elif isinstance(node, ast.ImportFrom):
            names = {(node.module or "").split(".")[0]} & IMPURE_MODULES
        elif isinstance(node, ast.Call):
            names = {getattr(node.func, "id", None)} & (IMPURE_FUNCTIONS | IMPURE_METHODS)
            names |= {getattr(node.func, "attr", None)} & IMPURE_METHODS
        else:
            names = {"global"} if isinstance(node, ast.Global) else set()
        found += [f"{name} in line {node.lineno}" for name in sorted(names)]
    return found


@pytest.mark.parametrize("path", CORE, ids=_name)
def test_the_pure_core_does_no_io(path):
    assert not _impure(path)


@pytest.mark.parametrize("path", SHELL_FILES, ids=_name)
def test_the_shell_is_no_larger_than_it_has_to_be(path):
    assert _impure(path), "this file is pure: it can leave SHELL"


@pytest.mark.parametrize("path", _files("mbrl_jax", "experiments", "launch", "tests"), ids=_name)
def test_files_and_functions_are_short_enough_to_read(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_LINES
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef):
            length = node.end_lineno - node.lineno + 1
            assert length <= MAX_FUNCTION, f"{node.name} has {length} lines"


@pytest.mark.parametrize("path", _files("mbrl_jax", "launch"), ids=_name)
def test_public_functions_and_classes_say_what_they_do(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"


FOLDERS = sorted({path.parent for path in _files("mbrl_jax", "launch")})


@pytest.mark.parametrize("folder", FOLDERS, ids=_name)
def test_a_folder_can_be_taken_in_at_a_glance(folder):
    assert len(list(folder.glob("*.py"))) <= MAX_FOLDER, "make a room of what belongs together"


def test_the_readme_can_be_read_at_once():
    assert len((ROOT / "README.md").read_bytes()) <= MAX_README


def _unannotated(node: ast.FunctionDef) -> list[str]:
    """Arguments of a function without a type, and "return"."""
    a = node.args
    own = [*a.posonlyargs, *a.args, *a.kwonlyargs, *(x for x in (a.vararg, a.kwarg) if x)]
    return [x.arg for x in own if x.annotation is None] + ["return"] * (node.returns is None)


@pytest.mark.parametrize("path", _files("mbrl_jax"), ids=_name)
def test_public_functions_say_their_types(path):
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
            assert not _unannotated(node), f"{node.name}: {_unannotated(node)} have no types"


def test_the_package_imports_nothing_of_the_repository_around_it():
    for path in _files("mbrl_jax"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            assert module.split(".")[0] not in ("experiments", "launch", "tests"), path


# ----------------------------------------------------------------------------------------- imports


def _modules() -> dict[str, Path]:
    """Files of the package by the names under which they are imported."""
    names = {path: path.relative_to(ROOT).with_suffix("").parts for path in _files("mbrl_jax")}
    return {".".join(n[:-1] if n[-1] == "__init__" else n): path for path, n in names.items()}


def _room(module: str) -> str:
    """The folder or file of the package that a module is in, or is."""
    return (*module.split("."), "")[1]


MODULES = _modules()


def _statements(body: list[ast.stmt]) -> Iterator[ast.stmt]:
    """Statements that run at import, and those under `if TYPE_CHECKING`."""
    for node in body:
        yield node
        for branch in ("body", "orelse", "finalbody"):
            if isinstance(node, ast.If | ast.Try | ast.With):
                yield from _statements(getattr(node, branch, []))


def _imported(module: str, *, late: bool) -> set[str]:
    """Modules of the package that one imports; `late`: inside functions too."""
    tree, found = ast.parse(MODULES[module].read_text()), set()
    for node in ast.walk(tree) if late else _statements(tree.body):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                inside = f"{node.module}.{alias.name}"
                found.add(inside if inside in MODULES else node.module)
    return (found & MODULES.keys()) - {module}


def test_no_module_imports_itself_through_others():
    """Imports for types included: who needs them to be read has a cycle in what is meant."""
    left = {module: _imported(module, late=False) for module in MODULES}
    while free := {module for module, needed in left.items() if not needed & left.keys()}:
        left = {module: needed for module, needed in left.items() if module not in free}
    assert not left, f"cycles among {sorted(left)}"


@pytest.mark.parametrize("module", [m for m in MODULES if _room(m) in PARTS])
def test_parts_know_nothing_of_runs(module):
    assert not {_room(other) for other in _imported(module, late=True)} & RUNS


def test_the_top_level_holds_what_was_agreed():
    agreed = {
        *("setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "BUILD.md", "LICENSE"),
        *(".gitignore", ".ci", "mbrl_jax", "experiments", "launch", "tests"),
    }
    hidden = {".git", ".venv", ".pytest_cache", ".ruff_cache", ".mypy_cache", "runs"}
    found = {path.name for path in ROOT.iterdir() if not path.name.endswith(".egg-info")}
    assert found - hidden == agreed


def test_costly_cases_are_there(request):
    """A renamed test would be slow again, unseen. What is told here is of the whole suite alone."""
    left = request.config.stash.get(STALE, [])
    assert not left, f"tests/costly.py names what no test is called: {', '.join(left)}"
    ids = ["tests/a/one_test.py::test_x[1]", "tests/two_test.py::test_y"]
    named = ("one_test.py::test_x", "one_test.py::test_x[2]", "wo_test.py::test_y")
    assert stale(named, ids) == ["one_test.py::test_x[2]", "wo_test.py::test_y"]
