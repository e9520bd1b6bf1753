"""How long a check of a whole catalog takes, and what the digest of a replica costs.

    python -m benchmarks.fsck [--items 100000]

Items have random codes and are put through the store into a server of their own. The digest is kept as items
change: it costs its part of building the tables, and of each put. The baseline is the building of the tables.
The last line is JSON.
"""

import asyncio
import random
import time
from collections.abc import Sequence

from benchmarks import report
from benchmarks.timing import fastest_s
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
        item_id = f"B{i:09d}"
        item = {
            "item_id": item_id,
            "title": f"Thing number {i}",
            "categories": [f"category {i % 50}"],
            "price": rng.randrange(10_000) / 100,
            "brand": f"brand {i % 200}",
        }
        codes = tuple(rng.randrange(num_codes) for num_codes in SPEC.levels)
        found.append((ItemRecord(item_id, f"{i:032x}", item), codes))
    return found


def main(argv: Sequence[str]) -> int:
    parser = report.arguments(__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    args = parser.parse_args(argv)
    figures = asyncio.run(measure(1_000 if args.tiny else args.items))
    baseline = {"tables_s": figures.pop("tables_s")}
    report.finish("fsck", argv, figures, baseline, shown=False)
    return 0


async def measure(num_items: int) -> dict[str, float]:
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
    load_s = fastest_s(lambda: Catalog.from_entries(SPEC, entries))
    digest_s = fastest_s(lambda: sum(hash_of_item(each.item_id, 0, each.attributes) for each in entries))
    loaded = Catalog.from_entries(SPEC, entries)
    return {
        "items": num_items,
        "fsck_s": fsck_s,
        "fsck_items_per_s": num_items / fsck_s,
        "tables_s": load_s,
        "of_it_digest_s": digest_s,
        "digest_us_per_item": 1e6 * digest_s / num_items,
        "put_us": put_us(loaded, entries),
        "read_digest_us": 1e6 * fastest_s(lambda: loaded.digest),
    }


def put_us(loaded: Catalog, entries: list[TrieEntry]) -> float:
    """Of items that change in place, with the digest kept."""
    moved = [each._replace(sid=each.sid._replace(slot=each.sid.slot + 1_000)) for each in entries[:10_000]]
    started = time.perf_counter()
    for each in moved:
        loaded.put(each.item_id, each.sid, each.attributes)
    return 1e6 * (time.perf_counter() - started) / len(moved)


if __name__ == "__main__":
    report.run(main)
