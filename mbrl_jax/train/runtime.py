"""Process-wide settings of a run: allocator, compilation cache, versions.

Importing this module is cheap (jax is imported inside the functions).
"""

import ctypes
import os
import platform
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from mbrl_jax.errors import ConfigError

PACKAGES = (
    "mbrl_jax",
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "numpy",
    "gymnax",
    "envpool",
    "dm-control",
)

_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUPS = Path("/sys/fs/cgroup")

# Constants of glibc's <malloc.h>, and what they are set to.
_MALLOC_SETTINGS = {
    -4: 0,  # M_MMAP_MAX: never give a block to mmap, which returns it to the kernel when freed
    -1: -1,  # M_TRIM_THRESHOLD: the largest size_t, that is never give back the top of the heap
    -2: 2**28,  # M_TOP_PAD: grow in steps of 256 MB
}
_ARENA_MAX = -8

# Of the processes of one job.
_VARIABLES = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM_TASKS = "SLURM_STEP_NUM_TASKS"
_JOIN_LIMIT = "MBRL_JAX_JOIN_SECONDS"  # for jobs whose processes start far apart
_DEFAULT_LIMIT = 25.0

# The older way to emit code, which compiles faster; what it does to speed was not measured.
QUICK_FLAGS = "--xla_cpu_use_fusion_emitters=false"


def configure_runtime(
    cache_dir: str | Path | None = None, quick_compile: bool = False, num_seeds: int = 1
) -> Path | None:
    """Set allocator, CPU devices and compilation cache; call before jax computes anything.

    Args:
      cache_dir: of compiled programs; by default `$JAX_COMPILATION_CACHE_DIR`, or
        `mbrl_jax/xla` under `$XDG_CACHE_HOME` or `~/.cache`.
      quick_compile: leave out the compiler's costly optimisations, for programs that run briefly.
      num_seeds: S; see `spread_over_cores`.

    Returns the directory of the cache, or None where it cannot be written.
    """
    several = spread_over_cores(num_seeds) > 1 or _devices_are_chosen()
    _keep_freed_memory(arenas=num_cores() + 1 if several else 1)

    import jax

    # With one device a thread of its own for programs would only contend for the allocator.
    jax.config.update("jax_cpu_enable_async_dispatch", several)
    if quick_compile:
        jax.config.update("jax_disable_most_optimizations", True)
        add_xla_flags(QUICK_FLAGS)
    return _cache_compiled_programs(cache_dir)


def add_xla_flags(text: str) -> None:
    """Give XLA these flags too, if it is a version that knows them; before it starts.

    XLA ends the process at a flag that it does not know, so only versions that were tried get them.
    """
    if metadata.version("jaxlib").startswith("0.10."):
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {text}".strip()


