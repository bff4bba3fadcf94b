"""The command `mbrl_jax`, which an installation brings: `mbrl_jax train`, `mbrl_jax report`, …

    mbrl_jax train --experiment=drama_catch --num_seeds=4 --workdir=runs/catch
    mbrl_jax evaluate --help

Each is `python -m launch.NAME`, and works from any folder.
"""

import ast
import importlib
import os
import sys
from pathlib import Path

from launch import flags as launch_flags

COMMANDS = (
    *("train", "evaluate", "watch", "report", "sweep", "doctor", "export", "open_loop"),
    "switches",
)


def main() -> None:
    """Run the command that the first argument names."""
    name = sys.argv[1] if len(sys.argv) > 1 else "--help"
    if name in ("-h", "--help", "help"):
        print(usage())
        return
    if name not in COMMANDS:
        sys.exit(f"error: there is no command {name!r}; there are {', '.join(COMMANDS)}")
    # A script's folder stands first on the path where `python -m` has the present one: modules of
    # one's own are found, behind those that are installed.
    sys.path.append(os.getcwd())
    # absl's --help shows the flags of the module that the first argument names, below the
    # docstring of the main one.
    sys.argv = [f"launch.{name}", *sys.argv[2:]]
    module = importlib.import_module(f"launch.{name}")
    sys.modules["__main__"].__doc__ = module.__doc__
    launch_flags.run_main(module.main)


def usage() -> str:
    """What there is, with the first line of each."""
    lines = ["mbrl_jax COMMAND [flags]; `mbrl_jax COMMAND --help` explains its flags", ""]
    for name in COMMANDS:
        source = (Path(__file__).parent / f"{name}.py").read_text(encoding="utf-8")
        first = (ast.get_docstring(ast.parse(source)) or "").splitlines()[0]
        lines.append(f"  {name:10} {first}")
    return "\n".join(lines)
