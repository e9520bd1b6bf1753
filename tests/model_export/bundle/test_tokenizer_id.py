"""A tokenizer's id depends on its graph and on the pixels that reach it."""

import pytest

from model_export.bundle.tokenizer_id import PROBES, tokenizer_id
from service.core import render
from service.core.bundle import RenderSpec


@pytest.fixture
def graph(tmp_path):
    path = tmp_path / "tokenizer.onnx"
    path.write_bytes(b"a graph")
    return path


def test_the_same_graph_and_recipe_have_the_same_id_wherever_the_file_is(graph, tmp_path):
    copy = tmp_path / "copy.onnx"
    copy.write_bytes(graph.read_bytes())
    assert tokenizer_id(graph, RenderSpec()) == tokenizer_id(copy, RenderSpec())
    assert len(tokenizer_id(graph, RenderSpec())) == 12


def test_another_graph_or_another_recipe_is_another_tokenizer(graph, tmp_path):
    other = tmp_path / "other.onnx"
    other.write_bytes(b"another graph")
    found = {tokenizer_id(graph, RenderSpec()), tokenizer_id(other, RenderSpec())}
    for changed in ({"squeeze": 0.7}, {"max_strips": 4}, {"fields": ("title",)}):
        found.add(tokenizer_id(graph, RenderSpec(**changed)))
    assert len(found) == 5


@pytest.mark.parametrize(
    ("name", "value"),
    [("SUPERSAMPLE", 3), ("PHASES", 2), ("MARGIN_PX", 3), ("FONT_SIZE", 0.8), ("MAX_DEPTH", 0)],
)
def test_a_change_of_the_drawn_pixels_makes_another_tokenizer(graph, monkeypatch, name, value):
    before = tokenizer_id(graph, RenderSpec())
    monkeypatch.setattr(render, name, value)
    render._cached_face.cache_clear()
    try:
        assert tokenizer_id(graph, RenderSpec()) != before
    finally:
        render._cached_face.cache_clear()


def test_the_id_does_not_read_the_source_of_the_drawing(graph, monkeypatch):
    """A frozen application has no source files."""
    before = tokenizer_id(graph, RenderSpec())
    monkeypatch.setattr(render, "__file__", "/nowhere/render.py")
    monkeypatch.delattr(render, "__spec__")
    assert tokenizer_id(graph, RenderSpec()) == before


def test_the_probes_cover_the_drawing():
    spec = RenderSpec()
    drawn = [render.render_text(render.item_text(item, spec), spec) for item in PROBES]
    assert any(one.missing for one in drawn)
    assert any(one.truncated for one in drawn)
    assert any(len(one.strips) > 1 and not one.truncated for one in drawn)
    assert any((one.strips == render.WHITE).all() for one in drawn)
