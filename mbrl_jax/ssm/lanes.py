"""Lanes of a `vmap`: in turns, so that each has the cache of a CPU to itself, or all together."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap


def largest_divisor(number: int, at_most: int) -> int:
    """The largest divisor of `number` that is at most max(`at_most`, 1)."""
    return max(d for d in range(1, min(max(at_most, 1), number) + 1) if number % d == 0)


def take_turns(run: Callable) -> Callable:
    """`run`, but under `vmap` one lane after the other, in a loop.

    For a function of pytrees of arrays that is not differentiated: use it inside the passes of a
    `custom_vjp`.
    """
    mapped = custom_vmap(run)

    @mapped.def_vmap
    def rule(axis_size, batched, *args):
        leaves, tree = jax.tree.flatten(args)
        flags = jax.tree.leaves(batched)

        def turn(own):
            own = iter(own)
            args = [next(own) if f else leaf for leaf, f in zip(leaves, flags, strict=True)]
            return mapped(*jax.tree.unflatten(tree, args))

        own = [leaf for leaf, flag in zip(leaves, flags, strict=True) if flag]
        if axis_size > 1:
            y = jax.lax.map(turn, own)
        else:  # a loop of one would keep its copies
            y = jax.tree.map(lambda leaf: leaf[None], turn([leaf[0] for leaf in own]))
        return y, jax.tree.map(lambda _: True, y)

    return mapped


def each(run: Callable, *args: Any) -> Any:
    """`vmap(run)(*args)`. A single lane goes without the axis: of size 1, XLA:CPU pays it twice."""
    if len(jax.tree.leaves(args)[0]) > 1:
        return jax.vmap(run)(*args)
    y = run(*jax.tree.map(lambda leaf: leaf[0], args))
    return jax.tree.map(lambda leaf: leaf[None], y)


def together(run: Callable) -> Callable:
    """A function of one lane that leaves all lanes of `vmap`, however nested, to one call of `run`.

    For a function that is not differentiated: use it inside the passes of a `custom_vjp`.

    Args:
      run: a function of pytrees of arrays [L, …], which returns such.
    """

    @custom_vmap
    def mapped(*args):
        return run(*args)

    @mapped.def_vmap
    def rule(axis_size, batched, *args):
        def merge(leaf, own):
            leaf = leaf if own else jnp.broadcast_to(leaf[None], (axis_size, *leaf.shape))
            return leaf.reshape((-1, *leaf.shape[2:]))

        y = mapped(*jax.tree.map(merge, args, tuple(batched)))
        y = jax.tree.map(lambda leaf: leaf.reshape((axis_size, -1, *leaf.shape[1:])), y)
        return y, jax.tree.map(lambda _: True, y)

    def one_lane(*args):
        y = mapped(*jax.tree.map(lambda leaf: leaf[None], args))
        return jax.tree.map(lambda leaf: leaf[0], y)

    return one_lane
