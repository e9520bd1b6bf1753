"""A damaged or foreign bundle is refused as it loads. The error names the file and the remedy."""

import gzip
import json
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from service.core.bundle import ITEMS, MANIFEST, RECOMMENDER, TOKENIZER, FileRecord, load_bundle, sha256_of
from service.core.bundle_items import read_items
from service.errors import ContractMismatch, GlyphrecError
from service.inference.onnx_file import external_tensors
from service.lifecycle import bundles
from tests.known_bundle import KNOWN_ITEMS, PAGED, SPEC, VECTOR_DIM, write_known_bundle

T = TypeVar("T")
REMEDY = r"(Export again|export again|Copy|Give the folder|Serve it with the release)"


@pytest.fixture
def copy(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def load(folder: Path) -> bundles.LoadedBundle:
    """Make every check that comes before a service exists."""
    return bundles.load(folder, bundles.GraphOptions(threads=1, num_beams=50, max_batch_beams=None))


def change_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    raw = json.loads((folder / MANIFEST).read_text())
    change(raw)
    (folder / MANIFEST).write_text(json.dumps(raw))


def seal(folder: Path) -> None:
    """Write the files' true hashes into the manifest, as an attacker would."""
    files = {
        name: FileRecord(
            sha256=sha256_of(folder / name), num_bytes=(folder / name).stat().st_size
        ).model_dump()
        for name in (TOKENIZER, RECOMMENDER, ITEMS)
    }
    change_manifest(folder, lambda raw: raw.update(files=files))


def swap(folder: Path) -> None:
    (folder / TOKENIZER).rename(folder / "held")
    (folder / RECOMMENDER).rename(folder / TOKENIZER)
    (folder / "held").rename(folder / RECOMMENDER)


def truncate(name: str, folder: Path) -> None:
    os.truncate(folder / name, (folder / name).stat().st_size // 2)


def flip(name: str, folder: Path) -> None:
    content = bytearray((folder / name).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / name).write_bytes(content)


def lead_outside(name: str, folder: Path) -> None:
    (folder / name).rename(folder.parent / name)
    (folder / name).symlink_to(folder.parent / name)


def loop(name: str, folder: Path) -> None:
    (folder / name).unlink()
    (folder / name).symlink_to(name)


def pipe(name: str, folder: Path) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)


def write_items(folder: Path, lines: list[str], seal_it: bool = True) -> None:
    with gzip.open(folder / ITEMS, "wt", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)
    if seal_it:
        seal(folder)


ON_A_FILE = {
    "truncated": (truncate, "bytes, manifest says"),
    "bit-flipped": (flip, "sha256 is"),
    "missing": (lambda name, folder: (folder / name).unlink(), "missing"),
    "a link that leads outside": (lead_outside, "link .*lies outside the bundle"),
    "a link to itself": (loop, "(missing|outside)"),
    "a pipe": (pipe, "missing"),
    "a folder": (lambda name, folder: ((folder / name).unlink(), (folder / name).mkdir()), "missing"),
}


@pytest.mark.parametrize("name", [TOKENIZER, RECOMMENDER, ITEMS])
@pytest.mark.parametrize("damage", ON_A_FILE)
def test_a_damaged_file_is_refused_by_name(copy, name, damage):
    do, complaint = ON_A_FILE[damage]
    do(name, copy)
    with pytest.raises(ContractMismatch, match=f"{name}.*{complaint}.*{REMEDY}"):
        load(copy)


@pytest.mark.parametrize("sealed", [False, True])
def test_swapped_graphs_are_refused_also_where_their_hashes_were_made_to_fit(copy, sealed):
    swap(copy)
    if sealed:
        seal(copy)
    with pytest.raises(ContractMismatch, match=f"{TOKENIZER}: .*{REMEDY}"):
        load(copy)


@pytest.mark.parametrize("name", [TOKENIZER, RECOMMENDER])
def test_a_file_that_is_no_graph_is_refused_also_where_its_hash_fits(copy, name):
    for content in (
        b"",
        b"ORTM",
        (copy / name).read_bytes()[:-100],
        (copy / name).read_bytes() * 2,
        b"\xff" * 99,
    ):
        (copy / name).write_bytes(content)
        seal(copy)
        with pytest.raises(ContractMismatch, match=f"{name}: .*{REMEDY}"):
            load(copy)


MANIFESTS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "an older format": (lambda m: m.update(format_version=1), "format version 1"),
    "a newer format": (lambda m: m.update(format_version=7), "format version 7"),
    "a format that is no number": (lambda m: m.update(format_version="3"), "format version '3'"),
    "no levels": (lambda m: m["sid"].update(levels=[]), "sid.levels"),
    "a level of nothing": (lambda m: m["sid"].update(levels=[0, 4, 3]), "sid.levels"),
    "a negative level": (lambda m: m["sid"].update(levels=[32, -4, 3]), "sid.levels"),
    "a huge level": (lambda m: m["sid"].update(levels=[10**9, 4, 3]), "sid.levels"),
    "a tree too large": (lambda m: m["sid"].update(levels=[65_536, 65_536, 3]), "sid.levels"),
    "too many levels": (lambda m: m["sid"].update(levels=[2] * 9), "sid.levels"),
    "other levels": (lambda m: m["sid"].update(levels=[32, 4, 9]), "tensors are not those"),
    "paged where it is not": (lambda m: m["sid"].update(paged=True), "tensors are not those"),
    "no history": (lambda m: m.update(history_length=0), "history_length"),
    "a huge history": (lambda m: m.update(history_length=10**12), "history_length"),
    "a huge beam": (lambda m: m.update(beam_limit=10**12), "beam_limit"),
    "fewer than no items": (lambda m: m.update(num_items=-1), "num_items"),
    "more items": (lambda m: m.update(num_items=31), "30 items, manifest says 31"),
    "fewer items": (lambda m: m.update(num_items=29), "more items than the manifest's 29"),
    "a huge picture": (lambda m: m["render"].update(width_px=10**9), "render.width_px"),
    "another picture": (lambda m: m["render"].update(width_px=300), "tensors are not those"),
    "a font elsewhere": (lambda m: m["render"].update(font="../../secret.ttf"), "No font"),
    "another font": (lambda m: m["render"].update(font_sha256="0" * 64), "sha256"),
    "another tokenizer": (lambda m: m.update(trained_for_tokenizer_id="f" * 12), "was trained for"),
    "an id that is a path": (lambda m: m.update(tokenizer_id="../../x"), "tokenizer_id"),
    "a field too many": (lambda m: m.update(surprise=1), "surprise"),
    "a field missing": (lambda m: m.pop("beam_limit"), "beam_limit"),
    "a list for the levels' tensors": (lambda m: m["recommender"].update(inputs=[]), "tensors are not those"),
    "no tensors": (lambda m: m["tokenizer"].update(outputs=[]), "tensors are not those"),
    "a metric that is no number": (lambda m: m["metrics"].update(x=float("nan")), "NaN"),
    "a hash that is none": (lambda m: m["files"][ITEMS].update(sha256="0"), "files"),
    "a negative size": (lambda m: m["files"][ITEMS].update(num_bytes=-1), "files"),
    "no items": (lambda m: m["files"].pop(ITEMS), f"lists no {ITEMS}"),
    "no tokenizer": (lambda m: m["files"].pop(TOKENIZER), f"lists no {TOKENIZER}"),
} | {
    f"a file named {name[:20]!r}": (
        lambda m, name=name: m["files"].update({name: m["files"][ITEMS]}),
        complaint,
    )
    for name, complaint in (
        ("../outside", "outside the bundle"),
        ("report/../../outside", "outside the bundle"),
        ("/etc/passwd", "outside the bundle"),
        ("a\0b", "outside the bundle"),
        ("\ud800", "half of a surrogate pair"),
        ("x" * 5_000, "(cannot be read|outside)"),
        ("", "missing"),
        (".", "missing"),
        ("~/x", "missing"),
        ("file:///etc/passwd", "missing"),
        ("$HOME", "missing"),
    )
}


