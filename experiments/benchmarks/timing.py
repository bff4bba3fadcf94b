"""Measuring compiled programs: CPU and wall time, compiled memory and work, the machine's peak.

CPU time is user and system time over all threads of this process: it stays meaningful on a machine
that other processes share, which wall time does not. On an accelerator, which this process has to
itself, wall time is compared. Programs that are compared run in turns, so that a slow moment hits
all of them.
"""

import contextlib
import csv
import functools
import platform
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.compilation_cache import compilation_cache

from mbrl_jax.train.runtime import num_cores


class Time(NamedTuple):
    """Medians over the rounds, in seconds."""

    cpu: float
    wall: float

    @property
    def compared(self) -> float:
        """CPU-seconds, or wall time where an accelerator does the work."""
        return self.cpu if on_cpu() else self.wall


class Program(NamedTuple):
    """A compiled function with the arguments it was compiled for."""

    run: Callable[[], Any]  # runs it once; an accelerator may still be at it
    compile_cpu: float  # CPU-seconds for tracing, lowering and compiling
    temp_bytes: int  # peak of temporaries, as the compiler reports it
    output_bytes: int
    flops: float  # as the compiler counts them; a loop's body counts once


def on_cpu() -> bool:
    """Whether programs run on the CPU, so that their cost is this process's CPU time."""
    return jax.default_backend() == "cpu"


def compared_column() -> str:
    """The column of a table with `Time.compared`."""
    return "cpu_s" if on_cpu() else "wall_s"


@contextlib.contextmanager
def without_cache() -> Iterator[None]:
    """Compile everything anew, and leave the persistent cache as it was."""
    before = jax.config.jax_enable_compilation_cache
    # JAX decides once whether it uses the cache; a reset makes it look again.
    jax.config.update("jax_enable_compilation_cache", False)
    compilation_cache.reset_cache()
    try:
        yield
    finally:
        jax.config.update("jax_enable_compilation_cache", before)
        compilation_cache.reset_cache()


def compile_program(function: Callable, *args: Any, options: dict | None = None) -> Program:
    """Compile `function` for `args`."""
    compiled, compile_cpu = timed_compile(jax.jit(function), *args, options=options)
    memory = compiled.memory_analysis()
    return Program(
        run=lambda: compiled(*args),
        compile_cpu=compile_cpu,
        temp_bytes=memory.temp_size_in_bytes,
        output_bytes=memory.output_size_in_bytes,
        flops=(compiled.cost_analysis() or {}).get("flops", float("nan")),
    )


def timed_compile(jitted: Any, *args: Any, options: dict | None = None) -> tuple[Any, float]:
    """A compiled program, and the CPU-seconds that it took: on CPU without the persistent cache.

    For accelerators the compiler tries many variants of a kernel, and those found are kept.
    """
    with without_cache() if on_cpu() else contextlib.nullcontext():
        start = time.process_time()
        compiled = jitted.lower(*args).compile(compiler_options=options)
        return compiled, time.process_time() - start


def compare(calls: dict[str, Callable[[], Any]], rounds: int = 7) -> dict[str, Time]:
    """Time of each call: the median of `rounds` rounds in which all calls take turns.

    Results in jax are waited for. One round more, the first, is not counted.
    """
    samples: dict[str, list[Time]] = {name: [] for name in calls}
    for round_number in range(rounds + 1):
        for name, call in calls.items():
            cpu, wall = time.process_time(), time.perf_counter()
            jax.block_until_ready(call())
            spent = Time(time.process_time() - cpu, time.perf_counter() - wall)
            if round_number:
                samples[name].append(spent)
    return {
        name: Time(*(statistics.median(column) for column in zip(*times, strict=True)))
        for name, times in samples.items()
    }


def repeated(call: Callable[[], Any], least: float) -> tuple[Callable[[], Any], int]:
    """A call that repeats a short one until about `least` wall seconds are over, and how often.

    One run among others would find its inputs out of the caches, which no use of it does. And on
    an accelerator a result that is waited for alone takes as long as its launch.
    """

    def many(count):
        for _ in range(count):
            result = call()
        jax.block_until_ready(result)

    many(1)
    at_once = 1 if on_cpu() else 20  # launches that overlap are far shorter than one alone
    start = time.perf_counter()
    many(at_once)
    count = max(1, round(at_once * least / (time.perf_counter() - start)))

    return functools.partial(many, count), count


def compare_each(calls: dict[Any, Callable[[], Any]], rounds: int, least: float) -> dict[Any, Time]:
    """`compare` with short calls `repeated` in a sample of `least` seconds; times of one call."""
    samples = {key: repeated(call, least) for key, call in calls.items()}
    spent = compare({key: call for key, (call, _) in samples.items()}, rounds)
    return {key: Time(*(s / samples[key][1] for s in seconds)) for key, seconds in spent.items()}


def product_program(size: int = 0) -> Program:
    """The [size, size] float32 matrix product whose rate stands for the machine's peak.

    `size` 0 is 2048 on CPU and 8192 on accelerators, which less does not fill.
    """
    size = size or (2048 if on_cpu() else 8192)
    keys = jax.random.split(jax.random.key(0))
    a, b = (jax.random.normal(key, (size, size)) for key in keys)
    return compile_program(jnp.matmul, a, b)._replace(flops=2.0 * size**3)


def gflops(flops: float, seconds: float) -> float:
    """10⁹ floating-point operations for each second."""
    return flops / seconds / 1e9


def shown(value: Any) -> str:
    """A cell of a table: four digits of a float."""
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def machine() -> str:
    """What measures: the accelerator, or the processor as Linux names it, with its cores."""
    if not on_cpu():
        return f"{jax.devices()[0].device_kind}, jax {jax.__version__}"
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    about = dict(line.split("\t: ", 1) for line in lines if "\t: " in line)
    about = {name.strip(): value for name, value in about.items()}
    name = about.get("model name", platform.processor() or platform.machine())
    numbers = [f"{key} {about[key]}" for key in ("cpu family", "model") if key in about]
    return ", ".join([name, *numbers, f"cores: {num_cores()}"])


def write_csv(path: Path, columns: Sequence[str], rows: list[dict[str, Any]]) -> None:
    """Write a table, with the machine in its last column; what a row lacks stays empty."""
    measured_on = machine()
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, [*columns, "machine"])
        writer.writeheader()
        for row in rows:
            cells = {name: shown(value) for name, value in row.items()}
            writer.writerow(cells | {"machine": measured_on})
