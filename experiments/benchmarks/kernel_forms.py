"""The forms of each kernel that `experiments.benchmarks.kernels` times, their inputs and work.

Work is counted by formula, exponentials as nothing, for each row of a sequence; backward counts as
twice forward. Scans, in whatever order, count as the recurrence:

    SSD           5·H·P·N + 3·H·P             decay, two products of the input, read-out; dt·x, D·x
    SSD, chunked  2·Q·N + H·(2·Q·P + 4·N·P)   its matrix products alone, Q rows of a chunk
    Mamba-1       6·D·N + 3·D
    S4D           14·D·N + 2·D                complex: decay 6, input 4, read-out 4
    S4            22·D·N + 2·D                beside them the product off the diagonal: 4 and 4
    S5            8·N + 8·N·D + 2·D           complex decay and sum; products with B and C

so the share of the peak says how well a form uses the machine, not how much work it saves.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.benchmarks import plain_forms
from mbrl_jax import ssm

FORWARD, BOTH = "forward", "forward+backward"
OURS, ASSOCIATIVE, SCAN, SCAN_MINOR, FOURIER = (
    "ours",
    "associative_scan",
    "lax.scan",
    "lax.scan, long axes minor",
    "Cauchy sums, Fourier",
)
TORCH_LOOP = "torch, loop"
_CHUNK = 32  # rows of a chunk of `ssm.ssd`


class Shape(NamedTuple):
    """Sizes by letter, B and T among them; "D" of SSD is H·P."""

    kernel: str
    batch: int
    length: int
    sizes: tuple[tuple[str, int], ...]

    def __str__(self):
        return " ".join(f"{a}{n}" for a, n in (("B", self.batch), ("T", self.length), *self.sizes))


FORMS: dict[str, dict[str, Callable]] = {
    "ssd": {
        OURS: ssm.ssd,
        "ours, chunked": functools.partial(ssm.ssd, method="chunked"),
        "ours, recurrent": functools.partial(ssm.ssd, method="recurrent"),
        ASSOCIATIVE: plain_forms.ssd_associative,
        "associative_scan, scalar decay": plain_forms.ssd_associative_scalar,
        SCAN: plain_forms.ssd_scan,
        SCAN_MINOR: plain_forms.ssd_scan_nhp,
    },
    "selective_scan": {
        OURS: ssm.selective_scan,
        "ours, associative": functools.partial(ssm.selective_scan, method="associative"),
        ASSOCIATIVE: plain_forms.selective_associative,
        SCAN: plain_forms.selective_scan,
        SCAN_MINOR: plain_forms.selective_scan_nd,
    },
    "s4d": {
        OURS: ssm.s4d,
        "ours, chunked": functools.partial(ssm.s4d, method="chunked"),
        "ours, recurrent": functools.partial(ssm.s4d, method="recurrent"),
        ASSOCIATIVE: plain_forms.s4d_associative,
        SCAN: plain_forms.s4d_scan,
    },
    "dplr": {
        OURS: ssm.dplr,
        "ours, recurrent": functools.partial(ssm.dplr, method="recurrent"),
        FOURIER: plain_forms.dplr_fourier,
        SCAN: plain_forms.dplr_scan,
    },
    "s5": {
        OURS: ssm.s5,
        "ours, associative": functools.partial(ssm.s5, method="associative"),
        "ours, chunked": functools.partial(ssm.s5, method="chunked"),
        ASSOCIATIVE: plain_forms.s5_associative,
        SCAN: plain_forms.s5_scan,
    },
}
# Names of `kernels_torch`, looked up only where torch is there.
TORCH_FORMS = {
    "ssd": {TORCH_LOOP: "ssd_loop", "torch, published listing": "ssd_chunked"},
    "selective_scan": {TORCH_LOOP: "selective_loop"},
    "s4d": {"torch, Fourier": "s4d_fourier"},
    "dplr": {},
    "s5": {TORCH_LOOP: "s5_loop"},
}


def inputs(shape: Shape) -> tuple[tuple, jax.Array]:
    """Arguments in the order of all forms, and the cotangent of y."""
    rng = np.random.default_rng(0)
    n = dict(shape.sizes)
    rows = (shape.batch, shape.length)

    def normal(*size):
        return jnp.asarray(rng.normal(size=size), jnp.float32)

    def complex_normal(*size):
        return jax.lax.complex(normal(*size), normal(*size))

    def step(*size):
        return jnp.exp(jnp.asarray(rng.uniform(np.log(1e-3), np.log(0.1), size), jnp.float32))

    if shape.kernel == "ssd":
        x = normal(*rows, n["H"], n["P"])
        B, C = (normal(*rows, 1, n["N"]) for _ in range(2))
        return (x, step(*rows, n["H"]), -jnp.exp(normal(n["H"])), B, C, normal(n["H"])), x
    u = normal(*rows, n["D"])
    if shape.kernel == "selective_scan":
        B, C = (normal(*rows, n["N"]) for _ in range(2))
        return (u, step(*u.shape), -jnp.exp(normal(n["D"], n["N"])), B, C, normal(n["D"])), u
    system, steps, into = {
        "s4d": ((n["D"], n["N"]), n["D"], (n["D"], n["N"])),
        "dplr": ((n["D"], n["N"]), n["D"], (n["D"], n["N"])),
        "s5": ((n["N"],), n["N"], (n["N"], n["D"])),
    }[shape.kernel]
    A = jax.lax.complex(-jnp.exp(normal(*system)), 3 * normal(*system))
    B, C = complex_normal(*into), complex_normal(n["D"], n["N"])
    more = (complex_normal(*system),) if shape.kernel == "dplr" else ()
    return (u, step(steps), A, *more, B, C, normal(n["D"])), u


def work(shape: Shape, form: str, direction: str) -> float:
    """Floating-point operations, by the formulas above."""
    n = dict(shape.sizes)
    if shape.kernel == "ssd":
        size = min(_CHUNK, shape.length)
        row = n["H"] * n["P"] * (5 * n["N"] + 3)
        if form in (OURS, "ours, chunked"):
            row = 2 * size * n["N"] + n["H"] * (2 * size * n["P"] + 4 * n["N"] * n["P"])
    elif shape.kernel == "selective_scan":
        row = n["D"] * (6 * n["N"] + 3)
    elif shape.kernel == "s4d":
        row = n["D"] * (14 * n["N"] + 2)
    elif shape.kernel == "dplr":
        row = n["D"] * (22 * n["N"] + 2)
    else:
        row = 8 * n["N"] + 8 * n["N"] * n["D"] + 2 * n["D"]
    return float(shape.batch * shape.length * row * (3 if direction == BOTH else 1))


def with_gradients(function: Callable) -> Callable:
    """(arguments, cotangent of y) -> y and the gradients of all arguments."""

    def both(args, y_bar):
        y, backward = jax.vjp(function, *args)
        return y, backward(y_bar)

    return both


def every_form(kernel: str) -> tuple[str, ...]:
    """All forms of a kernel, those in torch last."""
    return (*FORMS[kernel], *TORCH_FORMS[kernel])
