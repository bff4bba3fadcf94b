"""Weights & Biases gets each step once: with a module that stands in for it, and with itself."""

import importlib
import os
import signal
import struct
import subprocess
import sys
import time
import types
import zlib
from pathlib import Path

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.mirrors.mirror import About
from mbrl_jax.runs import checkpoint
from mbrl_jax.runs.metrics import read_metrics

ROOT = Path(__file__).resolve().parents[2]
ROWS = [{"step": 5, "seed": i, "env_steps": 4, "model/loss": 0.5, "x": None} for i in (0, 1)]


class Run:
    """What `wandb.init` gives."""

    def __init__(self, offline=False, step=0):
        self.offline, self.step = offline, step
        self.logged, self.codes = [], []

    def log(self, data, step):
        self.logged.append((step, data))

    def finish(self, exit_code):
        self.codes.append(exit_code)


@pytest.fixture
def fake(monkeypatch):
    """A module wandb whose runs are `Run`; yields (our module, the runs, what they were asked)."""
    runs, asked = [Run()], []

    def init(**options):
        asked.append(options)
        if isinstance(runs[-1], Exception):
            raise runs[-1]
        return runs[-1]

    module = types.ModuleType("wandb")
    module.init, module.Settings = init, dict
    monkeypatch.setitem(sys.modules, "wandb", module)
    sys.modules.pop("mbrl_jax.mirrors.wandb", None)
    yield importlib.import_module("mbrl_jax.mirrors.wandb"), runs, asked
    del sys.modules["mbrl_jax.mirrors.wandb"]  # who wants the true one imports it anew


def about(begins=False):
    return About("catch", {"seed": 3}, begins)


def test_a_step_is_one_record_of_all_seeds(tmp_path, fake):
    ours, runs, asked = fake
    made = ours.make(tmp_path, about())
    made.write(5, ROWS)
    made.close(failed=False)
    numbers = {"env_steps": 4, "model/loss": 0.5}
    both = {f"seed_{i}/{name}": value for i in (0, 1) for name, value in numbers.items()}
    assert runs[0].logged == [(5, both)] and runs[0].codes == [0]
    assert ours.record_of(ROWS[:1]) == numbers
    assert asked[0]["dir"] == str(tmp_path) and asked[0]["config"] == {"seed": 3}


def test_a_workdir_keeps_its_run_unless_it_begins_anew(tmp_path, fake):
    ours, runs, asked = fake
    ours.make(tmp_path, about(begins=True))
    ours.make(tmp_path, about(begins=True)).write(5, ROWS)  # the first one was killed before a row
    runs[-1].step = 6
    assert ours.make(tmp_path, about()).last_step == 5
    ours.make(tmp_path, about(begins=True))
    ours.make(tmp_path / "..", about())  # another workdir
    idents = [one["id"] for one in asked]
    assert idents[0] == idents[1] == idents[2] and len(set(idents)) == 3


def test_rows_that_are_only_offline_are_uploaded_first(tmp_path, fake, monkeypatch):
    ours, runs, asked = fake
    ours.make(tmp_path, about())
    name = f"run-{asked[0]['id']}.wandb"
    path = tmp_path / "wandb" / "offline-run-1" / name
    path.parent.mkdir(parents=True)
    path.write_bytes(b":W&B")
    monkeypatch.setattr(ours, "steps_of", lambda path: [5, 10])
    with pytest.raises(ConfigError, match="is not uploaded: `wandb sync"):
        ours.make(tmp_path, about())
    runs.append(Run(offline=True))
    assert ours.make(tmp_path, about()).last_step == 10
    path.with_name(name + ".synced").touch()
    runs.append(Run(step=11))
    assert ours.make(tmp_path, about()).last_step == 10


