"""Named randomness: a new consumer of a key never reseeds the others."""

import zlib

import jax

from mbrl_jax.types import Array, Key


def named(key: Key, purpose: str) -> Key:
    """The stream of `key` for one named purpose."""
    return jax.random.fold_in(key, zlib.crc32(purpose.encode()) & 0x7FFFFFFF)


def at(key: Key, purpose: str, counter: Array | int) -> Key:
    """The stream of `key` for one named purpose at one count (iteration, gradient step, …)."""
    return jax.random.fold_in(named(key, purpose), counter)
