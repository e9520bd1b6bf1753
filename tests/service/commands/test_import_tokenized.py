"""`glyphrec import --tokenized`: items with known codes, from a file into the Redis that services share."""

import asyncio
import gzip
import json
import os
import signal
import subprocess
import threading

import pytest

from model_export.local_service import glyphrec_command
from service.cli import main
from service.commands import import_tokenized as importing
from service.core.filters import DeclaredFields
from service.core.sid import NUM_SLOTS
from service.core.vectors import as_text
from service.store.fsck import check
from service.store.items import ItemStore
from service.store.records import RedisKeys
from tests.house import SOURCES
from tests.known_bundle import (
    KNOWN_ITEMS,
    SPEC,
    KnownItem,
    items_without_text_twice,
    known_vector,
    tokenizer_id_of,
    write_known_bundle,
)
from tests.service.catalogs import until_true
from tests.service.running import running

CATALOG = "glyphrec"
TOKENIZER = tokenizer_id_of(0)
MANY = items_without_text_twice(2_500, seed=1)  # several batches, the last one not full


@pytest.fixture(autouse=True)
def _no_settings_of_this_machine(monkeypatch):
    for name in [each for each in os.environ if each.startswith(("GLYPHREC_", "REDIS_"))]:
        monkeypatch.delenv(name)


def written(folder, items, name="items.jsonl.gz"):
    """As the export writes them."""
    path = folder / name
    text = "".join(json.dumps(each._asdict() | {"slot": 0}) + "\n" for each in items)
    path.write_bytes(gzip.compress(text.encode(), 1) if path.suffix == ".gz" else text.encode())
    return path


def line(**changes):
    return json.dumps(KNOWN_ITEMS[0]._asdict() | {"slot": 0} | changes)


async def imported(source, bundle, redis_url, *more):
    """Run the command in a thread, as it has its own event loop. Returns its exit status."""
    args = ["import", str(source), "--tokenized", "--bundle", str(bundle), "--redis-url", redis_url, *more]
    return await asyncio.to_thread(main, args)


async def codes_in(redis, tokenizer_id=TOKENIZER):
    """What Redis holds, by item id, read through the store."""
    store = ItemStore(redis, catalog=CATALOG, tokenizer_id=tokenizer_id, spec=SPEC)
    entries = [entry async for page in store.snapshot() for entry in page]
    assert len({entry.sid for entry in entries}) == len(entries)
    return {entry.item_id: entry.sid.codes for entry in entries}


async def is_whole(redis):
    report = await check(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC)
    assert report.is_clean, report.findings
    return True


async def shown(client):
    """All items that a service lists, with their codes."""
    found, cursor = {}, None
    while True:
        page = (
            await client.get("/items", params={"limit": 1_000} | ({"cursor": cursor} if cursor else {}))
        ).json()
        found |= {
            each["item"]["item_id"]: tuple(map(int, each["semantic_id"].split("-")[:-1]))
            for each in page["items"]
        }
        cursor = page["next_cursor"]
        if cursor is None:
            return found


@pytest.mark.parametrize("name", ["items.jsonl.gz", "items.jsonl"])
async def test_what_was_imported_is_served_with_the_codes_of_the_file(
    bundle, redis, redis_url, tmp_path, capsys, name
):
    assert await imported(written(tmp_path, MANY, name).parent, bundle, redis_url) == 0
    assert capsys.readouterr().out == "2500 created\n"
    assert await is_whole(redis)
    async with running(bundle, redis_url) as client:
        assert await shown(client) == {each.item_id: each.codes for each in MANY}
        answer = (await client.post("/recommend", json={"history": ["item-2400"], "limit": 5})).json()
        assert answer["source"] == "model"
        assert len(answer["items"]) == 5


async def test_vectors_of_the_file_are_searched_and_missing_ones_are_told(
    bundle, redis, redis_url, tmp_path, capsys
):
    path = tmp_path / "items.jsonl"
    lines = [line(vector=as_text(known_vector(KNOWN_ITEMS[0].item))), line(item_id="bare")]
    path.write_text("\n".join(lines) + "\n")
    assert await imported(path, bundle, redis_url) == 0
    assert "1 lines have no vector" in capsys.readouterr().err
    vectors = await redis.hgetall(f"{{{CATALOG}}}:vectors:{TOKENIZER}")
    assert {key: value[8:] for key, value in vectors.items()} == {
        KNOWN_ITEMS[0].item_id.encode(): known_vector(KNOWN_ITEMS[0].item)
    }
    for vector in ("AAAA", "§", 7):
        path.write_text(line(vector=vector) + "\n")
        assert await imported(path, bundle, redis_url) == 2
        assert "its vector" in capsys.readouterr().err


