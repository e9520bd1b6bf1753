"""The id of a tokenizer is a hash of its graph and of the pixels or numbers that reach it. Source code has no
part in it.
"""

import hashlib
import io
import json
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from service.core.bundle import PictureSpec, RenderSpec, sha256_of
from service.core.encoder_view import encoder_view
from service.core.item_fields import Vocabulary
from service.core.pictures import keep_picture
from service.core.render import item_text, render_text

# Items that cover all of the drawing: letters and digits, units, accents, characters that the font lacks,
# invisible characters, values of every kind, and more text than fits on one strip or on all strips.
PROBES: tuple[dict[str, Any], ...] = (
    {"title": "The quick brown fox jumps over the lazy dog 0123456789", "brand": "ACME & Sons (GmbH)"},
    {"title": 'Hex nuts M3 x 1/2 in, 8.5" pipe, 500 ct; 12 fl oz = 355 ml @ 20 °C ±5 %, 3 µm, ½ ft²'},
    {"title": "Söhne, façade, Łódź, Ærø, Αθήνα, Москва, cafe\u0301 “quotes” – ‘dashes’"},
    {"title": "Lacking: \U0001f529 \u4e2d; soft\u00adhyphen, zero\u200bwidth, tab\tand\nline"},
    {
        "title": "Every kind of value",
        "categories": ["Tools", "Fasteners", "Nuts"],
        "colors": ["red", "blue"],
        "in_stock": True,
        "weight_kg": 2.5,
        "pieces": 12.0,
        "sizes": {"width": 3, "depth": None, "notes": ["new", {"lot": 7}]},
        "description": "",
    },
    {"title": "A" * 400, "description": "words that wrap at the end of a line, " * 40},
    {},
)


def _probe(size: tuple[int, int]) -> bytes:
    """A picture file with smooth colors and sharp edges."""
    rows, columns = np.mgrid[: size[1], : size[0]]
    red, green = 255 * columns // size[0], 255 * rows // size[1]
    blue = 255 * ((rows // 16 + columns // 16) % 2)
    pixels = np.stack([red, green, blue], axis=-1).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return file.getvalue()


# Photos that cover all of their way to pixels: larger than what is kept, smaller, and upright.
PROBE_FILES = (
    partial(_probe, (640, 320)),
    partial(_probe, (100, 60)),
    partial(_probe, (200, 300)),
)


def tokenizer_id(
    graph: Path,
    render: RenderSpec,
    pictures: PictureSpec | None = None,
    vocabulary: Vocabulary | None = None,
) -> str:
    """The id: 12 hex characters.

    It is equal if the file `graph` is equal and items become the same pixels, or the same numbers of fields.

    `pictures`: how photos are read, or None. `vocabulary`: of the fields that are read, or None.

    The id of a bundle is stored in its manifest and is not computed again.
    """
    digest = hashlib.sha256(sha256_of(graph).encode())
    digest.update(render.model_dump_json().encode())
    if vocabulary is not None:
        known = [[name, list(values.items())] for name, values in vocabulary.numbers.items()]
        read = [vocabulary.read(item).tolist() for item in PROBES]
        digest.update(json.dumps([known, read]).encode())
    for item in PROBES:
        strips = render_text(item_text(item, render), render).strips
        digest.update(str(strips.shape).encode())
        digest.update(strips.tobytes())
    if pictures is not None:
        digest.update(pictures.model_dump_json().encode())
        for file in PROBE_FILES:
            kept = keep_picture(file())
            digest.update(kept.data)
            seen = encoder_view(PROBES[0], kept.data, pictures, render)
            assert seen is not None
            digest.update(seen.tobytes())
    return digest.hexdigest()[:12]
