import itertools
import json
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from pydantic import ValidationError

from service.core.bundle import (
    FieldsSpec,
    FileRecord,
    Manifest,
    PictureSpec,
    RenderSpec,
    format_version_of,
    load_bundle,
    sha256_of,
)
from service.core.co_counts import CoCountSpec
from service.core.graphs import (
    beam_widths,
    field_tokenizer_graph,
    ranker_graph,
    recommender_graph,
    tokenizer_graph,
)
from service.core.sid import SidSpec
from service.errors import ContractMismatch

SPEC = SidSpec(levels=(3, 5, 2))
NOBODY = 65_534


def test_prefixes_and_codes_are_each_others_inverse_for_every_code():
    everything = list(itertools.product(*(range(k) for k in SPEC.levels)))
    for place, codes in enumerate(everything):
        assert SPEC.prefixes(codes)[-1] == place
        assert SPEC.codes_of(place) == codes
    for level, prefix in enumerate(SPEC.prefixes_of(np.array(everything))):
        assert prefix.tolist() == [SPEC.prefixes(codes)[level] for codes in everything]


@pytest.mark.parametrize("levels", [(), (0, 4), (70_000,), (65_536, 65_536, 2)])
def test_levels_that_no_table_can_hold_are_refused(levels):
    with pytest.raises(ValidationError):
        SidSpec(levels=levels)


def test_a_search_keeps_no_more_prefixes_than_a_level_can_have():
    assert beam_widths(SPEC, 50) == (3, 15, 30)
    assert beam_widths(SPEC, 10) == (3, 10, 10)
    assert beam_widths(SPEC, 1) == (1, 1, 1)
    assert beam_widths(SidSpec(levels=(1, 4)), 3) == (1, 3)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """The smallest folder that verifies; the graphs are opened by runtime.py, not here."""
    files = {}
    for name in ("tokenizer.onnx", "recommender.onnx", "items.jsonl.gz"):
        (tmp_path / name).write_bytes(name.encode())
        files[name] = FileRecord(sha256=sha256_of(tmp_path / name), num_bytes=len(name))
    manifest = Manifest(
        format_version=format_version_of(reads_text_alone=True),
        export_key="none",
        created_at="2026-01-01T00:00:00Z",
        config="tiny",
        sid=SPEC,
        render=RenderSpec(),
        tokenizer_id="a" * 12,
        recommender_id="b" * 12,
        trained_for_tokenizer_id="a" * 12,
        tokenizer=tokenizer_graph(SPEC, height=16, width=216, vector_dim=8),
        recommender=recommender_graph(SPEC),
        generator="tree",
        history_length=20,
        beam_limit=100,
        data_fingerprint="c" * 64,
        data_name="none",
        num_items=0,
        metrics={},
        files=files,
    )
    (tmp_path / "manifest.json").write_text(manifest.model_dump_json())
    return tmp_path


def rewrite(bundle: Path, **changes: object) -> None:
    raw = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(raw | changes))


def test_a_bundle_of_text_alone_does_not_name_pictures_so_older_releases_can_serve_it(bundle):
    assert "pictures" not in json.loads((bundle / "manifest.json").read_text())
    assert load_bundle(bundle).manifest.pictures is None


def test_a_bundle_that_reads_pictures_promises_a_graph_that_takes_them(bundle):
    graph = tokenizer_graph(SPEC, height=16, width=216, vector_dim=8, picture_px=96)
    rewrite(bundle, pictures={"size_px": 96}, tokenizer=graph.model_dump(mode="json"))
    assert load_bundle(bundle).manifest.pictures == PictureSpec(size_px=96)
    rewrite(bundle, pictures={"size_px": 128})
    with pytest.raises(ContractMismatch, match="its tensors are not those of .* these pictures"):
        load_bundle(bundle)


def test_a_bundle_that_reads_fields_promises_a_graph_that_takes_them_and_has_their_vocabulary(bundle):
    assert "fields" not in json.loads((bundle / "manifest.json").read_text())
    graph = field_tokenizer_graph(SPEC, 2, vector_dim=8).model_dump(mode="json")
    fields = {"names": ["item_id", "brand"], "num_values": [3, 2]}
    rewrite(bundle, fields=fields, tokenizer=graph)
    with pytest.raises(ContractMismatch, match=r"lists no vocabulary\.jsonl\.gz"):
        load_bundle(bundle)
    rewrite(bundle, fields={"names": ["brand"], "num_values": [2]})
    with pytest.raises(ContractMismatch, match="its tensors are not those of .* these fields"):
        load_bundle(bundle)
    rewrite(bundle, fields=fields, pictures={"size_px": 96})
    with pytest.raises(ContractMismatch, match="pictures: the tokenizer reads fields and no pixels"):
        load_bundle(bundle)
    beside = tokenizer_graph(SPEC, height=16, width=216, vector_dim=8, num_fields=2).model_dump(mode="json")
    rewrite(bundle, fields=fields | {"beside_pixels": True}, pictures=None, tokenizer=beside)
    with pytest.raises(ContractMismatch, match=r"lists no vocabulary\.jsonl\.gz"):
        load_bundle(bundle)


