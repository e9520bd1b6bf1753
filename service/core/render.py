"""Draws an item's text as strips of pixels: lines of squeezed letters, black on white, all of one size.

A strip is one line, or a page of several lines for encoders that read pages.

Pure: the same text and recipe give the same bytes, in training and in serving. Pillow's basic layout neither
shapes nor reorders scripts, but it behaves the same in every Pillow build. Right-to-left text is therefore
drawn in logical order.
"""

import hashlib
import math
import re
import unicodedata
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from fontTools.ttLib import TTFont
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from service.core.bundle import RenderSpec, sha256_of
from service.errors import ContractMismatch

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
FONTS = Path(__file__).parent / "fonts"

WHITE = 255
# Letters are drawn this much larger and averaged down, once for each of PHASES offsets between two pixels.
SUPERSAMPLE = 4
# A share of the line's height. The rest keeps accents and descenders inside the line.
FONT_SIZE = 0.78
PHASES = 4
MARGIN_PX = 2
# Combining marks have no width, so a line of them must end somewhere.
MAX_LETTERS_PER_LINE = 1000
# No text is nested deeper than this.
MAX_DEPTH = 8
NEVER_DRAWN = frozenset({"item_id", "image"})


class Rendered(NamedTuple):
    """An item's text as pixels: black on white, uint8, one strip after another."""

    strips: NDArray[np.uint8]  # [strip, height, width], at least one strip
    truncated: bool  # whether the text did not fit into max_strips
    missing: str  # distinct characters that the font lacks; drawn as [code point in hex]


def item_text(item: Mapping[str, Any], spec: RenderSpec) -> str:
    """The line of text that stands for an item: its fields in the recipe's order. It is drawn and hashed.

    Empty and absent fields leave no trace. `item_id` is a name, not content, and `image` names a picture.
    """
    others = sorted(item.keys() - set(spec.fields) - NEVER_DRAWN)
    parts: list[str] = []
    for field in spec.fields:
        if field == "*":
            parts += _named(others, item)
        elif field not in NEVER_DRAWN and (text := value_text(field, item.get(field))):
            parts.append(text)
    return "; ".join(parts)


def is_drawn(field: str, spec: RenderSpec) -> bool:
    """Whether `item_text` draws this field of an item, if the item has it."""
    return field not in NEVER_DRAWN and (field in spec.fields or "*" in spec.fields)


def content_hash(text: str, picture_sha256: str | None = None) -> str:
    """32 hex characters. Items with equal content have the same hash and, for one tokenizer, equal codes.

    A tokenizer of fields may also know items by their ids (docs/decisions/0017).
    `picture_sha256` is that of the item's kept picture (KeptPicture.sha256). An item without a picture has
    the hash of its text alone.
    """
    of_text = hashlib.sha256(text.encode()).hexdigest()[:32]
    if picture_sha256 is None:
        return of_text
    return hashlib.sha256(f"{of_text} {picture_sha256}".encode()).hexdigest()[:32]


def render_text(text: str, spec: RenderSpec) -> Rendered:
    """Draw `text`, wrapped at words and cut at `max_strips`."""
    face = _face(spec)
    drawable, missing = face.spell(_clean(text))
    lines = _wrap(drawable, face)
    kept = [line for _, line in zip(range(spec.max_strips * spec.lines_per_strip), lines, strict=False)]
    truncated = next(lines, None) is not None
    num_strips = max(1, math.ceil(len(kept) / spec.lines_per_strip))
    kept += [""] * (num_strips * spec.lines_per_strip - len(kept))  # fill the last page
    drawn = np.stack([face.draw(line) for line in kept])  # [line, line height, width]
    return Rendered(drawn.reshape(num_strips, spec.height_px, spec.width_px), truncated, missing)


def font_sha256(spec: RenderSpec) -> str:
    """The font's hash for the recipe, so that a service with another font file refuses the bundle."""
    return sha256_of(_font_path(spec.font))


def _named(names: Iterable[str], values: Mapping[str, Any], depth: int = 0) -> list[str]:
    """`name value` for each value that is not empty."""
    found = ((name, value_text(name, values[name], depth)) for name in names)
    return [f"{_clean(name)} {text}".lstrip() for name, text in found if text]


def value_text(name: str, value: Any, depth: int = 0) -> str:
    """The value of the field `name` as text. `categories` is a path; other lists are enumerations."""
    if depth > MAX_DEPTH:
        return ""
    if isinstance(value, Mapping):
        return ", ".join(_named(sorted(value), value, depth + 1))
    if isinstance(value, list | tuple):
        nested = any(isinstance(part, list | tuple | Mapping) for part in value)
        joint = " > " if name == "categories" and not nested else ", "
        return joint.join(text for part in value if (text := value_text(name, part, depth + 1)))
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return _clean(str(value))


def _clean(text: str) -> str:
    """Composed text (NFC). White space and control characters become one space, invisible ones nothing."""
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    return " ".join("".join(map(_visible, unicodedata.normalize("NFC", text))).split())


def _visible(character: str) -> str:
    match unicodedata.category(character):
        case "Cc" | "Zs" | "Zl" | "Zp":
            return " "
        case "Cf":  # joiners, soft hyphens, direction marks
            return ""
        case "Cs":  # half of a surrogate pair, which no text encoding accepts
            return "\N{REPLACEMENT CHARACTER}"
    return character


