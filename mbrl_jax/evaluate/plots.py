"""Pictures of a run: how it learned, and what its world model expects.

Figures are drawn with matplotlib's object-oriented interface: no display, no global state.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

MAX_COLUMNS = 12
_MAX_DIMENSIONS = 6  # of a vector observation that are drawn
GIF_MILLISECONDS = 60  # of a frame: with four frames skipped, Atari's own pace
_GIF_SIDE = 256  # pixels that the longer side of an animation has at most
_SAMPLED_FRAMES = 32  # of an episode, to choose its 256 colours from
INK = "#30343b"
GRID = "#d7dade"
_MEAN = "#c2410c"
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


# --------------------------------------------------------------------------------- learning curve


def plot_learning_curve(rows: Sequence[Mapping[str, Any]], path: str | Path, title: str) -> Path:
    """Draw the mean episode return against environment steps.

    Every seed is a thin line; the mean over seeds a thick one, within ± one standard error.

    Args:
      rows: as `mbrl_jax.runs.metrics.read_metrics` gives them.
      path: of the PNG to write.
      title: of the figure.
    """
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
        axes.plot(steps, mean, color=_MEAN, linewidth=2.4, label=f"{label}{final}")
        if len(curves) > 1:
            band = {"color": _MEAN, "alpha": 0.18, "linewidth": 0, "label": "± standard error"}
            axes.fill_between(steps, mean - error, mean + error, **band)
        axes.legend(frameon=False, loc="best")
    else:
        axes.text(0.5, 0.5, "no episode was finished", transform=axes.transAxes, ha="center")
    axes.set_title(plain(title), loc="left", fontweight="bold", color=INK)
    dress_curve(axes)
    return save(figure, path)


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
    shape = np.shape(examples[0]["real"])
    ratio = min(max(shape[1] / shape[2], 0.25), 4.0) ** 0.5  # frames of one area, in inches
    width, height = columns * 0.9 / ratio, 3 * 0.9 * ratio
    whole_width, block = max(width + 1.3, 5.0), height + 0.4
    whole_height = len(examples) * block + 0.7
    figure = Figure(figsize=(whole_width, whole_height), facecolor="white")
    for i, example in enumerate(examples):
        bottom = (len(examples) - 1 - i) * block + 0.4
        place = (1.2 / whole_width, bottom / whole_height)
        size = (width / whole_width, height / whole_height)
        name = f"example {i}\n" if len(examples) > 1 else ""
        _draw_example(figure.add_axes((*place, *size)), example, name, columns)
    note = "orange frames: predicted from the actions alone, without observations"
    figure.text(0.5, 0.1 / whole_height, note, ha="center", fontsize=8, color=_MEAN)
    return figure


def _draw_example(axes, example: Mapping[str, Any], name: str, columns: int) -> None:
    """Frames as squares of side 1 with a margin: column c, row r from the top."""
    from matplotlib.collections import PatchCollection
    from matplotlib.patches import Rectangle

    real, predicted = _to_unit(example["real"], example["predicted"])
    first, margin = int(example["first_imagined"]), 0.04
    error = np.abs(real - predicted).max(-1)
    side = {"va": "center", "fontsize": 9, "color": INK}
    for row, label in enumerate((f"{name}real", "predicted", "difference")):
        axes.text(-0.1, row + 0.5, label, ha="right", **side)
    seen: list[Rectangle] = []
    imagined: list[Rectangle] = []
    for column, t in enumerate(_columns(len(real), columns, first)):
        for row, frame in enumerate((_to_colour(real[t]), _to_colour(predicted[t]), error[t])):
            scale = {"cmap": "inferno", "vmin": 0.0, "vmax": 1.0} if row == 2 else {}
            left, top, inner = column + margin, row + margin, 1 - 2 * margin
            extent = (left, left + inner, top + inner, top)
            axes.imshow(frame, interpolation="nearest", aspect="auto", extent=extent, **scale)
            among = imagined if row == 1 and t >= first else seen
            among.append(Rectangle((left, top), inner, inner))
        colour = _MEAN if t >= first else INK
        axes.text(column + 0.5, -0.04, f"t = {t}", fontsize=8, ha="center", color=colour)
    for frames, edge, line in ((seen, "#c4c8ce", 0.8), (imagined, _MEAN, 1.6)):
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


def _to_unit(real: Any, predicted: Any) -> tuple[np.ndarray, np.ndarray]:
    """Both as float [T, H, W, C], brought to [0, 1] by the range of what is real."""
    bytes_ = np.asarray(real).dtype == np.uint8
    pair = [np.asarray(x, float) / (255.0 if bytes_ else 1.0) for x in (real, predicted)]
    pair = [x[..., None] if x.ndim == 3 else x for x in pair]
    low, high = min(float(pair[0].min()), 0.0), max(float(pair[0].max()), 1.0)
    one, other = (np.clip(np.nan_to_num((x - low) / (high - low)), 0.0, 1.0) for x in pair)
    return one, other


def _to_colour(frame: np.ndarray) -> np.ndarray:
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
            line = {"color": _MEAN, "linewidth": 1.6, "linestyle": "--", "label": "predicted"}
            cell.plot(time, predicted[:, d], **line)
            gap = {"color": _MEAN, "alpha": 0.18, "linewidth": 0, "label": "difference"}
            cell.fill_between(time, real[:, d], predicted[:, d], **gap)
            seen = max(example["first_imagined"] - 0.5, 0)
            cell.axvspan(0, seen, color="#e5e7eb", zorder=0, label="observed")
            cell.grid(True, color=GRID, linewidth=0.5)
            cell.spines[["top", "right"]].set_visible(False)
            if i == 0:
                cell.set_title(f"dimension {d}", fontsize=9, color=INK)
            if i == len(examples) - 1:
                cell.set_xlabel("row", fontsize=8)
        if len(examples) > 1:
            axes[i, 0].set_ylabel(f"example {i}", fontsize=9, color=INK)
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, frameon=False, fontsize=8)
    return figure


def _to_matrix(values: Any) -> np.ndarray:
    """[T] or [T, D] as float [T, D]."""
    values = np.asarray(values, float)
    return values.reshape(len(values), -1)


# -------------------------------------------------------------------------------------- animations


def write_animation(frames: Any, path: str | Path) -> Path:
    """Write an episode as an animated GIF that repeats: every pixel enlarged to a square.

    Args:
      frames: [F, H, W] or [F, H, W, C]: uint8, else in units of their own; C is 1 for gray, 3 for
        colours, and otherwise the channels of a grid get a colour each.
      path: of the GIF to write.

    Frames that equal the one before make it last longer.
    """
    from PIL import Image

    indices, palette = _quantise(_to_bytes(np.asarray(frames)))
    factor = max(_GIF_SIDE // max(indices.shape[1:]), 1)

    def picture(frame):
        image = Image.fromarray(frame.repeat(factor, 0).repeat(factor, 1), "P")
        image.putpalette(palette)
        return image

    first, *rest = (picture(frame) for frame in indices)
    # With the palette named here, it is written once and not for every frame.
    options = {"duration": GIF_MILLISECONDS, "loop": 0, "optimize": False, "palette": palette}
    first.save(path, "gif", save_all=True, append_images=rest, **options)
    return Path(path)


def _to_bytes(frames: np.ndarray) -> np.ndarray:
    """[F, H, W] or [F, H, W, C] as RGB [F, H, W, 3] of uint8."""
    frames = frames[..., None] if frames.ndim == 3 else frames
    if frames.dtype == np.uint8 and frames.shape[-1] in (1, 3):
        return np.broadcast_to(frames, (*frames.shape[:-1], 3))
    unit, _ = _to_unit(frames, frames)
    return np.stack([np.rint(255 * _to_colour(frame)).astype(np.uint8) for frame in unit])


def _quantise(images: np.ndarray) -> tuple[np.ndarray, bytes]:
    """RGB [F, H, W, 3] as (indices [F, H, W] of uint8, their palette), one for all frames.

    Exact for up to 256 colours.
    """
    from PIL import Image

    packed = images.astype(np.uint32) @ np.array([1 << 16, 1 << 8, 1], np.uint32)
    colours, indices = np.unique(packed, return_inverse=True)
    if len(colours) <= 256:
        palette = np.stack([colours >> 16, colours >> 8 & 255, colours & 255], -1).astype(np.uint8)
        return indices.reshape(packed.shape).astype(np.uint8), palette.tobytes()
    sample = images[np.unique(np.linspace(0, len(images) - 1, _SAMPLED_FRAMES).astype(int))]
    known = Image.fromarray(np.concatenate(sample)).quantize(256)
    quantised = [
        Image.fromarray(x).quantize(palette=known, dither=Image.Dither.NONE) for x in images
    ]
    return np.stack([np.asarray(x) for x in quantised]), bytes(known.getpalette() or [])