def test_a_bundle_with_a_ranker_has_its_file_and_a_graph_for_its_tokenizer_and_levels(bundle):
    assert "ranker" not in json.loads((bundle / "manifest.json").read_text())
    ranker = {
        "ranker_id": "d" * 12,
        "trained_for_tokenizer_id": "a" * 12,
        "graph": ranker_graph(SPEC).model_dump(mode="json"),
        "history_length": 20,
        "parameterization": "prefix-3gram",
        "aggregation": "pooling",
        "num_rows": 100,
    }
    rewrite(bundle, ranker=ranker)
    with pytest.raises(ContractMismatch, match=r"lists no ranker\.onnx"):
        load_bundle(bundle)
    rewrite(bundle, ranker=ranker | {"trained_for_tokenizer_id": "e" * 12})
    with pytest.raises(ContractMismatch, match="the ranker was trained for tokenizer eeeeeeeeeeee"):
        load_bundle(bundle)
    other = ranker_graph(SidSpec(levels=(3, 5))).model_dump(mode="json")
    rewrite(bundle, ranker=ranker | {"graph": other})
    with pytest.raises(ContractMismatch, match="ranker: its tensors are not those of levels"):
        load_bundle(bundle)
    (bundle / "ranker.onnx").write_bytes(b"a graph")
    files = json.loads((bundle / "manifest.json").read_text())["files"]
    files["ranker.onnx"] = {"sha256": sha256_of(bundle / "ranker.onnx"), "num_bytes": 7}
    rewrite(bundle, ranker=ranker, files=files)
    manifest = load_bundle(bundle).manifest
    assert manifest.ranker is not None
    assert manifest.ranker.graph == ranker_graph(SPEC)


@pytest.mark.parametrize(
    "fields",
    [
        {"names": [], "num_values": []},
        {"names": ["brand"], "num_values": [1, 2]},
        {"names": ["brand", "brand"], "num_values": [1, 2]},
        {"names": ["brand"], "num_values": [0]},
    ],
)
def test_fields_that_do_not_fit_together_are_refused(bundle, fields):
    rewrite(bundle, fields=fields)
    with pytest.raises(ContractMismatch, match="fields"):
        load_bundle(bundle)


def test_a_field_of_a_later_release_is_named_with_the_remedy(bundle):
    rewrite(bundle, sounds={"rate_hz": 16_000})
    with pytest.raises(ContractMismatch, match="sounds: this release of glyphrec does not know it. Serve"):
        load_bundle(bundle)


def test_a_whole_bundle_loads(bundle):
    assert load_bundle(bundle).manifest.sid == SPEC


def test_one_flipped_bit_is_refused_with_the_file_and_the_remedy(bundle):
    (bundle / "tokenizer.onnx").write_bytes(b"tokenizer.onny")
    with pytest.raises(ContractMismatch, match=r"tokenizer\.onnx: sha256 is .* [Ee]xport again"):
        load_bundle(bundle)


def test_a_truncated_file_is_refused(bundle):
    (bundle / "recommender.onnx").write_bytes(b"recom")
    with pytest.raises(ContractMismatch, match=r"recommender\.onnx: 5 bytes, manifest says 16"):
        load_bundle(bundle)


def test_a_missing_file_is_refused(bundle):
    (bundle / "items.jsonl.gz").unlink()
    with pytest.raises(ContractMismatch, match=r"items\.jsonl\.gz: missing"):
        load_bundle(bundle)


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(ContractMismatch, match=r"manifest\.json: not found.*glyphrec export"):
        load_bundle(tmp_path)


def test_a_manifest_that_is_not_json_is_refused(bundle):
    (bundle / "manifest.json").write_text("{")
    with pytest.raises(ContractMismatch, match="not JSON"):
        load_bundle(bundle)


@pytest.mark.parametrize(
    ("version", "remedy"),
    [
        (99, r"Serve it with the release that exported it, or a later one\."),
        (2, r"Export again\."),
        ("4", r"Export again\."),
        (None, r"Export again\."),
        (True, r"Export again\."),
    ],
)
def test_a_format_of_a_later_release_needs_that_release_and_an_older_one_a_new_export(
    bundle, version, remedy
):
    rewrite(bundle, format_version=version)
    with pytest.raises(
        ContractMismatch,
        match=rf"format version {version!r}, this release .* reads 3, 4, 5 and 6\. {remedy}$",
    ):
        load_bundle(bundle)


def test_only_a_bundle_that_older_releases_cannot_read_has_the_newest_format_version():
    assert format_version_of(reads_text_alone=True) == 3
    assert format_version_of(reads_text_alone=False) == 4
    assert format_version_of(reads_text_alone=True, has_ranker=True) == 5
    assert format_version_of(reads_text_alone=False, has_ranker=True, draws_fields=True) == 6


