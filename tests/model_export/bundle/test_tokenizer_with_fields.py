"""The tokenizer graph that reads fields: the same in ONNX as in PyTorch, whatever the batch."""

import numpy as np
import pytest
import torch

from model_export.bundle.tokenizer import FieldParts, FieldReading, check_tokenizer, export_tokenizer
from model_export.bundle.tokenizer_id import tokenizer_id
from model_export.configs import GaoqConfig, HeadConfig
from model_export.encoders.famae import FieldTables
from model_export.encoders.head import UnchangedFeatures
from model_export.quantizers.gaoq import train_gaoq
from service.core.bundle import RenderSpec
from service.core.graphs import field_tokenizer_graph
from service.core.item_fields import Vocabulary
from service.core.sid import SidSpec
from service.errors import ContractMismatch
from service.inference.runtime import TokenizerInput

SPEC, COUNTS, WIDTH = SidSpec(levels=(4, 3, 2)), (25, 4, 1), 6


@pytest.fixture(scope="module")
def parts() -> FieldParts:
    """24 items with ids and brands of three kinds; nothing is known of the third field."""
    torch.manual_seed(0)
    tables = FieldTables(COUNTS, WIDTH)
    for table in tables.tables:
        table.data = torch.randn_like(table)
    numbers = torch.tensor([[1 + n, 1 + n % 3, 0] for n in range(24)])
    vectors = tables.vectors(numbers).detach().numpy()
    quantizer, _ = train_gaoq(vectors, SPEC, GaoqConfig(), seed=0, progress=False)
    head = UnchangedFeatures(feature_dim=len(COUNTS) * WIDTH, config=HeadConfig())
    return FieldParts(tables, head, quantizer)


@pytest.fixture(scope="module")
def written(parts, tmp_path_factory):
    path = tmp_path_factory.mktemp("graph") / "tokenizer.onnx"
    return path, export_tokenizer(path, parts, sid=SPEC, render=RenderSpec())


def items() -> list[TokenizerInput]:
    """Known items, new ones with known brands, and one of which nothing is known."""
    rows = [[3, 1, 0], [24, 3, 0], [0, 2, 0], [0, 3, 0], [0, 0, 0]]
    return [TokenizerInput.of_fields(np.array(row)) for row in rows]


def test_the_graph_computes_what_its_model_does_in_batches_and_alone(parts, written):
    path, graph = written
    assert graph == field_tokenizer_graph(SPEC, len(COUNTS), vector_dim=len(COUNTS) * WIDTH)
    assert check_tokenizer(path, parts, graph=graph, items=items()) < 1e-5


def test_a_graph_of_other_tables_is_refused(parts, written):
    path, graph = written
    other = FieldTables(COUNTS, WIDTH)
    with pytest.raises(ContractMismatch, match="vectors differ"):
        check_tokenizer(path, FieldParts(other, parts.head, parts.quantizer), graph=graph, items=items())


@torch.no_grad()
def test_an_unknown_value_is_the_mask_vector_of_its_field(parts):
    vector = FieldReading(parts).eval()(torch.tensor([[0, 2, 0]])).vector.reshape(3, WIDTH)
    for place, number in enumerate((0, 2, 0)):
        assert torch.equal(vector[place], parts.tables.tables[place][number])


def test_the_id_depends_on_the_graph_and_on_the_vocabulary(written, tmp_path):
    path, _ = written
    one = Vocabulary({"item_id": {"a": 1}, "brand": {"acme": 1}})
    known = [
        one,
        Vocabulary({"item_id": {"a": 1}, "brand": {"acme": 1, "zenith": 1}}),
        Vocabulary({"brand": {"acme": 1}, "item_id": {"a": 1}}),
    ]
    assert len({tokenizer_id(path, RenderSpec(), vocabulary=each) for each in known}) == 3
    assert tokenizer_id(path, RenderSpec(), vocabulary=one) == tokenizer_id(path, RenderSpec(), None, one)
    other = tmp_path / "other.onnx"
    other.write_bytes(path.read_bytes() + b"x")
    assert tokenizer_id(other, RenderSpec(), vocabulary=one) != tokenizer_id(
        path, RenderSpec(), vocabulary=one
    )
