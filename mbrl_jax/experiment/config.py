"""Configs as values: overrides from the command line, validation, JSON, and differences.

A config is a nested frozen dataclass. What a field may hold is read from its annotation; fields
marked `mbrl_jax.types.number` may be traced, so nothing here hashes them or branches on them.
"""

import dataclasses
import difflib
import importlib
import math
import sys
import types
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from mbrl_jax.errors import ConfigError, UnknownField
from mbrl_jax.experiment import rooms, schema
from mbrl_jax.experiment.annotations import (
    choices,
    config_classes,
    describe,
    fits,
    hints_of,
    is_config,
    members,
    name,
    parse,
    tag,
)
from mbrl_jax.types.fields import Range

SCHEMA_VERSION = 2  # of config.json; raise it when a field is renamed or changes its meaning
_NOT_FINITE = ("inf", "-inf", "nan")  # JSON has no such numbers: stored as {"float": "inf"}


# ------------------------------------------------------------------------------------- overrides


class _Target(NamedTuple):
    """A place in a config."""

    value: Any  # what stands there
    hint: Any  # annotation of the field
    path: str
    room: str | None = None  # package whose modules name the parts that may stand there


def override(config: Any, assignments: Sequence[str]) -> Any:
    """Return `config` with each "path=value" of `assignments` applied, in order.

    Raises ConfigError for an unknown field, a malformed assignment or an ill-typed value.
    """
    for assignment in assignments:
        path, equals, text = assignment.partition("=")
        path = path.strip()
        if not equals or not path:
            raise ConfigError(
                f"cannot understand {assignment!r}: an assignment reads path=value, "
                f"such as {_example(config)}"
            )
        config = _assign(_Target(config, type(config), ""), path.split("."), text, config)
    return config


def _assign(target: _Target, keys: Sequence[str], text: str, root: Any) -> Any:
    """Return `target.value` with what lies under `keys` replaced by the parsed text."""
    if not keys:
        return _parse(target, text)
    children = _children(target)
    if keys[0] not in children:
        raise _unknown(target, children, keys, root)
    new = _assign(children[keys[0]], keys[1:], text, root)
    if isinstance(target.value, tuple):
        position = int(keys[0])
        return (*target.value[:position], new, *target.value[position + 1 :])
    try:
        return dataclasses.replace(target.value, **{keys[0]: new})
    except ValueError as error:  # from a __post_init__
        raise ConfigError(f"{children[keys[0]].path}={text}: {error}") from error


def _children(target: _Target) -> dict[str, _Target]:
    """What lies under a config (its fields) or under a tuple of configs (its positions)."""
    prefix = f"{target.path}." if target.path else ""
    if is_config(target.value):
        kind: Any = type(target.value)
        hints = hints_of(kind)
        return {
            field.name: _Target(
                getattr(target.value, field.name),
                hints[field.name],
                prefix + field.name,
                field.metadata.get("room"),
            )
            for field in dataclasses.fields(target.value)
            if field.init
        }
    if holds_configs(target.value):
        return {str(i): _Target(v, type(v), f"{prefix}{i}") for i, v in enumerate(target.value)}
    return {}


def _parse(target: _Target, text: str) -> Any:
    """Read a value of the annotated type from text; a config is made from its name."""
    if target.room is not None:
        return _parse_part(target, text.strip())
    hint = type(target.value) if target.hint in (Any, object) else target.hint
    for cls in config_classes(hint):
        if text.strip().lower() in (name(cls).lower(), tag(cls).lower()):
            return _switch(target, cls)
    try:
        return parse(text, hint)
    except ValueError:
        if config_classes(hint) or _children(target):
            raise _not_a_value(target, config_classes(hint), text) from None
        raise ConfigError(f"{target.path}: expected {describe(hint)}, got {text!r}") from None


def _parse_part(target: _Target, text: str) -> Any:
    """A part by the name of its module in the room, by ROOM.module:Class, or by module:Class."""
    if text.lower() == "none" and target.value is None:
        return None
    try:
        return _switch(target, rooms.find(str(target.room), text))
    except rooms.NotFound as error:
        if (made := rooms.named(str(target.room), text)) is not None:
            return _switch(target, type(made), name=made.name)
        near, below = rooms.nearest(str(target.room), text), _children(target)
        ways = f", or set one of {', '.join(c.path for c in below.values())}" if below else ""
        raise ConfigError(f"{target.path}={text}: {error}{near}{ways}") from None


