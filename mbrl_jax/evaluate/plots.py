"""Pictures of a run: how it learned, and what its world model expects.

Figures are drawn with matplotlib's object-oriented interface: no display, no global state.
"""

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAX_COLUMNS = 12
_MAX_DIMENSIONS = 6  # of a vector observation that are drawn
INK = "#30343b"
GRID = "#d7dade"
IMAGINED = "#c2410c"  # what a model predicts, and means
_SEEDS = "#2563a8"
# Channels of a grid, told apart (after Okabe and Ito, for colour-blind readers).
_CHANNELS = np.array(
    [
        (0.34, 0.71, 0.91),
        (0.90, 0.62, 0.00),
        (0.00, 0.62, 0.45),
        (0.84, 0.37, 0.00),
        (0.94, 0.89, 0.26),
        (0.80, 0.47, 0.65),
        (0.00, 0.45, 0.70),
        (0.95, 0.95, 0.95),
        (0.55, 0.34, 0.29),
        (0.60, 0.85, 0.50),
    ]
)


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches."""
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def plain(title: str) -> str:
    """A title as it is: matplotlib takes what stands between two $ for a formula."""
    from mbrl_jax.runs.shown import shown

    return shown(title).replace("$", r"\$")


def save(figure: Any, path: str | Path) -> Path:
    """Write a figure as a PNG; returns its path."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure).print_png(str(path))
    return Path(path)


# Text stays text, and the same figure gives the same file.
SVG_SETTINGS: Any = {"svg.fonttype": "none", "svg.hashsalt": "mbrl_jax"}


def save_both(figure: Any, path: str | Path) -> tuple[Path, Path]:
    """Write a figure as a PNG, and as SVG beside it; returns both paths."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    beside = Path(path).with_suffix(".svg")
    with matplotlib.rc_context(SVG_SETTINGS), warnings.catch_warnings():
        # Letters that matplotlib's own font lacks: those who look at it have others.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        FigureCanvasSVG(figure).print_svg(str(beside), metadata={"Date": None})
        return save(figure, path), beside


# --------------------------------------------------------------------------------- learning curve


def plot_learning_curve(
    rows: Sequence[Mapping[str, Any]],
    path: str | Path,
    title: str,
    *,
    baselines: Sequence[Any] = (),
    vector: bool = False,
) -> Path:
    """Draw the mean episode return against environment steps.

    Every seed is a thin line; the mean over seeds a thick one, within ± one standard error.

    Args:
      rows: as `mbrl_jax.runs.metrics.read_metrics` gives them.
      path: of the PNG to write.
      title: of the figure.
      baselines: `comparison.Baseline` that the returns are held against.
      vector: write SVG beside it.
    """
    from mbrl_jax.evaluate.comparison import draw_baselines
    from mbrl_jax.runs.metrics import last_fifth

    figure = new_figure(8.0, 4.8)
    axes = figure.add_subplot()
    curves = _curves(rows)
    for curve in curves:
        axes.plot(*curve, color=_SEEDS, linewidth=1.0, alpha=0.45)
    if curves:
        axes.plot([], [], color=_SEEDS, linewidth=1.0, alpha=0.7, label="each seed")
        finals = [value for value in last_fifth(rows) if value is not None]
        final = f" (last fifth: {np.mean(finals):.2f})" if finals else ""
        label = f"mean of {len(curves)} seeds" if len(curves) > 1 else "mean"
        steps, mean, error = _mean_curve(curves)
        axes.plot(steps, mean, color=IMAGINED, linewidth=2.4, label=f"{label}{final}")
        if len(curves) > 1:
            band = {"color": IMAGINED, "alpha": 0.18, "linewidth": 0, "label": "± standard error"}
            axes.fill_between(steps, mean - error, mean + error, **band)
        axes.legend(frameon=False, loc="best")
    else:
        axes.text(0.5, 0.5, "no episode was finished", transform=axes.transAxes, ha="center")
    axes.set_title(plain(title), loc="left", fontweight="bold", color=INK)
    dress_curve(axes)
    draw_baselines(axes, baselines)
    return save_both(figure, path)[0] if vector else save(figure, path)


def dress_curve(axes: Any) -> None:
    """Name the axes of a learning curve, and draw its grid."""
    axes.set_xlabel("environment steps of a seed")
    axes.set_ylabel("episode return")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    dress(axes)


def dress(axes: Any) -> None:
    """Draw a grid, and leave out the frame above and at the right."""
    axes.grid(True, color=GRID, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _curves(rows: Sequence[Mapping[str, Any]]) -> list[tuple[np.ndarray, np.ndarray]]:
    """(environment steps, returns) of every seed that finished an episode."""
    curves = []
    for seed in sorted({row["seed"] for row in rows}):
        points = [
            (row.get("env_steps", row["step"]), row["episode/return"])
            for row in rows
            if row["seed"] == seed and row.get("episode/return") is not None
        ]
        if points:
            steps, returns = np.array(points, float).T
            curves.append((steps, returns))
    return curves


def _mean_curve(curves: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(steps, mean, standard error) over seeds, as in `on_common_steps`."""
    grid, values = on_common_steps(curves)
    error = values.std(0, ddof=1) / np.sqrt(len(values)) if len(values) > 1 else np.zeros(len(grid))
    return grid, values.mean(0), error


