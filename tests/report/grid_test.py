"""Heat maps of settings, baselines beside scores, figures as files, and one figure alone."""

import itertools
import re
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from mbrl_jax.errors import ConfigError
from mbrl_jax.evaluate import comparison
from mbrl_jax.evaluate.comparison import Baseline
from mbrl_jax.experiment.members import Members
from mbrl_jax.report import content, drawings, figures, groups, numbers, records
from mbrl_jax.report.report import make_report
from tests.report import runs

CORES, ENTROPIES = ("mamba2", "gru"), ("2e-2", "1e-2", "1e-1")


def written(folder, cells=None, **options):
    """Runs of a grid of cores and entropies, those of `cells` alone; returns of two seeds."""
    chosen = cells or list(itertools.product(CORES, ENTROPIES))
    found = []
    for i, (core, entropy) in enumerate(chosen):
        groups_ = 4 if core == "gru" else 8  # a field that goes with the core
        settings = (f"model.core={core}", f"behaviour.entropy={entropy}", f"model.groups={groups_}")
        path = folder / f"{core},{entropy}"
        found.append(runs.write(path, runs.catch(*settings), [i + 0.0, i + 1.0], **options))
    return records.read_runs(found)


def test_two_settings_are_a_grid_and_what_follows_from_them_is_no_third(tmp_path):
    grouping = groups.group_runs(written(tmp_path))
    assert len(groups.differences(grouping.groups)) == 3
    grid = groups.grid_of(grouping.groups)
    assert grid.paths == ("model.core", "behaviour.entropy")
    assert grid.values == (("mamba2", "gru"), ("0.01", "0.02", "0.1"))
    assert [grid.places[letter] for letter in "ABCDEF"] == [
        *((0, 1), (0, 0), (0, 2)),
        *((1, 1), (1, 0), (1, 2)),
    ]


@pytest.mark.parametrize(
    ("cells", "is_grid"),
    [
        ([("mamba2", "1e-2"), ("gru", "1e-2"), ("mamba2", "1e-1")], False),  # three of four
        (
            [(c, e) for c, e in itertools.product(CORES, ENTROPIES) if (c, e) != ("gru", "1e-1")],
            True,
        ),
        ([("mamba2", e) for e in ("1", "2", "3", "4")], False),  # one setting
        ([("mamba2", "1"), ("gru", "2"), ("gru", "3"), ("gru", "4")], False),  # half empty
    ],
)
def test_lines_and_corners_are_no_grid(tmp_path, cells, is_grid):
    grouping = groups.group_runs(written(tmp_path, cells))
    assert (groups.grid_of(grouping.groups) is not None) == is_grid


def test_cells_are_means_with_intervals_instead_of_all_pairs(tmp_path):
    found = written(tmp_path)
    report = make_report(found, "t", "c")
    assert "Probability of improvement" not in report.html and 'id="grid"' in report.html
    assert "Grid of settings" in report.markdown
    grouping = groups.group_runs(found)
    grid, rows = groups.grid_of(grouping.groups), numbers.score_rows(grouping)
    (drawing,) = drawings.grids(grid, rows)
    assert drawing.caption.startswith("Catch-bsuite: training return, mean over seeds")
    texts = [text.get_text() for text in drawing.draw(5.0).axes[0].texts]
    assert texts[:2] == ["0.50", "[-5.85, 6.85]"] and len(texts) == 12
    alphas = [patch.get_alpha() for patch in drawing.draw(5.0).axes[0].patches]
    assert len(alphas) == len(set(alphas)) == 6 and alphas == sorted(alphas)
    table = content.grid_table(grid, rows)
    assert [c if isinstance(c, str) else c.text for c in table.header][
        2
    ] == "behaviour.entropy=0.01"
    assert table.rows[1][1].text == "gru" and table.rows[1][2].text.startswith("4.50 [")
    # Without a grid the pairs are there.
    assert "Probability of improvement" in make_report(found[:2], "t", "c").html


