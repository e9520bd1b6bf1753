"""Files of JSON lines from any source are read, or an error names the wrong line."""

import gzip
import json
import os
import threading
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.core.json_lines import (
    MAX_LINE_BYTES,
    FileUnreadable,
    LineNotJson,
    LineTooLong,
    read_json_lines,
    write_json_lines,
)
from service.errors import GlyphrecError

any_file = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def read(path: Path) -> list[object] | None:
    """The file's values, or None if an error names the file. Any other exception is a failure."""
    try:
        found = [line.value for line in read_json_lines(path)]
    except GlyphrecError as error:
        if not str(error).startswith(str(path)):
            raise
        return None
    json.dumps(found, allow_nan=False, ensure_ascii=False).encode()  # so that it can be posted
    return found


@any_file
@given(items=st.lists(values, max_size=5), compressed=st.booleans(), ascii_only=st.booleans())
def test_what_was_written_is_read(tmp_path, items, compressed, ascii_only):
    text = "".join(json.dumps(each, ensure_ascii=ascii_only) + "\n\n" for each in items).encode()
    path = tmp_path / ("items.jsonl.gz" if compressed else "items.jsonl")
    path.write_bytes(gzip.compress(text, 1) if compressed else text)
    assert read(path) == items


@any_file
@given(
    content=st.binary(max_size=400) | st.text('[]{}:,"\\u0d8e+-.1NaIfinty\n ', max_size=400).map(str.encode)
)
def test_any_bytes_are_read_or_refused(tmp_path, content):
    for path in (tmp_path / "items.jsonl", tmp_path / "items.jsonl.gz"):
        path.write_bytes(content)
        read(path)


ITEMS = [{"item_id": str(n), "title": f"Item {n}"} for n in range(20)]
ARCHIVE = gzip.compress("\n".join(map(json.dumps, ITEMS)).encode(), 1)


@any_file
@given(place=st.integers(0, len(ARCHIVE) - 1), bit=st.integers(0, 7))
def test_a_damaged_archive_is_read_or_refused(tmp_path, place, bit):
    damaged = bytearray(ARCHIVE)
    damaged[place] ^= 1 << bit
    path = tmp_path / "items.jsonl.gz"
    for content in (bytes(damaged), ARCHIVE[:place]):
        path.write_bytes(content)
        assert read(path) in (None, ITEMS, [])


@pytest.mark.parametrize(
    "line", ["[" * 100_000, "NaN", '{"a": Infinity}', '{"a": "\\ud800"}', "9" * 5_000, "\0"]
)
def test_a_line_that_no_request_can_carry_is_named(tmp_path, line):
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": "a"}\n' + line + "\n")
    with pytest.raises(GlyphrecError, match=r"items\.jsonl:2: not JSON"):
        [line.value for line in read_json_lines(path)]


@pytest.mark.parametrize("line", ["1e999", "-1e999"])
def test_a_number_that_no_float_holds_is_named(tmp_path, line):
    path = tmp_path / "items.jsonl"
    path.write_text(f'{{"price": {line}}}')
    with pytest.raises(LineNotJson, match=r"items\.jsonl:1: not JSON \(-?1e999 is too large"):
        list(read_json_lines(path))


def test_lines_keep_the_numbers_that_an_editor_shows(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(b"\xef\xbb\xbf1\r\n\r\n \t\n2")
    assert list(read_json_lines(path)) == [(1, 1), (4, 2)]
    with pytest.raises(LineNotJson, match=r"items\.jsonl:2: a blank line"):
        list(read_json_lines(path, allow_blank=False))


def test_an_archive_is_known_by_its_bytes_and_not_by_its_name(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_bytes(ARCHIVE)
    assert [line.value for line in read_json_lines(path)] == ITEMS


def test_a_pipe_is_read_as_a_file_is(tmp_path):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writing = threading.Thread(target=path.write_bytes, args=(ARCHIVE,))
    writing.start()
    assert [line.value for line in read_json_lines(path)] == ITEMS
    writing.join()


@pytest.mark.parametrize(
    "content",
    [b" " * (MAX_LINE_BYTES + 1), gzip.compress(b"1\n" * 1_000)],
    ids=["a line", "a file"],  # every worker must call a test the same, and an archive holds the time
)
def test_a_line_or_a_file_without_end_is_given_up(tmp_path, content):
    path = tmp_path / "items.jsonl"
    path.write_bytes(content)
    with pytest.raises(LineTooLong, match=r"items\.jsonl:\d+: .*over \d+ bytes"):
        list(read_json_lines(path, max_bytes=1_999 if content[:1] != b" " else None))


def test_a_missing_file_and_a_folder_are_named_with_the_remedy(tmp_path):
    with pytest.raises(FileUnreadable, match=r"nowhere: not found\. Check the path\."):
        list(read_json_lines(tmp_path / "nowhere"))
    with pytest.raises(FileUnreadable, match=r"cannot be read \(Is a directory\)"):
        list(read_json_lines(tmp_path))


def test_what_is_written_is_read_and_equal_values_are_equal_bytes(tmp_path):
    for name in ("one.gz", "two.gz"):
        write_json_lines(tmp_path / name, ITEMS)
    assert [line.value for line in read_json_lines(tmp_path / "one.gz")] == ITEMS
    assert (tmp_path / "one.gz").read_bytes() == (tmp_path / "two.gz").read_bytes()
