"""Each recurrence as few readable lines: plain loops over time in float64 NumPy.

What the kernels compute, without how. Tests hold every form of every kernel against these, and
benchmarks the forms that they time. Leading axes `…` are batches; `reset` […, T] empties the state
before row t. All of them return (y, the state after every row).
"""

from typing import Any

import numpy as np

Arrays = tuple[np.ndarray, np.ndarray]


def _wide(*arrays) -> list[np.ndarray]:
    return [np.asarray(array, np.float64) for array in arrays]


def ssd(x: Any, dt: Any, A: Any, B: Any, C: Any, D: Any, reset: Any, initial_state: Any) -> Arrays:
    """Mamba-2 (arXiv 2405.21060): hₜ = e^{dtₜA} hₜ₋₁ + Bₜ (dtₜ xₜ)ᵀ, yₜ = Cₜ hₜ + D xₜ.

    x […, T, H, P], dt […, T, H], A and D [H], B and C […, T, G, N] (each of G groups serves H / G
    heads), state […, N, H, P] -> y […, T, H, P], states […, T, N, H, P].
    """
    x, dt, A, B, C, D, state = _wide(x, dt, A, B, C, D, initial_state)
    B, C = (np.repeat(a, x.shape[-2] // a.shape[-2], axis=-2) for a in (B, C))  # […, T, H, N]
    y, states = [], []
    for t in range(x.shape[-3]):
        state = np.where(reset[..., t, None, None, None], 0.0, state)
        decay = np.exp(dt[..., t, :] * A)
        dt_x = dt[..., t, :, None] * x[..., t, :, :]
        state = state * decay[..., None, :, None]
        state = state + np.einsum("...hn,...hp->...nhp", B[..., t, :, :], dt_x)
        read = np.einsum("...hn,...nhp->...hp", C[..., t, :, :], state)
        y.append(read + D[:, None] * x[..., t, :, :])
        states.append(state)
    return np.stack(y, -3), np.stack(states, -4)


def selective_scan(
    u: Any, delta: Any, A: Any, B: Any, C: Any, D: Any, reset: Any, initial_state: Any
) -> Arrays:
    """Mamba-1 (arXiv 2312.00752): hₜ = e^{δₜA} hₜ₋₁ + δₜ uₜ Bₜ, yₜ = Cₜ hₜ + D uₜ.

    u and delta […, T, D], A [D, N], B and C […, T, N], D [D], state […, N, D] -> y […, T, D],
    states […, T, N, D].
    """
    u, delta, A, B, C, D, state = _wide(u, delta, A, B, C, D, initial_state)
    y, states = [], []
    for t in range(u.shape[-2]):
        state = np.where(reset[..., t, None, None], 0.0, state)
        state = state * np.exp(delta[..., t, None, :] * A.T)
        state = state + B[..., t, :, None] * (delta * u)[..., t, None, :]
        y.append((C[..., t, :, None] * state).sum(-2) + D * u[..., t, :])
        states.append(state)
    return np.stack(y, -2), np.stack(states, -3)


def causal_conv(x: Any, weight: Any, bias: Any, history: Any, reset: Any) -> Arrays:
    """The short convolution before either: yₜ = Σ_w weight_w x_{t-W+1+w} + bias.

    x […, T, C], weight [W, C], bias [C], history […, W - 1, C] -> y […, T, C], histories
    […, T, W - 1, C].
    """
    x, weight, bias, history = _wide(x, weight, bias, history)
    y, histories = [], []
    for t in range(x.shape[-2]):
        history = np.where(reset[..., t, None, None], 0.0, history)
        rows = np.concatenate([history, x[..., t, None, :]], -2)
        y.append((rows * weight).sum(-2) + bias)
        history = rows[..., 1:, :]
        histories.append(history)
    return np.stack(y, -2), np.stack(histories, -3)


def discretize(A: Any, dt: Any, rule: str = "zoh") -> Arrays:
    """λ and γ of hₜ = λ hₜ₋₁ + γ B uₜ, complex, of A and steps dt: "zoh" or "bilinear".

    Zero-order hold: λ = e^{dtA}, γ = (λ - 1) / A, and dt where A is 0. Bilinear:
    λ = (1 + dtA/2) / (1 - dtA/2), γ = dt / (1 - dtA/2).
    """
    A, dt = np.asarray(A, np.complex128), np.asarray(dt, np.float64)
    if rule == "bilinear":
        below = 1.0 - A * dt / 2.0
        return (1.0 + A * dt / 2.0) / below, dt / below
    decay, still = np.exp(A * dt), A == 0.0
    return decay, np.where(still, dt, np.expm1(A * dt) / np.where(still, 1.0, A))


def s4d(
    u: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    reset: Any,
    initial_state: Any,
    rule: str = "zoh",
) -> Arrays:
    """S4D (arXiv 2206.11893): each channel has a diagonal system of its own.

    u […, T, D], dt and D [D], A, B and C [D, N], state […, N, D] -> y […, T, D], the real
    part of what is read; states […, T, N, D].
    """
    u, D = _wide(u, D)
    decay, gain = (x.T for x in discretize(A, np.asarray(dt)[:, None], rule))  # [N, D]
    write, read = gain * np.asarray(B).T, np.asarray(C).T
    state, y, states = np.asarray(initial_state, np.complex128), [], []
    for t in range(u.shape[-2]):
        state = np.where(reset[..., t, None, None], 0.0, state)
        state = decay * state + write * u[..., t, None, :]
        y.append(2.0 * (read * state).sum(-2).real + D * u[..., t, :])
        states.append(state)
    return np.stack(y, -2), np.stack(states, -3)


def dplr(
    u: Any, dt: Any, A: Any, P: Any, B: Any, C: Any, D: Any, reset: Any, initial_state: Any
) -> Arrays:
    """S4 (arXiv 2111.00396): each channel has a system diag(A) - P Pᴴ of its own, bilinear rule.

    Dense, both halves of all conjugate pairs written out, and (1 - dt/2 A)⁻¹ as it stands. u
    […, T, D], dt and D [D], A, P, B and C [D, N], state […, N, D] -> y […, T, D], states
    […, T, N, D].
    """
    u, D = _wide(u, D)
    halves = (
        np.asarray(x, np.complex128) for x in (A, P, B, C, np.swapaxes(initial_state, -1, -2))
    )
    A, P, B, C, state = (np.concatenate([x, x.conj()], -1) for x in halves)  # […, D, 2N]
    half = np.asarray(dt, np.float64)[:, None, None] / 2.0
    matrix = A[:, :, None] * np.eye(A.shape[-1]) - P[:, :, None] * P[:, None, :].conj()
    below = np.linalg.inv(np.eye(A.shape[-1]) - half * matrix)
    move = below @ (np.eye(A.shape[-1]) + half * matrix)
    write = 2.0 * half[..., 0] * (below @ B[..., None])[..., 0]
    y, states = [], []
    for t in range(u.shape[-2]):
        state = np.where(reset[..., t, None, None], 0.0, state)
        state = (move @ state[..., None])[..., 0] + write * u[..., t, :, None]
        y.append((C * state).sum(-1).real + D * u[..., t, :])
        states.append(np.swapaxes(state[..., : A.shape[-1] // 2], -1, -2))
    return np.stack(y, -2), np.stack(states, -3)


def s5(
    u: Any,
    dt: Any,
    A: Any,
    B: Any,
    C: Any,
    D: Any,
    reset: Any,
    initial_state: Any,
    rule: str = "zoh",
) -> Arrays:
    """S5 (arXiv 2208.04933): one diagonal system reads and writes all channels.

    u […, T, D], dt and A [N], B [N, D], C [D, N], D [D], state […, N] -> y […, T, D] as for S4D,
    states […, T, N].
    """
    u, D = _wide(u, D)
    decay, gain = discretize(A, dt, rule)
    write, read = gain[:, None] * np.asarray(B), np.asarray(C)
    state, y, states = np.asarray(initial_state, np.complex128), [], []
    for t in range(u.shape[-2]):
        state = np.where(reset[..., t, None], 0.0, state)
        state = decay * state + u[..., t, :] @ write.T
        y.append(2.0 * (state @ read.T).real + D * u[..., t, :])
        states.append(state)
    return np.stack(y, -2), np.stack(states, -2)


def trapezoid(
    v: Any, dt: Any, rate: Any, mix: Any, k: Any, q: Any, D: Any, reset: Any, state: Any
) -> tuple[np.ndarray, tuple[np.ndarray, ...]]:
    """Mamba-3 (arXiv 2603.15569), k and q rotated already: with α = e^{-dt·rate},

    hₜ = α hₜ₋₁ + (1 - λₜ) dtₜ α kₜ₋₁ vₜ₋₁ᵀ + λₜ dtₜ kₜ vₜᵀ, yₜ = hₜᵀ qₜ + D vₜ.

    v […, T, H, P], dt, rate and mix (λ) […, T, H], k and q […, T, H, N], D [H], state (h […, N, H,
    P], k […, H, N], v […, H, P]) -> y […, T, H, P], the states after every row.
    """
    v, dt, rate, mix, k, q, D, *state = _wide(v, dt, rate, mix, k, q, D, *state)
    y, states = [], []
    for t in range(v.shape[-3]):
        empty = np.asarray(reset[..., t])
        state = [np.where(empty.reshape(empty.shape + (1,) * n), 0.0, x)
                 for n, x in zip((3, 2, 2), state, strict=True)]  # fmt: skip
        now_k, now_v, step = k[..., t, :, :], v[..., t, :, :], dt[..., t, :]
        late = np.einsum("...hn,...hp,...h->...nhp", *state[1:], (1.0 - mix[..., t, :]) * step)
        taken = np.einsum("...hn,...hp,...h->...nhp", now_k, now_v, mix[..., t, :] * step)
        decay = np.exp(-step * rate[..., t, :])[..., None, :, None]
        state = [decay * (state[0] + late) + taken, now_k, now_v]
        y.append(np.einsum("...hn,...nhp->...hp", q[..., t, :, :], state[0]) + D[:, None] * now_v)
        states.append(state)
    stacked = tuple(
        np.stack(x, axis) for x, axis in zip(zip(*states, strict=True), (-4, -3, -3), strict=True)
    )
    return np.stack(y, -3), stacked
