"""The POST /items flow over a real tokenizer graph and a real Redis."""

import asyncio
import copy
import json
import random

import pytest

from service.catalog.catalog import Catalog
from service.catalog.follower import CatalogFollower
from service.core.bundle import TOKENIZER, load_bundle
from service.core.filters import DeclaredFields
from service.core.items import MAX_FIELDS, MAX_ID_CHARS, check_item, merge, merge_patch
from service.errors import InvalidItem, Overloaded, StoreUnavailable, TookTooLong
from service.flows import indexing
from service.flows.contents import ContentReader
from service.flows.drawing import ItemDrawer, tokenize_in_batches, work_of
from service.flows.indexing import Indexer
from service.flows.pictures import PictureReader
from service.inference.batching import MicroBatcher
from service.inference.runtime import Tokenizer
from service.store.client import connect
from service.store.items import ItemStore
from service.telemetry.metrics import Metrics
from service.telemetry.stages import Stages
from tests.known_bundle import SPEC, known_codes, write_known_bundle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    return load_bundle(write_known_bundle(tmp_path_factory.mktemp("known"), []))


class Bench:
    """One replica's indexer with its store, its follower, and a count of what its tokenizer read."""

    def __init__(self, redis, bundle, **options):
        self.manifest = bundle.manifest
        tokenizer = Tokenizer(bundle.file(TOKENIZER), self.manifest.tokenizer, threads=1)
        self.num_read = 0
        run = tokenize_in_batches(tokenizer)

        def counting(strips):
            self.num_read += len(strips)
            return run(strips)

        batching = {"max_batch_units": 16, "max_queued_units": 10_000} | {
            name: options.pop(name) for name in list(options) if name.startswith("max_")
        }
        self.batcher = MicroBatcher(counting, name="test", units=work_of, **batching)
        self.store = ItemStore(redis, catalog="shop", tokenizer_id="0123456789ab", spec=SPEC)
        self.catalog = Catalog(SPEC)
        self.follower = CatalogFollower(self.catalog, self.store)
        self.metrics = Metrics()
        pictures = PictureReader(
            threads=1, max_bytes=10**6, max_pixels=10**6, timeout_s=10, metrics=self.metrics
        )
        self.indexer = Indexer(
            self.store,
            self.follower,
            self.batcher,
            manifest=self.manifest,
            contents=ContentReader(
                self.manifest, pictures, filter_fields=DeclaredFields(), max_item_chars=5_000
            ),
            drawer=ItemDrawer(self.manifest, self.store.pictures, pictures),
            timeout_s=options.pop("timeout_s", 30.0),
            metrics=self.metrics,
        )

    async def index(self, *items):
        return (await self.indexer.index(items, Stages())).outcomes

    async def __aenter__(self):
        await self.follower.load()
        self.batcher.start()
        self.following = asyncio.create_task(self.follower.run())
        return self

    async def __aexit__(self, *_):
        self.following.cancel()
        await asyncio.gather(self.following, return_exceptions=True)
        await self.batcher.stop()


@pytest.fixture
async def bench(redis, bundle):
    async with Bench(redis, bundle) as bench:
        yield bench


def item(item_id, title="Oat milk", **fields):
    return {"item_id": item_id, "title": title, **fields}


async def test_an_item_gets_the_codes_that_the_tokenizer_reads_and_lives_at_once(bench):
    (outcome,) = await bench.index(item("a"))
    assert outcome.status == "created"
    assert outcome.sid.codes == known_codes(item("a"))
    assert (outcome.truncated, outcome.missing, outcome.error) == (False, "", None)
    assert bench.catalog.sid_of("a") == outcome.sid
    assert (await bench.store.get("a")).item == item("a")


async def test_the_same_item_again_changes_nothing_and_is_not_read_again(bench):
    (first,) = await bench.index(item("a"))
    version = bench.catalog.version
    (second,) = await bench.index(item("a"))
    assert (second.status, second.sid) == ("unchanged", first.sid)
    assert (bench.num_read, bench.catalog.version) == (1, version)
    assert second.truncated is None


async def test_new_text_moves_an_item_and_leaves_nothing_behind(bench):
    (first,) = await bench.index(item("a", "Oat milk"))
    (second,) = await bench.index(item("a", "Rye bread"))
    assert second.status == "moved"
    assert second.sid.codes == known_codes(item("a", "Rye bread"))
    assert bench.catalog.sid_of("a") == second.sid
    assert bench.catalog.items_at(first.sid.codes) == []


async def test_items_with_the_same_text_share_codes_and_never_a_slot(bench):
    outcomes = await bench.index(*(item(f"i{i}") for i in range(50)))
    assert len({outcome.sid for outcome in outcomes}) == 50
    assert {outcome.sid.codes for outcome in outcomes} == {known_codes(item(""))}


