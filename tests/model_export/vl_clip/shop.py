"""A small shop whose photos show what its texts say: a colored shape on white."""

import json
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

COLORS = ("crimson", "navy", "gold", "forestgreen", "black", "deepskyblue")
SHAPES = ("ball", "box", "kite")
SIZE = (48, 64)


def write_shop(folder: Path, *, start: int = 0, count: int = 36, with_users: bool = True) -> Path:
    """Write items `start` to `start + count`. No two of them have the same photo."""
    folder.mkdir(parents=True)
    items = []
    for number in range(start, start + count):
        color, shape = COLORS[number % len(COLORS)], SHAPES[number // len(COLORS) % len(SHAPES)]
        items.append(
            {
                "item_id": f"i{number}",
                "title": f"{color} {shape} {number}",
                "description": f"A {shape} in {color}",
                "categories": ["Toys", shape],
                "image": f"{number}.png",
            }
        )
        draw(color, shape, number).save(folder / f"{number}.png")
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    if with_users:
        rng = np.random.default_rng(0)
        users = [
            {"user_id": f"u{n}", "items": [f"i{start + i}" for i in rng.permutation(count)[:5].tolist()]}
            for n in range(30)
        ]
        (folder / "interactions.jsonl").write_text("\n".join(map(json.dumps, users)))
    return folder


def draw(color: str, shape: str, number: int = 0) -> Image.Image:
    """The photo of a product. The number moves it a little."""
    photo = Image.new("RGB", SIZE, "white")
    pen, shift = ImageDraw.Draw(photo), number % 7
    corners = (8 + shift, 12 + shift, 36 + shift, 40 + shift)
    match shape:
        case "ball":
            pen.ellipse(corners, fill=color)
        case "box":
            pen.rectangle(corners, fill=color)
        case _:
            left, top, right, bottom = corners
            pen.polygon([(left, bottom), ((left + right) / 2, top), (right, bottom)], fill=color)
    return photo
