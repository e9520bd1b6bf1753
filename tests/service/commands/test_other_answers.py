"""Whatever answers in place of the service, `import` and `recommend` end with status 2 and one line."""

import gzip
import json
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.cli import main
from service.commands.asking import MAX_TRIES, RETRY
from tests.answering import Other, running
from tests.service.processes import command, free_port, wait_until_ready

RESULT = {
    **{"item_id": "a", "status": "created", "semantic_id": "1-2-3", "codes": [1, 2], "truncated": False},
    **{"missing_characters": "", "unused_values": [], "error": None},
}
GOOD = json.dumps({"items": [RESULT], "catalog_version": 1}).encode()
PAGE = {
    **{"items": [{"item_id": "a", "semantic_id": "1-2", "score": None}], "exact": True, "source": "model"},
    **{"matching_items": None, "unknown_item_ids": []},
}


@pytest.fixture
def waited(monkeypatch):
    found: list[float] = []
    monkeypatch.setattr(time, "sleep", found.append)
    return found


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "items.jsonl"
    path.write_text('{"item_id": "a", "title": "A"}\n')
    return path


def told(capsys) -> str:
    said = capsys.readouterr().err
    lines = [line for line in said.splitlines() if line.startswith("glyphrec: ")]
    assert len(lines) == 1, said
    assert "Traceback" not in said
    return lines[0]


HTML = b"<html><body>Log in</body></html>"


@pytest.mark.parametrize(
    ("status", "headers", "body", "said"),
    [
        (200, {}, HTML, "answered 200 without JSON. Another program answers there. Check --url."),
        (200, {}, b"", "answered 200 without JSON"),
        (204, {}, b"", "answered 204 without JSON"),
        (200, {}, b"{}", "answers, but not as glyphrec does: {}. Check --url."),
        (200, {}, b"[1]", "not as glyphrec does: [1]"),
        (200, {}, b"null", "not as glyphrec does: null"),
        (200, {}, b'{"items": [], "catalog_version": 1}', "not as glyphrec does"),
        (200, {}, b'{"items": [{"status": "fine"}]}', "not as glyphrec does"),
        (200, {}, b'{"items": [{"status": "failed", "error": "no"}]}', "not as glyphrec does"),
        (200, {"Content-Encoding": "gzip"}, GOOD, "the answer cannot be unpacked"),
        (200, {}, b"[" * 100_000, "answered 200 without JSON"),
        (302, {"Location": "https://login.example/"}, HTML, "redirects to https://login.example/. Give"),
        (301, {}, b"", "redirects to nowhere. Give the address of the service with --url."),
        (401, {}, HTML, "asks for credentials of its own"),
        (403, {}, b'{"message": "forbidden"}', 'answered 403 {"message": "forbidden"}. Something in front'),
        (404, {}, b'"not here"', 'answered 404 "not here". Check --url: is the service there'),
        (
            413,
            {},
            HTML,
            "answered 413 without JSON. A proxy takes smaller bodies only. Give a smaller --batch",
        ),
        (500, {}, b"[]", "answered 500 []. Check --url."),
        (500, {}, b'{"detail": "x"}', 'answered 500 {"detail": "x"}'),
        (
            418,
            {},
            b'{"type": "urn:glyphrec:problem:teapot", "detail": "Short and stout."}',
            "418 Short and stout.",
        ),
        (502, {}, HTML, "answered 502 without JSON. A proxy does not reach the service."),
        (
            503,
            {"Retry-After": "soon"},
            HTML,
            "answered 503 without JSON. A proxy does not reach the service.",
        ),
        (504, {}, HTML, "answered 504 without JSON. A proxy waits less long than the service needs."),
        (200, {}, b'{"a": "\x1b[2J' + b"x" * 10_000 + b'"}', "answered 200 without JSON"),
        (400, {}, json.dumps("\x1b[2J" + "x" * 10_000).encode(), "…. Check --url."),
    ],
)
def test_an_answer_that_is_not_the_services_ends_in_one_line(
    file, waited, capsys, status, headers, body, said
):
    with running(Other((status, headers, body))) as other:
        assert main(["import", str(file), "--url", other.url]) == 2
        line = told(capsys)
        assert said in line
        assert "\x1b" not in line
        assert len(line) < 600
        assert main(["recommend", "a", "--url", other.url]) == 2
        told(capsys)
    assert len(waited) in (0, 2 * (MAX_TRIES - 1))  # passing troubles are waited for, others are not


@pytest.mark.parametrize("status", [408, 429, 502, 503, 504])
def test_a_passing_trouble_is_waited_for_as_long_as_the_answer_asks(file, waited, capsys, status):
    answers = [(status, {"Retry-After": "7"}, HTML)] * 2 + [(status, {}, b""), (200, {}, GOOD)]
    with running(Other(*answers)) as other:
        assert main(["import", str(file), "--url", other.url]) == 0
    assert capsys.readouterr().out == "1 created\n"
    assert waited == [7.0, 7.0, 1.0]


@pytest.mark.usefixtures("waited")
def test_what_was_posted_before_an_import_stopped_is_told(tmp_path, capsys):
    (tmp_path / "items.jsonl").write_text('{"item_id": "a", "title": "A"}\n' * 3)
    with running(Other((200, {}, GOOD), (200, {}, GOOD), (404, {}, HTML))) as other:
        assert main(["import", str(tmp_path), "--url", other.url, "--batch", "1"]) == 2
    assert "2 of 3 items were posted. Give the same command again" in told(capsys)


