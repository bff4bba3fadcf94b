"""Figures and pictures as parts of a page: SVG in its own colours, PNG as data."""

import base64
import io
import itertools
import re
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from mbrl_jax.errors import ConfigError
from mbrl_jax.evaluate.comparison import COLOURS, FAINT, WIDTH
from mbrl_jax.evaluate.plots import GRID, INK, SVG_SETTINGS, save_both
from mbrl_jax.report.html import Html, join, tag

MAX_BYTES = 400_000  # of an embedded picture, as a file
_MAX_SIDE = 12_000  # pixels of a picture that is read at all
_WIDTHS = (1400, 1000, 700, 500)  # tried one after the other until a picture is small enough
_SVG, _LINK = "http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"
# What the page calls the colours, so that a dark page and a printed one have others.
_VARIABLES = {
    **{colour: f"var(--g{i})" for i, colour in enumerate(COLOURS)},
    INK: "var(--ink)",
    GRID: "var(--line)",
    FAINT: "var(--faint)",
    "#000000": "var(--ink)",
    "black": "var(--ink)",
}
_COLOUR = re.compile(r"#[0-9a-f]{6}\b|\bblack\b", re.IGNORECASE)
_FONTS = "font-family: 'DejaVu Sans', Verdana, Geneva, sans-serif"
_number = itertools.count()


def svg(figure: Any, label: str) -> Html:
    """A matplotlib figure as inline SVG whose colours are variables of the page.

    Text stays text. Ids get a number of their own, and nothing of it reaches beyond the figure.
    """
    tree = ElementTree.fromstring(_print_svg(figure))
    prefix = f"f{next(_number)}-"
    for parent in list(tree.iter()):
        for child in list(parent):
            if _local(child) in ("metadata", "style", "script"):
                parent.remove(child)
    used = set()
    for element in tree.iter():
        for value in element.attrib.values():
            used.update(re.findall(r"#([\w-]+)(?=\)|$)", value))
    background = next((e for e in tree.iter() if e.get("id") == "patch_1"), None)
    if background is not None:  # the page shines through
        background.clear()
    for element in tree.iter():
        _adapt(element, used, prefix)
    tree.attrib.pop("height", None)
    width = float(tree.attrib.pop("width").removesuffix("pt"))
    tree.set("style", f"max-width: {width * 4 / 3:.0f}px; stroke-linejoin: round")
    tree.set("role", "img")
    tree.set("aria-label", label)
    ElementTree.register_namespace("", _SVG)
    ElementTree.register_namespace("xlink", _LINK)
    return Html(ElementTree.tostring(tree, encoding="unicode"))


class Drawing(NamedTuple):
    """A figure that can be drawn at any width."""

    label: str  # of what it is, for those who do not see it, and for its file
    caption: str
    draw: Callable[[float], Any]  # (inches) -> a figure of matplotlib, new each time


WIDE = 12.2  # inches of a figure that has the page to itself


def drawn(drawings: Sequence[Drawing]) -> list[Html]:
    """Figures for a page; one alone takes its whole width where there is room."""
    if len(drawings) != 1:
        return [figure(svg(one.draw(WIDTH), one.label), one.caption) for one in drawings]
    (one,) = drawings
    # Letters keep their size: the same is there for narrow windows, and one of them is shown.
    made = {"wide": one.draw(WIDE), "narrow": one.draw(WIDTH)}
    if len({drawing.get_figwidth() for drawing in made.values()}) == 1:  # it has a width of its own
        return [figure(svg(made["narrow"], one.label), one.caption)]
    both = [tag("div", svg(made[name], one.label), class_=name) for name in made]
    return [tag("figure", join([tag("figcaption", one.caption), *both]), class_="alone")]


def write_drawings(drawings: Sequence[Drawing], folder: Path) -> list[Path]:
    """Write each as SVG and PNG, named after its label; returns the paths.

    Raises ConfigError where they cannot be written.
    """
    written: list[Path] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for i, one in enumerate(drawings):
            name = re.sub(r"[^\w.-]+", "_", one.label).strip("_.")[:80] or "figure"
            path = folder / f"{i:02d}_{name}.png"
            written += save_both(one.draw(WIDTH), path)
    except OSError as error:
        raise ConfigError(
            f"the figures cannot be written to {folder} ({error.strerror}); name another folder"
        ) from error
    return written


def _print_svg(figure) -> bytes:
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG

    file = io.BytesIO()
    figure.set_facecolor("none")
    for axes in figure.axes:
        axes.set_facecolor("none")
    with matplotlib.rc_context({**SVG_SETTINGS, "font.size": 9}), warnings.catch_warnings():
        # Letters that matplotlib's own font lacks are measured as boxes; the browser has others.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        FigureCanvasSVG(figure).print_svg(file, metadata={"Date": None})
    return file.getvalue()


def _local(element: ElementTree.Element) -> str:
    return element.tag.rpartition("}")[2]


def _adapt(element: ElementTree.Element, used: set[str], prefix: str) -> None:
    """Ids of its own, and the page's colours and fonts."""
    name = element.attrib.pop("id", None)
    if name in used:
        element.set("id", prefix + name)
    for key, value in list(element.attrib.items()):
        value = re.sub(r"#([\w-]+)(?=\))", rf"#{prefix}\1", value) if "url(#" in value else value
        if key.endswith("href") and value.startswith("#"):
            value = f"#{prefix}{value[1:]}"
        if key in ("style", "fill", "stroke") and "url(" not in value:
            value = _COLOUR.sub(lambda m: _VARIABLES.get(m[0].lower(), m[0]), value)
            value = re.sub(r"font-family: [^;]*", _FONTS, value)
            value = re.sub(r"font: ([\d.]+px) [^;]*", rf"font-size: \1; {_FONTS}", value)
        element.set(key, value)
    if _local(element) == "text" and "fill" not in element.get("style", ""):
        element.set("style", f"fill: var(--ink); {element.get('style', '')}")


# ---------------------------------------------------------------------------------------- pictures


def picture(path: Path, label: str, most: int = MAX_BYTES) -> Html:
    """A picture of a run as data of the page, smaller if its file has more than `most` bytes.

    Raises ValueError where it is no picture.
    """
    text = base64.b64encode(_small_png(path, most)).decode()
    return tag("img", src=f"data:image/png;base64,{text}", alt=label, loading="lazy")


def _small_png(path: Path, most: int) -> bytes:
    from PIL import Image

    try:
        with Image.open(path, formats=("PNG",)) as image:
            if max(image.size) > _MAX_SIDE:
                raise ValueError(f"{path.name} has {image.size[0]} by {image.size[1]} pixels")
            image.load()  # a damaged one is found here
            pixels = image.convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{path.name} is no picture that can be shown ({error})") from error
    data = b""
    for width in (pixels.width, *(w for w in _WIDTHS if w < pixels.width)):
        height = max(1, round(pixels.height * width / pixels.width))
        resized = pixels if width == pixels.width else pixels.resize((width, height))
        for picture in (resized, resized.quantize(128)):
            file = io.BytesIO()
            picture.save(file, "png", optimize=True)
            data = file.getvalue()
            if len(data) <= most:
                return data
    return data


def figure(drawing: Html, caption: str | Html) -> Html:
    """A drawing under the words that say what it shows."""
    return tag("figure", join([tag("figcaption", caption), drawing]))
