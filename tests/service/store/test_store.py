import asyncio
import base64
import itertools
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from service.core.sid import Codes, Sid
from service.errors import (
    InvalidCursor,
    ItemChanged,
    ServiceError,
    SidSpaceFull,
)
from service.store.client import connect
from service.store.items import ItemStore, PutResult
from service.store.server import RedisServer
from tests.service.catalogs import (
    CATALOG,
    ITEMS,
    LOG,
    ODD_IDS,
    TOKENIZER,
    assert_in_step,
    put,
    random_codes,
    read_raw,
    record,
    store_on,
)


async def test_a_new_item_gets_its_codes_and_the_first_slot(store: ItemStore) -> None:
    result = await put(store, record("a"), (1, 2, 3))
    assert result == PutResult("a", Sid((1, 2, 3), 0), "created", 1)


async def test_items_with_the_same_codes_get_slots_in_order(store: ItemStore) -> None:
    sids = [(await put(store, record(item_id, item_id), (1, 2, 3))).sid for item_id in "abc"]
    assert sids == [Sid((1, 2, 3), slot) for slot in range(3)]


async def test_the_same_post_again_changes_nothing(store: ItemStore, redis: Redis) -> None:
    first = await put(store, record("a", price=3), (1, 2, 3))
    before = await read_raw(redis)
    second = await put(store, record("a", price=3), (1, 2, 3))
    assert second == PutResult("a", first.sid, "unchanged", first.version)
    assert await read_raw(redis) == before


async def test_fields_in_another_order_are_the_same_item(store: ItemStore) -> None:
    await put(store, record("a", color="red", size=4), (1, 2, 3))
    assert (await put(store, record("a", size=4, color="red"), (1, 2, 3))).status == "unchanged"


async def test_the_same_text_keeps_its_sid_though_it_was_read_differently(store: ItemStore) -> None:
    first = await put(store, record("a"), (1, 2, 3))
    assert (await put(store, record("a"), (0, 0, 0))).sid == first.sid
    assert (await put(store, record("a", price=3), (0, 0, 0))).sid == first.sid


async def test_other_attributes_update_the_item_in_place(store: ItemStore) -> None:
    first = await put(store, record("a", price=3), (1, 2, 3))
    second = await put(store, record("a", price=4), None)
    assert second == PutResult("a", first.sid, "updated", 2)
    found = await store.get("a")
    assert found is not None
    assert found.item["price"] == 4


async def test_a_new_text_moves_the_item_and_frees_its_slot(store: ItemStore, redis: Redis) -> None:
    await put(store, record("a", "one"), (1, 2, 3))
    await put(store, record("b", "two"), (1, 2, 3))
    moved = await put(store, record("a", "three"), (3, 0, 0))
    assert moved == PutResult("a", Sid((3, 0, 0), 0), "moved", 3)
    assert (await put(store, record("c", "four"), (1, 2, 3))).sid == Sid((1, 2, 3), 0)
    assert_in_step(await read_raw(redis))


async def test_a_new_text_that_reads_as_the_same_codes_keeps_its_slot(store: ItemStore) -> None:
    await put(store, record("a", "one"), (1, 2, 3))
    await put(store, record("b", "two"), (1, 2, 3))
    await store.drop(["a"])
    again = await put(store, record("b", "three"), (1, 2, 3))
    assert again == PutResult("b", Sid((1, 2, 3), 1), "updated", 4)
    assert (await store.held(["b"]))["b"].content_hash == record("b", "three").content_hash


async def test_a_dropped_item_is_gone_everywhere_and_its_slot_is_free(store: ItemStore, redis: Redis) -> None:
    await put(store, record("a"), (1, 2, 3))
    (result,) = await store.drop(["a"])
    assert (result.item_id, result.existed, result.version) == ("a", True, 2)
    assert await store.get("a") is None
    raw = await read_raw(redis)
    assert (raw.items, raw.codes, raw.trie) == (set(), {}, set())
    assert (await put(store, record("b"), (1, 2, 3))).sid == Sid((1, 2, 3), 0)


async def test_dropping_an_absent_item_changes_nothing(store: ItemStore, redis: Redis) -> None:
    await put(store, record("a"), (1, 2, 3))
    before = await read_raw(redis)
    (result,) = await store.drop(["b"])
    assert (result.existed, result.version) == (False, 1)
    assert await read_raw(redis) == before


