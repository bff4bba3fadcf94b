"""The recurrence of Mamba-3 (arXiv 2603.15569): Mamba-2's, with inputs taken in by a trapezoid.

    hₜ = αₜ hₜ₋₁ + (1 - λₜ) dtₜ αₜ kₜ₋₁ vₜ₋₁ᵀ + λₜ dtₜ kₜ vₜᵀ        yₜ = hₜᵀ qₜ + D vₜ

with αₜ = exp(-dtₜ rateₜ). A row enters twice, the second time one row later, together with the
decay of that row. So row s weighs λₛ dtₛ + (1 - λₛ₊₁) dtₛ₊₁ for every row behind it, and λₛ dtₛ for
itself: that is `ssd` with scaled inputs, less what each row sees too much of itself. Every form of
`ssd`, its gradients and its resets serve.

Rotations of k and q are the caller's (`mbrl_jax.cores.mamba3`). Axes: `T` time, `H` heads, `P`
channels of a head, `N` states. Everything is for a single stream; `vmap` adds batches.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from mbrl_jax.ssm import shapes
from mbrl_jax.ssm.ssd import SSDEntries, ssd_state_at, ssd_stream

Array = jax.Array


class TrapezoidState(NamedTuple):
    """What one row hands to the next."""

    h: Array  # [N, H, P]
    k: Array  # [H, N] of the row before
    v: Array  # [H, P] of the row before


class TrapezoidEntries(NamedTuple):
    """What rebuilds the state after any row."""

    ssd: SSDEntries
    k: Array  # [T, H, N]
    v: Array  # [T, H, P]
    ahead: Array  # [T, H] what of a row enters with the next one


def initial_state(heads: int, head_size: int, state_size: int) -> TrapezoidState:
    """Zeros."""
    h = jnp.zeros((state_size, heads, head_size))
    return TrapezoidState(h, jnp.zeros((heads, state_size)), jnp.zeros((heads, head_size)))


def trapezoid_stream(
    v: Array,
    dt: Array,
    rate: Array,
    mix: Array,
    k: Array,
    q: Array,
    D: Array,
    *,
    reset: Array | None = None,
    state: TrapezoidState | None = None,
    chunk_size: int = 32,
    method: str = "auto",
) -> tuple[Array, TrapezoidState, TrapezoidEntries]:
    """One sequence of any length T ≥ 1.

    Args:
      v: [T, H, P] inputs.
      dt: [T, H] step sizes ≥ 0.
      rate: [T, H] -A > 0.
      mix: [T, H] λ in [0, 1]: the share of a step that takes in its own row.
      k: [T, H, N] where inputs go.
      q: [T, H, N] what is read.
      D: [H] weight of the skip.
      reset: [T] bool; `reset[t]` empties the state before row t. None: never.
      state: of the row before, or None for zeros.
      chunk_size: the longest chunk.
      method: of `ssd_stream`.

    Returns:
      y [T, H, P] float32, the state after the last row, and `TrapezoidEntries`.

    Raises ValueError where shapes, dtype of `reset`, `chunk_size` or `method` are wrong.
    """
    _check(v, dt, rate, mix, k, q, D, reset, state)
    wide = jnp.promote_types(v.dtype, jnp.float32)
    v, dt, rate, mix, k, q = (x.astype(wide) for x in (v, dt, rate, mix, k, q))
    entering = (1.0 - mix) * dt  # of the row before
    if reset is not None:  # chosen, not multiplied by 0: what was before a reset may be NaN
        entering = jnp.where(reset[:, None], 0.0, entering)
    ahead = jnp.concatenate([entering[1:], jnp.zeros_like(entering[:1])])
    before = None
    if state is not None:
        late = _outer(state.k, entering[0][:, None] * state.v)
        before = state.h + (late if reset is None else jnp.where(reset[0], 0.0, late))
    y, _, entries = ssd_stream(
        v,
        mix * dt + ahead,
        -jnp.ones_like(D, wide),
        k,
        q,
        reset=reset,
        initial_state=before,
        log_decay=-dt * rate,
        chunk_size=chunk_size,
        method=method,
    )
    y += (D.astype(wide) - ahead * (k * q).sum(axis=-1))[..., None] * v  # a row's own, [T, H]
    kept = TrapezoidEntries(entries, k, v, ahead)
    return y, trapezoid_state_at(kept, len(v) - 1), kept


def trapezoid_state_at(entries: TrapezoidEntries, t: Array | int) -> TrapezoidState:
    """The state after t + 1 rows; t [] may be traced."""
    k, v, ahead = (x[t] for x in entries[1:])
    return TrapezoidState(ssd_state_at(entries.ssd, t) - _outer(k, ahead[:, None] * v), k, v)


def trapezoid_step(
    state: TrapezoidState,
    v: Array,
    dt: Array,
    rate: Array,
    mix: Array,
    k: Array,
    q: Array,
    D: Array,
) -> tuple[TrapezoidState, Array]:
    """One row.

    Args:
      state: of the row before.
      v: [H, P].
      dt: [H].
      rate: [H].
      mix: [H].
      k: [H, N].
      q: [H, N].
      D: [H].

    Returns:
      The next state, and y [H, P] float32.
    """
    v, k = v.astype(state.h.dtype), k.astype(state.h.dtype)
    late = _outer(state.k, ((1.0 - mix) * dt)[:, None] * state.v)
    h = jnp.exp(-dt * rate)[:, None] * (state.h + late) + _outer(k, (mix * dt)[:, None] * v)
    y = jnp.einsum("hn,nhp->hp", q, h) + D[:, None] * v
    return TrapezoidState(h, k, v), y


def _outer(k: Array, v: Array) -> Array:
    """[N, H, P] of k [H, N] and v [H, P]."""
    return k.T[:, :, None] * v[None]


def _check(v, dt, rate, mix, k, q, D, reset, state) -> None:
    shapes.check_axes(
        v=(v, "T H P"),
        dt=(dt, "T H"),
        rate=(rate, "T H"),
        mix=(mix, "T H"),
        k=(k, "T H N"),
        q=(q, "T H N"),
        D=(D, "H"),
        reset=(reset, "T"),
        state=(None if state is None else state.h, "N H P"),
    )
    shapes.check_reset(reset)
