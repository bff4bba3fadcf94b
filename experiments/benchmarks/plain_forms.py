"""The recurrences in JAX as a user writes them down from their formulas, to compare kernels with.

None is slowed down on purpose: inputs are in natural layouts, time comes first where `lax.scan`
wants it, and whatever does not depend on the state is computed for all rows at once where that is
the usual way. Axes as in `mbrl_jax.ssm`: B batch, T time, H heads, P channels, N state size.
"""

import jax
import jax.numpy as jnp

Array = jax.Array


def _combine(first, second):
    """Two steps of h ↦ a·h + b in one."""
    a_1, b_1 = first
    a_2, b_2 = second
    return a_2 * a_1, a_2 * b_1 + b_2


# -------------------------------------------------------------------------------- SSD (Mamba-2)


def ssd_associative(x, dt, A, B, C, D) -> Array:
    """Pairs (decay, input), both [B, T, H, P, N], through `associative_scan` over T."""
    inputs = jnp.einsum("bth,bthp,btn->bthpn", dt, x, B[:, :, 0])
    decay = jnp.broadcast_to(jnp.exp(dt * A)[..., None, None], inputs.shape)
    _, states = jax.lax.associative_scan(_combine, (decay, inputs), axis=1)
    return jnp.einsum("bthpn,btn->bthp", states, C[:, :, 0]) + D[:, None] * x


def ssd_associative_scalar(x, dt, A, B, C, D) -> Array:
    """The same with decays [B, T, H, 1, 1]: for who sees that a head has one decay only."""
    inputs = jnp.einsum("bth,bthp,btn->bthpn", dt, x, B[:, :, 0])
    decay = jnp.exp(dt * A)[..., None, None]
    _, states = jax.lax.associative_scan(_combine, (decay, inputs), axis=1)
    return jnp.einsum("bthpn,btn->bthp", states, C[:, :, 0]) + D[:, None] * x


def ssd_scan(x, dt, A, B, C, D) -> Array:
    """`lax.scan` over T with the state [B, H, P, N] of the paper and of mamba_ssm."""

    def one_row(state, row):
        x, dt, B, C = row
        decay = jnp.exp(dt * A)[..., None, None]
        state = decay * state + (dt[..., None] * x)[..., None] * B[:, None, None]
        return state, jnp.einsum("bhpn,bn->bhp", state, C)

    start = jnp.zeros((x.shape[0], *x.shape[2:], B.shape[-1]), x.dtype)
    rows = (jnp.swapaxes(row, 0, 1) for row in (x, dt, B[:, :, 0], C[:, :, 0]))
    _, y = jax.lax.scan(one_row, start, tuple(rows))
    return jnp.swapaxes(y, 0, 1) + D[:, None] * x


def ssd_scan_nhp(x, dt, A, B, C, D) -> Array:
    """`lax.scan` over T with the state [B, N, H, P]: the long axes minor, as CPUs like it."""

    def one_row(state, row):
        x, dt, B, C = row
        decay = jnp.exp(dt * A)[:, None, :, None]
        state = decay * state + B[:, :, None, None] * (dt[..., None] * x)[:, None]
        return state, jnp.einsum("bnhp,bn->bhp", state, C)

    start = jnp.zeros((x.shape[0], B.shape[-1], *x.shape[2:]), x.dtype)
    rows = (jnp.swapaxes(row, 0, 1) for row in (x, dt, B[:, :, 0], C[:, :, 0]))
    _, y = jax.lax.scan(one_row, start, tuple(rows))
    return jnp.swapaxes(y, 0, 1) + D[:, None] * x


# ---------------------------------------------------------------------- selective scan (Mamba-1)


def selective_associative(u, delta, A, B, C, D) -> Array:
    """Pairs [B, T, D, N] through `associative_scan` over T."""
    decay = jnp.exp(jnp.einsum("btd,dn->btdn", delta, A))
    inputs = jnp.einsum("btd,btn->btdn", delta * u, B)
    _, states = jax.lax.associative_scan(_combine, (decay, inputs), axis=1)
    return jnp.einsum("btdn,btn->btd", states, C) + D * u


def selective_scan(u, delta, A, B, C, D) -> Array:
    """`lax.scan` over T with the state [B, D, N] of mamba_ssm."""

    def one_row(state, row):
        u, delta, B, C = row
        decay = jnp.exp(delta[..., None] * A)
        state = decay * state + (delta * u)[..., None] * B[:, None]
        return state, jnp.einsum("bdn,bn->bd", state, C)

    start = jnp.zeros((u.shape[0], *A.shape), u.dtype)
    rows = tuple(jnp.swapaxes(row, 0, 1) for row in (u, delta, B, C))
    _, y = jax.lax.scan(one_row, start, rows)
    return jnp.swapaxes(y, 0, 1) + D * u


def selective_scan_nd(u, delta, A, B, C, D) -> Array:
    """`lax.scan` over T with the state [B, N, D]: the long axis minor, as CPUs like it."""

    def one_row(state, row):
        u, delta, B, C = row
        decay = jnp.exp(delta[:, None] * A.T)
        state = decay * state + B[..., None] * (delta * u)[:, None]
        return state, jnp.einsum("bnd,bn->bd", state, C)

    start = jnp.zeros((u.shape[0], *A.T.shape), u.dtype)
    rows = tuple(jnp.swapaxes(row, 0, 1) for row in (u, delta, B, C))
    _, y = jax.lax.scan(one_row, start, rows)
    return jnp.swapaxes(y, 0, 1) + D * u