def test_what_wandb_refuses_is_one_sentence(tmp_path, fake):
    ours, runs, _ = fake
    runs.append(RuntimeError("no API key\nconfigured"))
    with pytest.raises(ConfigError, match=r"cannot begin \(no API key\): `wandb login`, or WANDB_"):
        ours.make(tmp_path, about())
    (tmp_path / "wandb.json").write_text("{")
    with pytest.raises(ConfigError, match="is damaged"):
        ours.make(tmp_path, about())


def piece(kind, data):
    return struct.pack("<IHB", zlib.crc32(data, zlib.crc32(bytes([kind]))), len(data), kind) + data


def test_records_are_read_up_to_a_damaged_one(fake):
    ours, _, _ = fake
    head = b":W&B\xe1\xbe\x00"
    first = piece(1, b"a" * 40_0)
    rest = 32_768 - 7 - len(first) - 7 - 7 - 3  # three bytes of the block are left
    parts = piece(2, b"b" * rest) + piece(3, b"") + bytes(3)
    whole = head + first + parts + piece(4, b"c")
    assert [len(one) for one in ours._records(whole)] == [400, rest + 1]
    for data in (whole[:-1], whole[:-1] + b"d"):
        assert [len(one) for one in ours._records(data)] == [400]
    assert list(ours._records(head)) == list(ours._records(b"")) == list(ours._records(b"x")) == []


# ------------------------------------------------------------------------------------ wandb itself

STEPS = 360


def command(path, *more):
    return [sys.executable, "-m", "launch.train", "--mirror=wandb", f"--workdir={path}", *more]


SETTINGS = [
    *("--experiment=drama_catch", "--debug", "--num_seeds=2", f"--steps={STEPS}"),
    *("--set=model.core=gru", "--set=log_every=10", "--set=checkpoint_every=30"),
]


def run_to_the_end(*flags):
    done = subprocess.run(
        command(*flags), cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr


def environment():
    # Often to the disk, so that a kill leaves rows there.
    own = {"WANDB_MODE": "offline", "WANDB_SILENT": "true"}
    own |= {"WANDB__TRANSACTION_LOG_FLUSH_INTERVAL": "0.1"}
    return {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | own


def mirrored(path, ours):
    """The steps in all offline files of a workdir, and the ids of their runs."""
    found = sorted((path / "wandb").glob("offline-run-*/run-*.wandb"))
    return sorted(s for f in found for s in ours.steps_of(f)), {f.name for f in found}


def kill_after(path, iteration, ours, *, with_rows):
    process = subprocess.Popen(
        command(path, *SETTINGS), cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL
    )
    before = len(mirrored(path, ours)[0]) if path.exists() else 0
    deadline = time.monotonic() + 900
    while (checkpoint.latest_iteration(path) or 0) < iteration or (
        with_rows and len(mirrored(path, ours)[0]) == before
    ):
        assert process.poll() is None and time.monotonic() < deadline, "the run ended by itself"
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.slow
def test_a_run_that_is_killed_twice_is_mirrored_once(tmp_path):
    pytest.importorskip("wandb")
    from mbrl_jax.mirrors import wandb as ours

    path, child = tmp_path / "run", tmp_path / "child"
    kill_after(path, STEPS // 6, ours, with_rows=False)
    kill_after(path, STEPS // 3, ours, with_rows=True)
    assert mirrored(path, ours)[0], "nothing was on the disk at a kill: the test shows too little"
    run_to_the_end(path, *SETTINGS)
    steps, idents = mirrored(path, ours)
    assert steps == [row["step"] for row in read_metrics(path) if row["seed"] == 0]
    assert len(idents) == 1
    assert len(list((path / "wandb").glob("offline-run-*"))) == 3
    for _ in range(2):  # the second one has nothing to add
        run_to_the_end(child, f"--fork={path}@{STEPS}", f"--steps={STEPS + 30}")
    steps, own = mirrored(child, ours)
    assert steps == [row["step"] for row in read_metrics(child) if row["seed"] == 0]
    assert steps[-1] == STEPS + 30 and own.isdisjoint(idents)
