"""The explorer's page, files and own routes, on a known bundle. A browser looks at it in tests/e2e."""

import json
import re
from importlib.resources import files

import pytest

from service.core.sid import SidSpec
from tests.known_bundle import KNOWN_ITEMS, SPEC
from tests.service.running import is_problem, running

HISTORY = [KNOWN_ITEMS[0].item_id]


async def test_the_page_and_its_files_allow_nothing_inline_and_nothing_from_elsewhere(client):
    for path in ("/", "/explorer/files/app.js", "/explorer/files/style.css", "/explorer/files/icon.svg"):
        response = await client.get(path)
        assert response.status_code == 200
        policy = dict(part.split(" ", 1) for part in response.headers["content-security-policy"].split("; "))
        assert policy.pop("default-src") == "'none'"
        assert {*policy.values()} <= {"'self'", "'none'"}
        assert (
            policy["script-src"]
            == policy["style-src"]
            == policy["connect-src"]
            == policy["img-src"]
            == "'self'"
        )
        assert policy["frame-ancestors"] == "'none'"
        assert response.headers["x-content-type-options"] == "nosniff"
        assert "://" not in response.text.replace("http://www.w3.org/2000/svg", "")


async def test_a_file_that_has_not_changed_is_not_sent_again(client):
    first = await client.get("/explorer/files/app.js")
    again = await client.get("/explorer/files/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert again.status_code == 304
    assert again.content == b""


async def test_only_files_of_the_page_are_given(client):
    assert is_problem(await client.get("/explorer/files/passwd"), 404, "no-such-file")
    for name in ("../settings.py", "..%2fsettings.py", "%2e%2e/settings.py"):
        assert (await client.get(f"/explorer/files/{name}")).status_code == 404


async def test_the_page_is_open_and_what_it_shows_needs_a_read_key(bundle, redis_url):
    async with running(bundle, redis_url, read_keys=("reader-key-0123456789",)) as client:
        assert (await client.get("/")).status_code == 200
        assert (await client.get("/explorer/files/app.js")).status_code == 200
        read = {"X-API-Key": "reader-key-0123456789"}
        for path in ("/explorer/items", "/explorer/branches", "/explorer/categories"):
            assert is_problem(await client.get(path), 401, "missing-key")
            assert (await client.get(path, headers=read)).status_code == 200
        for path, body in (("contents", {"item_ids": HISTORY}), ("beam", {"history": [], "num_beams": 4})):
            assert is_problem(await client.post(f"/explorer/{path}", json=body), 401, "missing-key")


async def test_the_setting_turns_page_files_and_routes_off(bundle, redis_url):
    async with running(bundle, redis_url, explorer=False) as client:
        for path in ("/", "/explorer/files/app.js", "/explorer/items", "/explorer/branches"):
            assert is_problem(await client.get(path), 404, "no-such-route")


async def test_the_explorers_own_routes_are_not_part_of_the_described_api(client):
    described = (await client.get("/openapi.json")).json()["paths"]
    assert not [path for path in described if path == "/" or "explorer" in path]


async def test_listing_by_codes_gives_every_item_once_with_its_content(client):
    listed, after = [], {}
    while True:
        page = (await client.get("/explorer/items", params={"limit": 7, **after})).json()
        assert page["num_items"] == len(KNOWN_ITEMS)
        listed += page["items"]
        if page["next_after"] is None:
            break
        after = {"after": page["next_after"]}
    assert sorted(each["item"]["item_id"] for each in listed) == sorted(each.item_id for each in KNOWN_ITEMS)
    assert [each["codes"] for each in listed] == sorted(each["codes"] for each in listed)
    content = {each.item_id: each.item for each in KNOWN_ITEMS}
    assert all(each["item"] == content[each["item"]["item_id"]] for each in listed)


async def test_a_filter_narrows_items_branches_and_their_examples(client):
    wanted = [each.item_id for each in KNOWN_ITEMS[:5]]
    params = {"filter": json.dumps({"item_ids": wanted})}
    page = (await client.get("/explorer/items", params=params)).json()
    assert sorted(each["item"]["item_id"] for each in page["items"]) == sorted(wanted)
    found = (await client.get("/explorer/branches", params=params)).json()
    assert found["num_items"] == sum(each["num_items"] for each in found["branches"]) == len(wanted)
    shown = {example["item"]["item_id"] for each in found["branches"] for example in each["examples"]}
    assert shown <= set(wanted)


@pytest.mark.parametrize("codes", ["99", "0-9", "0-0-0-0", str(SPEC.levels[0])])
async def test_codes_that_no_item_can_have_are_refused(client, codes):
    assert is_problem(await client.get("/explorer/items", params={"codes": codes}), 404, "no-such-prefix")


async def test_there_are_no_branches_below_whole_codes(client):
    response = await client.get("/explorer/branches", params={"codes": "0-0-0"})
    assert is_problem(response, 404, "no-such-prefix")


@pytest.mark.parametrize(
    "given", [{"codes": "a"}, {"codes": "1-"}, {"after": "7"}, {"limit": "0"}, {"what": "1"}]
)
async def test_a_malformed_address_is_refused(client, given):
    assert is_problem(await client.get("/explorer/items", params=given), 422, "invalid-request")


async def test_contents_keep_the_order_and_leave_out_what_is_not_there(client):
    ids = [KNOWN_ITEMS[3].item_id, "nobody", KNOWN_ITEMS[1].item_id]
    found = (await client.post("/explorer/contents", json={"item_ids": ids})).json()["items"]
    assert [each["item"]["item_id"] for each in found] == [ids[0], ids[2]]


async def test_categories_come_with_their_numbers_of_items(client):
    items = [
        {"item_id": f"c{number}", "title": "x", "categories": ["Pens", "Ink"][: number % 2 + 1]}
        for number in range(5)
    ]
    (await client.post("/items", json={"items": items})).raise_for_status()
    found = (await client.get("/explorer/categories")).json()["categories"]
    assert found == [{"category": "Pens", "num_items": 5}, {"category": "Ink", "num_items": 2}]


async def test_a_graph_without_a_choice_for_each_level_says_that_its_beam_cannot_be_told(client):
    body = {"history": HISTORY, "num_beams": 8}
    assert is_problem(await client.post("/explorer/beam", json=body), 409, "beam-not-told")


def test_a_prefix_of_codes_is_its_number_and_back():
    spec = SidSpec(levels=(5, 3, 7))
    assert spec.prefix_of(()) == 0
    assert all(spec.codes_of(spec.prefix_of((a, b)), 2) == (a, b) for a in range(5) for b in range(3))


def luminance(color: str) -> float:
    """WCAG 2.1, relative luminance."""
    parts = [int(color[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [each / 12.92 if each <= 0.04045 else ((each + 0.055) / 1.055) ** 2.4 for each in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def colors_of_the_page() -> dict[str, tuple[str, str]]:
    css = files("service").joinpath("explorer", "style.css").read_text(encoding="utf-8")
    return {
        name: (light, dark)
        for name, light, dark in re.findall(r"--([\w-]+): light-dark\((#\w{6}), (#\w{6})\);", css)
    }


TEXTS = [
    (text, ground) for text in ("ink", "muted", "accent", "good", "bad") for ground in ("paper", "sheet")
]
TEXTS += [("accent", "tint"), ("ink", "tint"), ("muted", "tint"), ("on-accent", "accent")]
TEXTS += [("ink", f"l{level}") for level in range(4)]


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
@pytest.mark.parametrize(("text", "ground"), TEXTS)
def test_texts_stand_out_from_their_ground_as_wcag_aa_asks(text, ground, scheme):
    colors = colors_of_the_page()
    bright, dim = sorted((luminance(colors[name][scheme]) for name in (text, ground)), reverse=True)
    assert (bright + 0.05) / (dim + 0.05) >= 4.5
