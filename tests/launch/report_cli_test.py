"""`launch.report` from the command line."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

from tests.report import runs
from tests.report.records_test import plan

ROOT = Path(__file__).resolve().parent.parent.parent


def call(*flags, **environment):
    return subprocess.run(
        [sys.executable, "-m", "launch.report", *flags],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_workdirs_of_any_name_are_reported(tmp_path):
    a = runs.write(tmp_path / "a b ü#", runs.catch(), [1.0, 0.0], greedy=[1.0, 0.0])
    home = runs.write(tmp_path / "home" / "c,d", runs.catch("model.core=gru"), [0.5], until=0.3)
    out = tmp_path / "new" / "page.html"
    done = call(
        f'--workdirs={a},"~/{home.name}"', f"--out={out}", "--title=Two <runs>", HOME=home.parent
    )
    assert done.returncode == 0, done.stderr
    assert "2 runs: 1 finished, 1 stopped." in done.stdout
    assert re.search(r"\| A core=mamba2 \| +2 \| +0.50 \[-5.85, 6.85\] \|", done.stdout)
    assert done.stdout.endswith(f"{out}\n{out.with_suffix('.md')}\n")
    assert out.with_suffix(".md").read_text() in done.stdout
    page = out.read_text()
    assert "<h1>Two &lt;runs&gt;</h1>" in page and "python -m launch.report" in page
    # Found again from config.json and the experiment that ships.
    assert "--set=model.core=gru" in page and "reconstructed from config.json" in page


def test_a_sweep_is_reported(tmp_path):
    done, waiting = plan(tmp_path, "model.core=gru", "model.core=s5")
    runs.write(tmp_path / done.name, runs.catch(*done.settings), [1.0, 0.0], greedy=[1.0, 0.0])
    out = tmp_path / "report.html"
    drawn = tmp_path / "figures"
    found = call(
        f"--sweep={tmp_path}", f"--out={out}", f"--figures={drawn}", "--baseline=random=-0.6"
    )
    assert found.returncode == 0, found.stderr
    assert f"# Sweep {tmp_path.name} on Catch-bsuite" in found.stdout.replace("\\", "")
    names = sorted(path.name for path in drawn.iterdir())
    assert names == [
        f"0{i}_{name}_Catch-bsuite.{kind}"
        for i, name in enumerate(("scores_on", "learning_curves_of"))
        for kind in ("png", "svg")
    ]
    assert "random -0.6" in (drawn / names[1]).read_text()
    assert "2 runs: 1 finished, 1 not begun." in found.stdout
    page = out.read_text()
    assert "plan of the sweep" in page and waiting.name in page
    assert "Without a number in this report" in page


REFUSED = {
    "give one of --workdirs and --sweep; see --help": [],
    "give one of --workdirs and --sweep": ["--workdirs=a", "--sweep=b"],
    "--workdirs: there is no directory no such": ["--workdirs=no such"],
    "--baseline=PPO is not of the form NAME=VALUE": ["--workdirs=no such", "--baseline=PPO"],
    "no such holds no sweep: there is no sweep.json in it": ["--sweep=no such"],
}
# All in one process: most of the time of such a command goes into importing jax.
ONE_AFTER_THE_OTHER = """
import json, sys
from absl import flags
from absl.testing import flagsaver
from launch import report
from mbrl_jax.errors import ConfigError
found = []
for arguments in json.loads(sys.argv[1]):
    with flagsaver.flagsaver():
        flags.FLAGS(["report", *arguments])
        try:
            report.main()
        except ConfigError as error:
            found.append(str(error))
print(json.dumps(found))
"""


def test_mistakes_are_told_in_a_sentence():
    cases = json.dumps(list(REFUSED.values()))
    command = [sys.executable, "-c", ONE_AFTER_THE_OTHER, cases]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for sentence, found in zip(REFUSED, json.loads(done.stdout), strict=True):
        assert sentence in found and "\n" not in found


def test_a_mistake_ends_without_a_traceback(tmp_path):
    (tmp_path / "a b").mkdir()
    done = call(f"--workdirs={tmp_path / 'a b'}")
    assert done.returncode == 1 and "Traceback" not in done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line == f"error: --workdirs: {tmp_path / 'a b'} is empty; name directories of runs"
