"""Values of other programs in Redis: the service starts, follows, lists and recommends in spite of them."""

import asyncio
import pickle
import struct

import pytest

from tests.known_bundle import KNOWN_ITEMS
from tests.service.running import is_problem, running

TOKENIZER = "0123456789ab"  # of the known bundle
ITEMS, CODES, TRIE, LOG, ACTIVE = (
    f"{{glyphrec}}:{kind}"
    for kind in ("items", f"codes:{TOKENIZER}", f"trie:{TOKENIZER}", f"log:{TOKENIZER}", "active")
)
HASH = b"0" * 32
VICTIM = "item-3"


class Explosive:
    def __reduce__(self):
        return (exec, ("raise SystemExit('unpickled')",))


VALUES = {
    "nothing": b"",
    "noise": bytes(range(256)),
    "no JSON": HASH + b" {",
    "a list": HASH + b" [1]",
    "nested without end": HASH + b" " + b"[" * 100_000,
    "NaN": HASH + b' {"item_id": "item-3", "price": NaN}',
    "a number of many digits": HASH + b' {"item_id": "item-3", "price": ' + b"9" * 5_000 + b"}",
    "half a surrogate pair": HASH + b' {"item_id": "item-3", "title": "\\ud800"}',
    "half a surrogate pair in bytes": HASH + b' {"item_id": "item-3", "title": "\xed\xa0\x80"}',
    "half a surrogate pair in a name": HASH + b' {"item_id": "item-3", "\\udfff": 1}',
    "no UTF-8": HASH + b' {"item_id": "item-3", "title": "\xff"}',
    "a hash of no letters": b"\xff" * 32 + b' {"item_id": "item-3"}',
    "a pickle": pickle.dumps(Explosive()),
    "a pickle after a hash": HASH + b" " + pickle.dumps(Explosive()),
}
MEMBERS = {
    "nothing": b"",
    "too short": b"\x00",
    "codes beyond the levels": b"\xff" * 8 + b"x",
    "an id of no UTF-8": struct.pack(">4H", 1, 1, 1, 0) + b"\xff\xfe",
    "an id of half a surrogate pair": struct.pack(">4H", 1, 1, 1, 0) + b"\xed\xa0\x80",
    "no id": struct.pack(">4H", 1, 1, 1, 0),
    "an item that is nowhere else": struct.pack(">4H", 1, 1, 1, 7) + b"ghost",
}


def damages():
    for what, value in VALUES.items():
        yield f"an item: {what}", lambda redis, v=value: redis.hset(ITEMS, VICTIM, v)
        yield f"codes: {what}", lambda redis, v=value: redis.hset(CODES, VICTIM, v)
        yield f"active: {what}", lambda redis, v=value: redis.set(ACTIVE, v)
    for what, member in MEMBERS.items():
        yield f"the trie: {what}", lambda redis, m=member: redis.zadd(TRIE, {m: 0})
        yield f"an id of items: {what}", lambda redis, m=member[8:]: redis.hset(ITEMS, m, HASH + b" {}")
        yield f"an id of codes: {what}", lambda redis, m=member[8:]: redis.hset(CODES, m, b"x")
    yield "an item of no codes", lambda redis: redis.hdel(CODES, VICTIM)
    yield "codes of no item", lambda redis: redis.hdel(ITEMS, VICTIM)


DAMAGES = dict(damages())


async def lives_well(client, *, lost=(VICTIM,)):
    others = [each.item_id for each in KNOWN_ITEMS if each.item_id not in lost]
    listed = (await client.get("/items?limit=1000")).json()["items"]
    assert {each["item"]["item_id"] for each in listed} >= set(others)
    for each in (*others[:3], *lost):
        response = await client.get(f"/items/{each}")
        assert response.status_code == 200 or is_problem(response, 404, "item-not-found")
        assert (await client.get(f"/items/{each}/similar")).status_code in (200, 404)
        assert (await client.get(f"/items/{each}/image")).status_code in (200, 404)
    answer = (await client.post("/recommend", json={"history": others[:2], "limit": 100})).json()
    assert answer["source"] == "model"
    assert {each["item_id"] for each in answer["items"]} >= set(others[2:])
    assert (await client.post("/recommend", json={"history": ["nobody"]})).status_code == 200
    assert (await client.post("/items", json={"item_id": "new", "title": "Brand new"})).status_code == 200
    assert (await client.get("/items/new")).status_code == 200


@pytest.mark.parametrize("damage", DAMAGES)
async def test_a_value_that_is_not_ours_harms_only_its_item(bundle, redis_url, redis, damage):
    async with running(bundle, redis_url) as client:
        await DAMAGES[damage](redis)
        await lives_well(client)  # follows
    async with running(bundle, redis_url) as client:  # starts
        await lives_well(client)
        # and a post of the item mends it
        posted = (await client.post("/items", json=KNOWN_ITEMS[3].item)).json()["items"][0]
        assert posted["error"] is None
        assert (await client.get(f"/items/{VICTIM}")).json()["item"] == KNOWN_ITEMS[3].item


@pytest.mark.parametrize("fields", [{"somebody": "else"}, {b"\xff": b"\xff"}, {"op": "put", "id": b"\xff"}])
async def test_a_foreign_entry_in_the_log_is_passed_by_loading_anew(bundle, redis_url, redis, fields):
    async with running(bundle, redis_url) as client:
        version = (await client.get("/info")).json()["catalog"]["version"]
        await redis.xadd(LOG, fields, id=f"{version + 1}-0")
        async with asyncio.timeout(10):
            while (await client.get("/info")).json()["catalog"]["version"] <= version:
                await asyncio.sleep(0.01)
        await lives_well(client, lost=())


async def test_what_is_skipped_is_counted(bundle, redis_url, redis):
    async with running(bundle, redis_url) as client:
        await redis.hset(ITEMS, VICTIM, b"rubbish")
        assert (await client.get(f"/items/{VICTIM}")).status_code == 404
        metrics = (await client.get("/metrics")).text
        (count,) = [
            line for line in metrics.splitlines() if line.startswith("glyphrec_") and "unreadable" in line
        ]
        assert float(count.split()[-1]) >= 1


@pytest.mark.parametrize("key", [ITEMS, CODES, TRIE, LOG])
async def test_a_key_of_another_kind_is_told_of_without_its_value(bundle, redis_url, redis, key):
    async with running(bundle, redis_url) as client:
        before = (await client.post("/recommend", json={"history": ["item-0"]})).json()
        await redis.delete(key)
        await redis.set(key, "a secret value")
        refused = await client.post("/items", json={"item_id": "a", "title": "x"})
        assert is_problem(refused, 500, "store-fault")
        for path in ("/items", "/items/item-0"):
            response = await client.get(path)
            assert response.status_code == 200 or is_problem(response, 500, "store-fault")
            assert "secret" not in response.text
        assert (await client.post("/recommend", json={"history": ["item-0"]})).json() == before