async def test_full_codes_refuse_one_item_and_not_its_neighbors(redis: Redis) -> None:
    store = store_on(redis, num_slots=2)
    full: Codes = (1, 2, 3)
    results = await store.put(
        [*((record(item_id, item_id), full) for item_id in "abc"), (record("d"), (0, 0, 0))]
    )
    assert [type(result) for result in results] == [PutResult, PutResult, SidSpaceFull, PutResult]
    assert "All 2 slots of the codes 1-2-3" in str(results[2])
    assert_in_step(await read_raw(redis))


async def test_an_item_that_was_full_keeps_what_it_had(redis: Redis) -> None:
    store = store_on(redis, num_slots=1)
    await put(store, record("a", "one"), (1, 2, 3))
    await put(store, record("b", "two"), (0, 0, 0))
    assert isinstance((await store.put([(record("b", "three"), (1, 2, 3))]))[0], SidSpaceFull)
    found = await store.get("b")
    assert found is not None
    assert (found.sid, found.item["title"]) == (Sid((0, 0, 0), 0), "two")


async def test_a_kept_sid_is_refused_where_the_text_has_changed_meanwhile(
    store: ItemStore, redis: Redis
) -> None:
    await put(store, record("a", "one"), (1, 2, 3))
    await put(store, record("a", "two"), (1, 2, 4))  # another writer was faster
    before = await read_raw(redis)
    for gone in (record("a", "one"), record("never there")):
        assert isinstance((await store.put([(gone, None)]))[0], ItemChanged)
    assert await read_raw(redis) == before


async def test_what_is_held_tells_which_text_was_read(store: ItemStore) -> None:
    a = record("a", "one")
    result = await put(store, a, (1, 2, 3))
    held = await store.held(["a", "b"])
    assert set(held) == {"a"}
    assert (held["a"].content_hash, held["a"].sid) == (a.content_hash, result.sid)


@pytest.mark.parametrize("item_id", ODD_IDS)
async def test_any_text_can_be_an_id(store: ItemStore, redis: Redis, item_id: str) -> None:
    await put(store, record("a"), (1, 2, 3))
    await put(store, record(item_id, item_id, note=item_id), (1, 2, 3))
    await put(store, record("z"), (1, 2, 3))
    found = await store.get(item_id)
    assert found is not None
    assert found.item == {"item_id": item_id, "title": item_id, "note": item_id}
    assert found.sid == Sid((1, 2, 3), 1)
    assert [change.item_id for change in await store.changes(0)] == ["a", item_id, "z"]
    assert_in_step(await read_raw(redis))
    await store.drop([item_id])
    assert (await put(store, record("b", "new"), (1, 2, 3))).sid.slot == 1


async def test_odd_ids_at_neighboring_codes_do_not_take_each_others_slots(store: ItemStore) -> None:
    """Bytes 0 and 255 at the ends of codes, slots and ids are where a careless range would leak."""
    codes = [(0, 0, 0), (0, 0, 1), (3, 2, 4)]
    for slot, item_id in enumerate(["\x00", "\u00ff", "\U0010ffff"]):
        for place in codes:
            result = await put(store, record(f"{item_id}{place}", f"{item_id}{place}"), place)
            assert result.sid == Sid(place, slot)


class Model:
    """put and drop in plain Python."""

    def __init__(self, num_slots: int) -> None:
        self.num_slots = num_slots
        self.items: dict[str, tuple[str, int, Sid]] = {}  # id -> text, price, sid
        self.version = 0

    def put(self, item_id: str, text: str, price: int, codes: Codes) -> tuple[str, Sid | None]:
        held = self.items.get(item_id)
        if held and held[0] == text:
            sid, status = held[2], "unchanged" if held[1] == price else "updated"
        elif held and held[2].codes == codes:
            sid, status = held[2], "updated"
        else:
            taken = {sid.slot for _, _, sid in self.items.values() if sid.codes == codes}
            slot = next(slot for slot in itertools.count() if slot not in taken)
            if slot >= self.num_slots:
                return "full", None
            sid, status = Sid(codes, slot), "moved" if held else "created"
        self.items[item_id] = (text, price, sid)
        self.version += status != "unchanged"
        return status, sid

    def drop(self, item_id: str) -> bool:
        existed = self.items.pop(item_id, None) is not None
        self.version += existed
        return existed


