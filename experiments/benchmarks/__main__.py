"""Run the benchmarks one after the other, each in a process of its own; write tables and plots.

    python -m experiments.benchmarks
    python -m experiments.benchmarks --only=seeds,kernels --quick --out=/tmp/benchmarks

A process of its own, so that none measures what another left in the allocator and in the caches.
With one name in `--only` nothing is started and that benchmark runs in this process.
"""

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path

from absl import app, flags, logging

from launch.flags import fail

BENCHMARKS = ("published", "seeds", "kernels", "convolutions", "host", "shell", "scaling")
WITH_TORCH = ("published", "kernels", "convolutions")
ROOT = Path(__file__).resolve().parents[2]

_ONLY = flags.DEFINE_list("only", list(BENCHMARKS), "Names of benchmarks, separated by commas.")
_QUICK = flags.DEFINE_bool("quick", False, "Tiny sizes, to see that everything runs.")
_OUT = flags.DEFINE_string(
    "out",
    None,
    "Where to write; default: experiments/results/benchmarks, runs/benchmarks if quick.",
)


def run_one(name: str, quick: bool, out: Path) -> None:
    """Run one benchmark in this process."""
    from mbrl_jax.train import runtime

    runtime.configure_runtime(quick_compile=quick)
    importlib.import_module(f"experiments.benchmarks.{name}").run(quick=quick, out=out)


def run_each(names: list[str], quick: bool, out: Path) -> list[str]:
    """Run benchmarks in processes of their own; return the names of those that failed."""
    failed = []
    for name in names:
        print(f"── {name}", flush=True)
        command = [sys.executable, "-m", "experiments.benchmarks", f"--only={name}", f"--out={out}"]
        command += ["--quick"] if quick else []
        if subprocess.run(command, cwd=ROOT, check=False).returncode:
            failed.append(name)
    return failed


def run(names: list[str], quick: bool, out: Path) -> None:
    """Run benchmarks by name; a failed one does not keep the others from running.

    Ends the process with a sentence for an unknown name, and after the last one if some failed.
    """
    if unknown := [name for name in names if name not in BENCHMARKS]:
        fail(f"unknown benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    if len(names) > 1:
        if failed := run_each(names, quick, out):
            fail(f"{', '.join(failed)} failed, as told above; the other tables are in {out}")
        return
    if names[0] in WITH_TORCH and importlib.util.find_spec("torch") is None:
        print(
            f"PyTorch is not installed, so {names[0]} measures this project's side alone: "
            "pip install -c constraints.txt -e '.[bench]'"
        )
    run_one(names[0], quick, out)


def main(argv: list[str]) -> None:
    """Run what the flags ask for."""
    logging.set_verbosity(logging.WARNING)  # jax tells of every reset of its cache
    if len(argv) > 1:
        fail(f"unexpected argument {argv[1]!r}; every setting is a flag: --name=value")
    results = "runs/benchmarks" if _QUICK.value else "experiments/results/benchmarks"
    out = Path(_OUT.value).resolve() if _OUT.value else ROOT / results
    run(list(dict.fromkeys(_ONLY.value)) or list(BENCHMARKS), _QUICK.value, out)


if __name__ == "__main__":
    app.run(main)
