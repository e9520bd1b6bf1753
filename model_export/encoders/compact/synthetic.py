"""Endless synthetic strips with their texts, from a seed. The compact reader is trained on them.

service/core/render.py draws every strip, most of them in the font that is served. The place of each letter is
known, so a batch also has the letter of each frame. A network learns faster from these than from CTC alone.
"""

from pathlib import Path
from random import Random
from typing import NamedTuple

import matplotlib
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from model_export.encoders.compact.reader import (
    ALPHABET,
    INPUT_HEIGHT_PX,
    LATIN,
    OTHER,
    PX_PER_FRAME,
    SYMBOLS,
)
from model_export.encoders.compact.synthetic_text import ProductTexts
from model_export.encoders.ctc import BLANK
from service.core.bundle import RenderSpec
from service.core.render import FONTS, MARGIN_PX, WHITE, _Face, _wrap

SERVED_FONT = FONTS / RenderSpec().font
OTHER_FONTS = (
    "DejaVuSans-Bold", "DejaVuSans-BoldOblique", "DejaVuSans-Oblique",
    "DejaVuSansMono", "DejaVuSansMono-Bold", "DejaVuSansMono-Oblique",
    "DejaVuSerif", "DejaVuSerif-Bold", "DejaVuSerif-Italic", "DejaVuSerif-BoldItalic",
    "STIXGeneral", "STIXGeneralBol", "STIXGeneralItalic", "STIXGeneralBolIta",
)  # fmt: skip
SERVED_SHARE = 0.65
Size = tuple[int, float]  # height in pixels and squeeze
SIZES: tuple[Size, ...] = ((16, 0.6), (12, 0.6), (8, 0.6), (24, 1.0))
SIZE_SHARES = (0.38, 0.16, 0.07, 0.07)  # the remaining share goes to all other sizes
HEIGHTS_PX = (8, 10, 12, 14, 16, 18, 20, 24)
SQUEEZES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
STRIPS_PER_FACE = 8  # drawn in a row by one face, so that the face stays in the processor's cache
CLEAN_SHARE = 0.55

CLASS_OF = {letter: place for place, letter in enumerate(ALPHABET)}
OTHER_CLASS = CLASS_OF[OTHER]


class SyntheticBatch(NamedTuple):
    """Strips of one width, with their texts in three forms."""

    strips: Tensor  # [strip, INPUT_HEIGHT_PX, width] uint8
    texts: list[str]
    targets: Tensor  # [strip, letter] classes; blank after the end of the text
    num_letters: Tensor  # [strip]
    frame_letters: Tensor  # [strip, frame] the class of the letter with its middle in the frame, or blank


