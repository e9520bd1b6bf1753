"""Configuration `vl-clip` end to end: a bundle with a joint space, and a service that searches with it.

The photos of the shop show what its texts say. New items have a text alone or a photo alone, and each kind is
found by the other.
"""

import base64
import io
import json
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from model_export.configs import RUNS, MiniLmConfig, tiny
from model_export.data.neutral import read_folder
from model_export.data.photos import seen_of
from model_export.export import export
from model_export.local_service import local_service
from model_export.picture_configs import JointPicturesConfig, SpaceConfig
from model_export.pipeline.cache import StageCache
from model_export.vl_clip.configs import VlClipConfig
from model_export.vl_clip.run import run_vl_clip
from service.core.bundle import ITEMS, TOKENIZER, Bundle
from service.core.json_lines import read_json_lines
from service.core.render import item_text, render_text
from service.core.vectors import from_text, packed, unpacked
from service.errors import GlyphrecError
from service.inference.runtime import Tokenizer, TokenizerInput
from tests.model_export.vl_clip.shop import COLORS, SHAPES, draw, write_shop

SIZE_PX = 64
SPACE = SpaceConfig(
    num_grams=512, text_dim=16, size_px=SIZE_PX, dim=16, hidden_dim=16, batch_size=32, max_epochs=12
)
PICTURES = JointPicturesConfig(size_px=SIZE_PX, space=SPACE)
CONFIG = replace(tiny(), name="joint-tiny", pictures=PICTURES, opinions=None)
KINDS = [(color, shape) for color in COLORS for shape in SHAPES]
NUM_ITEMS = 108


def _photo_of(color: str, shape: str) -> dict[str, str]:
    file = io.BytesIO()
    draw(color, shape, 3).save(file, "PNG")
    return {"data": base64.b64encode(file.getvalue()).decode()}


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    folder = write_shop(tmp_path_factory.mktemp("shop") / "s", count=NUM_ITEMS)
    items = [json.loads(line) for line in (folder / "items.jsonl").read_text().splitlines()]
    del items[5]["image"]
    (folder / "9.png").write_bytes(b"no picture")
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    return folder


@pytest.fixture(scope="module")
def exported(shop, tmp_path_factory) -> tuple[Bundle, str]:
    said: list[str] = []
    folder = tmp_path_factory.mktemp("bundle")
    bundle = export(
        read_folder(shop), folder / "bundle", CONFIG, cache_folder=folder / "cache", say=said.append
    )
    return bundle, "\n".join(said)


@pytest.mark.slow
def test_the_items_of_the_bundle_have_the_vectors_that_its_graph_gives(exported, shop):
    bundle, said = exported
    manifest, dataset = bundle.manifest, read_folder(shop)
    assert "the joint space is learned from 95 pairs; MRR on 11 others" in said
    assert 0 < manifest.metrics["joint_space_mrr"] <= 1
    assert (manifest.vector_dim, manifest.format_version) == (16, 4)
    tokenizer = Tokenizer(bundle.file(TOKENIZER), manifest.tokenizer, threads=1)
    places = [0, 5, 9, 50]  # 5 has no photo, and that of 9 cannot be read
    photos = seen_of(dataset, places, manifest.pictures, manifest.render)
    assert [photo is None for photo in photos] == [False, True, True, False]
    texts = [item_text(dataset.items[place], manifest.render) for place in places]
    found = tokenizer.run(
        [
            TokenizerInput(render_text(text, manifest.render).strips, photo)
            for text, photo in zip(texts, photos, strict=True)
        ]
    )
    lines = [line.value for line in read_json_lines(bundle.file(ITEMS))]
    kept = unpacked([from_text(lines[place]["vector"]) for place in places], 16).astype(int)
    made = unpacked(packed(found.vectors), 16).astype(int)
    assert np.abs(kept - made).max() <= 1  # of 127
    assert [lines[place]["codes"] for place in places] == found.codes.tolist()


