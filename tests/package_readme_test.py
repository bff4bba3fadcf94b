"""The example of mbrl_jax/README.md is complete: a model in one file keeps the laws and trains."""

import re
import sys
from pathlib import Path

import pytest

from experiments import mbpo_pendulum
from launch import flags
from mbrl_jax import testing
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import build, for_debug
from mbrl_jax.train.run import run

pytestmark = pytest.mark.usefixtures("quick_compile")

README = Path(__file__).resolve().parent.parent / "mbrl_jax" / "README.md"


@pytest.fixture(scope="module")
def drift(tmp_path_factory):
    """The file that the README shows."""
    (block,) = (b for b in re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL))
    path = tmp_path_factory.mktemp("drift") / "drift.py"
    path.write_text(block)
    yield path
    sys.modules.pop("drift", None)


def test_the_model_of_the_readme_keeps_the_laws_and_learns_from_the_command_line(drift, tmp_path):
    experiment = for_debug(flags.load_experiment(str(drift)))
    spec = experiment.env.make().spec
    testing.check_world_model(experiment.model, spec)
    run(experiment, tmp_path / "run")
    assert (tmp_path / "run" / "evaluation.json").is_file()


def test_a_part_of_ones_own_is_named_without_an_entry_anywhere(drift, monkeypatch):
    monkeypatch.syspath_prepend(drift.parent)
    experiment = config.override(mbpo_pendulum.get_experiment(), ["model=drift:Config"])
    assert type(experiment.model).__module__ == "drift"
    assert build(for_debug(config.override(experiment, ["debug=()"]))).world_model.markov


def test_every_path_that_the_readmes_name_exists():
    root = README.parent.parent
    for readme in (*root.glob("*.md"), *root.glob("*/README.md"), *root.glob("*/*/README.md")):
        for path in re.findall(r"\]\(([\w/.]+)(?:#[\w-]+)?\)", readme.read_text()):
            assert (readme.parent / path).exists(), f"{readme}: {path}"
