"""Items without a tokenizer, and a direct reading of Redis, for the tests of the store and the catalog."""

import asyncio
import hashlib
import random
import struct
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from redis.asyncio import Redis

from service.core.sid import Codes, Sid, SidSpec
from service.errors import ServiceError
from service.store.items import ItemRecord, ItemStore, PutResult

SPEC = SidSpec(levels=(4, 3, 5))
CATALOG = "shop"
TOKENIZER = "0123456789ab"
ITEMS = f"{{{CATALOG}}}:items"
LOG = f"{{{CATALOG}}}:log:{TOKENIZER}"
ODD_IDS = ["a\x00b", "😀", "日本語", "العربية", "-", "+", "[", "(", " ", "\n", "x" * 512, "\u00ff"]


def record(item_id: str, text: str = "text", **fields: object) -> ItemRecord:
    """An item whose content is `text`; `fields` are not read by the tokenizer."""
    content_hash = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:32]
    return ItemRecord(item_id, content_hash, {"item_id": item_id, "title": text, **fields})


def random_codes(rng: random.Random) -> Codes:
    return tuple(rng.randrange(num_codes) for num_codes in SPEC.levels)


def store_on(redis: Redis, **options: object) -> ItemStore:
    given = {"catalog": CATALOG, "tokenizer_id": TOKENIZER, "spec": SPEC} | options
    return ItemStore(redis, **given)  # type: ignore[arg-type]  # names and types as in ItemStore


async def put(store: ItemStore, item: ItemRecord, codes: Codes | None) -> PutResult:
    """Put one item, which must succeed."""
    (result,) = await store.put([(item, codes)])
    if isinstance(result, ServiceError):
        raise result
    return result


@dataclass(frozen=True)
class RawCatalog:
    """The four structures, read without the store."""

    items: set[bytes]
    codes: dict[bytes, bytes]  # item id -> sid
    trie: set[bytes]  # sid + item id
    versions: list[bytes]

    @property
    def sids(self) -> dict[str, Sid]:
        unpacked = {key: struct.unpack(f">{len(sid) // 2}H", sid) for key, sid in self.codes.items()}
        return {key.decode("utf-8", "surrogatepass"): Sid(v[:-1], v[-1]) for key, v in unpacked.items()}


async def read_raw(redis: Redis, catalog: str = CATALOG, tokenizer: str = TOKENIZER) -> RawCatalog:
    def key(kind: str) -> str:
        return f"{{{catalog}}}:{kind}:{tokenizer}"

    codes = await redis.hgetall(key("codes"))
    return RawCatalog(
        items=set(await redis.hkeys(f"{{{catalog}}}:items")),
        codes={item_id: value[:-32] for item_id, value in codes.items()},
        trie=set(await redis.zrange(key("trie"), 0, -1)),
        versions=[entry_id for entry_id, _ in await redis.xrange(key("log"))],
    )


def assert_in_step(raw: RawCatalog) -> None:
    """Every item is in all structures or in none; no two share a sid; the log has no gaps."""
    assert raw.items == set(raw.codes)
    assert raw.trie == {sid + item_id for item_id, sid in raw.codes.items()}
    assert len(set(raw.codes.values())) == len(raw.codes)
    first = int(raw.versions[0].split(b"-")[0]) if raw.versions else 1
    assert raw.versions == [b"%d-0" % (first + i) for i in range(len(raw.versions))]


async def until(happened: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not happened():
            await asyncio.sleep(0.002)


async def until_true(holds: Callable[[], Awaitable[bool]], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not await holds():
            await asyncio.sleep(0.01)
