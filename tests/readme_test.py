"""The README's composition example runs, and is as short as it says."""

import re
from pathlib import Path

import pytest

import mbrl_jax
from mbrl_jax.experiment.experiment import for_debug
from mbrl_jax.train.run import run

pytestmark = pytest.mark.usefixtures("quick_compile")

README = Path(__file__).resolve().parent.parent / "README.md"


def _example() -> str:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(), flags=re.DOTALL)
    return next(block for block in blocks if "Experiment(" in block)


def test_the_example_imports_mbrl_jax_alone_and_has_at_most_fifteen_statements():
    lines = [line for line in _example().splitlines() if line and not line.startswith(" ")]
    assert len(lines) <= 15
    imports = [line for line in lines if line.startswith(("import", "from"))]
    assert all(line.startswith("from mbrl_jax") for line in imports)


def test_the_example_runs(monkeypatch, tmp_path):
    results = []

    def run_small(experiment, workdir, **options):
        results.append(run(for_debug(experiment), tmp_path / workdir, **options))
        return results[-1]

    monkeypatch.setattr(mbrl_jax, "run", run_small, raising=False)
    exec(compile(_example(), "README.md", "exec"), {})  # noqa: S102
    assert len(results[0].final_return) == 2


def test_every_path_that_the_readme_names_exists():
    root = README.parent
    for path in re.findall(r"\]\(([\w/.]+)\)|bash ([\w/.]+)", README.read_text()):
        assert (root / (path[0] or path[1])).exists(), path
