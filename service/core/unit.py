"""CARD's visual semantic unit (arXiv 2604.26427): an item's photo, its text and its neighbors in one picture.

    +------------------------------+
    |          the photo           |  upper half
    +------------------------------+
    | title, brand, category       |  at most 28 % of the height
    +------------------------------+
    | photo and title of each of   |  begins where the text ends
    | up to three neighbors        |
    +------------------------------+

The geometry is that of the authors' program. Three things are ours. Their loader drew every size with a
bitmap font of Pillow; we draw DejaVu Sans in the sizes that they declare: 20 for the title, 14 for brand and
category, 11 for the captions. A line's height is the font's ascent and descent. An item without a field
`title` shows its whole text in place of it. They also save the picture as JPEG; we do not, as the encoder
reads the pixels.

Pure: the same photos and texts give the same bytes with the same release of Pillow.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.core.bundle import UNIT_PX, RenderSpec
from service.core.render import FONTS, is_drawn, item_text

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
FONT = "DejaVuSans.ttf"
TITLE_PX, DETAILS_PX, CAPTION_PX = 20, 14, 11  # sizes of the font

CANVAS_PX = UNIT_PX  # side of the square
PADDING_PX = 12
WHITE, INK = (255, 255, 255), (20, 20, 20)
IMAGE_ZONE_PX = CANVAS_PX // 2
TEXT_ZONE_PX = int(0.28 * CANVAS_PX)
ABOVE_TEXT_PX, BELOW_TEXT_PX = 4, 10
LINE_GAP_PX, CAPTION_GAP_PX = 2, 1  # between two lines
TITLE_LINES, BRAND_LINES, CATEGORY_LINES, CAPTION_LINES = 3, 1, 2, 3
MAX_CATEGORIES = 4  # levels of the first path
MAX_NEIGHBORS = 3
CAPTION_SHARE, MIN_CAPTION_PX = 0.35, 24  # of the neighbors' zone
ELLIPSIS = "…"
MAX_LINE_CHARS = 500  # combining marks have no width, so a line of them must end somewhere


class UnitText(NamedTuple):
    """What a unit shows of an item's text. An empty part is left out."""

    title: str
    brand: str = ""
    categories: Sequence[str] = ()  # a path, the widest category first


class Neighbor(NamedTuple):
    """An item that is shown beside another one."""

    photo: Image.Image
    title: str


def unit_text(item: Mapping[str, Any], render: RenderSpec) -> UnitText:
    """The title, the brand and the first path of categories of an item, as far as `render` draws them.

    An item without a title shows its whole drawn text in the title's place.
    """
    shown = {field: value for field, value in item.items() if is_drawn(field, render)}
    path = shown.get("categories") or []
    if isinstance(path, str):
        path = [path]
    if isinstance(path, list) and path and isinstance(path[0], list):
        path = path[0]
    levels = [text for level in path if (text := _words("title", level))] if isinstance(path, list) else []
    title = _words("title", shown.get("title")) or item_text(item, render)
    return UnitText(title, _words("brand", shown.get("brand")), levels[:MAX_CATEGORIES])


def compose_unit(
    photo: Image.Image | None, text: UnitText | None, neighbors: Sequence[Neighbor] = ()
) -> NDArray[np.uint8]:
    """Draw the unit -> uint8 [512, 512, 3], rows first, RGB.

    Photos may have any size and are scaled up or down. Without a photo, everything below moves up into its
    place, and without a text the neighbors do. Neighbors after the third are left out.
    """
    canvas = Image.new("RGB", (CANVAS_PX, CANVAS_PX), WHITE)
    top = 0
    if photo is not None:
        room = (CANVAS_PX - 2 * PADDING_PX, IMAGE_ZONE_PX - 2 * PADDING_PX)
        _paste(canvas, photo, left=PADDING_PX, top=PADDING_PX, room=room)
        top = IMAGE_ZONE_PX
    end = top if text is None else _draw_text(canvas, text, top)
    if shown := neighbors[:MAX_NEIGHBORS]:
        _draw_neighbors(canvas, shown, end + BELOW_TEXT_PX)
    return np.asarray(canvas)


