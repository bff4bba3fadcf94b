"""What the host path costs: lanes against a bare EnvPool loop, and collecting against an update.

    python -m experiments.benchmarks.host

writes `host.csv`. Rows "lanes": the same actions through `pool.step` of EnvPool alone, and through
our lanes with their bookkeeping of episodes; the time is that of one step of all lanes. Rows
"iteration": one row of the published Drama on Pong (acting with its 7 million parameters, storing
the row, stepping the game), and an update of that size. `ratio` compares wall time with the loop
alone, or with the update; `cpu_ratio` CPU time of all threads, which other work disturbs less.
"""

import contextlib
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import envpool
import jax
import numpy as np

from experiments import drama_pong_small
from experiments.benchmarks import timing
from mbrl_jax.agents import apart
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.envs import atari
from mbrl_jax.envs import envpool as lanes
from mbrl_jax.envs.envpool import is_atari
from mbrl_jax.envs.spec import random_action
from mbrl_jax.experiment.experiment import Experiment, build, for_debug
from mbrl_jax.experiment.members import Members
from mbrl_jax.loops.phases import Phase
from mbrl_jax.loops.steps import Episode, account
from mbrl_jax.replay import ring
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.runtime import configure_runtime
from mbrl_jax.types import EnvSpec
from mbrl_jax.world_models import drama

COLUMNS = (
    *("program", "lanes", "side", "cpu_s", "wall_s", "steps_per_s"),
    *("cpu_ratio", "ratio", "bar"),
)
LANES_BAR = 1.1  # time of our lanes over that of a bare loop
SHARE_BAR = 0.02  # time of a row over that of an update


# ------------------------------------------------------------------------------------------- lanes


def _actions(spec: EnvSpec, count: int, number: int) -> np.ndarray:
    """Random actions [number, 1, count]."""
    keys = jax.random.split(jax.random.key(0), number * count)
    drawn = np.asarray(jax.vmap(lambda key: random_action(spec.action, key))(keys))
    return drawn.reshape((number, 1, count) + drawn.shape[1:])


def _bare_loop(adaptor: lanes.Adaptor, seeds_of_lanes: np.ndarray, actions: np.ndarray):
    """EnvPool with the same options and actions, nothing around it."""
    pool = envpool.make_gymnasium(
        adaptor.task,
        num_envs=seeds_of_lanes.size,
        seed=seeds_of_lanes.reshape(-1).tolist(),
        **adaptor.options,
    )
    pool.reset()
    converted = [adaptor.to_env(a.reshape((-1,) + a.shape[2:])) for a in actions]

    def run():
        for action in converted:
            pool.step(action)

    return run


def _our_loop(adaptor: lanes.Adaptor, seeds_of_lanes: np.ndarray, actions: np.ndarray):
    """Our lanes, and what is counted of their episodes."""
    env = lanes.open_pool(adaptor, seeds_of_lanes)
    env.reset()
    zeros = np.zeros(seeds_of_lanes.shape)
    holder = [Episode(zeros, zeros.astype(np.int32))]

    def run():
        for action in actions:
            env.send(action)
            holder[0], _ = account(adaptor.spec, holder[0], env.receive())

    return run


def measure_lanes(
    adaptor: lanes.Adaptor, count: int, rounds: int, actions: int
) -> list[dict[str, Any]]:
    """Two rows: the bare loop and ours, in turns."""
    drawn, numbers = _actions(adaptor.spec, count, actions), np.arange(count).reshape(1, count)
    calls: dict[str, Callable] = {
        "EnvPool alone": _bare_loop(adaptor, numbers, drawn),
        "ours": _our_loop(adaptor, numbers, drawn),
    }
    spent = timing.compare(calls, rounds)
    rows = _rows(f"lanes, {adaptor.task}", count, spent, "EnvPool alone", actions)
    if is_atari(adaptor.task):  # Python's share is larger where a step takes microseconds
        rows[1]["bar"] = LANES_BAR
    return rows


def _rows(
    program: str, count: int, spent: dict[str, timing.Time], base: str, number: int = 1
) -> list[dict[str, Any]]:
    """A row for each side, compared with the one called `base`; times of one in `number`."""
    return [
        {
            "program": program,
            "lanes": count,
            "side": side,
            "cpu_s": time.cpu / number,
            "wall_s": time.wall / number,
            "steps_per_s": count * number / time.wall,
            "cpu_ratio": time.cpu / spent[base].cpu,
            "ratio": time.wall / spent[base].wall,
        }
        for side, time in spent.items()
    ]


# ----------------------------------------------------------------------------------------- updates


def published() -> Experiment:
    """Drama at the published size on Pong."""
    return Experiment(
        name="published",
        env=atari.Config("Pong-v5"),
        model=drama.Config(),
        behaviour=actor_critic.Config(),
        replay=ring.Config(),
        agent=apart.Config(),
        phases=(Phase(1_032, learn=False), Phase(100)),
    )


def measure_iteration(experiment: Experiment, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Two rows: an iteration that only collects, and an update by itself."""
    collecting, updating = (
        Phase(1, learn=False, random_share=1.0),
        Phase(1, collect=False),
    )
    members = Members()
    with contextlib.closing(HostPrograms(experiment, build(experiment), members)) as programs:
        keys = members.keys()
        programs.compile_ahead(keys, fresh=True)
        least = experiment.least_rows
        holder = [programs.chunk(collecting, programs.init(keys), 0, least)[0]]

        def call(phase, number):
            holder[0] = programs.chunk(phase, holder[0], 0, number)[0]

        calls = {
            "an update": functools.partial(call, updating, 1),
            "a row": functools.partial(call, collecting, rows),
        }
        spent = timing.compare(calls, rounds)
    spent["a row"] = timing.Time(*(seconds / rows for seconds in spent["a row"]))
    found = _rows("iteration", experiment.num_envs, spent, "an update")
    found[1]["bar"] = SHARE_BAR
    return found


def run(quick: bool, out: Path) -> list[dict[str, Any]]:
    """Write `host.csv` into `out` and return the rows; `quick`: tiny sizes."""
    out.mkdir(parents=True, exist_ok=True)
    pong, cheetah = atari.Config("Pong-v5"), lanes.Config("HalfCheetah-v5")
    cases = [(atari.make_adaptor(pong), n) for n in (1, 8)]
    cases += [(lanes.make_adaptor(cheetah), n) for n in (1, 8)]
    rows, rounds = [], 1 if quick else 61
    for adaptor, count in cases:
        rows += measure_lanes(adaptor, count, rounds, actions=2 if quick else 60)
    experiment = for_debug(drama_pong_small.get_experiment()) if quick else published()
    rows += measure_iteration(experiment, rows=2 if quick else 50, rounds=1 if quick else 3)
    for row in rows:
        print("  ".join(f"{timing.shown(row.get(column)):>14}" for column in COLUMNS), flush=True)
    timing.write_csv(out / "host.csv", COLUMNS, rows)
    return rows


if __name__ == "__main__":
    configure_runtime()
    run(quick=False, out=Path(__file__).parents[1] / "results" / "benchmarks")
