"""HTML that cannot be forgotten to be escaped: text is `str`, markup is `Html`."""

import html
from collections.abc import Iterable

from mbrl_jax.runs.shown import shown

_ALONE = ("img", "meta", "br", "hr")  # elements without an end


class Html(str):
    """Markup. Whatever is not of this type is escaped before it becomes part of it."""

    __slots__ = ()


def escape(text: object) -> Html:
    """Text as markup that shows it; `Html` as it is."""
    if isinstance(text, Html):
        return text
    return Html(html.escape(shown(text), quote=True))


def join(parts: Iterable[object], between: str = "") -> Html:
    """Texts and markup one after the other."""
    return Html(escape(between).join(map(escape, parts)))


def tag(name: str, content: object = "", /, **attributes: object) -> Html:
    """An element.

    Args:
      name: of the element.
      content: text, or markup.
      **attributes: `class_` stands for class, `_` within a name for `-`; None leaves one out.
    """
    given = {k.rstrip("_").replace("_", "-"): v for k, v in attributes.items() if v is not None}
    inside = "".join(f' {key}="{escape(value)}"' for key, value in given.items())
    end = "" if name in _ALONE else f"{escape(content)}</{name}>"
    return Html(f"<{name}{inside}>{end}")
