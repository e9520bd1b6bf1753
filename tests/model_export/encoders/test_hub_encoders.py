"""The hub encoders, tested with tiny checkpoints of the real classes. The real ones are far too large."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from model_export.bundle.tokenizer import TokenizerParts, check_tokenizer, export_tokenizer
from model_export.configs import RUNS, HeadConfig, HubEncoderConfig
from model_export.encoders.base import Reading
from model_export.encoders.choose import make_encoder
from model_export.encoders.head import ItemHead
from model_export.encoders.hub.base import HubEncoder, load_processor
from model_export.encoders.hub.deepseek_ocr2 import DeepseekOcr2, load_vision_model
from model_export.encoders.hub.donut import Donut
from model_export.encoders.hub.mean_pooling import MeanPooling
from model_export.encoders.hub.pixels import Geometry, Pixels, resize_matrix
from model_export.encoders.hub.trocr import TrOcr
from service.core.bundle import RenderSpec
from service.core.render import render_text
from service.core.sid import SidSpec
from service.errors import GlyphrecError
from service.inference.runtime import TokenizerInput
from tests.model_export.encoders.hub_checkpoints import (
    save_deepseek_ocr2,
    save_donut,
    save_trocr,
    save_trocr_deit,
)

PAGE = RenderSpec(height_px=32, width_px=48, lines_per_strip=4, max_strips=3)
TEXT = "steel copper brass drill bolt nut wire tape glue paint brush 12 mm 3/4 inch 100 count black white"
WORDS = TEXT.split()
LEVELS = 2.0  # of 255. Pillow rounds after each resize; we round once after the last
CLOSE = 0.03  # relative to the largest number: the error of float16 and of those levels
VECTOR_DIM = 8


class Kind(NamedTuple):
    name: str
    encoder: type[HubEncoder]
    save: Callable[[Path], nn.Module]
    num_special: int  # tokens that belong to no patch of the picture


DONUT = Kind("donut", Donut, save_donut, 0)
TROCR = Kind("trocr", TrOcr, save_trocr, 1)
DEEPSEEK = Kind("deepseek-ocr-2", DeepseekOcr2, save_deepseek_ocr2, 0)


class Case(NamedTuple):
    kind: Kind
    folder: Path
    model: nn.Module  # the encoder that was saved
    processor: Any
    encoder: HubEncoder
    items: list[np.ndarray]
    reading: Reading
    body: onnx.ModelProto


class Nearest(nn.Module):
    """A quantizer of one level: the code is the codeword with the largest inner product."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(8, VECTOR_DIM))

    def encode(self, vectors: Tensor) -> Tensor:
        return (vectors @ self.codebook.T).argmax(dim=-1, keepdim=True)  # [item, 1]


def encoder_of(kind: Kind, folder: Path | str, render: RenderSpec = PAGE) -> HubEncoder:
    return kind.encoder(render, HubEncoderConfig(kind=kind.name, checkpoint=str(folder)))


def picture(strip: np.ndarray) -> Image.Image:
    return Image.fromarray(strip).convert("RGB")


@pytest.fixture(scope="module", params=[DONUT, TROCR, DEEPSEEK], ids=lambda kind: kind.name)
def case(request, tmp_path_factory) -> Case:
    folder = tmp_path_factory.mktemp(request.param.name)
    model = request.param.save(folder)
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, rng.integers(1, 40))) for _ in range(7)]
    items = [render_text(text, PAGE).strips for text in texts]
    encoder = encoder_of(request.param, folder)
    reading, body = encoder.read(items), encoder.body()
    return Case(request.param, folder, model, load_processor(str(folder)), encoder, items, reading, body)


def views_by_hand(encoder: HubEncoder, processor: Any, strip: np.ndarray) -> list[Tensor]:
    """The image processor's pictures [picture, 3, height, width] of one strip, for each view."""
    found = processor(picture(strip), return_tensors="pt")
    return [found[name] for name in encoder.reader.names]


@torch.no_grad()
def frame_by_hand(model: nn.Module, views: list[Tensor], num_special: int) -> Tensor:
    """The mean of the saved model's tokens over a strip's pictures -> [dim]."""
    tokens = [model(pixel_values=view).last_hidden_state[:, num_special:].flatten(0, 1) for view in views]
    return torch.cat(tokens).mean(dim=0)


def test_pictures_equal_those_of_the_checkpoints_own_image_processor(case):
    strips = np.concatenate(case.items)
    ours = case.encoder.reader.views_of(torch.from_numpy(strips))
    one_level = 1 / 255 / torch.tensor(case.processor.image_std)[:, None, None]
    for place, strip in enumerate(strips):
        for pictures, expected in zip(ours, views_by_hand(case.encoder, case.processor, strip), strict=True):
            assert ((pictures[place] - expected) / one_level).abs().max() <= LEVELS


def test_a_frame_is_the_mean_of_the_checkpoints_tokens_for_a_strip(case):
    assert case.reading.first_frame.tolist() == np.cumsum([0, *map(len, case.items)]).tolist()
    for strip, frame in zip(np.concatenate(case.items), case.reading.frames, strict=True):
        views = views_by_hand(case.encoder, case.processor, strip)
        expected = frame_by_hand(case.model, views, case.kind.num_special)
        np.testing.assert_allclose(frame, expected, atol=CLOSE * expected.abs().max().item())


