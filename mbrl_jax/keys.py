"""Named randomness: a new consumer of a key never reseeds the others."""

import zlib

import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, Key


def named(key: Key, purpose: str) -> Key:
    """The stream of `key` for one named purpose."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()) & 0x7FFFFFFF)


def at(key: Key, purpose: str, counter: Array | int) -> Key:
    """The stream of `key` for one named purpose at one count (iteration, gradient step, …)."""
    return jax.random.fold_in(named(key, purpose), counter)


def lane_seeds(key: Key, num_lanes: int) -> Array:
    """Seeds [N] of host environments, int32 in 0 … 2^31 - 1; lane i does not depend on N.

    Hashed, not counted up: neighbouring keys and lanes share nothing.
    """
    lane = lambda i: jax.random.bits(jax.random.fold_in(key, i)) >> 1  # noqa: E731
    return jax.vmap(lane)(jnp.arange(num_lanes)).astype(jnp.int32)
