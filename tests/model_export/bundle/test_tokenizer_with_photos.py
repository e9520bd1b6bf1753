"""The tokenizer graph that reads texts and photos: it equals PyTorch, whoever has a photo and whoever not."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from model_export.bundle.tokenizer import TokenizerParts, check_tokenizer, export_tokenizer
from model_export.bundle.tokenizer_id import tokenizer_id
from model_export.configs import HeadConfig, ReadableConfig, RqKMeansConfig
from model_export.encoders.fusion import Fusion, make_head
from model_export.encoders.images.base import ImageEncoder, image_body
from model_export.onnx_graphs import to_onnx
from model_export.picture_configs import PicturesConfig
from model_export.quantizers.choose import train_quantizer
from model_export.quantizers.readable import with_first_codes
from service.core.bundle import PictureSpec
from service.core.graphs import tokenizer_graph
from service.core.render import render_text
from service.core.sid import SidSpec
from service.errors import ContractMismatch
from service.inference.runtime import Tokenizer, TokenizerInput
from tests.model_export.probe_inputs import RECIPE, Codewords, Columns, SumOfFrames

SID = SidSpec(levels=(6, 6))
PHOTOS = PictureSpec(size_px=32)
CONFIG = PicturesConfig(size_px=PHOTOS.size_px, photo_dim=5)


class Looks(ImageEncoder):
    """A small convolution with fixed weights."""

    feature_dim, size_px = 10, PHOTOS.size_px

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.look = nn.Sequential(nn.Conv2d(3, self.feature_dim, 5, 4), nn.BatchNorm2d(self.feature_dim))

    def forward(self, photos: Tensor) -> Tensor:
        pixels = photos.permute(0, 3, 1, 2).to(torch.float32) / 255
        return self.look(pixels).relu().mean(dim=(2, 3))

    @classmethod
    def files(cls, checkpoint: str) -> list:  # noqa: ARG003
        return []


def parts_with_photos() -> TokenizerParts:
    torch.manual_seed(0)
    encoder = Looks().eval()
    rng = np.random.default_rng(1)
    body = to_onnx(
        Columns(),
        (torch.zeros(3, RECIPE.height_px, RECIPE.width_px, dtype=torch.uint8),),
        inputs=["strips"],
        outputs=["frames"],
        dynamic_shapes=({0: torch.export.Dim("strip")},),
    )
    fusion = Fusion(text_dim=SumOfFrames.feature_dim, dim=Looks.feature_dim, config=CONFIG)
    with torch.no_grad():
        fusion.fit(encoder(torch.from_numpy(np.stack([photo(rng) for _ in range(20)]))).numpy())
    head = make_head(fusion, HeadConfig(vector_dim=8, hidden_dim=16), CONFIG).eval()
    for parameter in head.parameters():
        parameter.data = torch.from_numpy(rng.normal(scale=0.3, size=parameter.shape).astype(np.float32))
    return TokenizerParts(body, SumOfFrames(), head, Codewords(), image_body(encoder), fusion)


def photo(rng: np.random.Generator) -> np.ndarray:
    return rng.integers(0, 256, (PHOTOS.size_px, PHOTOS.size_px, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    parts = parts_with_photos()
    path = tmp_path_factory.mktemp("photos") / "tokenizer.onnx"
    graph = export_tokenizer(path, parts, sid=SID, render=RECIPE, pictures=PHOTOS)
    rng = np.random.default_rng(2)
    items = [
        TokenizerInput(render_text(f"Item {n} " * (1 + n), RECIPE).strips, photo(rng) if n % 3 else None)
        for n in range(8)
    ]
    blank = render_text("", RECIPE).strips
    return path, parts, graph, [*items, TokenizerInput(blank, photo(rng)), TokenizerInput(blank, None)]


def test_the_graph_has_the_tensors_of_the_contract(case):
    *_, graph, _ = case
    expected = tokenizer_graph(
        SID, height=RECIPE.height_px, width=RECIPE.width_px, vector_dim=8, picture_px=PHOTOS.size_px
    )
    assert graph == expected


def test_the_graph_agrees_with_the_model_for_batches_and_single_items(case):
    path, parts, graph, items = case
    assert check_tokenizer(path, parts, graph=graph, items=items) < 1e-4


def test_a_batch_without_any_photo_agrees_too(case):
    path, parts, graph, items = case
    assert (
        check_tokenizer(path, parts, graph=graph, items=[item for item in items if item.picture is None])
        < 1e-4
    )


def test_codes_do_not_depend_on_the_batch(case):
    path, _, graph, items = case
    tokenizer = Tokenizer(path, graph, threads=1)
    alone = np.concatenate([tokenizer.run([item]).codes for item in items])
    for order in (range(len(items)), reversed(range(len(items))), [3, 0, 3, 9]):
        chosen = list(order)
        assert tokenizer.run([items[place] for place in chosen]).codes.tolist() == alone[chosen].tolist()


def test_a_photo_has_a_say(case):
    path, _, graph, items = case
    tokenizer = Tokenizer(path, graph, threads=1)
    other = photo(np.random.default_rng(9))
    before, after = (tokenizer.run([each]).vectors for each in (items[1], items[1]._replace(picture=other)))
    assert np.abs(before - after).max() > 1e-3


def test_a_graph_of_another_fusion_is_noticed(case):
    path, parts, graph, items = case
    other = Fusion(
        text_dim=SumOfFrames.feature_dim, dim=Looks.feature_dim, config=replace(CONFIG, weight=9.0)
    )
    other.load_state_dict(parts.fusion.state_dict())
    with pytest.raises(ContractMismatch, match="codes than in PyTorch"):
        check_tokenizer(path, replace(parts, fusion=other), graph=graph, items=items)


def test_how_photos_are_read_is_a_part_of_the_tokenizers_id(case):
    path = case[0]
    ids = {tokenizer_id(path, RECIPE, spec) for spec in (None, PHOTOS, PictureSpec(size_px=48))}
    assert len(ids) == 3
    assert tokenizer_id(path, RECIPE, PHOTOS) in ids


def test_how_a_unit_is_drawn_is_a_part_of_the_tokenizers_id(case, monkeypatch):
    spec = PictureSpec(size_px=512, shows="unit")
    before = tokenizer_id(case[0], RECIPE, spec)
    monkeypatch.setattr("service.core.unit.PADDING_PX", 20)
    assert tokenizer_id(case[0], RECIPE, spec) != before


def test_readable_codes_take_the_first_code_beside_texts_and_photos(case, tmp_path):
    _, plain, _, items = case
    rng = np.random.default_rng(5)
    vectors = rng.normal(size=(60, 8)).astype(np.float32)
    spec = SidSpec(levels=(3, 4, 4))
    quantizer, _ = train_quantizer(
        with_first_codes(vectors, np.arange(60) % 3), spec, ReadableConfig(RqKMeansConfig()), seed=0,
        progress=False,
    )  # fmt: skip
    parts = replace(plain, quantizer=quantizer, num_fields=1)
    path = tmp_path / "tokenizer.onnx"
    graph = export_tokenizer(path, parts, sid=spec, render=RECIPE, pictures=PHOTOS)
    assert [each.name for each in graph.inputs][-1] == "fields"
    with_fields = [each._replace(fields=np.array([n % 3])) for n, each in enumerate(items)]
    assert check_tokenizer(path, parts, graph=graph, items=with_fields) < 1e-4
    codes = Tokenizer(path, graph, threads=1).run(with_fields).codes
    assert codes[:, 0].tolist() == [n % 3 for n in range(len(items))]
    other = replace(parts, quantizer=train_quantizer(
        with_first_codes(vectors[::-1].copy(), np.arange(60) % 3), spec, ReadableConfig(RqKMeansConfig()),
        seed=1, progress=False,
    )[0])  # fmt: skip
    with pytest.raises(ContractMismatch, match="have other codes than in PyTorch"):
        check_tokenizer(path, other, graph=graph, items=with_fields)