def test_retry_after_is_seconds_or_a_date_and_never_longer_than_a_minute():
    def wait_s(retry_after):
        return RETRY.pause_s(1, retry_after)

    assert [wait_s(each) for each in ("0", "5", " 5 ", "3600")] == [0, 5, 5, 60]

    def wait_s(retry_after):
        return RETRY.pause_s(1, retry_after)

    assert [wait_s(each) for each in ("", "soon", "-5", "1e3", "nan", "inf", "9" * 400, "5, 5")] == [1] * 8
    now = datetime.now(UTC)
    assert 27 < wait_s(format_datetime(now + timedelta(seconds=30), usegmt=True)) <= 30
    assert wait_s(format_datetime(now - timedelta(days=1), usegmt=True)) == 0
    assert wait_s(format_datetime(now + timedelta(days=1), usegmt=True)) == 60


JSONS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["items", "status", "error", "detail", "type", "unused_values", "item", "x"]),
            inner,
        )
    ),
    max_leaves=8,
)


@pytest.mark.usefixtures("waited")
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    status=st.sampled_from([200, 201, 299, 304, 400, 401, 404, 418, 500, 501, 503]),
    headers=st.dictionaries(
        st.sampled_from(["Retry-After", "Content-Type", "Location", "Content-Encoding", "X-Any"]),
        st.text(st.characters(min_codepoint=0x20, max_codepoint=0x7E), max_size=10).map(str.strip),
    ),
    body=JSONS.map(lambda value: json.dumps(value).encode()) | st.binary(max_size=20),
)
def test_no_answer_at_all_ends_in_anything_but_the_line(file, capsys, status, headers, body):
    with running(Other((status, headers, body))) as other:
        assert main(["import", str(file), "--url", other.url]) == 2
        told(capsys)
        assert main(["recommend", "a", "--url", other.url]) == 2
        told(capsys)


@pytest.mark.usefixtures("waited")
def test_a_page_whose_items_nobody_describes_is_shown_up_to_there(capsys):
    with running(Other((200, {}, json.dumps(PAGE).encode()), (200, {}, b"{}"))) as other:
        assert main(["recommend", "a", "--url", other.url]) == 2
    assert "not as glyphrec does: {}" in told(capsys)


@pytest.mark.parametrize(
    ("args", "said"),
    [
        (["--url", "http://[::1"], "--url http://[::1: cannot be asked"),
        (["--url", "ftp://127.0.0.1"], "no service answers there"),
        (["--url", "http://127.0.0.1:1"], "http://127.0.0.1:1: no service answers there"),
        (["--url", "http://me:secret@127.0.0.1:1"], "http://127.0.0.1:1: no service answers there"),
        (["--key", "schlüssel"], "--key: has signs that no key of glyphrec has"),
        (["--key", "a\nb"], "--key: has signs"),
    ],
)
def test_an_address_or_a_key_that_is_none_is_one_line(file, capsys, args, said):
    assert main(["import", str(file), *args]) == 2
    line = told(capsys)
    assert said in line
    assert "secret" not in line


BOM = b"\xef\xbb\xbf"
ONE, TWO = b'{"item_id": "bom-1", "title": "One"}', b'{"item_id": "bom-2", "title": "Two"}'


@pytest.fixture(scope="module")
def served(bundle, tmp_path_factory):
    port, data = free_port(), tmp_path_factory.mktemp("redis")
    process = command("serve", "--bundle", bundle, "--port", port, "--data-dir", data)
    wait_until_ready(f"http://127.0.0.1:{port}", process)
    yield f"http://127.0.0.1:{port}"
    process.terminate()
    process.communicate(timeout=30)


@pytest.mark.slow
@pytest.mark.parametrize(
    "content",
    [
        BOM + ONE + b"\n" + TWO + b"\n",
        BOM + ONE + b"\r\n" + TWO,
        BOM + ONE + b"\n" + BOM + TWO + b"\n",  # two files, put together
        BOM + b"\n" + ONE + b"\n\n" + TWO,
        gzip.compress(BOM + ONE + b"\n" + TWO, mtime=0),
    ],
)
def test_files_as_other_tools_write_them_are_taken_as_the_api_takes_bodies(served, tmp_path, capsys, content):
    (tmp_path / "items.jsonl").write_bytes(content)
    assert main(["import", str(tmp_path), "--url", served]) == 0
    said = capsys.readouterr().out
    assert said in ("2 created\n", "2 unchanged\n")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (
            b"[" + ONE + b"]",
            "items.jsonl:1: a list, not an item. Write one item a line: jq -c '.[]' items.jsonl",
        ),
        (b"[\n" + ONE + b"\n]", "Write one whole JSON value a line: jq -c '.[]' items.jsonl"),
        (b'{\n"item_id": "a"\n}', "Write one whole JSON value a line: jq -c '.' items.jsonl"),
        (
            b'{"items": [' + ONE + b"]}",
            "a body of POST /items, not an item. Write one item a line: jq -c '.items[]'",
        ),
        (ONE.decode().encode("utf-16"), "items.jsonl:1: not UTF-8 but UTF-16. Save the file as UTF-8."),
        (b'{"item_id": "a", "title": "A", "title": "B"}', "an object has the name 'title' twice"),
        (b'{"item_id": "a", "title": "A", "n": 9007199254740993.0}', "is a number that no double holds"),
        (b'{"item_id": "a", "title": "A", "n": NaN}', "NaN is not a JSON number"),
    ],
)
def test_a_file_that_the_api_would_refuse_or_misread_is_refused_before_anything_is_posted(
    tmp_path, capsys, content, said
):
    (tmp_path / "items.jsonl").write_bytes(content)
    with running(Other((200, {}, GOOD))) as other:
        assert main(["import", str(tmp_path), "--url", other.url]) == 2
    assert other.asked == []
    assert said in told(capsys)
