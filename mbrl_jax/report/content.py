"""The tables of a report, as values; `page` makes HTML of them, `tables` Markdown."""

from collections.abc import Sequence
from typing import NamedTuple

from mbrl_jax.evaluate import scores
from mbrl_jax.experiment.experiment import task_of
from mbrl_jax.report import numbers
from mbrl_jax.report.groups import Grid, Grouping, Pool, differences, seed_text
from mbrl_jax.report.numbers import GREEDY, Comparison, Estimate, Game, Score
from mbrl_jax.report.quality import Quality
from mbrl_jax.report.records import STATES, Run
from mbrl_jax.report.tables import NOTHING, Cell, Table, interval_text, number_text, text_cell

KINDS = {GREEDY: "greedy episodes", numbers.TRAINING: "training return over the last fifth"}


class Places(NamedTuple):
    """Ids of the rows of provenance."""

    tasks: tuple[str, ...]
    letters: tuple[str, ...]

    def of(self, letter: str, task: str) -> str:
        """Where the runs of a group on a task stand."""
        return f"runs-{letter}-{self.tasks.index(task)}"

    def of_group(self, letter: str) -> str:
        """Where all runs of a group begin."""
        return f"runs-{letter}"

    def style(self, letter: str) -> int:
        """Number of a group."""
        return self.letters.index(letter)


def places(grouping: Grouping) -> Places:
    """Ids for all groups and tasks."""
    return Places(tuple(grouping.tasks), tuple(group.letter for group in grouping.groups))


def states_text(runs: Sequence[Run]) -> str:
    """How many runs are in each state: "3 runs: 2 finished, 1 running"."""
    counts = [(sum(run.state == state for run in runs), state) for state in STATES]
    words = ", ".join(f"{count} {state}" for count, state in counts if count)
    return f"{len(runs)} {'run' if len(runs) == 1 else 'runs'}: {words}"


def tasks_text(runs: Sequence[Run]) -> str:
    """The tasks that runs play, for a title: their names, or how many they are."""
    tasks = sorted({task_of(lane.experiment) for run in runs for lane in run.lanes})
    return ", ".join(tasks) if len(tasks) <= 3 else f"{len(tasks)} tasks"


# ---------------------------------------------------------------------------------------- scores


def score_table(rows: Sequence[Score], at: Places) -> Table:
    """A row for each task and group."""
    header: tuple[str, ...] = (
        *("task", "group", "seeds", "training, last fifth", "IQM", "range"),
        *("greedy", "IQM", "range", "remarks"),
    )
    notes = [
        "Mean over seeds with its 95 % confidence interval in brackets (Student), interquartile "
        "mean (IQM), least and greatest seed. Training: episodes that ended in the last fifth of "
        "the steps, each counting once. Greedy: episodes after the last step, without exploration.",
    ]
    singles = [
        row for row in rows for e in (row.training or row.greedy,) if e is not None and e.is_single
    ]
    if singles:
        notes.append("One seed: there is no interval, and nothing can be said about others.")
    cells = tuple(_score_cells(row, at) for row in rows)
    if not any(row[-1].text for row in cells):  # no remark
        header, cells = header[:-1], tuple(row[:-1] for row in cells)
    return Table("Scores", header, cells, tuple(notes))


def _score_cells(row: Score, at: Places) -> tuple[Cell, ...]:
    letter, link = row.group.letter, at.of(row.group.letter, row.pool.task)
    count, whole = len(row.counted), len(row.pool.sources)
    seeds = str(count) if count == whole else f"{count} of {whole}"
    return (
        text_cell(row.pool.task),
        text_cell(f"{letter} {row.group.label}", f"config-{letter}", at.style(letter)),
        Cell(seeds, link),
        *_estimate_cells(row.training, link),
        *_estimate_cells(row.greedy, link),
        text_cell("; ".join(_remarks(row))),
    )


def _estimate_cells(estimate: Estimate | None, link: str) -> tuple[Cell, ...]:
    if estimate is None:
        return (Cell(NOTHING),) * 3
    least, most = min(estimate.values), max(estimate.values)
    bounds = NOTHING if estimate.is_single else f"{number_text(least)} … {number_text(most)}"
    iqm = NOTHING if estimate.is_single else number_text(estimate.iqm)
    mean = interval_text(*map(float, estimate.mean))
    return Cell(mean, link), Cell(iqm, link), Cell(bounds, link)


