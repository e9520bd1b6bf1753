"""Fields as pictures: what is drawn of an item, and vectors for what no vocabulary has."""

from dataclasses import replace
from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from model_export.configs import CompactConfig, FamaePicturesConfig, GaoqConfig, tiny
from model_export.data.dataset import make_dataset
from model_export.data.item_fields import read_fields
from model_export.encoders.famae import Famae, FieldPictures
from model_export.export import export
from model_export.local_service import local_service
from model_export.pipeline import stages
from model_export.pipeline.drawn_fields import FieldDrawer
from model_export.pipeline.run import Run
from model_export.study.coding import codes_of_fields
from service.core.bundle import TOKENIZER, RenderSpec
from service.core.bundle_vocabulary import bundle_vocabulary
from service.core.drawn_fields import draw_fields, text_of
from service.core.item_fields import Vocabulary
from service.inference.runtime import Tokenizer, TokenizerInput

KNOWN = {("tools", "tapes"): 1, ("tools", "tapes", "sealants"): 1}
VOCABULARY = Vocabulary({"item_id": {"a": 1}, "brand": {"acme": 1}, "categories.2": KNOWN})
ENCODER = FamaePicturesConfig(
    width=8, num_layers=1, num_heads=2, ffn_dim=16, history_length=5, max_epochs=2, batch_size=64,
    reader=CompactConfig(num_grams=256, feature_dim=16),
)  # fmt: skip
CONFIG = replace(tiny(), encoder=ENCODER, quantizer=GaoqConfig(), opinions=None)


def drawn(name: str, **item: object) -> str:
    return text_of(item, name, VOCABULARY, RenderSpec())


def test_the_text_stands_for_the_id_and_each_other_field_for_itself():
    item = {
        "item_id": "a",
        "title": "Duct tape",
        "brand": "ACME",
        "categories": ["Tools", "Tapes", "Sealants"],
    }
    assert drawn("item_id", **item) == "Duct tape; ACME; Tools > Tapes > Sealants"
    assert drawn("brand", **item) == "acme"
    assert drawn("brand", brand="") == ""
    assert drawn("categories.2", **item) == "tools > tapes > sealants", "both names are one level"
    assert drawn("categories.2", categories=["Tools", "Tapes"]) == "tools > tapes"
    assert drawn("categories.2", categories=["Garden", "Hoses", "Long"]) == "garden > hoses", "a new one"
    assert drawn("categories.2", categories=["Garden"]) == ""


def shop():
    kinds = ("hex nuts", "oat milk", "red paint", "copper wire")
    items = [
        {"item_id": f"i{n}", "title": f"{kinds[n % 4]} {n}", "brand": f"Brand {n % 5}",
         "categories": ["Shop", f"Kind {n % 4}"]}
        for n in range(40)
    ]  # fmt: skip
    rng = np.random.default_rng(0)
    users = [(f"u{u}", rng.choice(np.arange(u % 4, 40, 4), 6, replace=False)) for u in range(60)]
    return make_dataset("shop", items, users, {})


@pytest.fixture(scope="module")
def learnt(tmp_path_factory):
    run = Run.of(shop(), CONFIG, tmp_path_factory.mktemp("cache"))
    read = stages.read(run)
    return run, read, stages.code(run, read)


def test_items_have_vectors_from_what_is_drawn_whether_the_catalog_has_them_or_not(learnt):
    run, read, coded = learnt
    assert read.famae.fields == ("item_id", "brand", "categories.2")
    assert read.features.shape == (40, 3 * 8)
    drawer = FieldDrawer(run.config, read.famae.vocabulary, read.pooling)
    again = stages.vectors_of_fields(read.famae, drawer, run.dataset.items)
    np.testing.assert_allclose(again, read.features, atol=1e-5)
    new = {"item_id": "new", "title": "hex nuts 77", "brand": "Brand 9", "categories": ["Shop", "Kind 0"]}
    vector, masked = (
        stages.vectors_of_fields(read.famae, drawer, [each])[0].reshape(3, 8)
        for each in (new, {"item_id": "new", "title": "hex nuts 77"})
    )
    mask = read.famae.tables.masks.numpy()
    assert np.array_equal(masked[1:], mask[1:])
    assert not np.isclose(vector, mask).all(axis=1).any(), "a new brand has a vector too"
    assert np.allclose(vector[2], read.features.reshape(40, 3, 8)[0, 2], atol=1e-5), "its category is known"
    codes = codes_of_fields(read, coded, run.config, [new])
    assert codes.shape == (1, 3)
    with torch.no_grad():
        own = coded.quantizer.encode(torch.from_numpy(read.features)).numpy()
    assert (codes_of_fields(read, coded, run.config, run.dataset.items)[:, 0] == own[:, 0]).mean() > 0.9