def on_common_steps(curves: Sequence[tuple]) -> tuple[np.ndarray, np.ndarray]:
    """(steps [T], returns [S, T]) where all curves (steps, returns) have points on both sides."""
    first = max(steps[0] for steps, _ in curves)
    last = min(steps[-1] for steps, _ in curves)
    grid = np.unique(np.concatenate([steps for steps, _ in curves]))
    inside = grid[(grid >= first) & (grid <= last)]
    grid = inside if len(inside) else grid
    return grid, np.stack([np.interp(grid, steps, returns) for steps, returns in curves])


# ---------------------------------------------------------------------------------- open-loop rows


def plot_open_loop(examples: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> Path:
    """Draw what happened, what the model predicted without seeing it, and the difference.

    Args:
      examples: of each, "real" and "predicted" ([T, H, W], [T, H, W, C], or [T, D] for vectors)
        in the same units, and "first_imagined", the row from which on the model saw actions only.
        "name" stands beside it if there is one; "dimensions" are names of a vector's numbers.
      path: of the PNG to write.
      title: of the figure.
    """
    if not examples:
        raise ValueError("there is nothing to draw")
    is_grid = np.ndim(examples[0]["real"]) >= 3
    figure = (_draw_frames if is_grid else _draw_lines)(examples)
    figure.suptitle(plain(title), x=0.01, ha="left", fontweight="bold", color=INK)
    return save(figure, path)


def _draw_frames(examples: Sequence[Mapping[str, Any]]):
    """Three rows of frames for each example, all in one axes: a hundred of them take seconds."""
    from matplotlib.figure import Figure

    columns = min(MAX_COLUMNS, max(len(example["real"]) for example in examples))
    sides = [_frame_sides(np.shape(example["real"])) for example in examples]
    whole_width = max(columns * max(width for width, _ in sides) + 1.3, 5.0)
    blocks = [3 * height + 0.4 for _, height in sides]
    whole_height = sum(blocks) + 0.7
    figure = Figure(figsize=(whole_width, whole_height), facecolor="white")
    for i, (example, (width, height)) in enumerate(zip(examples, sides, strict=True)):
        bottom = sum(blocks[i + 1 :]) + 0.4
        place = (1.2 / whole_width, bottom / whole_height)
        size = (columns * width / whole_width, 3 * height / whole_height)
        name = plain(example.get("name", f"example {i}" if len(examples) > 1 else ""))
        _draw_example(figure.add_axes((*place, *size)), example, f"{name}\n" * bool(name), columns)
    note = "orange frames: predicted from the actions alone, without observations"
    figure.text(0.5, 0.1 / whole_height, note, ha="center", fontsize=8, color=IMAGINED)
    return figure


def _frame_sides(shape: Sequence[int]) -> tuple[float, float]:
    """(width, height) of a frame [_, H, W, …] in inches: all frames have one area."""
    ratio = min(max(shape[1] / shape[2], 0.25), 4.0) ** 0.5
    return 0.9 / ratio, 0.9 * ratio


def _draw_example(axes, example: Mapping[str, Any], name: str, columns: int) -> None:
    """Frames as squares of side 1 with a margin: column c, row r from the top."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    real, predicted = to_unit(example["real"], example["predicted"])
    first, margin = int(example["first_imagined"]), 0.04
    error = np.abs(real - predicted).max(-1)
    side = {"va": "center", "fontsize": 9, "color": INK}
    for row, label in enumerate((f"{name}real", "predicted", "difference")):
        axes.text(-0.1, row + 0.5, label, ha="right", **side)
    seen: list[Rectangle] = []
    imagined: list[Rectangle] = []
    for column, t in enumerate(_columns(len(real), columns, first)):
        for row, frame in enumerate((to_colour(real[t]), to_colour(predicted[t]), error[t])):
            scale = {"cmap": "inferno", "vmin": 0.0, "vmax": 1.0} if row == 2 else {}
            left, top, inner = column + margin, row + margin, 1 - 2 * margin
            extent = (left, left + inner, top + inner, top)
            axes.imshow(frame, interpolation="nearest", aspect="auto", extent=extent, **scale)
            among = imagined if row == 1 and t >= first else seen
            among.append(Rectangle((left, top), inner, inner))
        colour = IMAGINED if t >= first else INK
        axes.text(column + 0.5, -0.04, f"t = {t}", fontsize=8, ha="center", color=colour)
    for frames, edge, line in ((seen, "#c4c8ce", 0.8), (imagined, IMAGINED, 1.6)):
        border = PatchCollection(frames, facecolor="none", edgecolor=edge, linewidth=line)
        axes.add_collection(border, autolim=False)
        border.set_zorder(2)
    axes.set(xlim=(0, columns), ylim=(3, 0))
    axes.set_axis_off()


def _columns(length: int, columns: int, first_imagined: int) -> np.ndarray:
    """Rows to show: evenly spaced, with the last one that was seen and the first that was not."""
    if length <= columns:
        return np.arange(length)
    chosen = {t for t in (first_imagined - 1, first_imagined) if 0 <= t < length}
    for t in np.linspace(0, length - 1, columns).round().astype(int):
        chosen.add(int(t))
    spare = sorted(chosen - {0, first_imagined - 1, first_imagined, length - 1})
    while len(chosen) > columns and spare:
        chosen.remove(spare.pop(len(spare) // 2))
    return np.array(sorted(chosen))


def to_unit(real: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float [T, H, W, C], brought to [0, 1] by the range of what is real."""
    bytes_ = np.asarray(real).dtype == np.uint8
    pair = [np.asarray(x, float) / (255.0 if bytes_ else 1.0) for x in (real, predicted)]
    pair = [x[..., None] if x.ndim == 3 else x for x in pair]
    low, high = min(float(pair[0].min()), 0.0), max(float(pair[0].max()), 1.0)
    one, other = (np.clip(np.nan_to_num((x - low) / (high - low)), 0.0, 1.0) for x in pair)
    return one, other


def to_colour(frame: np.ndarray) -> np.ndarray:
    """[H, W, C] in [0, 1] as RGB: gray, colour, or a colour for each channel of a grid."""
    channels = frame.shape[-1]
    if channels == 1:
        return np.repeat(frame, 3, axis=-1)
    if channels == 3:
        return frame
    image = np.full((*frame.shape[:2], 3), 0.08)
    for channel in range(channels):  # later channels lie on top, as strongly as they are present
        weight = frame[..., channel, None]
        image = (1 - weight) * image + weight * _CHANNELS[channel % len(_CHANNELS)]
    return image


def _draw_lines(examples: Sequence[Mapping[str, Any]]):
    """For each example a row of panels, one for each of the first dimensions."""
    pairs = [[_to_matrix(example[key]) for key in ("real", "predicted")] for example in examples]
    size = min(_MAX_DIMENSIONS, pairs[0][0].shape[1])
    figure = new_figure(max(2.4 * size, 5.0), 0.9 + 1.9 * len(examples))
    axes = figure.subplots(len(examples), size, squeeze=False, sharex=True)
    for i, ((real, predicted), example) in enumerate(zip(pairs, examples, strict=True)):
        time = np.arange(len(real))
        for d, cell in enumerate(axes[i, :size]):
            cell.plot(time, real[:, d], color=INK, linewidth=1.6, label="real")
            line = {"color": IMAGINED, "linewidth": 1.6, "linestyle": "--", "label": "predicted"}
            cell.plot(time, predicted[:, d], **line)
            gap = {"color": IMAGINED, "alpha": 0.18, "linewidth": 0, "label": "difference"}
            cell.fill_between(time, real[:, d], predicted[:, d], **gap)
            seen = max(example["first_imagined"] - 0.5, 0)
            cell.axvspan(0, seen, color="#e5e7eb", zorder=0, label="observed")
            cell.grid(True, color=GRID, linewidth=0.5)
            cell.spines[["top", "right"]].set_visible(False)
            if i == 0:
                names = example.get("dimensions") or [f"dimension {i}" for i in range(size)]
                cell.set_title(plain(names[d]), fontsize=9, color=INK)
            if i == len(examples) - 1:
                cell.set_xlabel("row", fontsize=8)
        if len(examples) > 1:
            axes[i, 0].set_ylabel(plain(example.get("name", f"example {i}")), fontsize=9, color=INK)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _to_matrix(values: Any) -> np.ndarray:
    """[T] or [T, D] as float [T, D]."""
    values = np.asarray(values, float)
    return values.reshape(len(values), -1)