def _remarks(row: Score) -> list[str]:
    """What has to be known to read a row."""
    found, left = [], len(row.pool.sources) - len(row.counted)
    if row.is_partial:
        steps = [source.lane.step for source in row.counted]
        found.append(f"so far: step {max(steps)} of {row.group.experiment.steps}")
    elif left:
        found.append(f"{left} seed{'s' * (left > 1)} not at the last step, left out")
    if len(row.counted) == 1:
        found.append("one seed: no interval")
    for source in row.frozen:
        found.append(f"seed {seed_text(source.lane)} {source.lane.frozen}")
    if row.silent:
        found.append(f"{row.silent} without an episode in the last fifth")
    without = sum(source.lane.greedy is None for source in row.counted)
    if without and not row.is_partial:
        found.append(f"{'' if without == len(row.counted) else f'{without} '}not evaluated".strip())
    return found


# ------------------------------------------------------------------------------------ several tasks


def aggregate_table(comparison: Comparison, at: Places) -> Table | None:
    """Aggregates over tasks of each group that has several with references."""
    if not comparison.overall:
        return None
    names = [aggregate.name for aggregate in comparison.overall[0].aggregates]
    rows = []
    for one in comparison.overall:
        letter, link = one.group.letter, at.of_group(one.group.letter)
        cells = [text_cell(f"{letter} {one.group.label}", f"config-{letter}", at.style(letter))]
        cells += [Cell(str(len(one.tasks)), link), Cell(str(one.seeds), link)]
        cells += [
            Cell(interval_text(*map(float, aggregate.interval)), link)
            for aggregate in one.aggregates
        ]
        rows.append(tuple(cells))
    note = (
        f"Human-normalised {KINDS[comparison.kind]}: 0 is random play, 1 a human tester. IQM: mean "
        "of the middle half of all runs. Optimality gap: by how much runs fall short of 1. "
        "Intervals: 95 %, from the spread of runs within each task; that of the median is a "
        "bootstrap, widened for few runs."
    )
    return Table("Aggregates over tasks", ("group", "tasks", "seeds", *names), tuple(rows), (note,))


def grid_table(grid: Grid | None, rows: Sequence[Score]) -> Table | None:
    """Means over a grid of settings, a line for each task and each value of the first setting."""
    if grid is None:
        return None
    found = []
    for task in sorted({row.pool.task for row in rows}):
        own = {grid.places[row.group.letter]: row for row in rows if row.pool.task == task}
        kind = numbers.kind_of(list(own.values()))
        for i, name in enumerate(grid.values[0]):
            cells = [text_cell(task), text_cell(name)]
            for j in range(len(grid.values[1])):
                one = numbers.used(own[i, j], kind) if (i, j) in own else None
                text = NOTHING if one is None else interval_text(*map(float, one.mean))
                cells.append(Cell(text))
            found.append(tuple(cells))
    columns = [f"{grid.paths[1]}={value}" for value in grid.values[1]]
    note = "By greedy episodes where all runs have them, else by training returns."
    return Table("Grid of settings", ("task", grid.paths[0], *columns), tuple(found), (note,))


def pair_table(comparison: Comparison, at: Places) -> Table | None:
    """How likely each group is above each other one."""
    if not comparison.pairs:
        return None
    rows = []
    for pair in comparison.pairs:
        ours, theirs = pair.ours.letter, pair.theirs.letter
        links = [at.of_group(ours), at.of_group(theirs)]
        if len(pair.tasks) == 1:
            links = [at.of(letter, pair.tasks[0]) for letter in (ours, theirs)]
        text = interval_text(*map(float, pair.probability))
        rows.append(
            (
                text_cell(f"{ours} {pair.ours.label}", f"config-{ours}", at.style(ours)),
                text_cell(f"{theirs} {pair.theirs.label}", f"config-{theirs}", at.style(theirs)),
                Cell(text, links[0], also=((theirs, links[1]),)),
                text_cell(pair.kind),
                text_cell(", ".join(pair.tasks)),
            )
        )
    note = (
        "Probability that a run of the first group is above one of the second on the same task, "
        "in the mean over tasks; a tie counts as one half. By greedy episodes where all runs have "
        "them, else by training returns. One half: no difference is seen."
    )
    header = ("group", "over group", "probability of improvement", "by", "tasks")
    return Table("Probability of improvement", header, tuple(rows), (note,))


