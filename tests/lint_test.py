"""Rules of the architecture that a linter can check."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "mbrl_jax"
# IO: runs and what is made of them, data sets, types looked up by name, pictures, tables of
# scores that are shipped, files of PyTorch.
SHELL = (
    *("train/", "runs/", "sweeps/", "report/", "watch/", "datasets/", "experiment/config.py"),
    *("evaluate/plots.py", "evaluate/scores.py", "world_models/drama/published_files.py"),
)
MAX_LINES = 400
MAX_FUNCTION = 60


def _files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def _name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


CORE = [p for p in _files("mbrl_jax") if not p.relative_to(PACKAGE).as_posix().startswith(SHELL)]


@pytest.mark.parametrize("path", CORE, ids=_name)
def test_the_pure_core_does_no_io(path):
    tree = ast.parse(path.read_text())
    calls = {n.func.id for n in ast.walk(tree) if isinstance(n, ast.Call) and hasattr(n.func, "id")}
    assert not calls & {"open", "print", "input", "exec", "eval"}
    imported = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            imported.add(node.module.split(".")[0])
    assert not imported & {"os", "sys", "io", "logging", "absl", "rich", "pathlib", "pickle"}


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


def test_the_package_imports_nothing_of_the_repository_around_it():
    for path in _files("mbrl_jax"):
        for node in ast.walk(ast.parse(path.read_text())):
            module = getattr(node, "module", None) or ""
            assert module.split(".")[0] not in ("experiments", "launch", "tests"), path


def test_the_top_level_holds_what_was_agreed():
    agreed = {
        *("setup.cfg", "pyproject.toml", "constraints.txt", "README.md", "BUILD.md", "LICENSE"),
        *(".gitignore", ".ci", "mbrl_jax", "experiments", "launch", "tests"),
    }
    hidden = {".git", ".venv", ".pytest_cache", ".ruff_cache", ".mypy_cache", "runs"}
    found = {path.name for path in ROOT.iterdir() if not path.name.endswith(".egg-info")}
    assert found - hidden == agreed
