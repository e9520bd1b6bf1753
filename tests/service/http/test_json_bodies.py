"""JSON that parsers disagree about, or fail on, is a 4xx on every route with a body. So is a hostile id."""

import json
import logging
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.errors import InvalidJson
from service.http.json_body import parse
from tests.known_bundle import KNOWN_ITEMS
from tests.service.running import is_problem, running

JSON = {"Content-Type": "application/json"}
ROUTES = [("POST", "/recommend"), ("POST", "/items"), ("PATCH", "/items/item-0")]

any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
)


@pytest.mark.parametrize(
    "body",
    [
        b"[" * 2**20,
        b'{"a":' * 2**18,
        b'{"history": [], "limit": ' + b"9" * 5_000 + b"}",
        b"NaN",
        b'{"history": [], "limit": NaN}',
        b'{"item_id": "a", "title": "x", "price": Infinity}',
        b'{"item_id": "a", "title": "x", "price": -Infinity}',
        b'{"item_id": "a", "item_id": "b", "title": "x"}',
        b'{"history": [], "history": ["item-0"]}',
        b'{"history": [], "filter": {"available": true, "available": false}}',
        b'{"title": "x", "a": [{"b": 1, "b": 1}]}',
        b'{"history": ["\xed\xa0\x80"]}',  # half a surrogate pair in bytes
        b'{"history": ["\xc0\x80"]}',  # NUL, too long
        '{"history": []}'.encode("utf-16"),
        b'{"history": [], "a": "\x00"}',
        b"{'history': []}",
        b'{"history": [],}',
        b'{"history": []} {}',
        b"\x1f\x8b\x08",
    ],
)
async def test_what_is_no_strict_json_is_a_400_that_says_why(client, body):
    for method, path in ROUTES:
        response = await client.request(method, path, content=body, headers=JSON)
        assert is_problem(response, 400, "invalid-json")
        assert response.json()["detail"].startswith("The body is not JSON: ")
        assert len(response.content) < 1_000


@pytest.mark.parametrize(
    "value",
    [
        "1e999",
        "-1e999",
        '"\\ud800"',
        '["\\udfff"]',
        '{"\\ud800": 1}',
        "[" * 200 + "]" * 200,
        "9" * 4_000,
        "1" + "0" * 400,
        "1e-999",
        "-0",
    ],
)
async def test_json_whose_values_no_item_can_have_never_fails_inside(bundle, redis_url, value):
    """Each value as a field, as a declared number, as a bound and as a limit."""
    async with running(bundle, redis_url, filter_fields="price:number") as client:
        for method, path, body in (
            ("POST", "/items", '{"item_id": "a", "title": "x", "price": %s}'),
            ("POST", "/items", '{"item_id": %s, "title": "x"}'),
            ("PATCH", "/items/item-0", '{"price": %s}'),
            ("POST", "/recommend", '{"history": [%s]}'),
            ("POST", "/recommend", '{"history": [], "limit": %s}'),
            ("POST", "/recommend", '{"history": [], "filter": {"attributes": {"price": %s}}}'),
            ("POST", "/recommend", '{"history": [], "filter": {"attributes": {"price": {"gte": %s}}}}'),
            ("POST", "/recommend", '{"history": [], "diversity": {"max_per_category": %s}}'),
        ):
            response = await client.request(method, path, content=body % value, headers=JSON)
            assert response.status_code < 500, (body, response.text)
            if response.status_code != 200:
                assert "urn:glyphrec:problem:" in response.text
        found = (await client.get("/items/item-0")).json()["item"]
        json.dumps(found, allow_nan=False).encode()
        body = {"history": [], "filter": {"attributes": {"price": {"gte": 0}}}}
        assert (await client.post("/recommend", json=body)).status_code == 200


@given(any_json)
def test_strict_json_is_read_as_any_other_reader_reads_it(value):
    for ensure_ascii in (True, False):
        body = json.dumps(value, ensure_ascii=ensure_ascii).encode()
        assert parse(body) == json.loads(body) == value
        assert parse(b"\xef\xbb\xbf" + body) == value


