"""Every order in which replicas, leaders and crashes can interleave during changes, over a model of Redis.

The replicas decide with the service's own functions. The scripts announce, lead and activate are written down
here again in a few lines; tests/service/store checks the real ones.
"""

from collections import deque
from dataclasses import dataclass, replace
from typing import NamedTuple

import pytest

from service.lifecycle.decide import (
    GiveUpCandidate,
    Job,
    Load,
    Lost,
    Mine,
    RenewLease,
    Switch,
    decide,
    decide_switch,
    may_join,
    may_serve,
)
from service.store.rollout import Announced, ReplicaReport, Seen


class Redis(NamedTuple):
    active: str = "old"
    change: Announced | None = None
    leader: str | None = None
    reports: tuple[tuple[str, str], ...] = ()  # (replica, the tokenizer it is prepared for)

    def sight(self):
        reports = [ReplicaReport(name, "", (), prepared, "") for name, prepared in self.reports]
        return Seen(self.active, self.change, self.leader, reports, {})

    def announce(self, name, tokenizer_id):
        if self.leader not in (None, name) and self.change and self.change.is_under_way:
            return None
        change = Announced(tokenizer_id, tokenizer_id, self.active, "reading", "", 0)
        return self._replace(change=change, leader=name)

    def lead(self, name, tokenizer_id, **fields):
        if self.leader not in (None, name) or self.change is None:
            return None
        if self.change.tokenizer_id != tokenizer_id:
            return None
        return self._replace(change=replace(self.change, **fields), leader=name)

    def activate(self, name, tokenizer_id):
        if self.leader != name or self.change.tokenizer_id != tokenizer_id:
            return None
        return self._replace(active=tokenizer_id, change=replace(self.change, phase="switched"))

    def report(self, name, prepared):
        return self._replace(reports=tuple(sorted({**dict(self.reports), name: prepared}.items())))

    def forget(self, name):
        return self._replace(reports=tuple(each for each in self.reports if each[0] != name))


@dataclass(frozen=True)
class Replica:
    name: str
    serving: str = "old"
    candidate: str | None = None
    has_joined: bool = False
    loading: str | None = None
    leading: str | None = None  # take, read, wait, switch: what its job of leading does next
    leads_to: str = ""
    active: str | None = "old"  # what its last look has shown
    change: Announced | None = None

    def mine(self):
        jobs = {Job.LOAD: self.loading, Job.PREPARE: self.candidate, Job.LEAD: self.leading}
        running = frozenset(job for job, is_running in jobs.items() if is_running)
        return Mine(self.serving, frozenset({self.serving}), self.candidate, False, running)

    def sight(self):
        return Seen(self.active, self.change, None, [], {})


class World(NamedTuple):
    redis: Redis
    replicas: tuple[Replica, ...]  # that live
    asked: tuple[str, ...] = ()  # new changes that operators will ask for
    num_crashes: int = 0  # that will happen
    num_lapses: int = 0  # how often a living leader will be too slow to renew its lease


def look(redis, replica):
    sight = redis.sight()
    replica = replace(replica, active=sight.active, change=sight.announced)
    for action in decide(sight, replica.mine()):
        match action:
            case GiveUpCandidate():
                replica = replace(replica, candidate=None, has_joined=False, leading=None, leads_to="")
            case Load(tokenizer_id):
                replica = replace(replica, loading=tokenizer_id)
            case RenewLease(change):
                redis = redis.lead(replica.name, change.tokenizer_id) or redis
    prepared = replica.candidate if replica.has_joined else replica.serving
    return redis.report(replica.name, prepared), replica


def prepare(replica):
    """The next step of its candidate, if there is one."""
    if replica.loading is not None:
        is_free = replica.candidate is None and replica.loading != replica.serving
        return replace(replica, candidate=replica.loading if is_free else replica.candidate, loading=None)
    if replica.candidate is None:
        return None
    asks = replica.sight(), replica.serving, replica.candidate
    if not replica.has_joined:
        return replace(replica, has_joined=True) if may_join(*asks) else None
    if not may_serve(*asks):
        return None
    return replace(replica, serving=replica.candidate, candidate=None, has_joined=False)