@pytest.mark.slow
def test_a_text_finds_photos_and_a_photo_finds_texts(exported, tmp_path):
    bundle, _ = exported
    texts = [{"item_id": f"t-{color}-{shape}", "title": f"{color} {shape}"} for color, shape in KINDS]
    photos = [{"item_id": f"p-{color}-{shape}", "image": _photo_of(color, shape)} for color, shape in KINDS]
    with local_service(bundle.path, data_dir=tmp_path / "redis", log=tmp_path / "log") as service:
        client = service.client
        posted = client.post("/items", json={"items": [*texts, *photos]}).raise_for_status().json()
        assert [each["error"] for each in posted["items"]] == [None] * 2 * len(KINDS)
        others = [f"i{n}" for n in range(NUM_ITEMS)]
        of_texts, of_photos = ([each["item_id"] for each in some] for some in (texts, photos))

        by_text = [
            _colors(client, {"query": f"{color} {shape}", "exclude_item_ids": [*others, *of_texts]})
            for color, shape in KINDS
        ]
        by_photo = [
            _colors(client, {"image": _photo_of(color, shape), "exclude_item_ids": [*others, *of_photos]})
            for color, shape in KINDS
        ]
        for pages in (by_text, by_photo):  # three of eighteen have the color, so chance is a sixth
            right = [page.count(color) for page, (color, _) in zip(pages, KINDS, strict=True)]
            assert sum(right) > 0.5 * 3 * len(KINDS)

        # Both together find the product by either of its sides.
        query = {"query": "gold kite", "image": _photo_of("gold", "kite"), "exclude_item_ids": others}
        page = client.post("/search", json=query).raise_for_status().json()["items"]
        assert {"t-gold-kite", "p-gold-kite"} <= {each["item_id"] for each in page}

        answer = client.get("/items/t-navy-ball/similar", params={"by": "vector", "limit": 60})
        near = [each["item_id"] for each in answer.raise_for_status().json()["items"]]
        assert any(item_id.startswith("p-navy") for item_id in near[:20])
        assert client.get("/info").json()["vectors"]["dim"] == 16


@pytest.mark.slow
def test_a_space_that_vl_clip_learned_goes_into_the_bundle(shop, exported, tmp_path):
    dataset, out = read_folder(shop), tmp_path / "space"
    out.mkdir()
    cache = StageCache(tmp_path / "cache")
    run_vl_clip(dataset, None, out, VlClipConfig(space=SPACE), cache=cache, say=lambda _line: None)
    config = replace(CONFIG, pictures=replace(PICTURES, space_folder=str(out)))
    bundle = export(dataset, tmp_path / "bundle", config, cache_folder=cache.folder, say=lambda _line: None)
    curve = json.loads((out / "figures.json").read_text())["curves"].popitem()[1]
    assert bundle.manifest.metrics["joint_space_mrr"] == pytest.approx(max(curve))
    assert bundle.manifest.vector_dim == 16
    assert bundle.manifest.tokenizer_id != exported[0].manifest.tokenizer_id


def test_the_named_configuration_reads_texts_to_their_end_and_photos_once():
    config = RUNS["vl-clip"]()
    assert isinstance(config.pictures, JointPicturesConfig)
    assert config.pictures.space.size_px == config.pictures.size_px
    assert config.render.max_strips > RUNS["pictures"]().render.max_strips


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (replace(CONFIG, encoder=MiniLmConfig()), "cannot be exported"),
        (replace(CONFIG, pictures=replace(PICTURES, kind="mobilenet-v2")), "Set pictures.kind=efficient"),
        (replace(CONFIG, pictures=replace(PICTURES, size_px=50)), "wants a multiple of 32"),
        (replace(CONFIG, pictures=replace(PICTURES, size_px=96)), "Set them to the same number"),
        (replace(CONFIG, pictures=replace(PICTURES, space_folder="/nowhere")), "no learned space"),
    ],
)
def test_settings_that_no_graph_can_hold_are_refused_with_the_remedy(shop, tmp_path, config, said):
    with pytest.raises(GlyphrecError, match=said):
        export(read_folder(shop), tmp_path / "out", config, cache_folder=tmp_path, say=lambda _line: None)


def _colors(client: httpx.Client, body: dict) -> list[str]:
    page = client.post("/search", json={**body, "limit": 3}).raise_for_status().json()["items"]
    return [each["item_id"].split("-")[1] for each in page]
