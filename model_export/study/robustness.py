"""Robustness (question 4): an item written by somebody else, how often does it keep its codes?

Codes are compared with those of the unchanged text by the same coder, so that nothing but the text differs.
A text counts as changed by all of it, for every encoder alike, and not by the part that an encoder sees: so
pictures and text are compared on the same items, and an encoder that cuts a text short profits where the
change lies beyond its end.
"""

import numpy as np

from model_export.configs import RunConfig
from model_export.data.dataset import Dataset
from model_export.data.splits import Split
from model_export.evaluation.near_copies import shared_levels
from model_export.pipeline import stages
from model_export.pipeline.cache import StageCache
from model_export.pipeline.stages import Say
from model_export.study.coding import coder
from model_export.study.perturb import CHANGES
from service.core.render import item_text


def robustness(
    dataset: Dataset,
    split: Split,
    config: RunConfig,
    cache: StageCache,
    say: Say,
    *,
    num_items: int = 400,
    seed: int = 0,
) -> dict[str, float]:
    """For each change of perturb.CHANGES: of how many of `num_items` items it changes the text, and the share
    of these that keep all codes, the first two, the first. No shares where it changes none.

    Equal seeds draw equal items and changes, whatever the encoder.
    """
    read = stages.read(dataset.items, config, cache, say)
    coded = stages.code(read.features, dataset.item_ids, split, config, cache)
    codes_of = coder(read, coded, config)
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
        say(f"      {name}: read {len(rows)} changed texts")
        shared = shared_levels(codes_of([changed[row] for row in rows]), own[rows])  # [changed]
        figures[f"kept_all_codes:{name}"] = float((shared == own.shape[1]).mean())
        figures[f"kept_two_codes:{name}"] = float((shared >= 2).mean())
        figures[f"kept_first_code:{name}"] = float((shared >= 1).mean())
    return figures
