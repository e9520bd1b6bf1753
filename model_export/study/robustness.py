"""Robustness (question 4): an item written by somebody else, how often does it keep its codes?

Codes are compared with those of the unchanged text by the same coder, so that nothing but the text differs.
A text counts as changed by all of it, for every encoder alike, and not by the part that an encoder sees: so
pictures and text are compared on the same items, and an encoder that cuts a text short profits where the
change lies beyond its end.
"""

import numpy as np

from model_export.evaluation.near_copies import shared_levels
from model_export.pipeline import stages
from model_export.pipeline.run import Run
from model_export.study.coding import Coder, coder
from model_export.study.perturb import CHANGES
from service.core.render import item_text

VERSION = 1  # of what comes out; raised with it, see pipeline/versions.py


def robustness(run: Run, *, num_items: int = 400, seed: int = 0) -> dict[str, float]:
    """For each change of perturb.CHANGES: of how many of `num_items` items it changes the text, and the share
    of these that keep all codes, the first two, the first. No shares where it changes none.

    Equal seeds draw equal items and changes, whatever the encoder.
    """
    read = stages.read(run)
    codes_of = coder(read, stages.code(run, read.features), run.config)
    return kept_codes(run, codes_of, num_items=num_items, seed=seed)


def kept_codes(run: Run, codes_of: Coder, *, num_items: int, seed: int) -> dict[str, float]:
    """The figures of `robustness` for any coder of texts."""
    dataset, config = run.dataset, run.config
    rng = np.random.default_rng(seed)
    chosen = rng.choice(dataset.num_items, size=min(num_items, dataset.num_items), replace=False)
    items = [dataset.items[place] for place in chosen]
    texts = [item_text(item, config.render) for item in items]
    own = codes_of(texts)  # [item, level]
    figures: dict[str, float] = {}
    for name, change in CHANGES.items():
        changed = [change(item, config.render, rng) for item in items]
        rows = [row for row, text in enumerate(changed) if text != texts[row]]
        figures[f"num_changed:{name}"] = float(len(rows))
        if not rows:
            continue
        run.say(f"      {name}: read {len(rows)} changed texts")
        shared = shared_levels(codes_of([changed[row] for row in rows]), own[rows])  # [changed]
        figures[f"kept_all_codes:{name}"] = float((shared == own.shape[1]).mean())
        figures[f"kept_two_codes:{name}"] = float((shared >= 2).mean())
        figures[f"kept_first_code:{name}"] = float((shared >= 1).mean())
    return figures
