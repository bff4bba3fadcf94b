"""How the seeds of one program lie on 1, 2, 4 and 8 devices: work, memory and messages of each.

    python -m experiments.benchmarks.scaling

writes `scaling.csv`. The program is an iteration of `drama_catch` with an update, its devices are
parts of this CPU that XLA is told to take for devices (a process for each number of them). So times
say nothing about scaling, and there are none; but the program of a device is the one that a GPU or
a TPU would be given. `gflop_of_device` is the work that the compiler counts in it (a loop's body
once), `against_ideal` that times the devices in use over the seeds' work on a single one; where the
seeds do not come out even, the surplus lanes are in it. `collectives` are what devices send each
other.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

from experiments import drama_catch
from experiments.benchmarks import seeds as seeds_benchmark
from experiments.benchmarks import timing
from mbrl_jax.experiment.experiment import for_debug
from mbrl_jax.loops import seeds
from mbrl_jax.train.runtime import configure_runtime

COLUMNS = (
    "seeds",
    "devices_there",
    "devices",
    "lanes_of_device",
    "gflop_of_device",
    "against_ideal",
    "state_mb_of_device",
    "temp_mb_of_device",
    "collectives",
    "collective_bytes",
)
DEVICES = (1, 2, 4, 8)
SEEDS = (16, 12, 3)
ROOT = Path(__file__).resolve().parents[2]

_COLLECTIVE = re.compile(
    r"= (?P<shapes>\([^)]*\)|\S+) (?:all-gather|all-reduce|all-to-all|collective-permute"
    r"|collective-broadcast|reduce-scatter|send|recv)(?:-start)?\("
)
_SHAPE = re.compile(r"(?P<kind>[a-z]+)(?P<bits>\d*)\[(?P<sizes>[\d,]*)\]")


def collectives(text: str) -> tuple[int, int]:
    """(instructions, bytes of their results) of all collectives in the text of a program."""
    found = [match["shapes"] for match in _COLLECTIVE.finditer(text)]
    return len(found), sum(_bytes_of(shapes) for shapes in found)


def _bytes_of(shapes: str) -> int:
    return sum(
        int(np.prod([int(n) for n in m["sizes"].split(",") if n], initial=1))
        * max(int(m["bits"] or 8) // 8, 1)  # pred has no number
        for m in _SHAPE.finditer(shapes)
    )


def measure(num_seeds: int, quick: bool) -> dict[str, Any]:
    """What the program of each device is, for this process's number of devices."""
    experiment = drama_catch.get_experiment()
    experiment = for_debug(experiment) if quick else experiment
    program = seeds_benchmark.agent_program(experiment, num_seeds)[0]
    memory, devices = program.memory_analysis(), seeds.seed_mesh(num_seeds).size
    count, size = collectives(program.as_text())
    return {
        "seeds": num_seeds,
        "devices": devices,
        "lanes_of_device": seeds.padded(num_seeds) // devices,
        "gflop_of_device": program.cost_analysis()["flops"] / 1e9,
        "state_mb_of_device": memory.output_size_in_bytes / 1e6,
        "temp_mb_of_device": memory.temp_size_in_bytes / 1e6,
        "collectives": count,
        "collective_bytes": size,
    }


def _measure_apart(num_seeds: int, devices: int, quick: bool) -> dict[str, Any]:
    """The same in a process that has so many devices."""
    code = (
        "import json; from experiments.benchmarks import scaling; "
        f"print(json.dumps(scaling.measure({num_seeds}, {quick})))"
    )
    environment = os.environ | {
        "JAX_NUM_CPU_DEVICES": str(devices),
        "JAX_PLATFORMS": "cpu",
        "JAX_DISABLE_MOST_OPTIMIZATIONS": "1",  # of machine code: nothing is timed
    }
    environment.pop("XLA_FLAGS", None)
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return json.loads(done.stdout.splitlines()[-1])


def run(quick: bool, out: Path) -> list[dict[str, Any]]:
    """Write `scaling.csv` into `out` and return its rows; `quick`: a tiny program, two numbers."""
    out.mkdir(parents=True, exist_ok=True)
    rows = []
    for num_seeds in SEEDS[-1:] if quick else SEEDS:
        solo = None
        for devices in DEVICES[:2] if quick else DEVICES:
            row = _measure_apart(num_seeds, devices, quick)
            row["devices_there"] = devices
            solo = solo or row["gflop_of_device"]
            row["against_ideal"] = row["devices"] * row["gflop_of_device"] / solo
            rows.append(row)
            print("  ".join(f"{timing.shown(row[c]):>12}" for c in COLUMNS), flush=True)
        timing.write_csv(out / "scaling.csv", COLUMNS, rows)
    return rows


if __name__ == "__main__":
    configure_runtime()
    run(quick=False, out=Path(__file__).parents[1] / "results" / "benchmarks")
