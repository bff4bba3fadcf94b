"""Every form of a convolution at the layers of Image64, and of small nets with weights per seed.

    python -m experiments.benchmarks.convolutions

writes `convolutions.csv`: CPU-seconds forward and forward+backward (gradients of input and kernel)
of each method of `mbrl_jax.networks.convolution`, of what "auto" picks there, and of PyTorch on one
thread where it is installed. Work is 2·k²·C·Co a pixel of the smaller map, thrice that with the
backward pass. Several seeds are mapped over, with kernels of their own.
"""

import functools
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax

from experiments.benchmarks import timing
from mbrl_jax.networks import convolution
from mbrl_jax.train.runtime import configure_runtime
from mbrl_jax.types import Array

COLUMNS = (
    *("layer", "frames", "seeds", "method", "auto", "direction", "cpu_s", "wall_s", "gflop"),
    *("share_of_peak", "over_lax", "temp_mb"),
)
FORWARD, BOTH = "forward", "forward+backward"
LEAST_SECONDS = 0.03  # of a sample


class Layer(NamedTuple):
    """A convolution from `side`² pixels of `channels[0]`, or its transpose back to them."""

    side: int
    kernel: int
    stride: int
    channels: tuple[int, int]
    transposed: bool
    frames: int
    seeds: int = 1

    def __str__(self):
        before, after = self.channels[::-1] if self.transposed else self.channels
        name = "transposed " if self.transposed else ""
        return f"{name}{before}→{after}, {self.side}², kernel {self.kernel}, stride {self.stride}"

    @property
    def coarse(self) -> int:
        """Side of the smaller map."""
        return (self.side - 1) // self.stride + 1

    @property
    def work(self) -> int:
        """Floating-point operations forward, of all seeds."""
        before, after = self.channels
        pixels = self.seeds * self.frames * self.coarse**2
        return 2 * self.kernel**2 * before * after * pixels


def layers(quick: bool = False) -> list[Layer]:
    """What is measured."""
    if quick:
        return [Layer(6, 3, 2, (2, 3), transposed, 2, 2) for transposed in (False, True)]
    widths, made = (3, 16, 32, 48, 64, 64), []
    for i, pair in enumerate(zip(widths, widths[1:], strict=False)):
        side, stride = (64, 1) if i == 0 else (128 >> i, 2)
        made += [Layer(side, 5, stride, pair, transposed, 64) for transposed in (False, True)]
    for seeds in (1, 4):
        for side, stride, pair in ((64, 1, (3, 4)), (64, 2, (4, 8)), (32, 2, (8, 12))):
            made += [Layer(side, 5, stride, pair, way, 16, seeds) for way in (False, True)]
        for pair in ((4, 16), (16, 32)):
            made += [Layer(10, 3, 1, pair, way, 256, seeds) for way in (False, True)]
    return made


def _inputs(layer: Layer) -> tuple[Array, Array, Array]:
    """The layer's input and kernel, and a cotangent of its result; seeds are a leading axis."""
    keys = jax.random.split(jax.random.key(0), 3)
    before, after = layer.channels
    fine = (layer.seeds, layer.frames, layer.side, layer.side, before)
    coarse = (layer.seeds, layer.frames, layer.coarse, layer.coarse, after)
    shapes = (coarse, fine) if layer.transposed else (fine, coarse)
    pair = layer.channels[::-1] if layer.transposed else layer.channels
    x, y_bar = (jax.random.normal(key, s) for key, s in zip(keys[:2], shapes, strict=True))
    kernel = jax.random.normal(keys[2], (layer.seeds, layer.kernel, layer.kernel, *pair))
    return x, kernel, y_bar


def _function(layer: Layer, method: str) -> Callable[[Array, Array], Array]:
    """(x [N, H, W, C], kernel [k, k, C, Co]) of one seed."""
    if not layer.transposed:
        return functools.partial(convolution.convolution, stride=layer.stride, method=method)
    # What the stride leaves open of the result's size.
    extra = layer.side - 1 - (layer.coarse - 1) * layer.stride
    options = {"stride": layer.stride, "output_padding": extra, "method": method}
    return functools.partial(convolution.transposed_convolution, **options)


