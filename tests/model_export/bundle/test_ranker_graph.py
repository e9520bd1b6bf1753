"""The ranker graph against its model in torch."""

import pytest
import torch

from model_export.bundle.ranker import check_ranker, export_ranker
from model_export.ranker_config import RankerConfig
from model_export.rankers.served import ServedRanker
from service.core.graphs import ranker_graph
from service.core.sid import SidSpec
from service.errors import ContractMismatch

pytestmark = pytest.mark.slow  # each test exports a graph
SPEC = SidSpec(levels=(5, 3, 7))


def make(aggregation: str, parameterization: str = "prefix") -> ServedRanker:
    torch.manual_seed(0)
    config = RankerConfig(
        parameterization=parameterization, aggregation=aggregation, width=8, hidden_dim=8, history_length=6
    )
    return ServedRanker(config, SPEC, num_rows=40, mean_popularity=3.0).eval()


@pytest.mark.parametrize(
    ("aggregation", "parameterization"),
    [("pooling", "prefix"), ("transformer", "all-ngrams"), ("bypass", "all-bigrams")],
)
def test_the_graph_scores_as_the_model_at_sizes_that_it_was_not_traced_with(
    tmp_path, aggregation, parameterization
):
    ranker = make(aggregation, parameterization)
    path = tmp_path / "ranker.onnx"
    assert export_ranker(path, ranker, history_length=10) == ranker_graph(SPEC)
    found = check_ranker(path, ranker, history_length=10, seed=0)
    assert found["max_ranker_difference"] < 1e-4


def test_a_graph_of_other_weights_is_refused(tmp_path):
    ranker = make("bypass")
    path = tmp_path / "ranker.onnx"
    export_ranker(path, ranker, history_length=6)
    with torch.no_grad():
        ranker.ranker.top[2].bias += 0.5
    with pytest.raises(ContractMismatch, match="scores differ by 0.5"):
        check_ranker(path, ranker, history_length=6, seed=0)


def test_equal_weights_give_equal_files(tmp_path):
    for name in ("a", "b"):
        export_ranker(tmp_path / name, make("pooling"), history_length=6)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
