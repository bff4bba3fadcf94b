"""Checkpoints of the whole train state with Orbax: what a run needs to go on bit for bit."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax

from mbrl_jax.train.config import ConfigError
from mbrl_jax.types import PyTree

FOLDER = "checkpoints"
KEEP = 2  # the newest, and one in reserve should it be damaged


def _manager(workdir: Path, create: bool):
    """An Orbax manager of `workdir/checkpoints` (imported lazily: it takes a second)."""
    import orbax.checkpoint as ocp

    options = ocp.CheckpointManagerOptions(
        max_to_keep=KEEP, create=create, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(Path(workdir).resolve() / FOLDER, options=options)


class Checkpointer:
    """Saves and restores (state, meta); a context manager."""

    def __init__(self, workdir: Path):
        self._manager = _manager(workdir, create=True)

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self._manager.close()

    def save(self, iteration: int, state: PyTree, meta: dict[str, Any]) -> None:
        """Write one checkpoint; it is complete when this returns."""
        import orbax.checkpoint as ocp

        self._manager.save(
            iteration,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
            ),
        )
        self._manager.wait_until_finished()


def remove_all(workdir: Path) -> None:
    """Remove all checkpoints of a run."""
    shutil.rmtree(Path(workdir) / FOLDER, ignore_errors=True)


def iterations(workdir: Path) -> list[int]:
    """Iterations of all complete checkpoints, the oldest first. Cheap: no Orbax import."""
    folder = Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def latest_iteration(workdir: Path) -> int | None:
    """Iteration of the newest complete checkpoint, or None."""
    return max(iterations(workdir), default=None)


def restore(
    workdir: Path, template: PyTree, iteration: int | None = None
) -> tuple[int, PyTree, dict[str, Any]]:
    """(iteration, state, meta) of a checkpoint.

    Args:
      workdir: of the run.
      iteration: of the checkpoint; None for the newest.
      template: `jax.ShapeDtypeStruct`s with shardings; Orbax returns nested dicts without one.

    Raises ConfigError when there is none, or it cannot be read into the template.
    """
    import orbax.checkpoint as ocp

    iteration = latest_iteration(workdir) if iteration is None else iteration
    if iteration is None:
        raise ConfigError(f"{workdir} holds no checkpoint; train there first")
    manager = _manager(workdir, create=False)
    try:
        restored = manager.restore(
            iteration,
            args=ocp.args.Composite(
                state=ocp.args.StandardRestore(template), meta=ocp.args.JsonRestore()
            ),
        )
    except (ValueError, KeyError, TypeError, OSError, json.JSONDecodeError) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error)
        raise ConfigError(
            f"the checkpoint {Path(workdir) / FOLDER / str(iteration)} cannot be restored "
            f"({reason}); remove that folder to go on from the one before"
        ) from error
    finally:
        manager.close()
    return iteration, restored["state"], restored["meta"]


def template_like(shapes: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Give every leaf of `eval_shape`'s result the sharding it is restored with."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
