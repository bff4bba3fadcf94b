"""Whole updates of published systems: this project against plain PyTorch on one thread.

    taskset -c 0 python -m experiments.benchmarks.published

writes `published.csv` of Drama, `published_storm.csv` of STORM and `published_dreamer.csv` of
DreamerV3 (`published_dreamer`); names behind the command leave the others out. Both sides start
from the same weights and see the same windows and starts. On a CPU give both sides one core: two
threads of XLA cost more CPU-seconds for the same work, how many depends on what the cores share.
Drama's updates also run in parts, each a program of its own, so that what bounds it can be named.

Work is counted by formula and not by a compiler: 2·k²·C_in·C_out·H·W for a convolution (H·W of the
smaller map where it has stride 2), 2·in·out for a row of a linear layer; a backward pass counts
twice the forward one, less the gradient of the pixels. Elementwise work, the scan over states and
the scores of attention count nothing.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments import storm_atari100k
from experiments.benchmarks import published_dreamer, published_jax, timing
from experiments.benchmarks.published_jax import Sizes
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.cores import mamba2, storm
from mbrl_jax.experiment.config import override
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.train.runtime import configure_runtime
from mbrl_jax.world_models import drama

COLUMNS = (
    *("program", "side", "cpu_s", "wall_s", "gflop", "gflop_per_s", "share_of_peak"),
    *("over_torch", "temp_mb", "compile_cpu_s"),
)
TABLES = {
    "drama": "published.csv",
    "storm": "published_storm.csv",
    "dreamer": "published_dreamer.csv",
}


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


def storm_sizes(small: bool = False) -> Sizes:
    """The published STORM, or every part of it, small enough for tests."""
    published = storm_atari100k.get_experiment()
    if small:
        published = override(published, published.debug)
        return Sizes(published.model, published.behaviour, 2, 6, 4, 2, 3)
    rows = published.replay.length + 1  # of the last one reward and end alone are read
    return Sizes(published.model, published.behaviour, rows=rows)


def sizes_of(system: str, small: bool = False) -> Sizes:
    """What is trained of "drama" or "storm"."""
    if system == "storm":
        return storm_sizes(small)
    return small_sizes() if small else Sizes()


# ------------------------------------------------------------------------------------------- work


def _mlp(inputs: int, outputs: int, width: int, layers: int) -> int:
    sizes = [inputs, *[width] * layers, outputs]
    return sum(2 * before * after for before, after in zip(sizes, sizes[1:], strict=False))


def _convolutions(config: encoders.Image64 | decoders.Image64) -> tuple[int, int]:
    """(all layers, the one next to the pixels) of a frame; the decoder mirrors the encoder."""
    widths = [3] + [config.depth * m for m in config.multipliers]
    taps, sides = config.layers.kernel**2, config.layers.sides(len(config.multipliers))
    layers = [
        2 * taps * before * after * side**2
        for before, after, side in zip(widths, widths[1:], sides, strict=False)
    ]
    return sum(layers), layers[0]


def _core(core: mamba2.Config | storm.Config, inputs: int) -> int:
    """Of one row."""
    width = core.width
    if isinstance(core, storm.Config):
        block = 8 * width * width + 4 * core.feed_forward * width * width
        return 2 * (inputs + width) * width + core.layers * block
    mixer = 2 * width * (2 * core.inner + 2 * core.state_size + core.heads) + 2 * core.inner * width
    return 2 * inputs * width + core.layers * mixer


def forward_work(sizes: Sizes) -> dict[str, int]:
    """Floating-point operations of one row, forward, of each net."""
    model, behaviour, width = sizes.model, sizes.behaviour, sizes.model.core.width
    encoder, pixels = _convolutions(model.encoder)
    decoder, _ = _convolutions(model.decoder)
    encoded = 16 * model.encoder.depth * model.encoder.multipliers[-1]
    decoded = 16 * model.decoder.depth * model.decoder.multipliers[-1]
    features = sizes.latent + width
    predictors = _mlp(width, model.num_bins, model.head_width, model.head_layers)
    predictors += _mlp(width, 1, model.head_width, model.head_layers)
    return {
        "encoder": encoder,
        "pixels": pixels,
        "posterior": 2 * encoded * sizes.latent,
        "core": _core(model.core, sizes.latent + sizes.num_actions),
        "prior": _mlp(width, sizes.latent, model.head_width, model.prior_layers),
        "predictors": predictors,
        "decoder": 2 * sizes.latent * decoded + decoder,
        "actor": _mlp(features, sizes.num_actions, behaviour.actor_width, behaviour.layers),
        "critic": _mlp(features, behaviour.num_bins, behaviour.critic_width, behaviour.layers),
    }


def work(sizes: Sizes) -> dict[str, int]:
    """Floating-point operations of the updates and their parts."""
    row = forward_work(sizes)
    rows = sizes.windows * (sizes.rows - 1)
    frames = rows if sizes.model.last_row == "arrival" else sizes.windows * sizes.rows
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


def _parts(problem: published_jax.Problem) -> published_jax.Parts:
    """Parts of Drama's updates; STORM's are timed as a whole alone."""
    if isinstance(problem.sizes.model.core, storm.Config):
        return {}
    halves = {
        "world model": published_jax.world_model_parts(problem),
        "behaviour": published_jax.behaviour_parts(problem),
    }
    return {f"{update}: {n}": part for update, named in halves.items() for n, part in named.items()}


def measure(sizes: Sizes, rounds: int = 3) -> list[dict[str, Any]]:
    """A row for each program and side; without PyTorch its rows are missing."""
    problem = published_jax.make_problem(sizes)
    whole, parts = published_jax.updates(problem), _parts(problem)
    torch_calls: tuple[dict, dict] = ({}, {})
    if torch := _torch_side():
        torch_calls = torch.make_calls(problem, bool(parts))
    rows, flops = [], work(sizes)
    for functions, others in zip((whole, parts), torch_calls, strict=True):
        rows += _compare(functions, others, flops, rounds)
    return rows


def measure_dreamer(sizes: published_dreamer.Sizes, rounds: int = 3) -> list[dict[str, Any]]:
    """A row for each side of DreamerV3's joint update."""
    problem, torch = published_dreamer.make_problem(sizes), _torch_side()
    functions = {"joint": published_dreamer.program(problem)}
    others = torch.dreamer_calls(problem) if torch else {}
    return _compare(functions, others, {"joint": published_dreamer.work(sizes)}, rounds)


