"""Configuration `resid` end to end: a folder with categories, a bundle, and a service that takes new items.

The titles say nothing here. Users stay within one kind, and the categories say which kind an item is.
"""

import json
import time
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest

from model_export.configs import (
    FamaeConfig,
    GaoqConfig,
    ReadableConfig,
    RqKMeansConfig,
    RunConfig,
    resid,
    tiny,
)
from model_export.data.tables import read_dataset
from model_export.export import export
from model_export.local_service import local_service
from model_export.picture_configs import PicturesConfig
from service.core.bundle import load_bundle
from service.core.bundle_items import bundle_items
from service.core.bundle_vocabulary import bundle_vocabulary
from service.core.item_fields import UNKNOWN
from service.errors import GlyphrecError

NUM_ITEMS, NUM_USERS, KINDS = 90, 240, 6
KEY = "an-admin-key-of-this-test"
FIELDS = ("item_id", "brand", "categories.2", "categories.3")


def fields_of(kind: int, number: int) -> dict:
    return {
        "brand": f"Brand {number % 5}",
        "categories": ["Shop", f"Kind {kind}", f"Kind {kind}, part {number // KINDS % 2}"],
    }


@pytest.fixture(scope="module")
def shop(tmp_path_factory) -> Path:
    folder, rng = tmp_path_factory.mktemp("shop"), np.random.default_rng(0)
    items = [
        {"item_id": f"i{item}", "title": f"Article {rng.integers(10_000)}"} | fields_of(item % KINDS, item)
        for item in range(NUM_ITEMS)
    ]
    users = [
        {
            "user_id": f"u{user}",
            "items": [
                f"i{n}" for n in rng.choice(np.arange(user % KINDS, NUM_ITEMS, KINDS), 6, replace=False)
            ],
        }
        for user in range(NUM_USERS)
    ]
    (folder / "items.jsonl").write_text("\n".join(map(json.dumps, items)))
    (folder / "interactions.jsonl").write_text("\n".join(map(json.dumps, users)))
    return folder


def small() -> RunConfig:
    """`resid` with everything small."""
    famae = FamaeConfig(width=16, num_layers=1, ffn_dim=32, history_length=5, max_epochs=8, batch_size=128)
    return replace(tiny(), name="resid-tiny", encoder=famae, quantizer=GaoqConfig(), opinions=None)


@pytest.fixture(scope="module")
def bundles(shop: Path, tmp_path_factory):
    folder, dataset = tmp_path_factory.mktemp("bundles"), read_dataset(str(shop))
    base = replace(tiny(), opinions=None)
    readable = replace(base, name="readable-tiny", quantizer=ReadableConfig(RqKMeansConfig()))
    for name, config in (("resid", small()), ("base", base), ("readable", readable)):
        export(dataset, folder / name, config, cache_folder=folder / "cache", say=lambda _: None)
    return folder


def test_the_named_configuration_reads_fields_and_its_codes_are_a_tree_of_clusters():
    assert isinstance(resid().encoder, FamaeConfig)
    assert isinstance(resid().quantizer, GaoqConfig)


@pytest.mark.slow
def test_the_bundle_has_the_fields_their_vocabulary_and_items_in_words(bundles):
    manifest = json.loads((bundles / "resid" / "manifest.json").read_text())
    assert manifest["fields"] == {
        "names": list(FIELDS),
        "num_values": [1 + NUM_ITEMS, 6, 7, 13],
        "beside_pixels": False,
    }
    assert [each["name"] for each in manifest["tokenizer"]["inputs"]] == ["fields"]
    assert manifest["metrics"]["max_vector_difference"] < 1e-4
    report = (bundles / "resid" / "report" / "report.md").read_text()
    assert "- item_id: i0; brand: brand 0; categories.2: shop > kind 0; categories.3:" in report
    assert "| co-purchased pairs that share their prefix | " in report
    assert "Of all pairs of items, 15.7% have one category." in report  # six of fifteen each
    assert "ms to tokenize on one core" in report
    assert not (bundles / "resid" / "report" / "items.png").exists()


