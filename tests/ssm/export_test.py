"""Every public kernel lowers for CUDA and TPU, with its gradient, without such a device.

The methods are those that "auto" stands for there; the methods of CPUs are lowered too.
"""

import functools
import importlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax import ssm
from mbrl_jax.ssm import low_rank
from tests.ssm import cases, conv_test, diagonal_test, low_rank_test

PLATFORMS = ("cuda", "tpu")
# The only custom call: kernels in Triton, which are the compiler's own and versioned with it.
TRITON = jax.export.DisabledSafetyCheck.custom_call("__gpu$xla.gpu.triton")
LENGTH, CHUNK = 21, 8
MODULES = {
    name: importlib.import_module(f"mbrl_jax.ssm.{module}")
    for name, module in {
        "ssd": "ssd",
        "selective_scan": "selective_scan",
        "s4d": "diagonal_s4d",
        "s5": "diagonal_s5",
    }.items()
}
STATE_AT = {
    "ssd": ssm.ssd_state_at,
    "selective_scan": ssm.scan_state_at,
    "s4d": ssm.s4d_state_at,
    "s5": ssm.s5_state_at,
    "dplr": ssm.dplr_state_at,
}
SHARED = {
    "ssd": "AD",
    "selective_scan": "AD",
    "s4d": ("dt", *"ABCD"),
    "s5": ("dt", *"ABCD"),
    "dplr": low_rank_test.SYSTEM,
}


def make_case(kernel):
    if kernel in ("s4d", "s5"):
        return diagonal_test.make_case(kernel, 0, LENGTH)
    if kernel == "dplr":
        return low_rank_test.make_case(0, LENGTH)
    return getattr(cases, kernel)(0, LENGTH)


def one_stream(kernel):
    """The arguments of `*_stream`."""
    return {n: v if n in SHARED[kernel] else v[0] for n, v in make_case(kernel).items()}


def square_sum(tree):
    """A number that every inexact leaf has a part in."""
    leaves = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
    return sum(jnp.square(jnp.abs(leaf)).sum() for leaf in leaves)


def assert_lowers(function, arguments, platforms=PLATFORMS):
    """Export `function(**arguments)` and the gradient by its inexact arguments."""
    inexact = {
        n: v
        for n, v in arguments.items()
        if all(jnp.issubdtype(jnp.result_type(x), jnp.inexact) for x in jax.tree.leaves(v))
    }

    def value(arguments):
        return function(**arguments)

    def gradient(arguments, inexact):
        return jax.grad(lambda some: square_sum(function(**(arguments | some))))(inexact)

    for program, args in ((value, (arguments,)), (gradient, (arguments, inexact))):
        exporter = jax.export.export(
            jax.jit(program), platforms=platforms, disabled_checks=[TRITON]
        )
        assert exporter(*args).platforms == platforms


def batched(kernel, method):
    options = {"return_final_state": True, "chunk_size": CHUNK, "method": method}
    case = cases.ssd(0, LENGTH, heads=4, groups=2) if kernel == "ssd" else make_case(kernel)
    return functools.partial(getattr(ssm, kernel), **options), case


def streamed(kernel, method):
    """One stream, and the state rebuilt after a traced row."""
    stream = getattr(ssm, f"{kernel}_stream")

    def function(t, **arguments):
        y, final, entries = stream(**arguments, chunk_size=CHUNK, method=method)
        return y, final, entries, STATE_AT[kernel](entries, t)

    return function, one_stream(kernel) | {"t": np.int32(LENGTH // 2)}


def stepped(kernel):
    arguments = one_stream(kernel)
    del arguments["reset"]
    state = arguments.pop("initial_state")
    if kernel in ("s4d", "s5", "dplr"):
        state = ssm.ComplexPair(state.real, state.imag)
    rows = {n: v if n in SHARED[kernel] else v[0] for n, v in arguments.items()}
    return getattr(ssm, f"{kernel}_step"), rows | {"state": state}


def convolved():
    """One stream and the inputs kept after a traced row."""

    def function(t, **arguments):
        y, entries = ssm.causal_conv_stream(**arguments)
        return y, entries, ssm.conv_history_at(entries, t)

    case = conv_test.make_case(0, LENGTH, 4)
    case = {n: v if n in ("weight", "bias") else v[0] for n, v in case.items()}
    return function, case | {"t": np.int32(LENGTH // 2)}


def convolved_step():
    case = convolved()[1]
    del case["reset"], case["t"]
    return ssm.causal_conv_step, case | {"x": case["x"][0]}


def discretized(rule):
    case = make_case("s4d")
    return functools.partial(ssm.discretize, rule=rule), {"A": case["A"].T, "dt": case["dt"]}


def taps():
    case = {name: low_rank_test.make_case(0, LENGTH)[name] for name in ("dt", *"APBC")}
    return functools.partial(ssm.dplr_kernel, length=LENGTH), case


# What is lowered, by the public names it goes through.
PROGRAMS = {
    ("causal_conv_stream", "conv_history_at"): convolved,
    ("causal_conv_step",): convolved_step,
    ("dplr_kernel",): taps,
    ("discretize", "zoh"): functools.partial(discretized, "zoh"),
    ("discretize", "bilinear"): functools.partial(discretized, "bilinear"),
}
for _name, _module in {**MODULES, "dplr": low_rank}.items():
    for _method in _module.METHODS[1:]:
        PROGRAMS[_name, _method] = functools.partial(batched, _name, _method)
    for _method in dict.fromkeys(_module.auto_method(backend) for backend in ("gpu", "tpu")):
        names = f"{_name}_stream", STATE_AT[_name].__name__, _method
        PROGRAMS[names] = functools.partial(streamed, _name, _method)
    PROGRAMS[(f"{_name}_step",)] = functools.partial(stepped, _name)


@pytest.mark.parametrize("program", PROGRAMS, ids=" ".join)
def test_lowers_for_accelerators(program):
    # A kernel in Triton is for GPUs alone.
    platforms = ("cuda",) if "fused" in program else PLATFORMS
    assert_lowers(*PROGRAMS[program](), platforms)


def test_every_public_function_is_lowered():
    functions = {n for n in ssm.__all__ if not isinstance(getattr(ssm, n), type)}
    assert functions <= {name for names in PROGRAMS for name in names}


def test_accelerators_get_a_method_of_their_own():
    for module in MODULES.values():
        chosen = {backend: module.auto_method(backend) for backend in ("cpu", "gpu", "tpu")}
        assert chosen["cpu"] not in (chosen["gpu"], chosen["tpu"])
        assert set(chosen.values()) <= set(module.METHODS[1:])
