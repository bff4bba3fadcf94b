"""Animated GIFs: an episode as it was seen, and a real one beside what the model imagines."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from mbrl_jax.evaluate.plots import IMAGINED, INK, new_figure, plain, to_colour, to_unit

GIF_MILLISECONDS = 60  # of a frame: with four frames skipped, Atari's own pace
# Of a row where real and imagined are compared: both are to be looked at.
ROW_MILLISECONDS = 250
_STILL = 4  # rows' time that the last seen row stands, and the last of all
_SIDE = 256  # pixels that the longer side of an episode has at most
_PANEL = 192  # the same of one of two panels
_MARGIN, _LINE = 14, 20  # pixels: around panels, and of a line of text
_SAMPLED_FRAMES = 32  # of an episode, to choose its 256 colours from
_MOST_DIMENSIONS = 4  # of a vector that are drawn, one curve below the other
_SEEN = "#8b9098"
_FAINT = "#e5e7eb"


def write_animation(frames: Any, path: str | Path) -> Path:
    """Write an episode as an animated GIF that repeats: every pixel enlarged to a square.

    Args:
      frames: [F, H, W] or [F, H, W, C]: uint8, else in units of their own; C is 1 for gray, 3 for
        colours, and otherwise the channels of a grid get a colour each. Of a list of such arrays,
        several cameras say, they stand beside each other.
      path: of the GIF to write.

    Frames that equal the one before make it last longer.
    """
    if not isinstance(frames, list):
        images = _to_bytes(np.asarray(frames))
        factor = max(_SIDE // max(images.shape[1:3]), 1)
        return _write(images, path, GIF_MILLISECONDS, factor)
    views = [_enlarged(_to_bytes(np.asarray(x)), _PANEL) for x in frames]
    height = max(view.shape[1] for view in views)
    views = [_padded(view, height, 4 * (i > 0)) for i, view in enumerate(views)]
    return _write(np.concatenate(views, axis=2), path, GIF_MILLISECONDS)


def write_imagined(
    episodes: Sequence[Sequence[Mapping[str, Any]]],
    path: str | Path,
    title: str,
    milliseconds: int = ROW_MILLISECONDS,
) -> Path:
    """Write real episodes beside what the model imagined of them, one after the other.

    A bar below says how much the model has seen (gray) and imagined (orange). Vectors are curves.

    Args:
      episodes: of each, what `plots.plot_open_loop` calls examples, one for each image that is
        seen: they stand below each other.
      path: of the GIF to write.
      title: stands above.
      milliseconds: that a row lasts.
    """
    if not episodes:
        raise ValueError("there is nothing to draw")
    is_grid = np.ndim(episodes[0][0]["real"]) >= 3
    images, lasting = [], []
    for episode in episodes:
        first, length = int(episode[0]["first_imagined"]), len(episode[0]["real"])
        images.append((_panels if is_grid else _curves)(episode, title))
        still = {first - 1, length - 1}
        lasting += [milliseconds * (_STILL if t in still else 1) for t in range(length)]
    return _write(np.concatenate(images), path, lasting)


# ----------------------------------------------------------------------------------------- panels


def _panels(episode: Sequence[Mapping[str, Any]], title: str) -> np.ndarray:
    """Pictures [T, H, W, 3]: the real one of each row at the left, the model's at the right."""
    from PIL import Image, ImageDraw

    from mbrl_jax.runs.shown import shown as printable

    pairs = [_both_as_bytes(example) for example in episode]
    first, length = int(episode[0]["first_imagined"]), len(pairs[0][0])
    fonts, bold = _font(12), _font(12, bold=True)
    width = max(max(real.shape[2] for real, _ in pairs), 168)
    tops, top = [], _MARGIN + 2 * _LINE
    for real, _ in pairs:
        tops.append(top)
        top += real.shape[1] + _MARGIN + _LINE * (len(pairs) > 1)
    title = printable(title)
    left = [_MARGIN, 2 * _MARGIN + width]
    needed = int(bold.getlength(title)) + 2 * _MARGIN
    size = (max(2 * width + 3 * _MARGIN, needed), top + _LINE)
    pictures = []
    for t in range(length):
        image = Image.new("RGB", size, "white")
        draw = ImageDraw.Draw(image)
        draw.text((_MARGIN, _MARGIN - 6), title, fill=INK, font=bold)
        caption = "the model, imagining" if t >= first else "the model, which sees this"
        draw.text((left[0], _MARGIN + _LINE - 4), "real", fill=INK, font=fonts)
        colour = IMAGINED if t >= first else INK
        draw.text((left[1], _MARGIN + _LINE - 4), caption, fill=colour, font=fonts)
        for example, pair, y in zip(episode, pairs, tops, strict=True):
            for side, frames in enumerate(pair):
                x = left[side]
                low = (x + frames.shape[2] + 1, y + frames.shape[1] + 1)
                edge = IMAGINED if side and t >= first else _SEEN
                draw.rectangle((x - 2, y - 2, *low), outline=edge, width=2)
                image.paste(Image.fromarray(frames[t]), (x, y))
            if len(pairs) > 1:
                place = (_MARGIN, y + pair[0].shape[1] + 3)
                draw.text(place, printable(example.get("leaf", "")), fill=_SEEN, font=fonts)
        _draw_bar(draw, (_MARGIN, size[1] - _LINE), size[0] - 2 * _MARGIN, t, first, length, fonts)
        pictures.append(np.asarray(image))
    return np.stack(pictures)