def lead(world, replica):
    """The next step of a leader -> Redis and the replica after it. None where it waits."""
    redis, name, tokenizer_id = world.redis, replica.name, replica.leads_to
    over = redis, replace(replica, leading=None, leads_to="")
    match replica.leading:
        case "take":
            if redis.active == tokenizer_id:
                return over
            after = redis.announce(name, tokenizer_id)
            return after and (after, replace(replica, leading="read"))
        case "read":
            after = redis.lead(name, tokenizer_id, phase="joining")
            return (after, replace(replica, leading="wait")) if after else over
        case "wait":
            step = decide_switch(redis.sight(), tokenizer_id, is_overdue=False)
            if isinstance(step, Lost):
                return over
            return (redis, replace(replica, leading="switch")) if isinstance(step, Switch) else None
        case "switch":
            after = redis.activate(name, tokenizer_id)
            if after is not None:
                check_the_switch(world, tokenizer_id)
            return (after or redis), replace(replica, leading=None, leads_to="")
    return None


def check_the_switch(world, tokenizer_id):
    for each in world.replicas:
        is_handing_on = each.candidate == tokenizer_id and each.has_joined
        assert is_handing_on or each.serving == tokenizer_id, (
            f"{each} does not hand on what it writes: {world}"
        )


def ask(redis, replica, tokenizer_id):
    """POST /admin/bundles, as Rollout.change takes it: with a look before and after."""
    redis, replica = look(redis, replica)
    if tokenizer_id in (replica.serving, redis.active) or replica.leading:
        return redis, replica
    is_announced = redis.change is not None and redis.change.tokenizer_id == tokenizer_id
    after = redis.announce(replica.name, tokenizer_id)
    if after is None and not is_announced:
        return redis, replica
    if replica.candidate != tokenizer_id:
        replica = replace(replica, candidate=tokenizer_id, has_joined=False)
    return look(after or redis, replace(replica, leading="take", leads_to=tokenizer_id))


def steps(world):
    """Every world that may come next."""
    redis = world.redis
    names = {each.name for each in world.replicas}
    if redis.leader is not None and (redis.leader not in names or world.num_lapses):
        num_lapses = world.num_lapses - (redis.leader in names)
        yield world._replace(redis=redis._replace(leader=None), num_lapses=num_lapses)
    for name, _ in redis.reports:
        if name not in names:
            yield world._replace(redis=redis.forget(name))
    for place, replica in enumerate(world.replicas):

        def put(redis, changed, place=place):
            return world._replace(
                redis=redis, replicas=(*world.replicas[:place], changed, *world.replicas[place + 1 :])
            )

        yield put(*look(redis, replica))
        if (prepared := prepare(replica)) is not None:
            yield put(redis, prepared)
        if (led := lead(world, replica)) is not None:
            yield put(*led)
        if redis.change is not None and redis.change.is_under_way:  # a change may be asked for again
            yield put(*ask(redis, replica, redis.change.tokenizer_id))
        for number, tokenizer_id in enumerate(world.asked):
            rest = (*world.asked[:number], *world.asked[number + 1 :])
            yield put(*ask(redis, replica, tokenizer_id))._replace(asked=rest)
        if world.num_crashes and len(world.replicas) > 1:
            rest = (*world.replicas[:place], *world.replicas[place + 1 :])
            yield world._replace(replicas=rest, num_crashes=world.num_crashes - 1)


def explore(start):
    """Every reachable world -> those that it came from."""
    before, queue = {start: []}, deque([start])
    while queue:
        world = queue.popleft()
        for following in steps(world):
            if following not in before:
                before[following] = []
                queue.append(following)
            before[following].append(world)
    return before


def is_settled(world):
    return all(each.serving == world.redis.active for each in world.replicas)


@pytest.mark.parametrize(
    ("num_replicas", "asked", "num_crashes", "num_lapses"),
    [
        (2, ("new",), 1, 1),
        (2, ("new", "new"), 1, 0),
        (2, ("new", "other"), 0, 0),
        (3, ("new",), 0, 0),
    ],
)
def test_no_order_of_events_switches_a_replica_that_has_not_joined_and_all_end_alike(
    num_replicas, asked, num_crashes, num_lapses
):
    redis, replicas = Redis(), []
    for name in "abc"[:num_replicas]:
        redis, replica = look(redis, Replica(name))
        replicas.append(replica)
    before = explore(
        World(redis, tuple(replicas), asked, num_crashes, num_lapses)
    )  # checks each switch on its way
    assert any(world.redis.active == asked[0] and is_settled(world) for world in before)
    # From every world there is a way for all living replicas to serve the active tokenizer.
    can_settle = {world for world in before if is_settled(world)}
    queue = deque(can_settle)
    while queue:
        for earlier in before[queue.popleft()]:
            if earlier not in can_settle:
                can_settle.add(earlier)
                queue.append(earlier)
    assert set(before) == can_settle
