"""The change of a model in Redis: what is announced, who leads it, which replicas live, whose keys may go.

One tokenizer is active. A change to another is announced in one hash, and the replica that leads it holds a
lease, so that one which dies is noticed. Every replica reports itself each time it looks.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

from redis.asyncio import Redis

from service.errors import ServiceError
from service.records import to_str, version_of
from service.redis_client import Script, redis_errors

LEASE_MS = 5_000  # a leader that was not heard of for so long is taken for dead
REPORT_LIFE_S = 5  # and so is a replica
FORGET_S = 3_600  # until the report of a dead replica is deleted
CHANGES_AT_ONCE = 250


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

    def __init__(self, redis: Redis, *, catalog: str, replica_id: str) -> None:
        self._redis: Any = redis
        self.replica_id = replica_id
        self._tag = f"{{{catalog}}}"
        self._active = f"{self._tag}:active"
        self._rollout = f"{self._tag}:rollout"
        self._leader = f"{self._tag}:rollout:leader"
        self._retired = f"{self._tag}:retired"
        self._replicas = f"{self._tag}:replicas"
        self._keys = (self._active, self._rollout, self._leader, self._retired)
        self._scripts = {name: Script(name) for name in ("announce", "lead", "activate", "purge")}

    async def look(self) -> Seen:
        with redis_errors():
            async with self._redis.pipeline(transaction=True) as pipe:
                pipe.time()
                pipe.get(self._active)
                pipe.hgetall(self._rollout)
                pipe.get(self._leader)
                pipe.hgetall(self._replicas)
                pipe.zrange(self._retired, 0, -1, withscores=True)
                now, active, announced, leader, replicas, retired = await pipe.execute()
            reports = {key: json.loads(value) for key, value in replicas.items()}
            dead = [key for key, each in reports.items() if now[0] - each["at"] > FORGET_S]
            if dead:
                await self._redis.hdel(self._replicas, *dead)
        return Seen(
            active=None if active is None else to_str(active),
            announced=_announced({to_str(k): to_str(v) for k, v in announced.items()}) if announced else None,
            leader=None if leader is None else to_str(leader),
            replicas=[
                Report(**{**each["report"], "in_use": tuple(each["report"]["in_use"])})
                for each in reports.values()
                if now[0] - each["at"] <= REPORT_LIFE_S
            ],
            retired={to_str(tokenizer_id): at <= now[0] for tokenizer_id, at in retired},
        )

    async def report(self, report: Report) -> None:
        with redis_errors():
            now = await self._redis.time()  # one clock for all replicas
            value = json.dumps({"at": now[0], "report": asdict(report)})
            await self._redis.hset(self._replicas, report.replica_id, value)

    async def leave(self) -> None:
        """This replica stops: nobody is to wait for it, nor for its lease."""
        with redis_errors():
            await self._redis.hdel(self._replicas, self.replica_id)
            if await self._redis.get(self._leader) == self.replica_id.encode():
                await self._redis.delete(self._leader)

    async def announce(self, bundle: str, tokenizer_id: str) -> bool:
        """False where another replica leads a change."""
        return await self._run("announce", [self.replica_id, LEASE_MS, bundle, tokenizer_id])

    async def lead(self, tokenizer_id: str, **fields: str | int) -> bool:
        """Take or keep the lease and write the fields of Announced. False where another replica leads."""
        flat = [part for field in fields.items() for part in field]
        return await self._run("lead", [self.replica_id, LEASE_MS, tokenizer_id, *flat])

    async def activate(self, tokenizer_id: str, keep_old_s: int) -> bool:
        """All replicas switch. False where this one no longer leads."""
        return await self._run("activate", [self.replica_id, tokenizer_id, keep_old_s])

    async def purge(self, tokenizer_id: str) -> bool:
        """Delete the codes of a tokenizer that is long out of use. False where they are kept."""
        kinds = ("codes", "trie", "log")
        keys = [f"{self._tag}:{kind}:{tokenizer_id}" for kind in kinds]
        return await self._run("purge", [tokenizer_id], keys)

    async def touched(self, tokenizer_id: str, after: int) -> Touched | None:
        """The oldest changes in a tokenizer's log after a version; None there. Raises LogGap."""
        with redis_errors():
            streams = await self._redis.xread(
                {f"{self._tag}:log:{tokenizer_id}": f"{after}-0"}, count=CHANGES_AT_ONCE
            )
        entries = streams[0][1] if streams else []
        if not entries:
            return None
        if version_of(entries[0][0]) != after + 1:
            raise LogGap
        ids = [to_str(fields[b"id"]) for _, fields in entries if b"id" in fields]
        return Touched(list(dict.fromkeys(reversed(ids)))[::-1], version_of(entries[-1][0]))

    async def log_version(self, tokenizer_id: str) -> int:
        with redis_errors():
            newest = await self._redis.xrevrange(f"{self._tag}:log:{tokenizer_id}", count=1)
        return version_of(newest[0][0]) if newest else 0

    async def progress(self, tokenizer_id: str) -> tuple[int, int]:
        """How many items the tokenizer has read, and how many there are."""
        with redis_errors():
            done = await self._redis.hlen(f"{self._tag}:codes:{tokenizer_id}")
            return int(done), int(await self._redis.hlen(f"{self._tag}:items"))

    async def _run(self, name: str, args: Sequence[Any], keys: Sequence[str] = ()) -> bool:
        (reply,) = await self._scripts[name].run(self._redis, [*self._keys, *keys], [args])
        if isinstance(reply, ServiceError):
            raise reply
        return bool(reply)


def _announced(fields: dict[str, str]) -> Announced:
    return Announced(
        bundle=fields.get("bundle", ""),
        tokenizer_id=fields.get("tokenizer", ""),
        previous=fields.get("previous", ""),
        phase=fields.get("phase", ""),
        reason=fields.get("reason", ""),
        read_to=int(fields.get("read_to", "0")),
    )
