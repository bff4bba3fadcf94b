"""What fails late: it is refused, or fails before anything is saved, and the directory stays free.

Nothing to learn, nothing to play and nothing to see are told in a sentence.
"""

import dataclasses
import json
import subprocess
import sys
import threading
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mbrl_jax.envs.spec import make_environment
from mbrl_jax.errors import ConfigError
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import build, title_of, with_settings
from mbrl_jax.experiment.members import Members
from mbrl_jax.loops import fused
from mbrl_jax.loops.steps import Evaluation
from mbrl_jax.report import records
from mbrl_jax.runs import workdir
from mbrl_jax.runs.metrics import MetricsWriter, read_metrics
from mbrl_jax.train import report, run, tables, trained
from mbrl_jax.train.compiled import Compiled
from mbrl_jax.types import BoundedSpec, DiscreteSpec
from tests import small


def _run_config(**changes):
    return workdir.RunConfig(dataclasses.replace(small.catch(), **changes), Members())


# ---------------------------------------------------------------------------- whose directory it is


def test_a_directory_in_which_nothing_was_saved_is_free(tmp_path):
    first, corrected = _run_config(eval_episodes=3), _run_config(eval_episodes=4)
    assert workdir.prepare(tmp_path, first, "auto") is None
    MetricsWriter(tmp_path, 1, None).close()  # begun, and no row was written
    assert workdir.prepare(tmp_path, corrected, "never") is None
    assert workdir.read_config(tmp_path).experiment.eval_episodes == 4
    with MetricsWriter(tmp_path, 1, None) as writer:
        writer.write(10, [{"env_steps": 10}])
    with pytest.raises(ConfigError, match="eval_episodes: 4 -> 3"):
        workdir.prepare(tmp_path, first, "auto")
    with pytest.raises(ConfigError, match="holds a run already"):
        workdir.prepare(tmp_path, corrected, "never")


def test_all_programs_are_traced_while_the_first_compiles():
    compiling, compiled = threading.Event(), threading.Event()

    class Slow:
        """A jitted function whose compilation waits, as those of large programs do."""

        def __init__(self, name):
            self._jitted = jax.jit(lambda x: x + 1)
            self._name = name

        def trace(self, *args):
            if self._name == "broken":
                raise TypeError("no such thing")
            self._traced, self.jaxpr = self._jitted.trace(*args), jax.make_jaxpr(lambda: 1)()
            return self

        def lower(self):
            return self

        def compile(self):
            compiling.set()
            assert compiled.wait(60)
            return self._traced.lower().compile()

    programs = Compiled(lambda name: Slow(name[0]))
    for i in range(4):
        programs.begin((f"sound {i}",), 1.0)
    assert compiling.wait(60)
    programs.require_traced()  # returns although nothing is compiled
    programs.begin(("broken",), 1.0)
    with pytest.raises(TypeError, match="no such thing"):
        programs.require_traced()
    compiled.set()
    assert programs.call(("sound 0",), 1.0) == 2.0
    programs.close()


@pytest.mark.usefixtures("quick_compile")
def test_a_command_that_fails_to_trace_leaves_the_directory_to_the_corrected_one(
    tmp_path, monkeypatch
):
    def broken(experiment):
        """The behaviour cannot be traced, but the rows before it can be collected."""
        system = build(experiment)

        def update(*args):
            raise TypeError("not for these shapes")

        agent = system.agent._replace(updates={"all": update})
        entry = fused.make_entry_points(system.env, agent, system.replay, experiment.num_envs)
        return system._replace(agent=agent, entry=entry)

    experiment = dataclasses.replace(small.catch(), log_every=5, checkpoint_every=5)
    with monkeypatch.context() as patch:
        patch.setattr(run, "build_system", broken)
        with pytest.raises(TypeError, match="not for these shapes"):
            run.run(experiment, tmp_path)
    assert read_metrics(tmp_path) == []  # of the phase that only collects neither
    corrected = workdir.RunConfig(dataclasses.replace(experiment, eval_episodes=1), Members())
    assert workdir.prepare(tmp_path, corrected, "auto") is None


# -------------------------------------------------------------------------- nothing to see, to play


