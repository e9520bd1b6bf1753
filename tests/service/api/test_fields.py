"""A tokenizer that reads fields, over HTTP: new items, new values, changes, and what it shows of an item."""

import base64

import pytest

from service.core.item_fields import Vocabulary
from tests.known_bundle import KnownItem, known_field_codes, write_known_bundle
from tests.service.core.photos import photo
from tests.service.running import is_problem, running

VOCABULARY = Vocabulary(
    {
        "item_id": {"known": 1},
        "brand": {"acme": 1, "zenith": 2},
        "categories.2": {("tools", "screws"): 1, ("tools", "tapes"): 2},
    }
)
# The codes of the export, which the treatment of collisions may have moved.
KNOWN = KnownItem("known", (9, 1, 2), 3, {"item_id": "known", "title": "Known", "brand": "Acme"})
SCREW = {"item_id": "screw", "title": "Screw M3", "brand": "Acme", "categories": ["Tools", "Screws", "Wood"]}


@pytest.fixture(scope="session")
def field_bundle(tmp_path_factory):
    return write_known_bundle(tmp_path_factory.mktemp("fields"), [KNOWN], vocabulary=VOCABULARY)


@pytest.fixture
async def reader(field_bundle, redis_url):
    """A client of a service whose tokenizer reads fields."""
    async with running(field_bundle, redis_url) as client:
        yield client


def codes(item: dict) -> list[int]:
    return list(known_field_codes(item, VOCABULARY))


async def post(client, item: dict) -> dict:
    response = await client.post("/items", json={"items": [item]})
    assert response.status_code == 200, response.text
    return response.json()["items"][0]


async def test_a_new_item_has_codes_by_its_fields_and_is_recommended(reader):
    result = await post(reader, SCREW)
    assert (result["status"], result["codes"]) == ("created", codes(SCREW))
    assert (result["truncated"], result["missing_characters"], result["unused_values"]) == (None, None, [])
    page = (await reader.post("/recommend", json={"history": ["known"], "limit": 5})).json()
    assert "screw" in [each["item_id"] for each in page["items"]]


async def test_another_text_keeps_the_codes_and_another_value_moves_the_item(reader):
    await post(reader, SCREW)
    assert (await post(reader, SCREW | {"title": "Screw M4"}))["status"] == "updated"
    changed = SCREW | {"title": "Screw M4", "brand": "Zenith"}
    patched = (await reader.patch("/items/screw", json={"brand": "Zenith"})).json()
    assert (patched["status"], patched["codes"]) == ("moved", codes(changed))
    assert (await post(reader, changed))["status"] == "unchanged"
    without = {name: value for name, value in changed.items() if name != "brand"}
    patched = (await reader.patch("/items/screw", json={"brand": None})).json()
    assert patched["codes"] == codes(without) == codes(without | {"brand": "never seen"})


async def test_a_new_value_is_told_and_counted(reader):
    result = await post(reader, SCREW | {"brand": "Bolt & Co", "categories": ["Garden", "Hoses"]})
    assert [each["field"] for each in result["unused_values"]] == ["brand", "categories"]
    assert (
        "new value for the tokenizer's categories.2, which is read as absent"
        in (result["unused_values"][1]["reason"])
    )
    told = (await reader.get("/metrics")).text
    assert 'glyphrec_unused_values_total{field="brand"} 1.0' in told


async def test_an_item_that_the_tokenizer_knows_by_its_id_keeps_the_codes_of_the_export(reader):
    assert (await reader.get("/items/known")).json()["codes"] == [9, 1, 2]
    assert (await post(reader, KNOWN.item))["status"] == "unchanged"
    other = await post(reader, KNOWN.item | {"item_id": "other"})
    assert other["codes"] == codes(KNOWN.item | {"item_id": "other"}) != codes(KNOWN.item)


async def test_an_item_without_any_text_is_refused_as_a_later_tokenizer_must_read_it(reader):
    result = await post(reader, {"item_id": "empty"})
    assert "has no text to read" in result["error"]["detail"]


async def test_no_pixels_are_shown_but_a_photo_is_kept_for_later(reader):
    data = base64.b64encode(photo(1)).decode()
    result = await post(reader, SCREW | {"image": {"data": data}})
    assert result["codes"] == codes(SCREW)
    assert "the served bundle reads no pictures" in result["unused_values"][0]["reason"]
    for part in ("all", "text", "photo"):
        response = await reader.get("/items/screw/image", params={"part": part})
        assert is_problem(response, 404, "picture-not-found")
        assert "reads the fields item_id, brand, categories.2, and no pixels" in response.json()["detail"]
    assert (await reader.get("/items/screw/image", params={"part": "kept"})).status_code == 200


async def test_info_names_the_fields_and_none_for_a_tokenizer_of_pixels(reader, bundle, redis_url):
    assert (await reader.get("/info")).json()["fields"] == ["item_id", "brand", "categories.2"]
    async with running(bundle, redis_url, catalog="another") as client:
        assert (await client.get("/info")).json()["fields"] is None


async def test_items_are_found_by_an_item_and_not_by_a_text(reader):
    """There is no query that has fields."""
    other = SCREW | {"item_id": "other", "brand": "Zenith"}
    for item in (SCREW, other):
        await post(reader, item)
    found = (await reader.get("/items/screw/similar", params={"by": "vector"})).json()["items"]
    assert {each["item_id"] for each in found} == {"known", "other"}
    assert is_problem(await reader.post("/search", json={"query": "Screw"}), 422, "invalid-query")