@pytest.mark.parametrize("case", MANIFESTS)
def test_a_manifest_that_promises_nonsense_is_refused(copy, case):
    change, complaint = MANIFESTS[case]
    (copy.parent / "outside").write_bytes((copy / ITEMS).read_bytes())
    change_manifest(copy, change)
    with pytest.raises(ContractMismatch, match=complaint) as refused:
        load(copy)
    assert len(str(refused.value)) < 7_000


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"7",
        b"\xff\xfe",
        b"[" * 10**6,
        b"1" * 10_000,
        b" " * (17 * 2**20),
        b'{"a": NaN}',
    ],
)
def test_a_manifest_that_is_no_manifest_is_refused(copy, content):
    (copy / MANIFEST).write_bytes(content)
    with pytest.raises(ContractMismatch, match=rf"manifest\.json: .*{REMEDY}"):
        load(copy)


@pytest.mark.parametrize("folder", ["no-such-folder", "bundle/manifest.json", "bundle/tokenizer.onnx"])
def test_what_is_no_folder_with_a_manifest_is_refused(copy, folder):
    with pytest.raises(ContractMismatch, match=f"not found.*{REMEDY}"):
        load(copy.parent / folder)


def test_a_link_that_the_manifest_does_not_list_is_never_followed(copy):
    (copy / "extra").symlink_to("/proc/self/mem")
    (copy / "more").symlink_to("/nowhere")
    assert load(copy).manifest.num_items == len(KNOWN_ITEMS)


