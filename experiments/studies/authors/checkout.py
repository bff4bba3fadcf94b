"""Whose checkout is it, and is it the one that is meant? Every other answer is one sentence."""

import importlib.util
import subprocess
from pathlib import Path
from typing import NamedTuple

from mbrl_jax.errors import ConfigError

PACKAGES = (
    "torch",
    "einops",
    "yaml",
)  # what the authors' files import, beside what is stood in for
INSTALL = "pip install -c constraints.txt -e '.[bench]'"


class Authors(NamedTuple):
    """A repository that we hold ourselves against."""

    name: str
    address: str
    commit: str  # of the table that is committed here
    files: tuple[str, ...]  # by which it is recognised
    module: str  # that offers `connect(folder)`, `CASES`, and what these ask for

    def how_to_get(self) -> str:
        """The commands that make such a checkout."""
        return f"git clone {self.address} PATH && git -C PATH checkout {self.commit}"


KNOWN = (
    Authors(
        "drama",
        "https://github.com/realwenlongwang/drama",
        "e7b4041",
        ("sub_models/world_models.py", "agents.py", "replay_buffer.py", "config_files/train.yaml"),
        "experiments.studies.authors.drama",
    ),
    Authors(
        "mamba",
        "https://github.com/state-spaces/mamba",
        "e9594ce",
        ("mamba_ssm/ops/triton/ssd_combined.py", "mamba_ssm/modules/ssd_minimal.py", "setup.py"),
        "experiments.studies.authors.mamba",
    ),
)


def recognise(path: str | None) -> Authors:
    """Whose unmodified checkout `path` is.

    Raises ConfigError, in one sentence with what to do, for everything else.
    """
    offers = "; or ".join(authors.how_to_get() for authors in KNOWN)
    if not path:
        raise ConfigError(f"--checkout=PATH is needed, a checkout of the authors' code: {offers}")
    root = Path(path).expanduser()
    if not root.is_dir():
        raise ConfigError(f"{path}: there is no such folder; to make a checkout: {offers}")
    for authors in KNOWN:
        if all((root / file).is_file() for file in authors.files):
            _check_commit(root, authors)
            return authors
    names = " or ".join(authors.address for authors in KNOWN)
    raise ConfigError(f"{path} is no checkout of {names}; to make one: {offers}")


def require_torch() -> None:
    """Raise ConfigError where PyTorch, or what else the authors' files import, is missing."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            f"{', '.join(missing)}: not installed, and the authors' code needs it: "
            f"{INSTALL} (the CPU build of torch will do)"
        )


def _check_commit(root: Path, authors: Authors) -> None:
    """Refuse another commit, and files that were changed."""
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*"]
    try:
        found = subprocess.run(
            [*command, "--abbrev=40"], capture_output=True, text=True, check=True
        ).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        raise ConfigError(
            f"git tells no commit of {root}, so it cannot be held against {authors.commit}: "
            f"{authors.how_to_get()}"
        ) from None
    if not found.startswith(authors.commit):
        raise ConfigError(
            f"{root} is at commit {found[:7]} and ours is held against {authors.commit}: "
            f"git -C {root} checkout {authors.commit}"
        )
    if found.endswith("-dirty"):
        raise ConfigError(
            f"files of {root} were changed, and the authors' own are wanted: git -C {root} stash"
        )