class _Face:
    """One font at the size of one recipe. Letters are cached as small pictures; a line is their sum."""

    def __init__(self, path: Path, height_px: int, width_px: int, squeeze: float) -> None:
        size = height_px * FONT_SIZE * SUPERSAMPLE
        self._font = ImageFont.truetype(str(path), size, layout_engine=ImageFont.Layout.BASIC)
        with TTFont(path) as font:
            self._has = frozenset(font.getBestCmap())
        self._height, self._width = height_px, width_px
        self._scale = squeeze / SUPERSAMPLE  # pixels of a strip per pixel of an unsqueezed, enlarged letter
        ascent, descent = self._font.getmetrics()
        self._baseline = (height_px * SUPERSAMPLE + ascent - descent) // 2
        self._advances: dict[str, float] = {}
        self._letters: dict[tuple[str, int], _Letter] = {}
        self.room = width_px - 2.0 * MARGIN_PX

    def spell(self, text: str) -> tuple[str, str]:
        """`text` with characters that the font lacks as [code point], and these characters."""
        if text.isascii():
            return text, ""
        missing = sorted({character for character in text if ord(character) not in self._has})
        if not missing:
            return text, ""
        written = {ord(character): f"[{ord(character):X}]" for character in missing}
        return text.translate(written), "".join(missing)

    def advance(self, character: str) -> float:
        """Pixels from this letter's origin to the next letter's, without kerning."""
        found = self._advances.get(character)
        if found is None:
            found = self._advances[character] = self._font.getlength(character) * self._scale
        return found

    def length(self, word: str) -> float:
        return sum(map(self.advance, word))

    def draw(self, line: str) -> NDArray[np.uint8]:
        # Letters may extend beyond the line: draw with a border on both sides and cut it off.
        ink = np.zeros((self._height, self._height + 2 * self._width), dtype=np.uint16)
        x = float(MARGIN_PX + self._height)
        for character in line:
            column = int(x)
            letter = self._letter(character, int((x - column) * PHASES))
            start = column + letter.left
            ink[:, start : start + letter.ink.shape[1]] += letter.ink
            x += self.advance(character)
        visible = ink[:, self._height : self._height + self._width]
        return (WHITE - np.minimum(visible, WHITE)).astype(np.uint8)

    def _letter(self, character: str, phase: int) -> "_Letter":
        found = self._letters.get((character, phase))
        if found is None:
            found = self._letters[character, phase] = self._draw_letter(character, phase / PHASES)
        return found

    def _draw_letter(self, character: str, shift_px: float) -> "_Letter":
        left, _, right, _ = self._font.getbbox(character, anchor="ls")
        # In whole pixels of the strip; no letter reaches further left than a line is high.
        first = max(math.floor(left * self._scale), -self._height)
        columns = min(max(math.ceil(right * self._scale + 1) - first, 1), self._width // 2)
        canvas = Image.new("L", (round(columns / self._scale), self._height * SUPERSAMPLE), 0)
        origin = ((shift_px - first) / self._scale, self._baseline)
        ImageDraw.Draw(canvas).text(origin, character, fill=WHITE, font=self._font, anchor="ls")
        return _Letter(first, np.asarray(canvas.resize((columns, self._height), Image.Resampling.BOX)))


class _Letter(NamedTuple):
    left: int  # from the letter's origin to its first column, in pixels
    ink: NDArray[np.uint8]  # [height, column], 255 is black


def _wrap(text: str, face: _Face) -> Iterator[str]:
    """Lines that fit, broken between words. Only a word that is wider than a line is broken inside."""
    space = face.advance(" ")
    line: list[str] = []
    used = 0.0
    for word, width in _words(text, face):
        if line and used + space + width > face.room:
            yield " ".join(line)
            line, used = [], 0.0
        used += width + (space if line else 0.0)
        line.append(word)
    if line:
        yield " ".join(line)


def _words(text: str, face: _Face) -> Iterator[tuple[str, float]]:
    """Each word and its width in pixels. Lazy, so that the cost is that of the part that is drawn."""
    for match in re.finditer("[^ ]+", text):
        word = match.group()
        start, used = 0, 0.0
        for place, character in enumerate(word):
            width = face.advance(character)
            if place > start and (used + width > face.room or place - start == MAX_LETTERS_PER_LINE):
                yield word[start:place], used
                start, used = place, 0.0
            used += width
        yield word[start:], used


def _face(spec: RenderSpec) -> _Face:
    path = _font_path(spec.font)
    if spec.font_sha256 and spec.font_sha256 != (found := _cached_sha256(path)):
        raise ContractMismatch(
            f"{path}: sha256 is {found[:12]}, the bundle's recipe says {spec.font_sha256[:12]}. "
            "The pixels would differ from those in training. Install the release that exported the bundle."
        )
    return _cached_face(path, spec.line_px, spec.width_px, spec.squeeze)


def _font_path(name: str) -> Path:
    path = FONTS / name
    if path.parent != FONTS or not path.is_file():
        known = ", ".join(sorted(font.name for font in FONTS.glob("*.ttf")))
        raise ContractMismatch(f"No font {name!r} in {FONTS}. Name one of: {known}.")
    return path


_cached_sha256 = lru_cache(maxsize=16)(sha256_of)
_cached_face = lru_cache(maxsize=16)(_Face)