# --- graphs ---


def test_graphs_of_other_shapes_are_refused_also_where_their_hashes_fit(copy, tmp_path):
    paged = write_known_bundle(tmp_path / "paged", KNOWN_ITEMS, PAGED)
    shutil.copy(paged / RECOMMENDER, copy / RECOMMENDER)
    seal(copy)
    with pytest.raises(ContractMismatch, match=f"{RECOMMENDER}: its inputs are .*Export again"):
        load(copy)


def test_a_graph_that_loads_but_does_not_run_is_refused(copy):
    """Its shapes are right, but inside it reads an element that does not exist."""
    model = onnx.load(copy / TOKENIZER)
    levels = next(each for each in model.graph.initializer if each.name == "last_axis")
    levels.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(levels) + 7, "last_axis"))
    onnx.save(model, copy / TOKENIZER)
    seal(copy)
    with pytest.raises(ContractMismatch, match=f"{TOKENIZER}: .*Export again"):
        load(copy)


def test_a_tokenizer_whose_codes_are_beyond_the_levels_is_refused(copy):
    model = onnx.load(copy / TOKENIZER)
    codes = next(node for node in model.graph.node if "codes" in node.output)
    codes.output[0] = "codes_within"
    model.graph.initializer.append(helper.make_tensor("far", TensorProto.INT64, [], [1_000]))
    model.graph.node.append(helper.make_node("Add", ["codes_within", "far"], ["codes"]))
    onnx.save(model, copy / TOKENIZER)
    seal(copy)
    with pytest.raises(ContractMismatch, match=rf"{TOKENIZER}: codes .* do not fit the levels"):
        load(copy)


def external(location: str) -> TensorProto:
    tensor = TensorProto(name="aside", data_type=TensorProto.FLOAT, dims=[4])
    tensor.data_location = TensorProto.EXTERNAL
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", location
    return tensor


def branches(tensor: TensorProto) -> tuple[onnx.GraphProto, onnx.GraphProto]:
    output = helper.make_tensor_value_info("of_branch", TensorProto.FLOAT, [4])
    node = helper.make_node("Identity", ["aside"], ["of_branch"])
    inner = helper.make_graph([node], "inner", [], [output], [tensor])
    return inner, inner


def as_initializer(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.initializer.append(tensor)


def as_constant(model: onnx.ModelProto, tensor: TensorProto) -> None:
    model.graph.node.append(helper.make_node("Constant", [], ["aside"], value=tensor))


def in_a_branch(model: onnx.ModelProto, tensor: TensorProto) -> None:
    then, other = branches(tensor)
    model.graph.node.append(helper.make_node("If", ["K0"], ["x"], then_branch=then, else_branch=other))


def in_a_function(model: onnx.ModelProto, tensor: TensorProto) -> None:
    node = helper.make_node("Constant", [], ["y"], value=tensor)
    function = helper.make_function("ours", "F", [], ["y"], [node], [helper.make_opsetid("", 18)])
    model.functions.append(function)


def as_sparse(model: onnx.ModelProto, tensor: TensorProto) -> None:
    indices = helper.make_tensor("indices", TensorProto.INT64, [4], [0, 1, 2, 3])
    model.graph.sparse_initializer.append(helper.make_sparse_tensor(tensor, indices, [9]))


@pytest.mark.parametrize("location", ["weights.bin", "../weights.bin", "/etc/hostname", "/proc/self/environ"])
@pytest.mark.parametrize("place", [as_initializer, as_constant, in_a_branch, in_a_function, as_sparse])
@pytest.mark.parametrize("name", [TOKENIZER, RECOMMENDER])
def test_a_graph_with_data_in_another_file_is_refused_wherever_it_says_so(copy, name, place, location):
    for folder in (copy, copy.parent):
        (folder / "weights.bin").write_bytes(bytes(16))
    model = onnx.load(copy / name)
    place(model, external(location))
    (copy / name).write_bytes(model.SerializeToString())
    seal(copy)
    with pytest.raises(ContractMismatch, match=rf"{name}: keeps \d tensors in other files.*Export again"):
        load(copy)


def test_graphs_with_all_data_inside_have_none_elsewhere(bundle, tiny_export):
    for folder in (bundle, tiny_export.bundle.path):
        for name in (TOKENIZER, RECOMMENDER):
            assert external_tensors((folder / name).read_bytes()) == []


# --- items ---

GOOD = json.dumps(KNOWN_ITEMS[0]._asdict())


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "[]",
        "null",
        '"text"',
        "[" * 2_000,
        *(
            json.dumps({**json.loads(GOOD), **change})
            for change in (
                {"codes": [32, 0, 0]},
                {"codes": [0, 0]},
                {"codes": [0.0, 0, 0]},
                {"codes": [True, 0, 0]},
                {"codes": "abc"},
                {"codes": [-1, 0, 0]},
                {"codes": [10**30, 0, 0]},
                {"item_id": 7},
                {"item_id": ""},
                {"item_id": None},
                {"popularity": "many"},
                {"popularity": float("nan")},
                {"popularity": 10**400},
                {"item": "text"},
                {"item": None},
            )
        ),
    ],
)
def test_an_item_that_is_none_is_refused_with_its_line(copy, line):
    write_items(copy, [GOOD, line])
    with pytest.raises(ContractMismatch, match=rf"{ITEMS}:2: not an item of a bundle .*Export again"):
        load(copy)


