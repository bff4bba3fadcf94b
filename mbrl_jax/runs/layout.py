"""Directories as users write them. Nothing heavy is imported here."""

from pathlib import Path

from mbrl_jax.errors import ConfigError


def as_path(directory: str | Path) -> Path:
    """A run's directory as a path; a leading `~` or `~user` is a home directory.

    Shells leave it alone after `--workdir=`. A directory of that very name is written `./~`.
    """
    try:
        return Path(directory).expanduser()
    except RuntimeError as error:
        raise ConfigError(f"--workdir={directory}: {error}; write ./~… for such a name") from error
