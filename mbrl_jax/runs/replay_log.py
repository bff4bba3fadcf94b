"""Replayed rows on disk, in segments: each save adds the rows that are new since the one before.

A segment is an .npz file of consecutive rows of some seeds, one member for each leaf (zip keeps a
CRC-32 of each; there is no pickle in it). A checkpoint names the segments that hold the last C rows
before it, which are the ring at that step, bit for bit, wherever its write head stood.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from mbrl_jax.loops import seeds
from mbrl_jax.runs import files

FOLDER = "replay"


class Segment(NamedTuple):
    """Rows of seeds in one file; bounds are half open."""

    file: str
    rows: tuple[int, int]  # counted from the beginning of the run
    seeds: tuple[int, int]
    size: int  # bytes of the file


def make_gather(capacity: int, block: int, num_seeds: int) -> Callable:
    """(rows [S, C, …], start) -> rows [S, block, …] from slot `start` on, around the ring's end."""

    def gather(rows, start):
        slots = (start + jnp.arange(block)) % capacity
        return jax.tree.map(lambda x: x[slots], rows)

    return seeds.over_seeds(gather, num_seeds, num_shared=1)


def blocks(first: int, last: int, block: int) -> list[tuple[int, int]]:
    """Rows first … last - 1 as stretches of at most `block` rows."""
    return [(row, min(row + block, last)) for row in range(first, last, block)]


def write(
    workdir: Path,
    rows: tuple[int, int],
    of_seeds: tuple[int, int],
    leaves: Mapping[str, np.ndarray],
) -> Segment:
    """Write one segment of leaves [seeds, rows, …]; it is complete when this returns."""
    folder = Path(workdir) / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"rows_{rows[0]}_{rows[1]}_seeds_{of_seeds[0]}_{of_seeds[1]}.npz"
    files.write_arrays(path, leaves)
    return Segment(path.name, rows, of_seeds, path.stat().st_size)


def still_needed(segments: Iterable[Segment], total: int, capacity: int) -> list[Segment]:
    """Those with rows that a ring of `capacity` holds after `total` rows."""
    return [segment for segment in segments if segment.rows[1] > total - capacity]


def read(
    workdir: Path,
    segments: Iterable[Segment],
    name: str,
    target: np.ndarray,
    first_seed: int,
    total: int,
) -> None:
    """Put one leaf of the last C of `total` rows into `target` [seeds, C, …], whose rows are zeros.

    Raises ValueError where rows are missing; OSError, ValueError, KeyError, EOFError or BadZipFile
    for a file that is damaged.
    """
    capacity, last_seed = target.shape[1], first_seed + len(target)
    oldest = max(0, total - capacity)
    found = np.zeros((len(target), capacity), bool)
    for segment in segments:
        low, high = max(segment.seeds[0], first_seed), min(segment.seeds[1], last_seed)
        rows = np.arange(*segment.rows)
        wanted = (rows >= oldest) & (rows < total)
        if low >= high or not wanted.any():
            continue
        path = Path(workdir) / FOLDER / segment.file
        if path.stat().st_size != segment.size:
            raise ValueError(
                f"{FOLDER}/{segment.file} has {path.stat().st_size} bytes and not {segment.size}"
            )
        with np.load(path, allow_pickle=False) as data:
            values = data[name]
        values = values if values.dtype == target.dtype else values.view(target.dtype)
        slots, own = rows[wanted] % capacity, slice(low - first_seed, high - first_seed)
        target[own, slots] = values[low - segment.seeds[0] : high - segment.seeds[0], wanted]
        found[own, slots] = True
    if found.sum() != len(target) * (total - oldest):
        raise ValueError(f"rows of the replay are missing in {FOLDER}")
