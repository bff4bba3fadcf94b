"""Our side of the kernels: `mbrl_jax.ssm` with the options that the reference recurrences have.

Arrays are in our layout: `b` sequences (two) of `T` rows, `D` channels or `H` heads of `P`, `N`
states, `G` groups of B and C. What a reference does around its recurrence and `ssm` leaves to its
user (softplus and bias of step sizes, gates, groups of the selective scan) is written out here.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from experiments.studies.authors.problem import Arrays
from mbrl_jax import ssm

SEQUENCES = 2


class Scan(NamedTuple):
    """A selective scan (Mamba)."""

    length: int
    options: str = "D z bias softplus"  # of these, those that are asked for
    groups: int = 1
    channels: int = 8
    states: int = 8
    decay: float = 0.5  # of the slowest-forgetting to no rate at all

    @property
    def name(self) -> str:
        """In a table."""
        groups = f" groups={self.groups}" if self.groups > 1 else ""
        return f"T={self.length} N={self.states} {self.options or 'plain'}{groups}"


class Ssd(NamedTuple):
    """A state-space duality (Mamba-2)."""

    length: int
    heads: int = 4
    head_size: int = 8
    groups: int = 2
    states: int = 16
    chunk: int = 32
    options: str = "D z bias softplus"
    decay: float = 0.1
    shift: float = -4.0  # of step sizes before softplus

    @property
    def name(self) -> str:
        """In a table."""
        sizes = f"T={self.length} H={self.heads} P={self.head_size} G={self.groups}"
        return f"{sizes} N={self.states} Q={self.chunk} {self.options or 'plain'}"


SCANS = (
    *(Scan(length) for length in (1, 7, 16, 64, 256)),
    *(Scan(64, options) for options in ("", "D bias softplus", "z softplus")),
    *(Scan(16, groups=2), Scan(128, "", groups=2)),
    Scan(128, channels=256, states=16, decay=16.0),
)
SSDS = (
    *(Ssd(8, groups=1, chunk=8), Ssd(64, chunk=16), Ssd(64, chunk=16, options="")),
    *(Ssd(128, 8, 16, 8, 32, 64), Ssd(96, 4, 4, 4, 8, 32), Ssd(256, groups=1, chunk=128)),
)
FAST = Ssd(128, 16, 64, 1, 16, 32, "D bias softplus", 16.0, -3.0)  # rates as Mamba-2 begins
UNEVEN = tuple(Ssd(length) for length in (1, 33, 127))  # no multiples of the chunk
SCAN_METHODS = ("recurrent", "associative")
SSD_METHODS = ("recurrent", "chunked", "chunked_sequential")


def scan_arrays(case: Scan) -> Arrays:
    """What goes in, and `cotangent`, the gradient of what comes out."""
    rng = np.random.default_rng(case.length)
    rows, group = (SEQUENCES, case.length), (case.groups, case.states)
    found = {
        "u": rng.normal(size=(*rows, case.channels)),
        "delta": 0.5 * rng.random((*rows, case.channels)),
        "A": -case.decay * rng.random((case.channels, case.states)),
        "B": rng.normal(size=(*rows, *group)),
        "C": rng.normal(size=(*rows, *group)),
        "cotangent": rng.normal(size=(*rows, case.channels)),
    }
    if "D" in case.options:
        found["D"] = rng.normal(size=case.channels)
    if "z" in case.options:
        found["z"] = rng.normal(size=(*rows, case.channels))
    if "bias" in case.options:
        found["bias"] = 0.5 * rng.random(case.channels)
    return {name: np.float32(x) for name, x in found.items()}


def ssd_arrays(case: Ssd) -> Arrays:
    """The same of a state-space duality."""
    rng = np.random.default_rng(case.length)
    rows, group = (SEQUENCES, case.length), (case.groups, case.states)
    heads = (*rows, case.heads, case.head_size)
    found = {
        "x": rng.normal(size=heads),
        "dt": rng.normal(size=(*rows, case.heads)),
        "A": -case.decay * (rng.random(case.heads) + 0.05),
        "B": rng.normal(size=(*rows, *group)),
        "C": rng.normal(size=(*rows, *group)),
        "cotangent": rng.normal(size=heads),
    }
    if "softplus" not in case.options:
        found["dt"] = np.log1p(np.exp(found["dt"] + case.shift))
    if "bias" in case.options:
        found["bias"] = rng.random(case.heads) + case.shift
    if "D" in case.options:
        found["D"] = rng.normal(size=case.heads)
    if "z" in case.options:
        found["z"] = rng.normal(size=heads)
    return {name: np.float32(x) for name, x in found.items()}


def _with_gradients(forward: Any, arrays: Arrays) -> dict[str, Any]:
    """What comes out, the state after the last row, and gradients of what went in."""
    given = {name: jnp.asarray(x) for name, x in arrays.items() if name != "cotangent"}

    @jax.jit
    def run(given, cotangent):
        (out, state), pull = jax.vjp(forward, given)
        return out, state, pull((cotangent, jnp.zeros_like(state)))[0]

    out, state, grads = run(given, arrays["cotangent"])
    named = {name: np.asarray(grad) for name, grad in grads.items()}
    return {"out": np.asarray(out), "state": np.asarray(state), "gradients": named}


def scan(case: Scan, method: str) -> dict[str, Any]:
    """Our selective scan; groups of channels apart, as ours has one."""

    def forward(given):
        outs, states = [], []
        for g in range(case.groups):
            one = case.channels // case.groups
            mine = slice(g * one, (g + 1) * one)
            own = {n: given[n][mine] if n in given else None for n in ("D", "bias")}
            out, state = ssm.selective_scan(
                *(given[name][..., mine] for name in ("u", "delta")),
                *(given["A"][mine], given["B"][:, :, g], given["C"][:, :, g]),
                *(own["D"], given["z"][..., mine] if "z" in given else None, own["bias"]),
                "softplus" in case.options,
                return_final_state=True,
                method=method,
            )
            outs.append(out)
            states.append(state)
        return jnp.concatenate(outs, -1), jnp.concatenate(states, -1)

    return _with_gradients(forward, scan_arrays(case))


def ssd(case: Ssd, method: str) -> dict[str, Any]:
    """Our state-space duality."""

    def forward(given):
        dt = given["dt"] + given.get("bias", 0.0)
        dt = jax.nn.softplus(dt) if "softplus" in case.options else dt
        out, state = ssm.ssd(
            *(given["x"], dt, given["A"], given["B"], given["C"], given.get("D")),
            chunk_size=case.chunk,
            method=method,
            return_final_state=True,
        )
        return (out * jax.nn.silu(given["z"]) if "z" in given else out), state

    return _with_gradients(forward, ssd_arrays(case))


# -------------------------------------------------------------------------- one row, convolutions

STEPS = ((2_048, 16, 1), (2_064, 32, 1), (1_024, 64, 4))  # channels, states, groups (of heads)
HEAD = 64
CONVOLUTIONS = ((1, 8, 4), (3, 8, 4), (7, 1_056, 4), (64, 16, 2), (33, 16, 3))  # T, C, W


def step_arrays(channels: int, states: int, groups: int, heads: bool) -> Arrays:
    """One row for two streams; `heads`: of Mamba-2, with heads of 64 channels."""
    rng = np.random.default_rng(channels)
    shape = (channels // HEAD, HEAD) if heads else (channels,)
    per_step, rates = (shape[:1], shape[:1]) if heads else (shape, (channels, states))
    held = (states, *shape)
    found = {
        "state": rng.normal(size=(2, *held)),
        "x": rng.normal(size=(2, *shape)),
        "dt": rng.normal(size=(2, *per_step)),
        "bias": rng.random(per_step) - 4.0,
        "A": -rng.random(rates) - 1.0,
        "B": rng.normal(size=(2, groups, states)),
        "C": rng.normal(size=(2, groups, states)),
        "D": rng.normal(size=per_step),
        "z": rng.normal(size=(2, *shape)),
    }
    return {name: np.float32(x) for name, x in found.items()}


def step(channels: int, states: int, groups: int, heads: bool) -> dict[str, Any]:
    """Our one row of either recurrence."""
    given = step_arrays(channels, states, groups, heads)

    def row(state, x, dt, B, C):
        if heads:
            return ssm.ssd_step(state, x, dt, given["A"], B, C, given["D"])
        return ssm.selective_scan_step(state, x, dt, given["A"], B[0], C[0], given["D"])

    dt = jax.nn.softplus(given["dt"] + given["bias"])
    state, y = jax.jit(jax.vmap(row))(given["state"], given["x"], dt, given["B"], given["C"])
    return {"out": np.asarray(y * jax.nn.silu(given["z"])), "state": np.asarray(state)}


def convolution_arrays(length: int, channels: int, width: int) -> Arrays:
    """Two sequences, weights [W, C] and a bias."""
    rng = np.random.default_rng(length)
    shapes = {"x": (2, length, channels), "weight": (width, channels), "bias": (channels,)}
    return {name: np.float32(rng.normal(size=shape)) for name, shape in shapes.items()}


def convolution(length: int, channels: int, width: int) -> dict[str, Any]:
    """Our causal convolution."""
    x, weight, bias = convolution_arrays(length, channels, width).values()
    return {"out": np.asarray(jax.vmap(lambda q: ssm.causal_conv_stream(q, weight, bias)[0])(x))}