def test_fields_that_are_drawn_come_beside_pixels_and_without_photos(bundle):
    names = ["item_id", "brand"]
    fields = {"names": names, "num_values": [3, 2], "beside_pixels": True, "drawn": True}
    graph = tokenizer_graph(SPEC, height=16, width=216, vector_dim=8, num_fields=2).model_dump(mode="json")
    rewrite(bundle, fields=fields, tokenizer=graph)
    with pytest.raises(ContractMismatch, match="lists no vocabulary"):
        load_bundle(bundle)
    manifest = json.loads((bundle / "manifest.json").read_text())
    assert "drawn" not in FieldsSpec.model_validate(fields | {"drawn": False}).model_dump()
    assert FieldsSpec.model_validate(manifest["fields"]).model_dump()["drawn"] is True
    for change in ({"names": names[::-1]}, {"beside_pixels": False}):
        rewrite(bundle, fields=fields | change)
        with pytest.raises(ContractMismatch, match="drawn are pixels, and begin with item_id"):
            load_bundle(bundle)
    rewrite(bundle, fields=fields, pictures={"size_px": 96})
    with pytest.raises(ContractMismatch, match="fields as pictures, and no photos"):
        load_bundle(bundle)


def test_a_recommender_of_another_tokenizer_is_refused(bundle):
    rewrite(bundle, trained_for_tokenizer_id="d" * 12)
    with pytest.raises(
        ContractMismatch, match="trained for tokenizer dddddddddddd, but the bundle holds aaaa"
    ):
        load_bundle(bundle)


def test_an_unknown_manifest_field_is_refused(bundle):
    rewrite(bundle, surprise=1)
    with pytest.raises(ContractMismatch, match="surprise"):
        load_bundle(bundle)


@contextmanager
def as_another_user():
    """As a process without root's rights, which the files do not belong to."""
    if os.geteuid() != 0:
        yield
        return
    os.setegid(NOBODY)
    os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)


@pytest.mark.parametrize("closed", ["", "manifest.json", "tokenizer.onnx", "items.jsonl.gz"])
def test_a_bundle_that_our_user_may_not_read_is_told_with_path_mode_and_uid(bundle, closed):
    path = bundle / closed
    for folder in (bundle, *bundle.parents[:3]):  # of pytest, which are for their owner alone
        folder.chmod(0o755)
    mode = 0o600 if closed and os.geteuid() == 0 else 0
    path.chmod(mode)
    with as_another_user():
        uid = os.geteuid()
        with pytest.raises(ContractMismatch) as refused:
            load_bundle(bundle)
    path.chmod(0o755)  # so that pytest can remove it
    told = str(refused.value)
    assert f"runs as uid {uid} " in told
    assert f"; {path} has mode {mode:04o} " in told
    assert f"belongs to uid {path.stat().st_uid} " in told
    assert told.endswith(f" Let it read: chmod -R a+rX {bundle}")
    assert "\n" not in told


def test_a_file_outside_the_bundle_is_refused(bundle):
    (bundle.parent / "elsewhere").write_bytes(b"x")
    raw = json.loads((bundle / "manifest.json").read_text())
    record = {"sha256": sha256_of(bundle.parent / "elsewhere"), "num_bytes": 1}
    rewrite(bundle, files=raw["files"] | {"../elsewhere": record})
    with pytest.raises(ContractMismatch, match="outside the bundle"):
        load_bundle(bundle)


@pytest.mark.parametrize("name", ["items.jsonl.gz", "report"])
def test_links_into_a_store_are_told_as_links_and_copies_of_them_are_taken(bundle, tmp_path_factory, name):
    """As tools that keep versions of files lay them out; a link that stays inside is no matter."""
    store = tmp_path_factory.mktemp("store")
    (bundle / "report").mkdir(exist_ok=True)
    (bundle / "report/notes.md").write_text("x")
    raw = json.loads((bundle / "manifest.json").read_text())
    record = {"sha256": sha256_of(bundle / "report/notes.md"), "num_bytes": 1}
    rewrite(bundle, files=raw["files"] | {"report/notes.md": record})
    load_bundle(bundle)
    (bundle / name).rename(store / name)
    (bundle / name).symlink_to(store / name)
    with pytest.raises(ContractMismatch, match=r"is a link or lies below one, .*cp -rL"):
        load_bundle(bundle)
    subprocess.run(["cp", "-rL", bundle, store / "copy"], check=True)
    load_bundle(store / "copy")
    (bundle / name).unlink()
    (store / name).rename(bundle / "inside")
    (bundle / name).symlink_to(bundle / "inside")
    load_bundle(bundle)


def test_a_bundle_that_says_how_counts_have_a_say_has_counts(bundle):
    rewrite(bundle, co_counts=CoCountSpec().model_dump())
    with pytest.raises(ContractMismatch, match="lists no co_counts.jsonl.gz"):
        load_bundle(bundle)
