"""Draw docs/picture.png from a bundle: an item as the encoder sees it, its Semantic ID, what follows it.

python docs/draw_picture.py --bundle FOLDER
"""

import argparse
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

from model_export.bundle.report import draw_page
from service.core.bundle import RECOMMENDER, load_bundle
from service.core.bundle_items import bundle_items
from service.core.graphs import FILLER_SCORE, beam_widths
from service.core.render import item_text, render_text
from service.core.trie import SidTrie
from service.inference.runtime import RecommenderSession

NUM_RECOMMENDED = 4
NUM_BEAMS = 50


def main() -> None:
    """Read `--bundle`, run its recommender once, and write the picture to `--out`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", required=True, type=Path)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("picture.png"))
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    spec = bundle.manifest.render
    catalog = bundle_items(bundle)
    popular = sorted(range(len(catalog)), key=lambda place: -catalog[place].popularity)[:300]
    # The one with the most digits: what text tokenizers shatter.
    shown = max(popular, key=lambda place: sum(map(str.isdigit, item_text(catalog[place].item, spec))))
    codes = np.array([row.codes for row in catalog])
    session = RecommenderSession(bundle.file(RECOMMENDER), bundle.manifest.recommender, threads=1)
    trie = SidTrie.from_codes(bundle.manifest.sid, codes)
    beams = session.run(codes[None, [shown]], trie.tables, beam_widths(bundle.manifest.sid, NUM_BEAMS))
    place_of = {row.codes: place for place, row in reversed(list(enumerate(catalog)))}
    best = [
        (place_of[tuple(found)], float(score))
        for found, score in zip(beams.codes[0].tolist(), beams.scores[0], strict=True)
        if score > FILLER_SCORE and place_of[tuple(found)] != shown
    ][:NUM_RECOMMENDED]

    figure = Figure(figsize=(12, 3.6))
    left, middle, *rights = (
        figure.add_axes(box)
        for box in [(0.01, 0.3, 0.36, 0.4), (0.40, 0.3, 0.16, 0.4)]
        + [(0.62, 0.74 - 0.225 * rank, 0.37, 0.17) for rank in range(NUM_RECOMMENDED)]
    )
    _draw_item(left, catalog[shown].item, spec)
    left.set_title("an item, as the encoder sees it", fontsize=11, loc="left")
    middle.axis("off")
    sid = "-".join(map(str, (*catalog[shown].codes, catalog[shown].slot)))
    middle.text(0.5, 0.5, sid, ha="center", va="center", fontsize=17, family="monospace")
    middle.set_title("its Semantic ID", fontsize=11)
    for axes, (place, score) in zip(rights, best, strict=True):
        _draw_item(axes, catalog[place].item, spec)
        sid = "-".join(map(str, (*catalog[place].codes, catalog[place].slot)))
        axes.set_title(
            f"{sid}   score {score:.2f}",
            fontsize=8,
            loc="left",
            pad=2,
        )
    figure.text(0.62, 0.965, "generated as likely to follow", fontsize=11)
    for start, end in (((0.375, 0.5), (0.405, 0.5)), ((0.565, 0.5), (0.61, 0.5))):
        figure.add_artist(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=18, color="black"))
    figure.savefig(args.out, dpi=100, facecolor="white")


def _draw_item(axes, item, spec) -> None:
    page = draw_page([render_text(item_text(item, spec), spec).strips])
    axes.imshow(page, cmap="gray", vmin=0, vmax=255, interpolation="nearest")
    axes.set_xticks([])
    axes.set_yticks([])


if __name__ == "__main__":
    main()
