"""Samplers: where windows of replayed rows start.

A sampler sees only counts and positions, never the rows. Lanes are columns of the ring
[C, N]; window start (t, n) covers rows t … t + length - 1 of lane n, oldest first.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Key, PyTree, bounded


class Ring(NamedTuple):
    """Static size of a ring, and how far it has been written."""

    capacity: int  # C
    num_envs: int  # N
    position: Array  # [] int32 rows written so far; row i lives at slot i mod C


class Sampler(NamedTuple):
    """A sampler as pure functions."""

    init: Callable  # (capacity, num_envs) -> counters
    # (counters, key, ring, length, num, stream) -> (counters, slot [num], lane [num])
    sample: Callable
    # (counters, slot [], rows [N]) -> counters: takes note of rows that were written; None: nothing
    add: Callable | None = None


@dataclasses.dataclass(frozen=True)
class Uniform:
    """Every complete window is equally likely; with replacement."""

    def make(self) -> Sampler:
        """Build the sampler."""
        return Sampler(lambda capacity, num_envs: (), _sample_uniform)

    def least_rows(self, length: int, num: int, num_envs: int) -> int:
        """Rows a lane must hold before `num` windows can be drawn."""
        del num, num_envs
        return length


def _sample_uniform(
    counters: tuple, key: Key, ring: Ring, length: int, num: int, stream: str
) -> tuple[tuple, Array, Array]:
    del stream
    slot_key, lane_key = jax.random.split(key)
    size = jnp.minimum(ring.position, ring.capacity)
    legal = jnp.maximum(size - length + 1, 1)
    age = jax.random.randint(slot_key, (num,), 0, legal)  # 0 is the oldest row
    slot = (ring.position - size + age) % ring.capacity
    lane = jax.random.randint(lane_key, (num,), 0, ring.num_envs)
    return counters, slot, lane


class Counts(NamedTuple):
    """How often each row was the start of a window."""

    model: Array  # [C, N] int32: v, drawn for world-model training
    imagine: Array  # [C, N] int32: b, drawn as imagination context


@dataclasses.dataclass(frozen=True)
class DynamicFrequency:
    """Drama's dynamic-frequency sampling (arXiv 2410.08893 section 2.4; specification section 6).

    World model: p ∝ exp(-v/τ). Imagination: p ∝ exp(score/τ) with b' = b/κ and
    score = v - α b' - β max(0, v - b'), which for α = β = 1 is min(0, v - b'): rows that were
    imagined more often than trained on are suppressed. Without replacement (Gumbel top-k).
    """

    temperature: float = bounded(10.0, above=0)
    alpha: float = bounded(1.0, low=0)
    beta: float = bounded(1.0, low=0)
    # Imagination starts for each world-model window: puts b on the scale of v.
    kappa: float = bounded(64.0, above=0)

    def make(self) -> Sampler:
        """Build the sampler."""
        return Sampler(_init_counts, functools.partial(_sample_dynamic, self))

    def least_rows(self, length: int, num: int, num_envs: int) -> int:
        """Rows a lane must hold before `num` different windows can be drawn."""
        return length - 1 + -(-num // num_envs)


def _init_counts(capacity: int, num_envs: int) -> Counts:
    return Counts(*(jnp.zeros((capacity, num_envs), jnp.int32) for _ in Counts._fields))


def dynamic_frequency_score(config: DynamicFrequency, counts: Counts, stream: str) -> Array:
    """Unnormalised log-probability [C, N] of each start, illegal ones included."""
    v = counts.model.astype(jnp.float32)
    if stream != "imagine":
        return -v / config.temperature
    b = counts.imagine.astype(jnp.float32) / config.kappa
    score = v - config.alpha * b - config.beta * jnp.maximum(0.0, v - b)
    return score / config.temperature


def _sample_dynamic(
    config: DynamicFrequency,
    counts: Counts,
    key: Key,
    ring: Ring,
    length: int,
    num: int,
    stream: str,
) -> tuple[Counts, Array, Array]:
    slots = jnp.arange(ring.capacity)
    age = (ring.position - 1 - slots) % ring.capacity  # rows written after this one
    written = slots < jnp.minimum(ring.position, ring.capacity)
    legal = (written & (age >= length - 1))[:, None]
    score = dynamic_frequency_score(config, counts, stream)
    noise = jax.random.gumbel(key, score.shape)
    noisy = jnp.where(legal, score + noise, -jnp.inf).reshape(-1)
    flat = jax.lax.top_k(noisy, num)[1]
    slot, lane = flat // ring.num_envs, flat % ring.num_envs
    name = "imagine" if stream == "imagine" else "model"
    counts = counts._replace(**{name: getattr(counts, name).at[slot, lane].add(1)})
    return counts, slot, lane


def check_stream(stream: str, streams: dict[str, PyTree]) -> None:
    """Raise ValueError for a stream that the replay does not serve."""
    if stream not in streams:
        raise ValueError(f"unknown replay stream {stream!r}; this replay has {sorted(streams)}")
