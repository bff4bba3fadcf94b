"""One damaged directory never ends the report on the others."""

import json
import time

import pytest

from mbrl_jax.experiment.members import Members
from mbrl_jax.report import records, report
from tests.report import runs


def change(path, name, **fields):
    """Other fields in a JSON file of a workdir."""
    data = json.loads((path / name).read_text()) if (path / name).exists() else {}
    (path / name).write_text(json.dumps(data | fields))


LINK = {"parent": "/runs/a", "step": 50, "changed": [], "versions": {}}


def lineage(**fields):
    return lambda path: change(path, "meta.json", lineage=[LINK | fields], complete=True)


def config(**fields):
    return lambda path: change(path, "config.json", **fields)


def greedy(*means):
    return lambda path: runs.write_evaluation(path, 100, means)


DAMAGE = {
    "an unknown field": config(sweep_inside=[["behaviour.no_such", [1.0, 2.0]]]),
    "values that are none": config(sweep_inside=[["behaviour.entropy", [[], {}]]]),
    "no values": config(sweep_inside=[["behaviour.entropy", []]]),
    "a product without end": config(
        sweep_inside=[[f"behaviour.x{i}", list(range(10))] for i in range(25)]
    ),
    "very many seeds": config(num_seeds=2**31 - 1),
    "a million seeds": config(num_seeds=10**6),
    "half a seed": config(num_seeds=1.5),
    "a null in a parent": lineage(parent="/runs/\0a"),
    "a null in a change": lineage(changed=["x\0: 1 -> 2"]),
    "a step that is a list": lineage(step=[1]),
    "changes that are numbers": lineage(changed=5),
    "a huge mean": greedy(1e308),
    "a mean beyond all": greedy(1e400),
    "huge returns": lambda path: (path / "metrics.jsonl").write_text(
        "".join(json.dumps(runs.row(step, 0, 1e308)) + "\n" for step in (50, 90, 100))
    ),
    "a step without end": lambda path: (path / "metrics.jsonl").write_text(
        f'{{"step": {"9" * 400}, "seed": 0}}\n'
    ),
}


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_one_damaged_directory_is_named_beside_the_others(tmp_path, damage):
    healthy = runs.write(tmp_path / "healthy", runs.catch(), [1.0, 2.0], greedy=[1.0, 2.0])
    damaged = runs.write(tmp_path / "damaged", runs.catch(), [1.0], greedy=[1.0])
    damage(damaged)
    began = time.monotonic()
    found = records.read_runs([healthy, damaged])
    assert found[0].state == "finished"
    made = report.make_report(found, "both", "launch.report")
    assert time.monotonic() - began < 20
    assert "damaged" in made.html and "1.5" in made.markdown


def test_a_member_has_its_setting_of_the_product():
    members = Members(0, 2, (("a", (1.0, 2.0)), ("b", (3.0, 4.0, 5.0))))
    assert [members.setting(k) for k in range(len(members))] == [
        setting for setting in members.settings for _ in range(2)
    ]
    assert list(members.setting(5)) == ["a", "b"]
