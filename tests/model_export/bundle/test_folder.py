"""How the folder of a bundle comes into being: one export at a time, whole or absent, sealed."""

import fcntl
from pathlib import Path
from types import SimpleNamespace

import pytest

from model_export.bundle.folder import files_of, kept_bundle, partial_folder, reserved, seal
from service.errors import GlyphrecError


def test_two_exports_cannot_write_one_folder_at_once(tmp_path: Path) -> None:
    out = tmp_path / "bundles" / "shop"
    with reserved(out):
        with (
            pytest.raises(GlyphrecError, match=r"shop: another export writes it. .* another --out"),
            reserved(out),
        ):
            pass
        with reserved(out.with_name("other")):
            pass
    with reserved(out):
        pass
    assert not list(out.parent.iterdir())


def test_what_a_killed_export_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    out, other = tmp_path / "shop", tmp_path / "shop-2"
    left, others = partial_folder(out), partial_folder(other)
    for folder in (left, others, out):
        folder.mkdir()
    (left / "tokenizer.onnx").write_text("half")
    with (tmp_path / ".lock-shop").open("w") as lock:  # as a process holds it until it is killed
        fcntl.flock(lock, fcntl.LOCK_EX)
    with reserved(out):
        assert not left.exists()
        assert others.exists()
        assert out.exists()


def test_each_export_writes_under_a_name_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names = {partial_folder(Path(name)) for name in ("shop", "shop", "./shop", ".")}
    assert len(names) == 4
    assert {name.parent for name in names} == {tmp_path, tmp_path.parent}


def test_a_file_in_the_way_is_named_before_any_work(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    refused = pytest.raises(GlyphrecError, match=r"--out .*file: cannot be written")
    with refused, reserved(tmp_path / "file" / "bundle"):
        pass


def test_an_empty_folder_will_do_and_a_full_one_will_not(tmp_path: Path) -> None:
    assert kept_bundle(tmp_path / "absent", "key") is None
    (tmp_path / "empty").mkdir()
    assert kept_bundle(tmp_path / "empty", "key") is None
    (tmp_path / "empty" / "notes.txt").write_text("mine")
    with pytest.raises(GlyphrecError, match="exists and is not a bundle"):
        kept_bundle(tmp_path / "empty", "key")


@pytest.mark.parametrize("name", ["tokenizer.onnx", "items.jsonl.gz"])
def test_a_bundle_whose_files_changed_while_it_was_made_is_not_sealed(tmp_path: Path, name: str) -> None:
    for file in ("tokenizer.onnx", "recommender.onnx", "items.jsonl.gz"):
        (tmp_path / file).write_text(f"{file} of this run")
    written = files_of(tmp_path)
    (tmp_path / name).write_text("of another run")
    bundle = SimpleNamespace(path=tmp_path)
    with pytest.raises(GlyphrecError, match=f"another program has changed {name}"):
        seal(bundle, {}, written)  # type: ignore[arg-type]  it gets no further
    assert not (tmp_path / "manifest.json").exists()
