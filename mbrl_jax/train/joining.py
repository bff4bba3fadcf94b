"""One program of several processes: who is meant, and a limit to the wait for the others.

Importing this module is cheap (jax is imported inside the functions).
"""

import os
import threading

from mbrl_jax.errors import ConfigError

VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
SLURM_TASKS = "SLURM_STEP_NUM_TASKS"
LIMIT = "MBRL_JAX_JOIN_SECONDS"  # for jobs whose processes start far apart
DEFAULT_LIMIT = 25.0


def join_processes(wanted: bool) -> bool:
    """Make one program of the processes of a job, before jax starts; True if there are several.

    Slurm, Open MPI, Kubernetes and TPU pods are recognised by `jax.distributed`. Elsewhere
    `JAX_COORDINATOR_ADDRESS` (host:port), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say who is who.

    Args:
      wanted: join whatever stands in the environment; otherwise only where those variables do, or
        where Slurm started several tasks.

    Raises ConfigError when the processes do not find each other within `MBRL_JAX_JOIN_SECONDS`.
    """
    named = [os.environ[name] for name in VARIABLES if os.environ.get(name)]
    complete = len(named) == len(VARIABLES)
    if not (wanted or complete or _tasks_of_slurm() > 1):
        return False
    limit = _limit()
    import jax

    # JAX's own handler of SIGTERM would take the place of ours (see `preemption`).
    jax.config.update("jax_enable_preemption_service", False)
    # XLA ends the process where its own limit passes, which must never come first.
    settings = {"initialization_timeout": int(2 * limit) + 60}
    if complete:
        whole = [_number(name) for name in VARIABLES[1:]]
        settings |= dict(zip(("num_processes", "process_id"), whole, strict=True))
        _initialize(limit, wanted, coordinator_address=named[0], **settings)
    else:
        _initialize(limit, wanted, **settings)
    return jax.process_count() > 1


def _initialize(limit: float, wanted: bool, **settings) -> None:
    """`jax.distributed.initialize`, which waits deaf to signals: in a thread that may be left."""
    import jax

    problems: list[Exception] = []

    def initialize():
        try:
            jax.distributed.initialize(**settings)
        except Exception as error:  # whatever jax and clusters raise ends in the same sentence
            problems.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    thread.join(limit)
    if thread.is_alive():
        raise ConfigError(
            f"the other processes of this job did not come within {limit:g} s; {_alone(wanted)}; "
            f"if they are only slow, {LIMIT}={4 * limit:g} waits longer"
        )
    if problems:
        lines = str(problems[0]).strip().splitlines() or [type(problems[0]).__name__]
        raise ConfigError(
            f"the processes of this job cannot be joined ({lines[0]}); {_alone(wanted)}; to join "
            f"them, start them with srun, or set {', '.join(VARIABLES)} in each"
        ) from problems[0]


def _alone(wanted: bool) -> str:
    """How this process would train by itself."""
    names = [SLURM_TASKS] if _tasks_of_slurm() > 1 else []
    if all(os.environ.get(name) for name in VARIABLES):
        names += VARIABLES
    told = ["leave out --distributed"] if wanted else []
    told += [f"unset {' '.join(names)}"] if names else []
    return f"to train in this process alone, {' and '.join(told)}"


def _tasks_of_slurm() -> int:
    return _number(SLURM_TASKS) if os.environ.get(SLURM_TASKS) else 1


def _number(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}={text} is no whole number; set it right, or unset it")
    return int(text)


def _limit() -> float:
    """Seconds to wait for the other processes."""
    text = os.environ.get(LIMIT) or str(DEFAULT_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 1e6:
        raise ConfigError(f"{LIMIT}={text} is no number of seconds; set it right, or unset it")
    return limit
