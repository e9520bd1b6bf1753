"""The checker is right where it finds nothing, where it finds something, and where it mends it."""

import asyncio
import json
import random
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import pytest
from redis.asyncio import Redis

from service.catalog.catalog import Catalog
from service.catalog.follower import CatalogFollower
from service.cli import main
from service.core.sid import Sid
from service.errors import GlyphrecError
from service.store import fsck
from service.store.fsck import check
from service.store.fsck_report import KINDS, FsckReport
from service.store.items import ItemStore
from tests.service.catalogs import (
    CATALOG,
    ITEMS,
    LOG,
    SPEC,
    TOKENIZER,
    assert_in_step,
    put,
    random_codes,
    read_raw,
    record,
    store_on,
    until,
    until_true,
)

CODES = f"{{{CATALOG}}}:codes:{TOKENIZER}"
TRIE = f"{{{CATALOG}}}:trie:{TOKENIZER}"
NUM_ITEMS = 60
OTHER_TOKENIZER = "ffffffffffff"


def sid_bytes(*numbers: int) -> bytes:
    return struct.pack(f">{len(numbers)}H", *numbers)


async def checked(redis: Redis, *, repair: bool = False, tokenizer: str = TOKENIZER) -> FsckReport:
    return await check(redis, catalog=CATALOG, tokenizer_id=tokenizer, spec=SPEC, repair=repair)


@pytest.fixture
async def store(redis: Redis) -> ItemStore:
    """A catalog with a past: moves, drops, crowded codes, and a log that was trimmed."""
    store, rng = store_on(redis, log_length=1), random.Random(5)
    for i in range(300):
        item_id = f"i{rng.randrange(80)}"
        if rng.random() < 0.2:
            await store.drop([item_id])
        else:
            await put(store, record(item_id, f"text {i}"), random_codes(rng))
    for i in range(NUM_ITEMS):
        await put(store, record(f"i{i}", f"last {i}"), random_codes(rng))
    for item_id in "abcd":
        await put(store, record(item_id), (1, 2, 3))
    await store.activate()
    return store


async def member_of(redis: Redis, item_id: str) -> bytes:
    codes = await redis.hget(CODES, item_id)
    return codes[:-32] + item_id.encode()


async def next_version(redis: Redis) -> int:
    info = await redis.xinfo_stream(LOG)
    return int(info["last-generated-id"].split(b"-")[0]) + 1


async def test_a_catalog_with_a_past_is_clean_and_counted(store: ItemStore, redis: Redis) -> None:
    report = await checked(redis)
    assert report.is_clean, report.findings
    assert report.num_items == report.num_codes == report.num_members == await store.num_items()
    assert report.version == await store.last_version()
    assert report.num_changes == await redis.xlen(LOG)
    assert report.is_served
    assert report.num_unread == 0


async def test_a_catalog_that_is_served_and_empty_is_clean(redis: Redis) -> None:
    """As after a change of the tokenizer before the first item: nothing but the active tokenizer is there."""
    with pytest.raises(GlyphrecError, match="no catalog of this name"):
        await checked(redis)
    await store_on(redis).activate()
    report = await checked(redis)
    assert report.is_clean
    assert (report.num_items, report.version) == (0, 0)
    with pytest.raises(GlyphrecError, match=f"it is served by {TOKENIZER}"):
        await checked(redis, tokenizer=OTHER_TOKENIZER)


# Each breaks one thing, as no script of ours would, and says what must be found: kind, and item or version.
Damage = Callable[[Redis], Awaitable[set[tuple[str, str]]]]


async def a_member_is_missing(redis: Redis) -> set[tuple[str, str]]:
    await redis.zrem(TRIE, await member_of(redis, "b"))
    return {("missing_member", "b")}


async def an_item_is_in_two_places(redis: Redis) -> set[tuple[str, str]]:
    await redis.zadd(TRIE, {sid_bytes(3, 0, 0, 7) + b"b": 0})
    return {("stray_member", "b")}


async def a_member_is_of_no_item(redis: Redis) -> set[tuple[str, str]]:
    await redis.zadd(TRIE, {sid_bytes(3, 0, 0, 7) + b"nobody": 0})
    return {("stray_member", "nobody")}


async def an_item_is_in_another_place(redis: Redis) -> set[tuple[str, str]]:
    await redis.zrem(TRIE, await member_of(redis, "b"))
    await redis.zadd(TRIE, {sid_bytes(3, 0, 0, 7) + b"b": 0})
    return {("stray_member", "b"), ("missing_member", "b")}


