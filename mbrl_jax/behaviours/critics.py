"""Several critics Q(z, a) as one stack: two-hot values, and the view of two of them drawn anew.

REDQ (Chen et al. 2021, https://arxiv.org/abs/2101.05982) takes the smaller of two random ones of
many as a target; TD-MPC2 and those that build on it do the same.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import linen as nn

from mbrl_jax import distributions
from mbrl_jax.types import Array, Key, PyTree


class Critics(NamedTuple):
    """Static pieces: C nets of one form, whose parameters are stacked [C]."""

    net: nn.Module  # (inputs [..., F + A], train) -> logits [..., bins]; may drop numbers out
    num: int  # C
    limit: float  # symlog of the largest value that the bins reach


def init(critics: Critics, key: Key, both: Array) -> PyTree:
    """Fresh parameters [C] for features and action together [F + A]."""
    keys = jax.random.split(key, critics.num)
    return jax.vmap(lambda k: critics.net.init(k, both)["params"])(keys)


def logits(
    critics: Critics,
    params: PyTree,
    features: Array,
    action: Array,
    key: Key | None = None,
) -> Array:
    """Logits [C, ..., bins] of stacked critics; with a key, numbers are dropped out."""
    inputs = jnp.concatenate([features, action], axis=-1)
    if key is None:
        return jax.vmap(lambda one: critics.net.apply({"params": one}, inputs))(params)

    def one(params, dropout):
        return critics.net.apply({"params": params}, inputs, True, rngs={"dropout": dropout})

    return jax.vmap(one)(params, jax.random.split(key, critics.num))


def two_values(critics: Critics, params: PyTree, key: Key, features: Array, action: Array) -> Array:
    """Values [2, ...] of two different critics, drawn anew for each call."""
    chosen = jax.lax.top_k(jax.random.uniform(key, (critics.num,)), 2)[1]
    found = logits(critics, jax.tree.map(lambda x: x[chosen], params), features, action)
    return distributions.two_hot_mean(found, limit=critics.limit)
