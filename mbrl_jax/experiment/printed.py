"""A config as text that explains itself: every field with its value, range, default and meaning.

Meanings are those that the classes have: of `number` and `switch` their texts, elsewhere the
comment beside or above the field.
"""

import ast
import dataclasses
import functools
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from typing import Any, NamedTuple

from mbrl_jax.experiment import annotations
from mbrl_jax.experiment.annotations import is_config
from mbrl_jax.experiment.config import holds_configs


class Printed(NamedTuple):
    """A line of the listing."""

    path: str  # for --set
    value: str
    default: str  # of the class; "" where it is the value, or there is none
    kind: str  # what a value may be
    meaning: str


def fields_of(config: Any, path: str = "") -> Iterator[Printed]:
    """Every field of a config and of those in it, parents first."""
    for field in dataclasses.fields(config):
        value, name = getattr(config, field.name), f"{path}{field.name}"
        shown, default = _text(value), ""
        if field.default is not dataclasses.MISSING and _text(field.default) != shown:
            default = _text(field.default)
        kind, meaning = _kind(type(config), field, value), _meaning(type(config), field)
        yield Printed(name, shown, default, kind, meaning)
        yield from _below(value, name)


def _below(value: Any, path: str) -> Iterator[Printed]:
    """What is in a value: fields of a config, entries of a tuple that holds configs somewhere."""
    if is_config(value):
        yield from fields_of(value, f"{path}.")
    elif holds_configs(value):
        for i, one in enumerate(value):
            yield Printed(
                f"{path}.{i}", _text(one), "", "fields below" if is_config(one) else "", ""
            )
            yield from _below(one, f"{path}.{i}")


def listing(config: Any, width: int = 100) -> str:
    """The fields as text, a meaning indented below its field."""
    lines = []
    for one in fields_of(config):
        notes = [note for note in (one.kind, one.default and f"default {one.default}") if note]
        lines.append(f"{one.path} = {one.value}" + (f"  ({'; '.join(notes)})" if notes else ""))
        lines += textwrap.wrap(one.meaning, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def _kind(cls: Any, field: dataclasses.Field, value: Any) -> str:
    """What a value of a field may be, in words."""
    if "room" in field.metadata:
        return f"a name in {field.metadata['room']}, or module:Config"
    hint = annotations.hints_of(cls)[field.name]
    if is_config(value):
        names = [annotations.name(one) for one in annotations.config_classes(hint)]
        return f"one of {', '.join(names)}" if len(names) > 1 else "fields below"
    kind = annotations.describe(hint)
    inside = str(field.metadata.get("range", "any number"))
    return kind if inside == "any number" else f"{kind} {inside}"


def _text(value: Any) -> str:
    """A value as --set takes it; of a config its name."""
    if is_config(value):
        return annotations.name(type(value))
    if isinstance(value, tuple):
        return f"[{', '.join(map(_text, value))}]"
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) else str(value)


def _meaning(cls: type, field: dataclasses.Field) -> str:
    """What a field's class says of it."""
    if "published" in field.metadata:
        known = (f"{key}: {_text(field.metadata[key])}" for key in ("published", "better"))
        return f"{field.metadata['why']} ({', '.join(known)})"
    found = field.metadata.get("doc")
    return str(found) if found else _comments(_owner(cls, field.name)).get(field.name, "")


def _owner(cls: type, name: str) -> type:
    """The class of a hierarchy that defines a field."""
    return next(one for one in cls.__mro__ if name in one.__dict__.get("__annotations__", {}))


@functools.cache
def _comments(cls: type) -> dict[str, str]:
    """{field: its comment} of a class, beside it or in the lines right above; {} without source."""
    try:
        source = textwrap.dedent(inspect.getsource(cls))
    except (OSError, TypeError):
        return {}
    beside: dict[int, str] = {}
    alone: dict[int, str] = {}
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            text = token.string.lstrip("# ").strip()
            own_line = token.line.lstrip().startswith("#")
            (alone if own_line else beside)[token.start[0]] = text
    found = {}
    (body,) = ast.parse(source).body
    assert isinstance(body, ast.ClassDef)
    for node in body.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            above: list[str] = []
            line = node.lineno - 1
            while line in alone:
                above.insert(0, alone[line])
                line -= 1
            lines = range(node.lineno, (node.end_lineno or node.lineno) + 1)
            texts = [*above, *(beside[i] for i in lines if i in beside)]
            found[node.target.id] = " ".join(text for text in texts if "noqa" not in text)
    return found
