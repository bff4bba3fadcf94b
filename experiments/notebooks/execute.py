"""Execute a notebook as Jupyter does: in a kernel of its own, in the notebook's folder."""

import ast
import resource
import time
from pathlib import Path
from typing import Any, NamedTuple

from mbrl_jax.errors import ConfigError

FOLDER = Path(__file__).resolve().parent
TAG = "parameters"  # of the cell whose values `--quick` changes
CELL_TIMEOUT = 1_800  # seconds
# Sizes with which everything runs and nothing is learned.
QUICK = {
    "compose_drama": {"STEPS": 60, "WARM_UP": 40, "LOG_EVERY": 10, "NUM_SEEDS": 2},
    "swap_the_core": {"UPDATES": 60, "NUM_SEEDS": 2, "CORES": ("gru", "leaky (ours)")},
    "your_own_environment": {"STEPS": 440, "NUM_SEEDS": 2},
    "ssm_alone": {"REPEATS": 1},
}


class Executed(NamedTuple):
    """What came of a notebook."""

    notebook: Any  # a NotebookNode with outputs
    seconds: float  # wall time
    cpu_seconds: float  # of the kernel
    error: str  # "" if every cell ran


def names() -> list[str]:
    """Names of the notebooks, without `.ipynb`."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def path_of(name: str) -> Path:
    """Where a notebook lies. Raises ConfigError for an unknown name."""
    if name not in names():
        raise ConfigError(f"unknown notebook {name!r}; there are {', '.join(names())}")
    return FOLDER / f"{name}.ipynb"


def read(name: str) -> Any:
    """The notebook as it lies there. Raises ConfigError for an unknown or damaged one."""
    import nbformat

    try:
        return nbformat.read(path_of(name), as_version=4)
    except (ValueError, nbformat.ValidationError) as error:
        raise ConfigError(f"{path_of(name)} is no notebook ({error})") from error


def with_parameters(notebook: Any, values: dict[str, Any]) -> Any:
    """Change assignments of the cell that is tagged "parameters", in place; returns the notebook.

    Raises ConfigError where there is no such cell, or it lacks one of the names.
    """
    cells = [cell for cell in notebook.cells if TAG in cell.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ConfigError(f"one cell must be tagged {TAG!r}, and {len(cells)} are")
    known = {
        node.id
        for node in ast.walk(ast.parse(cells[0].source))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    if missing := sorted(set(values) - known):
        raise ConfigError(f"the cell of parameters does not set {', '.join(missing)}")
    lines = [f"{name} = {value!r}" for name, value in values.items()]
    cells[0].source = "\n".join([cells[0].source, *lines])
    return notebook


def execute(name: str, quick: bool = False) -> Executed:
    """Run every cell of a notebook; the first that fails is the last.

    Args:
      name: of the notebook.
      quick: with the sizes of `QUICK`.

    Raises ConfigError where the kernel is not installed.
    """
    try:
        import ipykernel  # noqa: F401
        from nbclient import NotebookClient
        from nbclient.exceptions import CellExecutionError, CellTimeoutError, DeadKernelError
        from traitlets.config import Config
    except ImportError as error:
        raise ConfigError(
            f"notebooks need more than is installed ({error}): "
            "pip install -c constraints.txt -e '.[notebooks]'"
        ) from error
    notebook = read(name)
    if quick:
        with_parameters(notebook, QUICK[name])
    # Encrypted: others on this machine can listen to its loopback.
    settings = Config({"KernelManager": {"transport_encryption": "auto"}})
    options = {"timeout": CELL_TIMEOUT, "kernel_name": "python3", "record_timing": False}
    place = {"metadata": {"path": str(FOLDER)}}
    client = NotebookClient(notebook, config=settings, resources=place, **options)
    began, before, message = time.perf_counter(), _children(), ""
    try:
        client.execute()
    except CellExecutionError as error:
        message = f"{error.ename}: {error.evalue}"
    except (CellTimeoutError, DeadKernelError) as error:
        message = str(error)
    seconds, cpu_seconds = time.perf_counter() - began, _children() - before
    return Executed(clean(notebook), seconds, cpu_seconds, message)


def _children() -> float:
    """CPU seconds of processes that this one started and that have ended."""
    usage = resource.getrusage(resource.RUSAGE_CHILDREN)
    return usage.ru_utime + usage.ru_stime


def clean(notebook: Any) -> Any:
    """Drop, in place, what differs between machines and says nothing to readers."""
    keep = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    notebook.metadata = type(notebook.metadata)(keep)
    for cell in notebook.cells:
        for key in ("execution", "trusted"):
            cell.metadata.pop(key, None)
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = type(output.metadata)()
            # A picture needs no "<Figure size …>" beside it.
            if "image/png" in output.get("data", {}):
                output.data = type(output.data)({"image/png": output.data["image/png"]})
    return notebook


def noise(notebook: Any) -> list[str]:
    """What of the outputs should not be committed: warnings, tracebacks, paths of this machine."""
    found = []
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            text = _text(output)
            if output.output_type == "error" or output.get("name") == "stderr":
                found.append(text.strip() or output.output_type)
            found += [line for line in text.splitlines() if any(p in line for p in _PLACES)]
    return found


_PLACES = ("/tmp/", "/home/", "/root/", "/Users/", str(Path.home()), str(FOLDER.parents[1]))


def _text(output: Any) -> str:
    """What of an output can be read."""
    parts = [output.get("text", ""), output.get("evalue", "")]
    parts += [value for key, value in output.get("data", {}).items() if key.startswith("text/")]
    return "\n".join(map(str, parts))
