"""Processes that never come: one sentence in time, which says how to train alone."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

from tests.train.distributed_test import ROOT

JOIN = """
import sys
from mbrl_jax.errors import ConfigError
from mbrl_jax.train import preemption, runtime
from launch.flags import fail
with preemption.listening():
    try:
        with preemption.at_once():
            print("several" if runtime.join_processes("wanted" in sys.argv) else "alone")
    except ConfigError as error:
        fail(str(error))
    except preemption.Preempted as error:
        fail(str(error), status=75)
"""
STEP = {  # an interactive shell inside a step of four tasks
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NUM_TASKS": "4",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "0",
    "SLURM_LOCALID": "0",
    "SLURM_STEP_NODELIST": "localhost",
}


def start(*arguments, **environment):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    kept = {k: v for k, v in os.environ.items() if "SLURM" not in k}
    return subprocess.Popen(
        [sys.executable, "-c", JOIN, *arguments],
        cwd=ROOT,
        env=kept | {"JAX_COORDINATOR_PORT": port} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process):
    out, errors = process.communicate(timeout=60)
    return process.returncode, out.strip(), [x for x in errors.splitlines() if "error:" in x]


def test_a_task_whose_others_never_come_says_what_to_unset():
    code, _, (said,) = ended(start(**STEP, MBRL_JAX_JOIN_SECONDS="1"))
    assert code == 1
    assert "did not come within 1 s" in said and "unset SLURM_STEP_NUM_TASKS;" in said


def test_a_second_process_without_a_first():
    named = {"JAX_COORDINATOR_ADDRESS": "127.0.0.1:9", "JAX_NUM_PROCESSES": "2"}
    limits = {"JAX_PROCESS_ID": "1", "MBRL_JAX_JOIN_SECONDS": "1"}
    code, _, (said,) = ended(start(**named, **limits))
    assert code == 1 and "unset JAX_COORDINATOR_ADDRESS JAX_NUM_PROCESSES JAX_PROCESS_ID;" in said


def test_waiting_for_the_others_hears_sigterm():
    process = start(**STEP, MBRL_JAX_JOIN_SECONDS="40")
    time.sleep(4)
    began = time.monotonic()
    process.send_signal(signal.SIGTERM)
    assert ended(process)[0] == 75 and time.monotonic() - began < 5


@pytest.mark.parametrize(
    "environment, words",
    [
        ({"SLURM_STEP_NUM_TASKS": "4"}, "train in this process alone, unset SLURM_STEP_NUM_TASKS;"),
        ({"SLURM_STEP_NUM_TASKS": "four"}, "SLURM_STEP_NUM_TASKS=four is no whole number"),
        (STEP | {"MBRL_JAX_JOIN_SECONDS": "soon"}, "MBRL_JAX_JOIN_SECONDS=soon is no number"),
    ],
    ids=["alone", "a word", "limit"],
)
def test_what_cannot_be_joined_is_said_at_once(environment, words):
    code, _, (said,) = ended(start(**environment))
    assert code == 1 and words in said


def test_an_address_without_a_port():
    named = {"JAX_COORDINATOR_ADDRESS": "here", "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": "0"}
    code, _, (said,) = ended(start(**named))
    assert code == 1 and "cannot be joined" in said


def test_nothing_to_join():
    assert ended(start("wanted"))[2][0].count("leave out --distributed;") == 1
    assert ended(start()) == (0, "alone", [])
