"""state-spaces/mamba e9594ce: its reference recurrences in PyTorch against `mbrl_jax.ssm`.

`selective_scan_ref`, `selective_state_update_ref`, and three forms of the state-space duality: as a
selective scan, in chunks, and `ssd_minimal_discrete`. The causal convolution is a package of its
own and stands here by its definition. Not compared: complex rates, B and C that are the same in all
rows, `seq_idx`, `dt_limit`, CUDA and Triton kernels; and with fast decay the chunked reference,
whose own gradients in float32 are NaN there.
"""

import functools
import importlib
import sys
import types
from collections.abc import Callable

import torch
from torch.nn import functional as F

from experiments.studies.authors import kernel_cases, kernels, mamba_references, stand_ins
from experiments.studies.authors import recorded as rec
from experiments.studies.authors.problem import Arrays
from experiments.studies.authors.table import Side

Tensor = torch.Tensor
CASES, precision = kernel_cases, stand_ins.precision
code = types.SimpleNamespace()  # their modules, once they are imported


def connect(root: str) -> None:
    """Import the reference functions from a checkout, but not the package around them."""
    stand_ins.install(root, mamba_references.PACKAGES)
    package = types.ModuleType("mamba_ssm")  # whose own __init__ imports every model
    package.__path__ = [f"{root}/mamba_ssm"]
    sys.modules["mamba_ssm"] = package
    code.scan = importlib.import_module("mamba_ssm.ops.selective_scan_interface")
    code.ssd = importlib.import_module("mamba_ssm.ops.triton.ssd_combined")
    code.step = importlib.import_module("mamba_ssm.ops.triton.selective_state_update")
    code.minimal = importlib.import_module("mamba_ssm.modules.ssd_minimal")
    code.scan.selective_scan_fn = code.scan.selective_scan_ref


# -------------------------------------------------------------------------------------- recurrences


def _with_gradients(forward: Callable, arrays: Arrays) -> Side:
    """What comes out (with the state where there is one), and gradients of what went in."""
    given = {name: rec.tensor(x).requires_grad_() for name, x in arrays.items()}
    cotangent = given.pop("cotangent").detach()
    out, *state = forward(**given)
    out.backward(cotangent)
    side = {"out": rec.numbers(out), **dict(zip(("state",), map(rec.numbers, state), strict=False))}
    return side | {"gradients": {name: rec.numbers(x.grad) for name, x in given.items()}}


def scan(case: kernels.Scan) -> Side:
    """Their selective scan."""

    def forward(u, delta, A, B, C, D=None, z=None, bias=None):
        u, delta = u.mT, delta.mT
        z = None if z is None else z.mT
        B, C = (x.permute(0, 2, 3, 1) for x in (B, C))
        if case.groups == 1:
            B, C = B[:, 0], C[:, 0]
        softplus = "softplus" in case.options
        out, state = code.scan.selective_scan_ref(u, delta, A, B, C, D, z, bias, softplus, True)
        return out.mT, state.mT

    return _with_gradients(forward, kernels.scan_arrays(case))


def ssd(reference: str, case: kernels.Ssd) -> Side:
    """Their state-space duality in one of its forms."""
    run = functools.partial(REFERENCES[reference], case)
    return _with_gradients(run, kernels.ssd_arrays(case))


def _as_scan(case: kernels.Ssd, x, dt, A, B, C, D=None, z=None, bias=None) -> tuple[Tensor, ...]:
    softplus = "softplus" in case.options
    return (code.ssd.ssd_selective_scan(x, dt, A, B, C, D, z, bias, softplus),)


def _in_chunks(case: kernels.Ssd, x, dt, A, B, C, D=None, z=None, bias=None) -> tuple[Tensor, ...]:
    options = (case.chunk, D, z, bias, "softplus" in case.options)
    return (code.ssd.ssd_chunk_scan_combined_ref(x, dt, A, B, C, *options),)


def _minimal(case: kernels.Ssd, x, dt, A, B, C) -> tuple[Tensor, ...]:
    B, C = (q.repeat_interleave(case.heads // case.groups, 2) for q in (B, C))
    given = (x * dt[..., None], A * dt, B, C)
    out, state = code.minimal.ssd_minimal_discrete(*given, case.chunk)
    return out, state.permute(0, 3, 1, 2)


REFERENCES = {"scan": _as_scan, "chunks": _in_chunks, "minimal": _minimal}


def step(channels: int, states: int, groups: int, heads: bool) -> Side:
    """Their one row of either recurrence."""
    arrays = kernels.step_arrays(channels, states, groups, heads)
    given = {name: rec.tensor(x) for name, x in arrays.items()}
    state = given["state"].movedim(1, -1).clone()
    names = ("dt", "A", "D", "bias")
    dt, A, D, bias = (given[name] for name in names)
    B, C = given["B"], given["C"]
    if heads:  # one number for all channels of a head
        dt, D, bias = (q[..., None].expand(*q.shape, kernels.HEAD) for q in (dt, D, bias))
        A = A[:, None, None].expand(-1, kernels.HEAD, states)
    else:
        B, C = B[:, 0], C[:, 0]
    update = code.step.selective_state_update_ref
    out = update(state, given["x"], dt, A, B, C, D, given["z"], bias, dt_softplus=True)
    return {"out": rec.numbers(out), "state": rec.numbers(state.movedim(-1, 1))}


def convolution(length: int, channels: int, width: int) -> Side:
    """The causal convolution, by its definition."""
    arrays = kernels.convolution_arrays(length, channels, width)
    x, weight, bias = (rec.tensor(one) for one in arrays.values())
    padded = F.pad(x.mT, (width - 1, 0))
    return {"out": rec.numbers(F.conv1d(padded, weight.mT[:, None], bias, groups=channels).mT)}
