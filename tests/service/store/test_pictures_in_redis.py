"""Kept pictures in Redis: written with their items, and checked by fsck."""

import asyncio
import random

import pytest

from service.core.image_field import PictureReference
from service.core.pictures import KeptPicture, keep_picture
from service.errors import ItemChanged, PreconditionFailed
from service.store.fsck import check
from service.store.items import IfMatch, ItemRecord
from service.store.picture_records import PictureChange, pack_picture
from tests.service.catalogs import CATALOG, SPEC, TOKENIZER, assert_in_step, put, read_raw, record, store_on
from tests.service.core.photos import photo

PICTURES = f"{{{CATALOG}}}:pictures"
ITEMS = f"{{{CATALOG}}}:items"
ONE, TWO = (keep_picture(photo(seed, "PNG", (20, 20))) for seed in (1, 2))


def reference(kept: KeptPicture) -> PictureReference:
    return PictureReference(kept.sha256, kept.width, kept.height)


def with_picture(item_id: str, kept: KeptPicture, text: str = "text") -> ItemRecord:
    plain = record(item_id, f"{text} {kept.sha256}")
    item = {**plain.item, "image": reference(kept).as_field()}
    return ItemRecord(item_id, plain.content_hash, item, PictureChange.set(kept))


def expecting(item: ItemRecord, kept: KeptPicture | None) -> ItemRecord:
    change = PictureChange.none_but(reference(kept) if kept else None)
    return ItemRecord(item.item_id, item.content_hash, item.item, change)


async def kept_of(store, item_id: str) -> KeptPicture | None:
    found = (await store.pictures.get_many([item_id])).get(item_id)
    return found and KeptPicture(
        found.data, found.reference.width, found.reference.height, found.reference.sha256
    )


async def fsck(redis, **options):
    return await check(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC, **options)


async def test_a_picture_is_written_replaced_and_dropped_with_its_item(store, redis):
    assert (await put(store, with_picture("a", ONE), (1, 2, 3))).status == "created"
    assert await kept_of(store, "a") == ONE
    assert (await put(store, with_picture("a", ONE), (1, 2, 3))).status == "unchanged"
    assert (await put(store, with_picture("a", TWO), (1, 2, 3))).status == "updated"
    assert await kept_of(store, "a") == TWO
    assert (await store.held_with_pictures(["a", "b"]))["a"].picture == reference(TWO)
    assert (await store.held_with_pictures(["a", "b"]))["b"] == (None, None)
    await store.drop(["a"])
    assert await kept_of(store, "a") is None
    assert_in_step(await read_raw(redis))


async def test_a_put_that_leaves_the_picture_must_know_which_one_it_leaves(store):
    await put(store, with_picture("a", ONE), (1, 2, 3))
    text = record("a", "other text")
    for expected in (None, TWO):
        (result,) = await store.put([(expecting(text, expected), (1, 2, 3))])
        assert isinstance(result, ItemChanged)
        (result,) = await store.put([(expecting(text, expected), None)])
        assert isinstance(result, ItemChanged)
    assert (await put(store, expecting(text, ONE), (0, 0, 0))).status == "moved"
    assert await kept_of(store, "a") == ONE


async def test_a_picture_can_be_removed_and_removing_it_again_changes_nothing(store):
    await put(store, with_picture("a", ONE), (1, 2, 3))
    plain = record("a")
    bare = ItemRecord("a", plain.content_hash, plain.item, PictureChange.drop())
    assert (await put(store, bare, (1, 2, 3))).status == "updated"
    assert await kept_of(store, "a") is None
    assert (await put(store, bare, (1, 2, 3))).status == "unchanged"


async def test_a_refused_put_leaves_the_picture(store):
    await put(store, with_picture("a", ONE), (1, 2, 3))
    (result,) = await store.put([(with_picture("a", TWO), (1, 2, 3))], IfMatch(frozenset({"0" * 40})))
    assert isinstance(result, PreconditionFailed)
    with pytest.raises(PreconditionFailed):
        await store.drop(["a"], IfMatch(frozenset({"0" * 40})))
    assert await kept_of(store, "a") == ONE