async def test_a_new_catalog_is_the_file_and_not_the_bundle_too(bundle, redis_url, tmp_path):
    only = [KnownItem("item-0", (1, 2, 0), 0, {"item_id": "item-0", "title": "Not what the bundle says"})]
    assert await imported(written(tmp_path, only), bundle, redis_url) == 0
    async with running(bundle, redis_url) as client:
        assert await shown(client) == {"item-0": (1, 2, 0)}
        assert (await client.get("/items/item-0")).json()["item"] == only[0].item


async def test_running_services_follow_also_where_they_were_left_behind(
    bundle, redis, redis_url, tmp_path, monkeypatch
):
    """The log keeps fewer changes than are imported, so replicas may have to load again."""
    monkeypatch.setenv("GLYPHREC_LOG_LENGTH", "100")
    async with running(bundle, redis_url) as first, running(bundle, redis_url) as second:
        assert (await first.get("/info")).json()["catalog"]["items"] == len(KNOWN_ITEMS)
        assert await imported(written(tmp_path, MANY), bundle, redis_url) == 0
        version = await ItemStore(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC).last_version()
        found = []
        for client in (first, second):

            async def is_caught_up(client=client):
                return (await client.get("/info")).json()["catalog"]["version"] == version

            await until_true(is_caught_up)
            found.append((await client.get("/info")).json()["catalog"])
        assert found[0]["digest"] == found[1]["digest"]
        assert found[0]["items"] == len(MANY)
    async with running(bundle, redis_url) as fresh:
        assert (await fresh.get("/info")).json()["catalog"]["digest"] == found[0]["digest"]
    assert await is_whole(redis)


async def test_to_import_again_changes_nothing(bundle, redis, redis_url, tmp_path, capsys):
    path = written(tmp_path, MANY)
    assert await imported(path, bundle, redis_url) == 0
    store = ItemStore(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC)
    before = await store.last_version(), await codes_in(redis)
    capsys.readouterr()
    assert await imported(path, bundle, redis_url) == 0
    assert capsys.readouterr().out == "2500 unchanged\n"
    assert (await store.last_version(), await codes_in(redis)) == before


async def test_of_an_id_that_comes_twice_the_last_line_counts(bundle, redis, redis_url, tmp_path):
    """Far apart, so that they are in different batches, and side by side."""
    again = [each._replace(codes=(9, 1, 1), item=each.item | {"title": "Later"}) for each in MANY[:3]]
    assert await imported(written(tmp_path, [*MANY, *again, again[0]]), bundle, redis_url) == 0
    held = await codes_in(redis)
    assert held == {each.item_id: each.codes for each in [*MANY, *again]}
    assert await is_whole(redis)