FEW_CODES: list[Codes] = [(0, 0, 0), (0, 0, 1), (3, 2, 4)]
STEPS = st.lists(
    st.tuples(
        st.sampled_from("abcdefgh"),
        st.sampled_from("xyz"),
        st.integers(0, 1),
        st.sampled_from([*FEW_CODES, None]),
    ),
    max_size=40,
)
catalog_names = itertools.count()


@given(steps=STEPS, num_slots=st.integers(2, 6))
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_any_sequence_of_puts_and_drops_does_what_plain_python_does(
    redis_server: RedisServer, steps: list[tuple[str, str, int, Codes | None]], num_slots: int
) -> None:
    catalog = f"model-{next(catalog_names)}"
    redis = connect(redis_server.url)
    store, model = store_on(redis, catalog=catalog, num_slots=num_slots), Model(num_slots)
    for item_id, text, price, codes in steps:
        if codes is None:
            assert (await store.drop([item_id]))[0].existed == model.drop(item_id)
            continue
        (result,) = await store.put([(record(item_id, text, price=price), codes)])
        status, sid = model.put(item_id, text, price, codes)
        if isinstance(result, ServiceError):
            assert (type(result), status) == (SidSpaceFull, "full")
        else:
            assert (result.status, result.sid, result.version) == (status, sid, model.version)
    raw = await read_raw(redis, catalog)
    assert_in_step(raw)
    assert raw.sids == {item_id: sid for item_id, (_, _, sid) in model.items.items()}
    assert await store.last_version() == len(raw.versions) == model.version
    await redis.aclose()


@pytest.mark.parametrize("free", [0, 1, 17, 298, 299])
async def test_the_only_free_slot_among_hundreds_is_found(store: ItemStore, free: int) -> None:
    codes = (2, 1, 4)
    await store.put([(record(f"i{slot}", f"i{slot}"), codes) for slot in range(300)])
    await store.drop([f"i{free}"])
    assert (await put(store, record("new", "new"), codes)).sid == Sid(codes, free)
    assert (await put(store, record("newer", "newer"), codes)).sid == Sid(codes, 300)


async def test_writers_at_once_never_share_a_sid_or_a_version(
    redis: Redis, redis_server: RedisServer
) -> None:
    other = connect(redis_server.url)
    stores = [store_on(redis), store_on(other)]
    rng = random.Random(0)
    puts = [(record(f"i{i}", f"i{i}"), FEW_CODES[rng.randrange(3)]) for i in range(200)]
    results = await asyncio.gather(*(put(stores[i % 2], *puts[i]) for i in range(len(puts))))
    assert len({result.sid for result in results}) == len(results)
    assert sorted(result.version for result in results) == list(range(1, len(results) + 1))
    assert_in_step(await read_raw(redis))
    await other.aclose()


async def test_the_same_item_from_two_writers_at_once_is_one_item(redis: Redis) -> None:
    stores = [store_on(redis), store_on(redis)]
    results = await asyncio.gather(*(put(stores[i % 2], record("a"), (1, 2, 3)) for i in range(20)))
    assert {result.sid for result in results} == {Sid((1, 2, 3), 0)}
    assert [result.status for result in results].count("created") == 1
    assert_in_step(await read_raw(redis))


async def test_a_large_batch_is_answered_item_by_item_in_order(store: ItemStore) -> None:
    rng = random.Random(1)
    results = await store.put([(record(f"i{i}", f"i{i}"), random_codes(rng)) for i in range(700)])
    assert [r.item_id for r in results if isinstance(r, PutResult)] == [f"i{i}" for i in range(700)]
    assert len(await store.get_many([f"i{i}" for i in range(700)])) == 700
    assert len(await store.drop([f"i{i}" for i in range(700)])) == 700
    assert await store.num_items() == 0


async def test_nothing_is_asked_of_redis_for_no_items(store: ItemStore) -> None:
    assert await store.put([]) == []
    assert await store.drop([]) == []
    assert await store.held([]) == {}


