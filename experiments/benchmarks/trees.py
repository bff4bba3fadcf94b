"""Another commit of this repository in a folder of its own, to be measured beside this one."""

import contextlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


@contextlib.contextmanager
def tree_of(commit: str) -> Iterator[Path]:
    """Check a commit out, and remove it afterwards."""
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--detach", str(tree), commit], check=True)
        try:
            yield tree
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def environment_of(tree: Path, cache: Path) -> dict[str, str]:
    """Variables under which a process imports from `tree` and compiles into `cache`."""
    return os.environ | {"JAX_COMPILATION_CACHE_DIR": str(cache), "PYTHONPATH": str(tree)}
