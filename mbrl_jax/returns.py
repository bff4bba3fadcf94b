"""Return estimators for a single stream; `vmap` adds starts. gamma appears only here.

Index t runs over H imagined actions; `reward[t]` and `discount[t]` arrived with the state that
action t led to.
"""

import chex
import jax
import jax.numpy as jnp

from mbrl_jax.types import Array


def lambda_return(
    reward: Array, discount: Array, value: Array, bootstrap: Array, lambda_: float
) -> Array:
    """λ-returns Gₜ = rₜ + γₜ[(1 - λ) vₜ + λ Gₜ₊₁] with G_H = `bootstrap`.

    Args:
      reward: [H].
      discount: [H] gamma times the probability that the episode goes on.
      value: [H] the value mixed in at t: `values[1:]` is the textbook form (Sutton & Barto,
        equation 12.2, and DreamerV2, arXiv 2010.02193, equation 4); `values[:-1]` is what the
        published code of STORM and Drama computes.
      bootstrap: [] the value of the last state.
      lambda_: mixing weight in [0, 1].

    Returns:
      [H] returns.
    """

    chex.assert_rank((reward, discount, value, bootstrap), (1, 1, 1, 0))
    chex.assert_equal_shape((reward, discount, value))

    def backward(following, row):
        r, d, v = row
        behind = (1.0 - lambda_) * v + lambda_ * following
        g = r + d * jnp.where(d != 0, behind, 0)  # NaN may stand there, and 0 · NaN is NaN
        return g, g

    rows = (reward, discount, value)
    # Horizons are short: unrolling removes the loop overhead, which exceeds the arithmetic.
    _, returns = jax.lax.scan(backward, bootstrap, rows, reverse=True, unroll=min(16, len(reward)))
    return returns


def survival(discount: Array, start_weight: Array) -> Array:
    """Probability [H] that the state before action t was reached: start, then discounts so far.

    It is 0 behind a discount of 0, whatever follows there.

    Args:
      discount: [H] as in `lambda_return`, gamma not included.
      start_weight: [] 1 - is_terminal of the start.
    """
    chex.assert_rank((discount, start_weight), (1, 0))
    factors = jnp.concatenate([start_weight[None], discount[:-1]])
    return jnp.where(jnp.cumsum(factors == 0) > 0, 0, jnp.cumprod(factors))


def reached_states(discount: Array, start_weight: Array) -> Array:
    """`survival` of all H + 1 states [H+1]; discount [H+1], whose row 0 arrived with the start."""
    return survival(jnp.roll(discount, -1), start_weight)  # the last factor goes unused


def order_statistic(x: Array, fraction: float) -> Array:
    """The k-th smallest of all values of `x`, k = int(fraction · size), counted from 1.

    This is torch's `kthvalue` as Drama and STORM use it, not an interpolated percentile.
    """
    flat = jnp.sort(x.reshape(-1))
    return flat[max(int(fraction * flat.size), 1) - 1]
