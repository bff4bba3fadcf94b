"""The recurrences in eager PyTorch as a user writes them down, on one thread.

Arguments are those of `experiments.benchmarks.plain_forms`, as tensors. Two are not loops because
their authors publish them otherwise: `ssd_chunked` is the listing of the Mamba-2 paper (arXiv
2405.21060, listing 1), and S4D is a convolution through Fourier transforms (arXiv 2206.11893).
"""

from collections.abc import Callable

import numpy as np
import torch

Tensor = torch.Tensor

_BLOCK = 64  # rows of a chunk of the listing: its authors' value


# -------------------------------------------------------------------------------- SSD (Mamba-2)


def ssd_loop(x, dt, A, B, C, D) -> Tensor:
    """Row by row with the state [B, H, P, N]."""
    state = x.new_zeros((x.shape[0], *x.shape[2:], B.shape[-1]))
    rows = []
    for t in range(x.shape[1]):
        decay = torch.exp(dt[:, t] * A)[..., None, None]
        inputs = (dt[:, t, :, None] * x[:, t])[..., None] * B[:, t, :, None]
        state = decay * state + inputs
        rows.append(torch.einsum("bhpn,bn->bhp", state, C[:, t, 0]))
    return torch.stack(rows, 1) + D[:, None] * x


def ssd_chunked(x, dt, A, B, C, D) -> Tensor:
    """The published listing; T is a multiple of its chunk, or shorter."""
    heads = x.shape[2]
    block = min(_BLOCK, x.shape[1])
    X = _chunks(x * dt[..., None], block)
    B, C = (_chunks(w.expand(-1, -1, heads, -1), block) for w in (B, C))
    decay = _chunks(dt * A, block).permute(0, 3, 1, 2)  # [B, H, K, Q]
    since_start = decay.cumsum(-1)
    y = torch.einsum("bclhn,bcshn,bhcls,bcshp->bclhp", C, B, _segment_decay(decay), X)

    until_end = torch.exp(since_start[..., -1:] - since_start)
    states = torch.einsum("bclhn,bhcl,bclhp->bchpn", B, until_end, X)
    states = torch.cat([torch.zeros_like(states[:, :1]), states], 1)
    across = _segment_decay(torch.nn.functional.pad(since_start[..., -1], (1, 0)))
    states = torch.einsum("bhzc,bchpn->bzhpn", across, states)[:, :-1]
    y = y + torch.einsum("bclhn,bchpn,bhcl->bclhp", C, states, torch.exp(since_start))
    return y.reshape(x.shape) + D[:, None] * x


def _chunks(x: Tensor, block: int) -> Tensor:
    return x.reshape(x.shape[0], -1, block, *x.shape[2:])


def _segment_decay(decay: Tensor) -> Tensor:
    """exp of the sums over rows j + 1 … i of decay [..., Q], as [..., i, j]; 0 where i < j."""
    size = decay.shape[-1]
    before = torch.ones(size, size, dtype=torch.bool).tril(-1)
    sums = torch.where(before, decay[..., None], 0.0).cumsum(-2)
    return torch.exp(sums.masked_fill(~torch.ones_like(before).tril(), -torch.inf))


# ---------------------------------------------------------------------- selective scan (Mamba-1)


def selective_loop(u, delta, A, B, C, D) -> Tensor:
    """Row by row with the state [B, D, N]: `selective_scan_ref` of mamba_ssm, rows in turn."""
    state = u.new_zeros((u.shape[0], *A.shape))
    rows = []
    for t in range(u.shape[1]):
        decay = torch.exp(delta[:, t, :, None] * A)
        state = decay * state + (delta[:, t] * u[:, t])[..., None] * B[:, t, None]
        rows.append(torch.einsum("bdn,bn->bd", state, C[:, t]))
    return torch.stack(rows, 1) + D * u


# ------------------------------------------------------------------------- diagonal (S4D and S5)


def s4d_fourier(u, dt, A, B, C, D) -> Tensor:
    """The kernel [D, T] from powers of the decay, then a convolution by Fourier transforms."""
    length = u.shape[1]
    exponent = dt[:, None] * A
    weight = C * B * (torch.exp(exponent) - 1) / A
    powers = torch.exp(exponent[..., None] * torch.arange(length))
    kernel = 2 * torch.einsum("dn,dnt->dt", weight, powers).real
    spectrum = torch.fft.rfft(u, 2 * length, dim=1) * torch.fft.rfft(kernel.T, 2 * length, dim=0)
    return torch.fft.irfft(spectrum, 2 * length, dim=1)[:, :length] + D * u


def s5_loop(u, dt, A, B, C, D) -> Tensor:
    """Row by row with the complex state [B, N]; products with B and C are outside."""
    decay = torch.exp(dt * A)
    inputs = u.to(B.dtype) @ (((decay - 1) / A)[:, None] * B).T
    state, states = torch.zeros_like(inputs[:, 0]), []
    for t in range(u.shape[1]):
        state = decay * state + inputs[:, t]
        states.append(state)
    return 2 * (torch.stack(states, 1) @ C.T).real + D * u


# ---------------------------------------------------------------------------------- what is timed


def calls(function: Callable, args: tuple, y_bar) -> tuple[Callable, Callable]:
    """(forward, forward and backward) of `function` for arrays; all arguments get gradients.

    Args:
      function: one of this module.
      args: arrays, in its order.
      y_bar: the cotangent of the result.

    Returns:
      Callables without arguments: one returns y, the other y and a tuple of gradients.
    """
    torch.set_num_threads(1)
    # Copies: torch warns about arrays that jax does not let it write to.
    tensors = [torch.tensor(np.asarray(arg)).requires_grad_() for arg in args]
    bar = torch.tensor(np.asarray(y_bar))

    @torch.no_grad()
    def forward():
        return function(*tensors)

    def both():
        y = function(*tensors)
        return y.detach(), torch.autograd.grad(y, tensors, bar)

    return forward, both