async def two_items_have_one_slot(redis: Redis) -> set[tuple[str, str]]:
    codes = await redis.hget(CODES, "c")
    await redis.zrem(TRIE, await member_of(redis, "c"))
    sid = (await redis.hget(CODES, "b"))[:-32]
    await redis.hset(CODES, "c", sid + codes[-32:])
    await redis.zadd(TRIE, {sid + b"c": 0})
    return {("shared_slot", "c")}


async def codes_are_lost(redis: Redis) -> set[tuple[str, str]]:
    await redis.hdel(CODES, "b")
    return {("missing_codes", "b")}


async def codes_and_member_are_lost(redis: Redis) -> set[tuple[str, str]]:
    await redis.zrem(TRIE, await member_of(redis, "b"))
    await redis.hdel(CODES, "b")
    return {("missing_codes", "b")}  # the log still tells them


async def codes_are_not_ours(redis: Redis) -> set[tuple[str, str]]:
    await redis.hset(CODES, "b", "rubbish")
    return {("unreadable_codes", "b")}


async def codes_do_not_fit_the_levels(redis: Redis) -> set[tuple[str, str]]:
    codes = await redis.hget(CODES, "b")
    await redis.hset(CODES, "b", sid_bytes(9, 9, 9, 0) + codes[-32:])
    return {("unreadable_codes", "b")}


async def a_hash_is_too_short(redis: Redis) -> set[tuple[str, str]]:
    await redis.hset(CODES, "b", (await redis.hget(CODES, "b"))[:-1])
    return {("unreadable_codes", "b")}


async def the_item_is_lost(redis: Redis) -> set[tuple[str, str]]:
    await redis.hdel(ITEMS, "b")
    return {("codes_without_item", "b"), ("stray_member", "b")}


async def codes_are_of_no_item(redis: Redis) -> set[tuple[str, str]]:
    await redis.hset(CODES, "nobody", sid_bytes(0, 0, 0, 60) + b"f" * 32)
    return {("codes_without_item", "nobody")}


async def scores_differ(redis: Redis) -> set[tuple[str, str]]:
    await redis.zadd(TRIE, {await member_of(redis, "b"): 5, await member_of(redis, "c"): -5})
    return {("wrong_score", "b"), ("wrong_score", "c")}


async def members_are_not_ours(redis: Redis) -> set[tuple[str, str]]:
    odd = [b"x", sid_bytes(9, 9, 9, 9) + b"b", sid_bytes(1, 2, 3, 9) + b"\xff"]
    await redis.zadd(TRIE, dict.fromkeys(odd, 0))
    return {("unreadable_member", repr(each)) for each in odd}


async def codes_were_changed_without_the_log(redis: Redis) -> set[tuple[str, str]]:
    codes = await redis.hget(CODES, "b")
    await redis.zrem(TRIE, await member_of(redis, "b"))
    await redis.hset(CODES, "b", sid_bytes(0, 0, 0, 50) + codes[-32:])
    await redis.zadd(TRIE, {sid_bytes(0, 0, 0, 50) + b"b": 0})
    return {("log_disagrees", "b")}


async def all_of_an_item_was_removed_without_the_log(redis: Redis) -> set[tuple[str, str]]:
    await redis.zrem(TRIE, await member_of(redis, "b"))
    await redis.hdel(CODES, "b")
    await redis.hdel(ITEMS, "b")
    return {("log_disagrees", "b")}


async def an_entry_is_missing_amid_the_log(redis: Redis) -> set[tuple[str, str]]:
    version = int((await redis.xrevrange(LOG, count=1))[0][0].split(b"-")[0])
    await redis.xdel(LOG, f"{version - 1}-0")
    return {("log_gap", f"version {version}")}


async def the_last_entry_is_missing(redis: Redis) -> set[tuple[str, str]]:
    last = (await redis.xrevrange(LOG, count=1))[0][0]
    await redis.xdel(LOG, last)
    return {("log_gap", f"version {int(last.split(b'-')[0])}")}


async def another_history_was_appended(redis: Redis) -> set[tuple[str, str]]:
    fields = (await redis.xrevrange(LOG, count=1))[0][1]
    version = await next_version(redis)
    await redis.xadd(LOG, fields | {b"after": b"elsewhere"}, id=f"{version}-0")
    return {("log_gap", f"version {version}")}


async def an_entry_is_not_ours(redis: Redis) -> set[tuple[str, str]]:
    version = await next_version(redis)
    await redis.xadd(LOG, {"somebody": "else"}, id=f"{version}-0")
    return {("unreadable_change", f"version {version}")}