@pytest.mark.parametrize("limit", [1, 3, 7, 100])
async def test_pages_hold_every_item_once_in_trie_order(store: ItemStore, limit: int) -> None:
    rng = random.Random(limit)
    ids = [f"i{i}" for i in range(40)] + ODD_IDS
    await store.put([(record(item_id, item_id), random_codes(rng)) for item_id in ids])
    seen, cursor = [], None
    while True:
        page = await store.page(cursor, limit)
        assert len(page.items) <= limit
        seen += page.items
        cursor = page.next_cursor
        if cursor is None:
            break
    assert sorted(item.item_id for item in seen) == sorted(ids)
    assert [item.sid for item in seen] == sorted(item.sid for item in seen)
    assert all(item.item["item_id"] == item.item_id for item in seen)
    entries = [entry async for entries in store.snapshot() for entry in entries]
    assert [(entry.item_id, entry.sid) for entry in entries] == [(item.item_id, item.sid) for item in seen]


async def test_an_empty_catalog_has_one_empty_page(store: ItemStore) -> None:
    assert await store.page(None, 10) == ([], None)
    assert await store.last_version() == 0
    assert await store.changes(0) == []


async def test_pages_go_on_behind_an_item_that_was_dropped_meanwhile(store: ItemStore) -> None:
    for item_id in "abcd":
        await put(store, record(item_id, item_id), (1, 1, 1))
    first = await store.page(None, 2)
    await store.drop(["b"])
    second = await store.page(first.next_cursor, 2)
    assert [item.item_id for item in (*first.items, *second.items)] == ["a", "b", "c", "d"]


@pytest.mark.parametrize(
    "cursor", ["", "x", "?!", "AAAA", "é", base64.urlsafe_b64encode(b"\xff" * 12).decode(), "_" * 5000]
)
async def test_a_cursor_from_elsewhere_is_refused(store: ItemStore, cursor: str) -> None:
    await put(store, record("a"), (1, 2, 3))
    with pytest.raises(InvalidCursor) as caught:
        await store.page(cursor, 10)
    assert len(str(caught.value)) < 200


async def test_changes_come_in_order_from_any_version(store: ItemStore) -> None:
    await put(store, record("a", "one"), (1, 2, 3))
    await put(store, record("a", "two"), (0, 0, 0))
    await store.drop(["a"])
    changes = await store.changes(0)
    assert [(c.version, c.op, c.item_id, c.sid) for c in changes] == [
        (1, "put", "a", Sid((1, 2, 3), 0)),
        (2, "put", "a", Sid((0, 0, 0), 0)),
        (3, "drop", "a", Sid((0, 0, 0), 0)),
    ]
    assert [change.after for change in changes] == ["", changes[0].mark, changes[1].mark]
    assert await store.position() == (3, changes[2].mark)
    assert await store.changes(1) == changes[1:]
    assert await store.changes(1, limit=1) == changes[1:2]
    assert await store.changes(3, block_ms=1) == []


async def test_a_reader_that_waits_gets_the_next_change_at_once(store: ItemStore) -> None:
    reader = asyncio.create_task(store.changes(0, block_ms=1_500))
    await asyncio.sleep(0)
    result = await put(store, record("a"), (1, 2, 3))
    (change,) = await reader
    assert change.version == result.version


async def test_a_trimmed_log_keeps_its_newest_changes_and_its_count(redis: Redis) -> None:
    store = store_on(redis, log_length=1)
    for i in range(250):
        await put(store, record("a", f"{i}"), (1, 2, 3))
    changes = await store.changes(0)
    assert changes[0].version > 1
    assert changes[-1].version == await store.last_version() == 250


async def test_an_emptied_log_goes_on_counting(store: ItemStore, redis: Redis) -> None:
    await put(store, record("a"), (1, 2, 3))
    await redis.xtrim(LOG, maxlen=0)
    assert await store.position() == (1, "")
    assert (await put(store, record("b"), (1, 2, 3))).version == 2
    (change,) = await store.changes(1)
    assert change.after == ""


async def test_items_of_two_catalogs_and_two_tokenizers_do_not_mix(redis: Redis) -> None:
    shop, other = store_on(redis), store_on(redis, catalog="other")
    await put(shop, record("a"), (1, 2, 3))
    assert await other.get("a") is None
    assert (await put(other, record("b"), (1, 2, 3))).sid.slot == 0
    assert (await store_on(redis, tokenizer_id="f" * 12).page(None, 10)).items == []


