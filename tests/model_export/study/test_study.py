"""`glyphrec study` with the plan `tiny` really runs, stores and reports every kind of cell."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from model_export.configs import CompactConfig, HeadConfig, HubEncoderConfig, MiniLmConfig, base, tiny
from model_export.data.dataset import make_dataset
from model_export.data.tables import write_dataset
from model_export.study import cells, timing
from model_export.study.cell import Cell
from model_export.study.command import study
from model_export.study.cost_table import FILE, measure_costs, with_costs
from model_export.study.plan import PLANS, RESOLUTIONS, Plan, recipe
from model_export.study.run import Work, run_study, works_of
from service.core.render import render_text
from service.errors import GlyphrecError
from tests.model_export.study.stored import stored_cells

NUM_ITEMS = 72  # more than the 64 dimensions of a reader's statistics
NUM_USERS = 60
NUM_PHOTOS = 40
COSTED = ["pictures_early_title", "default", "text", "sasrec", "tiger_text", "markov", "pp_ocr", "cold"]


class Studied(NamedTuple):
    data: Path
    out: Path
    cache: Path
    said: list[str]

    def again(self, only: list[str] | None = None, plan: str = "tiny", *, costs: bool = False) -> list[str]:
        said: list[str] = []
        study(
            [str(self.data), str(self.data.with_name("shop"))],
            plan_name=plan,
            only=only or [],
            out=self.out,
            cache_folder=self.cache,
            costs=costs,
            say=said.append,
        )
        return said


def write_shop(folder: Path) -> None:
    """A small data set with photos. What is bought together has photos of one color."""
    folder.mkdir()
    rng, colors = np.random.default_rng(0), ("crimson", "navy", "gold", "forestgreen")
    items = []
    for item in range(NUM_PHOTOS):
        items.append({"item_id": f"i{item}", "title": f"Article {item}", "description": "cotton, 500 ct"})
        if item % 10:
            items[-1]["image"] = f"{item}.png"
            size = tuple(rng.integers(40, 90, 2).tolist())
            Image.new("RGB", size, colors[item % 4]).save(folder / f"{item}.png")
    users = [
        {"user_id": f"u{n}", "items": [f"i{i}" for i in rng.permutation(np.arange(n % 4, NUM_PHOTOS, 4))[:6]]}
        for n in range(NUM_USERS)
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (folder / "interactions.jsonl").write_text("\n".join(map(json.dumps, users)))


@pytest.fixture(scope="module")
def studied(small_dataset, tmp_path_factory) -> Studied:
    folder = tmp_path_factory.mktemp("study")
    shortened = [
        (user_id, sequence[sequence < NUM_ITEMS])
        for user_id, sequence in zip(small_dataset.user_ids, small_dataset.sequences, strict=True)
    ]
    histories = [(user_id, history) for user_id, history in shortened if len(history) > 3][:NUM_USERS]
    assert len(histories) == NUM_USERS
    write_dataset(
        make_dataset("groceries", small_dataset.items[:NUM_ITEMS], histories, {}), folder / "groceries"
    )
    write_shop(folder / "shop")
    found = Studied(folder / "groceries", folder / "docs", folder / "cache", [])
    # Two runs: the second measures the costs of cells that the first has run, each kind once.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(timing, "NUM_ITEMS", 6)
        patch.setattr(timing, "NUM_REQUESTS", 6)
        found.said.extend(found.again(COSTED, costs=True))
    found.said.extend(found.again())
    return found


def test_every_cell_of_the_plan_is_run_and_reported(studied):
    plan = PLANS["tiny"]()
    results = stored_cells(studied.out / "study" / "cells")
    assert {result.name for result in results} == {cell.name for cell in plan.cells}
    figures = json.loads((studied.out / "study.json").read_text())["groceries"]
    assert {"default", "sasrec", "markov", "tiger_text"} <= set(figures)
    assert figures["default"]["num_seeds"] == 2
    assert 0 <= figures["default"]["item_hit@10"] <= 1
    assert figures["default"]["pixels_per_item"] > 0
    assert figures["default"]["ms_per_request"] > 0
    assert figures["text"]["encode_ms_per_item"] > 0
    assert figures["tiger_text"]["use_level_4"] > 0, "a suffix is a level more"
    shop = json.loads((studied.out / "study.json").read_text())["shop"]
    assert "default" not in shop, "a data set with photos runs the cells for photos alone"
    assert 0 < shop["pictures_overlap"]["text_photo_overlap"] < 1
    assert 0 <= shop["pictures_default_early"]["kept_first_code_without_photo"] <= 1
    assert shop["pictures_cold_card"]["cold_num_items"] == 2
    title = shop["pictures_early_title"]
    assert title["pixels_per_item"] > 0.9 * 224**2, "nine of ten items have a photo"
    assert title["tokenizer_mb"] > 10, "the encoder of photos is in it"
    text = (studied.out / "study.md").read_text()
    assert "come from `glyphrec study … --costs` on one machine" in text
    for cell in plan.cells:
        assert cell.label in text, cell.name


def test_a_second_run_computes_nothing_and_writes_the_same(studied):
    before = (studied.out / "study.md").read_bytes()
    said = studied.again()
    count = len(stored_cells(studied.out / "study" / "cells"))
    assert f"{count} cells, {count} of them already finished" in said
    assert (studied.out / "study.md").read_bytes() == before


def test_costs_are_reported_only_for_cells_that_they_were_measured_for(studied):
    results = stored_cells(studied.out / "study" / "cells")
    default = next(result for result in results if (result.name, result.seed) == ("default", 0))
    second = next(result for result in results if (result.name, result.seed) == ("default", 1))
    changed = replace(default, key="0" * 16)
    found, machine = with_costs([default, second, changed], studied.out / "study")
    assert machine.endswith("cores")
    assert "ms_per_request" in found[0].figures
    assert "ms_per_request" not in found[1].figures, "costs are of the first seed"
    assert "ms_per_request" not in found[2].figures


def test_costs_stay_until_another_machine_measures(studied, tmp_path):
    path = Path(shutil.copy(studied.out / "study" / FILE, tmp_path))
    before = json.loads(path.read_text())
    measure_costs([], folder=tmp_path, cache_folder=studied.cache)
    assert json.loads(path.read_text()) == before
    path.write_text(json.dumps(before | {"machine": "another one"}))
    measure_costs([], folder=tmp_path, cache_folder=studied.cache)
    assert json.loads(path.read_text()) == {"machine": before["machine"], "cells": {}}


def test_a_stored_cell_of_another_configuration_is_not_used(studied):
    kept = cells.load(studied.out / "study" / "cells", "groceries", "markov", 0)
    try:
        cells.save(studied.out / "study" / "cells", replace(kept, key="0" * 16))
        assert any("first-order Markov" in line for line in studied.again(["markov"]))
    finally:
        cells.save(studied.out / "study" / "cells", kept)


def test_an_unknown_plan_or_cell_is_one_clear_error(studied):
    with pytest.raises(GlyphrecError, match=r"no plan 'huge'. Choose one of full, tiny"):
        studied.again(plan="huge")
    with pytest.raises(GlyphrecError, match=r"has no cell 'sasrek'. Its cells are default, "):
        studied.again(["sasrek"])


def test_the_first_seeds_of_all_cells_come_before_all_second_seeds(small_dataset):
    works = works_of(PLANS["full"](), {"small": small_dataset})
    seeds = [work.config.seed for work in works]
    assert seeds == sorted(seeds)
    assert len({(work.cell.name, work.config.seed) for work in works}) == len(works)


def test_a_cell_runs_again_if_something_that_it_depends_on_differs(small_dataset):
    def key(cell: Cell, **changes: object) -> str:
        return Work(replace(cell, config=replace(cell.config, **changes)), small_dataset, 0).key

    by_name = {cell.name: cell for cell in PLANS["full"]().cells}
    other_head, other_encoder = HeadConfig(dropout=0.9), MiniLmConfig()
    assert key(by_name["default"], head=other_head) != key(by_name["default"])
    assert key(by_name["sasrec"], head=other_head, encoder=other_encoder) == key(by_name["sasrec"])
    assert key(by_name["item_knn"], history_length=3) == key(by_name["item_knn"])
    assert key(by_name["item_knn"], encoder=other_encoder) != key(by_name["item_knn"])
    assert key(by_name["markov"], head=other_head) == key(by_name["markov"])
    for has_photos in (False, True):  # the two kinds run on different data
        keys = [
            Work(cell, small_dataset, 0).key for cell in by_name.values() if cell.has_photos == has_photos
        ]
        assert len(set(keys)) == len(keys), "two cells of the plan are one"


def test_all_resolutions_draw_the_same_letters_on_a_strip():
    default = base().render
    assert (default.height_px, default.squeeze) in RESOLUTIONS
    assert recipe(default.height_px, default.squeeze, default) == default
    text = "Stainless steel hex nuts, M3 x 1/2 in, 500 ct; zinc plated; grade 8; " * 12
    counts = [
        len(render_text(text, recipe(*resolution, default).model_copy(update={"max_strips": 64})).strips)
        for resolution in RESOLUTIONS
    ]
    assert max(counts) - min(counts) <= 1
    pixels = [
        recipe(*resolution, default).height_px * recipe(*resolution, default).width_px
        for resolution in RESOLUTIONS
    ]
    assert max(pixels) > 4 * default.height_px * default.width_px


def test_the_default_reads_with_the_compact_reader():
    assert base().encoder == CompactConfig()


def test_a_checkpoint_that_cannot_be_loaded_costs_one_cell_and_not_the_study(small_dataset, tmp_path):
    """The tests reach no model hub."""
    encoder = HubEncoderConfig("trocr", "nobody/has-this")
    cells_of_plan = (
        Cell("trocr", "TrOCR", ("encoders",), replace(tiny(), encoder=encoder)),
        Cell("popularity", "popularity", ("headline",), tiny(), counting="popularity"),
    )
    said: list[str] = []
    plan, folder = Plan("two", cells_of_plan), tmp_path / "cells"
    run_study(plan, {"small": small_dataset}, store=folder, cache_folder=tmp_path / "cache", say=said.append)
    assert [cell.name for cell in stored_cells(folder)] == ["popularity"]
    assert any("left out: nobody/has-this" in line for line in said)