MENDED = [
    a_member_is_missing,
    an_item_is_in_two_places,
    a_member_is_of_no_item,
    an_item_is_in_another_place,
    two_items_have_one_slot,
    codes_are_lost,
    codes_and_member_are_lost,
    codes_are_not_ours,
    codes_do_not_fit_the_levels,
    a_hash_is_too_short,
    the_item_is_lost,
    codes_are_of_no_item,
    scores_differ,
    members_are_not_ours,
    codes_were_changed_without_the_log,
    all_of_an_item_was_removed_without_the_log,
    an_entry_is_missing_amid_the_log,
    the_last_entry_is_missing,
    another_history_was_appended,
    an_entry_is_not_ours,
]


@pytest.mark.usefixtures("store")
@pytest.mark.parametrize("damage", MENDED, ids=lambda damage: damage.__name__)
async def test_what_is_derivable_is_found_mended_and_followed_by_replicas(
    redis: Redis, damage: Damage
) -> None:
    follower = CatalogFollower(Catalog(SPEC), store_on(redis), block_ms=50)
    await follower.load()
    task = asyncio.create_task(follower.run())
    expected = await damage(redis)

    found = await checked(redis)
    assert {(each.kind, each.where) for each in found.findings} == expected
    assert not found.mended.total()
    assert set(found.found) <= set(KINDS)

    mended = await checked(redis, repair=True)
    assert {(each.kind, each.where) for each in mended.findings} == expected
    assert all(each.is_mended for each in mended.findings)

    again = await checked(redis)
    assert again.is_clean, again.findings
    raw = await read_raw(redis)
    assert_in_step(raw)
    version = await store_on(redis).last_version()
    assert await follower.wait_for(version, timeout_s=5)
    await until(lambda: not follower.is_stale)
    assert {item_id: follower.catalog.sid_of(item_id) for item_id in raw.sids} == raw.sids
    assert follower.catalog.num_items == len(raw.sids)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


@pytest.mark.usefixtures("store")
async def test_damage_of_all_kinds_at_once_is_mended_in_one_go_or_two(redis: Redis) -> None:
    for damage in MENDED:
        if damage.__name__ not in ("the_item_is_lost", "all_of_an_item_was_removed_without_the_log"):
            with suppress(TypeError):  # an earlier one left nothing to break
                await damage(redis)
    assert not (await checked(redis)).is_clean
    await checked(redis, repair=True)
    await checked(redis, repair=True)
    again = await checked(redis)
    assert again.is_clean, again.findings
    assert_in_step(await read_raw(redis))


async def test_what_follows_from_nothing_is_listed_and_left_alone(store: ItemStore, redis: Redis) -> None:
    await redis.hset(ITEMS, "zz", "f" * 32 + " [1]")  # no codes, no object
    await redis.hset(ITEMS, "b", (await redis.hget(ITEMS, "b"))[:32] + b" not JSON")
    await redis.hset(ITEMS, "c", b"0" * 32 + (await redis.hget(ITEMS, "c"))[32:])
    await redis.hset(ITEMS, b"\xff", "f" * 32 + " {}")
    expected = {
        ("unread", "zz"),
        ("unreadable_item", "zz"),
        ("unreadable_item", "b"),
        ("outdated_codes", "c"),
        ("unreadable_id", repr(b"\xff")),
    }
    before = await read_raw(redis)
    for repair in (False, True):
        report = await checked(redis, repair=repair)
        assert {(each.kind, each.where) for each in report.findings} == expected
        assert report.num_quarantined == 3
        assert not report.mended.total()
    assert await read_raw(redis) == before
    assert (await put(store, record("b", "again"), (1, 2, 3))).status == "updated"


async def test_a_tokenizer_that_is_not_served_may_lag_behind_and_one_that_is_must_not(
    store: ItemStore, redis: Redis
) -> None:
    other = store_on(redis, tokenizer_id=OTHER_TOKENIZER)
    for item_id in ("a", "b", "c"):
        (found,) = [each async for page in other.unread_items() for each in page if each.item_id == item_id]
        await other.assign([(found, (0, 0, 0))])
    await store.drop(["a"])  # gone, but its codes for the other tokenizer are not
    await put(store, record("b", "new text"), (1, 1, 1))
    report = await checked(redis, tokenizer=OTHER_TOKENIZER)
    assert report.is_clean, report.findings
    assert not report.is_served
    assert report.num_unread == report.num_items - 1
    await redis.zrem(f"{{{CATALOG}}}:trie:{OTHER_TOKENIZER}", sid_bytes(0, 0, 0, 2) + b"c")
    report = await checked(redis, tokenizer=OTHER_TOKENIZER)
    assert [(each.kind, each.where) for each in report.findings] == [("missing_member", "c")]
    await redis.set(f"{{{CATALOG}}}:active", OTHER_TOKENIZER)
    found = (await checked(redis, tokenizer=OTHER_TOKENIZER)).found
    assert found["unread"] > NUM_ITEMS // 2
    assert found["codes_without_item"] == found["outdated_codes"] == found["missing_member"] == 1


