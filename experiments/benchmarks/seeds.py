"""What a seed costs when 1, 2, 4 or 8 of them are trained in one vmapped program.

    python -m experiments.benchmarks.seeds

writes `seeds.csv` and `seeds.png`. All seeds share one device here, so that nothing but the vmap is
measured; runs give each core seeds of its own (`mbrl_jax.train.runtime`). A sample covers the same
number of updates of one seed for every number of seeds. The grid models are those of
`experiments.drama_minatar` with half of its groups: with convolutions ("grid model"), and as it
stands there ("dense").
"""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from experiments import drama_catch, drama_minatar
from experiments.benchmarks import timing
from mbrl_jax.cores import mamba2
from mbrl_jax.envs.spec import action_size
from mbrl_jax.experiment.experiment import Experiment, build, for_debug
from mbrl_jax.loops import seeds
from mbrl_jax.loops.phases import Phase, cadence, static
from mbrl_jax.networks import decoders, encoders
from mbrl_jax.train.runtime import configure_runtime
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec, Step, Timestep, Trajectory
from mbrl_jax.world_models import drama

COLUMNS = (
    "program",
    "seeds",
    "devices",
    "cpu_s",
    "wall_s",
    "over_solo",
    "bar",
    "compile_cpu_s",
)
SEEDS, SEEDS_OF_ACCELERATORS = (1, 2, 4, 8), (1, 8, 64)


class Case(NamedTuple):
    """A program that trains some seeds at once."""

    make: Callable  # (number of seeds) -> (run it once, CPU-seconds of compiling)
    bar: float  # most that a seed among eight may cost of one alone
    updates: int  # of one seed, in a sample: runs are repeated until there are so many


# ----------------------------------------------------------------------------------------- programs


def _compiled(function: Callable, num_seeds: int, *args: Any) -> tuple[Callable, float]:
    program = timing.compile_program(seeds.over_seeds(function, num_seeds), *args)
    return program.run, program.compile_cpu


def _core(config: mamba2.Config, batch: int, length: int, num_seeds: int):
    """Forward and backward through the core alone; gradients of parameters and inputs."""
    in_size = config.width
    core = config.make(in_size)
    keys = seeds.seed_keys(0, num_seeds)
    params = jax.jit(jax.vmap(core.init))(keys)
    xs = jax.random.normal(jax.random.key(1), (num_seeds, batch, length, in_size))
    is_first = jnp.zeros((num_seeds, batch, length), bool).at[..., length // 2].set(True)

    def loss(params, xs, is_first):
        unroll = functools.partial(core.unroll, params, None)
        return jnp.square(jax.vmap(unroll)(xs, is_first)[1]).mean()

    return _compiled(jax.value_and_grad(loss, argnums=(0, 1)), num_seeds, params, xs, is_first)


def agent_program(experiment: Experiment, num_seeds: int):
    """One iteration of the training loop with one update of model and behaviour, compiled.

    Returns (program, CPU-seconds of compiling, state after enough rows to learn from, those rows).
    """
    entry = build(experiment).entry
    chunk = functools.partial(entry.chunk, static(Phase(1)))
    mapped = seeds.over_seeds(chunk, num_seeds, num_shared=4, donate=(0,))
    state = seeds.over_seeds(entry.init, num_seeds)(seeds.seed_keys(0, seeds.padded(num_seeds)))
    collect = cadence(Phase(1, learn=False, random_share=1.0))
    rows = experiment.least_rows + 64
    bounds = collect, jnp.int32(0), jnp.int32(rows), {}
    compiled, compile_cpu = timing.timed_compile(mapped, state, *bounds)
    return compiled, compile_cpu, compiled(state, *bounds)[0], rows


def _agent(experiment: Experiment, num_seeds: int):
    compiled, compile_cpu, state, rows = agent_program(experiment, num_seeds)
    train, holder = cadence(Phase(1)), [state]

    def run():
        holder[0], metrics = compiled(holder[0], train, jnp.int32(rows), jnp.int32(rows + 1), {})
        return metrics

    return run, compile_cpu


def _windows(spec: EnvSpec, num_seeds: int, batch: int, rows: int) -> Trajectory:
    keys = jax.random.split(jax.random.key(2), 3)
    shape = (num_seeds, batch, rows)
    never = jnp.zeros(shape, bool)
    high = 256 if spec.observation.dtype == "uint8" else 2
    observation = jax.random.randint(keys[0], shape + spec.observation.shape, 0, high)
    timestep = Timestep(
        observation.astype(spec.observation.dtype),
        jax.random.normal(keys[1], shape),
        never.at[..., 0].set(True),
        never,
        never,
    )
    return Step(timestep, jax.random.randint(keys[2], shape, 0, action_size(spec.action)))


def _model(config: drama.Config, spec: EnvSpec, batch: int, rows: int, num_seeds: int):
    """One update of a world model."""
    model = config.make(spec)
    keys = seeds.seed_keys(0, num_seeds)
    state = jax.jit(jax.vmap(model.init))(keys)
    windows = _windows(spec, num_seeds, batch, rows)

    def update(state, key, windows):
        state, _, metrics = model.update(state, key, windows)
        return state, metrics

    return _compiled(update, num_seeds, state, keys, windows)


# ------------------------------------------------------------------------------------------- cases


def cases(quick: bool = False) -> dict[str, Case]:
    """The programs by name; `quick`: tiny ones."""
    catch, breakout = drama_catch.get_experiment(), drama_minatar.get_experiment()
    catch = dataclasses.replace(catch, replay=dataclasses.replace(catch.replay, capacity=2_000))
    if quick:
        catch = for_debug(catch)
    core, batch, length = (
        (mamba2.Config(8, 1, 4, 2, 4), 2, 5) if quick else (catch.model.core, 16, 16)
    )
    small = {"core": core, "groups": 8, "classes": 8, "head_width": 64, "num_bins": 63}
    image = drama.Config(
        encoder=encoders.Image64(depth=1 if quick else 4),
        decoder=decoders.Image64(depth=1 if quick else 4),
        **small,
    )
    dense = dataclasses.replace(breakout.model, core=core, groups=16)
    grid = dataclasses.replace(
        dense,
        encoder=encoders.Grid(2, 8) if quick else encoders.Grid(width=256),
        decoder=decoders.Grid(2) if quick else decoders.Grid(),
    )
    grid_spec = breakout.env.make().spec
    atari = EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(6))
    image_batch, image_rows = (1, 3) if quick else (4, 17)
    per_sample = (lambda n: 2) if quick else (lambda n: n)
    return {
        "core": Case(functools.partial(_core, core, batch, length), 1.15, per_sample(64)),
        "small agent": Case(functools.partial(_agent, catch), 1.15, per_sample(32)),
        "image model": Case(
            functools.partial(_model, image, atari, image_batch, image_rows), 1.2, per_sample(8)
        ),
        "grid model": Case(
            functools.partial(_model, grid, grid_spec, batch, length + 1), 1.2, per_sample(16)
        ),
        "grid model, dense": Case(
            functools.partial(_model, dense, grid_spec, batch, length + 1), 1.2, per_sample(16)
        ),
    }


