"""A report about runs: what is on its page and in its Markdown."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mbrl_jax.train import files, runtime
from mbrl_jax.train.config import ConfigError
from mbrl_jax.view import content, drawings, numbers, page
from mbrl_jax.view.commands import Base, command_of
from mbrl_jax.view.groups import Grouping, group_runs
from mbrl_jax.view.page import Head, Section, block, figures
from mbrl_jax.view.quality import qualities
from mbrl_jax.view.records import Run
from mbrl_jax.view.tables import Table, plain_markdown, to_markdown


class Report(NamedTuple):
    """The same, written twice."""

    html: str
    markdown: str


def make_report(
    runs: Sequence[Run], title: str, command: str, bases: Mapping[str, Base] | None = None
) -> Report:
    """Put a report together.

    Args:
      runs: records of what is to be in it; see `records`.
      title: of the page.
      command: that makes the report, shown in it.
      bases: experiments by name, from which the runs' commands are reconstructed.
    """
    grouping = group_runs(runs)
    at = content.places(grouping)
    rows = numbers.score_rows(grouping)
    compared = numbers.compare(grouping, rows)
    tables = [content.score_table(rows, at)]
    several = [content.aggregate_table(compared, at), content.pair_table(compared, at)]
    games = numbers.games(rows)
    atari = [make(games, compared.kind, at) for make in (_normalised, _rivals)]
    ends = content.ends_table(qualities(grouping), at)
    differing = content.difference_table(grouping, at)
    versions = runtime.versions()
    summary = content.states_text(runs)
    facts = (
        ("made", page.date_text(time.time())),
        ("by", f"mbrl_jax at commit {versions['git'] or 'not known'}"),
        ("versions", page.versions_text(versions)),
    )
    warnings = [*_warnings(runs, grouping), *grouping.notes]
    of = drawings.styles(grouping)
    key = page.key(grouping, at)
    shown, damaged = drawings.strips(grouping)
    commands = {id(run): command_of(run, bases or {}) for run in runs}
    quality = drawings.quality_figures(qualities(grouping), of)
    chart_note = "Filled: greedy episodes; open: training. Small points are seeds."
    charts = drawings.score_charts(rows, of)
    overall = drawings.aggregate_charts(compared.overall, of, compared.kind)
    parts = [
        ("scores", "Scores", block(tables[0], chart_note, key, figures(charts))),
        ("tasks", "Over tasks and groups", block(*several, figures(overall), *compared.notes)),
        ("atari", "Atari", block(*atari, content.sources_table()) if any(atari) else ""),
        ("curves", "Learning curves", block(_CURVES, key, figures(_curves(grouping, of)))),
        ("open-loop", "Predictions", block(_STRIPS, figures(shown, "strips"), *damaged)),
        ("quality", "World-model quality", block(_QUALITY, key, figures(quality), ends)),
        ("configuration", "Configuration", block(differing, page.configurations(grouping, at))),
        ("runs", "Where the numbers come from", page.provenance(grouping, runs, commands, at)),
    ]
    empty = {
        "tasks": not (any(several) or compared.notes),
        "open-loop": not (shown or damaged),
        "quality": not (quality or ends),
    }
    sections = [Section(*part) for part in parts if part[2] and not empty.get(part[0])]
    html = page.page(Head(title, summary, facts, command), warnings, sections)
    written = [*tables, *several, *atari, ends, differing]
    return Report(html, _markdown(title, summary, command, warnings, written, compared.notes))


_CURVES = (
    "Mean return of the episodes that ended since the row before, over seeds; the band is the 95 % "
    "bootstrap interval of the mean at each point. Seeds that have not made all of their steps are "
    "dotted lines of their own, unless no seed of the group has."
)
_STRIPS = (
    "What happened, and what the world model predicts from the actions alone after the first rows."
)
_QUALITY = (
    "Predictions without observations on rows of the run itself. Lines are means over seeds, bands "
    "reach from the least to the greatest seed."
)


def _normalised(games, kind, at):
    return content.normalised_table(games, kind, at)


def _rivals(games, kind, at):
    return content.rivals_table(games, kind, at)


def _curves(grouping: Grouping, of: drawings.Styles):
    return drawings.learning_curves(grouping, of)


def _warnings(runs: Sequence[Run], grouping: Grouping) -> list[str]:
    """What a reader has to know first."""
    found = []
    for run in runs:
        if run.state in ("failed", "unreadable"):
            found.append(f"{run.path} {_STATE[run.state]}: {run.error or 'it does not say why'}.")
        found += [f"{run.path}: {note}." for note in run.notes]
    for group in grouping.groups:
        known = [run.versions for pool in group.pools for run in pool.runs if run.versions]
        if any(versions != known[0] for versions in known):
            names = sorted({n for v in known for n in v if v.get(n) != known[0].get(n)})
            found.append(
                f"The runs of group {group.letter} were made with different versions of "
                f"{', '.join(names) or 'packages'}."
            )
    return [sentence.replace("..", ".") for sentence in found]


_STATE = {"failed": "failed", "unreadable": "cannot be read"}


def _markdown(
    title: str,
    summary: str,
    command: str,
    warnings: Sequence[str],
    tables: Sequence[Table | None],
    notes: Sequence[str],
) -> str:
    """The tables alone."""
    parts = [f"# {plain_markdown(title)}\n", f"{plain_markdown(summary)}.\n"]
    parts += [f"- {plain_markdown(warning)}" for warning in warnings]
    parts += [""] if warnings else []
    parts += [to_markdown(table) for table in tables if table is not None]
    parts += [f"{plain_markdown(note)}\n" for note in notes]
    parts.append(f"Made by {plain_markdown(command)}\n")
    return "\n".join(parts)


def write_report(report: Report, out: Path) -> tuple[Path, Path]:
    """Write the page and, beside it, the Markdown; returns both paths.

    Raises ConfigError where they cannot be written.
    """
    beside = out.with_suffix(".md")
    if out.suffix.lower() not in (".html", ".htm"):
        raise ConfigError(f"--out={out} must end in .html")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        files.write_text(out, report.html)
        files.write_text(beside, report.markdown)
    except OSError as error:
        raise ConfigError(
            f"--out={out} cannot be written ({error.strerror}); name another file"
        ) from error
    return out, beside