@pytest.mark.slow
@pytest.mark.parametrize("repair", [False, True])
async def test_writes_during_the_check_are_no_faults_and_are_not_undone(redis: Redis, repair: bool) -> None:
    """Four writers with a log of the smallest length, so that it is trimmed while it is read."""
    is_over = asyncio.Event()

    async def write(seed: int) -> None:
        store, rng = store_on(redis, log_length=1), random.Random(seed)
        while not is_over.is_set():
            batch = [
                (record(f"i{rng.randrange(200)}", str(rng.random())), random_codes(rng)) for _ in range(20)
            ]
            await store.put(batch)
            await store.drop([f"i{rng.randrange(200)}" for _ in range(5)])

    writers = [asyncio.create_task(write(seed)) for seed in range(4)]
    store = store_on(redis)

    async def has_a_past() -> bool:
        return await store.last_version() >= 2_000

    await until_true(has_a_past, timeout_s=60)
    await redis.set(f"{{{CATALOG}}}:active", TOKENIZER)
    start = await store.last_version()
    for _ in range(8):
        report = await checked(redis, repair=repair)
        assert report.is_clean, report.findings
    assert await store.last_version() > start + 500  # or nothing was shown
    is_over.set()
    await asyncio.gather(*writers)
    assert_in_step(await read_raw(redis))
    assert (await checked(redis)).is_clean


async def test_a_check_ends_where_every_look_at_the_log_finds_one_change_more(
    store: ItemStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    look, num_looks = Redis.xrange, 0

    async def look_after_a_change(self: Redis, *args: object, **options: object) -> object:
        nonlocal num_looks
        num_looks += 1
        await put(store, record("b", f"change {num_looks}"), (num_looks % 4, 0, 0))
        return await look(self, *args, **options)

    monkeypatch.setattr(Redis, "xrange", look_after_a_change)
    async with asyncio.timeout(20):
        report = await checked(redis)
    assert report.is_clean, report.findings
    assert 0 < num_looks < 10


async def test_pages_of_any_length_find_the_same(
    store: ItemStore, redis: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    await two_items_have_one_slot(redis)
    await an_item_is_in_two_places(redis)
    whole = await checked(redis)
    assert await store.num_items() > 10
    for page in (1, 2, 7):
        monkeypatch.setattr(fsck, "SCAN_COUNT", page)
        found = await checked(redis)
        assert sorted(found.findings) == sorted(whole.findings)


@pytest.fixture
async def broken(store: ItemStore, redis: Redis) -> None:
    await a_member_is_missing(redis)
    assert await store.num_items()


@pytest.mark.usefixtures("broken")
async def test_the_command_says_what_it_found_and_did(
    redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async def command(*more: str) -> int:
        given = ["fsck", "--redis-url", redis_url, "--catalog", CATALOG, *more]
        return await asyncio.to_thread(main, given)

    levels = ("--levels", "4,3,5")
    assert await command(*levels) == 1
    shown = capsys.readouterr().out
    assert "b: missing_member: the item has codes" in shown
    assert "1 found, 0 mended" in shown
    assert await command(*levels, "--json", "--repair") == 1
    report = json.loads(capsys.readouterr().out)
    assert report["findings"] == [{"kind": "missing_member", "where": "b", "is_mended": True}]
    assert report["tokenizer_id"] == TOKENIZER
    assert report["mended"] == {"missing_member": 1}
    assert await command(*levels, "--json") == 0
    assert json.loads(capsys.readouterr().out)["is_clean"] is True
    for wrong, words in [
        (["--levels", "4,x"], "--levels"),
        ([], "--bundle"),
        ([*levels, "--tokenizer-id", "0" * 12], f"served by {TOKENIZER}"),
        ([*levels, "--catalog", "nowhere"], "nowhere"),
        ([*levels, "--redis-url", "unix:///nowhere.sock"], "does not answer"),
    ]:
        assert await command(*wrong) == 2
        assert words in capsys.readouterr().err


async def test_the_command_takes_tokenizer_and_levels_of_a_bundle(
    bundle: object, redis: Redis, redis_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    store = store_on(redis)
    await put(store, record("a"), (1, 2, 2))
    given = ["fsck", "--redis-url", redis_url, "--catalog", CATALOG, "--bundle", str(bundle)]
    assert await asyncio.to_thread(main, given) == 0
    assert "Nothing is wrong" in capsys.readouterr().out
    assert (await store.held(["a"]))["a"].sid == Sid((1, 2, 2), 0)
