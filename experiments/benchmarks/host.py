"""What the host path costs: lanes against a bare EnvPool loop, and collecting against an update.

    python -m experiments.benchmarks.host

writes `host.csv`. Rows "lanes": the same actions through `pool.step` of EnvPool alone, and through
our lanes with their bookkeeping of episodes; a row is one step of all lanes. Row "iteration": what
one row of the published Drama on Pong costs beside an update of that size (acting with its 7
million parameters, storing the row, stepping the game), and the update.
"""

import contextlib
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import envpool
import jax
import numpy as np

from experiments import drama_pong_small
from experiments.benchmarks import timing
from mbrl_jax import agent
from mbrl_jax.behaviours import actor_critic
from mbrl_jax.envs import atari
from mbrl_jax.envs import envpool as lanes
from mbrl_jax.envs.spec import random_action
from mbrl_jax.replay import ring
from mbrl_jax.train import loop, seeds
from mbrl_jax.train.experiment import Experiment, build, for_debug
from mbrl_jax.train.host_programs import HostPrograms
from mbrl_jax.train.runtime import configure_runtime
from mbrl_jax.types import EnvSpec
from mbrl_jax.world_models import drama

COLUMNS = ("program", "lanes", "side", "wall_s", "steps_per_s", "ratio", "bar")
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
    holder = [loop.Episode(zeros, zeros.astype(np.int32))]

    def run():
        for action in actions:
            env.send(action)
            holder[0], _ = loop.account(adaptor.spec, holder[0], env.receive())

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
    bare = spent["EnvPool alone"].wall
    return [
        {
            "program": f"lanes, {adaptor.task}",
            "lanes": count,
            "side": side,
            "wall_s": time.wall / actions,
            "steps_per_s": count * actions / time.wall,
            "ratio": time.wall / bare,
            "bar": LANES_BAR if side == "ours" else None,
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
        agent=agent.Config(),
        phases=(loop.Phase(1_032, learn=False), loop.Phase(100)),
    )


def measure_iteration(experiment: Experiment, rows: int, rounds: int) -> list[dict[str, Any]]:
    """Two rows: an iteration that only collects, and one that updates as well, less the first."""
    programs = HostPrograms(experiment, build(experiment), 1)
    with contextlib.closing(programs):
        keys = seeds.seed_keys(0, 1)
        programs.compile_ahead(keys, fresh=True)
        state, now = programs.init(keys), experiment.real_replay.least_rows(experiment.num_envs)
        collecting = loop.Phase(1, learn=False, random_share=1.0)
        state, _, _ = programs.chunk(collecting, state, 0, now)
        collect, both = [], []
        for _ in range(rounds):
            state, _, seconds = programs.chunk(collecting, state, now, now + rows)
            collect.append(seconds / rows)
            state, _, seconds = programs.chunk(loop.Phase(1), state, now + rows, now + rows + 1)
            both.append(seconds)
            now += rows + 1
    row, update = statistics.median(collect), statistics.median(both) - statistics.median(collect)
    sides = {"a row": (row, row / update, SHARE_BAR), "an update": (update, 1.0, None)}
    return [
        {
            "program": "iteration",
            "lanes": experiment.num_envs,
            "side": side,
            "wall_s": seconds,
            "steps_per_s": 1 / seconds,
            "ratio": ratio,
            "bar": bar,
        }
        for side, (seconds, ratio, bar) in sides.items()
    ]


def run(quick: bool, out: Path) -> list[dict[str, Any]]:
    """Write `host.csv` into `out` and return the rows; `quick`: tiny sizes."""
    out.mkdir(parents=True, exist_ok=True)
    pong, cheetah = atari.Config("Pong-v5"), lanes.Config("HalfCheetah-v5")
    cases = [(atari.make_adaptor(pong), n) for n in (1, 8)]
    cases += [(lanes.make_adaptor(cheetah), n) for n in (1, 8)]
    rows = []
    for adaptor, count in cases:
        rows += measure_lanes(
            adaptor, count, rounds=1 if quick else 11, actions=2 if quick else 400
        )
    experiment = for_debug(drama_pong_small.get_experiment()) if quick else published()
    rows += measure_iteration(experiment, rows=2 if quick else 50, rounds=1 if quick else 3)
    for row in rows:
        print("  ".join(f"{timing.shown(row[column]):>14}" for column in COLUMNS), flush=True)
    timing.write_csv(out / "host.csv", COLUMNS, rows)
    return rows


if __name__ == "__main__":
    configure_runtime()
    run(quick=False, out=Path(__file__).parents[1] / "results" / "benchmarks")
