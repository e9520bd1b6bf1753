from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn

from model_export.bundle.tokenizer import TokenizerParts, check_tokenizer, export_tokenizer
from model_export.configs import HeadConfig, PpOcrConfig
from model_export.encoders.head import train_head
from model_export.encoders.pp_ocr import PpOcr
from service.core.bundle import RenderSpec
from service.core.graphs import GraphSpec
from service.core.render import render_text
from service.core.sid import SidSpec
from service.errors import ContractMismatch
from service.inference.runtime import Tokenizer, TokenizerInput, Tokens

SPEC = RenderSpec(max_strips=2)
SID = SidSpec(levels=(8, 8))
TEXT = "steel copper brass drill bolt nut wire tape glue paint brush 12 mm 3/4 inch 100 count black white"
WORDS = TEXT.split()
VECTOR_DIM = 16


class TwoLevels(nn.Module):
    """A minimal quantizer: the nearest codeword, then the codeword nearest to the residual."""

    def __init__(self) -> None:
        super().__init__()
        self.codebooks = nn.Parameter(torch.randn(2, 8, VECTOR_DIM) / 4)

    def encode(self, vectors: Tensor) -> Tensor:
        codes = []
        for codebook in self.codebooks:
            code = (vectors[:, None] - codebook).square().sum(dim=-1).argmin(dim=-1)  # [item]
            vectors = vectors - codebook[code]
            codes.append(code)
        return torch.stack(codes, dim=-1)


class Case(NamedTuple):
    path: Path
    graph: GraphSpec
    parts: TokenizerParts
    items: list[np.ndarray]
    features: np.ndarray  # of the items, from the reading
    tokenizer: Tokenizer


def random_text(rng: np.random.Generator) -> str:
    return " ".join(rng.choice(WORDS, rng.integers(2, 16)))


@pytest.fixture(scope="module")
def case(tmp_path_factory) -> Case:
    torch.manual_seed(0)
    rng = np.random.default_rng(0)
    items = [render_text(random_text(rng), SPEC).strips for _ in range(24)]
    config = PpOcrConfig(projection_dim=8, num_words=64, word_dim=12, stats_dim=6)
    encoder = PpOcr(SPEC, config, seed=0)
    reading = encoder.read(items)
    pooling, body = encoder.fit(reading), encoder.body()
    features = pooling.pool(reading)
    sequences = [rng.integers(0, len(items), 6).astype(np.int32) for _ in range(10)]
    head_config = HeadConfig(vector_dim=VECTOR_DIM, hidden_dim=32, max_steps=20, batch_size=16)
    head, quantizer = train_head(features, sequences, head_config, seed=0), TwoLevels()
    path = tmp_path_factory.mktemp("bundle") / "tokenizer.onnx"
    parts = TokenizerParts(body, pooling, head, quantizer)
    graph = export_tokenizer(path, parts, sid=SID, render=SPEC)
    tokenizer = Tokenizer(path, graph, threads=1)
    return Case(path, graph, parts, items, features, tokenizer)


def read(case: Case, items: list[np.ndarray]) -> Tokens:
    """`items`: the strips of each."""
    return case.tokenizer.run([TokenizerInput(strips) for strips in items])


def test_the_graph_agrees_with_the_model_for_batches_and_single_items(case):
    rng = np.random.default_rng(1)
    unseen = [render_text(random_text(rng), SPEC).strips for _ in range(9)]
    inputs = [TokenizerInput(strips) for strips in unseen]
    assert check_tokenizer(case.path, case.parts, graph=case.graph, items=inputs) < 1e-4


def test_the_graph_sees_the_features_that_training_saw_and_gives_them_to_a_search(case):
    """A Reading stores float16 frames, and the graph rounds in the same way, so the features are equal."""
    tokens = read(case, case.items)
    np.testing.assert_allclose(tokens.vectors, case.features, atol=1e-4)
    expected = case.parts.quantizer.encode(torch.from_numpy(case.parts.head.vectors(case.features)))
    assert tokens.codes.tolist() == expected.tolist()


@pytest.mark.parametrize("seed", range(4))
def test_codes_do_not_depend_on_the_batch(case, seed):
    rng = np.random.default_rng(seed)
    alone = np.concatenate([read(case, [item]).codes for item in case.items])
    chosen = rng.choice(len(case.items), size=rng.integers(1, 20))
    batch = read(case, [case.items[place] for place in chosen])
    assert batch.codes.tolist() == alone[chosen].tolist()


def test_an_empty_text_has_codes_and_does_not_move_its_neighbors(case):
    blank = render_text("", SPEC).strips
    tokens = read(case, [case.items[0], blank, case.items[1], blank])
    alone = read(case, [blank])
    assert np.isfinite(tokens.vectors).all()
    assert tokens.codes[1].tolist() == tokens.codes[3].tolist() == alone.codes[0].tolist()
    np.testing.assert_allclose(tokens.vectors[[0, 2]], case.features[:2], atol=1e-4)


def test_an_item_with_more_strips_than_the_recipe_draws_is_still_one_item(case):
    long = np.concatenate(case.items[:10])
    tokens = read(case, [long])
    assert tokens.codes.shape == (1, SID.num_levels)
    assert np.isfinite(tokens.vectors).all()


def test_a_graph_of_another_model_is_noticed(case):
    other = replace(case.parts, quantizer=TwoLevels())
    items = [TokenizerInput(strips) for strips in case.items[:4]]
    with pytest.raises(ContractMismatch, match="items have other codes than in PyTorch"):
        check_tokenizer(case.path, other, graph=case.graph, items=items)


def test_the_graph_uses_no_operator_outside_the_standard(case):
    model = onnx.load(case.path)
    assert {entry.domain for entry in model.opset_import} == {""}
    assert {node.domain for node in model.graph.node} <= {"", "ai.onnx"}
