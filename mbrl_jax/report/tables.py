"""Tables that are written twice: as HTML with links to where numbers come from, and as Markdown."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from mbrl_jax.report.groups import NOTHING
from mbrl_jax.report.html import Html, escape, join, tag
from mbrl_jax.runs.shown import shown

# What Markdown would take for more than text; underscores within a word are none of it.
_SPECIAL = re.compile(r"([\\`*\[\]<>|~$&]|(?<![A-Za-z0-9])_|_(?![A-Za-z0-9]))")


_LONG = 22  # letters of a cell that get room beside each other


class Cell(NamedTuple):
    """One place of a table."""

    text: str
    link: str = ""  # id of the rows that it comes from
    also: tuple[tuple[str, str], ...] = ()  # (text, id) of more links behind it
    kind: str = ""  # "text", "" for numbers
    colour: int | None = None  # number of a group, shown as a swatch


class Table(NamedTuple):
    """Rows of cells under a header."""

    name: str
    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    ids: tuple[str, ...] = ()  # of the rows, where others link to them


def text_cell(text: object, link: str = "", colour: int | None = None) -> Cell:
    """A cell of words, at the left."""
    return Cell(str(text), link, kind="text", colour=colour)


# -------------------------------------------------------------------------------------------- HTML


def to_html(table: Table) -> Html:
    """The table in a box that scrolls by itself on narrow windows, with its notes below."""
    kinds = [table.rows[0][i].kind if table.rows else "" for i in range(len(table.header))]
    head = join(
        tag("th", name, class_=kind or None, scope="col")
        for name, kind in zip(table.header, kinds, strict=True)
    )
    ids = table.ids or (None,) * len(table.rows)
    body = join(
        tag("tr", join(map(_cell, row)), id=name) for row, name in zip(table.rows, ids, strict=True)
    )
    whole = tag("table", join([tag("thead", tag("tr", head)), tag("tbody", body)]))
    notes = join(tag("p", note, class_="note") for note in table.notes)
    return join([tag("div", whole, class_="scroll", tabindex="0"), notes])


def _cell(cell: Cell) -> Html:
    main = tag("a", cell.text, href=f"#{cell.link}") if cell.link else escape(cell.text)
    more = (tag("sup", tag("a", text, href=f"#{link}")) for text, link in cell.also)
    swatch = () if cell.colour is None else (chip(cell.colour),)
    kind = cell.kind if cell.colour is None else f"{cell.kind} group"
    kind += " long" * (len(cell.text) > _LONG and bool(cell.kind))
    return tag("td", join([*swatch, main, *more]), class_=kind or None)


def chip(number: int) -> Html:
    """The colour of a group, as in figures."""
    return tag("span", "", class_=f"chip c{number % 8}", aria_hidden="true")


# ---------------------------------------------------------------------------------------- Markdown


def plain_markdown(text: object) -> str:
    """Text that Markdown shows as it is."""
    return _SPECIAL.sub(r"\\\1", shown(text))


def to_markdown(table: Table) -> str:
    """The table, its numbers at the right, its notes below."""
    kinds = [table.rows[0][i].kind if table.rows else "" for i in range(len(table.header))]
    columns = [
        [plain_markdown(name), *(_markdown_cell(row[i]) for row in table.rows)]
        for i, name in enumerate(table.header)
    ]
    widths = [max(3, *map(len, column)) for column in columns]
    lines = [_line(columns, kinds, widths, 0)]
    rules = [
        "-" * w if kind else "-" * (w - 1) + ":" for w, kind in zip(widths, kinds, strict=True)
    ]
    lines.append(f"| {' | '.join(rules)} |")
    lines += [_line(columns, kinds, widths, i + 1) for i in range(len(table.rows))]
    notes = [f"\n{plain_markdown(note)}" for note in table.notes]
    return "\n".join([f"## {plain_markdown(table.name)}\n", *lines, *notes]) + "\n"


def _markdown_cell(cell: Cell) -> str:
    """Numbers were made here: nothing in them has to be escaped."""
    return plain_markdown(cell.text) if cell.kind else cell.text


def _line(
    columns: Sequence[list[str]], kinds: Sequence[str], widths: Sequence[int], row: int
) -> str:
    cells = [
        column[row].ljust(width) if kind else column[row].rjust(width)
        for column, kind, width in zip(columns, kinds, widths, strict=True)
    ]
    return f"| {' | '.join(cells)} |"


# ----------------------------------------------------------------------------------------- numbers


def number_text(value: float | None) -> str:
    """A number with as many digits as one reads: 0.98, 12.40, 1,234; and two of small ones."""
    if value is None or value != value:
        return NOTHING
    size = abs(value)
    if 0 < size < 0.095:
        return f"{value:.2g}"
    return f"{value:.2f}" if size < 100 else f"{value:,.0f}"


def interval_text(estimate: float, low: float, high: float) -> str:
    """An estimate with its bounds, where it has any."""
    if low != low:
        return number_text(estimate)
    return f"{number_text(estimate)} [{number_text(low)}, {number_text(high)}]"