def spread_over_cores(num_seeds: int) -> int:
    """Make one CPU device for each core that can have seeds of its own; returns their number.

    Threads that share the small products of one seed wait for each other much of the time, which
    devices with seeds of their own do not. The number of devices divides the seeds. Nothing changes
    for a single seed, which keeps all threads, for accelerators, or where the user has set devices
    or threads.
    """
    if _devices_are_chosen() or num_seeds < 2:
        return 1
    cores = num_cores()
    devices = max(d for d in range(1, cores + 1) if num_seeds % d == 0)
    if devices > 1:
        import jax

        jax.config.update("jax_num_cpu_devices", devices)
        # Read by XLA's CPU client when it starts: threads of the pool that all devices share.
        os.environ["PJRT_NPROC"] = str(cores // devices)
    return devices


def _devices_are_chosen() -> bool:
    """Whether the user has set the number of CPU devices or threads."""
    names = ("JAX_NUM_CPU_DEVICES", "PJRT_NPROC", "NPROC")
    flags = os.environ.get("XLA_FLAGS", "")
    return "host_platform_device_count" in flags or any(name in os.environ for name in names)


def num_cores() -> int:
    """Cores that this process may use: of its affinity, and within a container's share of time."""
    can_tell = hasattr(os, "sched_getaffinity")
    cores = len(os.sched_getaffinity(0)) if can_tell else os.cpu_count() or 1
    quota = core_quota()
    return cores if quota is None else max(1, min(cores, int(quota)))


def cgroups(controller: str) -> Iterator[tuple[int, Path]]:
    """(version, folder) of every group that limits this process by "memory", "cpu", …"""
    try:
        lines = _OWN_CGROUP.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if not controllers:
            version, root = 2, _CGROUPS
        elif controller in controllers.split(","):
            version, root = 1, _CGROUPS / controller
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            if root not in (folder, *folder.parents):
                break
            yield version, folder


def core_quota() -> float | None:
    """Cores' worth of time that this process may take; None without a limit."""
    found = []
    for version, folder in cgroups("cpu"):
        try:
            if version == 2:
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                names = ("cpu.cfs_quota_us", "cpu.cfs_period_us")
                quota, period = ((folder / name).read_text() for name in names)
            found.append(int(quota) / int(period))
        except (OSError, ValueError, ZeroDivisionError):  # no such group here, or no limit ("max")
            continue
    return min((cores for cores in found if cores > 0), default=None)  # -1: no limit in version 1


def _keep_freed_memory(arenas: int) -> bool:
    """Let malloc keep what XLA frees (Linux with glibc; nothing happens elsewhere).

    XLA:CPU takes temporaries from malloc at every call, and glibc hands large ones back to the
    kernel: each update then faults its memory in again, which costs more than the arithmetic.

    Devices that work side by side need arenas of their own: in one they wait for each other's
    lock. One device gets one arena, because blocks above 64 MB in any but the first are given back.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  (musl has no such symbol, nor these settings)
        settings = _MALLOC_SETTINGS | {_ARENA_MAX: arenas}
        accepted = [libc.mallopt(name, value) for name, value in settings.items()]
        return all(accepted)
    except (OSError, AttributeError):
        return False


def _cache_compiled_programs(cache_dir: str | Path | None) -> Path | None:
    """Turn on JAX's persistent compilation cache."""
    import jax

    if cache_dir is None:  # jax reads JAX_COMPILATION_CACHE_DIR into its config on import
        named = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        cache_dir = named or _default_cache_dir()
    path = Path(cache_dir).expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    if not os.access(path, os.W_OK):
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 1.0)
    jax.config.update("jax_persistent_cache_min_entry_size_bytes", -1)  # -1: whatever the size
    return path


def _default_cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "mbrl_jax" / "xla"


def join_processes(wanted: bool) -> bool:
    """Make one program of the processes of a job, before jax starts; True if there are several.

    Slurm, Open MPI, Kubernetes and TPU pods are recognised by `jax.distributed`. Elsewhere
    `JAX_COORDINATOR_ADDRESS` (host:port), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID` say who is who.

    Args:
      wanted: join whatever stands in the environment; otherwise only where those variables do, or
        where Slurm started several tasks.

    Raises ConfigError when the processes do not find each other within `MBRL_JAX_JOIN_SECONDS`.
    """
    named = [os.environ[name] for name in _VARIABLES if os.environ.get(name)]
    complete = len(named) == len(_VARIABLES)
    if not (wanted or complete or _tasks_of_slurm() > 1):
        return False
    limit = _limit()
    import jax

    # JAX's own handler of SIGTERM would take the place of ours (see `preemption`).
    jax.config.update("jax_enable_preemption_service", False)
    # XLA ends the process where its own limit passes, which must never come first.
    settings = {"initialization_timeout": int(2 * limit) + 60}
    if complete:
        whole = [_number(name) for name in _VARIABLES[1:]]
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
            f"if they are only slow, {_JOIN_LIMIT}={4 * limit:g} waits longer"
        )
    if problems:
        lines = str(problems[0]).strip().splitlines() or [type(problems[0]).__name__]
        raise ConfigError(
            f"the processes of this job cannot be joined ({lines[0]}); {_alone(wanted)}; to join "
            f"them, start them with srun, or set {', '.join(_VARIABLES)} in each"
        ) from problems[0]


