"""The cases of the kernels: which reference with which options against which of our methods.

What a file about their authors has to offer, as functions of its module, is what `Theirs` lists;
our side is `kernels`.
"""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from experiments.studies.authors import kernels
from experiments.studies.authors.table import Case, Side

REFERENCES = ("scan", "chunks", "minimal")  # of the state-space duality


class Theirs(Protocol):
    """The authors' side; each function as that of `kernels`."""

    def precision(self, wide: bool) -> contextlib.AbstractContextManager:
        """Within it everything below is in float64, or in float32."""

    def scan(self, case: kernels.Scan) -> Side:
        """The selective scan."""

    def ssd(self, reference: str, case: kernels.Ssd) -> Side:
        """The state-space duality in one of its forms."""

    def step(self, channels: int, states: int, groups: int, heads: bool) -> Side:
        """One row of either recurrence."""

    def convolution(self, length: int, channels: int, width: int) -> Side:
        """The causal convolution."""


def cases(theirs: Theirs) -> Iterator[Case]:
    """All of them."""
    for one in kernels.SCANS:
        ours = functools.partial(kernels.scan, one)
        yield _case(theirs, "selective scan", one.name, ours, kernels.SCAN_METHODS, "scan", one)
    for reference in REFERENCES:
        more = (*kernels.UNEVEN, kernels.FAST) if reference == "scan" else ()
        for one in kernels.SSDS + more:
            if reference == "minimal":
                one = one._replace(options="")
            ours, group = functools.partial(kernels.ssd, one), f"ssd as {reference}"
            given = ("ssd", reference, one)
            yield _case(theirs, group, one.name, ours, kernels.SSD_METHODS, *given)
    for sizes in kernels.STEPS:
        for heads in (False, True) if sizes[-1] == 1 else (True,):
            label, name = "D={} N={} G={}".format(*sizes), f"step, Mamba{'-2' if heads else ''}"
            ours = functools.partial(kernels.step, *sizes, heads)
            yield _case(theirs, name, label, ours, ("",), "step", *sizes, heads)
    for sizes in kernels.CONVOLUTIONS:
        label = "T={} C={} W={}".format(*sizes)
        ours = functools.partial(kernels.convolution, *sizes)
        yield _case(theirs, "convolution", label, ours, ("",), "convolution", *sizes)


def _case(
    theirs: Theirs,
    name: str,
    label: str,
    ours: Callable[..., Side],
    methods: tuple[str, ...],
    function: str,
    *args: Any,
) -> Case:
    """One problem: ours by each method, whose lines tell it."""

    def named(method: str, side: Side) -> dict[str, Any]:
        group = f"{name}, {method}" if method else name
        return {f"{group}/{quantity}": x for quantity, x in side.items()}

    def their_side(wide: bool) -> Side:
        with theirs.precision(wide):
            found = getattr(theirs, function)(*args)
        return {n: x for method in methods for n, x in named(method, found).items()}

    def our_side() -> Side:
        found: dict[str, Any] = {}
        for method in methods:
            found |= named(method, ours(method) if method else ours())
        return found

    return Case(label, their_side, our_side)


golden_cases = cases  # of which `golden` names some
