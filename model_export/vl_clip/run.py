"""The pipeline of VL-CLIP from data to figures, top to bottom (arXiv 2507.17080).

    pairs ─ refine texts ─ ground photos ─ learn the joint space ─▶ figures on items kept from the training
                                                                └─▶ towers, and pages of photos with boxes

Each step is stored under a key of its inputs, so an interrupted or changed run repeats only what changed.
"""

import json
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import NamedTuple

import numpy as np

from model_export.data.dataset import Dataset
from model_export.picture_configs import SpaceConfig
from model_export.pipeline.cache import StageCache
from model_export.pipeline.run import Say
from model_export.vl_clip.catalog import PairedItems, paired_items, without_copies
from model_export.vl_clip.chat import Chat
from model_export.vl_clip.clip_space import ClipSpace
from model_export.vl_clip.clutter_figures import figures_in_clutter
from model_export.vl_clip.configs import RENDER, VlClipConfig
from model_export.vl_clip.grounding import Grounder, Photo, ground, make_grounder, used
from model_export.vl_clip.joint_space import JointSpace
from model_export.vl_clip.readings import Boxes, Photos, Readings
from model_export.vl_clip.refinement import described, refine_all, summary_of
from model_export.vl_clip.refinement_settings import RefinementSettings
from model_export.vl_clip.sheet import Shown, write_sheet
from model_export.vl_clip.spaces import Learned, learn, word_space_figures
from model_export.vl_clip.stored_space import save_space
from model_export.vl_clip.towers import write_towers
from service.core.whole_files import write_whole
from service.errors import GlyphrecError

FIGURES, SHEET, CLUTTER_SHEET = "figures.json", "grounding.html", "clutter.html"
ON_SHEET = 48  # photos
BASELINE = "CCA of words and photos"


class Sources(NamedTuple):
    """Pairs to learn from, and pairs for the test."""

    learned: PairedItems
    test: PairedItems
    num_copies: int  # pairs that were left out because they equal a test pair


class Parts(NamedTuple):
    """Which pairs are for what. No pair is in two of them."""

    train: PairedItems
    validation: PairedItems
    test: PairedItems


class Row(NamedTuple):
    """The figures of one space."""

    name: str
    figures: dict[str, float]


@dataclass
class Results:
    """What a run found."""

    rows: list[Row] = field(default_factory=list)  # from text to photo
    clutter: list[Row] = field(default_factory=list)  # the same, each photo beside another product's
    numbers: dict[str, float] = field(default_factory=dict)
    curves: dict[str, tuple[float, ...]] = field(default_factory=dict)  # validation MRR by epoch

    def as_json(self) -> str:
        """The content of figures.json."""
        content = {
            "text_to_photo": {row.name: row.figures for row in self.rows},
            "text_to_photo_in_clutter": {row.name: row.figures for row in self.clutter},
            "numbers": self.numbers,
            "curves": {name: list(curve) for name, curve in self.curves.items()},
        }
        return json.dumps(content, indent=1, default=float)


def sources_of(catalog: Dataset, pairs: Dataset | None, config: VlClipConfig) -> Sources:
    """The catalog's items are the test if there are other pairs; if not, a share of them is.

    Pairs that share id, text or photo with a test pair are left out. Raises GlyphrecError without pairs.
    """
    test = paired_items(catalog, RENDER)
    if pairs is None:
        order = np.random.default_rng(config.seed).permutation(len(test))
        num_test = max(1, round(config.test_share * len(test)))
        test, rest = test.some(np.sort(order[:num_test])), test.some(np.sort(order[num_test:]))
    else:
        rest = paired_items(pairs, RENDER)
    learned = without_copies(rest, test)
    return Sources(learned, test, len(rest) - len(learned))


def parts_of(sources: Sources, config: VlClipConfig) -> Parts:
    """A share of the pairs decides when the training ends. Raises GlyphrecError if too few are left."""
    learned = sources.learned
    order = np.random.default_rng(config.seed).permutation(len(learned))
    num_validation = round(config.validation_share * len(learned))
    if len(learned) - num_validation < 2:
        raise GlyphrecError(
            f"{learned.dataset.name}: {len(learned)} pairs of text and photo are left to learn from. Give "
            "more of them, for example with --pairs FOLDER."
        )
    train, validation = np.sort(order[num_validation:]), np.sort(order[:num_validation])
    return Parts(learned.some(train), learned.some(validation), sources.test)


