"""What a config's annotations say: reading a value from text, and naming types in messages."""

import dataclasses
import functools
import math
import types
import typing
from typing import Any, Literal

_WORDS = {
    int: "an integer",
    float: "a finite number",
    bool: "true or false",
    str: "text",
    types.NoneType: "none",
}


@functools.cache
def hints_of(cls: Any) -> dict[str, Any]:
    """Resolved annotations of the fields of a dataclass."""
    return typing.get_type_hints(cls)


def members(hint: Any) -> list[Any]:
    """Members of a union, or the one type."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return [m for arg in typing.get_args(hint) for m in members(arg)]
    return [hint]


def config_classes(hint: Any) -> list[type]:
    """The dataclasses among the members of a union."""
    return [m for m in members(hint) if isinstance(m, type) and dataclasses.is_dataclass(m)]


def choices(hint: Any) -> list[str]:
    """The words among the members of a union."""
    literals = [m for m in members(hint) if typing.get_origin(m) is Literal]
    return [str(choice) for literal in literals for choice in typing.get_args(literal)]


def modules_of(config: Any) -> list[str]:
    """Modules of the types of a config and of those in it, each once."""
    children: Any = config if type(config) is tuple else ()
    found = []
    if is_config(config):
        children = [getattr(config, f.name) for f in dataclasses.fields(config) if f.init]
        found = [type(config).__module__]
    return list(dict.fromkeys(found + [m for child in children for m in modules_of(child)]))


def sources_of(config: Any) -> list[str]:
    """`modules_of`, and what configs say of themselves with `comes_from`, each once."""
    found = modules_of(config) + list(getattr(config, "comes_from", ()))
    children: Any = config if type(config) is tuple else ()
    if is_config(config):
        children = [getattr(config, f.name) for f in dataclasses.fields(config) if f.init]
    return list(dict.fromkeys(found + [m for child in children for m in sources_of(child)]))


def is_config(value: Any) -> bool:
    """Whether `value` is an instance of a dataclass."""
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def name(cls: type) -> str:
    """What a config is called on the command line: its module, or its own name if it has one."""
    return cls.__module__.split(".")[-1] if cls.__name__ == "Config" else cls.__name__


def tag(cls: type) -> str:
    """What a config is called in a file."""
    return f"{cls.__module__}:{cls.__qualname__}"


def describe(hint: Any) -> str:
    """An annotation in words."""
    args = typing.get_args(hint)
    if len(members(hint)) > 1:
        return " or ".join(describe(m) for m in members(hint))
    if typing.get_origin(hint) is Literal:
        return "one of " + ", ".join(str(choice) for choice in args)
    if typing.get_origin(hint) is tuple:
        if args[-1:] == (Ellipsis,):
            return f"a comma-separated list, each {describe(args[0])}"
        return f"a comma-separated list of {', '.join(describe(a) for a in args)}"
    return _WORDS.get(hint, f"{getattr(hint, '__name__', hint)}, which text cannot express")


def fits(value: Any, hint: Any) -> bool:
    """Whether a value read from a file may stand where `hint` is written; any config may."""
    return is_config(value) or any(_fits_member(value, member) for member in members(hint))


def _fits_member(value: Any, hint: Any) -> bool:
    """`fits` for a hint that is no union."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint in (Any, object):
        return True
    if origin is Literal:
        return value in args
    if origin is tuple or hint is tuple:
        if not isinstance(value, tuple) or not args:
            return isinstance(value, tuple)
        hints = (args[0],) * len(value) if args[-1] is Ellipsis else args
        return len(hints) == len(value) and all(map(fits, value, hints))
    if hint is float:
        return type(value) in (int, float)
    return type(value) is hint


def parse(text: str, hint: Any) -> Any:
    """Read text as the first member of `hint` that it fits; ValueError if it fits none.

    Configs among the members are not considered.
    """
    options = [m for m in members(hint) if m not in config_classes(hint)]
    for member in sorted(options, key=lambda m: m is str):  # str takes anything: it goes last
        try:
            return _parse_member(text, member)
        except (ValueError, OverflowError):
            continue
    raise ValueError(text)


def _parse_member(text: str, hint: Any) -> Any:
    """Read text as `hint`, which is no union."""
    word = text.strip()
    if hint is types.NoneType and word.lower() == "none":
        return None
    if hint is bool and word.lower() in ("true", "1", "false", "0"):
        return word.lower() in ("true", "1")
    if hint is int:
        return _parse_int(word)
    if hint is float and math.isfinite(float(word)):
        return float(word)
    if hint is str:
        return text
    if typing.get_origin(hint) is Literal:
        for choice in typing.get_args(hint):
            if word == str(choice):
                return choice
    if typing.get_origin(hint) is tuple:
        return _parse_tuple(word, typing.get_args(hint))
    raise ValueError(text)


def _parse_int(word: str) -> int:
    """Accept 1000 and, since it is the same number, 1e3."""
    try:
        return int(word)
    except ValueError:
        value = float(word)
        if not value.is_integer() or abs(value) > 2**53:  # beyond it floats skip integers
            raise
        return int(value)


def _parse_tuple(word: str, items: tuple) -> tuple:
    """Read "3,4", "(3, 4)" or "[3,4]"; "()" and "" are the empty tuple."""
    if (word[:1], word[-1:]) in (("(", ")"), ("[", "]")):
        word = word[1:-1]
    parts = word.split(",") if word.strip() else []
    if len(parts) > 1 and not parts[-1].strip():
        parts.pop()  # "(3,)"
    if items[-1:] == (Ellipsis,):
        items = (items[0],) * len(parts)
    if len(items) != len(parts):
        raise ValueError(word)
    return tuple(parse(part.strip(), item) for part, item in zip(parts, items, strict=True))
