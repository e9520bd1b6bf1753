"""The change of a model in Redis: the announced change, its leader, the living replicas, and old keys.

One tokenizer is active. A change to another one is announced in one hash. The replica that leads it holds a
lease, so the others notice if it dies. Every replica reports itself each time it looks.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, astuple, dataclass
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster

from service.errors import ServiceError
from service.store.client import Script, redis_errors
from service.store.records import RedisKeys, version_of
from service.store.standing import Owner

LEASE_MS = 5_000  # a leader that does not renew its lease for so long counts as dead
REPORT_LIFE_S = 5  # a replica that does not report for so long counts as dead
FORGET_S = 3_600  # until the report of a dead replica is deleted
CHANGES_AT_ONCE = 250
SCRIPTS = ("announce", "lead", "activate", "purge", "look", "report")


@dataclass(frozen=True)
class Announced:
    """The change of the tokenizer that was announced last."""

    bundle: str  # a folder's name, the same on every replica
    tokenizer_id: str
    previous: str  # the tokenizer that was active; '' for none
    phase: str  # reading, joining, switched or failed
    reason: str  # why it failed; else ''
    read_to: int  # version of the previous tokenizer's log up to which the new one has everything
    by: str = ""  # "start" if a replica that started with a newer export switched; else POST /admin/bundles

    @property
    def is_under_way(self) -> bool:
        """Whether the change is neither done nor failed."""
        return self.phase in ("reading", "joining")


@dataclass(frozen=True)
class ReplicaReport:
    """What a replica tells the others about itself."""

    replica_id: str
    tokenizer_id: str  # the tokenizer that it serves
    in_use: tuple[str, ...]  # tokenizers that a request of it may still write under
    prepared: str  # the tokenizer that it can switch to now; '' for none
    trouble: str  # why it cannot prepare itself; else ''


class Seen(NamedTuple):
    """Everything about changes that was in Redis at one moment."""

    active: str | None  # the active tokenizer; None before the first
    announced: Announced | None
    leader: str | None  # the replica that holds the lease
    replicas: list[ReplicaReport]  # of living replicas
    retired: dict[str, bool]  # tokenizers that were active once -> whether their keys may be deleted


class LogGap(Exception):
    """The log was trimmed before it was read to that point."""


class Touched(NamedTuple):
    """A part of a tokenizer's log."""

    item_ids: list[str]  # items that were put or dropped, in the order of their last change
    version: int  # of the log after these changes


