"""The end of a log of changes, as lua/log.lua writes it."""

from typing import Any

from redis.exceptions import ResponseError

from service.store.client import redis_errors
from service.store.records import Position, version_of


async def position_of(redis: Any, log: str) -> Position:
    """The end of the log now; version 0 if nothing was ever changed. Raises StoreUnavailable."""
    with redis_errors():
        try:
            info = await redis.xinfo_stream(log)
        except ResponseError as error:
            if "no such key" in str(error):
                return Position(0, "")
            raise
    last_id, last = info["last-generated-id"], info["last-entry"]
    mark = last[1].get(b"mark", b"") if last and last[0] == last_id else b""
    return Position(version_of(last_id), mark.decode(errors="replace"))
