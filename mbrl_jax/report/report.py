"""A report about runs: what is on its page and in its Markdown."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from mbrl_jax.errors import ConfigError
from mbrl_jax.evaluate.comparison import Baseline
from mbrl_jax.report import content, drawings, numbers, page
from mbrl_jax.report.commands import Base, Command, command_of
from mbrl_jax.report.figures import Drawing, drawn
from mbrl_jax.report.groups import Grid, Grouping, grid_of, group_runs
from mbrl_jax.report.page import Head, Section, figures, section
from mbrl_jax.report.quality import Quality, qualities
from mbrl_jax.report.records import Run
from mbrl_jax.report.tables import Table, plain_markdown, to_markdown
from mbrl_jax.runs import files
from mbrl_jax.runs.shown import shown
from mbrl_jax.train import runtime


class Report(NamedTuple):
    """The same, written twice."""

    html: str
    markdown: str
    drawings: tuple[Drawing, ...] = ()  # those of the page, to be written as files too


class _Material(NamedTuple):
    """What the parts of a report are made of."""

    runs: Sequence[Run]
    grouping: Grouping
    at: content.Places
    of: drawings.Styles
    rows: Sequence[numbers.Score]
    compared: numbers.Comparison
    games: Sequence[numbers.Game]
    qualities: Sequence[Quality]
    grid: Grid | None  # of the groups, where two settings tell them apart
    held: drawings.Baselines


class _Drawings(NamedTuple):
    """The figures, in their order."""

    scores: Sequence[Drawing]
    grids: Sequence[Drawing]
    overall: Sequence[Drawing]
    curves: Sequence[Drawing]
    errors: Sequence[Drawing]


class _Tables(NamedTuple):
    """The tables, in their order; None where there is nothing to say."""

    scores: Table
    aggregates: Table | None
    grid: Table | None
    pairs: Table | None
    normalised: Table | None
    rivals: Table | None
    ends: Table | None
    differences: Table | None


def make_report(
    runs: Sequence[Run],
    title: str,
    command: str,
    bases: Mapping[str, Base] | None = None,
    baselines: Sequence[tuple[str | None, Baseline]] = (),
) -> Report:
    """Put a report together.

    Args:
      runs: records of what is to be in it; see `records`.
      title: of the page.
      command: that makes the report, shown in it.
      bases: experiments by name, from which the runs' commands are reconstructed.
      baselines: that scores are held against, with their task; see `numbers.baselines`.
    """
    material = _material(runs, baselines)
    tables, made = _tables(material), _drawings(material)
    versions = runtime.versions()
    facts = (
        ("made", page.date_text(time.time())),
        ("by", f"mbrl_jax at commit {versions['git'] or 'not known'}"),
        ("versions", page.versions_text(versions)),
    )
    head = Head(title, content.states_text(runs), facts, command)
    warnings = [*_warnings(runs, material.grouping), *material.grouping.notes]
    commands = {id(run): command_of(run, bases or {}) for run in runs}
    html = page.page(head, warnings, _sections(material, tables, made, commands))
    markdown = _markdown(head, warnings, tables, material.compared.notes)
    return Report(html, markdown, tuple(one for some in made for one in some))


def _material(runs: Sequence[Run], baselines: Sequence[tuple[str | None, Baseline]]) -> _Material:
    grouping = group_runs(runs)
    rows = numbers.score_rows(grouping)
    return _Material(
        runs,
        grouping,
        content.places(grouping),
        drawings.styles(grouping),
        rows,
        numbers.compare(grouping, rows),
        numbers.games(rows),
        qualities(grouping),
        grid_of(grouping.groups),
        numbers.baselines(grouping, baselines),
    )


def _drawings(made: _Material) -> _Drawings:
    of, compared = made.of, made.compared
    return _Drawings(
        drawings.score_charts(made.rows, of, made.held),
        drawings.grids(made.grid, made.rows) if made.grid else [],
        drawings.aggregate_charts(compared.overall, of, compared.kind),
        drawings.learning_curves(made.grouping, of, made.held),
        drawings.quality_figures(made.qualities, of),
    )


def _tables(made: _Material) -> _Tables:
    at, compared = made.at, made.compared
    return _Tables(
        content.score_table(made.rows, at),
        content.aggregate_table(compared, at),
        content.grid_table(made.grid, made.rows),
        # Of a grid the heat map says more than all of its pairs.
        None if made.grid else content.pair_table(compared, at),
        content.normalised_table(made.games, compared.kind, at),
        content.rivals_table(made.games, compared.kind, at),
        content.ends_table(made.qualities, at),
        content.difference_table(made.grouping, at),
    )


def _sections(
    made: _Material, tables: _Tables, drawn_: _Drawings, commands: Mapping[int, Command]
) -> list[Section]:
    """The parts of the page that have something in them."""
    at, compared = made.at, made.compared
    key = page.key(made.grouping, at)
    charts, maps, overall, curves, errors = (figures(drawn(some)) for some in drawn_)
    shown, damaged = drawings.strips(made.grouping)
    found = [section("scores", "Scores", tables.scores, _CHARTS, key, charts)]
    if made.grid:
        found.append(section("grid", "Grid of settings", _GRID, maps))
    if tables.aggregates or tables.pairs or compared.notes:
        parts = (tables.aggregates, tables.pairs, overall, *compared.notes)
        found.append(section("tasks", "Over tasks and groups", *parts))
    if tables.rivals:
        parts = (tables.normalised, tables.rivals, content.sources_table())
        found.append(section("atari", "Atari", *parts))
    found.append(section("curves", "Learning curves", _CURVES, key, curves))
    if shown or damaged:
        parts = (_STRIPS, figures(shown, "strips"), *damaged)
        found.append(section("open-loop", "Predictions", *parts))
    if made.qualities:
        parts = (_QUALITY, key, errors, tables.ends)
        found.append(section("quality", "World-model quality", *parts))
    configs = page.configurations(made.grouping, at)
    found.append(section("configuration", "Configuration", tables.differences, configs))
    origin = page.provenance(made.grouping, made.runs, commands, at)
    return [*found, section("runs", "Where the numbers come from", _SEEDS, origin)]


_CHARTS = (
    "Filled: greedy episodes; open: training. Small points are seeds. Dashed lines are what scores "
    "are held against, where that is known."
)
_GRID = (
    "The groups differ in two settings. The darker a cell, the higher its mean; where two "
    "intervals overlap by much, the difference may be chance."
)
_CURVES = (
    "Mean return of the episodes that ended since the row before, over seeds; the band is the 95 % "
    "confidence interval of the mean at each point (Student). Seeds that have not made all of "
    "their steps are dotted lines of their own, unless no seed of the group has. Dashed lines are "
    "greedy episodes during training (eval_every), mean over the same seeds."
)
_STRIPS = (
    "What happened, and what the world model predicts from the actions alone after the first rows."
)
_SEEDS = "Seeds are written as --seed and lane: 0/3 is lane 3 of --seed=0."
_QUALITY = (
    "Predictions without observations, on rows that the agent played for this (launch.evaluate "
    "--quality). Lines are means over seeds, bands reach from the least to the greatest seed."
)


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
                f"{', '.join(names).replace('git', 'the code (git)')}."
            )
    return [sentence.replace("..", ".") for sentence in found]


_MAX_ROWS = 40  # of a table but that of scores, in Markdown
_STATE = {"failed": "failed", "unreadable": "cannot be read"}


def _markdown(head: Head, warnings: Sequence[str], tables: _Tables, notes: Sequence[str]) -> str:
    """The tables alone."""
    parts = [f"# {plain_markdown(head.title)}\n", f"{plain_markdown(head.summary)}.\n"]
    parts += [f"- {plain_markdown(warning)}" for warning in warnings]
    parts += [""] if warnings else []
    parts += [to_markdown(table) for table in tables if table is not None and _is_short(table)]
    if tables.differences and not _is_short(tables.differences):
        parts.append(
            f"{len(tables.differences.rows)} fields differ between groups: see the page.\n"
        )
    parts += [f"{plain_markdown(note)}\n" for note in notes]
    parts.append(f"Made by\n\n    {shown(head.command)}\n")
    return "\n".join(parts)


def _is_short(table: Table) -> bool:
    """Whether a table can be read in a terminal."""
    return table.name == "Scores" or len(table.rows) <= _MAX_ROWS


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
