from importlib import metadata
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

onnx = pytest.importorskip("onnx", reason="the graphs of these tests are built with the export extra")
from onnx import TensorProto, helper  # noqa: E402  after the skip

from service.core.graphs import (  # noqa: E402  after the skip
    GraphSpec,
    Neighbors,
    field_tokenizer_graph,
    ranker_graph,
    recommender_graph,
    tokenizer_graph,
)
from service.core.sid import SidSpec  # noqa: E402  after the skip
from service.core.trie import SidTrie  # noqa: E402  after the skip
from service.errors import ContractMismatch, GlyphrecError  # noqa: E402  after the skip
from service.inference import runtime  # noqa: E402  after the skip
from service.inference.runtime import (  # noqa: E402  after the skip
    RankerSession,
    RecommenderSession,
    Tokenizer,
    TokenizerInput,
)

SID = SidSpec(levels=(4, 3))
TOKENIZER = tokenizer_graph(SID, height=2, width=3, vector_dim=1)
TYPES = {
    "uint8": TensorProto.UINT8,
    "uint16": TensorProto.UINT16,
    "int32": TensorProto.INT32,
    "int64": TensorProto.INT64,
    "float32": TensorProto.FLOAT,
}


def write(path: Path, graph: GraphSpec, nodes: list, initializers: list) -> Path:
    """A graph of the promised tensors around `nodes`."""

    def values(tensors):
        return [helper.make_tensor_value_info(t.name, TYPES[t.dtype], t.shape) for t in tensors]

    body = helper.make_graph(nodes, "test", values(graph.inputs), values(graph.outputs), initializers)
    onnx.save(helper.make_model(body, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def first_pixel_tokenizer(path: Path, graph: GraphSpec = TOKENIZER) -> Path:
    """Codes are the first two pixels of an item's first strip, its vector the third."""

    def constant(name, value):
        return helper.make_tensor(name, TensorProto.INT64, np.shape(value), np.ravel(value))

    nodes = [
        helper.make_node("Gather", ["strips", "first_strip"], ["first"], axis=0),
        helper.make_node("Cast", ["first"], ["pixels"], to=TensorProto.INT64),
        helper.make_node("Gather", ["pixels", "zero"], ["row"], axis=1),
        helper.make_node("Gather", ["row", "two_pixels"], ["codes"], axis=1),
        helper.make_node("Gather", ["row", "third_pixel"], ["third"], axis=1),
        helper.make_node("Cast", ["third"], ["vector"], to=TensorProto.FLOAT),
    ]
    constants = [constant("zero", 0), constant("two_pixels", [0, 1]), constant("third_pixel", [2])]
    return write(path, graph, nodes, constants)


def strips_of(codes: tuple[int, int], num_strips: int) -> np.ndarray:
    strips = np.zeros((num_strips, 2, 3), np.uint8)
    strips[0, 0] = (*codes, 7)
    return strips


def test_a_tokenizer_gives_each_item_the_codes_of_its_own_strips(tmp_path):
    tokenizer = Tokenizer(first_pixel_tokenizer(tmp_path / "t.onnx"), TOKENIZER, threads=1)
    tokens = tokenizer.run(
        [TokenizerInput(strips_of(*each)) for each in (((1, 2), 3), ((3, 0), 1), ((2, 2), 2))]
    )
    assert tokens.codes.tolist() == [[1, 2], [3, 0], [2, 2]]
    assert tokens.vectors.tolist() == [[7.0]] * 3
    assert tokenizer.run([TokenizerInput(strips_of((3, 1), 1))]).codes.tolist() == [[3, 1]]


PHOTOS = tokenizer_graph(SID, height=2, width=3, vector_dim=1, picture_px=4)


def photo_tokenizer(path: Path) -> Path:
    """Codes are the first pixel of an item's photo and its green; [0, 1] and 9 stand for no photo."""
    none = helper.make_tensor("none", TensorProto.INT64, (1, 3), [0, 1, 9])
    constants = [
        helper.make_tensor(name, TensorProto.INT64, np.shape(value), np.ravel(value))
        for name, value in {"zero": 0, "first_two": [0, 1], "third": [2]}.items()
    ]
    nodes = [
        helper.make_node("Cast", ["pictures"], ["pixels"], to=TensorProto.INT64),
        helper.make_node("Gather", ["pixels", "zero"], ["row"], axis=1),
        helper.make_node("Gather", ["row", "zero"], ["first_pixels"], axis=1),  # [picture, 3]
        helper.make_node("Concat", ["first_pixels", "none"], ["or_none"], axis=0),
        helper.make_node("Gather", ["or_none", "picture_of"], ["of_item"], axis=0),
        helper.make_node("Gather", ["of_item", "first_two"], ["codes"], axis=1),
        helper.make_node("Gather", ["of_item", "third"], ["blue"], axis=1),
        helper.make_node("Cast", ["blue"], ["vector"], to=TensorProto.FLOAT),
    ]
    return write(path, PHOTOS, nodes, [none, *constants])


def photo_of(codes: tuple[int, int]) -> np.ndarray:
    photo = np.zeros((4, 4, 3), np.uint8)
    photo[0, 0] = (*codes, 7)
    return photo


def test_a_tokenizer_that_reads_photos_gives_each_item_the_codes_of_its_own_photo(tmp_path):
    tokenizer = Tokenizer(photo_tokenizer(tmp_path / "t.onnx"), PHOTOS, threads=1)
    strips = np.zeros((2, 2, 3), np.uint8)
    photos = [None, photo_of((3, 2)), None, photo_of((1, 0))]
    tokens = tokenizer.run([TokenizerInput(strips, photo) for photo in photos])
    assert tokens.codes.tolist() == [[0, 1], [3, 2], [0, 1], [1, 0]]
    assert tokens.vectors.tolist() == [[9.0], [7.0], [9.0], [7.0]]


def test_a_batch_without_any_photo_runs(tmp_path):
    tokenizer = Tokenizer(photo_tokenizer(tmp_path / "t.onnx"), PHOTOS, threads=1)
    assert tokenizer.reads_pictures
    strips = np.zeros((1, 2, 3), np.uint8)
    assert tokenizer.run([TokenizerInput(strips)] * 2).codes.tolist() == [[0, 1]] * 2


def test_a_photo_that_the_graph_does_not_take_is_refused(tmp_path):
    strips = np.zeros((1, 2, 3), np.uint8)
    tokenizer = Tokenizer(photo_tokenizer(tmp_path / "t.onnx"), PHOTOS, threads=1)
    with pytest.raises(ContractMismatch, match=r"is \[5, 5, 3\], but the graph takes \[4, 4, 3\]"):
        tokenizer.run([TokenizerInput(strips, np.zeros((5, 5, 3), np.uint8))])
    text_only = Tokenizer(first_pixel_tokenizer(tmp_path / "text.onnx"), TOKENIZER, threads=1)
    assert not text_only.reads_pictures
    with pytest.raises(ContractMismatch, match="the graph reads none"):
        text_only.run([TokenizerInput(strips, photo_of((0, 0)))])


FIELDS = field_tokenizer_graph(SID, 3, vector_dim=1)


def field_tokenizer(path: Path) -> Path:
    """Codes are the first two fields of an item, its vector the third."""
    constants = [
        helper.make_tensor(name, TensorProto.INT64, np.shape(value), value)
        for name, value in {"first_two": [0, 1], "third": [2]}.items()
    ]
    nodes = [
        helper.make_node("Gather", ["fields", "first_two"], ["codes"], axis=1),
        helper.make_node("Gather", ["fields", "third"], ["last"], axis=1),
        helper.make_node("Cast", ["last"], ["vector"], to=TensorProto.FLOAT),
    ]
    return write(path, FIELDS, nodes, constants)


def test_a_tokenizer_that_reads_fields_gives_each_item_the_codes_of_its_own_fields(tmp_path):
    tokenizer = Tokenizer(field_tokenizer(tmp_path / "t.onnx"), FIELDS, threads=1)
    items = [TokenizerInput.of_fields(np.array(each)) for each in ((1, 2, 7), (3, 0, 8))]
    tokens = tokenizer.run(items)
    assert tokens.codes.tolist() == [[1, 2], [3, 0]]
    assert tokens.vectors.tolist() == [[7.0], [8.0]]
    assert tokenizer.run(items[:1]).codes.tolist() == [[1, 2]]


BESIDE = tokenizer_graph(SID, height=2, width=3, vector_dim=1, num_fields=1)


def test_a_tokenizer_may_read_fields_beside_pixels(tmp_path):
    """The first code is the field, the second the second pixel."""
    constants = [
        helper.make_tensor(name, TensorProto.INT64, np.shape(value), np.ravel(value))
        for name, value in {"zero": 0, "second_pixel": [1]}.items()
    ]
    nodes = [
        helper.make_node("Gather", ["strips", "first_strip"], ["first"], axis=0),
        helper.make_node("Cast", ["first"], ["pixels"], to=TensorProto.INT64),
        helper.make_node("Gather", ["pixels", "zero"], ["row"], axis=1),
        helper.make_node("Gather", ["row", "second_pixel"], ["second"], axis=1),
        helper.make_node("Concat", ["fields", "second"], ["codes"], axis=1),
        helper.make_node("Cast", ["second"], ["vector"], to=TensorProto.FLOAT),
    ]
    tokenizer = Tokenizer(write(tmp_path / "t.onnx", BESIDE, nodes, constants), BESIDE, threads=1)
    items = [
        TokenizerInput(strips_of((0, second), num_strips), None, np.array([first]))
        for first, second, num_strips in ((3, 1, 2), (0, 2, 1))
    ]
    assert tokenizer.run(items).codes.tolist() == [[3, 1], [0, 2]]
    with pytest.raises(ContractMismatch, match="has no numbers of fields, but the graph takes 1"):
        tokenizer.run([TokenizerInput(strips_of((0, 1), 1))])


def test_fields_and_pixels_are_not_taken_for_each_other(tmp_path):
    of_fields = Tokenizer(field_tokenizer(tmp_path / "t.onnx"), FIELDS, threads=1)
    with pytest.raises(ContractMismatch, match="has no numbers of fields, but the graph takes 3"):
        of_fields.run([TokenizerInput(strips_of((1, 2), 1))])
    with pytest.raises(ContractMismatch, match="has 2 numbers of fields, but the graph takes 3"):
        of_fields.run([TokenizerInput.of_fields(np.array([1, 2]))])
    of_pixels = Tokenizer(first_pixel_tokenizer(tmp_path / "p.onnx"), TOKENIZER, threads=1)
    with pytest.raises(ContractMismatch, match="has 3 numbers of fields, but the graph takes none"):
        of_pixels.run([TokenizerInput.of_fields(np.array([1, 2, 3]))])


def summing_recommender(tmp_path):
    """Answers with the sums of its inputs, which shows that each arrived under its own name."""
    graph = recommender_graph(SID)
    nodes = [
        helper.make_node("Shape", ["history"], ["batch"], start=0, end=1),
        helper.make_node("Shape", ["beams_2"], ["beam"]),
        helper.make_node("Concat", ["batch", "beam"], ["page"], axis=0),
        helper.make_node("Concat", ["batch", "beam", "levels"], ["code_page"], axis=0),
        helper.make_node("ReduceSum", ["history", "positions"], ["history_sum"], keepdims=1),
        helper.make_node("Expand", ["history_sum", "code_page"], ["codes"]),
        helper.make_node("Cast", ["live_1"], ["uppers"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["uppers"], ["upper_sum"], keepdims=0),
        helper.make_node("Expand", ["upper_sum", "page"], ["scores"]),
        helper.make_node("Cast", ["live_2"], ["leaves"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["leaves"], ["leaf_sum"], keepdims=0),
        helper.make_node("Expand", ["leaf_sum", "batch"], ["bound"]),
    ]
    positions = helper.make_tensor("positions", TensorProto.INT64, (1,), [1])
    levels = helper.make_tensor("levels", TensorProto.INT64, (1,), [SID.num_levels])
    path = write(tmp_path / "r.onnx", graph, nodes, [positions, levels])
    return RecommenderSession(path, graph, threads=1)


def test_a_recommender_gets_history_tables_and_width_and_answers_by_name(tmp_path):
    tables = (np.array([[3]], np.uint8), np.full((4, 1), 6, np.uint8))
    beams = summing_recommender(tmp_path).run(np.array([[[1, 2], [3, 0]]]), tables, (2, 5))
    assert beams.codes.tolist() == [[[4, 2]] * 5]
    assert beams.scores.tolist() == [[3.0] * 5]
    assert beams.bound.tolist() == [24.0]


@pytest.mark.parametrize(
    ("spec", "complaint"),
    [
        (SidSpec(levels=(4, 9)), r"'live_2' is uint8 \[4, 2\]; the graph takes uint8 \[4, 1\]"),
        (SidSpec(levels=(5, 3)), r"'live_2' is uint8 \[5, 1\]; the graph takes uint8 \[4, 1\]"),
        (SidSpec(levels=(4, 3), paged=True), "3 trie tables were given; the graph takes 2: live_1, live_2"),
        (SidSpec(levels=(4, 3, 2)), "3 trie tables were given; the graph takes 2"),
    ],
)
def test_tables_of_another_spec_than_the_graphs_are_refused(tmp_path, spec, complaint):
    session = summing_recommender(tmp_path)
    with pytest.raises(ContractMismatch, match=f"{complaint}.*Build .* with the bundle's SidSpec"):
        session.run(np.zeros((1, 1, 2), np.int64), SidTrie(spec).tables, (2, 5))


def test_beam_widths_of_another_number_of_levels_are_refused(tmp_path):
    session = summing_recommender(tmp_path)
    with pytest.raises(ContractMismatch, match="3 beam widths were given.*takes 2: beams_1, beams_2"):
        session.run(np.zeros((1, 1, 2), np.int64), SidTrie(SID).tables, (2, 5, 5))


def test_a_table_of_another_type_is_refused(tmp_path):
    session = summing_recommender(tmp_path)
    tables = (np.ones((1, 1), np.int64), np.zeros((4, 1), np.uint8))
    with pytest.raises(ContractMismatch, match=r"'live_1' is int64 \[1, 1\]"):
        session.run(np.zeros((1, 1, 2), np.int64), tables, (2, 5))


RANKER = ranker_graph(SID)


def counting_ranker(path: Path) -> Path:
    """A score is the sum of a candidate's codes, its popularity, and all numbers of history and neighbors."""

    def summed(name: str, axes: str) -> list:
        return [
            helper.make_node("Cast", [name], [f"{name}_float"], to=TensorProto.FLOAT),
            helper.make_node("ReduceSum", [f"{name}_float", axes], [f"{name}_sum"], keepdims=0),
        ]

    nodes = [
        *summed("candidates", "last"),  # [batch, candidate]
        *summed("history", "last_two"),  # [batch]
        *summed("neighbors", "last"),  # [batch]
        *summed("neighbor_mass", "last"),  # [batch]
        helper.make_node("Sum", [f"{n}_sum" for n in ("history", "neighbors", "neighbor_mass")], ["alone"]),
        helper.make_node("Unsqueeze", ["alone", "last"], ["of_history"]),  # [batch, 1]
        helper.make_node("Sum", ["candidates_sum", "popularity", "of_history"], ["scores"]),
    ]
    axes = [
        helper.make_tensor("last", TensorProto.INT64, (1,), [-1]),
        helper.make_tensor("last_two", TensorProto.INT64, (2,), [-2, -1]),
    ]
    return write(path, RANKER, nodes, axes)


def test_a_ranker_gets_history_candidates_popularity_and_neighbors_by_name(tmp_path):
    session = RankerSession(counting_ranker(tmp_path / "r.onnx"), RANKER, threads=1)
    history = np.array([[[1, 2], [3, 0]], [[0, 0], [0, 1]]])  # adds up to 6 and to 1
    candidates = np.array([[[1, 1], [3, 2], [0, 0]], [[2, 2], [0, 1], [1, 0]]])
    popularity = np.array([[0.5, 0.0, 0.25], [0.0, 0.125, 0.0]], np.float32)
    neighbors = Neighbors(np.array([[100], [200]]), np.array([[1000], [2000]], np.float32))
    scores = session.run(history, candidates, popularity, neighbors)
    assert scores.tolist() == [[1108.5, 1111.0, 1106.25], [2205.0, 2202.125, 2202.0]]
    without = session.run(history, candidates, popularity)  # one place of padding, -1, without mass
    assert without.tolist() == [[7.5, 10.0, 5.25], [4.0, 1.125, 1.0]]


def test_a_ranker_takes_one_candidate_as_it_takes_many(tmp_path):
    session = RankerSession(counting_ranker(tmp_path / "r.onnx"), RANKER, threads=1)
    history = np.array([[[1, 2]]])
    candidates = np.array([[code, code % 3] for code in range(4)] * 250)[None]  # [1, 1000, 2]
    popularity = np.arange(1000, dtype=np.float32)[None]
    together = session.run(history, candidates, popularity)
    for place in (0, 7, 999):
        part = slice(place, place + 1)
        alone = session.run(history, candidates[:, part], popularity[:, part])
        assert alone.tolist() == together[:, part].tolist()


def test_a_ranker_of_another_sid_spec_is_refused(tmp_path):
    path = counting_ranker(tmp_path / "r.onnx")
    with pytest.raises(ContractMismatch, match=r"r\.onnx: input 'history'.*Export again"):
        RankerSession(path, ranker_graph(SidSpec(levels=(4, 3, 2))), threads=1)


@pytest.mark.parametrize(
    ("promised", "complaint"),
    [
        (tokenizer_graph(SID, height=2, width=4, vector_dim=1), "input 'strips'"),
        (tokenizer_graph(SID, height=2, width=3, vector_dim=2), "output 'vector'"),
        (tokenizer_graph(SidSpec(levels=(4, 3, 2)), height=2, width=3, vector_dim=1), "output 'codes'"),
        (recommender_graph(SID), "its inputs are first_strip, strips"),
    ],
)
def test_a_graph_that_is_not_as_promised_is_refused(tmp_path, promised, complaint):
    path = first_pixel_tokenizer(tmp_path / "t.onnx")
    with pytest.raises(ContractMismatch, match=f"{complaint}.*Export again"):
        Tokenizer(path, promised, threads=1)


def test_a_dimension_that_may_vary_must_not_be_fixed_in_the_graph(tmp_path):
    batch_of_two = tuple(
        tensor.model_copy(update={"shape": (2, *tensor.shape[1:])}) for tensor in TOKENIZER.outputs
    )
    path = first_pixel_tokenizer(tmp_path / "t.onnx", TOKENIZER.model_copy(update={"outputs": batch_of_two}))
    with pytest.raises(ContractMismatch, match="output 'codes'"):
        Tokenizer(path, TOKENIZER, threads=1)


@pytest.mark.parametrize("content", [b"", b"not a graph"])
def test_a_file_that_is_no_graph_is_refused(tmp_path, content):
    path = tmp_path / "t.onnx"
    path.write_bytes(content)
    with pytest.raises(ContractMismatch, match=r"t\.onnx: .*Export again"):
        Tokenizer(path, TOKENIZER, threads=1)


def test_a_provider_that_is_not_there_is_named(tmp_path):
    path = first_pixel_tokenizer(tmp_path / "t.onnx")
    with pytest.raises(GlyphrecError, match=r"has no NoSuchProvider; it has .*CPUExecutionProvider"):
        Tokenizer(path, TOKENIZER, threads=1, providers=["NoSuchProvider"])


def test_a_provider_that_cannot_start_is_told_of(tmp_path, monkeypatch, caplog):
    """The GPU wheel on a machine without a GPU: ONNX Runtime falls back to the CPU."""
    path = first_pixel_tokenizer(tmp_path / "t.onnx")
    real = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: list(runtime.PREFERRED_PROVIDERS))
    monkeypatch.setattr(
        onnxruntime, "InferenceSession", lambda *given, providers: real(*given, providers=providers[1:])
    )
    tokenizer = Tokenizer(path, TOKENIZER, threads=1)
    assert "t.onnx runs on CPUExecutionProvider: CUDAExecutionProvider could not start" in caplog.text
    assert tokenizer.run([TokenizerInput(np.zeros((1, 2, 3), np.uint8))]).codes.shape == (1, 2)


@pytest.mark.parametrize(
    ("installed", "remedy"),
    [
        ((), r"not installed. Run `pip install 'glyphrec\[cpu\]'`"),
        (("onnxruntime", "onnxruntime-gpu"), "pip uninstall -y onnxruntime onnxruntime-gpu"),
    ],
)
def test_no_runtime_or_both_is_reported_with_the_remedy(tmp_path, monkeypatch, installed, remedy):
    def version(name):
        if name in installed:
            return "1.0"
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)
    with pytest.raises(GlyphrecError, match=remedy):
        Tokenizer(first_pixel_tokenizer(tmp_path / "t.onnx"), TOKENIZER, threads=1)
    assert runtime.RUNTIMES == ("onnxruntime", "onnxruntime-gpu")
