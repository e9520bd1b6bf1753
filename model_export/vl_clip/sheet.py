"""A page of photos with their boxes, for a person to look at. It holds its pictures, so it is one file."""

import html
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from model_export.vl_clip.boxes import Box
from model_export.vl_clip.refinement import data_url
from service.core.whole_files import write_whole

STYLE = (
    "body{font:14px sans-serif;margin:24px}"
    "figure{display:inline-block;margin:8px;width:260px;vertical-align:top}"
    "div{position:relative;display:inline-block}img{max-width:256px;display:block}"
    "b{position:absolute;border:3px solid #d00;box-sizing:border-box}"
)


class Shown(NamedTuple):
    """One photo of the page."""

    photo: Image.Image
    box: Box | None
    phrase: str
    title: str


def write_sheet(path: Path, heading: str, shown: Sequence[Shown]) -> None:
    """Write the page. A photo without a box is used whole."""
    figures = "\n".join(map(_figure, shown))
    text = (
        f'<!doctype html>\n<html lang="en"><meta charset="utf-8"><title>{html.escape(heading)}</title>\n'
        f"<style>{STYLE}</style>\n<h1>{html.escape(heading)}</h1>\n{figures}\n</html>\n"
    )
    write_whole(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def _figure(each: Shown) -> str:
    frame, told = "", "whole photo"
    if each.box is not None:
        box = each.box
        frame = (
            f'<b style="left:{box.left:.1%};top:{box.top:.1%};width:{box.right - box.left:.1%};'
            f'height:{box.bottom - box.top:.1%}"></b>'
        )
        told = f"confidence {box.confidence:.2f}"
    return (
        f'<figure><div><img src="{data_url(each.photo)}" alt="">{frame}</div>'
        f"<figcaption>{html.escape(each.phrase[:120])}<br>{told}<br>{html.escape(each.title)}</figcaption></figure>"
    )
