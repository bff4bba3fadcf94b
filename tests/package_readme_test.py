"""The examples of mbrl_jax/README.md are complete: their models keep the laws and train."""

import importlib
import re
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.flatten_util import ravel_pytree

from experiments import mbpo_pendulum
from launch import flags
from mbrl_jax import testing
from mbrl_jax.experiment import config
from mbrl_jax.experiment.experiment import build, for_debug
from mbrl_jax.testing.rows import random_windows
from mbrl_jax.train.run import run

pytestmark = pytest.mark.usefixtures("quick_compile")

README = Path(__file__).resolve().parent.parent / "mbrl_jax" / "README.md"


def _shown(folder, name, which):
    """The file of that name that the README shows as its `which`-th block."""
    path = folder / f"{name}.py"
    path.write_text(re.findall(r"```python\n(.*?)```", README.read_text(), re.DOTALL)[which])
    return path


@pytest.fixture(scope="module")
def drift(tmp_path_factory):
    """The model in one file."""
    yield _shown(tmp_path_factory.mktemp("drift"), "drift", 0)
    sys.modules.pop("drift", None)


@pytest.fixture
def contrast(tmp_path, monkeypatch):
    """The module with a further term."""
    _shown(tmp_path, "contrast", 1)
    monkeypatch.syspath_prepend(tmp_path)
    yield importlib.import_module("contrast")
    sys.modules.pop("contrast", None)


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


def test_the_contrastive_term_of_the_readme_is_trained(contrast, tiny_drama, tiny_spec):
    key = jax.random.key(0)
    batch = random_windows(tiny_spec, key, 2, 6, (3,))
    plain = tiny_drama.make(tiny_spec)
    state = plain.init(key)

    @jax.jit
    def learned(scale):
        model = contrast.Config(tiny_drama, scale).make(tiny_spec)
        gradient = jax.value_and_grad(model.loss, has_aux=True)
        (loss, (_, _, metrics)), grads = gradient(state.params, state.stats, key, batch)
        updated, _, _ = model.update(state, key, batch)
        return loss, metrics, grads, updated.params

    loss, metrics, grads, params = learned(1.0)
    bare, _, bare_grads, bare_params = learned(0.0)
    assert metrics["model/contrast"][0] > 0
    np.testing.assert_allclose(loss, bare + metrics["model/contrast"][0], rtol=1e-6)
    # The posterior and the core make the features; the reward's head does not.
    for name in ("posterior", "core", "reward"):
        for tree in ((grads, bare_grads), (params, bare_params)):
            one, other = (ravel_pytree(both[name])[0] for both in tree)
            assert np.array_equal(one, other) == (name == "reward"), name


def test_a_model_with_a_further_term_keeps_the_laws(contrast, tiny_drama, tiny_spec):
    testing.check_world_model(contrast.Config(tiny_drama), tiny_spec)


def test_every_path_that_the_readmes_name_exists():
    root = README.parent.parent
    for readme in (*root.glob("*.md"), *root.glob("*/README.md"), *root.glob("*/*/README.md")):
        for path in re.findall(r"\]\(([\w/.]+)(?:#[\w-]+)?\)", readme.read_text()):
            assert (readme.parent / path).exists(), f"{readme}: {path}"