def run_vl_clip(
    catalog: Dataset,
    pairs: Dataset | None,
    out: Path,
    config: VlClipConfig,
    *,
    cache: StageCache,
    refine: RefinementSettings | None = None,
    say: Say,
) -> Results:
    """Run all steps, and write figures, pages and towers to the folder `out`.

    Without `refine` no network is touched, except for a checkpoint that is named by its hub name.
    """
    sources, results, readings = sources_of(catalog, pairs, config), Results(), Readings(cache, RENDER)
    own = parts_of(sources, config)
    say(
        f"pairs: {len(own.train):,} to learn from, {len(own.validation):,} for validation, {len(own.test):,} "
        f"for the test; {sources.num_copies:,} left out as copies of test pairs"
    )
    read = partial(learn, readings, config=config.space, seed=config.seed, region_px=config.grounding.size_px)
    if isinstance(config.space, SpaceConfig):
        for some in (sources.learned, sources.test):
            readings.read_ahead(some, config.space.size_px)
        figures = word_space_figures(readings, own.train, own.test, config.space, seed=config.seed)
        results.rows.append(Row(BASELINE, figures))
    first = read(own.train, own.validation)
    texts = {"own texts": own}
    if refine is not None:
        texts["refined texts"] = _refined(own, refine, cache, results, say)
    crops: dict[str, list[Boxes]] = {"whole photos": [None, None, None]}
    if config.grounding.way != "none":
        grounder = make_grounder(config.grounding, first.space, first.key)
        if not config.only_clutter:
            found = [_boxes(part, grounder, config, cache) for part in own]
            crops[f"grounded by {config.grounding.way}"] = found
            _write_boxes(out / SHEET, own.test, found[2], results)
        if config.num_cluttered:
            sheet = out / CLUTTER_SHEET
            measured = figures_in_clutter(first, grounder, own.test, config, cache, sheet=sheet)
            results.clutter += [Row(*row) for row in measured.rows]
            results.numbers |= measured.numbers
    learned = first
    for (said, parts), (cut, boxes) in product(texts.items(), crops.items()):
        name = f"{_name_of(first)}, {said}, {cut}"
        is_first = parts is own and boxes[0] is None
        learned = first if is_first else read(parts.train, parts.validation, boxes=(boxes[0], boxes[1]))
        results.rows.append(Row(name, learned.figures(parts.test.texts, Photos.of(parts.test, boxes[2]))))
        results.curves[name] = learned.curve
    # The last one has all steps that were asked for.
    if isinstance(learned.space, JointSpace):
        results.numbers["towers_largest_difference"] = write_towers(learned.space, out)
        save_space(learned.space, out)
    elif isinstance(learned.space, ClipSpace):
        learned.space.save(out / "clip")
    write_whole(out / FIGURES, lambda partial: partial.write_text(results.as_json() + "\n", encoding="utf-8"))
    return results


def _name_of(learned: Learned) -> str:
    return "ours" if isinstance(learned.space, JointSpace) else "CLIP"


def _refined(
    own: Parts, settings: RefinementSettings, cache: StageCache, results: Results, say: Say
) -> Parts:
    """The same pairs with the texts that the models wrote."""
    pairs = [(part, place) for part in own for place in range(len(part))]
    with Chat(settings, cache.folder / "chat") as chat:
        items = [partial(described, part, place) for part, place in pairs]
        found = refine_all(items, chat, rounds=settings.rounds, parallel=settings.parallel)
        say(f"refined: {summary_of(found)}")
        say(
            f"      {chat.num_requests:,} requests and {chat.num_tokens:,} tokens; {chat.num_cached:,} "
            "answers were stored already"
        )
    changed = [each.text != part.texts[place] for each, (part, place) in zip(found, pairs, strict=True)]
    results.numbers |= {
        "refined_share": float(np.mean(changed)),
        "refinement_stopped_share": float(np.mean([each.outcome == "stopped" for each in found])),
        "refinement_rounds": float(np.mean([each.num_rounds for each in found])),
    }
    texts = iter([each.text for each in found])
    return Parts(*(part.with_texts([next(texts) for _ in range(len(part))]) for part in own))


def _boxes(part: PairedItems, grounder: Grounder, config: VlClipConfig, cache: StageCache) -> Boxes:
    phrases = part.types if config.grounding.phrase == "type" else part.texts
    photos = [
        Photo(name, phrase, partial(part.photo, place))
        for place, (name, phrase) in enumerate(zip(part.hashes(), phrases, strict=True))
    ]
    return used(ground(cache, photos, grounder), grounder, config.grounding)


def _write_boxes(path: Path, test: PairedItems, boxes: Boxes, results: Results) -> None:
    assert boxes is not None
    areas = [box.area for box in boxes if box is not None]
    results.numbers["cropped_share"] = len(areas) / len(boxes)
    results.numbers["median_crop_area"] = float(np.median(areas)) if areas else 1.0
    shown = []
    for place in range(min(ON_SHEET, len(test))):
        if (photo := test.photo(place)) is not None:
            title = str(test.dataset.items[int(test.items[place])].get("title", ""))
            shown.append(Shown(photo, boxes[place], test.types[place], title))
    write_sheet(path, f"{test.dataset.name}: photos with the boxes that were cropped", shown)


def table(results: Results) -> str:
    """The figures for the terminal."""
    lines = []
    for heading, rows in (
        ("text to photo", results.rows), ("text to photo, beside another product", results.clutter),
    ):  # fmt: skip
        if rows:
            names = list(rows[0].figures)
            width = max(len(heading), *(len(row.name) for row in rows))
            lines.append(f"{heading:<{width}}  " + "  ".join(f"{name:>8}" for name in names))
            for row in rows:
                values = "  ".join(f"{row.figures[name]:8.4f}" for name in names)
                lines.append(f"{row.name:<{width}}  {values}")
            lines.append("")
    lines += [f"{name}: {value:.4g}" for name, value in results.numbers.items()]
    return "\n".join(lines)
