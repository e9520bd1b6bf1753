"""The joint space in a bundle: the vectors of texts and photos, and the space in a file."""

import numpy as np
import pytest
import torch

from model_export.bundle.tokenizer import TokenizerParts, check_tokenizer, export_tokenizer
from model_export.configs import CompactConfig, HeadConfig
from model_export.encoders.compact.reader import CompactReader
from model_export.encoders.fusion import Fusion, make_head
from model_export.encoders.images.base import image_body
from model_export.encoders.images.efficientnet_lite0 import FEATURE_DIM, EfficientNetLite0
from model_export.picture_configs import JointPicturesConfig, SpaceConfig
from model_export.vl_clip.joined import PHOTO_WEIGHT, JointVectors
from model_export.vl_clip.joint_space import JointSpace, Projection, Projections
from model_export.vl_clip.photo_reader import PhotoReader
from model_export.vl_clip.stored_space import SPACE, load_space, save_space
from service.core.bundle import PictureSpec, RenderSpec
from service.core.pictures import on_square
from service.core.render import render_text
from service.core.sid import SidSpec
from service.errors import GlyphrecError
from service.inference.runtime import Tokenizer, TokenizerInput
from tests.model_export.probe_inputs import Codewords
from tests.model_export.vl_clip.shop import COLORS, SHAPES, draw

SIZE_PX = 64
CONFIG = SpaceConfig(dim=8, hidden_dim=16, size_px=SIZE_PX)
RENDER = RenderSpec(max_strips=2)
TEXTS = [f"{color} {shape}, {len(color)} in a pack" for color in COLORS for shape in SHAPES]
PHOTOS = [on_square(draw(color, "box"), SIZE_PX) for color in COLORS]


@pytest.fixture(scope="module")
def space() -> JointSpace:
    reader = CompactReader(RENDER, CompactConfig(num_grams=256, feature_dim=12), 0)
    pooling = reader.fit(reader.read([render_text(text, RENDER).strips for text in TEXTS]))
    torch.manual_seed(0)
    sides = [Projection(dim, CONFIG).eval() for dim in (pooling.feature_dim, PhotoReader.feature_dim)]
    return JointSpace(Projections(sides[0], sides[1], (0.5, 0.75)), pooling, CONFIG, RENDER)


@pytest.fixture(scope="module")
def parts(space) -> TokenizerParts:
    pictures = JointPicturesConfig(size_px=SIZE_PX, photo_dim=6, space=CONFIG)
    fusion = Fusion(text_dim=space.pooling.feature_dim, dim=FEATURE_DIM, config=pictures)
    with torch.no_grad():
        fusion.fit(EfficientNetLite0(SIZE_PX)(torch.from_numpy(np.stack(PHOTOS))).numpy())
    head = make_head(fusion, HeadConfig(vector_dim=8, hidden_dim=16), pictures).eval()
    return TokenizerParts(
        CompactReader(RENDER, CompactConfig(), 0).body(),
        space.pooling,
        head,
        Codewords(),
        image_body(PhotoReader(SIZE_PX)),
        fusion,
        joint=JointVectors(space.pooling, space.projections).eval(),
    )


@pytest.fixture(scope="module")
def tokenizer(parts, tmp_path_factory) -> Tokenizer:
    path = tmp_path_factory.mktemp("joined") / "tokenizer.onnx"
    sid = SidSpec(levels=(6, 6))
    graph = export_tokenizer(path, parts, sid=sid, render=RENDER, pictures=PictureSpec(size_px=SIZE_PX))
    items = [item_of(TEXTS[0], PHOTOS[0]), item_of(TEXTS[1]), item_of("", PHOTOS[1]), item_of("")]
    assert check_tokenizer(path, parts, graph=graph, items=items) < 1e-3
    assert graph.outputs[-1].shape == ("item", CONFIG.dim)
    return Tokenizer(path, graph, threads=1)


def item_of(text: str, photo: np.ndarray | None = None) -> TokenizerInput:
    return TokenizerInput(render_text(text, RENDER).strips, photo)


@pytest.mark.slow
def test_the_graph_gives_a_text_and_a_photo_the_vectors_of_the_space(tokenizer, space):
    found = tokenizer.run([*(item_of(text) for text in TEXTS[:4]), item_of("", PHOTOS[2])]).vectors
    np.testing.assert_allclose(found[:4], space.texts(TEXTS[:4]), atol=1e-3)
    with torch.no_grad():
        features = PhotoReader(SIZE_PX)(torch.from_numpy(np.stack([PHOTOS[2]]))).numpy()
    np.testing.assert_allclose(found[4:], space.projections.photo.vectors(features), atol=1e-3)


@pytest.mark.slow
def test_an_item_with_both_lies_between_its_text_and_its_photo_and_one_with_neither_is_zero(tokenizer):
    text, photo, both, neither = tokenizer.run(
        [item_of(TEXTS[3]), item_of("", PHOTOS[3]), item_of(TEXTS[3], PHOTOS[3]), item_of("")]
    ).vectors
    between = text + PHOTO_WEIGHT * photo
    np.testing.assert_allclose(both, between / np.linalg.norm(between), atol=1e-3)
    assert not neither.any()


@pytest.mark.slow
def test_codes_are_those_of_the_photos_usual_features(tokenizer, parts):
    items = [item_of(TEXTS[n], PHOTOS[n]) for n in range(4)]
    with torch.no_grad():
        usual = EfficientNetLite0(SIZE_PX)(torch.from_numpy(np.stack(PHOTOS[:4])))
        reading = CompactReader(RENDER, CompactConfig(), 0).read([item.strips for item in items])
        fused = parts.fusion(torch.from_numpy(parts.pooling.pool(reading)), usual, torch.arange(4))
        expected = parts.quantizer.encode(parts.head(fused))
    assert tokenizer.run(items).codes.tolist() == expected.tolist()


@pytest.mark.slow
def test_a_vector_does_not_depend_on_the_other_items(tokenizer):
    items = [item_of(TEXTS[0], PHOTOS[0]), item_of(TEXTS[1]), item_of("", PHOTOS[1])]
    together = tokenizer.run(items).vectors
    alone = np.concatenate([tokenizer.run([item]).vectors for item in items])
    np.testing.assert_allclose(together, alone, atol=1e-4)


def test_a_stored_space_comes_back_as_it_was(space, tmp_path):
    save_space(space, tmp_path)
    found = load_space(str(tmp_path))
    assert (found.config, found.render, found.projections.curve) == (CONFIG, RENDER, (0.5, 0.75))
    np.testing.assert_array_equal(found.texts(TEXTS[:3]), space.texts(TEXTS[:3]))
    photos = np.random.default_rng(0).random((3, PhotoReader.feature_dim)).astype(np.float32)
    np.testing.assert_array_equal(
        found.projections.photo.vectors(photos), space.projections.photo.vectors(photos)
    )


def test_a_folder_without_a_space_and_a_damaged_or_older_one_are_refused(space, tmp_path):
    with pytest.raises(GlyphrecError, match="no learned space. Give a folder that `glyphrec vl-clip"):
        load_space(str(tmp_path))
    (tmp_path / SPACE).write_bytes(b"PK\x03\x04 broken")
    with pytest.raises(GlyphrecError, match="is no learned space"):
        load_space(str(tmp_path))
    save_space(space, tmp_path)
    content = torch.load(tmp_path / SPACE, weights_only=True)
    torch.save(content | {"versions": content["versions"] | {"joint_space": 0}}, tmp_path / SPACE)
    with pytest.raises(GlyphrecError, match="learned by another release"):
        load_space(str(tmp_path))
