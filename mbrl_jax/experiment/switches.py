"""The switches between what a published system does and what we would choose (`types.switch`)."""

import dataclasses
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from mbrl_jax.experiment.config import override
from mbrl_jax.experiment.experiment import Experiment, has_part, with_settings


class Switch(NamedTuple):
    """One of them, as an experiment has it set."""

    path: str  # for --set
    value: Any
    published: Any
    better: Any
    why: str
    price: str  # of the published side on Catch; empty: not measured


class Difference(NamedTuple):
    """What an experiment does otherwise than the published system, whatever its switches say."""

    published: str
    here: str
    why: str


def switches(experiment: Experiment) -> list[Switch]:
    """All switches of an experiment and of the parts in it, in their order.

    What is published may hang on other parts: `Experiment.with_parts` says so.
    """
    told: dict[str, str] = {}
    for part, settings in experiment.with_parts:
        if has_part(experiment, part):
            told |= {setting.partition("=")[0]: setting for setting in settings}
    found = []
    for switch in _walk(experiment):
        if switch.path in told:
            other = {s.path: s.value for s in _walk(override(experiment, [told[switch.path]]))}
            switch = switch._replace(published=other[switch.path])
        found.append(switch)
    return found


def _walk(config: Any, path: str = "") -> Iterator[Switch]:
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if "published" in field.metadata:
            known = (field.metadata[key] for key in ("published", "better", "why", "price"))
            yield Switch(name, value, *known)
        elif dataclasses.is_dataclass(value):
            yield from _walk(value, f"{name}.")


def table(experiment: Experiment) -> str:
    """All switches as a table in Markdown."""
    return _table(
        ("setting", "published", "better", "what it is, and when to want which", "price"),
        (
            (f"`{s.path}`", f"`{s.published}`", f"`{s.better}`", s.why, s.price or "–")
            for s in switches(experiment)
        ),
    )


def table_with_parts(experiment: Experiment) -> str:
    """The switches that another part brings, or for which other values are published with it."""
    known = {(s.path, s.published) for s in switches(experiment)}
    rows = []
    for part, _ in experiment.with_parts:
        for s in switches(with_settings(experiment, [part])):
            if (s.path, s.published) not in known:
                values = (f"`{s.published}`", f"`{s.better}`")
                rows.append((f"`{part}`", f"`{s.path}`", *values, s.why, s.price or "–"))
    titles = ("with", "setting", "published", "better", "what it is", "price")
    return _table(titles, rows) if rows else ""


def table_of_differences(differences: Iterable[Difference]) -> str:
    """What stays otherwise than published, as a table in Markdown; empty where nothing does."""
    rows = [tuple(difference) for difference in differences]
    return _table(("published", "here", "why it stays"), rows) if rows else ""


def _table(titles: Iterable[str], rows: Iterable[tuple[str, ...]]) -> str:
    titles = tuple(titles)
    lines = [titles, ("---",) * len(titles), *rows]
    text = "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"
    return text.replace("| --- ", "|---").replace("|--- |", "|---|")
