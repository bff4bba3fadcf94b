"""Checkpoints: all that a run needs to go on bit for bit, written in the background.

checkpoints/ITERATION/ holds the state of each process's seeds but their stored rows (Orbax), the
names of the `replay_log` segments with those rows, `meta.json`, and in `manifest.json` a checksum
of every file. It gets its name when all of that is on the disk. `restore.py` reads it.
"""

import contextlib
import glob
import json
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mbrl_jax.errors import ConfigError
from mbrl_jax.runs import files, host_arrays, replay_log
from mbrl_jax.runs.layout import CHECKPOINTS, META, iteration_of
from mbrl_jax.runs.replay_log import Segment
from mbrl_jax.types import PyTree, RowStore

FORMAT = 1  # of all files of a checkpoint; raise it when their meaning changes
KEEP = 2  # the newest, and one in reserve should it be damaged; and the best one
MANIFEST = "manifest.json"
LEAVES = "leaves.npz"
PATIENCE = 600.0  # seconds that the first process waits for the others' files


class SaveError(ConfigError):
    """A checkpoint could not be written; the one before it is intact."""


class Saver:
    """Saves while training goes on; a context manager that waits for the last save."""

    def __init__(
        self,
        workdir: Path,
        num_seeds: int,
        store: RowStore | None,
        every: int,
        restored: tuple[int, int, Sequence[Segment]] = (0, 0, ()),
        completed: Callable[[int], None] | None = None,
    ):
        """Nothing is written yet.

        Args:
          workdir: of the run.
          num_seeds: S.
          store: where the replay keeps its rows; None saves its whole state every time.
          every: iterations between saves, as a rule.
          restored: (iteration, rows, segments) of the checkpoint that the run goes on from.
          completed: called with the iteration of each checkpoint that is complete, in the thread
            that wrote it.
        """
        self._completed = completed
        self._workdir, self._num_seeds, self._store = workdir, num_seeds, store
        self.saved, self._saved_rows, segments = restored
        self._segments = list(segments)
        self._pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="save")
        self._pending: Future | None = None
        self.seconds = 0.0  # that training waited for saves
        if store is not None:
            self._block = min(every, store.capacity)
            self._gather = replay_log.make_gather(store.capacity, self._block, num_seeds)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, traceback):
        self._pool.shutdown(wait=True)
        if kind is None or not issubclass(kind, SaveError):
            self.check()

    def check(self) -> None:
        """Raise SaveError if the last save failed; does not wait for it."""
        if self._pending is not None and self._pending.done():
            self._pending.result()

    def take(self, state: PyTree) -> host_arrays.Taken:
        """Everything of a TrainState [S] but the stored rows, on the host."""
        if self._store is not None:
            state = state._replace(replay=self._store.put(state.replay, None))
        return host_arrays.take(state, self._num_seeds)

    def save(
        self, iteration: int, taken: host_arrays.Taken, replay: PyTree, meta: dict[str, Any]
    ) -> None:
        """Begin to write a checkpoint, once the one before is written.

        Args:
          iteration: names it.
          taken: of the state at that iteration.
          replay: a ReplayState [S] that still holds the rows that are new since the last save, and
            may hold later ones; it can be given away when this returns.
          meta: for `meta.json`; "rows" counts what was stored up to that iteration.

        Raises SaveError where the save before has failed.
        """
        if iteration == self.saved:
            return
        began = time.perf_counter()
        if self._pending is not None:
            self._pending.result()
        pieces = []
        if self._store is not None:
            capacity, rows = self._store.capacity, self._store.get(replay)
            first = max(self._saved_rows, meta["rows"] - capacity)
            for low, high in replay_log.blocks(first, meta["rows"], self._block):
                start = np.int32((high - self._block) % capacity)
                pieces.append(((low, high), self._gather(rows, start)))
        self._saved_rows, before, self.saved = meta["rows"], self.saved, iteration
        text = json.dumps({"format": FORMAT, **meta}, indent=1)
        arguments = (iteration, taken, pieces, text, meta["rows"], before)
        self._pending = self._pool.submit(self._write, *arguments)
        self.seconds += time.perf_counter() - began

    def holds(self, rows: int, later: int) -> bool:
        """Whether a ring with `later` rows more still has all that a save at `rows` lacks."""
        if self._store is None:  # then `take` has all of it
            return True
        missing = max(self._saved_rows, rows - self._store.capacity)
        return missing >= rows or rows + later - self._store.capacity <= missing

    # -------------------------------------------------------------------------- in the background

    def _write(self, iteration, taken, pieces, meta: str, total: int, before: int) -> None:
        try:
            for rows, gathered in pieces:
                block = host_arrays.take(gathered, self._num_seeds)
                num = rows[1] - rows[0]
                leaves = {name: leaf[:, -num:] for name, leaf in block.leaves.items()}
                self._segments.append(replay_log.write(self._workdir, rows, block.seeds, leaves))
            if self._store is not None:
                capacity = self._store.capacity
                self._segments = replay_log.still_needed(self._segments, total, capacity)
            _write(self._workdir, iteration, taken, self._segments, meta)
            if not jax.process_index():
                remove_old(self._workdir)
        except Exception as error:
            shutil.rmtree(_unfinished(self._workdir, iteration), ignore_errors=True)
            reason = getattr(error, "strerror", None) or _first_line(error)
            left = f"the checkpoint of iteration {before} is intact" if before else "there is none"
            raise SaveError(
                f"the checkpoint of iteration {iteration} could not be written ({reason}); {left}: "
                f"mend that and run the same command again"
            ) from error
        if self._completed is not None:
            self._completed(iteration)


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__