def _programs(layer: Layer, method: str) -> dict[str, timing.Program]:
    function = _function(layer, method)
    x, kernel, y_bar = _inputs(layer)
    if layer.seeds == 1:
        x, kernel, y_bar, run = x[0], kernel[0], y_bar[0], function
    else:
        run = jax.vmap(function)

    def both(x, kernel, y_bar):
        y, pull = jax.vjp(run, x, kernel)
        return y, pull(y_bar)

    return {
        FORWARD: timing.compile_program(run, x, kernel),
        BOTH: timing.compile_program(both, x, kernel, y_bar),
    }


def _torch_calls(layer: Layer) -> dict[str, Callable[[], Any]]:
    """PyTorch in its own layout, channels first; none for several seeds or without PyTorch."""
    if layer.seeds > 1 or not timing.on_cpu() or not importlib.util.find_spec("torch"):
        return {}
    import numpy as np
    import torch

    torch.set_num_threads(1)
    x, kernel, y_bar = (torch.tensor(np.asarray(a[0])) for a in _inputs(layer))
    x, y_bar = (a.movedim(-1, 1).contiguous().requires_grad_() for a in (x, y_bar))
    options = {"stride": layer.stride, "padding": layer.kernel // 2}
    if layer.transposed:
        options["output_padding"] = layer.side - 1 - (layer.coarse - 1) * layer.stride
        run, order = torch.nn.functional.conv_transpose2d, (2, 3, 0, 1)
    else:
        run, order = torch.nn.functional.conv2d, (3, 2, 0, 1)
    kernel = kernel.permute(order).contiguous().requires_grad_()

    def forward():
        with torch.no_grad():
            return run(x, kernel, **options)

    def both():
        y = run(x, kernel, **options)
        return torch.autograd.grad(y, (x, kernel), y_bar.detach())

    return {FORWARD: forward, BOTH: both}


def measure(layer: Layer, rounds: int, product: timing.Program) -> list[dict[str, Any]]:
    """A row for each method and direction."""
    methods = [method for method in convolution.METHODS if method != "auto"]
    programs = {(m, d): p for m in methods for d, p in _programs(layer, m).items()}
    calls = {key: program.run for key, program in programs.items()}
    calls |= {("torch", d): call for d, call in _torch_calls(layer).items()}
    least = 0.0 if rounds == 1 else LEAST_SECONDS
    spent = timing.compare_each(calls | {"peak": product.run}, rounds, least)
    peak = product.flops / spent.pop("peak").compared
    chosen = convolution.auto_method(jax.default_backend(), layer.channels)
    rows = []
    for (method, direction), seconds in spent.items():
        flops = layer.work * (3 if direction == BOTH else 1)
        program = programs.get((method, direction))
        rows.append(
            {
                "layer": str(layer),
                "frames": layer.frames,
                "seeds": layer.seeds,
                "method": method,
                "auto": method == chosen,
                "direction": direction,
                "cpu_s": seconds.cpu,
                "wall_s": seconds.wall,
                "gflop": flops / 1e9,
                "share_of_peak": flops / seconds.compared / peak,
                "over_lax": seconds.compared / spent["lax", direction].compared,
                "temp_mb": program.temp_bytes / 1e6 if program else "",
            }
        )
    return rows


def run(quick: bool, out: Path) -> list[dict[str, Any]]:
    """Write `convolutions.csv` into `out` and return the rows; `quick`: tiny sizes."""
    product, rows = timing.product_program(64 if quick else 0), []
    for layer in layers(quick):
        new = measure(layer, 1 if quick else 5, product)
        rows += new
        for row in new:
            print("  ".join(f"{timing.shown(row[c]):>12}" for c in COLUMNS), flush=True)
    out.mkdir(parents=True, exist_ok=True)
    timing.write_csv(out / "convolutions.csv", COLUMNS, rows)
    return rows


if __name__ == "__main__":
    configure_runtime()
    run(quick=False, out=Path(__file__).parents[1] / "results" / "benchmarks")
