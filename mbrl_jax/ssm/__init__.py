"""State-space kernels: pure array functions without parameters, for CPU, GPU and TPU.

`ssd` is the recurrence of Mamba-2 (arXiv 2405.21060), `selective_scan` that of Mamba-1
(arXiv 2312.00752), `causal_conv` the short convolution before either. Each comes as a `*_stream`
over one sequence (map it with `vmap`), a `*_step` for one row, and a `*_at` that rebuilds the state
after any row from compact entries. Resets are exact: `reset[t]` empties the state before row t.

This sub-package needs nothing but jax: `from mbrl_jax import ssm` works alone.
"""

from mbrl_jax.ssm.conv import ConvEntries, causal_conv_step, causal_conv_stream, conv_history_at
from mbrl_jax.ssm.selective_scan import (
    ScanEntries,
    scan_state_at,
    selective_scan,
    selective_scan_step,
    selective_scan_stream,
)
from mbrl_jax.ssm.ssd import SSDEntries, ssd, ssd_state_at, ssd_step, ssd_stream

__all__ = [
    "ConvEntries",
    "SSDEntries",
    "ScanEntries",
    "causal_conv_step",
    "causal_conv_stream",
    "conv_history_at",
    "scan_state_at",
    "selective_scan",
    "selective_scan_step",
    "selective_scan_stream",
    "ssd",
    "ssd_state_at",
    "ssd_step",
    "ssd_stream",
]
