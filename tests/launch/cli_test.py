"""What users get wrong ends in one sentence: no traceback, exit status not 0."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CATCH = "--experiment=drama_catch"


def _launch(module: str, *flags: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", f"launch.{module}", *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,
    )


def _sentence(done: subprocess.CompletedProcess) -> str:
    assert done.returncode != 0, done.stdout
    assert "Traceback" not in done.stderr
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    return last


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "--experiment is missing"),
        (["--experiment=drama_cach"], "nearest names are drama_catch"),
        (["--experiment=no/such.py"], "there is no such file"),
        ([CATCH, "--set=model.widht=3"], "unknown field model.widht"),
        ([CATCH, "--set=model.groups"], "an assignment reads path=value"),
        ([CATCH, "--set=model.groups=many"], "expected an integer, got 'many'"),
        ([CATCH, "--set=model.core=lstm"], "mbrl_jax.cores has block_gru, dplr, gru"),
        ([CATCH, "--set=env.name=Cach-bsuite"], "nearest gymnax names are Catch-bsuite"),
        ([CATCH, "--set=env=atari", "--set=env.name=Pongg-v5"], "EnvPool names are Pong-v5"),
        (
            ["--experiment=mbpo_pendulum", "--set=env=atari", "--set=env.name=Pong-v5"],
            "set env.protocol.seam=separate",
        ),
        ([CATCH, "--set=env=envpool", "--set=env.name=Cartpole-v1"], "CartPole-v1"),
        ([CATCH, "--set=env=atari", "--set=env.protocol=dqm"], "drama or dreamerv3 or dqn"),
        ([CATCH, "--set=env.name=Pendulum-v1"], "takes observations between 0 and 1"),
        ([CATCH, "--set=replay.length=2000"], "lengthen the first phase"),
        ([CATCH, "--set=agent.num_starts=100000"], "exceeds the 256 rows of a batch"),
        ([CATCH, "--num_seeds=0"], "--num_seeds=0 must be at least 1"),
        ([CATCH, "--num_seeds=two"], "--num_seeds=two"),
        ([CATCH, "--steps=-5"], "--steps=-5 must be positive"),
        ([CATCH, "--steps=4294967296"], "do not fit into their 32-bit counter"),
        ([CATCH, "--seed=-1"], "--seed=-1 must lie in 0"),
        ([CATCH, "--seed=4294967296"], "--seed=4294967296 must lie in 0"),
        ([CATCH, "--resume=must"], "holds no checkpoint"),
        ([CATCH, "--resume=perhaps"], "--resume=perhaps"),
        ([CATCH, "--num_seeds=1000000"], "or --allow_oversize to try all the same"),
        (["--fork=no/run@3"], "holds no run"),
        ([CATCH, "--worksdir=x"], "worksdir"),
        ([CATCH, "catch"], "unexpected argument 'catch'"),
    ],
)
def test_train_refuses(tmp_path, flags, sentence):
    done = _launch("train", f"--workdir={tmp_path / 'run'}", *flags)
    assert sentence in _sentence(done)


def test_a_workdir_that_is_a_file_is_refused(tmp_path):
    path = tmp_path / "file"
    path.write_text("mine")
    assert "is a file" in _sentence(_launch("train", CATCH, f"--workdir={path}"))
    assert "cannot be created" in _sentence(_launch("train", CATCH, f"--workdir={path}/run"))
    assert path.read_text() == "mine"


def test_a_workdir_that_cannot_be_written_is_refused():
    # /proc takes no new directories, not even from root.
    assert "cannot be created" in _sentence(_launch("train", CATCH, "--workdir=/proc/run"))


def test_evaluate_refuses_what_is_no_run(tmp_path):
    assert "holds no run" in _sentence(_launch("evaluate", f"--workdir={tmp_path}"))
    assert "--workdir is missing" in _sentence(_launch("evaluate"))
    assert "holds no run" in _sentence(
        _launch("evaluate", f"--workdir={tmp_path}", "--checkpoint=best")
    )
    assert "clean|published" in _sentence(_launch("evaluate", "--protocol=best"))
    for flags, said in [
        (("--quality", "--gif=x.gif"), "--gif does not go with --quality"),
        (("--quality", "--set=env.name=x"), "--set does not go with --quality"),
        (("--horizon=3",), "--horizon goes with --quality only"),
        (("--quality", "--random_share=2"), "--random_share=2"),
    ]:
        assert said in _sentence(_launch("evaluate", f"--workdir={tmp_path}", *flags))


@pytest.mark.parametrize(
    ("flags", "sentence"),
    [
        ([], "give one of --env and --experiment"),
        (["--env=Catch-bsuit"], "the nearest names are Catch-bsuite"),
        (["--env=no/such.py:make"], "--env=no/such.py: there is no such file"),
        (["--env=no.such.module:make"], "FILE.py:FUNCTION, dotted.module:FUNCTION"),
        (["--env=mbrl_jax.envs.probe:nothing"], "has no function 'nothing'"),
        (["--env=probe:match", "--set=env.name=x"], "--set changes fields of an --experiment"),
        (["--env=probe:match", "--range=low,high"], "write LOW,HIGH"),
    ],
)
def test_the_doctor_refuses(flags, sentence):
    assert sentence in _sentence(_launch("doctor", *flags))


def test_the_doctors_status_says_whether_there_are_errors():
    sound = _launch("doctor", "--env=probe:match", "--steps=20")
    assert sound.returncode == 0 and "probe:match: 0 errors" in sound.stdout
    broken = _launch("doctor", "--env=probe:match", "--steps=20", "--range=0,0.5")
    assert broken.returncode == 1 and "beyond their range of 0 to 0.5" in broken.stdout
    unknown = _launch("doctor", "--env=gymnax:Cach-bsuite")
    assert unknown.returncode == 1 and "Catch-bsuite" in unknown.stdout


def test_an_accelerator_that_is_not_there_is_named(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "launch.train", CATCH, f"--workdir={tmp_path}/run"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        env={"JAX_PLATFORMS": "cuda", "HOME": str(tmp_path), "PATH": "/usr/bin:/bin"},
    )
    assert "JAX_PLATFORMS=cuda" in _sentence(done)


def test_help_answers_at_once_and_imports_nothing_heavy():
    code = (
        "import sys; sys.argv = ['train', '--help']; import runpy\n"
        "try: runpy.run_module('launch.train', run_name='__main__')\n"
        "except SystemExit: pass\n"
        "print('jax' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert "--experiment" in done.stdout
    assert done.stdout.strip().endswith("False")