def _unfinished(workdir: Path, iteration: int) -> Path:
    return workdir / CHECKPOINTS / f"{iteration}{files.TEMPORARY}"


def _write(
    workdir: Path,
    iteration: int,
    taken: host_arrays.Taken,
    segments: Sequence[Segment],
    meta: str,
) -> None:
    """Write this process's part; the first process completes the checkpoint."""
    process, folder = jax.process_index(), _unfinished(workdir, iteration)
    folder.mkdir(parents=True, exist_ok=True)
    state = folder / f"state_{process}"
    save_leaves(state, taken.leaves)
    part = {
        "seeds": taken.seeds,
        "state": state.name,
        "segments": segments,
    }
    files.write_text(folder / f"part_{process}.json", json.dumps(part))
    if process:
        return
    _wait_for_parts(folder)
    complete_folder(folder, meta)


def complete_folder(folder: Path, meta: str) -> None:
    """Give an unfinished checkpoint its `meta.json`, its manifest and its name."""
    files.write_text(folder / META, meta)
    manifest = {"format": FORMAT, "files": files.checksums(folder)}
    files.write_text(folder / MANIFEST, json.dumps(manifest, indent=1))
    folder.rename(folder.with_name(folder.name.removesuffix(files.TEMPORARY)))
    files.sync_folder(folder.parent)


def save_leaves(folder: Path, leaves: Mapping[str, np.ndarray]) -> None:
    """Write NumPy's arrays: with Orbax, or of one process among several as `LEAVES`."""
    if jax.process_count() > 1:  # there Orbax writes NumPy's arrays of the first process only
        folder.mkdir(parents=True, exist_ok=True)
        files.write_arrays(folder / LEAVES, leaves)
        return
    import orbax.checkpoint as ocp

    with _orbax() as checkpointer, _plain(folder.parent) as parent:
        checkpointer.save(parent / folder.name, args=ocp.args.PyTreeSave(dict(leaves)))


def load_leaves(folder: Path) -> dict[str, np.ndarray]:
    """Read what `save_leaves` wrote; types that NumPy does not know come back as bytes ("V")."""
    if (folder / LEAVES).exists():
        with np.load(folder / LEAVES, allow_pickle=False) as data:
            return dict(data)
    import orbax.checkpoint as ocp

    with _orbax() as checkpointer, _plain(folder.parent) as parent:
        return checkpointer.restore(parent / folder.name, args=ocp.args.PyTreeRestore())


