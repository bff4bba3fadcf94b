"""Planners on the truth: how good are their plans where nothing has to be learned?

    python -m experiments.studies.planners
    python -m experiments.studies.planners --planners=icem --tasks=Pendulum-v1 --seeds=100

Each planner acts in a task with a world model that is the task itself, and every seed plays four
episodes whose beginnings are the same for all planners. Tasks are gymnax's Pendulum-v1 and
CartpoleSwingup (`envs/tasks/cartpole_swingup.py`), 200 steps each; horizons are 30 rows, and no
plan sees beyond the end of its episode. Costs are returns with the other sign.

Criterion, set before the run (`--seeds=0,1,2,3,4`; specification of PETS): on each task iCEM with
40 samples costs no more than CEM with 120 on at least four of five seeds. Both have three
iterations and ten elites; with the published shrinking that is 97 sequences for an action of iCEM
and 360 of CEM. All other numbers are the planners' defaults (β = 2, the same for both tasks) and
nothing was tried before. MPPI, random shooting and gradients stand beside them without a
criterion: MPPI with three iterations of 120, shooting with 360 sequences, 4 sequences that climb 20
times.

A quarter of an hour on a core that others shared, most of which compiles. Prints the table and the
criterion, and writes `experiments/results/planners.csv`. Found: met, on 4 of 5 seeds of Pendulum
and 5 of 5 of the cart-pole.
"""

import csv
import functools
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import app, flags

from mbrl_jax import envs
from mbrl_jax.behaviours import planning
from mbrl_jax.behaviours.planning import cem, gradient, icem, mppi, shooting
from mbrl_jax.types import Array, BoundModel, Environment, Key, Prediction

HORIZON, STEPS, EPISODES = 30, 200, 4
PLANNERS: dict[str, Any] = {
    "icem": icem.Config(horizon=HORIZON, num_samples=40, iterations=3, num_elites=10),
    "cem": cem.Config(horizon=HORIZON, num_samples=120, iterations=3, num_elites=10),
    "mppi": mppi.Config(HORIZON, 3, 120, num_proposals=0, num_elites=10),
    "shooting": shooting.Config(horizon=HORIZON, num_samples=360),
    "gradient": gradient.Config(horizon=HORIZON, iterations=20, num_samples=4),
}
TASKS = ("Pendulum-v1", "CartpoleSwingup")
COLUMNS = ("task", "planner", "seed", "cost", "sequences")

# Other studies have flags of these names: who imports this one gets them apart.
FLAGS = flags.FLAGS if __name__ == "__main__" else flags.FlagValues()
_LIST = functools.partial(flags.DEFINE_list, flag_values=FLAGS)
_PLANNERS = _LIST("planners", list(PLANNERS), "Planners.")
_TASKS = _LIST("tasks", list(TASKS), "Tasks.")
_SEEDS = _LIST("seeds", ["0", "1", "2", "3", "4"], "Seeds, played in one program.")
_OUT = flags.DEFINE_string(
    "out", None, "The table; default: the one in experiments/results.", flag_values=FLAGS
)


def true_model(env: Environment) -> BoundModel:
    """The environment as a world model: a latent is its state and the newest timestep.

    The row after a last one begins another episode, so that the discount is 0 there, be it
    terminal or cut: nothing of another episode is scored. Nothing is observed or drawn.
    """

    def imagine(key, latent, action):
        return env.step(latent[0], key, action)

    def predict(latent):
        timestep = latent[1]
        return Prediction(timestep.reward, 1.0 - timestep.is_last, {})

    nothing = dict.fromkeys(("initial_latent", "observe", "observe_sequence", "latent_at"))
    features = lambda latent: jnp.zeros((0,))
    return BoundModel(**nothing, imagine=imagine, predict=predict, features=features, decode=None)


def num_sequences(config: Any) -> int:
    """New action sequences that are scored for one action; iCEM's kept elites come beside."""
    if isinstance(config, icem.Config):
        return sum(icem.sizes(config))
    # Gradients score what climbs once for each step, and at the end what began and what came of it.
    extra = 2 * config.num_samples if isinstance(config, gradient.Config) else 0
    return config.num_samples * getattr(config, "iterations", 1) + extra


def cost(config: Any, env: Environment, steps: int, key: Key) -> Array:
    """What one episode of `steps` steps cost, []."""
    behaviour = planning.Config(config).make(env.spec)
    model = true_model(env)
    state = behaviour.init(key, jnp.zeros((0,)))
    reset_key, play_key = jax.random.split(key)

    def step(carry, step_key):
        memory, latent = carry
        act_key, env_key = jax.random.split(step_key)
        memory, action = behaviour.act(state, act_key, memory, latent, model, explore=False)
        latent = env.step(latent[0], env_key, action)
        return (memory, latent), latent[1].reward

    start = behaviour.initial_carry(), env.reset(reset_key)
    return -jax.lax.scan(step, start, jax.random.split(play_key, steps))[1].sum()


def measure(
    task: str, planner: str, seeds: list[int], steps: int = STEPS, episodes: int = EPISODES
) -> list[dict[str, Any]]:
    """A row for each seed."""
    config = PLANNERS[planner]
    one = functools.partial(cost, config, envs.named(task).make(), steps)
    keys = jnp.stack([jax.random.split(jax.random.key(seed), episodes) for seed in seeds])
    costs = np.asarray(jax.jit(jax.vmap(jax.vmap(one)))(keys), np.float64).mean(axis=1)
    return [
        dict(zip(COLUMNS, (task, planner, seed, found, num_sequences(config)), strict=True))
        for seed, found in zip(seeds, costs.round(2).tolist(), strict=True)
    ]


def verdict(rows: list[dict[str, Any]], task: str) -> str:
    """On how many seeds of a task iCEM costs no more than CEM, in words."""
    costs: dict[str, dict[int, float]] = {name: {} for name in PLANNERS}
    for row in rows:
        if row["task"] == task:
            costs[row["planner"]][row["seed"]] = row["cost"]
    few, many = costs["icem"], costs["cem"]
    both = sorted(few.keys() & many.keys())
    least = sum(few[seed] <= many[seed] for seed in both)
    return f"{task}: iCEM (40) costs no more than CEM (120) on {least} of {len(both)} seeds"


def main(_: list[str]) -> None:
    """Play, print, write."""
    out = Path(_OUT.value or Path(__file__).resolve().parents[1] / "results" / "planners.csv")
    rows: list[dict[str, Any]] = []
    for task in _TASKS.value:
        for planner in _PLANNERS.value:
            rows += measure(task, planner, [int(seed) for seed in _SEEDS.value])
            for row in rows[-len(_SEEDS.value) :]:
                print("  ".join(str(value) for value in row.values()), flush=True)
            with out.open("w", newline="") as file:
                writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
                writer.writeheader()
                writer.writerows(rows)
        if {"icem", "cem"} <= set(_PLANNERS.value):
            print(verdict(rows, task), flush=True)


if __name__ == "__main__":
    app.run(main)
