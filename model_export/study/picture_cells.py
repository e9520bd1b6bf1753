"""The cells of the table "pictures": what photos add to texts, and how the two are best fused.

They run on data sets with photos. All of them have the same head, quantizer, generator and seeds, unless the
label says something else. The generator runs without likeness, because the question is how good the codes
are. The cells `pictures_default` are configurations as they are served.
"""

from dataclasses import replace
from typing import Any

from model_export.configs import MiniLmConfig, RunConfig
from model_export.picture_configs import CardConfig, CardNeighbors, Fusion, PicturesConfig
from model_export.study.cell import Cell, Question
from model_export.vl_clip.configs import GroundingConfig, VlClipPictures

TEXTS: dict[str, tuple[str, tuple[str, ...]]] = {
    "title": ("titles", ("title",)),
    "description": ("titles and descriptions", ("title", "description")),
}  # the shorter texts of the study: name -> words, fields

CARDS: tuple[tuple[str, str, CardNeighbors], ...] = (
    ("card", "CARD's unit, with its nearest by purchases", "collaborative"),
    ("card_content", "CARD's unit, with its nearest by text", "content"),
    ("card_alone", "CARD's unit, no neighbors", "none"),
)

JOINT: tuple[tuple[str, str, GroundingConfig], ...] = (
    ("vl_clip", "vectors of a joint space of drawn text and photo (VL-CLIP)", GroundingConfig()),
    ("vl_clip_grounded", "the same, photos cropped by class maps", GroundingConfig("classes")),
)

# Cells that run the same code as other cells, see plan.py.
LIKE_OTHERS = {
    f"pictures_{name}"
    for name in (
        "text", "drawn", "photo", "early", "early_concat", "early_sum", "late_levels", "default_drawn",
        "early_text", "early_text_concat", "early_text_sum", "card_content", "card_alone",
        "drawn_title", "drawn_description", "early_description", "overlap_text",
        "cold_drawn", "cold_photo", "cold_early", "cold_card_alone", "vl_clip_grounded",
    )
}  # fmt: skip


def picture_cells(default: RunConfig, learnt: RunConfig, num_seeds: int) -> list[Cell]:
    """Every kind of cell. `learnt` is the default without likeness and counts."""
    photos = PicturesConfig()
    encoded = replace(learnt, encoder=MiniLmConfig())

    def cell(
        name: str,
        label: str,
        config: RunConfig,
        fusion: Fusion | None = None,
        *,
        seeds: int = 1,
        question: Question | None = None,
        group: str | tuple[str, ...] = "pictures",
    ) -> Cell:
        if fusion is not None:
            config = replace(config, pictures=replace(photos, fusion=fusion))
        return Cell(
            f"pictures_{name}",
            label,
            (group,) if isinstance(group, str) else group,
            config,
            question=question,
            num_seeds=seeds,
            has_photos=True,
        )

    found = [
        cell("text", "text by MiniLM", encoded, seeds=num_seeds),
        cell("drawn", "drawn text", learnt, seeds=num_seeds, group=("pictures", "quantizers")),
        cell("photo", "photo", learnt, "photo", seeds=num_seeds),
        cell("early_text", "MiniLM and photo, early, head", encoded, "head", seeds=num_seeds),
        cell("early", "drawn text and photo, early, head", learnt, "head", seeds=num_seeds),
        cell("early_text_concat", "MiniLM and photo, early, side by side, no training", encoded, "concat"),
        cell("early_concat", "drawn text and photo, early, side by side, no training", learnt, "concat"),
        cell("early_text_sum", "MiniLM and photo, early, sum of projections", encoded, "sum"),
        cell("early_sum", "drawn text and photo, early, sum of projections", learnt, "sum"),
        cell("late_both", "late, codes of text, then codes of photo", learnt, "late_both"),
        cell("late_levels", "late, first levels from text, last from photo", learnt, "late_levels"),
        cell("late_history", "late, both in the history, text generated", learnt, "late_history"),
        cell("default_drawn", "glyphrec, the default, without photos", default, seeds=num_seeds),
        cell("default_early", "glyphrec, the configuration `pictures`", default, "head", seeds=num_seeds),
    ]
    for name, label, neighbors in CARDS:
        found.append(cell(name, label, replace(learnt, pictures=CardConfig(neighbors=neighbors))))
    for name, label, grounding in JOINT:
        found.append(cell(name, label, replace(learnt, pictures=VlClipPictures(grounding=grounding))))
    for name, (words, fields) in TEXTS.items():
        short = _of_fields(learnt, fields)
        group = "picture_texts"
        found += [
            cell(f"drawn_{name}", f"drawn {words}", short, group=group),
            cell(f"early_{name}", f"drawn {words} and photo, early", short, "head", group=group),
        ]
    near: dict[str, Any] = {"question": "overlap", "group": "picture_overlap"}
    found += [
        cell("overlap", "drawn text and photo", learnt, "head", **near),
        cell("overlap_text", "MiniLM and photo", encoded, "head", **near),
    ]
    served = replace(default, opinions=None)
    cold: dict[str, Any] = {"question": "cold", "group": "picture_cold"}
    found += [
        cell("cold_drawn", "drawn text", served, **cold),
        cell("cold_photo", "photo", served, "photo", **cold),
        cell("cold_early", "drawn text and photo, early", served, "head", **cold),
        cell("cold_card", "CARD's unit, new items alone", replace(served, pictures=CardConfig()), **cold),
        cell(
            "cold_card_alone",
            "CARD's unit, all items alone",
            replace(served, pictures=CardConfig(neighbors="none")),
            **cold,
        ),
        cell(
            "cold_card_content",
            "CARD's unit, new items with their nearest by text",
            replace(served, pictures=CardConfig()),
            question="cold_units",
            group="picture_cold",
        ),
    ]
    return found


def _of_fields(config: RunConfig, fields: tuple[str, ...]) -> RunConfig:
    """The configuration that reads only these fields of an item."""
    return replace(config, render=config.render.model_copy(update={"fields": fields}))
