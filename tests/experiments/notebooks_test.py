"""The notebooks run, and what lies in them is fit to be shown."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from experiments.notebooks import execute
from mbrl_jax.errors import ConfigError
from tests.conftest import CACHE

ROOT = Path(__file__).resolve().parents[2]
NAMES = execute.names()
MAX_BYTES = 1_000_000  # of all notebooks together
MAX_LINES = 60  # of a cell
# What a reader of the README has, and what Jupyter brings.
IMPORTED = {"mbrl_jax", "jax", "numpy", "matplotlib", "gymnax", "IPython", *sys.stdlib_module_names}


def launch(*arguments):
    environment = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    environment |= {"PYTHONPATH": str(ROOT), "JAX_COMPILATION_CACHE_DIR": str(CACHE)}
    return subprocess.run(
        [sys.executable, "-m", "experiments.notebooks", *arguments],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=3_000,
    )


def code(notebook) -> list:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


# -------------------------------------------------------------------------------------- they run


@pytest.mark.slow
def test_the_kernels_notebook_runs_in_full():
    """Its own assertions hold kernels against loops."""
    done = launch("--only=ssm_alone")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("ssm_alone: ") and "CPU-seconds" in done.stdout
    assert done.stderr == ""


# All three take two minutes; one of them shows whether notebooks run at all.
@pytest.mark.parametrize(
    "name",
    [
        "your_own_environment",
        *(
            pytest.param(name, marks=pytest.mark.slow)
            for name in ("compose_drama", "swap_the_core")
        ),
    ],
)
def test_a_notebook_runs_with_small_sizes(name):
    done = launch("--quick", f"--only={name}")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "not for others to see" not in done.stdout


@pytest.mark.slow
def test_all_notebooks_run_in_full():
    done = launch()
    assert done.returncode == 0, done.stdout + done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == NAMES


# ------------------------------------------------------------------------------ what lies in them


def test_there_are_four_and_they_are_small():
    assert NAMES == ["compose_drama", "ssm_alone", "swap_the_core", "your_own_environment"]
    assert sum(execute.path_of(name).stat().st_size for name in NAMES) < MAX_BYTES
    assert {*execute.QUICK} == {*NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_those_of_one_run_from_top_to_bottom(name):
    notebook = execute.read(name)
    nbformat.validate(notebook)
    counts = [cell.execution_count for cell in code(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    assert execute.noise(notebook) == []
    shown = [output for cell in code(notebook) for output in cell.outputs]
    assert any("image/png" in output.get("data", {}) for output in shown) or name == "ssm_alone"


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_says_how_to_run_it_and_needs_nothing_unusual(name):
    notebook = execute.read(name)
    first = notebook.cells[0].source
    assert "pip install -c constraints.txt -e '.[notebooks]'" in first
    assert "python -m experiments.notebooks" in first
    for cell in code(notebook):
        assert len(cell.source.splitlines()) <= MAX_LINES
        for node in ast.walk(ast.parse(cell.source)):
            if isinstance(node, ast.Import):
                assert {alias.name.split(".")[0] for alias in node.names} <= IMPORTED
            elif isinstance(node, ast.ImportFrom):
                assert node.module.split(".")[0] in IMPORTED
    links = [word for cell in notebook.cells for word in cell.source.split("](")[1:]]
    for link in (word.partition(")")[0] for word in links):
        assert (execute.FOLDER / link).exists(), link


# ------------------------------------------------------------------------------------ the command


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder of one notebook whose second cell fails, in the place of ours."""
    cells = [
        nbformat.v4.new_code_cell("N = 1", metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell("print('N is', N)\nassert N == 1, 'N is wrong'"),
        nbformat.v4.new_code_cell("import os, sys\nprint(os.getcwd(), file=sys.stderr)"),
    ]
    notebook = nbformat.v4.new_notebook(cells=cells)
    notebook.metadata.kernelspec = {"name": "python3", "display_name": "Python 3"}
    nbformat.write(notebook, tmp_path / "made_up.ipynb")
    monkeypatch.setattr(execute, "FOLDER", tmp_path)
    return tmp_path


@pytest.mark.filterwarnings("default")  # of the library that runs kernels
def test_a_cell_that_fails_is_told_and_the_rest_is_not_run(folder, monkeypatch):
    monkeypatch.setitem(execute.QUICK, "made_up", {"N": 2})
    done = execute.execute("made_up", quick=True)
    assert done.error == "AssertionError: N is wrong" and done.cpu_seconds > 0
    assert [cell.execution_count for cell in done.notebook.cells] == [1, 2, None]
    (text,) = (o.text for o in done.notebook.cells[1].outputs if o.output_type == "stream")
    assert text == "N is 2\n"
    done = execute.execute("made_up")
    assert done.error == "" and done.seconds > 0
    assert execute.noise(done.notebook)  # a path, on stderr
    kernel = {"name": "python3", "display_name": "Python 3"}
    assert done.notebook.metadata == {"kernelspec": kernel, "language_info": {"name": "python"}}


def test_parameters_must_be_those_of_the_cell(folder):
    changed = execute.with_parameters(execute.read("made_up"), {"N": 3})
    assert changed.cells[0].source == "N = 1\nN = 3"
    with pytest.raises(ConfigError, match="does not set M"):
        execute.with_parameters(execute.read("made_up"), {"M": 3})
    bare = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("N = 1")])
    with pytest.raises(ConfigError, match="one cell must be tagged"):
        execute.with_parameters(bare, {"N": 3})
    (folder / "made_up.ipynb").write_text("{")
    with pytest.raises(ConfigError, match="is no notebook"):
        execute.read("made_up")


def test_wrong_flags_are_told_in_a_sentence():
    done = launch("--only=none")
    assert done.returncode == 1 and "error: unknown notebook 'none'; there are" in done.stderr
    done = launch("--quick", "--write")
    assert done.returncode == 1 and "leave out --quick" in done.stderr