def test_different_texts_have_different_frames(case):
    frames = case.reading.frames.astype(np.float32)
    assert np.abs(frames[0] - frames[-1]).max() > 0.01 * np.abs(frames).max()


@pytest.mark.parametrize("num_strips", [1, 2, 5])
def test_the_graph_takes_any_number_of_strips_and_equals_torch(case, num_strips):
    strips = np.concatenate(case.items)[:num_strips]
    session = onnxruntime.InferenceSession(case.body.SerializeToString(), providers=["CPUExecutionProvider"])
    frames = session.run(["frames"], {"strips": strips})[0]
    assert frames.shape == (num_strips, 1, case.reading.frames.shape[1])
    with torch.no_grad():
        expected = case.encoder.reader(torch.from_numpy(strips))
    np.testing.assert_allclose(frames, expected, atol=1e-5, rtol=1e-4)


def test_the_whole_tokenizer_is_one_graph_and_gives_the_codes_of_training(case, tmp_path):
    torch.manual_seed(0)
    pooling = case.encoder.fit(case.reading)
    config = HeadConfig(vector_dim=VECTOR_DIM, hidden_dim=8)
    head = ItemHead(feature_dim=pooling.feature_dim, config=config).eval()
    parts = TokenizerParts(case.body, pooling, head, Nearest())
    path = tmp_path / "tokenizer.onnx"
    graph = export_tokenizer(path, parts, sid=SidSpec(levels=(8,)), render=PAGE)
    items = [TokenizerInput(strips) for strips in case.items]
    assert check_tokenizer(path, parts, graph=graph, items=items) < 1e-4
    assert {entry.domain for entry in onnx.load(path).opset_import} == {""}


def test_an_interrupted_reading_continues_from_its_parts(case, tmp_path):
    case.encoder.read(case.items, tmp_path)
    (part,) = tmp_path.iterdir()
    known = Reading.load(part)
    Reading(known.frames + 1, known.first_frame, known.gate).save(part)
    resumed = case.encoder.read(case.items, tmp_path)
    np.testing.assert_array_equal(resumed.frames, known.frames + 1)


def test_deepseek_reads_a_large_strip_as_a_whole_and_in_tiles(tmp_path):
    model = save_deepseek_ocr2(tmp_path, tile_size=12)
    encoder, processor = encoder_of(DEEPSEEK, tmp_path), load_processor(str(tmp_path))
    strips = render_text(TEXT * 3, PAGE).strips
    assert [len(view) for view in encoder.reader.views] == [6, 1]
    for strip, frame in zip(strips, encoder.read([strips]).frames, strict=True):
        expected = frame_by_hand(model, views_by_hand(encoder, processor, strip), 0)
        np.testing.assert_allclose(frame, expected, atol=CLOSE * expected.abs().max().item())


def test_deepseek_reads_no_tiles_if_its_image_processor_cuts_none(tmp_path):
    save_deepseek_ocr2(tmp_path, tile_size=12)
    processor = load_processor(str(tmp_path))
    processor.crop_to_patches = False
    processor.save_pretrained(tmp_path)
    assert [len(view) for view in encoder_of(DEEPSEEK, tmp_path).reader.views] == [1]


def test_a_trocr_with_a_deit_encoder_skips_both_special_tokens(tmp_path):
    model = save_trocr_deit(tmp_path)
    encoder, processor = encoder_of(TROCR, tmp_path), load_processor(str(tmp_path))
    strip = render_text("steel bolt", PAGE).strips[0]
    expected = frame_by_hand(model, views_by_hand(encoder, processor, strip), 2)
    frame = encoder.read([strip[None]]).frames[0]
    np.testing.assert_allclose(frame, expected, atol=CLOSE * expected.abs().max().item())


@pytest.mark.parametrize("kind", [DONUT, DEEPSEEK], ids=lambda kind: kind.name)
def test_an_encoder_saved_alone_equals_the_encoder_of_the_whole_checkpoint(tmp_path, kind):
    encoder = kind.save(tmp_path / "whole")
    encoder.save_pretrained(tmp_path / "alone")
    load_processor(str(tmp_path / "whole")).save_pretrained(tmp_path / "alone")
    strips = torch.from_numpy(render_text("steel bolt", PAGE).strips)
    with torch.no_grad():
        whole, alone = (encoder_of(kind, tmp_path / name).reader(strips) for name in ("whole", "alone"))
    torch.testing.assert_close(whole, alone)


def test_deepseeks_encoder_loads_without_its_language_model(tmp_path):
    model = save_deepseek_ocr2(tmp_path)
    loaded = load_vision_model(str(tmp_path)).state_dict()
    assert all(torch.equal(loaded[name], weights) for name, weights in model.state_dict().items())