@given(st.binary(max_size=200) | st.text('[]{}:,"\\u0d8e+-.1NaIfinty ', max_size=200).map(str.encode))
def test_bytes_are_read_or_refused(body):
    with suppress(InvalidJson):
        parse(body)


# --- nothing in a request is a path, a URL or a command ---

HOSTILE_IDS = [
    "../../etc/passwd",
    "..%2f..%2fetc%2fpasswd",
    "/etc/passwd",
    "//etc/passwd",
    "....//etc/passwd",
    "..\\..\\windows\\win.ini",
    "file:///etc/passwd",
    "http://127.0.0.1:9/x",
    "redis://127.0.0.1:9/0",
    "{glyphrec}:items",
    "*",
    "$(touch x)",
    "'; FLUSHALL; --",
    "{{7*7}}${7*7}",
    "%s%n%x",
    "<script>alert(1)</script>",
    "__proto__",
    "item-0/similar",
    "é\u202e\u200b",
]
NO_IDS = ["a\0b", "a\r\nX-Injected: 1", "a\nb", "\x1b[31m", " ", "\t"]


def escaped(item_id: str) -> str:
    return "".join(f"%{byte:02X}" for byte in item_id.encode())


@pytest.mark.parametrize("item_id", HOSTILE_IDS)
async def test_an_id_is_a_name_and_nothing_else(client, item_id):
    path = f"/items/{escaped(item_id)}"
    for suffix in ("/similar", "/image"):
        assert is_problem(await client.get(path + suffix), 404, "item-not-found")
    posted = {"item_id": item_id, "title": "x"}
    assert (await client.post("/items", json=posted)).json()["items"][0]["status"] == "created"
    if not item_id.endswith("/similar"):  # GET would take it for the route of that name
        assert (await client.get(path)).json()["item"] == posted
    assert (await client.get(path + "/similar")).status_code == 200
    assert (await client.get(path + "/image")).content.startswith(b"\x89PNG")
    assert (await client.patch(path, json={"title": "y"})).status_code == 200
    answer = (await client.post("/recommend", json={"history": [item_id]})).json()
    assert (answer["source"], answer["unknown_item_ids"]) == ("model", [])
    assert (await client.delete(path)).status_code == 200
    assert is_problem(await client.delete(path), 404, "item-not-found")
    assert (await client.get("/info")).json()["catalog"]["items"] == len(KNOWN_ITEMS)


@pytest.mark.parametrize("item_id", NO_IDS)
async def test_an_id_that_would_end_a_line_or_a_text_is_refused_everywhere(client, item_id):
    path = f"/items/{escaped(item_id)}"
    for method, suffix in (("GET", ""), ("GET", "/image"), ("PATCH", ""), ("DELETE", "")):
        body = {"title": "x"} if method == "PATCH" else None
        response = await client.request(method, path + suffix, json=body)
        # a route's path has no line ends
        assert is_problem(response, *(404, "no-such-route") if "\n" in item_id else (422, "invalid-item"))
        assert "x-injected" not in response.headers
    assert (await client.get(path + "/similar")).status_code == 404
    assert is_problem(
        await client.post("/items", json={"item_id": item_id, "title": "x"}), 422, "invalid-item"
    )
    assert (await client.post("/recommend", json={"history": [item_id]})).status_code == 200


@pytest.mark.parametrize(
    "path", ["/../etc/passwd", "/docs/assets/../../errors.py", "/docs/assets//etc/passwd"]
)
async def test_static_files_lead_nowhere_else(client, path):
    raw = path.replace("..", "%2e%2e").replace("//", "/%2f")
    assert is_problem(await client.get(raw), 404, "no-such-route")


async def test_a_request_cannot_forge_a_line_of_the_log(bundle, redis_url, caplog):
    caplog.set_level(logging.INFO)
    async with running(bundle, redis_url, access_log=True) as client:
        await client.get("/items/%0AFORGED%20line", headers={"X-Request-ID": "a b"})
    assert "FORGED" in caplog.text
    assert not [record for record in caplog.records if "\n" in record.getMessage()]