@pytest.mark.slow
def test_a_service_reads_new_items_by_their_fields_and_recommends_them(bundles, tmp_path):
    with local_service(
        bundles / "resid", data_dir=tmp_path / "redis", log=tmp_path / "log", settings=_settings(bundles)
    ) as service:
        client = service.client
        client.headers["X-API-Key"] = KEY
        new = [
            {"item_id": f"new-{n}", "title": "Article"} | fields_of(n % KINDS, n) for n in range(2 * KINDS)
        ]
        posted = client.post("/items", json={"items": new}).raise_for_status().json()["items"]
        assert [each["error"] for each in posted] == [None] * len(new)
        assert [each["unused_values"] for each in posted] == [[]] * len(new)
        found = [_page(client, [f"i{kind}", f"i{kind + KINDS}"]) for kind in range(KINDS)]
        new_ones = [item_id for page in found for item_id in page if item_id.startswith("new-")]
        assert len(new_ones) >= KINDS, "a tenth of the catalog is new"
        of_kind = [_num_of_kind(_page(client, [f"new-{kind}"]), kind) for kind in range(KINDS)]
        assert sum(of_kind) > 0.5 * 10 * KINDS  # a sixth by chance

        # To a bundle that reads pixels and back.
        codes = {each["item_id"]: each["codes"] for each in posted}
        _change(client, "base")
        assert client.get("/items/i3").json()["codes"] != codes["new-3"]
        client.patch("/items/new-3", json={"title": "Another title"}).raise_for_status()
        assert "new-3" in _page(client, ["new-9"], limit=100)
        _change(client, "resid")
        assert client.get("/items/new-3").json()["codes"] == codes["new-3"]
        assert client.get("/items/new-3").json()["item"]["title"] == "Another title"


@pytest.mark.slow
def test_the_vocabulary_gives_an_item_of_the_catalog_a_number_in_every_field(bundles):
    vocabulary = bundle_vocabulary(load_bundle(bundles / "resid"))
    assert (vocabulary.read({"item_id": "i7", "title": "x"} | fields_of(1, 7)) > 0).all()


@pytest.mark.slow
def test_readable_codes_begin_with_the_category_of_an_item_also_of_a_new_one(bundles, tmp_path):
    bundle = load_bundle(bundles / "readable")
    assert bundle.manifest.fields.beside_pixels
    (field,) = bundle.manifest.fields.names
    assert field == "categories.3", "twelve parts of kinds fit into sixteen codes"
    vocabulary = bundle_vocabulary(bundle)
    items = bundle_items(bundle)
    assert [each.codes[0] for each in items] == [int(vocabulary.read(each.item)[0]) for each in items]
    with local_service(bundle.path, data_dir=tmp_path / "redis", log=tmp_path / "log") as service:
        new = [{"item_id": f"new-{n}", "title": "Article"} | fields_of(n % KINDS, n) for n in range(3)]
        new.append({"item_id": "strange", "title": "Article", "categories": ["Garden", "Hoses", "Long"]})
        posted = service.client.post("/items", json={"items": new}).raise_for_status().json()["items"]
        expected = [int(vocabulary.read(item)[0]) for item in new]
        assert [each["codes"][0] for each in posted] == expected
        assert expected[3] == UNKNOWN not in expected[:3]
        assert [each["field"] for each in posted[3]["unused_values"]] == ["categories"]
        assert service.client.get("/items/new-0/image").headers["content-type"] == "image/png"
        wanted = {"categories_any": fields_of(2, 2)["categories"][-1:]}
        body = {"history": ["i2", "i8"], "limit": 10, "filter": wanted}
        page = service.client.post("/recommend", json=body).raise_for_status().json()["items"]
        assert "new-2" in [each["item_id"] for each in page]


def test_a_text_that_leaves_out_a_field_that_is_read_is_refused(shop, tmp_path):
    config = replace(small(), render=small().render.model_copy(update={"fields": ("title", "brand")}))
    with pytest.raises(GlyphrecError, match=r"render.fields lacks categories, .*Add it, or '\*'"):
        export(
            read_dataset(str(shop)), tmp_path / "b", config, cache_folder=tmp_path / "c", say=lambda _: None
        )


def test_fields_and_photos_in_one_tokenizer_are_refused(shop, tmp_path):
    config = replace(small(), pictures=PicturesConfig())
    with pytest.raises(GlyphrecError, match="a tokenizer reads either those or photos"):
        export(
            read_dataset(str(shop)), tmp_path / "b", config, cache_folder=tmp_path / "c", say=lambda _: None
        )


def _settings(bundles: Path) -> dict[str, str]:
    return {
        "GLYPHREC_BUNDLES_DIR": str(bundles),
        "GLYPHREC_ADMIN_KEYS": KEY,
        "GLYPHREC_THREADS": "1",
        "GLYPHREC_REREAD_SHARE": "1",
    }


def _change(client: httpx.Client, name: str) -> None:
    client.post("/admin/bundles", json={"bundle": name}).raise_for_status()
    deadline = time.monotonic() + 60
    while client.get("/info").json()["bundle"] != name:
        assert time.monotonic() < deadline, client.get("/admin/bundles").text
        time.sleep(0.1)


def _page(client: httpx.Client, history: list[str], limit: int = 10) -> list[str]:
    body = {"history": history, "limit": limit}
    page = client.post("/recommend", json=body).raise_for_status().json()["items"]
    return [each["item_id"] for each in page]


def _num_of_kind(page: list[str], kind: int) -> int:
    return sum(int(item_id.rpartition("-")[2].lstrip("i")) % KINDS == kind for item_id in page)