# ------------------------------------------------------------------------------------------- Atari


def normalised_table(games: Sequence[Game], kind: str, at: Places) -> Table | None:
    """Our scores in games with references."""
    rows = []
    for game in games:
        for row in game.rows:
            if (estimate := numbers.used(row, kind)) is None:
                continue
            letter, link = row.group.letter, at.of(row.group.letter, row.pool.task)
            normalised = [scores.human_normalised(game.game, float(x)) for x in estimate.mean]
            partial = "so far" if row.is_partial else ""
            rows.append(
                (
                    text_cell(game.game),
                    text_cell(f"{letter} {row.group.label}", f"config-{letter}", at.style(letter)),
                    Cell(str(len(estimate.values)), link),
                    Cell(interval_text(*map(float, estimate.mean)), link),
                    Cell(interval_text(*normalised), link),
                    Cell(f"{numbers.frames(row.group):,}", link),
                    text_cell(partial),
                )
            )
    header = ("game", "group", "seeds", "score", "human-normalised", "frames", "remarks")
    note = (
        f"By {KINDS[kind]}. Human-normalised: (score − random) / (human − random), references to "
        "one decimal as printed in arXiv 1511.06581."
    )
    return Table("Human-normalised scores", header, tuple(rows), (note,)) if rows else None


def rivals_table(games: Sequence[Game], kind: str, at: Places) -> Table | None:
    """Published systems beside ours, over the games that were played here."""
    ours = {
        (game.game, row.group.letter): (row, estimate)
        for game in games
        for row in game.rows
        if (estimate := numbers.used(row, kind)) is not None
    }
    if not ours:
        return None
    names = [game.game for game in games]
    systems = list(scores.systems().values())
    letters = sorted({letter for _, letter in ours}, key=at.style)
    rows = []
    for name in names:
        reference = scores.references()[name]
        cells = [text_cell(name), Cell(number_text(reference.random), "references")]
        cells += [Cell(number_text(reference.human), "references")]
        cells += [_rival_cell(system, i, name) for i, system in enumerate(systems)]
        for letter in letters:
            found = ours.get((name, letter))
            cell = Cell(NOTHING)
            if found is not None:
                mark = "*" if found[0].is_partial else ""
                text = number_text(float(found[1].mean.estimate)) + mark
                cell = Cell(text, at.of(letter, found[0].pool.task))
            cells.append(cell)
        rows.append(tuple(cells))
    rows += _summary_rows(names, systems, letters, ours, at)
    header = ("game", "random", "human", *(s.name for s in systems), *letters)
    return Table("Beside published systems", header, tuple(rows), _rival_notes(games, kind))


def _rival_cell(system: scores.System, index: int, game: str) -> Cell:
    doubt = "?" if game in system.unconfirmed else ""
    return Cell(number_text(system.scores[game]) + doubt, f"system-{index}")


def _summary_rows(names, systems, letters, ours, at: Places) -> list[tuple[Cell, ...]]:
    """Mean and median of normalised scores over the games, of ours over those that it played."""
    rows = []
    for word in ("mean", "median"):
        cells = [text_cell(f"{word}, human-normalised"), Cell("0"), Cell("1")]
        for i, system in enumerate(systems):
            summary = scores.summarise({name: system.scores[name] for name in names})
            doubt = "?" if set(names) & set(system.unconfirmed) else ""
            cells.append(Cell(number_text(getattr(summary, word)) + doubt, f"system-{i}"))
        for letter in letters:
            own = {name: found for (name, of), found in ours.items() if of == letter}
            means = {name: float(estimate.mean.estimate) for name, (_, estimate) in own.items()}
            text = number_text(getattr(scores.summarise(means), word))
            partial = "*" if any(row.is_partial for row, _ in own.values()) else ""
            some = f" ({len(own)} of {len(names)})" if len(own) < len(names) else ""
            cells.append(Cell(text + partial + some, at.of_group(letter)))
        rows.append(tuple(cells))
    return rows


