"""Checks that all rows of counts in Redis can be read, and drops those that cannot."""

import secrets
import struct
from typing import Any

from redis.asyncio import Redis, RedisCluster

from service.core.co_counts import MAX_NEIGHBORS
from service.errors import ServiceError
from service.store.client import PIPELINE_LENGTH, Script, hash_pages, redis_errors
from service.store.co_counts import CoCountKeys, read_row
from service.store.fsck_report import Finding, FsckReport
from service.store.records import shown_id

KEEP_LOG = 2**53  # a repair trims nothing: the log's length is a setting of the service


async def check_co_counts(
    redis: Redis | RedisCluster, *, catalog: str, report: FsckReport, repair: bool = False
) -> None:
    """Add to the report the rows that are not ours, page by page. Raises ServiceError if Redis fails."""
    client: Any = redis
    keys, drop, found = CoCountKeys.of(catalog), Script("drop_counts"), set[bytes]()
    with redis_errors():
        report.num_rows = await client.hlen(keys.rows)
    async for page in hash_pages(client, keys.rows, PIPELINE_LENGTH):
        wrong = {key: value for key, value in page.items() if key not in found and not _is_ours(key, value)}
        found |= wrong.keys()  # a field may come twice
        replies: list[Any] = [0] * len(wrong)
        if repair:
            calls = [[key, value, secrets.token_hex(8), KEEP_LOG] for key, value in wrong.items()]
            replies = await drop.run(redis, keys[:3], calls)
        for key, reply in zip(wrong, replies, strict=True):
            if isinstance(reply, ServiceError):
                raise reply
            report.add(Finding("unreadable_counts", shown_id(key), bool(reply)))


def _is_ours(key: bytes, value: bytes) -> bool:
    try:
        return len(read_row(key, value).row.neighbors) <= MAX_NEIGHBORS
    except (ValueError, struct.error):
        return False