@pytest.mark.slow
def test_a_line_or_a_file_that_inflates_without_end_is_given_up_at_once(copy):
    for text in (b" " * 2**26, f"{GOOD}\n".encode() * 2**19):
        with gzip.open(copy / ITEMS, "wb") as file:
            file.write(text)
        seal(copy)
        change_manifest(copy, lambda raw: raw.update(num_items=10**9))
        with pytest.raises(ContractMismatch, match=rf"{ITEMS}:\d+: inflates to more than .*Export again"):
            load(copy)


# --- any damage: what loads is equal, all else is refused ---


def damages(content: bytes) -> st.SearchStrategy[bytes]:
    places = st.integers(0, len(content) - 1)

    def flipped(flips: list[tuple[int, int]]) -> bytes:
        damaged = bytearray(content)
        for place, bit in flips:
            damaged[place] ^= 1 << bit
        return bytes(damaged)

    return (
        st.lists(st.tuples(places, st.integers(0, 7)), min_size=1, max_size=8).map(flipped)
        | places.map(lambda end: content[:end])
        | places.map(lambda start: content[start:])
        | st.tuples(places, st.binary(min_size=1, max_size=40)).map(
            lambda cut: content[: cut[0]] + cut[1] + content[cut[0] + len(cut[1]) :]
        )
    )


@pytest.fixture(scope="module")
def damaged(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return Path(shutil.copytree(bundle, tmp_path_factory.mktemp("damaged") / "bundle"))


anything = settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def or_refused(load: Callable[[], T], name: str) -> T | None:
    """The loaded bundle, or None if an error of ours refuses it. Any other exception fails the test."""
    try:
        return load()
    except GlyphrecError as error:
        if name not in str(error):
            raise
        return None


@anything
@given(data=st.data())
def test_a_manifest_with_flipped_bits_loads_or_is_refused(bundle, damaged, data):
    whole = (bundle / MANIFEST).read_bytes()
    (damaged / MANIFEST).write_bytes(data.draw(damages(whole)))
    loaded = or_refused(lambda: load_bundle(damaged).manifest, str(damaged))
    # A bundle that loads may differ in values that nothing can verify, such as a name or a metric, but never
    # in values that the service computes with.
    known = load_bundle(bundle).manifest
    for name in ("sid", "tokenizer", "recommender", "files"):
        assert loaded is None or getattr(loaded, name) == getattr(known, name)


@anything
@given(data=st.data())
def test_items_with_flipped_bits_load_equal_or_are_refused(bundle, damaged, data):
    """Even before their hash is checked."""
    path = damaged / ITEMS
    path.write_bytes(data.draw(damages((bundle / ITEMS).read_bytes())))
    found = or_refused(lambda: read_items(path, SPEC, len(KNOWN_ITEMS), VECTOR_DIM), str(path))
    assert found is None or found == read_items(bundle / ITEMS, SPEC, len(KNOWN_ITEMS), VECTOR_DIM)


@anything
@given(data=st.data())
def test_lines_with_flipped_bits_are_whole_items_or_refused(bundle, damaged, data):
    with gzip.open(bundle / ITEMS) as file:
        whole = file.read()
    path = damaged / ITEMS
    with gzip.open(path, "wb", compresslevel=1) as file:
        file.write(data.draw(damages(whole)))
    for each in or_refused(lambda: read_items(path, SPEC, len(KNOWN_ITEMS), VECTOR_DIM), str(path)) or []:
        SPEC.check(each.codes)
        assert each.item["item_id"] == each.item_id
        assert len(each.vector) in (0, VECTOR_DIM)


@anything
@given(data=st.data())
def test_a_graph_with_flipped_bits_is_walked_or_refused(bundle, data):
    """Our own reader is tested; ONNX Runtime sees only files that match the manifest's hash."""
    with suppress(ValueError):
        external_tensors(data.draw(damages((bundle / TOKENIZER).read_bytes())))
