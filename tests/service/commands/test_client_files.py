"""Files of items from anywhere: `glyphrec import` reads them, or says in one line which line is wrong."""

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.commands.client import read_items
from service.errors import GlyphrecError

any_file = settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


def read(path: Path) -> list[object] | None:
    """What the file holds, or None where it is refused by name; any other exception is a failure."""
    try:
        found = list(read_items(path))
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
        list(read_items(path))
