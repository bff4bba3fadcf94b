"""State-space kernels: pure array functions without parameters, for CPU, GPU and TPU.

`ssd` is the recurrence of Mamba-2 (arXiv 2405.21060), `selective_scan` that of Mamba-1
(arXiv 2312.00752), `causal_conv` the short convolution before either; `s4d` (arXiv 2206.11893) and
`s5` (arXiv 2208.04933) are diagonal complex systems, discretised by `discretize`, and `dplr` is S4
(arXiv 2111.00396), diagonal plus low rank. Each comes as a `*_stream` over one sequence (map it
with `vmap`), a `*_step` for one row, and a `*_at` that rebuilds the state after any row from
compact entries. Resets are exact: `reset[t]` empties the state before row t. Gradients are for
reverse mode; some kernels have no forward mode.

This sub-package needs nothing but jax: `from mbrl_jax import ssm` works alone.
"""

from mbrl_jax.ssm.conv import ConvEntries, causal_conv_step, causal_conv_stream, conv_history_at
from mbrl_jax.ssm.diagonal import ComplexPair, discretize
from mbrl_jax.ssm.diagonal_s4d import S4DEntries, s4d, s4d_state_at, s4d_step, s4d_stream
from mbrl_jax.ssm.diagonal_s5 import S5Entries, s5, s5_state_at, s5_step, s5_stream
from mbrl_jax.ssm.low_rank import (
    DPLREntries,
    dplr,
    dplr_kernel,
    dplr_state_at,
    dplr_step,
    dplr_stream,
)
from mbrl_jax.ssm.selective_scan import (
    ScanEntries,
    scan_state_at,
    selective_scan,
    selective_scan_step,
    selective_scan_stream,
)
from mbrl_jax.ssm.ssd import SSDEntries, ssd, ssd_state_at, ssd_step, ssd_stream

__all__ = [
    "ComplexPair",
    "ConvEntries",
    "DPLREntries",
    "S4DEntries",
    "S5Entries",
    "SSDEntries",
    "ScanEntries",
    "causal_conv_step",
    "causal_conv_stream",
    "conv_history_at",
    "discretize",
    "dplr",
    "dplr_kernel",
    "dplr_state_at",
    "dplr_step",
    "dplr_stream",
    "s4d",
    "s4d_state_at",
    "s4d_step",
    "s4d_stream",
    "s5",
    "s5_state_at",
    "s5_step",
    "s5_stream",
    "scan_state_at",
    "selective_scan",
    "selective_scan_step",
    "selective_scan_stream",
    "ssd",
    "ssd_state_at",
    "ssd_step",
    "ssd_stream",
]