async def test_values_that_filters_cannot_use_are_counted_by_field(
    bundle, redis_url, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("GLYPHREC_FILTER_FIELDS", "price:number")
    priced = [each._replace(item=each.item | {"price": "cheap"}) for each in MANY[:3]]
    path = written(tmp_path, [*priced, MANY[4]])
    assert await imported(path, bundle, redis_url) == 0
    said = capsys.readouterr().err
    assert "filters cannot use price of 3 items" in said
    assert f"{path}:1: price is declared as number" in said


async def test_filters_know_what_was_imported(bundle, redis_url, tmp_path, monkeypatch):
    monkeypatch.setenv("GLYPHREC_FILTER_FIELDS", "price:number")
    priced = [each._replace(item=each.item | {"price": place}) for place, each in enumerate(MANY[:50])]
    fields = {"filter_fields": DeclaredFields({"price": "number"})}
    async with running(bundle, redis_url, **fields) as client:
        assert await imported(written(tmp_path, priced), bundle, redis_url) == 0
        body = {"history": ["item-0"], "limit": 10, "filter": {"attributes": {"price": {"gte": 45}}}}

        async def all_are_found():
            answer = (await client.post("/recommend", json=body)).json()
            return {each["item_id"] for each in answer["items"]} == {f"item-{n}" for n in range(45, 50)}

        await until_true(all_are_found)


async def test_an_item_without_a_free_slot_is_named_and_the_others_are_put(
    bundle, redis, redis_url, tmp_path, capsys
):
    full = (3, 1, 2)
    member = b"".join(code.to_bytes(2, "big") for code in full)
    keys = RedisKeys.of(CATALOG, TOKENIZER)
    trie = keys.trie
    await redis.hset(keys.codes, "x", member + bytes(2) + b"0" * 32)
    for start in range(0, NUM_SLOTS, 5_000):  # as if there were so many items; the script reads nothing else
        slots = range(start, min(start + 5_000, NUM_SLOTS))
        await redis.zadd(trie, {member + slot.to_bytes(2, "big") + b"x": 0 for slot in slots})
    lines = [each._replace(codes=full if each is MANY[1] else (0, 0, 0)) for each in MANY[:3]]
    path = written(tmp_path, lines)
    assert await imported(path, bundle, redis_url) == 1
    said = capsys.readouterr()
    assert said.out == "2 created, 1 failed\n"
    assert f"{path}:2: item-1: All {NUM_SLOTS} slots of the codes 3-1-2 are taken" in said.err
    assert set(await redis.hkeys(RedisKeys.of(CATALOG, TOKENIZER).items)) == {b"item-0", b"item-2"}


BROKEN = {
    "codes beyond a level": (line(codes=[31, 4, 0]), "codes (31, 4, 0) do not fit the levels (32, 4, 3)"),
    "too few codes": (line(codes=[1, 2]), "do not fit the levels"),
    "codes that are no numbers": (line(codes=["1", 2, 0]), "not supported"),
    "codes that are no whole numbers": (line(codes=[1.0, 2, 0]), "no whole number"),
    "no codes": (json.dumps({"item_id": "a", "popularity": 1, "item": {"title": "A"}}), "it has no 'codes'"),
    "a plain item": ('{"item_id": "a", "title": "A"}', "Import such a file without --tokenized"),
    "no text": (line(item={"title": " "}), "item: has no text"),
    "a number that is none": (
        line(item={"title": "A", "price": float("nan")}),
        "NaN is no JSON value",
    ),
    "an id too long": (line(item_id="x" * 300), "item_id: has 300 characters; 256 is the limit"),
    "a line cut short": (line()[:-9], "not an item with codes"),
    "bytes that are no text": (b"\xff\xfe", "not an item with codes"),
    "no object": ("[]", "not an item with codes"),
}


@pytest.mark.parametrize("broken", BROKEN)
async def test_a_broken_line_is_named_and_nothing_is_put(bundle, redis, redis_url, tmp_path, capsys, broken):
    content, words = BROKEN[broken]
    path = written(tmp_path, MANY, "items.jsonl")
    with path.open("ab") as file:
        file.write(b"\n")  # a blank line has a number and is skipped
        file.write(content if isinstance(content, bytes) else content.encode())
    assert await imported(path, bundle, redis_url) == 2
    said = capsys.readouterr().err
    assert f"{path}:2502: " in said
    assert words in said
    assert said.count("glyphrec: ") == 1
    assert await redis.dbsize() == 0


async def test_a_damaged_archive_puts_nothing(bundle, redis, redis_url, tmp_path, capsys):
    path = written(tmp_path, MANY)
    path.write_bytes(path.read_bytes()[:-20])
    assert await imported(path, bundle, redis_url) == 2
    assert "the gzip file is cut off or damaged" in capsys.readouterr().err
    assert await redis.dbsize() == 0


async def test_codes_of_a_tokenizer_that_is_not_served_are_refused(
    bundle, redis, redis_url, tmp_path, capsys
):
    other = write_known_bundle(tmp_path / "other", [], reader=1)
    async with running(other, redis_url):
        store = ItemStore(redis, catalog=CATALOG, tokenizer_id=tokenizer_id_of(1), spec=SPEC)
        await until_true(lambda: is_active(store))
        assert await imported(written(tmp_path, MANY), bundle, redis_url) == 2
    said = capsys.readouterr().err
    assert f"is served with the tokenizer {tokenizer_id_of(1)}, and the bundle has {TOKENIZER}" in said
    assert await codes_in(redis) == {}
    assert await codes_in(redis, tokenizer_id_of(1)) == {}


async def is_active(store):
    return await store.active() is not None


async def test_an_import_stops_where_the_catalog_goes_over_to_another_tokenizer(
    bundle, redis, redis_url, tmp_path, capsys, monkeypatch
):
    """Meanwhile another bundle's tokenizer becomes the one that is served."""
    monkeypatch.setattr(importing, "BATCH", 100)
    switched = threading.Event()
    read = importing.TokenizedFile.__iter__
    reads = []

    def lines(self):
        reads.append(self)
        for number, each in enumerate(read(self)):
            if len(reads) == 2 and number == 600:  # the first reading is the check
                assert switched.wait(20)
            yield each

    monkeypatch.setattr(importing.TokenizedFile, "__iter__", lines)

    async def switch():
        await until_true(lambda: holds(redis, 400))
        await redis.set(RedisKeys.of(CATALOG, TOKENIZER).active, tokenizer_id_of(1))
        switched.set()

    status, _ = await asyncio.gather(imported(written(tmp_path, MANY), bundle, redis_url), switch())
    assert status == 2
    said = capsys.readouterr().err
    assert f"is served with the tokenizer {tokenizer_id_of(1)}" in said
    assert "items were put before" in said
    assert 400 <= await redis.hlen(RedisKeys.of(CATALOG, TOKENIZER).items) <= 600


async def holds(redis, num_items):
    return await redis.hlen(RedisKeys.of(CATALOG, TOKENIZER).items) >= num_items


@pytest.mark.slow
async def test_an_import_that_was_killed_is_finished_by_the_next_one(
    bundle, redis, redis_url, tmp_path, capsys
):
    many = items_without_text_twice(20_000, seed=2)
    path = written(tmp_path, many)
    process = subprocess.Popen(
        glyphrec_command("import", path, "--tokenized", "--bundle", bundle),
        env={**os.environ, "PYTHONPATH": os.pathsep.join(map(str, SOURCES)), "REDIS_URL": redis_url},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    await until_true(lambda: holds(redis, 2_000), timeout_s=60)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    num_put = len(await codes_in(redis))
    assert 2_000 <= num_put < len(many)
    assert await is_whole(redis)
    assert await imported(path, bundle, redis_url) == 0
    assert capsys.readouterr().out == f"{len(many) - num_put} created, {num_put} unchanged\n"
    assert await codes_in(redis) == {each.item_id: each.codes for each in many}
    assert await is_whole(redis)


async def test_a_redis_that_is_full_for_a_moment_is_waited_for(
    bundle, redis, redis_url, tmp_path, monkeypatch
):
    monkeypatch.setattr(importing, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(importing, "MAX_WAIT_S", 0.01)
    monkeypatch.setattr(importing, "MAX_TRIES", 10_000)
    await redis.config_set("maxmemory", 1)
    try:
        importing_it = asyncio.create_task(imported(written(tmp_path, MANY), bundle, redis_url))

        async def was_refused():
            return b"OOM" in str(await redis.info("errorstats")).encode()

        await until_true(was_refused)
        assert await redis.dbsize() == 0
        await redis.config_set("maxmemory", 0)
        assert await importing_it == 0
    finally:
        await redis.config_set("maxmemory", 0)
    assert await codes_in(redis) == {each.item_id: each.codes for each in MANY}


@pytest.mark.slow
async def test_a_redis_that_stays_full_ends_the_import_and_says_how_far_it_came(
    bundle, redis, redis_url, tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(importing, "FIRST_WAIT_S", 0.01)
    monkeypatch.setattr(importing, "MAX_WAIT_S", 0.01)
    await redis.config_set("maxmemory", 1)
    try:
        assert await imported(written(tmp_path, MANY), bundle, redis_url) == 2
    finally:
        await redis.config_set("maxmemory", 0)
    said = capsys.readouterr().err
    assert "Redis is out of memory" in said
    assert "0 of 2500 items were put" in said


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--tokenized"], "GLYPHREC_BUNDLE: not set"),
        (["--tokenised"], "GLYPHREC_BUNDLE: not set"),  # the old spelling
        (["--tokenized", "--bundle", "BUNDLE"], "Set REDIS_URL, or give --redis-url"),
        (["--tokenized", "--bundle", "BUNDLE", "--redis-url", "http://x"], "REDIS_URL"),
        (
            ["--tokenized", "--bundle", "BUNDLE", "--redis-url", "redis://127.0.0.1:1"],
            "Redis does not answer",
        ),
        (["--tokenized", "--bundle", "/no/such"], "manifest.json: not found"),
        (["--tokenized", "--url", "http://127.0.0.1:9"], "--url: goes to a service"),
        (["--tokenized", "--batch", "5"], "--batch: goes to a service"),
        (["--bundle", "BUNDLE"], "--bundle: goes with --tokenized"),
        (["--catalog", "shop"], "--catalog: goes with --tokenized"),
    ],
)
def test_what_the_command_line_lacks_is_said_in_one_line(bundle, tmp_path, capsys, args, words):
    given = [str(bundle) if each == "BUNDLE" else each for each in args]
    if "/no/such" in given:
        given += ["--redis-url", "redis://127.0.0.1:1"]
    assert main(["import", str(written(tmp_path, MANY)), *given]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert said.count("\n") == 1


def test_a_pipe_cannot_be_read_twice(bundle, tmp_path, capsys):
    pipe = tmp_path / "items.jsonl"
    os.mkfifo(pipe)
    args = ["import", str(pipe), "--tokenized", "--bundle", str(bundle), "--redis-url", "redis://127.0.0.1:1"]
    assert main(args) == 2
    assert "a pipe will not do" in capsys.readouterr().err
