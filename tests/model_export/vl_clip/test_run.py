"""The whole pipeline, on a small shop."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from model_export.data.neutral import read_catalog, read_folder
from model_export.picture_configs import SpaceConfig
from model_export.pipeline.cache import StageCache
from model_export.vl_clip.catalog import paired_items, without_copies
from model_export.vl_clip.configs import GroundingConfig, VlClipConfig
from model_export.vl_clip.refinement_settings import RefinementSettings
from model_export.vl_clip.run import (
    BASELINE,
    CLUTTER_SHEET,
    FIGURES,
    SHEET,
    Results,
    _refined,
    parts_of,
    run_vl_clip,
    sources_of,
    table,
)
from model_export.vl_clip.towers import PHOTO_TOWER, TEXT_TOWER
from service.core.bundle import RenderSpec
from service.errors import GlyphrecError
from tests.model_export.vl_clip.chat_server import Reply, chat_server
from tests.model_export.vl_clip.shop import write_shop

SMALL = VlClipConfig(
    space=SpaceConfig(
        num_grams=512, text_dim=16, size_px=64, dim=16, hidden_dim=16, batch_size=32, max_epochs=6
    ),
    grounding=GroundingConfig("regions", size_px=64, threshold=0.0),
    num_cluttered=6,
)


@pytest.fixture(scope="module")
def shops(tmp_path_factory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("shops")
    return (
        write_shop(folder / "catalog", start=0, count=24),
        write_shop(folder / "pairs", start=18, count=60, with_users=False),
    )


@pytest.mark.slow
def test_the_pipeline_goes_from_pairs_to_figures_towers_and_pages(shops, tmp_path):
    catalog, pairs = read_folder(shops[0]), read_catalog(shops[1])
    cache, said = StageCache(tmp_path / "cache"), []
    out = tmp_path / "out"
    out.mkdir()
    results = run_vl_clip(catalog, pairs, out, SMALL, cache=cache, say=said.append)
    assert "24 for the test; 6 left out as copies" in said[0]
    names = [row.name for row in results.rows]
    assert names == [
        BASELINE, "ours, own texts, whole photos", "ours, own texts, grounded by regions",
    ]  # fmt: skip
    # Color and shape tell 18 kinds apart, and chance finds one photo of 24 in the first five for a fifth.
    assert results.rows[1].figures["hits@5"] > 0.4
    written = json.loads((out / FIGURES).read_text())
    assert written["text_to_photo"][names[1]] == results.rows[1].figures
    assert 0 <= written["numbers"]["side_by_side_right_by_type"] <= 1
    assert len(written["curves"][names[1]]) >= 2
    for name in (SHEET, CLUTTER_SHEET, TEXT_TOWER, PHOTO_TOWER):
        assert (out / name).stat().st_size > 1000
    assert names[2] in table(results)

    before = {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*") if path.is_file()}
    again = run_vl_clip(catalog, pairs, out, SMALL, cache=cache, say=said.append)
    assert again.rows == results.rows
    assert {path: path.stat().st_mtime_ns for path in cache.folder.rglob("*") if path.is_file()} == before


def test_no_test_pair_is_learned_from(shops):
    catalog, pairs = read_folder(shops[0]), read_catalog(shops[1])
    parts = parts_of(sources_of(catalog, pairs, SMALL), SMALL)
    hashes = [set(part.hashes()) for part in parts]
    texts = [set(part.texts) for part in parts]
    for first, second in ((0, 1), (0, 2), (1, 2)):
        assert not hashes[first] & hashes[second]
        assert not texts[first] & texts[second]
    assert len(parts.test) == 24
    assert sum(map(len, parts)) == 24 + 60 - 6


def test_a_catalog_without_other_pairs_keeps_a_share_of_its_own_for_the_test(shops):
    catalog = read_folder(shops[0])
    config = replace(SMALL, test_share=0.25)
    parts = parts_of(sources_of(catalog, None, config), config)
    assert [len(part) for part in parts] == [16, 2, 6]
    assert sorted(np.concatenate([part.items for part in parts])) == list(range(24))


def test_a_pair_with_the_photo_the_text_or_the_id_of_a_test_pair_is_a_copy(shops):
    catalog = paired_items(read_catalog(shops[0]), RenderSpec())
    pairs = paired_items(read_catalog(shops[1]), RenderSpec())  # i18 to i77; the catalog ends at i23
    assert without_copies(pairs, catalog).items.tolist() == list(range(6, 60))
    assert len(without_copies(catalog, catalog)) == 0


def test_refined_texts_take_the_place_of_those_of_every_part(shops, tmp_path):
    own = parts_of(sources_of(read_folder(shops[0]), None, SMALL), SMALL)

    def answer(body, _n):
        text = body["messages"][0]["content"][0]["text"]
        title = text.partition("title: ")[2].partition("\n")[0]
        return Reply("STOP" if text.startswith("You check") else f"a toy, {title}")

    results, said = Results(), []
    with chat_server(answer) as server:
        settings = RefinementSettings(url=server.url, model="small", max_requests=40, parallel=1)
        refined = _refined(own, settings, StageCache(tmp_path), results, said.append)
    assert [len(part) for part in refined] == [len(part) for part in own]
    for part, before in zip(refined, own, strict=True):
        assert part.hashes() == before.hashes()
    changed = [
        text.startswith("a toy, ") and text.removeprefix("a toy, ") in before
        for part, old in zip(refined, own, strict=True)
        for text, before in zip(part.texts, old.texts, strict=True)
    ]
    assert sum(changed) == 20  # two requests each; the other items keep their text
    assert results.numbers["refined_share"] == pytest.approx(20 / 24)
    assert said[0] == "refined: 20 stopped by the evaluator, 4 out of budget"


def test_too_few_pairs_are_refused_with_the_remedy(tmp_path):
    small = read_folder(write_shop(tmp_path / "two", count=5))
    with pytest.raises(GlyphrecError, match="are left to learn from.*--pairs"):
        parts_of(sources_of(small, None, replace(SMALL, test_share=0.8)), SMALL)
    bare = replace(small, images={})
    with pytest.raises(GlyphrecError, match="0 items have both a text and a photo"):
        sources_of(bare, None, SMALL)
