"""The change of a model in Redis: what is announced, who leads it, which replicas live, whose keys may go.

One tokenizer is active. A change to another is announced in one hash, and the replica that leads it holds a
lease, so that one which dies is noticed. Every replica reports itself each time it looks.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from redis.asyncio import Redis, RedisCluster

from service.errors import ServiceError
from service.store.client import Script, redis_errors
from service.store.records import Keys, version_of

LEASE_MS = 5_000  # a leader that was not heard of for so long is taken for dead
REPORT_LIFE_S = 5  # and so is a replica
FORGET_S = 3_600  # until the report of a dead replica is deleted
CHANGES_AT_ONCE = 250
SCRIPTS = ("announce", "lead", "activate", "purge", "look", "report")


@dataclass(frozen=True)
class Announced:
    bundle: str  # a folder's name, the same on every replica
    tokenizer_id: str
    previous: str  # the tokenizer that was active; '' for none
    phase: str  # reading, joining, switched or failed
    reason: str  # why it failed; else ''
    read_to: int  # version of the previous tokenizer's log up to which the new one has everything

    @property
    def is_under_way(self) -> bool:
        return self.phase in ("reading", "joining")


@dataclass(frozen=True)
class Report:
    """What a replica says of itself."""

    replica_id: str
    tokenizer_id: str  # that it serves
    in_use: tuple[str, ...]  # tokenizers that any request on it may still write under
    prepared: str  # the tokenizer that it could switch to now; '' for none
    trouble: str  # why it cannot prepare itself; else ''


class Seen(NamedTuple):
    active: str | None
    announced: Announced | None
    leader: str | None
    replicas: list[Report]  # that live
    retired: dict[str, bool]  # tokenizers that were active once -> whether their keys may go


class LogGap(Exception):
    """The log was trimmed before it was read."""


class Touched(NamedTuple):
    item_ids: list[str]  # put or dropped, in the order of their last change
    version: int  # of the log after these


class RolloutStore:
    """The changes of the catalogue `catalog`, as the replica `replica_id` sees and leads them."""

    def __init__(self, redis: Redis | RedisCluster, *, catalog: str, replica_id: str) -> None:
        self._redis: Any = redis
        self.replica_id = replica_id
        self._catalog = catalog
        kinds = ("active", "rollout", "rollout:leader", "retired")
        self._keys = tuple(f"{{{catalog}}}:{kind}" for kind in kinds)
        self._leader = self._keys[2]
        self._replicas = f"{{{catalog}}}:replicas"
        self._scripts = {name: Script(name) for name in SCRIPTS}

    async def look(self) -> Seen:
        now, active, announced, leader, replicas, retired = await self._run("look", [], [self._replicas])
        reports = {key: json.loads(value) for key, value in _pairs(replicas)}
        dead = [key for key, each in reports.items() if now - each["at"] > FORGET_S]
        if dead:
            with redis_errors():
                await self._redis.hdel(self._replicas, *dead)
        return Seen(
            active=None if active is None else _text(active),
            announced=_announced({_text(k): _text(v) for k, v in _pairs(announced)}) if announced else None,
            leader=None if leader is None else _text(leader),
            replicas=[
                Report(**{**each["report"], "in_use": tuple(each["report"]["in_use"])})
                for each in reports.values()
                if now - each["at"] <= REPORT_LIFE_S
            ],
            retired={_text(tokenizer_id): float(at) <= now for tokenizer_id, at in _pairs(retired)},
        )

    async def report(self, report: Report) -> None:
        await self._run("report", [report.replica_id, json.dumps(asdict(report))], [self._replicas])

    async def leave(self) -> None:
        """This replica stops: nobody is to wait for it, nor for its lease."""
        with redis_errors():
            await self._redis.hdel(self._replicas, self.replica_id)
            if await self._redis.get(self._leader) == self.replica_id.encode():
                await self._redis.delete(self._leader)

    async def announce(self, bundle: str, tokenizer_id: str) -> bool:
        """False where another replica leads a change."""
        return bool(await self._run("announce", [self.replica_id, LEASE_MS, bundle, tokenizer_id]))

    async def lead(self, tokenizer_id: str, **fields: str | int) -> bool:
        """Take or keep the lease and write the fields of Announced. False where another replica leads."""
        flat = [part for field in fields.items() for part in field]
        return bool(await self._run("lead", [self.replica_id, LEASE_MS, tokenizer_id, *flat]))

    async def activate(self, tokenizer_id: str, keep_old_s: int) -> bool:
        """All replicas switch. False where this one no longer leads."""
        return bool(await self._run("activate", [self.replica_id, tokenizer_id, keep_old_s]))

    async def purge(self, tokenizer_id: str) -> bool:
        """Delete the codes of a tokenizer that is long out of use. False where they are kept."""
        keys = Keys.of(self._catalog, tokenizer_id)
        return bool(await self._run("purge", [tokenizer_id], [keys.codes, keys.trie, keys.log]))

    async def touched(self, tokenizer_id: str, after: int) -> Touched | None:
        """The oldest changes in a tokenizer's log after a version; None there. Raises LogGap."""
        with redis_errors():
            log = Keys.of(self._catalog, tokenizer_id).log
            streams = await self._redis.xread({log: f"{after}-0"}, count=CHANGES_AT_ONCE)
        entries = streams[0][1] if streams else []
        if not entries:
            return None
        if version_of(entries[0][0]) != after + 1:
            raise LogGap
        ids = [_text(fields[b"id"]) for _, fields in entries if b"id" in fields]
        return Touched(list(dict.fromkeys(reversed(ids)))[::-1], version_of(entries[-1][0]))

    async def log_version(self, tokenizer_id: str) -> int:
        with redis_errors():
            newest = await self._redis.xrevrange(Keys.of(self._catalog, tokenizer_id).log, count=1)
        return version_of(newest[0][0]) if newest else 0

    async def progress(self, tokenizer_id: str) -> tuple[int, int]:
        """How many items the tokenizer has read, and how many there are."""
        keys = Keys.of(self._catalog, tokenizer_id)
        with redis_errors():
            return int(await self._redis.hlen(keys.codes)), int(await self._redis.hlen(keys.items))

    async def _run(self, name: str, args: Sequence[Any], keys: Sequence[str] = ()) -> Any:
        (reply,) = await self._scripts[name].run(self._redis, [*self._keys, *keys], [args])
        if isinstance(reply, ServiceError):
            raise reply
        return reply


def _pairs(flat: Sequence[bytes]) -> Iterator[tuple[bytes, bytes]]:
    """Fields and values, as Lua returns a hash or scored members."""
    return zip(flat[::2], flat[1::2], strict=True)


def _text(raw: bytes) -> str:
    """What others may have written too becomes text, whatever it is."""
    return raw.decode(errors="replace")


def _announced(fields: dict[str, str]) -> Announced:
    return Announced(
        bundle=fields.get("bundle", ""),
        tokenizer_id=fields.get("tokenizer", ""),
        previous=fields.get("previous", ""),
        phase=fields.get("phase", ""),
        reason=fields.get("reason", ""),
        read_to=int(fields.get("read_to", "0")),
    )