def test_cells_without_runs_stay_empty_and_single_seeds_say_so(tmp_path):
    chosen = [("mamba2", "1e-2"), ("gru", "1e-2"), ("mamba2", "1e-1"), ("gru", "1e-1")]
    found = []
    for i, (core, entropy) in enumerate(chosen):
        settings = (f"model.core={core}", f"behaviour.entropy={entropy}")
        values = [None] if i == 3 else [1.0]
        found.append(runs.write(tmp_path / str(i), runs.catch(*settings), values, Members(i)))
    grouping = groups.group_runs(records.read_runs(found))
    rows = numbers.score_rows(grouping)
    (drawing,) = drawings.grids(groups.grid_of(grouping.groups), rows)
    texts = [text.get_text() for text in drawing.draw(5.0).axes[0].texts]
    assert texts == ["1.00", "one seed"] * 3


# -------------------------------------------------------------------------------------- baselines


def test_baselines_are_drawn_with_their_names_and_atari_has_its_own(tmp_path):
    pong = runs.write(tmp_path / "a", runs.atari("Pong-v5"), [-20.0, 3.0])
    catch = runs.write(tmp_path / "b", runs.catch(), [0.5, 1.0])
    grouping = groups.group_runs(records.read_runs([pong, catch]))
    given = [("Catch-bsuite", Baseline("PPO", 0.25)), (None, Baseline("best", 9.0))]
    held = numbers.baselines(grouping, given)
    assert [one.name for one in held["Pong-v5"]] == ["random", "human", "best"]
    assert held["Pong-v5"][0].value == pytest.approx(-20.7)
    assert [one.name for one in held["Catch-bsuite"]] == ["PPO", "best"]
    of = drawings.styles(grouping)
    rows = numbers.score_rows(grouping)
    for made in (
        drawings.learning_curves(grouping, of, held),
        drawings.score_charts(rows, of, held),
    ):
        texts = [text.get_text() for text in made[0].draw(5.0).axes[0].texts]
        assert texts == ["PPO 0.25", "best 9"]
    with pytest.raises(ConfigError, match="no run plays Chess: a baseline is of Catch-bsuite, "):
        numbers.baselines(grouping, [("Chess", Baseline("x", 1.0))])


# ------------------------------------------------------------------------------- files and widths


def drawing():
    line = comparison.Line("A", 0, np.arange(4.0), np.arange(4.0))
    return figures.Drawing(
        "learning curves of a/b",
        "a/b",
        lambda width: comparison.draw_curves([line], width=width),
    )


def test_figures_are_written_as_vectors_and_as_pictures(tmp_path):
    paths = figures.write_drawings([drawing(), drawing()], tmp_path / "figures")
    assert [path.name for path in paths] == [
        *("00_learning_curves_of_a_b.png", "00_learning_curves_of_a_b.svg"),
        *("01_learning_curves_of_a_b.png", "01_learning_curves_of_a_b.svg"),
    ]
    with Image.open(paths[0]) as image:
        assert image.format == "PNG" and image.convert("RGB").getpixel((0, 0)) == (255, 255, 255)
    tree = ElementTree.parse(paths[1])
    words = [e.text for e in tree.iter() if e.tag.endswith("text")]
    assert "episode return" in words  # text stays text
    assert paths[1].read_bytes() == paths[3].read_bytes()
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot be written to .*file"):
        figures.write_drawings([drawing()], tmp_path / "file")


def test_a_figure_alone_takes_the_width_of_the_page():
    (alone,) = figures.drawn([drawing()])
    widths = [int(width) for width in re.findall(r"max-width: (\d+)px", alone)]
    assert widths == [1171, 499] and 'class="alone"' in alone
    own = drawing()._replace(draw=lambda width: comparison.draw_lines([], "x", "y"))
    assert "alone" not in figures.drawn([own])[0]  # it has a width of its own, and is there once
    several = figures.drawn([drawing(), drawing()])
    assert len(several) == 2 and "alone" not in "".join(several)
