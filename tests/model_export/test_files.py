"""Outputs are tried before the work: each refusal names the option, the path and what to do."""

import os
from pathlib import Path

import pytest

from model_export.files import check_file, check_folder
from service.errors import GlyphrecError


def test_a_folder_that_can_be_written_is_made_and_left_empty(tmp_path: Path) -> None:
    check_folder(tmp_path / "a" / "b", "--cache")
    assert not list((tmp_path / "a" / "b").iterdir())


def test_a_file_in_the_way_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for folder in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(GlyphrecError, match=r"--cache .*file.*: cannot be written .*another folder\.$"):
            check_folder(folder, "--cache")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_that_may_not_be_written_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(GlyphrecError, match="Permission denied"):
        check_folder(tmp_path, "--out")


def test_a_file_can_be_new_or_replaced_but_not_a_folder(tmp_path: Path) -> None:
    check_file(tmp_path / "new" / "figures.json", "--json")
    assert not (tmp_path / "new" / "figures.json").exists()
    (tmp_path / "old.json").write_text("{}")
    check_file(tmp_path / "old.json", "--json")
    assert (tmp_path / "old.json").read_text() == "{}"
    with pytest.raises(GlyphrecError, match=r"is a folder. Give the name of a file"):
        check_file(tmp_path, "--json")
