"""Which sequence core tracks an agent through long token sequences? (Drama's grid-world study)

    python -m experiments.studies.grid_world --core=mamba2 --tokens=208 --workdir=/tmp/grid_world
    python -m experiments.studies.grid_world --core=mamba2,gru --tokens=208 --cost --workdir=…
    python -m experiments.studies.grid_world --collect --workdir=/tmp/grid_world

A 5×5 grid with a wall around it is written as 25 cell tokens and one action token a step; the
agent walks at random, and a core predicts each next token (Drama, arXiv 2410.08893, as retold in
specification section 7.5). A run trains all its seeds in one program and writes
`<workdir>/<core>_<tokens>/rows.csv` as it goes and `result.json` at its end; started again, it
starts afresh. `--cost` times the updates of the named cores alone, in turns. `--collect` writes
the table and the pictures.
"""

import csv
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from absl import app, flags

_CORE = flags.DEFINE_list("core", ["mamba2"], "Of mamba2, mamba, s5, gru, transformer.")
_TOKENS = flags.DEFINE_integer("tokens", 208, "Length of a sequence, a multiple of 26.")
_UPDATES = flags.DEFINE_integer("updates", 800, "Gradient steps.")
_BATCH_TOKENS = flags.DEFINE_integer("batch_tokens", 1664, "Tokens in a batch of one seed.")
_RATE = flags.DEFINE_float("learning_rate", 3e-3, "Peak learning rate.")
_SEEDS = flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds, trained in one program.")
_WORKDIR = flags.DEFINE_string("workdir", None, "Folder of all runs.", required=True)
_COST = flags.DEFINE_bool("cost", False, "Time the updates of one seed, train nothing.")
_COLLECT = flags.DEFINE_bool("collect", False, "Make the table and pictures of finished runs.")

EVALUATIONS = 20  # points of a learning curve
CURVE_TOKENS, FINAL_TOKENS = 13_312, 106_496  # tokens of fresh sequences, for each seed
COLUMNS = ("seed", "update", "loss", "agent", "geometry", "frame", "cpu_seconds")


def make_settings(core: str) -> Any:
    """The settings that the flags ask for."""
    from experiments.studies.grid_world_model import Settings

    return Settings(
        core=core,
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
    finals = [
        program.evaluate(state, lanes, settings.updates + 1 + draw)
        for draw in range(FINAL_TOKENS // CURVE_TOKENS)
    ]
    loss, errors = jax.tree.map(lambda *x: (sum(x) / len(x)).tolist(), *finals)
    result = {
        **dataclasses.asdict(settings),
        "seeds": seeds,
        "parameters": num_params(state),
        "loss": loss,
        "errors": errors._asdict(),
        "cpu_ms": cpu * 1e3 / (settings.updates - 1) / len(seeds),
        "wall_ms": wall * 1e3 / (settings.updates - 1) / len(seeds),
        "cpu_seconds": time.process_time(),
    }
    (folder / "result.json").write_text(json.dumps(result, indent=1) + "\n")
    return result


def measure(runs: dict[Path, Any]) -> list[dict[str, Any]]:
    """CPU time and temporary memory of one seed's update, for the settings of each folder.

    All are timed in turns in this process; each folder gets its `cost.json`.
    """
    import jax.numpy as jnp

    from experiments.benchmarks import timing
    from experiments.studies.grid_world_model import make_program

    lanes, compiled = jnp.zeros(1, jnp.int32), {}
    for folder, settings in runs.items():
        program = make_program(settings, 1)
        # Without donation: a call that is repeated must not lose its arguments.
        update = program.update.__wrapped__
        compiled[folder] = timing.compile_program(update, program.init(lanes), lanes, 1)
    spent = timing.compare({folder: program.run for folder, program in compiled.items()})
    costs = []
    for folder, settings in runs.items():
        cost = {
            "core": settings.core,
            "tokens": settings.tokens,
            "batch": settings.batch,
            "cpu_ms": spent[folder].cpu * 1e3,
            "cpu_us_per_token": spent[folder].cpu * 1e6 / settings.batch / settings.tokens,
            "wall_ms": spent[folder].wall * 1e3,
            "temp_mb": compiled[folder].temp_bytes / 1e6,
            "compile_cpu_seconds": compiled[folder].compile_cpu,
        }
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "cost.json").write_text(json.dumps(cost, indent=1) + "\n")
        costs.append(cost)
    return costs


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
    runs = {workdir / f"{core}_{_TOKENS.value}": make_settings(core) for core in _CORE.value}
    if _COST.value:
        print(json.dumps(measure(runs), indent=1))
        return
    seeds = [int(seed) for seed in _SEEDS.value]
    for folder, settings in runs.items():
        print(json.dumps(train(settings, seeds, folder)), flush=True)


if __name__ == "__main__":
    app.run(main)