async def test_a_bad_item_harms_no_other_and_each_answer_stands_in_its_place(bench):
    bad = [
        None,
        7,
        "text",
        ["list"],
        {},
        {"title": "no id"},
        item(3),
        item(None),
        item(""),
        item("  "),
        item("nul\0"),
        item("x" * (MAX_ID_CHARS + 1)),
        item("half\ud800"),
        {"item_id": "only-an-id"},
        item("empty", ""),
        item("blank", " \n\t "),
        item("nul", "\0\0"),
        item("unseen", "\u200b\u200f"),
        item("null", None),
        item("half", "\udfff"),
        item("nan", price=float("nan")),
        item("inf", price=float("inf")),
        item("long", "x" * 5_001),
        item("deep", deep=[[[[[[[[[[1]]]]]]]]]]),
        item("wide", wide=list(range(1_000))),
        item("name", **{"": "no name"}),
        item("name2", **{"x" * 101: "long name"}),
        item("fields", **{f"f{i}": i for i in range(MAX_FIELDS)}),
    ]
    good = [item(f"good-{i}", f"Number {i}") for i in range(len(bad))]
    mixed = [each for pair in zip(bad, good, strict=True) for each in pair]
    outcomes = await bench.index(*mixed)
    for raw, outcome in zip(mixed[0::2], outcomes[0::2], strict=True):
        assert outcome.status == "failed", raw
        assert outcome.error.status == 422
        assert str(outcome.error)
    for raw, outcome in zip(mixed[1::2], outcomes[1::2], strict=True):
        assert (outcome.item_id, outcome.status) == (raw["item_id"], "created")
    assert outcomes[mixed.index(item("empty", ""))].item_id == "empty"
    assert outcomes[mixed.index(item(3))].item_id is None
    assert bench.catalog.num_items == len(good)


@pytest.mark.parametrize(
    "title",
    [
        "emoji 🍕🏳️‍🌈",
        "עברית مرحبا",
        "日本語のミルク",
        "a\0b",
        "\u202eright to left",
        "é" * 300,
        "\U0010ffff",
        "x" * 5_00,
    ],
)
async def test_any_text_is_an_item_and_comes_back_as_it_was(bench, title):
    (outcome,) = await bench.index(item("a", title))
    assert outcome.status == "created"
    assert (await bench.store.get("a")).item["title"] == title


async def test_what_the_font_lacks_and_what_did_not_fit_is_reported(bench):
    long, strange = await bench.index(item("a", "word " * 500), item("b", "\U0010fffd tea"))
    assert long.truncated
    assert not strange.truncated
    assert strange.missing == "\U0010fffd"


async def test_an_id_that_comes_twice_is_stored_as_it_comes_last(bench):
    first, other, last = await bench.index(item("a", "one"), item("b", "two"), item("a", "three"))
    assert first == last
    assert other.status == "created"
    assert last.sid.codes == known_codes(item("a", "three"))
    assert (await bench.store.get("a")).item["title"] == "three"


async def test_a_field_that_changes_no_text_keeps_the_sid(bench):
    (first,) = await bench.index(item("a", note=None))
    (second,) = await bench.index({**item("a"), "title": "Oat  milk"})
    assert second.status == "updated"
    assert (second.sid, bench.num_read) == (first.sid, 1)
    assert (await bench.store.get("a")).item == item("a", "Oat  milk")


async def test_many_items_are_stored_once_each_whatever_their_chunks(bench):
    rng = random.Random(0)
    items = [item(f"i{i}", f"Thing {rng.randrange(100)}") for i in range(300)]
    outcomes = await bench.index(*items)
    assert [outcome.item_id for outcome in outcomes] == [each["item_id"] for each in items]
    assert all(o.sid.codes == known_codes(i) for o, i in zip(outcomes, items, strict=True))
    assert bench.catalog.num_items == await bench.store.num_items() == 300
    again = await bench.index(*items)
    assert {outcome.status for outcome in again} == {"unchanged"}
    assert [outcome.sid for outcome in again] == [outcome.sid for outcome in outcomes]


async def test_two_replicas_at_once_agree_and_never_share_a_sid(redis, bundle):
    async with Bench(redis, bundle) as one, Bench(redis, bundle) as two:
        items = [item(f"i{i}", f"Thing {i % 7}") for i in range(60)]
        await asyncio.gather(one.index(*items), two.index(*reversed(items)))
        version = await one.store.last_version()
        assert await one.follower.wait_for(version, 5)
        assert await two.follower.wait_for(version, 5)
        sids = [one.catalog.sid_of(each["item_id"]) for each in items]
        assert len(set(sids)) == 60
        assert sids == [two.catalog.sid_of(each["item_id"]) for each in items]
        assert one.catalog.trie.digest() == two.catalog.trie.digest()


async def test_the_same_item_posted_many_times_at_once_is_created_once(bench):
    outcomes = [each for (each,) in await asyncio.gather(*(bench.index(item("a")) for _ in range(20)))]
    assert len({outcome.sid for outcome in outcomes}) == 1
    assert [outcome.status for outcome in outcomes].count("created") == 1


async def test_a_dropped_item_is_gone_and_dropping_it_again_says_so(bench):
    await bench.index(item("a"))
    assert await bench.indexer.drop("a") == bench.catalog.version
    assert bench.catalog.sid_of("a") is None
    assert await bench.indexer.drop("a") is None


