"""Robustness counts changed texts and kept codes correctly, with real encoders on real groceries."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from model_export.configs import MiniLmConfig, RunConfig, tiny
from model_export.evaluation.near_copies import shared_levels
from model_export.pipeline import stages
from model_export.pipeline.run import Run
from model_export.study import robustness as robustness_module
from model_export.study.coding import coder
from model_export.study.perturb import CHANGES
from model_export.study.robustness import robustness
from service.core.render import item_text

NUM_ITEMS = 8


def nothing(_: str) -> None:
    """Does nothing with the progress text."""


@pytest.fixture(scope="module")
def configs(tiny_export) -> dict[str, RunConfig]:
    """One configuration for pictures and one for text. The pictures are the tiny export's, which are read
    already.
    """
    pictures = replace(tiny(), render=tiny_export.bundle.manifest.render)
    return {"pictures": pictures, "text": replace(pictures, encoder=MiniLmConfig())}


def measured(tiny_export, config: RunConfig) -> dict[str, float]:
    return robustness(Run.of(tiny_export.dataset, config, tiny_export.cache), num_items=NUM_ITEMS)


@pytest.mark.parametrize("side", ["pictures", "text"])
def test_a_coder_gives_the_catalogs_texts_the_codes_of_its_quantizer(tiny_export, configs, side):
    dataset, config = tiny_export.dataset, configs[side]
    run = Run.of(dataset, config, tiny_export.cache)
    read = stages.read(run)
    coded = stages.code(run, read)
    codes_of = coder(read, coded, config)
    expected = coded.quantizer.encode(torch.from_numpy(coded.vectors[:NUM_ITEMS])).numpy()
    texts = [item_text(item, config.render) for item in dataset.items[:NUM_ITEMS]]
    np.testing.assert_array_equal(codes_of(texts), expected)
    assert codes_of([]).shape == (0, config.sid.num_levels)


def test_an_invisible_change_keeps_all_codes_and_another_items_text_does_not(
    tiny_export, configs, monkeypatch
):
    dataset, config = tiny_export.dataset, configs["pictures"]
    before = dict(zip(dataset.item_ids, [dataset.items[-1], *dataset.items], strict=False))
    changes = {
        "none": lambda item, spec, _: item_text(item, spec),
        "unseen": lambda item, spec, _: item_text(item, spec) + "  ",
        "other": lambda item, spec, _: item_text(before[item["item_id"]], spec),
    }
    monkeypatch.setattr(robustness_module, "CHANGES", changes)
    figures = measured(tiny_export, config)
    assert figures["num_changed:none"] == 0
    assert "kept_all_codes:none" not in figures
    assert figures["num_changed:unseen"] == NUM_ITEMS
    assert figures["kept_all_codes:unseen"] == figures["kept_first_code:unseen"] == 1

    run = Run.of(dataset, config, tiny_export.cache)
    coded = stages.code(run, stages.read(run))
    own = coded.quantizer.encode(torch.from_numpy(coded.vectors)).numpy()
    chosen = np.random.default_rng(0).choice(dataset.num_items, size=NUM_ITEMS, replace=False)
    shared = shared_levels(own[chosen], own[chosen - 1])
    assert figures["num_changed:other"] == NUM_ITEMS
    assert figures["kept_first_code:other"] == pytest.approx((shared >= 1).mean())
    assert figures["kept_two_codes:other"] == pytest.approx((shared >= 2).mean())
    assert figures["kept_all_codes:other"] < 0.5


def test_pictures_and_text_get_the_same_changes_and_every_share_is_a_share(tiny_export, configs):
    pictures, text = (measured(tiny_export, config) for config in configs.values())
    assert pictures.keys() == text.keys()
    for change in CHANGES:
        assert pictures[f"num_changed:{change}"] == text[f"num_changed:{change}"] <= NUM_ITEMS
    assert pictures["num_changed:typos"] == NUM_ITEMS
    for figures in (pictures, text):
        for change in (name for name in CHANGES if figures[f"num_changed:{name}"]):
            kept = [figures[f"kept_{what}:{change}"] for what in ("all_codes", "two_codes", "first_code")]
            assert 0 <= kept[0] <= kept[1] <= kept[2] <= 1