@dataclasses.dataclass(frozen=True)
class _Empty:
    """An environment with an observation and an action of these sizes."""

    size: int
    action: DiscreteSpec | BoundedSpec = DiscreteSpec(2)

    def make(self):
        seen = jnp.zeros((self.size,))
        no = jnp.zeros((), bool)
        return make_environment(
            self.action, lambda key: ((), seen), lambda key, state, action: ((), seen, 0.0, no, no)
        )


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (_Empty(0), r"observation has the shape \(0,\), which holds no number"),
        (_Empty(3, BoundedSpec(0)), r"BoundedSpec\(size=0\): there is nothing to choose"),
        (_Empty(3, DiscreteSpec(0)), r"DiscreteSpec\(num_actions=0\): there is nothing to choose"),
    ],
)
def test_an_environment_without_numbers_is_refused_when_it_is_built(env, said):
    with pytest.raises(ConfigError, match=said):
        trained.build_system(dataclasses.replace(small.catch(), env=env))


def _nothing_played():
    class Programs:
        """Of two seeds; what would be played is not asked for."""

        num_seeds = 2

    experiment = dataclasses.replace(small.catch(), eval_episodes=0)
    return experiment, trained.evaluate_seeds(experiment, Programs(), None, None)


def test_no_episodes_are_told_and_not_averaged(tmp_path, capsys):
    experiment, evaluation = _nothing_played()
    result = run.Result([None, None], evaluation, [], [-1, -1], {}, Members(0, 2), updates=0)
    tables.print_table(result, tmp_path)  # warnings are errors here
    said = capsys.readouterr().out
    assert "nan" not in said and "0/0" not in said
    assert "nothing was learned: the run ended before its first update" in said
    assert "nothing was evaluated: eval_episodes is 0" in said
    atari = config.override(experiment, ["env=atari", "env.name=Pong-v5"])
    for one in (experiment, atari):
        report.write_evaluation(tmp_path, one, evaluation)
        text = (tmp_path / "evaluation.json").read_text()
        found = json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is no JSON"))
        assert found["mean"] == [None, None] and found["returns"] == [[], []]
    assert records._evaluation(tmp_path, workdir.RunConfig(experiment, Members(0, 2)), []) == [
        None,
        None,
    ]


def test_a_table_of_a_run_that_learned_says_nothing_more(tmp_path, capsys):
    returns = np.ones((1, 2), np.float32)
    played = Evaluation(returns, np.ones((1, 2), np.int32), np.ones((1, 2), bool))
    tables.print_table(run.Result([1.0], played, [], [-1], {}, Members(), 3), tmp_path)
    assert "nothing was" not in capsys.readouterr().out


def test_evaluations_in_training_need_episodes():
    experiment = dataclasses.replace(small.catch(), eval_every=10, eval_episodes=0)
    with pytest.raises(ConfigError, match="eval_every=10 needs eval_episodes of at least 1"):
        config.validate(experiment)


def test_a_run_without_a_late_episode_says_what_it_returned_before(tmp_path, capsys):
    played = Evaluation(*(np.zeros((2, 1)) for _ in range(3)))
    two = run.Result([None, 1.0], played, [], [-1, -1], {}, Members(0, 2), 3, [-120.0, 2.0])
    tables.print_table(two, tmp_path)
    assert "in the last fifth of the steps: over all steps it returned -120.000" in (
        capsys.readouterr().out
    )
    one = run.Result([None], played, [], [-1], {}, Members(), 3, [None])
    tables.print_table(one, tmp_path)
    assert "in the last fifth of the steps, nor before" in capsys.readouterr().out


def test_titles_name_the_task():
    experiment = with_settings(small.pendulum(), ["env.name=MountainCarContinuous-v0"])
    assert title_of(experiment) == "mbpo_pendulum on MountainCarContinuous-v0"


def test_an_evaluation_that_runs_out_of_memory_is_told_and_can_be_repeated():
    told = "trained and saved in x, but the evaluation ran"
    with pytest.raises(ConfigError, match=told), run._enough_memory(Path("x")):
        jnp.zeros(2**50, jnp.int8).block_until_ready()
    with pytest.raises(ConfigError, match="MemoryError"), run._enough_memory(Path("x")):
        raise MemoryError
    with pytest.raises(RuntimeError, match="another"), run._enough_memory(Path("x")):
        raise RuntimeError("another")


def test_a_command_that_runs_out_of_memory_ends_in_a_sentence():
    code = (
        "from launch import flags\ndef main():\n import jax.numpy as jnp\n"
        " jnp.zeros(2**50, jnp.int8).block_until_ready()\nflags.run_main(main)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "error: memory ran out (RESOURCE_EXHAUSTED" in done.stderr
