"""int8 recommenders: the gate accepts equal quality only, and folding weights does not change the answers."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from model_export.bundle.precision import agreement, fold_transposes


def pages(*rows):
    return np.array(rows, dtype=np.int32)


def test_equal_pages_agree_fully():
    found = agreement(pages([1, 2, 3], [4, 5, 6]), pages([3, 2, 1], [4, 5, 6]), np.array([2, 9]))
    assert (found.overlap_at_10, found.recall_at_10, found.recall_at_10_float32) == (1.0, 0.5, 0.5)
    assert found.standard_error == 0
    assert found.holds


def test_places_without_an_item_do_not_count():
    found = agreement(pages([1, 2, -1]), pages([2, 1, -1]), np.array([7]))
    assert found.overlap_at_10 == 1.0


@pytest.mark.parametrize(
    ("lost", "holds"),
    [(0, True), (1, True), (30, False)],  # one user of a hundred is noise, and thirty are not
)
def test_hits_lost_beyond_noise_are_refused(lost, holds):
    float32 = np.tile(np.arange(10, dtype=np.int32), (100, 1))
    ours = float32.copy()
    ours[:lost, 0] = 99  # the target is gone, and the rest of the page is unchanged
    found = agreement(ours, float32, np.zeros(100, dtype=np.int32))
    assert found.overlap_at_10 > 0.9
    assert found.holds is holds


def test_different_pages_are_refused_even_if_they_are_good():
    float32 = np.tile(np.arange(10, dtype=np.int32), (50, 1))
    found = agreement(float32 + 5, float32, np.full(50, 12, dtype=np.int32))
    assert found.recall_at_10 > found.recall_at_10_float32
    assert not found.holds


def test_a_folded_transpose_is_the_same_graph():
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    nodes = [
        helper.make_node("Transpose", ["w"], ["wt"], perm=[1, 0]),
        helper.make_node("MatMul", ["x", "wt"], ["y"]),
    ]
    x, y = (
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", k]) for n, k in (("x", 2), ("y", 3))
    )
    graph = helper.make_graph(nodes, "g", [x], [y], [numpy_helper.from_array(weight, "w")])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    run = onnx.reference.ReferenceEvaluator
    feeds = {"x": np.ones((4, 2), dtype=np.float32)}
    (before,) = run(model).run(None, feeds)
    fold_transposes(model)
    (after,) = run(model).run(None, feeds)
    np.testing.assert_array_equal(before, after)
    assert [node.op_type for node in model.graph.node] == ["MatMul"]
    assert [each.name for each in model.graph.initializer] == ["wt"]
