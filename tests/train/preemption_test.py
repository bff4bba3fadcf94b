"""Signals: what listens, what is restored, and a run that is stopped by one and goes on."""

import contextlib
import dataclasses
import os
import signal
import threading

import jax
import numpy as np
import pytest

from mbrl_jax.runs import workdir
from mbrl_jax.train import preemption, run, trained
from mbrl_jax.train.preemption import Preempted
from mbrl_jax.train.progress import Quiet
from tests import small

pytestmark = pytest.mark.usefixtures("programs_kept")


@pytest.mark.parametrize("number", preemption.SIGNALS)
def test_a_signal_is_noted_and_the_old_handlers_come_back(number):
    before = [signal.getsignal(one) for one in preemption.SIGNALS]
    with preemption.listening():
        assert not preemption.received()
        os.kill(os.getpid(), number)
        assert preemption.received()
        with preemption.listening():  # nothing new inside
            assert preemption.received()
        with pytest.raises(Preempted, match=rf"^{number.name}, saved: the same command goes on$"):
            raise preemption.ended("saved")
    assert [signal.getsignal(one) for one in preemption.SIGNALS] == before
    assert not preemption.received()
    preemption.check()


def _send_and_fail():
    os.kill(os.getpid(), signal.SIGTERM)
    raise AssertionError("not reached")


def test_where_nothing_is_lost_it_is_raised_where_it_arrives():
    with preemption.listening():
        with pytest.raises(Preempted), preemption.at_once():
            _send_and_fail()
        with pytest.raises(Preempted), preemption.at_once():  # it had arrived before
            raise AssertionError("not reached")
    with preemption.at_once():  # nobody listens
        pass


def test_an_exception_that_is_swallowed_comes_again():
    swallowing = contextlib.suppress(Preempted)
    with preemption.listening(), pytest.raises(Preempted), preemption.at_once(), swallowing:
        _send_and_fail()


def test_in_other_threads_nothing_happens():
    before, found = signal.getsignal(signal.SIGTERM), []

    def listen():
        with preemption.listening(), preemption.at_once():
            found.append(signal.getsignal(signal.SIGTERM))
        found.append(preemption.received())

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert found == [before, False]


class Stopping(Quiet):
    """Sends a signal to the process after some chunks, and at the end of training if asked to."""

    def __init__(self, after: int):
        self.after, self.steps = after, []

    def chunk_done(self, step, rows, seconds):
        """Count."""
        self.steps.append(step)
        if len(self.steps) == self.after:
            os.kill(os.getpid(), signal.SIGUSR1)


EXPERIMENT = dataclasses.replace(
    small.catch(), log_every=5, checkpoint_every=10, eval_episodes=1, eval_max_steps=5
)


def _restored(path):
    saved = workdir.read_config(path)
    programs = trained.make_programs(
        saved.experiment, trained.build(saved.experiment), saved.members
    )
    keys = saved.members.keys()
    is_key = lambda x: jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    found = trained.restore_state(path, programs, keys)
    plain = lambda x: np.asarray(jax.random.key_data(x) if is_key(x) else x)
    return found.iteration, jax.tree.map(plain, found.state)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "whole"
    result = run.run(EXPERIMENT, path, num_seeds=2)
    return path, result


def test_a_run_saves_after_its_chunk_and_goes_on_bit_for_bit(tmp_path, whole):
    stopping = Stopping(after=3)
    with pytest.raises(Preempted, match=rf"^SIGUSR1, saved at step \d+ of {EXPERIMENT.steps}: "):
        run.run(EXPERIMENT, tmp_path, num_seeds=2, reporter=stopping)
    assert len(stopping.steps) == 3
    assert _restored(tmp_path)[0] == stopping.steps[-1]
    result = run.run(EXPERIMENT, tmp_path, num_seeds=2)
    path, expected = whole
    for name in ("metrics.jsonl", "evaluation.json"):
        assert (tmp_path / name).read_bytes() == (path / name).read_bytes()
    jax.tree.map(np.testing.assert_array_equal, _restored(tmp_path), _restored(path))
    assert result.final_return == expected.final_return


def test_a_signal_in_the_evaluation_loses_nothing(tmp_path, whole, monkeypatch):
    evaluate = trained.evaluate_seeds

    def stopped(*args):
        os.kill(os.getpid(), signal.SIGTERM)
        return evaluate(*args)

    monkeypatch.setattr(run, "evaluate_seeds", stopped)
    with pytest.raises(Preempted):
        run.run(EXPERIMENT, tmp_path, num_seeds=2)
    assert not (tmp_path / "evaluation.json").exists()
    assert _restored(tmp_path)[0] == EXPERIMENT.iterations
    monkeypatch.setattr(run, "evaluate_seeds", evaluate)
    again = Stopping(99)
    run.run(EXPERIMENT, tmp_path, num_seeds=2, reporter=again)
    assert not again.steps
    evaluation = (tmp_path / "evaluation.json").read_bytes()
    assert evaluation == (whole[0] / "evaluation.json").read_bytes()
