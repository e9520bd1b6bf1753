"""The stage that reads a catalog's photos: what is left out, what is kept, and where it goes on."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_export.configs import tiny
from model_export.data.dataset import Dataset, make_dataset
from model_export.data.photos import seen_of
from model_export.picture_configs import PicturesConfig
from model_export.pipeline import parts
from model_export.pipeline import photos as stage
from model_export.pipeline.photos import read_photos, spec_of
from model_export.pipeline.run import Run
from service.core.pictures import keep_picture, picture_pixels
from service.errors import GlyphrecError

CONFIG = PicturesConfig(size_px=64)
COLORS = ("red", "green", "blue", "orange", "black")


def photo(color: str, form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (300, 200), color).save(file, form)
    return file.getvalue()


def catalog(folder: Path, files: dict[int, bytes], num_items: int = 8) -> Dataset:
    """Items, of which those of `files` have a photo."""
    paths = {}
    for item, content in files.items():
        paths[item] = folder / f"{item}.img"
        paths[item].write_bytes(content)
    items = [{"item_id": f"i{n}", "title": f"Item {n}"} for n in range(num_items)]
    return make_dataset("shop", items, [("u", range(num_items))], {}, images=paths)


def run_of(dataset: Dataset, cache: Path, said: list[str] | None = None) -> Run:
    config = replace(tiny(), pictures=CONFIG)
    return Run.of(dataset, config, cache, (said if said is not None else []).append)


def test_photos_are_read_as_a_service_reads_them(tmp_path):
    files = {item: photo(color) for item, color in enumerate(COLORS)}
    dataset = catalog(tmp_path, files)
    spec = spec_of(CONFIG)
    seen = seen_of(dataset, [3, 6], spec, tiny().render)
    np.testing.assert_array_equal(seen[0], picture_pixels(keep_picture(files[3]).data, spec))
    assert seen[1] is None
    found = read_photos(run_of(dataset, tmp_path / "cache"))
    assert found.photo_of.tolist() == [0, 1, 2, 3, 4, -1, -1, -1]
    again = read_photos(run_of(catalog(tmp_path, {0: files[3]}), tmp_path / "cache"))
    np.testing.assert_allclose(again.features[0], found.features[3], atol=1e-5)


def test_a_broken_photo_is_named_and_its_item_has_none(tmp_path):
    files = {0: photo("red"), 2: photo("blue")[:60], 5: b"\xff\xd8\xff no photo", 6: photo("green")}
    said: list[str] = []
    found = read_photos(run_of(catalog(tmp_path, files), tmp_path / "cache", said))
    assert found.photo_of.tolist() == [0, -1, -1, -1, -1, -1, 1, -1]
    assert np.isfinite(found.features).all()
    assert "2 of 8 items have a photo that can be read" in said[0]
    assert [line.split(":")[1].strip() for line in said[1:]] == [
        str(tmp_path / "2.img"),
        str(tmp_path / "5.img"),
    ]


def test_a_catalog_without_any_photo_is_told_what_to_do(tmp_path):
    with pytest.raises(GlyphrecError, match="no item has a photo.*choose the configuration base"):
        read_photos(run_of(catalog(tmp_path, {}), tmp_path / "cache"))
    with pytest.raises(GlyphrecError, match="none of its 1 photos can be read.*is no JPEG"):
        read_photos(run_of(catalog(tmp_path, {1: b"text"}), tmp_path / "cache"))


def test_another_photo_is_read_anew_and_the_same_is_not(tmp_path, monkeypatch):
    dataset = catalog(tmp_path, {0: photo("red"), 1: photo("blue")})
    first = read_photos(run_of(dataset, tmp_path / "cache"))

    def no_session(*_: object, **__: object) -> None:
        pytest.fail("read again")

    with monkeypatch.context() as patched:
        patched.setattr(stage, "ImageSession", no_session)
        same = read_photos(run_of(catalog(tmp_path, {0: photo("red"), 1: photo("blue")}), tmp_path / "cache"))
    np.testing.assert_array_equal(same.features, first.features)
    other = read_photos(run_of(catalog(tmp_path, {0: photo("red"), 1: photo("green")}), tmp_path / "cache"))
    assert np.abs(other.features[1] - first.features[1]).max() > 0.01


def test_an_interrupted_reading_goes_on_after_its_last_part(tmp_path, monkeypatch):
    monkeypatch.setattr(parts, "ITEMS_PER_PART", 2)
    dataset = catalog(tmp_path, {item: photo(color) for item, color in enumerate(COLORS)})
    expected = read_photos(run_of(dataset, tmp_path / "whole"))
    read: list[int] = []

    def interrupted(dataset: Dataset, item: int) -> object:
        if item == 3:
            raise KeyboardInterrupt
        return kept_of(dataset, item)

    kept_of = stage.kept_of
    monkeypatch.setattr(stage, "kept_of", interrupted)
    with pytest.raises(KeyboardInterrupt):
        read_photos(run_of(dataset, tmp_path / "cache"))

    def counted(dataset: Dataset, item: int) -> object:
        read.append(item)
        return kept_of(dataset, item)

    monkeypatch.setattr(stage, "kept_of", counted)
    found = read_photos(run_of(dataset, tmp_path / "cache"))
    assert read == [2, 3, 4]
    np.testing.assert_array_equal(found.features, expected.features)
    assert not list((tmp_path / "cache").glob("*.parts"))
