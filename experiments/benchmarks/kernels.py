"""The state-space kernels against the forms that one writes from their formulas.

    python -m experiments.benchmarks.kernels

writes `kernels.csv` (every form at every shape), `kernels_bars.csv` (what was promised, and what is
measured) and `kernels.png`. Forms of one shape take turns, and all of them run under the allocator
settings of `mbrl_jax.train.runtime`. PyTorch, where it is installed, runs eagerly on one thread.
`forward+backward` returns y and the gradients of all arguments for a given cotangent of y.
`kernel_forms` says how work is counted.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from experiments.benchmarks import timing
from experiments.benchmarks.kernel_forms import (
    ASSOCIATIVE,
    BOTH,
    FORMS,
    FORWARD,
    OURS,
    SCAN,
    TORCH_FORMS,
    TORCH_LOOP,
    Shape,
    every_form,
    inputs,
    with_gradients,
    work,
)
from mbrl_jax.train.runtime import configure_runtime

COLUMNS = (
    *("kernel", "shape", "batch", "length", "form", "direction", "cpu_s", "wall_s", "temp_mb"),
    *("compile_cpu_s", "gflop", "share_of_peak", "times_ours", "bar"),
)
BAR_COLUMNS = ("claim", "measured", "bar", "met")
LEAST_SECONDS = 0.03  # of a sample: shorter programs are repeated


class Case(NamedTuple):
    """A shape and the forms to run there."""

    shape: Shape
    forms: tuple[str, ...]
    rounds: int


# ------------------------------------------------------------------------------------------ cases


def _sizes(**sizes: int) -> tuple[tuple[str, int], ...]:
    return tuple(sizes.items())


def cases(quick: bool = False) -> list[Case]:
    """What is measured; plain forms leave out lengths that take minutes or many gigabytes."""
    published = {"ssd": _sizes(H=16, P=64, N=16), "selective_scan": _sizes(D=1024, N=16)}
    if quick:
        small = {
            "ssd": _sizes(H=2, P=4, N=2),
            "selective_scan": _sizes(D=4, N=2),
            "s4d": _sizes(D=4, N=2),
            "s5": _sizes(D=4, N=3),
            "dplr": _sizes(D=4, N=2),
        }
        plain = {k: ASSOCIATIVE if ASSOCIATIVE in FORMS[k] else SCAN for k in small}
        some = {k: (OURS, plain[k], *TORCH_FORMS[k]) for k in small}
        made = [Case(Shape(k, 2, 8, sizes), some[k], 1) for k, sizes in small.items()]
        return made + [Case(Shape("ssd", 1, t, small["ssd"]), (OURS,), 1) for t in (8, 16)]
    lengths = (64, 128, 256, 512, 1024, 2048, 4096, 8192)
    if not timing.on_cpu():
        lengths = lengths[::2]  # a program takes seconds to compile there
        plain = {SCAN: (256,), ASSOCIATIVE: (256, 1024)}
    some = (64, 256, 1024)
    plain = {SCAN: (*some, 4096, 8192), ASSOCIATIVE: some, TORCH_LOOP: some}
    whole = [
        Shape("ssd", 16, 256, published["ssd"]),
        Shape("ssd", 16, 32, _sizes(H=4, P=32, N=16)),
        Shape("selective_scan", 16, 256, published["selective_scan"]),
        Shape("s4d", 16, 256, _sizes(D=256, N=16)),
        Shape("s5", 16, 256, _sizes(D=256, N=64)),
        Shape("dplr", 16, 256, _sizes(D=256, N=16)),
    ]
    made = [Case(shape, every_form(shape.kernel), 7) for shape in whole]
    for kernel in ("ssd", "selective_scan"):
        for length in (length for length in lengths if length <= 1024 and length != 256):
            made.append(Case(Shape(kernel, 16, length, published[kernel]), (OURS,), 5))
        for length in lengths:
            forms = (OURS, *(form for form in plain if length in plain[form]))
            made.append(Case(Shape(kernel, 1, length, published[kernel]), forms, 7))
    return made


# -------------------------------------------------------------------------------------- measuring


def programs(case: Case) -> dict[tuple[str, str], timing.Program | Callable]:
    """What to run, by form and direction; torch's are plain callables, left out without torch."""
    args, y_bar = inputs(case.shape)
    made: dict[tuple[str, str], timing.Program | Callable] = {}
    for form in case.forms:
        if form in FORMS[case.shape.kernel]:
            function = FORMS[case.shape.kernel][form]
            made[form, FORWARD] = timing.compile_program(function, *args)
            made[form, BOTH] = timing.compile_program(with_gradients(function), args, y_bar)
        elif timing.on_cpu() and importlib.util.find_spec("torch"):
            from experiments.benchmarks.pytorch import kernels_torch

            function = getattr(kernels_torch, TORCH_FORMS[case.shape.kernel][form])
            made[form, FORWARD], made[form, BOTH] = kernels_torch.calls(function, args, y_bar)
    return made


