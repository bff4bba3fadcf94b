"""An outer loop over runs: numbers of each round, one compilation, the same after a stop."""

import dataclasses
import json
from typing import NamedTuple

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.train import rounds
from mbrl_jax.train.rounds import Outer, run_rounds
from mbrl_jax.train.run import run
from tests import small

pytestmark = pytest.mark.usefixtures("programs_kept")

EXPERIMENT = dataclasses.replace(
    small.catch(), log_every=5, checkpoint_every=10, eval_episodes=2, eval_max_steps=9
)
FIELD = "behaviour.entropy"


class Halving(NamedTuple):
    """An outer algorithm that halves a number, and keeps what it was told."""

    first: float = 0.1

    def init(self):
        return self.first, []

    def propose(self, state):
        return {FIELD: state[0]}

    def observe(self, state, numbers, outcome):
        return numbers[FIELD] / 2, [*state[1], (numbers[FIELD], outcome)]


HALVING: Outer = Halving()


def test_rounds_share_one_compilation_and_a_stopped_loop_goes_on(tmp_path, monkeypatch):
    compiled = []
    begin = rounds.Runner._programs_for

    def counted(self, *args, **kwargs):
        before = self._programs
        programs = begin(self, *args, **kwargs)
        compiled.append(programs is not before)
        return programs

    monkeypatch.setattr(rounds.Runner, "_programs_for", counted)
    _, told = run_rounds(EXPERIMENT, HALVING, tmp_path / "a", 3)
    assert compiled == [True, False, False]
    assert [number for number, _ in told] == pytest.approx([0.1, 0.05, 0.025])
    lines = (tmp_path / "a" / rounds.ROUNDS).read_text().splitlines()
    assert [json.loads(line)["numbers"][FIELD] for line in lines] == [n for n, _ in told]

    run_rounds(EXPERIMENT, HALVING, tmp_path / "b", 1)
    _, later = run_rounds(EXPERIMENT, HALVING, tmp_path / "b", 3)
    assert later == told
    for number in range(3):
        a, b = (tmp_path / x / f"round_000{number}" / "metrics.jsonl" for x in "ab")
        assert a.read_bytes() == b.read_bytes()


def test_a_round_is_the_run_with_its_numbers(tmp_path):
    _, told = run_rounds(EXPERIMENT, HALVING, tmp_path / "rounds", 2)
    inside = ((FIELD, (told[1][0],)),)
    result = run(EXPERIMENT, tmp_path / "run", inside=inside)
    assert rounds.outcome_of(result) == told[1][1]
    assert read_metrics(tmp_path / "run") == read_metrics(tmp_path / "rounds" / "round_0001")
    first = read_metrics(tmp_path / "rounds" / "round_0000")
    assert read_metrics(tmp_path / "run") != first  # the number arrived


@pytest.mark.parametrize(
    ("field", "value", "sentence"),
    [
        ("behaviour.horizon", 3, "no number that can be traced"),
        (FIELD, -1.0, "out of range: at least 0"),
    ],
)
def test_numbers_are_checked_before_anything_is_trained(tmp_path, field, value, sentence):
    class Wrong(Halving):
        def propose(self, state):
            return {field: value}

    with pytest.raises(ConfigError, match=sentence):
        run_rounds(EXPERIMENT, Wrong(), tmp_path, 1)
    assert not (tmp_path / "round_0000").exists()


def test_another_algorithm_does_not_go_on_with_the_rounds_of_the_first(tmp_path):
    run_rounds(EXPERIMENT, HALVING, tmp_path, 1)
    with pytest.raises(ConfigError, match="round 0 .* another algorithm"):
        run_rounds(EXPERIMENT, Halving(0.2), tmp_path, 2)

    class Wandering(Halving):
        def propose(self, state):
            return {FIELD: state[0]} if not state[1] else {"behaviour.gamma": 0.9}

    with pytest.raises(ConfigError, match="all rounds run one program"):
        run_rounds(EXPERIMENT, Wandering(), tmp_path, 2)
    (tmp_path / rounds.ROUNDS).write_text("{")
    with pytest.raises(ConfigError, match="damaged"):
        run_rounds(EXPERIMENT, HALVING, tmp_path, 2)


def test_lanes_on_the_host_are_opened_anew_each_round(tmp_path):
    task = ["env=envpool", "env.name=Pendulum-v1"]
    experiment = dataclasses.replace(
        config.override(small.pendulum(), task), eval_episodes=2, eval_max_steps=9
    )

    class Growing(Halving):
        def propose(self, state):
            return {"behaviour.gamma": state[0]}

        def observe(self, state, numbers, outcome):
            return numbers["behaviour.gamma"] * 2, [*state[1], outcome]

    _, told = run_rounds(experiment, Growing(), tmp_path, 2)
    losses = [read_metrics(tmp_path / f"round_000{number}") for number in range(2)]
    assert len(told) == 2 and losses[0] != losses[1]