@pytest.mark.parametrize("name", ["", "{a}", "a}b"])
def test_a_catalog_name_cannot_break_the_hash_tag(name: str) -> None:
    with pytest.raises(ValueError, match="braces"):
        store_on(Redis(), catalog=name)


async def test_all_keys_of_a_catalog_are_one_slot_of_a_cluster(store: ItemStore, redis: Redis) -> None:
    await put(store, record("a"), (1, 2, 3))
    await store.activate()
    keys = await redis.keys()
    assert len(keys) == 5
    assert all(key.startswith(f"{{{CATALOG}}}:".encode()) for key in keys)


async def test_a_new_tokenizer_reads_the_catalog_and_takes_over(redis: Redis) -> None:
    old, new = store_on(redis), store_on(redis, tokenizer_id="f" * 12)
    assert await old.active() is None
    await old.activate()
    await old.put([(record(f"i{i}", f"i{i}"), (1, 1, 1)) for i in range(600)])
    unread = [item for items in [items async for items in new.unread_items()] for item in items]
    assert {item.item_id for item in unread} == {f"i{i}" for i in range(600)}
    await new.assign([(item, (2, 2, 2)) for item in unread])
    assert [items async for items in new.unread_items()] == []
    await put(old, record("i1", "new text"), (1, 1, 2))  # meanwhile the old tokenizer still serves
    await old.drop(["i2"])
    assert [item.item_id async for items in new.unread_items() for item in items] == ["i1"]
    await new.assign([(record("i1", "new text"), (3, 2, 1))])
    assert await old.active() == TOKENIZER
    await new.activate()
    assert await new.active() == "f" * 12
    raw = await read_raw(redis, tokenizer="f" * 12)
    assert_in_step(raw)
    assert raw.sids["i1"] == Sid((3, 2, 1), 0)
    assert "i2" not in raw.sids


async def test_codes_are_not_assigned_to_an_item_that_changed_since_it_was_read(redis: Redis) -> None:
    old, new = store_on(redis), store_on(redis, tokenizer_id="f" * 12)
    await put(old, record("a", "one"), (1, 1, 1))
    await put(old, record("b", "one"), (1, 1, 1))
    await put(old, record("a", "two"), (1, 1, 1))
    await old.drop(["b"])
    results = await new.assign([(record("a", "one"), (1, 1, 1)), (record("b", "one"), (1, 1, 1))])
    assert [type(result) for result in results] == [ItemChanged, ItemChanged]
    assert (await read_raw(redis, tokenizer="f" * 12)).codes == {}
    found = await old.get("a")
    assert found is not None
    assert found.item["title"] == "two"


async def test_an_item_is_stored_as_readable_json(store: ItemStore, redis: Redis) -> None:
    item = record("a", "naïve 日本", price=1.5, tags=["x", None, True])
    await put(store, item, (1, 2, 3))
    value = await redis.hget(ITEMS, "a")
    assert value[:33].decode() == item.content_hash + " "
    assert json.loads(value[33:]) == item.item
    assert "日本".encode() in value


async def test_codes_that_the_tokenizer_does_not_have_are_a_mistake_of_ours(store: ItemStore) -> None:
    for codes in ((4, 0, 0), (0, 0), (0, 0, -1)):
        with pytest.raises(ValueError, match="do not fit"):
            await store.put([(record("a"), codes)])


async def test_what_is_built_anew_before_the_check_of_damage_is_found(
    store: ItemStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Redis loses the trie or the codes. An answer finds nothing, and the repair comes before its check."""
    await put(store, record("a"), (1, 2, 3))
    check = store._check_damage
    for kind in ("trie", "codes"):
        key = f"{{{CATALOG}}}:{kind}:{TOKENIZER}"
        for ask in (lambda: store.page(None, 10), lambda: store.get("a")):
            await redis.rename(key, "lost")

            async def repaired(key: str = key) -> None:
                if await redis.exists("lost"):
                    await redis.rename("lost", key)
                await check()

            monkeypatch.setattr(store, "_check_damage", repaired)
            found = await ask()
            assert found is not None
            assert getattr(found, "items", [found])[0].item_id == "a"
            if await redis.exists("lost"):  # one item is read by its codes, without the trie
                await redis.rename("lost", key)
