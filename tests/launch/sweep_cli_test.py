"""Sweeps from the command line: what is refused, what is shown, and a small one to its end."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mbrl_jax.errors import ConfigError
from mbrl_jax.report import records
from mbrl_jax.runs.metrics import read_metrics
from mbrl_jax.sweeps import packing, plan
from mbrl_jax.sweeps import status as sweep_status

ROOT = Path(__file__).resolve().parents[2]
CATCH = "--experiment=drama_catch"


def _sweep(root: Path, *flags: str, timeout: int = 300) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "launch.sweep", f"--root={root}", *flags],
        cwd=ROOT,
        env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"},
        capture_output=True,
        text=True,
        timeout=timeout,
    )


REFUSED = {
    "--experiment is missing": [],
    "member model.core=lstm: model.core=lstm: mbrl_jax.cores has": [
        *(CATCH, "--grid=model.core=gru,lstm")
    ],
    "unknown field model.widht": [CATCH, "--grid=model.widht=1,2"],
    "cannot understand --grid='model.core'": [CATCH, "--grid=model.core"],
    "--file=no/such cannot be read": [CATCH, "--grid=num_envs=1", "--file=no/such"],
    "nearest gymnax names are Catch-bsuite": [CATCH, "--grid=env.name=Catch-bsuite,Cach"],
    "members num_envs=1 and num_envs=1e0 are the same": [CATCH, "--grid=num_envs=1,1e0"],
    "expected a finite number": [CATCH, "--sweep_inside=behaviour.entropy=much"],
    "--steps=-1 must be positive": [CATCH, "--steps=-1"],
    "--seed=-1 must lie in 0": [CATCH, "--seed=-1"],
    "--num_seeds=0 must be at least 1": [CATCH, "--num_seeds=0"],
    "--jobs=0 must be at least 1": [CATCH, "--jobs=0"],
    "--gpus goes with --executor=slurm only": [CATCH, "--gpus=1"],
    "--time='soon': write minutes": [CATCH, "--executor=slurm", "--time=soon"],
    "the sweep sets array itself": [CATCH, "--executor=slurm", "--slurm=array=0-9"],
    "--mirror=wandbb: there is no such mirror": [CATCH, "--mirror=wandbb"],
    "holds no sweep": ["--status"],
}
# All in one process: most of the time of such a command goes into importing jax.
ONE_AFTER_THE_OTHER = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from launch import sweep
from mbrl_jax.errors import ConfigError
found = []
for arguments in json.loads(sys.argv[1]):
    with flagsaver.flagsaver():
        flags.FLAGS(["sweep", *arguments])
        try:
            sweep.main()
        except ConfigError as error:
            found.append(str(error))
print(json.dumps(found))
"""