class RolloutStore:
    """The changes of the catalog `catalog`, for the replica `replica_id`."""

    def __init__(self, redis: Redis | RedisCluster, *, catalog: str, replica_id: str) -> None:
        self._redis: Any = redis
        self.replica_id = replica_id
        self._catalog = catalog
        kinds = ("active", "rollout", "rollout:leader", "retired")
        self._keys = tuple(f"{{{catalog}}}:{kind}" for kind in kinds)
        self._leader = self._keys[2]
        self._replicas = f"{{{catalog}}}:replicas"
        self._owner = f"{{{catalog}}}:owner"
        self._scripts = {name: Script(name) for name in SCRIPTS}

    async def look(self) -> Seen:
        """Everything about changes, as of one moment. It changes nothing.

        This and the other methods raise StoreUnavailable or StoreFault.
        """
        now, active, announced, leader, replicas, retired = await self._run("look", [], [self._replicas])
        reports = {key: json.loads(value) for key, value in _pairs(replicas)}
        return Seen(
            active=None if active is None else _text(active),
            announced=_announced({_text(k): _text(v) for k, v in _pairs(announced)}) if announced else None,
            leader=None if leader is None else _text(leader),
            replicas=[
                ReplicaReport(**{**each["report"], "in_use": tuple(each["report"]["in_use"])})
                for each in reports.values()
                if now - each["at"] <= REPORT_LIFE_S
            ],
            retired={_text(tokenizer_id): float(at) <= now for tokenizer_id, at in _pairs(retired)},
        )

    async def report(self, report: ReplicaReport) -> None:
        """Tell the others that this replica lives, and how it is. Reports of replicas long dead go."""
        args = [report.replica_id, json.dumps(asdict(report)), FORGET_S]
        await self._run("report", args, [self._replicas])

    async def leave(self) -> None:
        """Delete the report and the lease of this replica, so that no other waits for it."""
        with redis_errors():
            await self._redis.hdel(self._replicas, self.replica_id)
            if await self._redis.get(self._leader) == self.replica_id.encode():
                await self._redis.delete(self._leader)

    async def announce(self, bundle: str, tokenizer_id: str) -> bool:
        """Announce a change and take its lease. May be repeated. False if another replica leads a change."""
        return bool(await self._run("announce", [self.replica_id, LEASE_MS, bundle, tokenizer_id]))

    async def lead(self, tokenizer_id: str, **fields: str | int) -> bool:
        """Take or keep the lease and write `fields` of Announced. False if another replica leads."""
        flat = [part for field in fields.items() for part in field]
        return bool(await self._run("lead", [self.replica_id, LEASE_MS, tokenizer_id, *flat]))

    async def activate(self, owner: Owner, keep_old_s: int) -> bool:
        """Make the bundle's tokenizer the active one for all replicas. False if this replica no longer leads.

        `keep_old_s`: seconds until the codes of the tokenizer before it may be deleted.
        """
        tokenizer_id, *told = astuple(owner)
        args = [self.replica_id, tokenizer_id, keep_old_s, *told]
        return bool(await self._run("activate", args, [self._owner]))

    async def purge(self, tokenizer_id: str) -> bool:
        """Delete the codes of a tokenizer that is out of use for long. False if they are kept."""
        keys = RedisKeys.of(self._catalog, tokenizer_id)
        return bool(await self._run("purge", [tokenizer_id], [keys.codes, keys.vectors, keys.trie, keys.log]))

    async def touched(self, tokenizer_id: str, after: int) -> Touched | None:
        """The oldest changes in a tokenizer's log after a version; None at its end. Raises LogGap."""
        with redis_errors():
            log = RedisKeys.of(self._catalog, tokenizer_id).log
            streams = await self._redis.xread({log: f"{after}-0"}, count=CHANGES_AT_ONCE)
        entries = streams[0][1] if streams else []
        if not entries:
            return None
        if version_of(entries[0][0]) != after + 1:
            raise LogGap
        ids = [_text(fields[b"id"]) for _, fields in entries if b"id" in fields]
        return Touched(list(dict.fromkeys(reversed(ids)))[::-1], version_of(entries[-1][0]))

    async def log_version(self, tokenizer_id: str) -> int:
        """The version of the last change in a tokenizer's log; 0 for an empty one."""
        with redis_errors():
            newest = await self._redis.xrevrange(RedisKeys.of(self._catalog, tokenizer_id).log, count=1)
        return version_of(newest[0][0]) if newest else 0

    async def progress(self, tokenizer_id: str) -> tuple[int, int]:
        """How many items the tokenizer has read, and how many items there are."""
        keys = RedisKeys.of(self._catalog, tokenizer_id)
        with redis_errors():
            return int(await self._redis.hlen(keys.codes)), int(await self._redis.hlen(keys.items))

    async def _run(self, name: str, args: Sequence[Any], keys: Sequence[str] = ()) -> Any:
        (reply,) = await self._scripts[name].run(self._redis, [*self._keys, *keys], [args])
        if isinstance(reply, ServiceError):
            raise reply
        return reply


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Fields and values of a hash, or members and scores, as Lua returns them."""
    return zip(flat[::2], flat[1::2], strict=True)


def _text(raw: bytes) -> str:
    """Text of any bytes, as others may have written them."""
    return raw.decode(errors="replace")


def _announced(fields: dict[str, str]) -> Announced:
    return Announced(
        bundle=fields.get("bundle", ""),
        tokenizer_id=fields.get("tokenizer", ""),
        previous=fields.get("previous", ""),
        phase=fields.get("phase", ""),
        reason=fields.get("reason", ""),
        read_to=int(fields.get("read_to", "0")),
        by=fields.get("by", ""),
    )