def _rival_notes(games: Sequence[Game], kind: str) -> tuple[str, ...]:
    notes = [
        f"Ours by {KINDS[kind]}, mean over seeds. Mean and median are over the games of this "
        "table; what systems print is over all 26.",
        "?: not confirmed by a published data file (read in a third party's table, or "
        "recollected): no result to quote. Where each number comes from stands below.",
    ]
    rows = [row for game in games for row in game.rows]
    if any(row.is_partial and numbers.used(row, kind) for row in rows):
        notes.append("*: the run is under way; its score is that of the steps so far.")
    others = {numbers.frames(row.group) for row in rows} - {400_000}
    if others:
        counts = ", ".join(f"{count:,}" for count in sorted(others))
        notes.append(f"Runs here had {counts} frames, and the published systems 400,000.")
    return tuple(notes)


_TRUST = {
    "C": "read in a published repository or data file",
    "T": "computed here from such a file",
    "S": "read in a third party's table: unconfirmed",
    "R": "recollection: unconfirmed",
}


def sources_table() -> Table:
    """Where the published numbers come from."""
    words = ("arXiv 1511.06581", NOTHING, NOTHING, "google-deepmind/dqn_zoo 359945d atari_data.py")
    rows = [tuple(map(text_cell, ("random, human", *words, f"C: {_TRUST['C']}")))]
    for system in scores.systems().values():
        sticky = {True: "yes", False: "no", None: "not known"}[system.sticky_actions]
        marks = sorted({system.trust, *system.marks.values()}, key=scores.MARKS.index)
        rows.append(
            (
                text_cell(system.name),
                text_cell(f"arXiv {system.arxiv}"),
                text_cell(sticky),
                text_cell(system.action_set or "not known"),
                text_cell(system.source),
                text_cell("; ".join(f"{mark}: {_TRUST[mark]}" for mark in marks)),
            )
        )
    header = ("system", "paper", "sticky actions", "actions", "source", "trust")
    ids = ("references", *(f"system-{i}" for i in range(len(rows) - 1)))
    return Table("Sources of published scores", header, tuple(rows), ids=ids)


# --------------------------------------------------------------------------- quality, configuration


def ends_table(found: Sequence[Quality], at: Places) -> Table | None:
    """How well the ends of episodes are predicted, and rows are reconstructed."""
    rows = []
    for one in found:
        letter, link = one.group.letter, at.of(one.group.letter, one.pool.task)
        ends = [one.ends[name] for name in ("accuracy", "precision", "recall", "brier")]
        counts = [one.ends[name] for name in ("rows", "found")]
        rows.append(
            (
                text_cell(one.pool.task),
                text_cell(f"{letter} {one.group.label}", f"config-{letter}", at.style(letter)),
                Cell(str(one.seeds), link),
                *(Cell(_listed(whole), link) for whole in (one.steps, one.contexts, one.shares)),
                *(Cell(NOTHING if c is None else f"{c:,.0f}", link) for c in counts),
                *(Cell(number_text(value), link) for value in (*ends, one.reconstruction)),
            )
        )
    header: tuple[str, ...]
    header = ("task", "group", "seeds", "step", "rows seen", "random", "rows", "ends")
    note = (
        "Means over seeds; rows and ends are summed. Rows seen: before each prediction. Random: "
        "share of the actions in these rows. –: not defined, or not in quality.json."
    )
    name = "Ends of episodes and reconstruction"
    header = (*header, "accuracy", "precision", "recall", "Brier score", "reconstruction")
    return Table(name, header, tuple(rows), (note,)) if rows else None


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:,}" for value in values) or NOTHING


def difference_table(grouping: Grouping, at: Places) -> Table | None:
    """The fields that differ between groups."""
    found = differences(grouping.groups)
    if not found:
        return None
    rows = tuple(
        (text_cell(one.path), *(text_cell(value) for value in one.values)) for one in found
    )
    header = ("field", *(group.letter for group in grouping.groups))
    return Table("What differs", header, rows, ("–: the configuration has no such field.",))


def seeds_text(run: Run, pool: Pool | None) -> str:
    """The seeds of a run, of a pool if one is named: "0/0 … 0/3"."""
    lanes = run.lanes if pool is None else [s.lane for s in pool.sources if s.run is run]
    seeds = sorted({lane.seed for lane in lanes})
    texts = ["{}/{}".format(*seed) for seed in seeds]
    if len(seeds) > 2 and seeds[-1] == (seeds[0][0], seeds[0][1] + len(seeds) - 1):
        return f"{texts[0]} … {texts[-1]}"
    return ", ".join(texts) or NOTHING