class SyntheticStrips:
    """Draws one batch after another. Equal seeds give equal batches."""

    def __init__(self, seed: int) -> None:
        self._random = Random(seed)
        self._torch = torch.Generator().manual_seed(seed)
        self._texts = ProductTexts(self._random, LATIN + SYMBOLS)
        self._faces: dict[tuple[Path, int, int, float], _Face] = {}
        fonts = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
        self._other_fonts = [fonts / f"{name}.ttf" for name in OTHER_FONTS]

    def batch(self, num_strips: int, width_px: int, *, size: Size | None = None) -> SyntheticBatch:
        """Draw strips of one width. If `size` is given, they are easy: clean and in the served font."""
        strips: list[Tensor] = []
        texts: list[str] = []
        middles: list[list[float]] = []  # of each letter, in pixels at the network's height
        while len(texts) < num_strips:
            height_px, squeeze = size or self._size()
            face = self._face(SERVED_FONT if size else self._font(), height_px, width_px, squeeze)
            lines = self._lines(face, min(STRIPS_PER_FACE, num_strips - len(texts)))
            drawn = torch.from_numpy(np.stack([face.draw(line) for line in lines]))  # [strip, height, width]
            scale = INPUT_HEIGHT_PX / height_px
            strips.append(_resized(drawn, width_px))
            texts += lines
            middles += [[middle * scale for middle in _middles(line, face)] for line in lines]
        clean = torch.cat(strips)
        return _batch(clean if size else self._worn(clean), texts, middles)

    def _lines(self, face: _Face, count: int) -> list[str]:
        lines: list[str] = []
        while len(lines) < count:
            text, _ = face.spell(self._texts.next())
            lines += _wrap(text, face)
        return lines[:count]

    def _size(self) -> Size:
        dice = self._random.random()
        for size, share in zip(SIZES, SIZE_SHARES, strict=True):
            if dice < share:
                return size
            dice -= share
        return self._random.choice(HEIGHTS_PX), self._random.choice(SQUEEZES)

    def _font(self) -> Path:
        if self._random.random() < SERVED_SHARE:
            return SERVED_FONT
        return self._random.choice(self._other_fonts)

    def _face(self, font: Path, height_px: int, width_px: int, squeeze: float) -> _Face:
        drawn_width_px = round(width_px * height_px / INPUT_HEIGHT_PX)
        key = (font, height_px, drawn_width_px, squeeze)
        if key not in self._faces:
            self._faces[key] = _Face(font, height_px, drawn_width_px, squeeze)
        return self._faces[key]

    def _worn(self, strips: Tensor) -> Tensor:
        """Make some strips slightly paler, blurred, shifted or noisy."""
        count, _, width_px = strips.shape
        ink = (WHITE - strips.to(torch.float32))[:, None]  # [strip, 1, height, width]

        def chosen(share: float) -> Tensor:
            worn = torch.rand(count, generator=self._torch) > CLEAN_SHARE
            return (worn & (torch.rand(count, generator=self._torch) < share))[:, None, None, None]

        side = torch.rand(count, generator=self._torch)[:, None, None, None] * 0.25
        blurred = F.avg_pool2d(F.pad(ink, (1, 1, 1, 1)), 3, 1)
        ink = torch.where(chosen(0.4), (1 - 2 * side) * ink + 2 * side * blurred, ink)
        ink = torch.where(chosen(0.3), F.pad(ink, (0, 0, 1, 0))[:, :, :-1], ink)  # down by one pixel
        ink = torch.where(chosen(0.3), F.pad(ink, (0, 0, 0, 1))[:, :, 1:], ink)  # up by one
        ink = torch.where(chosen(0.3), F.pad(ink, (1, 0, 0, 0))[..., :width_px], ink)  # right by one
        paler = 0.5 + 0.5 * torch.rand(count, generator=self._torch)[:, None, None, None]
        ink = torch.where(chosen(0.5), paler * ink, ink)
        noise = torch.randn(ink.shape, generator=self._torch) * 10
        ink = torch.where(chosen(0.3), ink + noise, ink)
        return (WHITE - ink.clamp(0, WHITE)).round().to(torch.uint8)[:, 0]


def _resized(strips: Tensor, width_px: int) -> Tensor:
    """Resize to the network's height and to width_px, in the same way as the network."""
    if strips.shape[1:] == (INPUT_HEIGHT_PX, width_px):
        return strips
    size = (INPUT_HEIGHT_PX, width_px)
    enlarged = F.interpolate(
        strips[:, None].to(torch.float32), size=size, mode="bilinear", align_corners=False
    )
    return enlarged[:, 0].round().to(torch.uint8)


def _middles(line: str, face: _Face) -> list[float]:
    """The horizontal middle of each letter, in pixels of the face's strip."""
    place, middles = float(MARGIN_PX), []
    for letter in line:
        advance = face.advance(letter)
        middles.append(place + advance / 2)
        place += advance
    return middles


def _batch(strips: Tensor, texts: list[str], middles: list[list[float]]) -> SyntheticBatch:
    classes = [[CLASS_OF.get(letter, OTHER_CLASS) for letter in text] for text in texts]
    num_frames = strips.shape[2] // PX_PER_FRAME
    targets = np.full((len(texts), max(map(len, classes))), BLANK, np.int64)
    frame_letters = np.full((len(texts), num_frames), BLANK, np.int64)
    for row, (letters, places) in enumerate(zip(classes, middles, strict=True)):
        targets[row, : len(letters)] = letters
        frames = (np.array(places) / PX_PER_FRAME).astype(np.int64).clip(0, num_frames - 1)
        frame_letters[row, frames] = letters
    return SyntheticBatch(
        strips,
        texts,
        torch.from_numpy(targets),
        torch.tensor([len(letters) for letters in classes]),
        torch.from_numpy(frame_letters),
    )
