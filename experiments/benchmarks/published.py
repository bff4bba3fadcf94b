"""Whole updates of published-size Drama: this project against plain eager PyTorch on one thread.

    taskset -c 0 python -m experiments.benchmarks.published

writes `published.csv`. Both sides start from the same weights and see the same windows and starts.
On a CPU give both sides one core: two threads of XLA cost more CPU-seconds for the same work, how
many depends on what the cores share. Every update also runs in parts, each a program of its own, so
that what bounds it can be named.

Work is counted by formula and not by a compiler: 2·k²·C_in·C_out·H·W for a convolution (H·W of the
smaller map where it has stride 2), 2·in·out for a row of a linear layer; a backward pass counts
twice the forward one, less the gradient of the pixels. Elementwise work and the scan over states
count nothing.
"""

from pathlib import Path
from typing import Any

from experiments.benchmarks import published_jax, timing
from experiments.benchmarks.published_jax import Sizes
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.cores import mamba2
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.train.runtime import configure_runtime
from mbrl_jax.world_models import drama

COLUMNS = (
    *("program", "side", "cpu_s", "wall_s", "gflop", "gflop_per_s", "share_of_peak"),
    *("over_torch", "temp_mb", "compile_cpu_s"),
)


def small_sizes() -> Sizes:
    """Every part of the published model, small enough for tests."""
    return Sizes(
        drama.Config(
            core=mamba2.Config(width=16, state_size=4, head_size=8),
            encoder=encoders.Image64(depth=2),
            decoder=decoders.Image64(depth=2),
            groups=4,
            classes=4,
            head_width=8,
            num_bins=9,
        ),
        actor_critic.Config(horizon=3, actor_width=8, critic_width=8, layers=2, num_bins=9),
        windows=2,
        rows=5,
        starts=4,
        context=2,
        num_actions=3,
    )


# ------------------------------------------------------------------------------------------- work


def _mlp(inputs: int, outputs: int, width: int, layers: int) -> int:
    sizes = [inputs, *[width] * layers, outputs]
    return sum(2 * before * after for before, after in zip(sizes, sizes[1:], strict=False))


def _convolutions(depth: int, multipliers: tuple[int, ...]) -> tuple[int, int]:
    """(all layers, the one next to the pixels) of a frame; the decoder mirrors the encoder."""
    widths = [3] + [depth * m for m in multipliers]
    areas = [(64 >> i) ** 2 for i in range(len(multipliers))]
    layers = [50 * a * b * area for a, b, area in zip(widths, widths[1:], areas, strict=False)]
    return sum(layers), layers[0]


def forward_work(sizes: Sizes) -> dict[str, int]:
    """Floating-point operations of one row, forward, of each net."""
    model, behaviour, width = sizes.model, sizes.behaviour, sizes.model.core.width
    core = model.core
    encoder, pixels = _convolutions(model.encoder.depth, model.encoder.multipliers)
    decoder, _ = _convolutions(model.decoder.depth, model.decoder.multipliers)
    mixer = 2 * width * (2 * core.inner + 2 * core.state_size + core.heads) + 2 * core.inner * width
    encoded = 16 * model.encoder.depth * model.encoder.multipliers[-1]
    decoded = 16 * model.decoder.depth * model.decoder.multipliers[-1]
    features = sizes.latent + width
    predictors = _mlp(width, model.num_bins, model.head_width, model.head_layers)
    predictors += _mlp(width, 1, model.head_width, model.head_layers)
    return {
        "encoder": encoder,
        "pixels": pixels,
        "posterior": 2 * encoded * sizes.latent,
        "core": 2 * (sizes.latent + sizes.num_actions) * width + core.layers * mixer,
        "prior": _mlp(width, sizes.latent, model.head_width, model.prior_layers),
        "predictors": predictors,
        "decoder": 2 * sizes.latent * decoded + decoder,
        "actor": _mlp(features, sizes.num_actions, behaviour.actor_width, behaviour.layers),
        "critic": _mlp(features, behaviour.num_bins, behaviour.critic_width, behaviour.layers),
    }