def _switch(target: _Target, cls: type, **fields: Any) -> Any:
    """Make the default `cls` with these fields, taking over others that the old value has too."""
    kept = {}
    if is_config(target.value):
        before: Any = type(target.value)
        old, new = hints_of(before), hints_of(cls)
        shared = {f.name for f in dataclasses.fields(target.value)}
        shared &= {f.name for f in dataclasses.fields(cls) if f.init}
        kept = {n: getattr(target.value, n) for n in sorted(shared) if old[n] == new[n]}
    try:
        return cls(**kept | fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{target.path}={name(cls)} cannot be built: {error}") from error


def _not_a_value(target: _Target, classes: Sequence[type], text: str) -> ConfigError:
    """A scalar was assigned to a config."""
    ways = []
    if classes:
        words = [name(cls) for cls in classes] + choices(target.hint)
        words += ["none"] if types.NoneType in members(target.hint) else []
        ways.append("set it to " + " or ".join(words))
    if below := _children(target):
        ways.append(f"set one of {', '.join(c.path for c in below.values())}")
    return ConfigError(f"{target.path} is a config and cannot be {text!r}: {', or '.join(ways)}")


def _unknown(target: _Target, children: dict, keys: Sequence[str], root: Any) -> UnknownField:
    """Name the path that does not exist, and the nearest ones that do."""
    wrong = ".".join(([target.path] if target.path else []) + [keys[0]])
    if not children:
        if classes := config_classes(target.hint):
            now = f"{target.path} is none; set it to {' or '.join(map(name, classes))} first"
        else:
            now = f"{target.path} is a value without fields"
        return UnknownField(f"unknown field {wrong}: {now}")
    near = [children[k].path for k in difflib.get_close_matches(keys[0], children, n=3)]
    same = [path for path in flatten(root) if path.split(".")[-1] == keys[-1]]
    near += [path for path in same[:3] if path not in near]
    advice = f": did you mean {' or '.join(near)}?" if near else ""
    owner = target.path or name(type(target.value))
    there = ", ".join(sorted(children))
    return UnknownField(f"unknown field {wrong}{advice} ({owner} has {there})")


def _example(config: Any) -> str:
    """An assignment that would be legal."""
    numbers = [(k, v) for k, v in flatten(config).items() if type(v) in (int, float)]
    return "{}={}".format(*numbers[0]) if numbers else "model.width=32"


# ---------------------------------------------------------------------------- validation, reading


def holds_configs(value: Any) -> bool:
    """Whether a value is a tuple of configs, or of tuples that hold some."""
    return isinstance(value, tuple) and any(is_config(v) or holds_configs(v) for v in value)


def _walk(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (path, value) of every config and leaf, parents first; the root has the path ''."""
    yield path, value
    if is_config(value):
        below = [(f.name, getattr(value, f.name)) for f in dataclasses.fields(value)]
    elif holds_configs(value):
        below = [(str(i), v) for i, v in enumerate(value)]
    else:
        return
    for key, child in below:
        yield from _walk(child, f"{path}.{key}" if path else key)


def validate(config: Any) -> None:
    """Check all ranges, then call the `validate` of every config that has one, innermost first.

    Raises ConfigError, with the path, for the first number out of range or the first ValueError.
    """
    check_ranges(config)
    for path, value in reversed(list(_walk(config))):
        if is_config(value) and hasattr(value, "validate"):
            try:
                value.validate()
            except ValueError as error:
                raise ConfigError(f"{path}: {error}" if path else str(error)) from error


def check_ranges(config: Any) -> None:
    """Raise ConfigError, with the path, for the first number out of its range, or of float32's.

    Numbers that are traced, None and words have no range.
    """
    for path, value in _walk(config):
        for field in dataclasses.fields(value) if is_config(value) else ():
            inside = field.metadata.get("range", Range())
            for place, number in _numbers_in(getattr(value, field.name), field.name):
                if fault := inside.fault(number):
                    raise ConfigError(f"{f'{path}.{place}'.lstrip('.')}={number} {fault}")


def _numbers_in(value: Any, path: str) -> Iterator[tuple[str, int | float]]:
    """(path, number) of a number, or of those in a tuple of any depth."""
    if isinstance(value, tuple):
        for i, entry in enumerate(value):
            yield from _numbers_in(entry, f"{path}.{i}")
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


def flatten(config: Any) -> dict[str, Any]:
    """Return {path: value} of every field; a nested config stands as its name, then its fields."""
    return {
        path: name(type(value)) if is_config(value) else value
        for path, value in _walk(config)
        if path and not holds_configs(value)
    }


def parts_of(config: Any) -> list[tuple[str, Any]]:
    """(path, config) of every config below `config`, itself included."""
    return [(path, value) for path, value in _walk(config) if is_config(value)]


def numbers(config: Any) -> dict[str, float]:
    """{path: value} of the fields that may be traced."""
    return {
        f"{path}.{field.name}".lstrip("."): getattr(value, field.name)
        for path, value in _walk(config)
        if is_config(value)
        for field in dataclasses.fields(value)
        if field.metadata.get("number")
    }


def with_numbers(config: Any, values: Mapping[str, Any]) -> Any:
    """`config` with other numbers at these paths, traced ones perhaps."""
    for path, value in values.items():
        config = _with_number(config, path.split("."), value)
    return config


def _with_number(config: Any, keys: Sequence[str], number: Any) -> Any:
    if not keys:
        return number
    new = _with_number(getattr(config, keys[0]), keys[1:], number)
    return dataclasses.replace(config, **{keys[0]: new})


def difference(old: Any, new: Any) -> list[str]:
    """Lines "path: old -> new" where two configs differ; below a replaced config only itself."""
    before, after = texts(old), texts(new)
    return [
        f"{path or 'config'}: {before.get(path, 'absent')} -> {after.get(path, 'absent')}"
        for path in changed(before, after)
    ]


def texts(config: Any) -> dict[str, str]:
    """{path: text} of every config and leaf; equal values have equal texts. The root is ''."""
    return {path: _text(value) for path, value in _walk(config)}


def changed(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """Paths where the `texts` of two configs differ; below a replaced config only itself."""
    found: list[str] = []
    for path in [*before, *(p for p in after if p not in before)]:
        parents = (f"{parent}." if parent else "" for parent in found)
        if before.get(path) != after.get(path) and not any(map(path.startswith, parents)):
            found.append(path)
    return found


def _text(value: Any) -> str:
    """Text that stands for a value in a comparison: a traced number has no truth value."""
    if isinstance(value, tuple):
        return f"{len(value)} configs" if holds_configs(value) else repr(value)
    if type(value) is int and abs(value) < 2**53:
        return repr(float(value)).removesuffix(".0")  # 1 and 1.0 are the same learning rate
    if type(value) is float:
        return repr(value).removesuffix(".0")
    return tag(type(value)) if is_config(value) else repr(value)


# ------------------------------------------------------------------------------------------- JSON


def to_json(config: Any) -> dict[str, Any]:
    """Return `config` as plain JSON values, every config with its type "module:Class"."""
    return {"schema_version": SCHEMA_VERSION, **_encode(config, "config")}


def _encode(value: Any, path: str) -> Any:
    if is_config(value):
        fields = {f.name: getattr(value, f.name) for f in dataclasses.fields(value) if f.init}
        if "type" in fields:
            raise ConfigError(f"{path}: a field may not be called 'type'")
        encoded = {key: _encode(child, f"{path}.{key}") for key, child in fields.items()}
        return {"type": tag(type(value)), **encoded}
    if type(value) is tuple:
        return [_encode(child, f"{path}.{i}") for i, child in enumerate(value)]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"float": repr(float(value))}
    if value is None or type(value) in (bool, int, str):
        return value
    raise ConfigError(f"{path}: a {type(value).__name__} cannot be stored as JSON")


def from_json(data: Any) -> Any:
    """Rebuild what `to_json` wrote.

    Only frozen dataclasses are built, from modules that are imported already or belong to
    `mbrl_jax`. Raises ConfigError for anything else.
    """
    version = data.get("schema_version") if isinstance(data, dict) else None
    if version not in (1, SCHEMA_VERSION):
        raise ConfigError(
            f"this config has schema_version {version}, and this version of mbrl_jax reads 1 and "
            f"{SCHEMA_VERSION}"
        )
    found = {k: v for k, v in data.items() if k != "schema_version"}
    if version == 1:
        found = schema.from_1(found)
    return _decode(found, "config")


def _decode(value: Any, path: str) -> Any:
    if isinstance(value, list):
        return tuple(_decode(child, f"{path}.{i}") for i, child in enumerate(value))
    if not isinstance(value, dict):
        return value
    if value.get("float") in _NOT_FINITE:
        return float(value["float"])
    cls = _find_class(value.get("type"), path)
    known = {f.name for f in dataclasses.fields(cls) if f.init}
    if unknown := sorted(set(value) - known - {"type"}):
        raise ConfigError(
            f"{path} (schema_version {SCHEMA_VERSION}): {tag(cls)} has no field "
            f"{', '.join(unknown)}; it has {', '.join(sorted(known))}"
        )
    fields = {k: _decode(v, f"{path}.{k}") for k, v in value.items() if k != "type"}
    for key, field in fields.items():
        if not fits(field, hint := hints_of(cls)[key]):
            raise ConfigError(f"{path}.{key}: expected {describe(hint)}, got {field!r}")
    try:
        return cls(**fields)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as {tag(cls)}: {error}") from error


def _find_class(label: Any, path: str) -> type:
    """The dataclass with the tag "module:Class"."""
    module, _, qualname = label.partition(":") if isinstance(label, str) else ("", "", "")
    if module.split(".")[0] == "mbrl_jax" and module not in sys.modules:
        try:
            importlib.import_module(module)
        except (ImportError, ValueError) as error:
            raise ConfigError(f"{path}: cannot import the type {label!r}: {error}") from error
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    frozen = getattr(getattr(found, "__dataclass_params__", None), "frozen", False)
    if not (isinstance(found, type) and frozen and found.__module__ == module):
        raise ConfigError(
            f"{path}: {label!r} is not a frozen dataclass of mbrl_jax or of an imported module "
            "(name the experiment that defines it: --experiment=…)"
        )
    return found
