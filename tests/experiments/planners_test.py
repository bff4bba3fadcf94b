"""The study of planners: its model is the task, and its table says what was asked."""

import csv

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from experiments.studies import planners
from mbrl_jax.behaviours.planning import gradient, icem, plans, shooting
from mbrl_jax.envs.tasks import cartpole_swingup

pytestmark = pytest.mark.usefixtures("quick_compile")


def test_plans_are_scored_by_the_task_and_not_behind_its_end():
    env = cartpole_swingup.Config(max_steps=4).make()
    model = planners.true_model(env)

    @jax.jit
    def run(key):
        start, actions = env.reset(key), jnp.full((6, 1), 0.7)

        def body(latent, action):
            latent = env.step(latent[0], key, action)
            return latent, latent[1]

        rows = jax.lax.scan(body, start, actions)[1]
        score = plans.scorer(env.spec.action, model, start, 1.0)
        return rows, score(key, actions[None])

    rows, score = run(jax.random.key(0))
    np.testing.assert_array_equal(rows.is_last, np.arange(1, 7) == 4)
    assert abs(rows.reward[5]) > 1e-3  # the next episode has rewards too
    np.testing.assert_allclose(score[0], rows.reward[:4].sum(), rtol=1e-5)


def test_sequences_of_an_action():
    assert planners.num_sequences(planners.PLANNERS["icem"]) == 97
    assert planners.num_sequences(planners.PLANNERS["cem"]) == 360
    assert planners.num_sequences(planners.PLANNERS["mppi"]) == 360
    assert planners.num_sequences(planners.PLANNERS["shooting"]) == 360
    assert planners.num_sequences(gradient.Config(iterations=3, num_samples=4)) == 20
    assert planners.num_sequences(icem.Config(num_samples=20, iterations=1)) == 20


def test_seeds_in_one_program_are_as_alone(monkeypatch):
    monkeypatch.setitem(planners.PLANNERS, "shooting", shooting.Config(horizon=2, num_samples=3))
    both = planners.measure("CartpoleSwingup", "shooting", [3, 4], steps=40, episodes=2)
    alone = planners.measure("CartpoleSwingup", "shooting", [4], steps=40, episodes=2)
    assert both[1]["cost"] == pytest.approx(alone[0]["cost"], abs=0.02)
    assert both[0]["cost"] != both[1]["cost"] and (both[1]["seed"], both[1]["sequences"]) == (4, 3)


def test_the_table_and_the_criterion(tmp_path, monkeypatch, capsys):
    costs = {"icem": (1.0, 5.0, 2.0), "cem": (1.0, 4.0, 3.0)}

    def measure(task, planner, seeds):
        numbers = zip(seeds, costs[planner], strict=True)
        return [
            dict(zip(planners.COLUMNS, (task, planner, *pair, 9), strict=True)) for pair in numbers
        ]

    monkeypatch.setattr(planners, "measure", measure)
    out = tmp_path / "planners.csv"
    wanted = {"planners": ["icem", "cem"], "tasks": ["A", "B"], "seeds": ["0", "1", "2"]}
    planners.FLAGS.mark_as_parsed()
    for name, value in {**wanted, "out": str(out)}.items():
        monkeypatch.setattr(planners.FLAGS[name], "value", value)
    planners.main([])
    text = capsys.readouterr().out
    assert "B: iCEM (40) costs no more than CEM (120) on 2 of 3 seeds" in text
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 12 and rows[4] == {
        "task": "A",
        "planner": "cem",
        "seed": "1",
        "cost": "4.0",
        "sequences": "9",
    }
