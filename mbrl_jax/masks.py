"""Masks choose: what they hide may be NaN or infinite, and leaves values and gradients alone.

To multiply by a mask of zeros does not hide: 0 · NaN is NaN. And a hidden entry that is not finite
still reaches gradients through what it went into, so that inputs are cleaned before, and results
are chosen after. Whatever is finite stays as it is, bit for bit. Drama's losses and what learns an
actor and a critic multiply by their weights all the same: there, choosing the results changed the
rounding of recorded runs, and clean inputs are enough.

What lies behind a predicted end (a discount of exactly 0) is hidden too, with these exceptions:
without `weigh_reached` it is trained on; with `input_rows=passes` the actor's normaliser counts it;
and with `gradient=dynamics` a model that is not finite there spoils the gradient on its way back.
"""

import chex
import jax
import jax.numpy as jnp

from mbrl_jax.types import Array, PyTree, Trajectory


def clean(tree: PyTree, mask: Array) -> PyTree:
    """`tree` with 0 for what is not finite in entries that `mask` hides.

    Args:
      tree: arrays with the axes of `mask` in front; integers stay as they are.
      mask: bool, or a weight that is 0 where it hides.
    """

    def one(x):
        if not jnp.issubdtype(jnp.result_type(x), jnp.inexact):
            return x
        shown = (mask != 0).reshape(mask.shape + (1,) * (jnp.ndim(x) - mask.ndim))
        return jnp.where(shown | jnp.isfinite(x), x, 0)

    return jax.tree.map(one, tree)


def clean_rows(rows: Trajectory, merged: bool = False) -> Trajectory:
    """Rows [..., T] with 0 for what is not finite and means nothing.

    Nothing arrives with a first row, unless seams are merged (`types.EnvSpec`), and nothing follows
    the action of a last one.
    """
    timestep, action = rows.timestep, clean(rows.action, ~rows.timestep.is_last)
    if merged:
        return rows._replace(action=action)
    reward, extras = clean((timestep.reward, timestep.extras), ~timestep.is_first)
    return rows._replace(timestep=timestep._replace(reward=reward, extras=extras), action=action)


def weigh(x: Array, weight: Array) -> Array:
    """x · weight, elementwise, and 0 where the weight is 0, whatever x is there."""
    return jnp.where(weight != 0, x * weight, 0)


def masked_mean(x: Array, mask: Array) -> Array:
    """Mean [] of the entries of x [...] where mask [...] (bool); 0 if there are none."""
    chex.assert_equal_shape((x, mask))
    chex.assert_type(mask, bool)
    return jnp.where(mask, x, 0).sum() / jnp.maximum(mask.sum(), 1)


def weighted_mean(x: Array, weight: Array) -> Array:
    """Mean [...] over the last axis of x, weighted; 0 where all weights are 0."""
    total = jnp.sum(weight, axis=-1)
    return jnp.sum(weigh(x, weight), axis=-1) / jnp.where(total > 0, total, 1.0)