def measure(case: Case, peak: timing.Program) -> list[dict[str, Any]]:
    """A row for each form and direction; the matrix product takes its turn among them."""
    made = programs(case)
    runs = {key: p.run if isinstance(p, timing.Program) else p for key, p in made.items()}
    least = 0.0 if case.rounds == 1 else LEAST_SECONDS
    spent = timing.compare_each(runs | {"peak": peak.run}, case.rounds, least)
    rate = peak.flops / spent["peak"].compared
    rows = []
    for (form, direction), program in made.items():
        seconds = spent[form, direction]
        flops = work(case.shape, form, direction)
        row = {
            "kernel": case.shape.kernel,
            "shape": str(case.shape),
            "batch": case.shape.batch,
            "length": case.shape.length,
            "form": form,
            "direction": direction,
            "cpu_s": seconds.cpu,
            "wall_s": seconds.wall,
            "gflop": flops / 1e9,
            "share_of_peak": flops / seconds.compared / rate,
            "times_ours": seconds.compared / spent[OURS, direction].compared,
        }
        if isinstance(program, timing.Program):
            row |= {"temp_mb": program.temp_bytes / 1e6, "compile_cpu_s": program.compile_cpu}
        if (
            timing.on_cpu()
            and direction == BOTH
            and (bar := TIME_BARS.get((case.shape.kernel, str(case.shape), form)))
        ):
            row["bar"] = bar
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------- bars

_SSD, _SMALL = "B16 T256 H16 P64 N16", "B16 T32 H4 P32 N16"
_MAMBA = "B16 T256 D1024 N16"
# Least CPU time of a form, forward+backward, as a multiple of ours.
TIME_BARS = {
    ("ssd", _SSD, ASSOCIATIVE): 20.0,
    ("ssd", _SSD, SCAN): 7.0,
    ("ssd", _SMALL, ASSOCIATIVE): 8.0,
    ("ssd", _SMALL, SCAN): 4.0,
    ("selective_scan", _MAMBA, ASSOCIATIVE): 3.5,
}
MEMORY_BAR = 20.0  # of Mamba-1: least temporary memory of the plain form, as a multiple of ours
EXPONENT_BAR = 1.05  # of SSD: most that the cost may grow with, as a power of T


def exponent(rows: list[dict[str, Any]], direction: str, least: int) -> float:
    """Slope of log CPU time of our SSD over log T at batch 1 from T = `least`, by least squares."""
    wanted = ("ssd", 1, OURS, direction)
    points = [
        (np.log(row["length"]), np.log(row[timing.compared_column()]))
        for row in rows
        if (row["kernel"], row["batch"], row["form"], row["direction"]) == wanted
        and row["length"] >= least
    ]
    return float(np.polyfit(*zip(*points, strict=True), 1)[0])


def temporary_memory(rows: list[dict[str, Any]]) -> float:
    """That of Mamba-1's plain form, forward and backward, over ours, at its first shape."""
    rows = [row for row in rows if row["kernel"] == "selective_scan" and row["direction"] == BOTH]
    of = {row["form"]: row.get("temp_mb") for row in rows if row["shape"] == rows[0]["shape"]}
    return of[ASSOCIATIVE] / of[OURS]