async def test_giving_codes_of_another_tokenizer_touches_no_picture(store, redis):
    await put(store, with_picture("a", ONE), (1, 2, 3))
    other = store_on(redis, tokenizer_id="f" * 12)
    (stored,) = await other.records(["a"])
    await other.assign([(stored, (0, 0, 0))])
    assert await kept_of(other, "a") == ONE
    await store.drop(["a"])
    await other.forget(["a"])
    assert await redis.hlen(PICTURES) == 0


async def test_a_lost_picture_that_is_posted_again_is_restored_and_read_again(store, redis):
    await put(store, with_picture("a", ONE), (1, 2, 3))
    await redis.delete(PICTURES)
    (result,) = await store.put([(with_picture("a", ONE), None)])
    assert isinstance(result, ItemChanged)  # the codes may be of the text alone, so new ones are needed
    assert (await put(store, with_picture("a", ONE), (3, 2, 1))).status == "moved"
    assert await kept_of(store, "a") == ONE


async def test_concurrent_writers_leave_an_item_and_its_picture_in_agreement(store, redis):
    rng = random.Random(0)

    async def write() -> None:
        for _ in range(25):
            kept = rng.choice([ONE, TWO])
            match rng.randrange(3):
                case 0:
                    await store.put([(with_picture("a", kept), (1, 2, 3))])
                case 1:
                    await store.put([(expecting(with_picture("a", kept), kept), (1, 2, 3))])
                case 2:
                    await store.drop(["a"])

    await asyncio.gather(*(write() for _ in range(4)))
    assert (await fsck(redis)).is_clean


async def test_loading_the_catalog_never_reads_pictures(store, redis):
    large = KeptPicture(random.Random(0).randbytes(100_000), 256, 256, "0" * 64)
    for n in range(5):
        await put(store, with_picture(f"i{n}", large), (1, 2, 3))
    sent = (await redis.info("stats"))["total_net_output_bytes"]
    assert [entry.item_id async for page in store.snapshot() for entry in page] == [f"i{n}" for n in range(5)]
    await store.changes(0)
    await store.held_with_pictures([f"i{n}" for n in range(5)])
    assert (await redis.info("stats"))["total_net_output_bytes"] - sent < len(large.data)


async def test_fsck_counts_pictures_and_finds_nothing_wrong(store, redis):
    await put(store, with_picture("a", ONE), (1, 2, 3))
    await put(store, record("b"), (1, 2, 3))
    report = await fsck(redis)
    assert report.is_clean
    assert (report.num_pictures, report.picture_bytes) == (1, len(pack_picture(ONE)))


async def test_fsck_names_each_disagreement_and_repairs_only_what_is_safe(store, redis):
    for item_id in ("whole", "lost", "other", "damaged", "short"):
        await put(store, with_picture(item_id, ONE), (1, 2, 3))
    await put(store, record("bare"), (1, 2, 3))
    await redis.hdel(PICTURES, "lost")
    value = pack_picture(ONE)
    await redis.hset(
        PICTURES,
        mapping={
            "other": pack_picture(TWO),
            "damaged": value[:-1] + bytes([value[-1] ^ 1]),
            "short": b"x",
            "bare": value,
            "nobody": value,
            b"\xff\xfe": value,
        },
    )
    expected = {
        ("lost", "lost_picture"),
        ("other", "other_picture"),
        ("damaged", "damaged_picture"),
        ("short", "damaged_picture"),
        ("bare", "picture_without_item"),
        ("nobody", "picture_without_item"),
        ("b'\\xff\\xfe'", "picture_without_item"),
    }
    report = await fsck(redis)
    assert {(each.where, each.kind) for each in report.findings} == expected
    assert not report.mended
    report = await fsck(redis, repair=True)
    assert report.mended == {"picture_without_item": 3}
    report = await fsck(redis)
    assert {each.kind for each in report.findings} == {"lost_picture", "other_picture", "damaged_picture"}
    for item_id in ("lost", "other", "damaged", "short"):
        await put(store, with_picture(item_id, ONE), (1, 2, 3))
    assert (await fsck(redis)).is_clean
    assert await kept_of(store, "whole") == ONE
