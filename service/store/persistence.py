"""How safe an acknowledged change is: how Redis keeps it, and how much a failure may lose."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from redis.asyncio import RedisCluster
from redis.exceptions import ResponseError

from service.store.client import redis_errors


class LossWindow(NamedTuple):
    """How many acknowledged changes may be lost if Redis' machine fails."""

    seconds: float  # at worst; nan if unknown, infinite if nothing bounds it
    sentence: str


_OFF = LossWindow(
    math.inf, "The append-only file is off: everything since the last snapshot may be lost, if there is one."
)
_UNKNOWN = LossWindow(
    math.nan, "The append-only file is on, but Redis does not tell this user how often it is synced."
)
_BY_POLICY = {
    "always": LossWindow(0, "None: every change is on the disk before it is acknowledged."),
    "everysec": LossWindow(
        2,
        "A machine that fails loses up to about one second of acknowledged changes, two at worst; "
        "a Redis that is killed loses none, or up to two seconds of them while its disk is slow.",
    ),
    "no": LossWindow(
        30,
        "A machine that fails loses what its system has not written yet, on Linux up to about 30 seconds of "
        "acknowledged changes; a Redis that is killed loses none.",
    ),
}


@dataclass(frozen=True)
class Persistence:
    """Redis' settings and state that decide whether an acknowledged change can be lost."""

    append_only: bool
    append_fsync: str  # always, everysec, no, or unknown
    last_append_ok: bool
    last_snapshot_ok: bool
    last_rewrite_ok: bool  # of the append-only file, which else grows until the disk is full
    append_file_bytes: int  # size of the append-only file; 0 while it is off
    eviction: str  # other than noeviction loses items
    used_memory_bytes: int
    max_memory_bytes: int  # 0: no limit

    @property
    def loss_window(self) -> LossWindow:
        """The bound that follows from the append-only file and its sync policy."""
        return _BY_POLICY.get(self.append_fsync, _UNKNOWN) if self.append_only else _OFF

    @property
    def evictable(self) -> dict[str, bool]:
        """Whether Redis may drop keys of these kinds when its memory is full.

        catalog: items, codes, trie, log and counts, which never expire. events: the ids by which an event is
        counted once, which do, as does the lease of a change of the model.
        """
        is_limited = self.max_memory_bytes > 0
        return {
            "catalog": is_limited and self.eviction.startswith("allkeys"),
            "events": is_limited and self.eviction.startswith(("allkeys", "volatile")),
        }

    @property
    def failing(self) -> dict[str, bool]:
        """Whether the last writing to the disk has failed, of the three kinds that there are."""
        return {
            "append": self.append_only and not self.last_append_ok,
            "rewrite": self.append_only and not self.last_rewrite_ok,
            "snapshot": not self.last_snapshot_ok,
        }

    def warnings(self) -> Iterator[str]:
        """What an operator should change before using this Redis for items."""
        if not self.append_only:
            yield (
                "Redis keeps no append-only file, so its restart loses acknowledged items. "
                "Start it with --appendonly yes."
            )
        if self.eviction.startswith("allkeys"):
            when = "when its memory is full" if self.max_memory_bytes else "as soon as it has a maxmemory"
            yield (
                f"Redis' maxmemory-policy is {self.eviction}, so it may drop the whole catalog {when}. "
                "Set it to noeviction."
            )
        elif self.eviction.startswith("volatile") and self.max_memory_bytes:
            yield (
                f"Redis' maxmemory-policy is {self.eviction}. When its memory is full it drops no items, but "
                "it may drop ids of events, and an event may count twice. Set it to noeviction."
            )

    def as_json(self) -> dict[str, Any]:
        """The fields and the loss window. `loss_window_s` is None if it is unknown or unbounded."""
        window = self.loss_window
        seconds = window.seconds if math.isfinite(window.seconds) else None
        return {**vars(self), "loss_window_s": seconds, "loss_window": window.sentence}


async def read_persistence(redis: Any, key: str) -> Persistence:
    """Ask Redis; in a cluster, the node that has this key. Raises StoreUnavailable."""
    node = redis.get_node_from_key(key) if isinstance(redis, RedisCluster) else None
    options = {"target_nodes": node} if node else {}
    with redis_errors():
        persistence = await redis.info("persistence", **options)
        memory = await redis.info("memory", **options)
        try:
            config = await redis.config_get("appendfsync", **options)
        except ResponseError:  # hosted Redis often forbids CONFIG
            config = {}
    return Persistence(
        append_only=bool(persistence.get("aof_enabled")),
        append_fsync=str(config.get("appendfsync", "unknown")),
        last_append_ok=persistence.get("aof_last_write_status") == "ok",
        last_snapshot_ok=persistence.get("rdb_last_bgsave_status") == "ok",
        last_rewrite_ok=persistence.get("aof_last_bgrewrite_status", "ok") == "ok",
        append_file_bytes=int(persistence.get("aof_current_size", 0)),
        eviction=str(memory.get("maxmemory_policy", "unknown")),
        used_memory_bytes=int(memory.get("used_memory", 0)),
        max_memory_bytes=int(memory.get("maxmemory", 0)),
    )