async def test_what_this_replica_does_not_see_in_time_is_not_acknowledged(bench, monkeypatch):
    await bench.index(item("b"))
    monkeypatch.setattr(indexing, "FOLLOW_TIMEOUT_S", 0.05)
    async with bench.catalog.lock:  # so that no change comes in
        for change in (bench.index(item("a")), bench.indexer.drop("b")):
            with pytest.raises(StoreUnavailable, match="does not see the change yet"):
                await change
    monkeypatch.undo()
    (outcome,) = await bench.index(item("a"))
    assert (outcome.status, bench.catalog.sid_of("a")) == ("unchanged", outcome.sid)
    assert await bench.indexer.drop("b") is None
    assert bench.catalog.sid_of("b") is None


async def test_an_item_that_another_replica_has_dropped_is_not_called_absent_while_it_is_recommended_here(
    redis, bundle
):
    async with Bench(redis, bundle) as one, Bench(redis, bundle) as two:
        (outcome,) = await one.index(item("a"))
        assert await two.follower.wait_for(one.catalog.version, 5)
        async with two.catalog.lock:
            await one.indexer.drop("a")
            again = asyncio.create_task(two.indexer.drop("a"))
            await asyncio.wait([again], timeout=0.2)
            assert two.catalog.sid_of("a") == outcome.sid
            assert not again.done()
        assert await again is None
        assert two.catalog.sid_of("a") is None


async def test_a_full_queue_refuses_the_whole_request_before_anything_is_stored(redis, bundle):
    async with Bench(redis, bundle, max_queued_units=1, max_batch_units=1) as bench:
        crowd = await asyncio.gather(
            *(bench.index(item(f"i{i}", f"Thing {i}")) for i in range(40)), return_exceptions=True
        )
        refused = [each for each in crowd if isinstance(each, Overloaded)]
        assert refused
        assert await bench.store.num_items() == 40 - len(refused)


async def test_part_of_a_request_may_be_refused_and_says_that_it_can_be_sent_again(redis, bundle):
    async with Bench(redis, bundle, max_queued_units=3, max_batch_units=1) as bench:
        items = [item(f"i{i}", f"Thing {i}") for i in range(30)]
        outcomes = await bench.index(*items)
        stored = [outcome for outcome in outcomes if outcome.status == "created"]
        refused = [outcome for outcome in outcomes if isinstance(outcome.error, Overloaded)]
        assert stored
        assert refused
        assert len(stored) + len(refused) == 30
        assert await bench.store.num_items() == len(stored)


async def test_reading_that_takes_too_long_is_given_up(redis, bundle):
    async with Bench(redis, bundle, timeout_s=1e-6) as bench:
        with pytest.raises(TookTooLong):
            await bench.index(item("a"))


async def test_without_redis_the_whole_request_is_refused(bundle, tmp_path):
    client = connect(f"unix://{tmp_path}/nobody-listens")
    bench = Bench(client, bundle)
    bench.batcher.start()
    with pytest.raises(StoreUnavailable):
        await bench.index(item("a"))
    await bench.batcher.stop()
    await client.aclose()


async def test_every_outcome_is_counted(bench):
    await bench.index(item("a"), item("b"), item(""))
    await bench.index(item("a"))
    counts = {
        status: bench.metrics.registry.get_sample_value("glyphrec_indexed_items_total", {"status": status})
        for status in ("created", "unchanged", "failed")
    }
    assert counts == {"created": 2, "unchanged": 1, "failed": 1}


def test_null_fields_are_left_out_at_every_depth():
    raw = {"item_id": "a", "x": None, "list": [1, None, "b"], "nested": {"y": None, "z": [None]}}
    assert check_item(raw, 100) == {"item_id": "a", "list": [1, "b"], "nested": {"z": []}}


def test_an_item_within_the_limits_is_kept_as_it_is():
    raw = json.loads('{"item_id": "ä/b c", "n": 1, "f": 0.5, "yes": true, "tags": ["x", 2], "o": {"p": "q"}}')
    assert check_item(raw, 100) == raw


def test_merging_replaces_adds_and_removes_fields():
    assert merge({"item_id": "a", "x": 1, "y": 2}, {"x": 3, "y": None, "z": 4}) == {
        "item_id": "a",
        "x": 3,
        "z": 4,
    }


@pytest.mark.parametrize(
    ("item", "patch", "expected"),
    [  # those of RFC 7396, appendix A, in which both are objects
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
        ({"a": "foo"}, {"a": {"b": 1}}, {"a": {"b": 1}}),
    ],
)
def test_a_merge_patch_merges_objects_at_every_depth(item, patch, expected):
    before = copy.deepcopy(item)
    assert merge_patch(item, patch) == expected
    assert item == before


def test_a_merge_patch_that_is_nested_too_deeply_is_refused():
    patch = {"x": 1}
    for _ in range(900):
        patch = {"deep": patch}
    with pytest.raises(InvalidItem, match="nested deeper") as refused:
        merge_patch({"item_id": "a"}, patch)
    assert refused.value.field == "deep"
