"""The Mamba-2 recurrence in a single chunk with no state before it: a short sequence from zeros.

`chunk_matrix` without its rows and columns for states. Done for all streams at once, as
small arrays are, it is fastest with dt and D in the matrix: then nothing but products and one
transpose reads x or writes y.
"""

import math

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import chunking
from mbrl_jax.ssm.ssd.chunk_matrix import (
    MIN_LOG_DECAY,
    Array,
    Chunk,
    exact_product,
    masked_exp,
    product,
    product_transposed,
)

# Longer chunks sum decay gradients by a product of their own, to save the [Q, Q, Q] constant.
_MAX_INDICATOR_SIZE = 64


def outputs(chunk: Chunk, D: Array) -> Array:
    """y [Q, H, P] from no state; D [H]."""
    x, dt, decay, B, C, reset = chunk
    # Numbers of resets so far, as a product: XLA:CPU fuses a running sum into the comparisons for
    # all [H, Q, Q], which it then cannot vectorise.
    upto = jnp.triu(jnp.ones((len(reset),) * 2, decay.dtype))
    segment = exact_product(reset.astype(decay.dtype), upto)
    # Heads become a leading axis once: products in the middle of an array copy it each time.
    return jnp.swapaxes(_inside(jnp.swapaxes(x, 0, 1), dt, decay, B, C, D, segment), 0, 1)


@jax.custom_vjp
def _inside(x, dt, decay, B, C, D, segment) -> Array:
    """What rows of one chunk contribute to each other's y, and the skip: [H, Q, P].

    x [H, Q, P], dt and decay [H, Q], B and C [Q, N], D [H], segment [Q].
    """
    return _inside_forward(x, dt, decay, B, C, D, segment)[0]


def _inside_forward(x, dt, decay, B, C, D, segment):
    sums = _sums(decay)
    scores = product(C, B.T, x.dtype)  # [Q, Q], shared by heads
    # dt and D go into the mixing matrix, so that dt·x and D·x are never stored.
    mixing = _seen_decay(sums, segment) * scores[None] * dt[:, None] + _diagonal(D, len(segment))
    return product(mixing, x, x.dtype), (x, dt, B, C, D, segment, sums, scores)


def _inside_backward(residuals, y_bar):
    """By hand, for two reasons.

    Speed: the transposed mixing matrix is built anew, which costs less than to transpose it.
    Digits: row k's decay gets Σ W[i, j] over i ≥ k > j, of what crosses it. As a difference of
    running sums it would be rounded to the largest W of the chunk, also where nothing crosses.
    """
    x, dt, B, C, D, segment, sums, scores = residuals
    seen_t = _seen_decay(sums, segment, transposed=True)
    mixing_t = seen_t * scores.T[None] * dt[:, :, None] + _diagonal(D, len(segment))
    x_bar = product(mixing_t, y_bar, x.dtype)
    mixing_bar = product_transposed(y_bar, x, x.dtype)

    weight_bar = mixing_bar * _seen_decay(sums, segment)
    scores_bar = chunking.weighted_sum(dt[:, None], weight_bar)
    dt_bar = chunking.weighted_sum(scores[:, None], weight_bar, axis=1)
    decay_bar = _crossing(weight_bar * scores[None] * dt[:, None])
    D_bar = mixing_bar.reshape(len(D), -1)[:, :: len(segment) + 1].sum(1)  # the diagonal
    B_bar = product(scores_bar.T, C, x.dtype)
    C_bar = product(scores_bar, B, x.dtype)
    bars = (x_bar.astype(x.dtype), dt_bar, decay_bar, B_bar.astype(B.dtype), C_bar.astype(C.dtype))
    return *bars, D_bar.astype(D.dtype), None


_inside.defvjp(_inside_forward, _inside_backward)


def _diagonal(D: Array, size: int) -> Array:
    return D[:, None, None] * jnp.eye(size, dtype=D.dtype)[None]


def _crossing(weight: Array) -> Array:
    """[H, k] = Σ weight[H, i, j] over i ≥ k > j."""
    heads, size = weight.shape[:2]
    upto = jnp.tril(jnp.ones((size, size), weight.dtype))  # [i, k]
    before = jnp.triu(jnp.ones((size, size), weight.dtype), 1)  # [j, k]
    if size <= _MAX_INDICATOR_SIZE:
        crosses = (upto[:, None] * before[None]).reshape(size * size, size)
        return exact_product(weight.reshape(heads, -1), crosses)
    return (exact_product(upto.T, weight) * before.T[None]).sum(-1)


def _sums(decay: Array) -> tuple[Array, Array]:
    """Running sums of `decay` [H, Q] as high + low, whose differences lose no digits.

    High parts are multiples of a quantum so coarse that their sums and differences are exact; low
    parts stay below Q quanta. A plain running sum to -1000 has no digits left beside -0.001.
    """
    size = decay.shape[-1]
    quantum = 2.0 ** (math.ceil(math.log2(-MIN_LOG_DECAY * size)) - 23)
    high = jax.lax.stop_gradient(jnp.round(decay / quantum) * quantum)
    upto = jnp.triu(jnp.ones((size, size), decay.dtype))
    return exact_product(high, upto), exact_product(decay - high, upto)


def _seen_decay(sums: tuple[Array, Array], segment: Array, transposed: bool = False) -> Array:
    """[H, Q, Q] what is left at row i of what row j added, 0 where i does not see j."""
    size = len(segment)
    sees = jnp.tril(jnp.ones((size, size), bool)) & (segment[:, None] == segment[None])
    if transposed:
        high, low = (part[:, None] - part[:, :, None] for part in sums)
        return masked_exp(sees.T[None], high + low)
    high, low = (part[:, :, None] - part[:, None] for part in sums)
    return masked_exp(sees[None], high + low)
