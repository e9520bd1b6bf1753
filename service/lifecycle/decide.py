"""Decides what a replica does about a change of the model. Pure: no clock, no Redis, no background work.

A replica looks into Redis twice a second. `decide` compares what it has seen there with the replica's own
state and returns actions, which rollout.py carries out. The other functions answer the questions of work that
runs between two looks. docs/decisions/0009 explains the whole change.
"""

from dataclasses import dataclass, replace
from enum import StrEnum

from service.store.rollout import Announced, ReplicaReport, Seen


class Job(StrEnum):
    """Background work of a replica. At most one job of each kind runs."""

    START = "start"  # finishes what the start has left to do
    LOAD = "load"  # finds and opens the bundle of another tokenizer
    PREPARE = "prepare"  # loads the candidate's catalog, and swaps the models when the time has come
    LEAD = "lead"  # leads the change of all replicas to the candidate's tokenizer
    TRAIL = "trail"  # takes over what late replicas still write under the old tokenizer


@dataclass(frozen=True)
class Mine:
    """The state of this replica."""

    serving: str  # tokenizer of the model that answers requests
    in_use: frozenset[str]  # tokenizers that a request of this replica may still write under
    candidate: str | None  # tokenizer of the model that is prepared beside the serving one
    was_behind: bool  # at an earlier look another tokenizer was active, and the catalog was not loaded since
    jobs: frozenset[Job]  # that run now


# --- actions, in the order in which `decide` returns them ---


@dataclass(frozen=True)
class ShowPhase:
    """Tell clients and metrics whether this replica is behind."""

    active: str | None  # the active tokenizer if this replica serves another one, else None


@dataclass(frozen=True)
class ReloadCatalog:
    """Load the serving model's catalog again, as other replicas have written to it unseen."""


@dataclass(frozen=True)
class GiveUpCandidate:
    """End the candidate, and the jobs that need it: nobody wants it any more."""


@dataclass(frozen=True)
class Load:
    """Begin to look for a bundle with this tokenizer and open it."""

    tokenizer_id: str
    preferred: str  # name of the bundle that the leader has; '' if unknown


@dataclass(frozen=True)
class ClearTrouble:
    """Forget why this replica could not follow a change: no change asks for it now."""


@dataclass(frozen=True)
class RenewLease:
    """Keep the lease of the change that this replica leads."""

    announced: Announced


@dataclass(frozen=True)
class CountProgress:
    """Count the items that the new tokenizer has read."""

    tokenizer_id: str


@dataclass(frozen=True)
class Trail:
    """Begin to take over what late replicas write under the tokenizer before this one."""

    announced: Announced


@dataclass(frozen=True)
class Purge:
    """Delete the codes of a tokenizer that nobody uses any more."""

    tokenizer_id: str


Action = (
    ShowPhase
    | ReloadCatalog
    | GiveUpCandidate
    | Load
    | ClearTrouble
    | RenewLease
    | CountProgress
    | Trail
    | Purge
)


def decide(seen: Seen, mine: Mine) -> list[Action]:
    """What this replica does now, in this order."""
    is_behind = seen.active not in (None, mine.serving)
    actions: list[Action] = [ShowPhase(seen.active if is_behind else None)]
    if mine.was_behind and not is_behind:
        actions.append(ReloadCatalog())
    if mine.candidate is not None and not is_wanted(seen, mine.serving, mine.candidate):
        actions.append(GiveUpCandidate())
        mine = replace(mine, candidate=None, jobs=mine.jobs - {Job.LEAD, Job.PREPARE})
    return [
        *actions,
        *_look_for_a_candidate(seen, mine),
        *_tend_the_change(seen, mine),
        *_purge(seen, mine),
    ]


