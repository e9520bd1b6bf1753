"""The compact reader, tested with the weights that ship in the package."""

import sys

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from model_export.bundle.tokenizer import TokenizerParts, check_tokenizer, export_tokenizer
from model_export.configs import CompactConfig, HeadConfig, HubEncoderConfig, PpOcrConfig
from model_export.encoders import choose
from model_export.encoders.compact import reader as compact
from model_export.encoders.compact.pretrain import pretrain
from model_export.encoders.compact.reader import (
    ALPHABET,
    CompactNet,
    CompactReader,
    load_weights,
    weights_file,
)
from model_export.encoders.compact.synthetic import SyntheticStrips
from model_export.encoders.ctc import character_accuracy, spelled
from model_export.encoders.head import ItemHead
from model_export.encoders.pp_ocr import PpOcr
from service.core.bundle import RenderSpec
from service.core.render import render_text
from service.core.sid import SidSpec
from service.errors import GlyphrecError
from service.inference.runtime import TokenizerInput

SPEC = RenderSpec()
CONFIG = CompactConfig(num_grams=512, feature_dim=24)
UNSEEN_SEED = 424_242
# Each line fits on one strip. Text tokenizers split such texts into many pieces.
LINES = (
    "M3 x 1/2 in, 500 ct",
    "0.75 µm ± 5%; 250°C; 18 V / 2.4 GHz",
    "AB-1234/56-XK 7081 #0093",
    "$1,299.00 (Pack of 12) 3¾ × 10½ ft",
    "Lab & Test > Beakers > 600 mL",
    "illicit fillings, all 1lb 11oz",
)


class Nearest(nn.Module):
    """A quantizer of one level: the code is the codeword with the largest inner product."""

    def __init__(self) -> None:
        super().__init__()
        self.codebook = nn.Parameter(torch.randn(8, 8, generator=torch.Generator().manual_seed(0)))

    def encode(self, vectors: torch.Tensor) -> torch.Tensor:
        return (vectors @ self.codebook.T).argmax(dim=-1, keepdim=True)  # [item, 1]


@pytest.fixture(scope="module")
def encoder() -> CompactReader:
    return CompactReader(SPEC, CONFIG, seed=0)


@pytest.fixture(scope="module")
def body(encoder) -> onnx.ModelProto:
    return encoder.body()


@pytest.fixture(scope="module")
def network() -> CompactNet:
    return load_weights(weights_file())


@torch.no_grad()
def read_aloud(network: CompactNet, strips: np.ndarray) -> list[str]:
    letters = network.letters(network(torch.from_numpy(strips))).argmax(dim=2)  # [strip, frame]
    return [spelled(row, ALPHABET) for row in letters.numpy()]


def session(model) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])


def drawn(lines, spec: RenderSpec) -> np.ndarray:
    strips = [render_text(line, spec).strips for line in lines]
    assert {len(line) for line in strips} == {1}
    return np.concatenate(strips)


@pytest.mark.parametrize(
    ("size", "least"), [((16, 0.6), 0.995), ((24, 1.0), 0.995), ((12, 0.6), 0.99), ((8, 0.6), 0.975)]
)
def test_text_that_was_not_trained_on_is_read(network, size, least):
    batch = SyntheticStrips(UNSEEN_SEED).batch(64, SPEC.width_px, size=size)
    assert character_accuracy(batch.texts, read_aloud(network, batch.strips.numpy())) >= least


@pytest.mark.slow
def test_numerals_and_units_are_read_letter_by_letter(encoder):
    read = encoder.transcribe(drawn(LINES, SPEC))
    assert read[:-1] == list(LINES[:-1])
    # One of two equal narrow letters may be lost, because CTC needs a blank frame between them.
    assert character_accuracy(LINES[-1:], read[-1:]) >= 0.96


@pytest.mark.parametrize(("height_px", "width_px"), [(12, 162), (20, 270), (24, 325), (32, 432), (50, 700)])
def test_strips_of_other_heights_are_read(network, height_px, width_px):
    strips = drawn(LINES, RenderSpec(height_px=height_px, width_px=width_px))
    assert character_accuracy(LINES, read_aloud(network, strips)) >= 0.98


@pytest.mark.slow
@pytest.mark.parametrize("spec", [SPEC, RenderSpec(height_px=35, width_px=171)])
def test_the_graph_equals_the_network(body, network, spec):
    run = session(body if spec is SPEC else CompactReader(spec, CONFIG, seed=0).body()).run
    strips = drawn(LINES, RenderSpec(height_px=spec.height_px, width_px=800))[:, :, : spec.width_px]
    for num_strips in (1, 2, 7):
        some = np.resize(strips, (num_strips, *strips.shape[1:]))
        frames = run(["frames"], {"strips": some})[0]
        with torch.no_grad():
            expected = network(torch.from_numpy(some)).numpy()
        assert frames.shape == expected.shape
        np.testing.assert_allclose(frames, expected, atol=1e-4)


