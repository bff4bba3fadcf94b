"""Execute the notebooks, each in a kernel of its own; fail if a cell does.

    python -m experiments.notebooks
    python -m experiments.notebooks --only=ssm_alone,compose_drama
    python -m experiments.notebooks --write        # refresh the outputs that lie in the files
    python -m experiments.notebooks --quick        # small sizes: does everything run?

Prints the wall time and the CPU time of each. All four take about 14 CPU-minutes the first time,
less once their programs are in the compilation cache.
"""

import os
import sys

from absl import flags

from launch import flags as launch_flags

_ONLY = flags.DEFINE_list("only", None, "Names of notebooks; default: all of them.")
_WRITE = flags.DEFINE_bool("write", False, "Write the outputs into the notebooks.")
_QUICK = flags.DEFINE_bool("quick", False, "Small sizes, with which nothing is learned.")


def main() -> None:
    """Run what the flags ask for; exit with 1 if a notebook failed."""
    from experiments.notebooks import execute
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.train import runtime

    if _WRITE.value and _QUICK.value:
        raise ConfigError("--write is for outputs that were computed in full: leave out --quick")
    chosen = list(dict.fromkeys(_ONLY.value or execute.names()))
    for name in chosen:  # before the first of them takes its minutes
        execute.path_of(name)
    if _QUICK.value:  # the kernels inherit it; programs that run briefly are not worth optimising
        os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
        runtime.add_xla_flags(runtime.QUICK_FLAGS)
    failed = [name for name in chosen if not _run(name)]
    if failed:
        sys.stdout.flush()
        launch_flags.fail(f"{', '.join(failed)} failed, as told above")


def _run(name: str) -> bool:
    """Execute one notebook, say how it went, and write it if that was asked for."""
    import nbformat

    from experiments.notebooks import execute
    from mbrl_jax.runs.shown import shown

    done = execute.execute(name, _QUICK.value)
    time = f"{done.seconds:.0f} s, {done.cpu_seconds:.0f} CPU-seconds"
    if done.error:
        print(f"{name}: failed after {time}: {shown(done.error)}", flush=True)
        return False
    for line in (found := execute.noise(done.notebook)):
        print(f"{name}: not for others to see: {shown(line)}", flush=True)
    print(f"{name}: {time}", flush=True)
    if _WRITE.value and not found:
        nbformat.write(done.notebook, execute.path_of(name))
    return not (_WRITE.value and found)


if __name__ == "__main__":
    launch_flags.run_main(main)