@torch.no_grad()
def test_a_value_is_the_projection_of_its_features_and_what_is_unknown_the_mask():
    fields = read_fields(shop().items, ["brand"])
    rng = np.random.default_rng(0)
    features = [rng.normal(size=(count, 6)).astype(np.float32) for count in fields.vocabulary.num_values]
    model = Famae(fields, ENCODER, features).eval()
    pictures = model.embed
    assert isinstance(pictures, FieldPictures)
    embedded = pictures(torch.tensor([[3, 0]]))[0]
    torch.testing.assert_close(embedded[0], torch.from_numpy(features[0][3]) @ pictures.projections[0])
    assert torch.equal(embedded[1], pictures.masks[1])
    assert pictures.table(1).shape == (6, 8)
    assert (model.logits(torch.randn(2, 8), 1)[:, 0] == -torch.inf).all()


NEW = [
    {"item_id": "new", "title": "hex nuts 77", "brand": "Brand 2", "categories": ["Shop", "Kind 0"]},
    {"item_id": "strange", "title": "hex nuts 78", "brand": "Nobody's", "categories": ["Garden", "Hoses"]},
    {"item_id": "bare", "title": "oat milk"},
    {"item_id": "long", "title": "red paint " * 30, "brand": "Brand 1"},
]


@pytest.fixture(scope="module")
def bundle(learnt, tmp_path_factory):
    run, _, _ = learnt
    out = tmp_path_factory.mktemp("bundles") / "drawn"
    return export(shop(), out, CONFIG, cache_folder=run.cache.folder, say=lambda _line: None)


@pytest.mark.slow
def test_the_graph_reads_a_batch_as_the_offline_stages_read_each_item(learnt, bundle):
    run, read, coded = learnt
    manifest, vocabulary = bundle.manifest, bundle_vocabulary(bundle)
    assert (manifest.format_version, manifest.fields.drawn, manifest.fields.names[0]) == (6, True, "item_id")
    assert manifest.vector_dim == 16, "a search compares texts"
    tokenizer = Tokenizer(bundle.file(TOKENIZER), manifest.tokenizer, threads=1)
    inputs = [TokenizerInput.of_drawn(draw_fields(each, vocabulary, manifest.render)) for each in NEW]
    assert inputs[2].fields.tolist() == [1, 0, 0]
    assert [len(each.strips) for each in inputs] == [each.fields.sum() for each in inputs]
    tokens = tokenizer.run(inputs)
    assert tokens.codes.tolist() == codes_of_fields(read, coded, run.config, NEW).tolist()
    drawn = FieldDrawer(run.config, vocabulary, read.pooling).of_items(NEW)
    scale = read.pooling.search_scale().numpy()
    np.testing.assert_allclose(tokens.vectors, drawn.features[:, 0] * scale, atol=1e-4)
    assert (bundle.path / "report" / "items.png").is_file()


def test_an_item_without_any_text_is_a_blank_strip_that_belongs_to_no_field():
    found = draw_fields({"item_id": "a"}, VOCABULARY, RenderSpec())
    assert found.counts.tolist() == [0, 0, 0]
    assert len(found.strips) == 1
    assert (found.strips == 255).all()


@pytest.mark.slow
def test_a_service_reads_brands_and_categories_that_nobody_had_and_searches_by_text(learnt, bundle, tmp_path):
    run, read, coded = learnt
    with local_service(bundle.path, data_dir=tmp_path / "redis", log=tmp_path / "log") as service:
        client = service.client
        posted = client.post("/items", json={"items": NEW}).raise_for_status().json()["items"]
        expected = codes_of_fields(read, coded, run.config, NEW).tolist()
        assert [each["codes"] for each in posted] == expected
        assert [each["unused_values"] for each in posted] == [[]] * len(NEW), "nothing is unknown"
        assert [each["truncated"] for each in posted] == [False, False, False, True]
        page = client.post("/recommend", json={"history": ["strange"], "limit": 10}).raise_for_status().json()
        assert len(page["items"]) == 10
        titles = {each["item_id"]: each["title"] for each in [*run.dataset.items, *NEW]}
        for query in ("hex nuts 77", "oat milk"):
            best = (
                client.post("/search", json={"query": query, "limit": 3}).raise_for_status().json()["items"]
            )
            assert {titles[each["item_id"]][:8] for each in best} == {query[:8]}
        like = client.get("/items/new/similar", params={"limit": 5}).raise_for_status().json()
        assert like["by"] == "vector"
        heights = [
            Image.open(BytesIO(client.get("/items/strange/image", params=part).content)).height // 16
            for part in ({}, {"part": "text"})
        ]
        assert heights[0] == heights[1] + 2, "its brand and its category have a strip each"
        moved = client.patch("/items/bare", json={"brand": "Brand 3"}).raise_for_status().json()
        item = NEW[2] | {"brand": "Brand 3"}
        assert moved["codes"] == codes_of_fields(read, coded, run.config, [item])[0].tolist()
