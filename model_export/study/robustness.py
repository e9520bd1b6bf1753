"""Robustness (question 4): how often does an item keep its codes when it is written in another way?

The codes are compared with the codes of the unchanged text by the same coder, so only the text differs. A
text counts as changed if any part of it changed, even a part that the encoder does not see. So pictures and
text are compared on the same items. An encoder that cuts a text short profits if the change lies after the
cut.
"""

import numpy as np

from model_export.evaluation.near_copies import shared_levels
from model_export.pipeline import stages
from model_export.pipeline.run import Run
from model_export.study.coding import Coder, coder
from model_export.study.perturb import CHANGES
from service.core.render import item_text

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py


def robustness(run: Run, *, num_items: int = 400, seed: int = 0) -> dict[str, float]:
    """The shares of changed items that keep all codes, the first two, and the first, for each of CHANGES.

    `num_changed:…` is the number of items, among `num_items`, whose text changes. There are no shares if it
    is 0. Equal seeds draw equal items and changes for every encoder.
    """
    read = stages.read(run)
    codes_of = coder(read, stages.code(run, read), run.config)
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
        run.say(f"      {name}: reading {len(rows)} changed texts")
        shared = shared_levels(codes_of([changed[row] for row in rows]), own[rows])  # [changed]
        figures[f"kept_all_codes:{name}"] = float((shared == own.shape[1]).mean())
        figures[f"kept_two_codes:{name}"] = float((shared >= 2).mean())
        figures[f"kept_first_code:{name}"] = float((shared >= 1).mean())
    return figures