def measure(name: str, case: Case, numbers: tuple[int, ...], rounds: int) -> list[dict[str, Any]]:
    """A row for each number of seeds; times are those of one update of one seed."""
    made = {n: case.make(n) for n in numbers}

    def repeated(run, count):
        def call():
            for _ in range(count):
                result = run()
            return result

        return call

    calls = {str(n): repeated(run, max(case.updates // n, 1)) for n, (run, _) in made.items()}
    spent = timing.compare(calls, rounds)
    rows = []
    for n in numbers:
        covered = n * max(case.updates // n, 1)
        each = timing.Time(*(seconds / covered for seconds in spent[str(n)]))
        solo = rows[0][timing.compared_column()] if rows else each.compared
        rows.append(
            {
                "program": name,
                "seeds": n,
                "devices": seeds.seed_mesh(n).size,
                "cpu_s": each.cpu,
                "wall_s": each.wall,
                "over_solo": each.compared / solo,
                "bar": case.bar,
                "compile_cpu_s": made[n][1],
            }
        )
    return rows


# ------------------------------------------------------------------------------------------ results


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Time of a seed among several, as a multiple of one alone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    for name in dict.fromkeys(row["program"] for row in rows):
        points = [(r["seeds"], r["over_solo"]) for r in rows if r["program"] == name]
        axes.plot(*zip(*points, strict=True), marker="o", label=name)
    for bar in sorted({row["bar"] for row in rows}):
        axes.axhline(bar, color="0.6", linestyle="--", linewidth=1)
    numbers = sorted({row["seeds"] for row in rows})
    axes.set_xscale("log", base=2)
    axes.set_xticks(numbers, [str(n) for n in numbers])
    axes.set_ylim(bottom=0.0)
    axes.set_xlabel("seeds in one program")
    axes.set_ylabel("time of one seed / of one seed alone")
    axes.legend(frameon=False)
    FigureCanvasAgg(figure).print_png(str(path))


def run(quick: bool, out: Path) -> list[dict[str, Any]]:
    """Write `seeds.csv` and `seeds.png` into `out` and return the rows; `quick`: tiny sizes."""
    out.mkdir(parents=True, exist_ok=True)
    numbers = SEEDS if timing.on_cpu() else SEEDS_OF_ACCELERATORS
    rows, numbers = [], numbers[:2] if quick else numbers
    for name, case in cases(quick).items():
        rows += measure(name, case, numbers, rounds=1 if quick else 9)
        for row in rows[-len(numbers) :]:
            print("  ".join(f"{timing.shown(row[column]):>12}" for column in COLUMNS), flush=True)
        timing.write_csv(out / "seeds.csv", COLUMNS, rows)
    plot(rows, out / "seeds.png")
    return rows


if __name__ == "__main__":
    configure_runtime()
    run(quick=False, out=Path(__file__).parents[1] / "results" / "benchmarks")
