"""`mamba_ssm` without its CUDA and Triton kernels: its own reference functions in their places.

For every checkout that holds the package, after `stand_ins.install`. The causal convolution, which
is a package of its own, is replaced by its definition.
"""

import importlib

import torch

from experiments.studies.authors import stand_ins

PACKAGES = {
    "causal_conv1d": {
        "causal_conv1d_fn": stand_ins.causal_conv1d_fn,
        "causal_conv1d_update": stand_ins.causal_conv1d_update,
    },
    **dict.fromkeys(("causal_conv1d_cuda", "selective_scan_cuda", "transformers"), {}),
}


def connect() -> None:
    """Let the modules of `mamba_ssm` (Mamba and Mamba-2) call references."""
    names = (
        *("ops.triton.layer_norm", "ops.triton.layernorm_gated", "ops.triton.ssd_combined"),
        *("ops.triton.selective_state_update", "ops.selective_scan_interface", "modules.mamba2"),
        *("modules.mamba_simple", "modules.block", "models.mixer_seq_simple"),
    )
    norm, gated, ssd, step, scan, mamba2, mamba, block, mixer = (
        importlib.import_module(f"mamba_ssm.{name}") for name in names
    )
    newest: list[torch.Tensor] = []  # state after the newest scan

    def selective_scan_fn(*args, return_last_state=False, **kwargs):
        y, state = scan.selective_scan_ref(*args, return_last_state=True, **kwargs)
        newest[:] = [state]
        return (y, state) if return_last_state else y

    def chunk_scan(x, dt, A, B, C, chunk_size, seq_idx=None, return_final_states=False, **options):
        y = ssd.ssd_selective_scan(x, dt.to(x.dtype), A, B, C, **options)
        shape = (x.shape[0], *x.shape[2:], B.shape[-1])
        return (y, newest[0].reshape(shape)) if return_final_states else y

    def split_scan(*args, seq_idx=None, **options):
        return ssd.mamba_split_conv1d_scan_ref(*args, **options)

    def layer_norm_fn(x, weight, bias, is_rms_norm=False, residual_in_fp32=False, **options):
        assert is_rms_norm
        return norm.rms_norm_ref(x, weight, bias, **options)

    block.layer_norm_fn = mixer.layer_norm_fn = layer_norm_fn
    gated.rmsnorm_fn = ssd.rmsnorm_fn = gated.rms_norm_ref
    scan.selective_scan_fn = ssd.selective_scan_fn = mamba.selective_scan_fn = selective_scan_fn
    mamba.mamba_inner_fn = scan.mamba_inner_ref
    mamba2.mamba_chunk_scan_combined = chunk_scan
    mamba2.mamba_split_conv1d_scan_combined = split_scan
    mamba.selective_state_update = mamba2.selective_state_update = step.selective_state_update_ref
