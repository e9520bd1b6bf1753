"""A file is whole or absent, whatever happens while it is written."""

import pytest

from service.core.whole_files import write_whole


def test_a_file_appears_with_all_of_its_content(tmp_path):
    path = tmp_path / "cell.json"

    def write(partial):
        partial.write_text("{")
        assert not path.exists()
        partial.write_text("{}")

    write_whole(path, write)
    assert path.read_text() == "{}"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_older_file_and_nothing_else(tmp_path):
    path = tmp_path / "cell.json"
    path.write_text("old")

    def write(partial):
        partial.write_text("half")
        raise OSError("no space left")

    with pytest.raises(OSError, match="no space left"):
        write_whole(path, write)
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