def _torch_side() -> Any:
    """The module with PyTorch's calls, or None without PyTorch."""
    try:
        from experiments.benchmarks.pytorch import published_torch
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        return None
    return published_torch


def _compare(
    functions: published_jax.Parts, others: dict, flops: dict[str, int], rounds: int
) -> list[dict[str, Any]]:
    product, rows = timing.product_program(), []
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


def run(quick: bool, out: Path, systems: Sequence[str] = tuple(TABLES)) -> list[dict[str, Any]]:
    """Measure, write the tables into `out`, and return their rows; `quick`: tiny sizes."""
    found = []
    for system in systems:
        rounds = 1 if quick else 3
        if system == "dreamer":
            of_dreamer = published_dreamer.small_sizes() if quick else published_dreamer.Sizes()
            rows = measure_dreamer(of_dreamer, rounds)
        else:
            rows = measure(sizes_of(system, small=quick), rounds)
        out.mkdir(parents=True, exist_ok=True)
        timing.write_csv(out / TABLES[system], COLUMNS, rows)
        for row in rows:
            print("  ".join(f"{timing.shown(row.get(c, '')):>12}" for c in COLUMNS), flush=True)
        found += rows
    return found


if __name__ == "__main__":
    configure_runtime()
    run(False, Path(__file__).parents[1] / "results" / "benchmarks", sys.argv[1:] or tuple(TABLES))
