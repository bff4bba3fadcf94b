"""Adjoints of the reference recurrences: float64 NumPy loops; leading axes are batches."""

import numpy as np

from mbrl_jax.ssm.reference import causal_conv, selective_scan, ssd

__all__ = ["causal_conv", "selective_scan", "selective_scan_adjoint", "ssd", "ssd_adjoint"]


def ssd_adjoint(x, dt, A, B, C, D, reset, initial_state, y_bar, final_bar):
    """Gradients of Σ y·y_bar + Σ final·final_bar; those of A and D are summed over the batch."""
    num_groups = B.shape[-2]
    _, states = ssd(x, dt, A, B, C, D, reset, initial_state)
    x, dt, A, B, C, D, initial_state, y_bar, state_bar = _wide(
        x, dt, A, B, C, D, initial_state, y_bar, final_bar
    )
    B, C = (_to_heads(array, x.shape[-2]) for array in (B, C))
    rows = {name: [] for name in ("x", "dt", "B", "C")}
    A_bar = np.zeros_like(dt[..., 0, :])
    for t in reversed(range(x.shape[-3])):
        x_t, dt_t, B_t, C_t = x[..., t, :, :], dt[..., t, :], B[..., t, :, :], C[..., t, :, :]
        before = initial_state if t == 0 else states[..., t - 1, :, :, :]
        alive = ~reset[..., t, None, None, None]
        before = np.where(alive, before, 0.0)
        decay = np.exp(dt_t * A)
        rows["C"].append(
            np.einsum("...hp,...nhp->...hn", y_bar[..., t, :, :], states[..., t, :, :, :])
        )
        state_bar = state_bar + np.einsum("...hn,...hp->...nhp", C_t, y_bar[..., t, :, :])
        input_bar = np.einsum("...hn,...nhp->...hp", B_t, state_bar)
        decay_bar = np.einsum("...nhp,...nhp->...h", state_bar, before) * decay
        rows["x"].append(dt_t[..., None] * input_bar + D[:, None] * y_bar[..., t, :, :])
        rows["B"].append(dt_t[..., None] * np.einsum("...hp,...nhp->...hn", x_t, state_bar))
        rows["dt"].append((input_bar * x_t).sum(-1) + decay_bar * A)
        A_bar = A_bar + decay_bar * dt_t
        state_bar = np.where(alive, state_bar * decay[..., None, :, None], 0.0)
    heads_axis = {name: -2 if name == "dt" else -3 for name in rows}
    out = {name: np.stack(value[::-1], heads_axis[name]) for name, value in rows.items()}
    for name in ("B", "C"):
        shape = out[name].shape
        out[name] = out[name].reshape(*shape[:-2], num_groups, -1, shape[-1]).sum(-2)
    out["A"] = A_bar.reshape(-1, A_bar.shape[-1]).sum(0)
    out["D"] = (y_bar * x).sum(-1).reshape(-1, x.shape[-2]).sum(0)
    out["initial_state"] = state_bar
    return out


def _to_heads(array, num_heads):
    return np.repeat(array, num_heads // array.shape[-2], axis=-2)


def _wide(*arrays):
    return [np.asarray(array, np.float64) for array in arrays]


def selective_scan_adjoint(u, delta, A, B, C, D, reset, initial_state, y_bar, final_bar):
    """Gradients as `ssd_adjoint` has them."""
    _, states = selective_scan(u, delta, A, B, C, D, reset, initial_state)
    u, delta, A, B, C, D, initial_state, y_bar, state_bar = _wide(
        u, delta, A, B, C, D, initial_state, y_bar, final_bar
    )
    rows = {name: [] for name in ("u", "delta", "B", "C")}
    A_bar = np.zeros_like(A)
    for t in reversed(range(u.shape[-2])):
        u_t, delta_t, B_t, C_t = u[..., t, :], delta[..., t, :], B[..., t, :], C[..., t, :]
        alive = ~reset[..., t, None, None]
        before = np.where(alive, initial_state if t == 0 else states[..., t - 1, :, :], 0.0)
        decay = np.exp(delta_t[..., None, :] * A.T)
        rows["C"].append((states[..., t, :, :] * y_bar[..., t, None, :]).sum(-1))
        state_bar = state_bar + C_t[..., :, None] * y_bar[..., t, None, :]
        input_bar = (state_bar * B_t[..., None]).sum(-2)
        exponent_bar = state_bar * before * decay
        rows["u"].append(delta_t * input_bar + D * y_bar[..., t, :])
        rows["delta"].append(u_t * input_bar + (exponent_bar * A.T).sum(-2))
        rows["B"].append((state_bar * (delta_t * u_t)[..., None, :]).sum(-1))
        A_bar = A_bar + np.einsum("...nd,...d->...dn", exponent_bar, delta_t).reshape(
            -1, *A.shape
        ).sum(0)
        state_bar = np.where(alive, state_bar * decay, 0.0)
    out = {name: np.stack(value[::-1], -2) for name, value in rows.items()}
    out["A"] = A_bar
    out["D"] = (y_bar * u).reshape(-1, D.shape[0]).sum(0)
    out["initial_state"] = state_bar
    return out