@pytest.mark.parametrize(
    ("checkpoint", "match"),
    [
        ("no/such-model", "no such folder, and the model hub gave no checkpoint of this name .* Download it"),
        ("{folder}", "holds an encoder of type 'vit', but we need donut-swin"),
        ("{folder}/empty", "config.json: not found.*Copy all of it"),
    ],
)
def test_a_checkpoint_that_cannot_be_used_is_refused_with_a_remedy(tmp_path, checkpoint, match):
    save_trocr(tmp_path)
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/preprocessor_config.json").write_text(
        (tmp_path / "preprocessor_config.json").read_text()
    )
    with pytest.raises(GlyphrecError, match=match):
        _ = encoder_of(DONUT, checkpoint.format(folder=tmp_path)).reader


def test_a_checkpoint_without_its_image_processor_or_with_weights_missing_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    save_trocr(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    del weights["encoder.layernorm.bias"]
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(GlyphrecError, match="1 weights of ViTModel are missing, layernorm.bias among them"):
        _ = encoder_of(TROCR, tmp_path).reader
    (tmp_path / "preprocessor_config.json").unlink()
    with pytest.raises(GlyphrecError, match="preprocessor_config.json: not found"):
        _ = encoder_of(TROCR, tmp_path).reader


def test_an_image_processor_with_a_step_that_we_do_not_know_is_refused(tmp_path):
    save_donut(tmp_path)
    processor = load_processor(str(tmp_path))
    processor.do_align_long_axis = True  # it rotates wide pictures
    processor.save_pretrained(tmp_path)
    with pytest.raises(GlyphrecError, match="give different pictures .* a step that glyphrec does not know"):
        _ = encoder_of(DONUT, tmp_path).reader


def test_donut_refuses_strips_that_exceed_its_page(tmp_path):
    save_donut(tmp_path)
    processor = load_processor(str(tmp_path))
    processor.do_thumbnail = False
    processor.save_pretrained(tmp_path)
    with pytest.raises(GlyphrecError, match="become 48 x 72, which exceeds Donut's page of 64 x 48"):
        _ = encoder_of(DONUT, tmp_path).reader


@pytest.mark.parametrize("resample", list(Image.Resampling), ids=lambda resample: resample.name)
@pytest.mark.parametrize(("height", "width"), [(7, 90), (31, 11)])
def test_a_resize_by_matrices_equals_pillows_resize(resample, height, width):
    before = np.random.default_rng(0).integers(0, 256, (16, 40), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(before).resize((width, height), resample))
    processor = load_plain_processor()
    pixels = Pixels(Geometry.of(16, 40).resize(height, width, resample), processor)
    found = pixels(torch.from_numpy(before)[None])[0, 0].numpy()
    assert np.abs(found - expected).max() <= 1
    assert (found == expected).mean() > 0.9


def load_plain_processor() -> Any:
    from transformers import ViTImageProcessorPil

    return ViTImageProcessorPil(do_rescale=False, do_normalize=False)


def test_a_constant_line_stays_constant_through_every_filter():
    for resample in Image.Resampling:
        np.testing.assert_allclose(resize_matrix(10, 7, resample).sum(axis=0), 1.0, atol=1e-6)


def test_mean_pooling_of_known_frames_has_a_known_answer():
    frames = np.array([[3, 0], [0, 3], [0, 5], [-2, 0], [-4, 0]], np.float16)
    reading = Reading(frames, np.array([0, 2, 3, 5]), np.array([0, 0, 1], np.float32))
    half = np.sqrt(0.5)
    units = np.array([[half, half], [0, 1], [-1, 0]])
    expected = (units - units.mean(axis=0)) / units.std(axis=0)
    pooling = MeanPooling.fit(reading)
    np.testing.assert_allclose(pooling.pool(reading), expected, atol=1e-6)
    strips, first_strip = torch.zeros(5, 2, 2, dtype=torch.uint8), torch.tensor([0, 2, 3])
    together = pooling(strips, torch.from_numpy(frames.astype(np.float32))[:, None], first_strip)
    np.testing.assert_allclose(together, expected, atol=1e-6)


def test_features_are_finite_for_a_constant_dimension_and_an_empty_frame():
    frames = np.array([[0, 0, 0], [1, 2, 0], [1, -2, 0]], np.float16)
    reading = Reading(frames, np.arange(4), np.array([0, 0, 0, 1], np.float32))
    features = MeanPooling.fit(reading).pool(reading)
    assert np.isfinite(features).all()
    assert (features[:, 2] == 0).all()


@pytest.mark.parametrize(
    ("name", "save"),
    [
        ("donut-base", save_donut),
        ("trocr-base", save_trocr),
        ("deepseek-ocr-2-base", partial(save_deepseek_ocr2, tile_size=768)),
    ],
)
def test_the_recipe_of_a_named_run_suits_its_encoder(name, save, tmp_path):
    """The checkpoint is a tiny one of the same class."""
    config = RUNS[name]()
    save(tmp_path)
    encoder = make_encoder(config.render, replace(config.encoder, checkpoint=str(tmp_path)), seed=0)
    items = [render_text(text, config.render).strips for text in (TEXT, "M3 x 1/2 in")]
    reading = encoder.read(items)
    assert reading.num_items == 2
    assert np.isfinite(reading.frames).all()