# ------------------------------------------------------------------------- diagonal (S4D and S5)


def _held(A, dt) -> tuple[Array, Array]:
    """Decay and input gain of zero-order hold, complex, for A of any shape and dt beside it."""
    decay = jnp.exp(dt * A)
    return decay, (decay - 1) / A


def s4d_associative(u, dt, A, B, C, D) -> Array:
    """Complex pairs [B, T, D, N] through `associative_scan` over T."""
    decay, gain = _held(A, dt[:, None])
    inputs = gain * B * u[..., None]
    decay = jnp.broadcast_to(decay, inputs.shape)
    _, states = jax.lax.associative_scan(_combine, (decay, inputs), axis=1)
    return 2 * jnp.einsum("btdn,dn->btd", states, C).real + D * u


def s4d_scan(u, dt, A, B, C, D) -> Array:
    """`lax.scan` over T with the complex state [B, D, N]."""
    decay, gain = _held(A, dt[:, None])

    def one_row(state, u):
        state = decay * state + gain * B * u[..., None]
        return state, 2 * jnp.einsum("bdn,dn->bd", state, C).real

    start = jnp.zeros((u.shape[0], *A.shape), A.dtype)
    _, y = jax.lax.scan(one_row, start, jnp.swapaxes(u, 0, 1))
    return jnp.swapaxes(y, 0, 1) + D * u


def s5_associative(u, dt, A, B, C, D) -> Array:
    """Complex pairs [B, T, N] through `associative_scan` over T, as the authors' code has them."""
    decay, gain = _held(A, dt)
    inputs = jnp.einsum("nd,btd->btn", gain[:, None] * B, u)
    decay = jnp.broadcast_to(decay, inputs.shape)
    _, states = jax.lax.associative_scan(_combine, (decay, inputs), axis=1)
    return 2 * jnp.einsum("dn,btn->btd", C, states).real + D * u


def s5_scan(u, dt, A, B, C, D) -> Array:
    """`lax.scan` over T with the complex state [B, N]; products with B and C are outside."""
    decay, gain = _held(A, dt)
    inputs = jnp.einsum("nd,btd->tbn", gain[:, None] * B, u)

    def one_row(state, row):
        state = decay * state + row
        return state, state

    _, states = jax.lax.scan(one_row, jnp.zeros_like(inputs[0]), inputs)
    return 2 * jnp.einsum("dn,tbn->btd", C, states).real + D * u


# ------------------------------------------------------------------ diagonal plus low rank (S4)


def dplr_scan(u, dt, A, P, B, C, D) -> Array:
    """`lax.scan` over T with all 2N states [B, D, 2N] and the dense Ā, as the authors' code has."""
    A, P, B, C = (_whole(x) for x in (A, P, B, C))
    matrix, weight = _dense(dt, A, P, B)

    def one_row(state, u):
        state = jnp.einsum("dmn,bdn->bdm", matrix, state) + weight * u[..., None]
        return state, (C * state).sum(-1).real

    start = jnp.zeros((u.shape[0], *A.shape), A.dtype)
    _, y = jax.lax.scan(one_row, start, jnp.swapaxes(u, 0, 1))
    return jnp.swapaxes(y, 0, 1) + D * u


def dplr_fourier(u, dt, A, P, B, C, D) -> Array:
    """The published kernel, four Cauchy sums at roots of unity, and a Fourier convolution.

    The authors learn C (1 - Ā^L) in place of C, which here costs L products with Ā: few beside what
    there is once for each sequence of a batch.
    """
    length = u.shape[1]
    A, P, B, C = (_whole(x) for x in (A, P, B, C))
    matrix, _ = _dense(dt, A, P, B)
    ahead = lambda _, w: jnp.einsum("dm,dmn->dn", w, matrix)  # noqa: E731
    cut = C - jax.lax.fori_loop(0, length, ahead, C)

    roots = jnp.exp(-2j * jnp.pi * jnp.arange(length) / length)
    # Both sides times 1 + r, which is 0 at a root.
    below = (2 / dt)[:, None, None] * (1 - roots)[:, None] - A[:, None] * (1 + roots)[:, None]
    sums = lambda v: (v[:, None] / below).sum(-1)  # noqa: E731
    k_01, k_10, k_11 = sums(cut * P), sums(P.conj() * B), sums(P.conj() * P)
    at_roots = 2 * (sums(cut * B) - (1 + roots) * k_01 * k_10 / (1 + (1 + roots) * k_11))
    kernel = jnp.fft.ifft(at_roots).real.T
    spectrum = jnp.fft.rfft(u, 2 * length, axis=1) * jnp.fft.rfft(kernel, 2 * length, axis=0)
    return jnp.fft.irfft(spectrum, 2 * length, axis=1)[:, :length] + D * u


def _whole(x) -> Array:
    """Both halves of conjugate pairs."""
    return jnp.concatenate([x, x.conj()], -1)


def _dense(dt, A, P, B) -> tuple[Array, Array]:
    """Ā [D, 2N, 2N] and B̄ [D, 2N] of the bilinear rule, by Woodbury's identity."""
    twice = (2 / dt)[:, None]
    R = 1 / (twice - A)
    share = 1 / (1 + (P.conj() * R * P).sum(-1, keepdims=True))
    one = jnp.eye(A.shape[-1])
    inverse = R[..., None] * one - ((share * R * P)[..., None] * (P.conj() * R)[:, None])
    forward = (twice + A)[..., None] * one - P[..., None] * P.conj()[:, None]
    return inverse @ forward, 2 * (inverse @ B[..., None])[..., 0]
