"""What fsck says about the counts."""

import struct

import pytest
from redis.asyncio import Redis

from service.core.co_counts import MAX_NEIGHBORS, CoCountSpec, CoRow
from service.store.co_counts import CoCountStore, Taken
from service.store.fsck import check
from service.store.fsck_report import FsckReport, lines
from tests.service.catalogs import CATALOG, SPEC, TOKENIZER, store_on

ROWS = f"{{{CATALOG}}}:co_counts"
BROKEN = {
    b"cut off": struct.pack(">dd", 2, 1) + struct.pack(">fH", 1, 9) + b"short",
    b"not a number": struct.pack(">dd", float("nan"), 1),
    b"never taken": struct.pack(">dd", 0, 1),
    b"too many": struct.pack(">dd", 1, 1)
    + b"".join(struct.pack(">fH", 1, 4) + b"%04d" % number for number in range(MAX_NEIGHBORS + 1)),
    b"\xff": struct.pack(">dd", 1, 1),
}


async def checked(redis: Redis, *, repair: bool = False) -> FsckReport:
    return await check(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC, repair=repair)


@pytest.fixture
async def store(redis: Redis) -> CoCountStore:
    await store_on(redis).activate()
    store = CoCountStore(redis, catalog=CATALOG, half_life_s=1e15, keep_s=60)
    await store.count([Taken("1", ["a"], "b")], CoCountSpec())
    return store


async def test_rows_that_were_counted_or_seeded_are_clean(redis: Redis, store: CoCountStore) -> None:
    await store.seed([CoRow(f"i{n}", n + 1, {"a": 0.5}) for n in range(500)])
    report = await checked(redis)
    assert report.is_clean
    assert report.num_rows == 502
    assert "502 items have counts." in next(iter(lines(report)))


async def test_rows_that_are_not_ours_are_found_and_dropped_and_replicas_hear_of_it(
    redis: Redis, store: CoCountStore
) -> None:
    await redis.hset(ROWS, mapping=BROKEN)  # type: ignore[misc, arg-type]
    names = {repr(key) if key == b"\xff" else key.decode() for key in BROKEN}
    before = await redis.hgetall(ROWS)  # type: ignore[misc]
    for repair in (False, True):
        report = await checked(redis, repair=repair)
        assert {(each.kind, each.where) for each in report.findings} == {
            ("unreadable_counts", n) for n in names
        }
        assert {each.is_mended for each in report.findings} == {repair}
        assert report.num_quarantined == len(BROKEN)
        if not repair:
            assert await redis.hgetall(ROWS) == before  # type: ignore[misc]
    assert (await checked(redis)).is_clean
    assert set(await redis.hkeys(ROWS)) == {b"a", b"b"}  # type: ignore[misc]
    assert (await store.position()).version == 1 + len(BROKEN)