def work(sizes: Sizes) -> dict[str, int]:
    """Floating-point operations of the updates and their parts."""
    row = forward_work(sizes)
    frames, rows = sizes.windows * sizes.rows, sizes.windows * (sizes.rows - 1)
    imagined = sizes.starts * sizes.behaviour.horizon
    reached = imagined + sizes.starts
    parts = {
        "world model: encoder": frames * (3 * row["encoder"] - row["pixels"]),
        "world model: core": 3 * rows * row["core"],
        "world model: heads and losses": 3
        * (frames * row["posterior"] + rows * (row["prior"] + row["predictors"])),
        "world model: decoder": 3 * frames * row["decoder"],
        "world model: optimiser": 0,
        "behaviour: imagination": imagined * (row["core"] + row["prior"] + row["actor"])
        + reached * row["predictors"],
        "behaviour: actor": 3 * imagined * row["actor"] - 2 * imagined * _first(sizes, "actor"),
        "behaviour: critic": 4 * reached * row["critic"] - 2 * reached * _first(sizes, "critic"),
        "behaviour: optimiser": 0,
    }
    for update in ("world model", "behaviour"):
        parts[update] = sum(flops for name, flops in parts.items() if name.startswith(update + ":"))
    contexts = sizes.starts * sizes.context * (row["encoder"] + row["posterior"] + row["core"])
    parts["behaviour, contexts encoded"] = parts["behaviour"] + contexts
    return parts


def _first(sizes: Sizes, net: str) -> int:
    """Half of the first layer's work: imagined features get no gradient."""
    features = sizes.latent + sizes.model.core.width
    return features * getattr(sizes.behaviour, f"{net}_width")


# ------------------------------------------------------------------------------------------ timing


def _row(name: str, side: str, spent: timing.Time, flops: float, peak: float) -> dict[str, Any]:
    rate = timing.gflops(flops, spent.compared)
    return {
        "program": name,
        "side": side,
        "cpu_s": spent.cpu,
        "wall_s": spent.wall,
        "gflop": flops / 1e9,
        "gflop_per_s": rate,
        "share_of_peak": rate / peak,
    }


def measure(sizes: Sizes, rounds: int = 3) -> list[dict[str, Any]]:
    """A row for each program and side; without PyTorch its rows are missing."""
    problem = published_jax.make_problem(sizes)
    whole = published_jax.updates(problem)
    parts = {
        f"{update}: {name}": part
        for update, named in (
            ("world model", published_jax.world_model_parts(problem)),
            ("behaviour", published_jax.behaviour_parts(problem)),
        )
        for name, part in named.items()
    }
    try:
        from experiments.benchmarks.pytorch import published_torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        torch_calls = ({}, {})
    else:
        torch_calls = published_torch.make_calls(problem)

    rows, flops = [], work(sizes)
    product = timing.product_program()
    for functions, others in zip((whole, parts), torch_calls, strict=True):
        programs = {n: timing.compile_program(f, *args) for n, (f, args) in functions.items()}
        calls = {(n, "jax"): program.run for n, program in programs.items()}
        calls |= {(n, "torch"): call for n, call in others.items()} | {"peak": product.run}
        spent = timing.compare(calls, rounds)
        peak = timing.gflops(product.flops, spent.pop("peak").compared)
        for (name, side), time in sorted(spent.items()):
            row = _row(name, side, time, flops[name], peak)
            if side == "jax":
                program = programs[name]
                row |= {"temp_mb": program.temp_bytes / 1e6, "compile_cpu_s": program.compile_cpu}
                if (name, "torch") in spent:
                    row["over_torch"] = time.compared / spent[name, "torch"].compared
            rows.append(row)
    return rows


def run(quick: bool, out: Path) -> list[dict[str, Any]]:
    """Measure, write `out / "published.csv"`, and return its rows; `quick`: tiny sizes."""
    rows = measure(small_sizes() if quick else Sizes(), rounds=1 if quick else 3)
    out.mkdir(parents=True, exist_ok=True)
    timing.write_csv(out / "published.csv", COLUMNS, rows)
    for row in rows:
        print("  ".join(f"{timing.shown(row.get(c, '')):>12}" for c in COLUMNS), flush=True)
    return rows


if __name__ == "__main__":
    configure_runtime()
    run(quick=False, out=Path(__file__).parents[1] / "results" / "benchmarks")