def _draw_text(canvas: Image.Image, text: UnitText, top: int) -> int:
    """Draw the lines that fit into the zone that begins at `top` -> where the next line would begin."""
    width = CANVAS_PX - 2 * PADDING_PX
    y = top + ABOVE_TEXT_PX
    parts = [(text.title, TITLE_PX, TITLE_LINES)]
    if text.brand:
        parts.append((f"Brand: {text.brand}", DETAILS_PX, BRAND_LINES))
    if text.categories:
        path = " / ".join(text.categories[:MAX_CATEGORIES])
        parts.append((f"Category: {path}", DETAILS_PX, CATEGORY_LINES))
    for words, size, max_lines in parts:
        lines = _wrap(words, _font(size), width, max_lines)
        y = _draw_lines(canvas, lines, size, PADDING_PX, y, top + TEXT_ZONE_PX, LINE_GAP_PX)
    return y


def _draw_neighbors(canvas: Image.Image, neighbors: Sequence[Neighbor], top: int) -> None:
    """Draw one column for each neighbor: its photo, and its title below."""
    bottom = CANVAS_PX - PADDING_PX
    width = (CANVAS_PX - PADDING_PX * (len(neighbors) + 1)) // len(neighbors)
    for_captions = max(MIN_CAPTION_PX, math.floor(CAPTION_SHARE * (bottom - top)))
    height = min(width, bottom - top - for_captions)
    for place, neighbor in enumerate(neighbors):
        left = PADDING_PX + place * (width + PADDING_PX)
        _paste(canvas, neighbor.photo, left=left, top=top, room=(width, height))
        lines = _wrap(neighbor.title, _font(CAPTION_PX), width, CAPTION_LINES)
        _draw_lines(canvas, lines, CAPTION_PX, left, top + height, bottom, CAPTION_GAP_PX)


def _paste(canvas: Image.Image, photo: Image.Image, *, left: int, top: int, room: tuple[int, int]) -> None:
    """Scale a photo to fit into `room` (width, height) with its aspect, centered, at the top."""
    scale = min(room[0] / photo.width, room[1] / photo.height)
    width, height = (max(1, round(scale * side)) for side in photo.size)
    scaled = photo.convert("RGB").resize((width, height), Image.Resampling.BILINEAR)
    canvas.paste(scaled, (left + (room[0] - width) // 2, top))


def _draw_lines(
    canvas: Image.Image, lines: Iterable[str], size: int, left: int, top: int, bottom: int, gap: int
) -> int:
    """Draw the lines that end above `bottom` -> where the next line would begin."""
    font = _font(size)
    height = sum(font.getmetrics())
    draw = ImageDraw.Draw(canvas)
    for line in lines:
        if top + height > bottom:
            break
        draw.text((left, top), line, fill=INK, font=font)
        top += height + gap
    return top


def _wrap(text: str, font: ImageFont.FreeTypeFont, width: int, max_lines: int) -> list[str]:
    """At most `max_lines` lines, broken between any two characters. The last one says if text is missing."""
    lines: list[str] = []
    rest = text.strip()
    while rest:
        count = _num_fitting(rest, font, width)
        if len(lines) == max_lines - 1 and count < len(rest):
            count = _num_fitting(rest, font, width - math.ceil(font.getlength(ELLIPSIS)))
            return [*lines, rest[:count].rstrip() + ELLIPSIS]
        lines.append(rest[:count].rstrip())
        rest = rest[count:].lstrip()
    return lines


def _num_fitting(text: str, font: ImageFont.FreeTypeFont, width: int) -> int:
    """How many of the first characters are together at most `width` pixels wide; at least one."""
    low, high = 1, min(len(text), MAX_LINE_CHARS)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if font.getlength(text[:middle]) <= width else (low, middle - 1)
    return low


def _words(field: str, value: Any) -> str:
    """A field's value as one line of clean text."""
    return item_text({field: value}, RenderSpec(fields=(field,)))


@lru_cache
def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(str(FONTS / FONT), size, layout_engine=ImageFont.Layout.BASIC)
