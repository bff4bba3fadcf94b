"""What a run costs beside its programs: saves, metrics, TensorBoard, the loop around them.

    python -m experiments.benchmarks.shell

writes `shell.csv`. Rows "catch": a whole run of drama_catch with four seeds at its own cadence.
`wall_s` is what the training thread spent there, `share` that over the time of the training (from
the second chunk on, because the first waits for the compiler); "save, in the background" is CPU
time of the thread that writes, beside the programs. Rows "atari": a replay of the published size
(100,000 rows of 64×64×3 bytes) saved as drama_atari100k does, after 2,000 new rows, and as a
whole; there, `apart_s` is how long saves must lie apart to take 2 % of the training thread's time,
and of a core's time in the background.
"""

import contextlib
import functools
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np

from experiments import drama_atari100k, drama_catch
from experiments.benchmarks import timing
from mbrl_jax.envs.spec import example_row
from mbrl_jax.experiment.experiment import for_debug
from mbrl_jax.loops import seeds
from mbrl_jax.loops.steps import TrainState
from mbrl_jax.replay import ring
from mbrl_jax.runs import checkpoint, metrics
from mbrl_jax.train import run as run_module
from mbrl_jax.train.progress import Quiet
from mbrl_jax.train.runtime import configure_runtime
from mbrl_jax.types import ArraySpec, DiscreteSpec, EnvSpec

COLUMNS = ("run", "part", "wall_s", "cpu_s", "share", "apart_s", "megabytes", "bar")
BAR = 0.02  # of the time of a run
NUM_SEEDS = 4


class _Clock(Quiet):
    """A reporter that adds up what the programs take, and the time between chunks."""

    def __init__(self):
        self.compiled = self.total = 0.0
        self.last: float | None = None

    def chunk_done(self, step, rows, seconds):
        """A chunk and what follows it; the first, which waits for the compiler, counts nothing."""
        now = time.perf_counter()
        if self.last is not None:
            self.total += now - self.last
            self.compiled += seconds
        self.last = now


@contextlib.contextmanager
def _timed(owner: Any, name: str, spent: dict) -> Iterator[None]:
    """Add up wall and CPU time of this thread in a method."""
    method = getattr(owner, name)

    @functools.wraps(method)
    def timed(*args, **kwargs):
        wall, cpu = time.perf_counter(), time.thread_time()
        try:
            return method(*args, **kwargs)
        finally:
            spent[name, "wall"] += time.perf_counter() - wall
            spent[name, "cpu"] += time.thread_time() - cpu

    with mock.patch.object(owner, name, timed):
        yield


def measure_catch(quick: bool) -> list[dict[str, Any]]:
    """Rows of a run of Catch."""
    experiment = drama_catch.get_experiment()
    experiment = for_debug(experiment) if quick else experiment
    clock, spent = _Clock(), defaultdict(float)
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        for owner, names in (
            (checkpoint.Saver, ("take", "save", "_write")),
            (metrics.MetricsWriter, ("write",)),
        ):
            for name in names:
                stack.enter_context(_timed(owner, name, spent))
        run_module.run(experiment, folder, num_seeds=NUM_SEEDS, reporter=clock)
    waited = {side: spent["take", side] + spent["save", side] for side in ("wall", "cpu")}
    parts = {
        "programs": (clock.compiled, None, None),
        "save, in the training thread": (waited["wall"], waited["cpu"], BAR),
        "save, in the background": (None, spent["_write", "cpu"], BAR),
        "metrics and TensorBoard": (spent["write", "wall"], spent["write", "cpu"], None),
        "all but programs": (clock.total - clock.compiled, None, BAR),
    }
    return [
        {"run": "catch", "part": part, "share": (cpu if wall is None else wall) / clock.total}
        | _known({"wall_s": wall, "cpu_s": cpu, "bar": bar})
        for part, (wall, cpu, bar) in parts.items()
    ]


def _known(row: dict[str, Any]) -> dict[str, Any]:
    """What was measured; the rest of a row stays empty."""
    return {name: value for name, value in row.items() if value is not None}


def _filled(replay, spec: EnvSpec, rows: int):
    """A TrainState [1] whose replay has taken `rows` rows, of noise, which nothing compresses."""

    def init(key):
        state = replay.init(example_row(spec))
        state = state._replace(position=jnp.int32(rows))
        return TrainState(key, jnp.zeros(()), state, (), (), (), ())

    state = seeds.over_seeds(init, 1)(seeds.seed_keys(0, 1))
    stored = state.replay.storage
    shape = stored.timestep.observation.shape
    noise = np.frombuffer(np.random.default_rng(0).bytes(math.prod(shape)), np.uint8)
    noise = jax.device_put(noise.reshape(shape), seeds.seed_sharding(1))
    stored = stored._replace(timestep=stored.timestep._replace(observation=noise))
    return state._replace(replay=state.replay._replace(storage=stored))


def _megabytes(path: Path) -> float:
    return sum(p.stat().st_size for p in path.rglob("*") if p.is_file()) / 1e6


def measure_atari(quick: bool) -> list[dict[str, Any]]:
    """Rows of saves of a replay of the published size."""
    published = drama_atari100k.get_experiment()
    capacity, new = (200, 20) if quick else (100_000, published.checkpoint_every)
    spec = EnvSpec(ArraySpec((64, 64, 3), "uint8"), DiscreteSpec(6))
    replay = ring.Config(capacity=capacity, length=16).make(1)
    state = _filled(replay, spec, capacity)
    found = []
    for part, store in ((f"{new} new rows", replay.rows), ("the whole", None)):
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            with checkpoint.Saver(path, 1, store, new, (0, capacity, ())) as saver:
                # The first save compiles, and is not counted.
                saver.save(1, saver.take(state), state.replay, {"rows": capacity + new})
            before, spent = _megabytes(path), defaultdict(float)
            again = checkpoint.Saver(path, 1, store, new, (1, capacity + new, ()))
            again._gather = saver._gather if store else None
            with again, _timed(checkpoint.Saver, "_write", spent):
                began, cpu = time.perf_counter(), time.thread_time()
                again.save(2, again.take(state), state.replay, {"rows": capacity + 2 * new})
                waited = time.perf_counter() - began, time.thread_time() - cpu
            size = _megabytes(path) - before
        for name, wall, own in (
            ("in the training thread", *waited),
            ("in the background", spent["_write", "wall"], spent["_write", "cpu"]),
        ):
            apart = (own if name.endswith("background") else wall) / BAR
            row = {"run": "atari", "part": f"{part}, {name}", "wall_s": wall, "cpu_s": own}
            found.append(row | {"apart_s": apart, "megabytes": size})
    return found


def run(quick: bool, out: Path) -> list[dict[str, Any]]:
    """Write `shell.csv` into `out` and return the rows; `quick`: tiny sizes."""
    out.mkdir(parents=True, exist_ok=True)
    rows = measure_catch(quick) + measure_atari(quick)
    for row in rows:
        print(
            "  ".join(f"{timing.shown(row.get(column, '')):>12}" for column in COLUMNS), flush=True
        )
    timing.write_csv(out / "shell.csv", COLUMNS, rows)
    return rows


if __name__ == "__main__":
    configure_runtime(num_seeds=NUM_SEEDS)
    run(quick=False, out=Path(__file__).parents[1] / "results" / "benchmarks")
