"""What lies where in a run's directory, and directories as users write them.

Nothing heavy is imported here: a page that watches a run does without JAX's 150 MB.
"""

from pathlib import Path

from mbrl_jax.errors import ConfigError

CONFIG = "config.json"
LOCK = "lock"  # its text names the process that trains there
CHECKPOINTS = "checkpoints"
META = "meta.json"  # of a checkpoint
EVALUATION = "evaluation.json"
OPEN_LOOP = "open_loop.png"


def iteration_of(name: str) -> int | None:
    """The iteration that a checkpoint's name says; None for a name that is none."""
    is_one = name.isascii() and name.isdigit() and len(name) < 19 and str(int(name)) == name
    return int(name) if is_one else None


def as_path(directory: str | Path) -> Path:
    """A run's directory as a path; a leading `~` or `~user` is a home directory.

    Shells leave it alone after `--workdir=`. A directory of that very name is written `./~`.
    """
    try:
        return Path(directory).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"--workdir={directory}: {error}; write ./~… for such a name") from error
