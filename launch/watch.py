"""Watch a run, or all runs of a folder, in a browser while they train, or after they have ended.

    python -m launch.watch --workdir=runs/catch
    python -m launch.watch --workdir=runs
    python -m launch.watch --workdir=runs/catch --open_loop --port=8000

prints the address of a page that follows the run: learning curves, all metrics, throughput. Of a
folder that holds runs, or the root of a sweep, it is a table of all of them with a chart, each with
a page of its own; new ones appear by themselves. It is
served to this machine alone (from another one: ssh -L 8000:localhost:8000 HOST). The training
knows nothing of it; nothing is written to the workdir. `--open_loop` draws the newest checkpoint's
predictions too, in a process of the lowest priority, a tenth of the time at most.
"""

import os
import signal
import sys
from pathlib import Path

from absl import flags

from launch import flags as launch_flags

_WORKDIR = flags.DEFINE_string("workdir", None, "Directory of a run, or a folder of runs.")
_HOST = flags.DEFINE_string("host", "127.0.0.1", "Address to listen on; others may then look too.")
_PORT = flags.DEFINE_integer("port", 0, "Port; 0: one that is free.", 0, 65_535)
_OPEN_LOOP = flags.DEFINE_bool("open_loop", False, "Draw predictions of the newest checkpoint.")
_EXPERIMENT = launch_flags.define_types()
_ROOT = Path(__file__).resolve().parent.parent


def main() -> None:
    """Serve the page until Ctrl-C."""
    from mbrl_jax.watch import find, overview, server, view

    workdir = _workdir()
    many = (workdir / find.SWEEP).exists() or not find.holds_run(workdir)
    if many:
        _require_no_strips()
    strips = _strips(workdir) if _OPEN_LOOP.value else None
    shown = overview.Overview(workdir) if many else view.View(workdir, strips)
    listening = server.Server(shown, _HOST.value, _PORT.value)
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends as Ctrl-C does
    if strips:
        strips.start()
    try:
        server.serve(listening, lambda sentence: print(sentence, flush=True))
    finally:
        if strips:
            strips.close()


def _workdir() -> Path:
    """The directory of the run, or of several. Raises ConfigError where there is none."""
    from mbrl_jax.errors import ConfigError
    from mbrl_jax.runs.layout import as_path

    if not _WORKDIR.value:
        raise ConfigError("--workdir is missing; see --help")
    path = as_path(_WORKDIR.value)
    if not path.is_dir():
        raise ConfigError(
            f"--workdir={_WORKDIR.value} is no directory; name that of a run, once it has "
            "begun, or a folder that holds runs"
        )
    return path


def _require_no_strips() -> None:
    """Raise ConfigError where predictions of many runs are asked for."""
    from mbrl_jax.errors import ConfigError

    if _OPEN_LOOP.value:
        raise ConfigError(
            f"--open_loop draws for one run, and --workdir={_WORKDIR.value} is none: name the "
            "directory of one"
        )


def _strips(workdir: Path):
    """Who draws; the process ends with this one, and imports `launch` wherever this was started."""
    from mbrl_jax.watch.strips import Strips

    starter = (
        sys.executable,
        str(_ROOT / "mbrl_jax" / "sweeps" / "start.py"),
        str(os.getpid()),
        "all",
    )
    draw = [sys.executable, "-m", "launch.open_loop", f"--workdir={workdir.resolve()}"]
    draw += [f"--experiment={name}" for name in _EXPERIMENT.value]
    return Strips(workdir, (*starter, *draw))


if __name__ == "__main__":
    launch_flags.run_main(main)