def bars(rows: list[dict[str, Any]], least: int) -> list[dict[str, Any]]:
    """What was promised and what the rows say; `least`: shortest length of the power of T."""
    found = []
    for row in rows:
        if "bar" in row:
            claim = f"{row['kernel']} {row['shape']}: CPU time of {row['form']} / ours, at least"
            found.append((claim, row["times_ours"], row["bar"]))
    claim = f"selective_scan: temporary memory of {ASSOCIATIVE} / ours, at least"
    found.append((claim, temporary_memory(rows), MEMORY_BAR))
    rows_of_bars = [(*bar, bar[1] >= bar[2]) for bar in found]
    for direction in (FORWARD, BOTH):
        slope = exponent(rows, direction, least)
        claim = f"ssd: power of T in CPU time, {direction}, at most"
        rows_of_bars.append((claim, slope, EXPONENT_BAR, slope <= EXPONENT_BAR))
    return [dict(zip(BAR_COLUMNS, bar, strict=True)) for bar in rows_of_bars]


# ------------------------------------------------------------------------------------------ results


_SECONDS = {
    "cpu_s": "CPU-seconds, forward and backward",
    "wall_s": "seconds, forward and backward",
}


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Forward and backward: time over T at batch 1, and time and memory of all forms."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure, time = Figure(figsize=(12, 8), layout="constrained"), timing.compared_column()
    both = [row for row in rows if row["direction"] == BOTH]
    for column, kernel in zip(figure.subplots(2, 2).T, ("ssd", "selective_scan"), strict=True):
        mine = [row for row in both if row["kernel"] == kernel]
        _plot_lengths(column[0], [row for row in mine if row["batch"] == 1])
        column[0].set_title(f"{kernel}, batch 1", fontsize=10)
        first = [row for row in mine if row["shape"] == mine[0]["shape"]][::-1]
        names = [row["form"] for row in first]
        column[1].barh(names, [row[time] for row in first], color="0.45")
        for place, row in enumerate(first):
            memory = f", {row['temp_mb']:,.0f} MB" if "temp_mb" in row else ""
            column[1].text(row[time], place, f" {row['times_ours']:.1f}x{memory}", va="center")
        column[1].set_xscale("log")
        # Room for what stands beside the longest bar.
        column[1].set_xlim(right=20 * max(row[time] for row in first))
        column[1].set_xlabel(_SECONDS[time])
        column[1].set_title(f"{kernel} {mine[0]['shape']}", fontsize=10)
    FigureCanvasAgg(figure).print_png(str(path))


def _plot_lengths(axes: Any, rows: list[dict[str, Any]]) -> None:
    for form in dict.fromkeys(row["form"] for row in rows):
        points = sorted(
            (row["length"], row[timing.compared_column()]) for row in rows if row["form"] == form
        )
        axes.plot(*zip(*points, strict=True), marker="o", label=form)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xlabel("T")
    axes.set_ylabel(_SECONDS[timing.compared_column()])
    if rows:
        axes.legend(frameon=False)


def run(quick: bool, out: Path) -> list[dict[str, Any]]:
    """Write tables and plot into `out` and return the rows; `quick`: tiny sizes."""
    out.mkdir(parents=True, exist_ok=True)
    peak, rows = timing.product_program(64 if quick else 0), []
    for case in cases(quick):
        more = measure(case, peak)
        rows += more
        for row in more:
            print("  ".join(f"{timing.shown(row.get(c, '-')):>12}" for c in COLUMNS), flush=True)
        timing.write_csv(out / "kernels.csv", COLUMNS, rows)
    promised = bars(rows, least=1 if quick else 128)
    for bar in promised:
        print("  ".join(timing.shown(value) for value in bar.values()))
    timing.write_csv(out / "kernels_bars.csv", BAR_COLUMNS, promised)
    plot(rows, out / "kernels.png")
    return rows


if __name__ == "__main__":
    configure_runtime()
    run(quick=False, out=Path(__file__).parents[1] / "results" / "benchmarks")
