"""Which sequence core tracks an agent through long token sequences? (Drama's grid-world study)

    python -m experiments.studies.grid_world --core=mamba2 --tokens=208 --workdir=/tmp/grid_world
    python -m experiments.studies.grid_world --core=mamba2 --tokens=208 --cost --workdir=…
    python -m experiments.studies.grid_world --collect --workdir=/tmp/grid_world

A 5×5 grid with a wall around it is written as 25 cell tokens and one action token a step; the
agent walks at random, and a core predicts each next token (Drama, arXiv 2410.08893, as retold in
specification section 7.5). A run trains all its seeds in one program and writes
`<workdir>/<core>_<tokens>/rows.csv` as it goes and `result.json` at its end; started again, it
starts afresh. `--cost` times the update alone. `--collect` writes the table and the pictures.
"""

import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from absl import app, flags

_CORE = flags.DEFINE_string("core", "mamba2", "mamba2, mamba, s5, gru or transformer.")
_TOKENS = flags.DEFINE_integer("tokens", 208, "Length of a sequence, a multiple of 26.")
_UPDATES = flags.DEFINE_integer("updates", 800, "Gradient steps.")
_BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 1664, "Tokens in a batch of one seed.")
_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Peak learning rate.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, trained in one program.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
_COST = flags.DEFINE_bool("cost", False, "Time the update of one seed, train nothing.")
_COLLECT = flags.DEFINE_bool("collect", False, "Make the table and pictures of finished runs.")

EVALUATIONS = 20  # points of a learning curve
CURVE_TOKENS, FINAL_TOKENS = 13_312, 106_496  # tokens of fresh sequences, for each seed
COLUMNS = ("seed", "update", "loss", "agent", "geometry", "frame", "cpu_seconds")


def make_settings() -> Any:
    """The settings that the flags ask for."""
    from experiments.studies.grid_world_model import Settings

    return Settings(
        core=_CORE.value,
        tokens=_TOKENS.value,
        updates=_UPDATES.value,
        batch=max(1, _BATCH_TOKENS.value // _TOKENS.value),
        learning_rate=_RATE.value,
    )


def train(settings: Any, seeds: list[int], folder: Path) -> dict[str, Any]:
    """Train all seeds; write `rows.csv` at every evaluation, `result.json` at the end.

    Times leave out the first update (it compiles) and the evaluations.
    """
    import jax
    import jax.numpy as jnp

    from experiments.studies.grid_world_model import make_program, num_params

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "result.json").unlink(missing_ok=True)
    sequences = CURVE_TOKENS // settings.tokens
    program = make_program(settings, sequences)
    lanes = jnp.asarray(seeds)
    state = program.init(lanes)
    every = max(1, settings.updates // EVALUATIONS)
    cpu = wall = 0.0
    with (folder / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(COLUMNS)
        state, _ = program.update(state, lanes, 0)
        for done in range(1, settings.updates + 1):
            if done % every == 0 or done == settings.updates:
                loss, errors = jax.device_get(program.evaluate(state, lanes, done))
                for row in zip(seeds, loss, *errors, strict=True):
                    writer.writerow([row[0], done, *(f"{x:.6g}" for x in row[1:]), f"{cpu:.2f}"])
                file.flush()
            if done == settings.updates:
                break
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            state, loss = program.update(state, lanes, done)
            loss.block_until_ready()
            cpu += time.process_time() - cpu_start
            wall += time.perf_counter() - wall_start
    draws = FINAL_TOKENS // CURVE_TOKENS
    finals = [
        program.evaluate(state, lanes, settings.updates + 1 + draw)[1] for draw in range(draws)
    ]
    means = jax.tree.map(lambda *x: (sum(x) / len(x)).tolist(), *finals)
    result = {
        **dataclasses.asdict(settings),
        "seeds": seeds,
        "parameters": num_params(state),
        "errors": means._asdict(),
        "cpu_ms": cpu * 1e3 / (settings.updates - 1) / len(seeds),
        "wall_ms": wall * 1e3 / (settings.updates - 1) / len(seeds),
        "cpu_seconds": time.process_time(),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def measure(settings: Any, folder: Path) -> dict[str, Any]:
    """CPU time and temporary memory of one seed's update, compiled for the backend at hand."""
    import jax.numpy as jnp

    from experiments.benchmarks import timing
    from experiments.studies.grid_world_model import make_program

    program, lanes = make_program(settings, 1), jnp.zeros(1, jnp.int32)
    state = program.init(lanes)
    # Without donation: a compiled call that is repeated must not lose its arguments.
    compiled = timing.compile_program(program.update.__wrapped__, state, lanes, 1)
    spent = timing.compare({"update": compiled.run})["update"]
    cost = {
        "batch": settings.batch,
        "cpu_ms": spent.cpu * 1e3,
        "cpu_us_per_token": spent.cpu * 1e6 / settings.batch / settings.tokens,
        "wall_ms": spent.wall * 1e3,
        "temp_mb": compiled.temp_bytes / 1e6,
        "compile_cpu_seconds": compiled.compile_cpu,
    }
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "cost.json").write_text(json.dumps(cost, indent=1) + "\n")
    return cost


def main(arguments: list[str]) -> None:
    """Train, measure or collect, as the flags say."""
    if len(arguments) > 1:
        raise app.UsageError(f"unknown arguments: {arguments[1:]}")
    from mbrl_jax.train.runtime import configure_runtime

    configure_runtime()
    workdir = Path(_WORKDIR.value)
    if _COLLECT.value:
        from experiments.studies.grid_world_report import collect

        print(collect(workdir))
        return
    settings = make_settings()
    folder = workdir / f"{settings.core}_{settings.tokens}"
    if _COST.value:
        print(json.dumps(measure(settings, folder)))
    else:
        print(json.dumps(train(settings, [int(seed) for seed in _SEEDS.value], folder)))


if __name__ == "__main__":
    app.run(main)