def _alone(wanted: bool) -> str:
    """How this process would train by itself."""
    names = [_SLURM_TASKS] if _tasks_of_slurm() > 1 else []
    if all(os.environ.get(name) for name in _VARIABLES):
        names += _VARIABLES
    told = ["leave out --distributed"] if wanted else []
    told += [f"unset {' '.join(names)}"] if names else []
    return f"to train in this process alone, {' and '.join(told)}"


def _tasks_of_slurm() -> int:
    return _number(_SLURM_TASKS) if os.environ.get(_SLURM_TASKS) else 1


def _number(name: str) -> int:
    text = os.environ[name]
    if not (text.isascii() and text.isdigit()):
        raise ConfigError(f"{name}={text} is no whole number; set it right, or unset it")
    return int(text)


def _limit() -> float:
    """Seconds to wait for the other processes."""
    text = os.environ.get(_JOIN_LIMIT) or str(_DEFAULT_LIMIT)
    try:
        limit = float(text)
    except ValueError:
        limit = 0.0
    if not 0 < limit < 1e6:
        raise ConfigError(f"{_JOIN_LIMIT}={text} is no number of seconds; mend or unset it")
    return limit


def is_joined() -> bool:
    """Whether this process is one of several; starts nothing."""
    jax = sys.modules.get("jax")
    return jax is not None and jax.distributed.is_initialized()


def is_first_process() -> bool:
    """Whether this process writes the files and prints."""
    import jax

    return jax.process_index() == 0


def wait_for_each_other(place: str) -> None:
    """Return when every process has come to `place`."""
    import jax

    if jax.process_count() > 1:
        from jax.experimental import multihost_utils

        multihost_utils.sync_global_devices(place)


def require_devices() -> None:
    """Start the backend. Raises ConfigError where the requested accelerator is not there."""
    import jax

    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax asserts when no plugin is installed
        wanted = jax.config.jax_platforms  # type: ignore[attr-defined]
        lines = str(error).splitlines() or ["no such backend"]
        if jax.config.values.get("jax_num_cpu_devices") == 0:
            told = "JAX_NUM_CPU_DEVICES=0 leaves no device; set at least 1, or unset it"
        elif wanted:
            told = (
                f"JAX_PLATFORMS={wanted} names a device that cannot be used here ({lines[0]}); "
                "unset JAX_PLATFORMS to run on what there is"
            )
        else:
            told = f"JAX finds no device that can be used ({lines[0]}); look at XLA_FLAGS and JAX_*"
        raise ConfigError(told) from error


def refused_by_jax(error: BaseException) -> str:
    """A sentence for a variable that jax could not read when it was imported; "" for the rest."""
    text = str(error)
    found = re.search(r"(?:for JAX flag|for environment) '?(jax_\w+)", text, re.IGNORECASE)
    if not isinstance(error, ValueError) or found is None:
        return ""
    name = found[1].upper()
    return f"{name}={os.environ.get(name)} is no value for JAX ({text}); set it right, or unset it"


def out_of_memory(error: BaseException) -> str:
    """What an error says of memory that ran out, in a line; "" for another error."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    of_xla = isinstance(error, RuntimeError) and "RESOURCE_EXHAUSTED" in str(error)
    return lines[0][:200] if of_xla or isinstance(error, MemoryError) else ""


def versions() -> dict[str, str | None]:
    """Versions of Python and of the packages that decide results, and the git commit.

    A package that is not installed, and the commit outside a git checkout, are None.
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            found[name] = None
    found["git"] = git_commit()
    return found


def git_commit() -> str | None:
    """Commit that the package is run from, with `+changes` if files differ from it."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # installed somewhere inside another project's checkout
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(root, "status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10, check=True
    )
    return done.stdout.strip()