def test_what_cannot_be_is_refused_before_anything_starts(tmp_path):
    root = tmp_path / "root"
    cases = json.dumps([[f"--root={root}", "--dry_run", *case] for case in REFUSED.values()])
    done = subprocess.run(
        [sys.executable, "-c", ONE_AFTER_THE_OTHER, cases], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    for sentence, found in zip(REFUSED, json.loads(done.stdout.splitlines()[-1]), strict=True):
        assert sentence in found
    assert not root.exists()


def test_a_refusal_ends_in_one_sentence(tmp_path):
    done = _sweep(tmp_path / "root", CATCH, "--grid=model.widht=1,2")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("error: member model.widht=1: unknown")


def test_a_dry_run_shows_the_commands_and_leaves_nothing(tmp_path):
    file = tmp_path / "members"
    file.write_text("model.core=gru  # small\nmodel.core=s5 behaviour.horizon=5\n")
    flags = (CATCH, f"--file={file}", "--grid=behaviour.entropy=1e-2,2e-2", "--debug")
    flags += ("--mirror=tests.mirrors.nowhere", "--allow_oversize")
    done = _sweep(tmp_path / "root", *flags, "--dry_run")
    assert done.returncode == 0, done.stderr
    commands = [line for line in done.stdout.splitlines() if "launch.train" in line]
    assert len(commands) == 4
    assert "model.core=s5,behaviour.horizon=5,behaviour.entropy=2e-2" in commands[3]
    # What changes nothing of the results is handed on too.
    handed = "--mirror=tests.mirrors.nowhere --allow_oversize"
    assert all(command.endswith(handed) for command in commands)
    assert not (tmp_path / "root").exists()


def test_a_dry_run_for_slurm_needs_neither_slurm_nor_submitit(tmp_path):
    flags = ("--grid=model.core=gru,s5", "--executor=slurm", "--time=2-12", "--gpus=1", "--cpus=4")
    blocked = (
        "import sys; sys.modules['submitit'] = None; import runpy\n"
        "runpy.run_module('launch.sweep', run_name='__main__', alter_sys=True)"
    )
    done = subprocess.run(
        [sys.executable, "-c", blocked, f"--root={tmp_path}", CATCH, *flags, "--dry_run"]
        + ["--partition=main", "--mem=8G", "--jobs=1", "--slurm=qos=low", "--slurm=exclusive"],
        cwd=ROOT,
        env=os.environ | {"PATH": "/usr/bin/none"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[:12] == [
        "#SBATCH --array=0-1%1",
        "#SBATCH --cpus-per-task=4",
        "#SBATCH --exclusive",
        "#SBATCH --gpus-per-node=1",
        "#SBATCH --job-name=mbrl_jax",
        "#SBATCH --mem=8G",
        "#SBATCH --partition=main",
        "#SBATCH --qos=low",
        "#SBATCH --requeue",
        "#SBATCH --signal=B:USR2@120",
        "#SBATCH --time=3600",
        "",
    ]


# ----------------------------------------------------------------------------------- what fits


def _preflight(most_seeds, lanes=2, returncode=0):
    """What `subprocess.run` of a preflight returns, and the commands that it was asked for."""
    asked = []

    def run(command, **_):
        asked.append(command)
        said = f"a warning\n{json.dumps({'num_seeds': lanes, 'most_seeds': most_seeds})}\n"
        return subprocess.CompletedProcess(command, returncode, said, "error: no such field\n")

    return run, asked


COMMON = plan.Common("drama_catch", num_seeds=64)
GRU, S5 = ("model.core=gru",), ("model.core=s5",)


@pytest.mark.parametrize(
    ("most", "lanes", "programs", "wanted"),
    [(20, 2, 1, 18), (20, 6, 1, 6), (20, 2, 4, 4), (200, 2, 1, 64)],
)
def test_as_many_seeds_as_fit_go_into_a_program(monkeypatch, most, lanes, programs, wanted):
    run, asked = _preflight(most, lanes)
    monkeypatch.setattr(packing.subprocess, "run", run)
    assert packing.seeds_that_fit(COMMON, [GRU, S5], ("srun", "--mem=1"), programs) == wanted
    assert [command[:2] for command in asked] == [["srun", "--mem=1"]] * 2
    assert "--preflight" in asked[0] and "--set=model.core=s5" in asked[1]


@pytest.mark.parametrize(
    ("most", "returncode", "sentence"),
    [
        (1, 0, "not one seed of model.core=gru fits"),
        (None, 0, "nobody tells how much memory is free"),
        (9, 1, "preflight of model.core=gru failed .error: no such field"),
    ],
)
def test_what_cannot_be_packed_is_refused(monkeypatch, most, returncode, sentence):
    monkeypatch.setattr(packing.subprocess, "run", _preflight(most, returncode=returncode)[0])
    with pytest.raises(ConfigError, match=sentence):
        packing.seeds_that_fit(COMMON, [GRU])


@pytest.mark.slow
def test_what_fits_is_asked_of_this_machine_and_kept_in_the_root(tmp_path):
    flags = (CATCH, "--debug", "--num_seeds=4", "--set=model.core=gru", "--dry_run")
    done = _sweep(tmp_path, *flags, "--seeds_per_program=fit")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "4 of 4 seeds fit into one program"
    common = plan.Common("drama_catch", GRU, num_seeds=4, seeds_per_program=3, debug=True)
    plan.write_manifest(tmp_path, plan.merge(tmp_path, None, common, []))
    done = _sweep(tmp_path, *flags, "--seeds_per_program=fit")
    assert done.returncode == 0 and "fit into" not in done.stdout, done.stderr
    assert done.stdout.count("--num_seeds=2") == 2
    done = _sweep(tmp_path, *flags, "--seeds_per_program=0")
    assert "--seeds_per_program=0 must be a number of 1 or more, or fit" in done.stderr


SMALL = (
    *(CATCH, "--debug", "--num_seeds=2", "--seeds_per_program=1", "--set=model.core=gru"),
    *("--set=behaviour.horizon=2", "--retries=0"),
)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A sweep of one configuration whose two seeds take a program each."""
    root = tmp_path_factory.mktemp("a sweep") / "of ü"
    done = _sweep(root, *SMALL, "--jobs=2")
    assert done.returncode == 0, done.stdout + done.stderr
    return root


def test_both_programs_end_and_the_rows_name_their_lanes(root):
    for lane in (0, 1):
        workdir = root / f"seeds={lane}-{lane}"
        rows = read_metrics(workdir)
        assert {row["seed"] for row in rows} == {lane}
        assert json.loads((workdir / "config.json").read_text())["first_seed"] == lane
        assert rows[-1]["step"] == plan.members_of(plan.read_manifest(root))[lane].steps
    first, second = (read_metrics(root / f"seeds={lane}-{lane}") for lane in (0, 1))
    loss = next(name for name in first[-1] if name.endswith("loss"))
    assert first[-1][loss] != second[-1][loss]


def test_a_report_reads_the_metrics_of_every_program(root):
    planned = plan.members_of(plan.read_manifest(root))
    for lane, (run, member) in enumerate(zip(records.read_sweep(root), planned, strict=True)):
        assert (run.state, run.notes, run.step) == ("finished", (), member.steps)
        assert [own.seed for own in run.lanes] == [(0, lane)]


def test_a_sweep_that_is_done_has_nothing_to_do(root):
    done = _sweep(root, *SMALL)
    assert done.returncode == 0
    assert "2 of 2 members are done already" in done.stdout
    status = _sweep(root, "--status")
    assert "2 members: 2 done" in status.stdout


def test_a_member_that_another_process_runs_is_left_to_it(root):
    sweep_status.write_record(root / "seeds=0-0", state="running")
    done = _sweep(root, *SMALL)
    sweep_status.write_record(root / "seeds=0-0", state="done")
    assert done.returncode == 1
    assert f"seeds=0-0 is being run by process {os.getpid()}" in done.stderr


def test_what_the_members_share_may_not_change(root):
    done = _sweep(root, *SMALL, "--set=behaviour.horizon=3", "--dry_run")
    assert "belongs to another sweep (--set: " in done.stderr
