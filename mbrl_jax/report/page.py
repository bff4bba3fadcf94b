"""The page of a report: everything in one file, which asks for nothing and runs nothing."""

import json
import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from mbrl_jax.experiment import config
from mbrl_jax.report.commands import Command
from mbrl_jax.report.content import Places, seeds_text
from mbrl_jax.report.groups import FORK, Group, Grouping, Pool
from mbrl_jax.report.html import Html, join, tag
from mbrl_jax.report.records import Run
from mbrl_jax.report.style import CSS
from mbrl_jax.report.tables import NOTHING, Table, chip, to_html

POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
_LONG = 40  # rows of a table that is folded
_MAIN_VERSIONS = ("python", "mbrl_jax", "jax", "jaxlib", "flax", "optax", "numpy")


class Head(NamedTuple):
    """What stands above all."""

    title: str
    summary: str
    facts: tuple[tuple[str, str], ...]  # (name, value); commands in `code`
    command: str


class Section(NamedTuple):
    """A part of the page."""

    name: str  # id
    title: str
    content: Html


def page(head: Head, warnings: Sequence[str], sections: Sequence[Section]) -> str:
    """The whole document."""
    metas = [
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="referrer", content="no-referrer"),
        tag("title", head.title),
        tag("style", Html(CSS)),
    ]
    facts = [
        join([tag("dt", name), tag("dd", tag("code", value) if name == "command" else value)])
        for name, value in (*head.facts, ("command", head.command))
    ]
    top = [
        tag("h1", head.title),
        tag("p", head.summary, class_="lead"),
        tag("dl", join(facts), class_="facts"),
        tag("nav", join((tag("a", s.title, href=f"#{s.name}") for s in sections), " ")),
        *(tag("p", warning, class_="warning") for warning in warnings),
    ]
    rest = [tag("section", join([tag("h2", s.title), s.content]), id=s.name) for s in sections]
    body = join([tag("header", join(top)), tag("main", join(rest))])
    return (
        f'<!doctype html>\n<html lang="en"><head>{join(metas)}</head><body>{body}</body></html>\n'
    )


def section(name: str, title: str, *parts: Html | Table | str | None) -> Section:
    """Tables under their names, figures and words, one below the other; None is left out."""
    made = []
    for part in parts:
        if isinstance(part, Table):
            made.append(_named(part, title))
        elif isinstance(part, Html):
            made.append(part)
        elif part:
            made.append(tag("p", part, class_="note"))
    return Section(name, title, join(made))


def _named(table: Table, title: str) -> Html:
    """A table under its name, unless that stands above already; folded if it is long."""
    if table.name == title:
        return to_html(table)
    if len(table.rows) <= _LONG:
        return join([tag("h3", table.name), to_html(table)])
    summary = tag("summary", f"{table.name}: {len(table.rows)} rows")
    return tag("details", join([summary, tag("div", to_html(table), class_="inside")]))


def figures(drawn: Sequence[Html], class_: str = "figures") -> Html:
    """Figures side by side, as many as there is room for."""
    return tag("div", join(drawn), class_=class_) if drawn else Html("")


def key(grouping: Grouping, at: Places) -> Html:
    """Which letter and colour is which group."""
    items = (
        tag("li", join([chip(at.style(g.letter)), tag("b", g.letter), f" {g.label}"]))
        for g in grouping.groups
    )
    return tag("ul", join(items), class_="key")


# ----------------------------------------------------------------------------------- configuration


def configurations(grouping: Grouping, at: Places) -> Html:
    """The whole configuration of each group, folded."""
    return join(_configuration(group, at) for group in grouping.groups)


def _configuration(group: Group, at: Places) -> Html:
    data = config.to_json(group.experiment)
    tasks = [pool.task for pool in group.pools]
    if len(tasks) > 1:
        data["env"] = {**data["env"], "name": " | ".join(tasks)}
    if group.history:
        data[FORK] = [{"step": step, "changed": list(changed)} for step, changed in group.history]
    text = json.dumps(data, indent=2, ensure_ascii=False)
    lines = join(text.split("\n"), "\n")
    name = join([chip(at.style(group.letter)), f"{group.letter} {group.label}"])
    whole = join([tag("summary", name), tag("pre", tag("code", lines))])
    return tag("details", whole, id=f"config-{group.letter}")


# -------------------------------------------------------------------------------------- provenance


def provenance(
    grouping: Grouping, runs: Sequence[Run], commands: Mapping[int, Command], at: Places
) -> Html:
    """The runs of every group and task, and those that gave nothing.

    Args:
      grouping: groups and tasks, whose blocks the numbers of the tables link to.
      runs: all of them.
      commands: by the id of the run.
      at: ids of the blocks.
    """
    blocks = []
    for group in grouping.groups:
        inner = []
        for pool in group.pools:
            title = join(
                [chip(at.style(group.letter)), f"{group.letter} {group.label} on {pool.task}"]
            )
            cards = [_card(run, commands[id(run)], pool) for run in pool.runs]
            content = join([tag("h3", title), *cards])
            inner.append(tag("div", content, class_="runs", id=at.of(group.letter, pool.task)))
        blocks.append(tag("div", join(inner), id=at.of_group(group.letter)))
    used = {id(run) for group in grouping.groups for pool in group.pools for run in pool.runs}
    rest = [_card(run, commands[id(run)], None) for run in runs if id(run) not in used]
    if rest:
        title = tag("h3", "Without a number in this report")
        blocks.append(tag("div", join([title, *rest]), class_="runs"))
    return join(blocks)


def _card(run: Run, command: Command, pool: Pool | None) -> Html:
    state = tag("span", run.state, class_=f"state {run.state.replace(' ', '-')}")
    facts = []
    if run.saved is not None:
        steps = run.saved.experiment.steps
        facts += [f"seeds {seeds_text(run, pool)}", f"step {run.step:,} of {steps:,}"]
    if run.written is not None:
        facts.append(f"last written {date_text(run.written)}")
    facts.append(f"commit {run.versions.get('git') or 'not known'}")
    versions = versions_text(run.versions)
    parts = [
        tag("p", join([state, tag("span", str(run.path), class_="where")])),
        tag("p", join((tag("span", fact) for fact in facts), " "), class_="what"),
        tag("p", f"versions: {versions}", class_="what") if versions else None,
        tag("p", tag("code", command.text)) if command.text else None,
        tag("p", f"command: {command.source}", class_="what"),
        *(tag("p", f"{link['parent']}@{link['step']} → fork") for link in run.lineage),
        tag("p", run.error, class_="error") if run.error else None,
        *(tag("p", note, class_="error") for note in run.notes),
    ]
    return tag("div", join(part for part in parts if part is not None), class_="run")


def versions_text(versions: Mapping[str, str | None]) -> str:
    """The packages that decide results, in words."""
    known = [name for name in versions if name != "git" and versions[name]]
    known.sort(key=lambda name: name not in _MAIN_VERSIONS)
    return ", ".join(f"{name} {versions[name]}" for name in known)


def date_text(seconds: float) -> str:
    """A moment in this machine's time: 2026-01-31 12:00 +0100."""
    try:
        return time.strftime("%Y-%m-%d %H:%M %z", time.localtime(seconds))
    except (OverflowError, ValueError, OSError):
        return NOTHING