def test_the_graph_declares_the_sizes_that_the_tokenizer_needs(body):
    strips, frames = body.graph.input[0], body.graph.output[0]
    assert [size.dim_value for size in strips.type.tensor_type.shape.dim][1:] == [16, 216]
    assert [size.dim_value for size in frames.type.tensor_type.shape.dim][1:] == [108, 128]


def test_frames_do_not_depend_on_the_other_strips_of_a_batch(body):
    run, strips = session(body).run, drawn(LINES, SPEC)
    together = run(["frames"], {"strips": np.tile(strips, (3, 1, 1))})[0]
    for place, strip in enumerate(strips):
        alone = run(["frames"], {"strips": strip[None]})[0][0]
        np.testing.assert_allclose(together[place], alone, atol=1e-4)


@pytest.mark.slow
def test_the_reader_reads_a_catalog_and_the_whole_tokenizer_is_one_graph(encoder, body, tmp_path):
    texts = [f"{line}; {other}" for line in LINES for other in LINES]
    items = [render_text(text, SPEC).strips for text in texts]
    reading = encoder.read(items)
    np.testing.assert_allclose(np.diff(reading.first_frame), [len(text) for text in texts], rtol=0.15)
    pooling = encoder.fit(reading)
    assert np.isfinite(pooling.pool(reading)).all()
    config = HeadConfig(vector_dim=8, hidden_dim=16)
    head = ItemHead(feature_dim=pooling.feature_dim, config=config).eval()
    parts = TokenizerParts(body, pooling, head, Nearest())
    path = tmp_path / "tokenizer.onnx"
    graph = export_tokenizer(path, parts, sid=SidSpec(levels=(8,)), render=SPEC)
    assert check_tokenizer(path, parts, graph=graph, items=list(map(TokenizerInput, items))) < 1e-4


@pytest.mark.parametrize("kind", [CompactReader, PpOcr])
def test_pages_of_several_lines_are_refused(kind):
    with pytest.raises(GlyphrecError, match="lines_per_strip=1"):
        kind(RenderSpec(height_px=64, lines_per_strip=4), CONFIG, seed=0)


def test_the_error_for_missing_weights_has_the_command_that_trains_them(monkeypatch, tmp_path):
    monkeypatch.setattr(compact, "WEIGHTS", tmp_path / "none.npz")
    with pytest.raises(GlyphrecError, match="python -m model_export.encoders.compact.pretrain --out"):
        weights_file()


def test_every_class_has_one_letter_and_every_letter_one_class():
    assert len(set(ALPHABET)) == len(ALPHABET)
    assert set("M3 x 1/2 in, 500 ct °×½¼¾µ™®±–“”•éß") <= set(ALPHABET)


def test_equal_seeds_give_equal_strips_and_another_seed_gives_others():
    first, again, other = (SyntheticStrips(seed).batch(20, 128) for seed in (3, 3, 4))
    assert first.texts == again.texts
    assert first.texts != other.texts
    for name in ("strips", "targets", "num_letters", "frame_letters"):
        assert torch.equal(getattr(first, name), getattr(again, name))


def test_a_batch_tells_the_letter_of_each_frame():
    batch = SyntheticStrips(0).batch(40, 216, size=(24, 1.0))
    for text, letters in zip(batch.texts, batch.frame_letters, strict=True):
        spelled = "".join(ALPHABET[letter] for letter in letters if letter)
        assert character_accuracy([text], [spelled]) > 0.9


def test_training_continues_from_its_checkpoint_and_saves_weights_that_load(tmp_path):
    out = tmp_path / "reader.npz"
    tiny = {"minutes": 10.0, "seed": 0, "num_held_out": 2, "num_strips": 2}
    pretrain(out, max_steps=3, **tiny)
    first, checkpoint = load_weights(out), tmp_path / "reader.checkpoint"
    assert torch.load(checkpoint)[2]["step"] == 3
    found = pretrain(out, max_steps=5, **tiny)
    assert torch.load(checkpoint)[2]["step"] == 5
    assert set(found) == {"16px/0.6", "12px/0.6", "8px/0.6", "24px/1.0"}
    strips = torch.from_numpy(drawn(LINES, SPEC))
    with torch.no_grad():
        assert load_weights(out)(strips).shape == first(strips).shape == (len(LINES), 108, 128)


def test_the_configuration_chooses_the_encoder(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    for config, kind in ((CompactConfig(), CompactReader), (PpOcrConfig(), PpOcr)):
        assert type(choose.make_encoder(SPEC, config, 0)) is kind
        assert all(path.is_file() for path in choose.encoder_files(config))
    for name in ("donut", "trocr", "deepseek-ocr-2"):
        config = HubEncoderConfig(kind=name, checkpoint=str(tmp_path))
        encoder = choose.make_encoder(SPEC, config, 0)
        module = sys.modules[type(encoder).__module__]
        assert choose.encoder_version(config) == {module.__name__.rpartition(".")[2]: module.VERSION}
        assert choose.encoder_files(config) == [tmp_path / "model.safetensors"]