@contextlib.contextmanager
def _plain(folder: Path) -> Iterator[Path]:
    """A path to `folder` that is no pattern: Orbax loses what it writes below "[x]"."""
    folder = folder.resolve()
    if glob.escape(str(folder)) == str(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory() as place:
        link = Path(place) / "folder"
        link.symlink_to(folder)
        yield link


def _orbax():
    """An Orbax checkpointer (imported lazily: it takes half a second)."""
    import orbax.checkpoint as ocp

    if jax.process_count() == 1:
        return ocp.Checkpointer(ocp.PyTreeCheckpointHandler())
    own = jax.process_index()  # reads by itself what a single process has written
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"process_{own}"
    )
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    return ocp.Checkpointer(handler, multiprocessing_options=alone)


def _wait_for_parts(folder: Path) -> None:
    """Wait until every process has written its part. Raises TimeoutError if one does not."""
    deadline = time.monotonic() + PATIENCE
    while len(list(folder.glob("part_*.json"))) < jax.process_count():
        if time.monotonic() > deadline:
            raise TimeoutError(f"a process of the run wrote nothing in {PATIENCE:.0f} s")
        time.sleep(0.01)


# ---------------------------------------------------------------------------------- what is there


def complete(workdir: Path) -> list[int]:
    """Iterations of the complete checkpoints, the newest first. Cheap: no Orbax import."""
    folder = Path(workdir) / CHECKPOINTS
    if not folder.is_dir():
        return []
    named = [iteration_of(path.name) for path in folder.iterdir() if path.is_dir()]
    return sorted((found for found in named if found is not None), reverse=True)


def latest_iteration(workdir: Path) -> int | None:
    """Iteration of the newest complete checkpoint, or None."""
    return next(iter(complete(workdir)), None)


def best_iteration(workdir: Path) -> int | None:
    """Iteration of the checkpoint with the highest training return, the newest of equals.

    None where no checkpoint has a return yet.
    """
    scores = {}
    for iteration in complete(workdir):
        try:
            meta = json.loads((Path(workdir) / CHECKPOINTS / str(iteration) / META).read_text())
            score = meta["score"]
        except (OSError, ValueError, KeyError, TypeError):
            continue  # damaged: whoever restores it is told
        if score is not None:
            scores[iteration] = score
    return max(scores, key=lambda iteration: (scores[iteration], iteration), default=None)


def segments_of(workdir: Path, iteration: int) -> list[Segment]:
    """The segments that a checkpoint needs; [] if it is damaged."""
    folder, found = Path(workdir) / CHECKPOINTS / str(iteration), {}
    try:
        for path in folder.glob("part_*.json"):
            for file, rows, of_seeds, size in json.loads(path.read_text())["segments"]:
                found[file] = Segment(file, tuple(rows), tuple(of_seeds), size)
    except (OSError, ValueError, KeyError, TypeError):
        return []
    return list(found.values())


def remove_old(workdir: Path) -> None:
    """Keep the newest checkpoints and the best one, and the segments that they need."""
    found = complete(workdir)
    keep = {*found[:KEEP], best_iteration(workdir)}
    needed = {s.file for i in found if i in keep for s in segments_of(workdir, i)}
    for iteration in found:
        if iteration in keep:
            continue
        unneeded = {s.file for s in segments_of(workdir, iteration)} - needed
        folder = workdir / CHECKPOINTS / str(iteration)
        # Renamed first: a kill in the middle leaves litter, and nothing that looks complete.
        folder.rename(removed := folder.with_name(folder.name + files.TEMPORARY))
        shutil.rmtree(removed)
        for name in unneeded:
            (workdir / replay_log.FOLDER / name).unlink(missing_ok=True)


def template_like(shapes: PyTree, sharding: jax.sharding.Sharding) -> PyTree:
    """Give every leaf of `eval_shape`'s result the sharding it is restored with."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), shapes)
