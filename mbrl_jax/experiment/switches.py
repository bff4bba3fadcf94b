"""The switches between what a published system does and what we would choose (`types.switch`)."""

import dataclasses
from collections.abc import Iterator
from typing import Any, NamedTuple


class Switch(NamedTuple):
    """One of them, as an experiment has it set."""

    path: str  # for --set
    value: Any
    published: Any
    better: Any
    why: str


def switches(config: Any, path: str = "") -> Iterator[Switch]:
    """All switches of a config and of those in it, in their order."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        if "published" in field.metadata:
            known = (field.metadata[key] for key in ("published", "better", "why"))
            yield Switch(name, value, *known)
        elif dataclasses.is_dataclass(value):
            yield from switches(value, f"{name}.")


def table(config: Any) -> str:
    """All switches as a table in Markdown."""
    lines = [
        "| setting | published | better | what it is, and when to want which |",
        "|---|---|---|---|",
    ]
    for switch in switches(config):
        cells = (f"`{switch.path}`", f"`{switch.published}`", f"`{switch.better}`", switch.why)
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"