def _look_for_a_candidate(seen: Seen, mine: Mine) -> list[Action]:
    if mine.candidate is not None or mine.jobs & {Job.LOAD, Job.PREPARE}:
        return []
    announced = seen.announced
    if seen.active not in (None, mine.serving):
        is_announced = announced is not None and announced.tokenizer_id == seen.active
        return [Load(seen.active, announced.bundle if announced is not None and is_announced else "")]
    if announced is not None and announced.is_under_way and announced.tokenizer_id != mine.serving:
        # A change that nobody leads may be the very thing that killed its leader.
        return [Load(announced.tokenizer_id, announced.bundle)] if seen.leader is not None else []
    return [ClearTrouble()]


def _tend_the_change(seen: Seen, mine: Mine) -> list[Action]:
    announced, actions = seen.announced, list[Action]()
    if announced is None:
        return actions
    if Job.LEAD in mine.jobs:
        actions.append(RenewLease(announced))
    if announced.is_under_way:
        actions.append(CountProgress(announced.tokenizer_id))
    has_switched = announced.tokenizer_id == mine.serving == seen.active
    if has_switched and announced.previous in seen.retired and Job.TRAIL not in mine.jobs:
        actions.append(Trail(announced))
    return actions


def _purge(seen: Seen, mine: Mine) -> list[Action]:
    in_use = mine.in_use.union(*(each.in_use for each in seen.replicas))
    return [Purge(retired) for retired, is_due in seen.retired.items() if is_due and retired not in in_use]


# --- what the preparation of a candidate asks ---


def may_serve(seen: Seen, serving: str, candidate: str) -> bool:
    """Whether the candidate may replace the serving model: its tokenizer is the same, or the active one."""
    return candidate in (serving, seen.active)


def may_join(seen: Seen, serving: str, candidate: str) -> bool:
    """Whether the candidate may load its catalog: it may serve, or the leader has read every item for it."""
    announced = seen.announced
    is_joining = announced is not None and announced.phase == "joining"
    return may_serve(seen, serving, candidate) or (is_joining and _is_announced(seen, candidate))


def is_wanted(seen: Seen, serving: str, candidate: str) -> bool:
    """Whether the candidate may serve now, or after the change that is under way."""
    announced = seen.announced
    is_under_way = announced is not None and announced.is_under_way
    return may_serve(seen, serving, candidate) or (is_under_way and _is_announced(seen, candidate))


def _is_announced(seen: Seen, tokenizer_id: str) -> bool:
    return seen.announced is not None and seen.announced.tokenizer_id == tokenizer_id


# --- what the leader asks before it switches all replicas ---


@dataclass(frozen=True)
class Lost:
    """Another change was announced: this replica leads no more."""


@dataclass(frozen=True)
class Wait:
    """Some replicas are not prepared yet."""


@dataclass(frozen=True)
class Switch:
    """The new tokenizer may become the active one."""

    late: tuple[ReplicaReport, ...]  # replicas that were waited for in vain
    troubled: tuple[ReplicaReport, ...]  # replicas that cannot prepare themselves and stay behind


def decide_switch(seen: Seen, tokenizer_id: str, *, is_overdue: bool) -> Lost | Wait | Switch:
    """Whether the leader of the change to this tokenizer may switch all replicas.

    A replica that reports a trouble is not waited for, and after the timeout no replica is.
    """
    if not _is_announced(seen, tokenizer_id):
        return Lost()
    late = tuple(each for each in seen.replicas if each.prepared != tokenizer_id and not each.trouble)
    if late and not is_overdue:
        return Wait()
    return Switch(late, tuple(each for each in seen.replicas if each.trouble))


# --- what the start asks ---


def may_activate(seen: Seen, tokenizer_id: str) -> bool:
    """Whether a replica that starts may make its tokenizer the active one.

    A start neither undoes nor anticipates a change that POST /admin/bundles has begun. ownership.py asks
    further whether the bundle is a newer export of the same shop.
    """
    if seen.active in (None, tokenizer_id) or seen.announced is None or seen.announced.by == "start":
        return True
    has_switched = seen.announced.phase == "switched" and _is_announced(seen, seen.active)
    return not (has_switched or seen.announced.is_under_way)
