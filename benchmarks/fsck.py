"""How long a check of a whole catalogue takes, and what the digest of a replica costs.

    python benchmarks/fsck.py [--items 100000]

Items have random codes and are put through the store into a server of their own. The digest is kept as items
change: it costs its part of building the tables, and of each put.
"""

import argparse
import asyncio
import json
import random
import time
from collections.abc import Callable

from service.catalog.catalog import Catalog, hash_of_item
from service.core.filters import DeclaredFields
from service.core.sid import Codes, SidSpec
from service.store.client import connect
from service.store.fsck import check
from service.store.items import ItemStore, TrieEntry
from service.store.records import ItemRecord
from service.store.server import start_server

SPEC = SidSpec(levels=(64, 64, 32))
TOKENIZER = "0123456789ab"
CATALOG = "bench"
CHUNK = 1_000
FIELDS = DeclaredFields({"price": "number", "brand": "text"})


def records(num_items: int) -> list[tuple[ItemRecord, Codes]]:
    rng = random.Random(0)
    found = []
    for i in range(num_items):
        item = {
            "item_id": f"B{i:09d}",
            "title": f"Thing number {i}",
            "categories": [f"category {i % 50}"],
            "price": rng.randrange(10_000) / 100,
            "brand": f"brand {i % 200}",
        }
        codes = tuple(rng.randrange(num_codes) for num_codes in SPEC.levels)
        found.append((ItemRecord(item["item_id"], f"{i:032x}", item), codes))
    return found


async def main(num_items: int) -> dict[str, float]:
    with start_server() as server:
        redis = connect(server.url)
        store = ItemStore(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC, fields=FIELDS)
        items = records(num_items)
        for start in range(0, num_items, CHUNK):
            await store.put(items[start : start + CHUNK])
        await store.activate()
        entries = [entry async for page in store.snapshot() for entry in page]

        started = time.perf_counter()
        report = await check(redis, catalog=CATALOG, tokenizer_id=TOKENIZER, spec=SPEC)
        fsck_s = time.perf_counter() - started
        assert report.is_clean, report.findings
        await redis.aclose()
    load_s = fastest(lambda: Catalog.from_entries(SPEC, entries))
    digest_s = fastest(lambda: sum(hash_of_item(each.item_id, 0, each.attributes) for each in entries))
    loaded = Catalog.from_entries(SPEC, entries)
    return {
        "items": num_items,
        "fsck_s": fsck_s,
        "fsck_items_per_s": num_items / fsck_s,
        "tables_s": load_s,
        "of_it_digest_s": digest_s,
        "digest_us_per_item": 1e6 * digest_s / num_items,
        "put_us": put_us(loaded, entries),
        "read_digest_us": 1e6 * fastest(lambda: loaded.digest),
    }


def put_us(loaded: Catalog, entries: list[TrieEntry]) -> float:
    """Of items that change in place, with the digest kept."""
    moved = [each._replace(sid=each.sid._replace(slot=each.sid.slot + 1_000)) for each in entries[:10_000]]
    started = time.perf_counter()
    for each in moved:
        loaded.put(each.item_id, each.sid, each.attributes)
    return 1e6 * (time.perf_counter() - started) / len(moved)


def fastest(work: Callable[[], object], tries: int = 3) -> float:
    """Seconds of the fastest of some tries."""
    seconds = []
    for _ in range(tries):
        started = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - started)
    return min(seconds)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--items", type=int, default=100_000)
    figures = asyncio.run(main(parser.parse_args().items))
    for name, value in figures.items():
        print(f"{name:>24}  {value:,.2f}")
    print(json.dumps(figures))