def _draw_bar(draw, place, width: int, t: int, first: int, length: int, font) -> None:
    """How far row t is: the rows that were seen, then those that were imagined."""
    (x, y), cell = place, (width - 56) / length
    for row in range(length):
        colour = _FAINT if row > t else IMAGINED if row >= first else _SEEN
        box = (x + row * cell, y + 2, x + max((row + 1) * cell - 2, row * cell), y + 8)
        draw.rectangle(box, fill=colour)
    draw.text((x + width, y - 3), f"row {t}", fill=INK, font=font, anchor="ra")


def _both_as_bytes(example: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Real and predicted frames in one scale, enlarged: RGB [T, H, W, 3] of uint8."""
    units = to_unit(example["real"], example["predicted"])
    both = (np.stack([to_colour(frame) for frame in frames]) for frames in units)
    real, predicted = (_enlarged(np.rint(255 * x).astype(np.uint8), _PANEL) for x in both)
    return real, predicted


def _font(size: int, bold: bool = False) -> Any:
    """The font of the figures, which matplotlib brings."""
    from matplotlib import font_manager
    from PIL import ImageFont

    weight = "bold" if bold else "normal"
    properties = font_manager.FontProperties(family="DejaVu Sans", weight=weight)
    return ImageFont.truetype(font_manager.findfont(properties), size)


# ----------------------------------------------------------------------------------------- curves


def _curves(episode: Sequence[Mapping[str, Any]], title: str) -> np.ndarray:
    """Pictures [T, H, W, 3]: curves that grow, of the first numbers of a vector."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    (example,) = episode
    real, predicted = (np.asarray(example[key], float) for key in ("real", "predicted"))
    first, length = int(example["first_imagined"]), len(real)
    shown = min(real.shape[1], _MOST_DIMENSIONS)
    names = example.get("dimensions") or [f"dimension {i}" for i in range(shown)]
    figure = new_figure(5.6, 0.9 + 1.1 * shown)
    figure.suptitle(plain(title), x=0.01, ha="left", fontsize=10, fontweight="bold", color=INK)
    canvas, lines = FigureCanvasAgg(figure), []
    for d, cell in enumerate(figure.subplots(shown, 1, squeeze=False, sharex=True)[:, 0]):
        finite = np.concatenate([real[:, d], predicted[:, d]])
        finite = finite[np.isfinite(finite)]
        low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
        room = 0.08 * (high - low) or 1.0
        cell.set(xlim=(-0.5, length - 0.5), ylim=(low - room, high + room))
        cell.set_ylabel(plain(names[d]), fontsize=8, color=INK)
        cell.axvspan(-0.5, first - 0.5, color=_FAINT, zorder=0)
        cell.spines[["top", "right"]].set_visible(False)
        cell.tick_params(labelsize=7)
        (one,) = cell.plot([], [], color=INK, linewidth=1.6, label="real")
        dashed = {"linewidth": 1.6, "linestyle": "--", "label": "imagined (gray: seen)"}
        (other,) = cell.plot([], [], color=IMAGINED, **dashed)
        lines.append((one, other))
    cell.set_xlabel("row", fontsize=8)
    named = {"loc": "outside lower center", "ncols": 2, "fontsize": 8, "frameon": False}
    figure.legend(*cell.get_legend_handles_labels(), **named)
    pictures = []
    for t in range(length):
        for d, (one, other) in enumerate(lines):
            one.set_data(np.arange(t + 1), real[: t + 1, d])
            other.set_data(np.arange(t + 1), predicted[: t + 1, d])
        canvas.draw()
        figure.set_layout_engine("none")  # where all is placed once, a picture takes a third
        pictures.append(np.array(canvas.buffer_rgba())[..., :3])
    return np.stack(pictures)


# -------------------------------------------------------------------------------------- the files


def _enlarged(images: np.ndarray, side: int) -> np.ndarray:
    """[F, H, W, 3] with every pixel a square, so that the longer side is at most `side`."""
    factor = max(side // max(images.shape[1:3]), 1)
    return images.repeat(factor, 1).repeat(factor, 2)


def _padded(images: np.ndarray, height: int, before: int) -> np.ndarray:
    """[F, H, W, 3] with white below and at the left."""
    room = ((0, 0), (0, height - images.shape[1]), (before, 0), (0, 0))
    return np.pad(images, room, constant_values=255)


def _write(images: np.ndarray, path: str | Path, lasting: int | list[int], factor: int = 1) -> Path:
    """Write RGB [F, H, W, 3], enlarged by `factor`, with one palette."""
    from PIL import Image

    indices, palette = _quantise(images)

    def picture(frame):
        image = Image.fromarray(frame.repeat(factor, 0).repeat(factor, 1), "P")
        image.putpalette(palette)
        return image

    first, *rest = (picture(frame) for frame in indices)
    # With the palette named here, it is written once and not for every frame.
    options = {"duration": lasting, "loop": 0, "optimize": False, "palette": palette}
    first.save(path, "gif", save_all=True, append_images=rest, **options)
    return Path(path)


def _to_bytes(frames: np.ndarray) -> np.ndarray:
    """[F, H, W] or [F, H, W, C] as RGB [F, H, W, 3] of uint8."""
    frames = frames[..., None] if frames.ndim == 3 else frames
    if frames.dtype == np.uint8 and frames.shape[-1] in (1, 3):
        return np.broadcast_to(frames, (*frames.shape[:-1], 3))
    unit, _ = to_unit(frames, frames)
    return np.stack([np.rint(255 * to_colour(frame)).astype(np.uint8) for frame in unit])


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
