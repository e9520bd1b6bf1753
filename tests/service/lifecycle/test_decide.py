"""What a replica does about a change: known cases one by one, then rules over every combination."""

from itertools import combinations, product

import pytest

from service.lifecycle.decide import (
    ClearTrouble,
    CountProgress,
    GiveUpCandidate,
    Job,
    Load,
    Lost,
    Mine,
    Purge,
    ReloadCatalog,
    RenewLease,
    ShowPhase,
    Switch,
    Trail,
    Wait,
    decide,
    decide_switch,
    is_wanted,
    may_activate,
    may_join,
    may_serve,
)
from service.store.rollout import Announced, ReplicaReport, Seen

OLD, NEW, OTHER = "old", "new", "other"


def announced(phase, tokenizer_id=NEW, previous=OLD):
    return Announced(
        bundle=f"bundle-{tokenizer_id}",
        tokenizer_id=tokenizer_id,
        previous=previous,
        phase=phase,
        reason="",
        read_to=0,
    )


def report(name, prepared=OLD, in_use=(OLD,), trouble=""):
    return ReplicaReport(name, in_use[0], in_use, prepared, trouble)


def seen(active=OLD, change=None, leader=None, replicas=(), retired=()):
    return Seen(active, change, leader, list(replicas), dict(retired))


def mine(serving=OLD, candidate=None, *jobs, was_behind=False, in_use=()):
    return Mine(serving, frozenset({serving, *in_use}), candidate, was_behind, frozenset(jobs))


READING, JOINING, SWITCHED, FAILED = map(announced, ("reading", "joining", "switched", "failed"))
READY, BEHIND = ShowPhase(None), ShowPhase(NEW)
COUNT = CountProgress(NEW)
LOAD = Load(NEW, "bundle-new")

CASES = {
    "nothing was ever announced": (seen(), mine(), [READY, ClearTrouble()]),
    "no tokenizer is active yet": (seen(active=None), mine(), [READY, ClearTrouble()]),
    # A change under way, at a follower.
    "another replica reads": (seen(OLD, READING, "a"), mine(), [READY, LOAD, COUNT]),
    "another replica waits for us": (seen(OLD, JOINING, "a"), mine(), [READY, LOAD, COUNT]),
    "the bundle is being loaded": (seen(OLD, READING, "a"), mine(OLD, None, Job.LOAD), [READY, COUNT]),
    "the candidate waits": (seen(OLD, READING, "a"), mine(OLD, NEW, Job.PREPARE), [READY, COUNT]),
    "the candidate joins": (seen(OLD, JOINING, "a"), mine(OLD, NEW, Job.PREPARE), [READY, COUNT]),
    "the leader has died, nothing is loaded": (seen(OLD, READING), mine(), [READY, COUNT]),
    "the leader has died, the candidate is kept": (
        seen(OLD, JOINING),
        mine(OLD, NEW, Job.PREPARE),
        [READY, COUNT],
    ),
    "a change to what is served here": (
        seen(OLD, announced("reading", OLD, NEW), "a"),
        mine(),
        [READY, ClearTrouble(), CountProgress(OLD)],
    ),
    # The same, at the leader.
    "this replica leads": (
        seen(OLD, READING, "me"),
        mine(OLD, NEW, Job.PREPARE, Job.LEAD),
        [READY, RenewLease(READING), COUNT],
    ),
    "this replica leads, its lease has run out": (
        seen(OLD, JOINING),
        mine(OLD, NEW, Job.PREPARE, Job.LEAD),
        [READY, RenewLease(JOINING), COUNT],
    ),
    # A change that will not be.
    "the change has failed at a follower": (
        seen(OLD, FAILED),
        mine(OLD, NEW, Job.PREPARE),
        [READY, GiveUpCandidate(), ClearTrouble()],
    ),
    "the change has failed at its leader": (
        seen(OLD, FAILED, "me"),
        mine(OLD, NEW, Job.PREPARE, Job.LEAD),
        [READY, GiveUpCandidate(), ClearTrouble()],
    ),
    "another change was announced": (
        seen(OLD, announced("reading", OTHER), "a"),
        mine(OLD, NEW, Job.PREPARE, Job.LEAD),
        [READY, GiveUpCandidate(), Load(OTHER, "bundle-other"), CountProgress(OTHER)],
    ),
    "another change was announced while a bundle is loaded": (
        seen(OLD, announced("reading", OTHER), "a"),
        mine(OLD, NEW, Job.PREPARE, Job.LOAD),
        [READY, GiveUpCandidate(), CountProgress(OTHER)],
    ),
    "what was announced is gone": (
        seen(OLD),
        mine(OLD, NEW, Job.PREPARE),
        [READY, GiveUpCandidate(), ClearTrouble()],
    ),
    # After the switch.
    "all have switched but this replica, which is prepared": (
        seen(NEW, SWITCHED, "a"),
        mine(OLD, NEW, Job.PREPARE),
        [BEHIND],
    ),
    "all have switched but this replica, which has nothing": (
        seen(NEW, SWITCHED, "a"),
        mine(),
        [BEHIND, LOAD],
    ),
    "another tokenizer is active, and nobody says which bundle has it": (
        seen(NEW),
        mine(),
        [BEHIND, Load(NEW, "")],
    ),
    "another tokenizer is active, and the last change was to a third one": (
        seen(NEW, announced("failed", OTHER)),
        mine(),
        [BEHIND, Load(NEW, "")],
    ),
    "another tokenizer is active, and a change to a third one is under way": (
        seen(NEW, announced("reading", OTHER), "a"),
        mine(),
        [BEHIND, Load(NEW, ""), CountProgress(OTHER)],
    ),
    "the active tokenizer is served": (seen(NEW, SWITCHED), mine(NEW), [READY, ClearTrouble()]),
    "the tokenizer before it is kept": (
        seen(NEW, SWITCHED, retired={OLD: False}),
        mine(NEW),
        [READY, ClearTrouble(), Trail(SWITCHED)],
    ),
    "late replicas are followed already": (
        seen(NEW, SWITCHED, retired={OLD: False}),
        mine(NEW, None, Job.TRAIL),
        [READY, ClearTrouble()],
    ),
    "the others came back to the tokenizer that is served here": (
        seen(OLD, announced("switched", OLD, NEW)),
        mine(was_behind=True),
        [READY, ReloadCatalog(), ClearTrouble()],
    ),
    "they came back while a candidate was prepared": (
        seen(OLD, announced("switched", OLD, NEW)),
        mine(OLD, NEW, Job.PREPARE, was_behind=True),
        [READY, ReloadCatalog(), GiveUpCandidate(), ClearTrouble()],
    ),
    "a bundle with the same tokenizer is prepared": (
        seen(OLD),
        mine(OLD, OLD, Job.PREPARE),
        [READY],
    ),
    "a bundle with the same tokenizer is prepared while a change is under way": (
        seen(OLD, READING, "a"),
        mine(OLD, OLD, Job.PREPARE),
        [READY, COUNT],
    ),
    # The codes of tokenizers that are out of use.
    "old codes are due": (
        seen(NEW, retired={OLD: True, OTHER: False}),
        mine(NEW),
        [READY, ClearTrouble(), Purge(OLD)],
    ),
    "old codes are due, but a late replica writes under them": (
        seen(NEW, retired={OLD: True}, replicas=[report("late", in_use=(NEW, OLD))]),
        mine(NEW),
        [READY, ClearTrouble()],
    ),
    "old codes are due, but this replica serves them and has not reported yet": (
        seen(NEW, retired={OLD: True}),
        mine(OLD, None, Job.LOAD),
        [BEHIND],
    ),
    "old codes are due, but a request of this replica still writes under them": (
        seen(NEW, retired={OLD: True}),
        mine(NEW, in_use=(OLD,)),
        [READY, ClearTrouble()],
    ),
}


@pytest.mark.parametrize(("given", "own", "actions"), CASES.values(), ids=CASES)
def test_what_a_replica_does(given, own, actions):
    assert decide(given, own) == actions


# --- rules over every combination ---

CHANGES = [
    None,
    *(
        announced(phase, tokenizer_id, previous)
        for phase, tokenizer_id, previous in product(
            ("reading", "joining", "switched", "failed", "a phase of a later version"),
            (OLD, NEW, OTHER),
            (OLD, NEW),
        )
    ),
]
SIGHTS = [
    seen(active, change, leader, replicas, retired)
    for active, change, leader, replicas, retired in product(
        (None, OLD, NEW, OTHER),
        CHANGES,
        (None, "another"),
        ([], [report("a", in_use=(NEW, OTHER))]),
        ({OLD: True, NEW: False}, {NEW: True, OTHER: True}),
    )
]
JOBS = [Job.LOAD, Job.PREPARE, Job.LEAD, Job.TRAIL]
OWN = [
    mine(OLD, candidate, *jobs, was_behind=was_behind, in_use=more)
    for more, candidate, was_behind, jobs in product(
        ((), (OTHER,)),
        (None, OLD, NEW, OTHER),
        (False, True),
        [jobs for length in range(len(JOBS) + 1) for jobs in combinations(JOBS, length)],
    )
    # Only a candidate is prepared, and a leader has one.
    if (candidate is not None) == (Job.PREPARE in jobs) and not (Job.LEAD in jobs and candidate is None)
]


def of(kind, actions):
    return [each for each in actions if isinstance(each, kind)]


def check(sight, own):
    """Every rule that must hold, whatever is seen and whatever this replica does already."""
    actions = decide(sight, own)
    change, kinds = sight.announced, [type(each) for each in actions]
    assert len(kinds) == len(set(kinds)) + max(0, kinds.count(Purge) - 1), "nothing is done twice"
    assert actions[0] == ShowPhase(None if sight.active in (None, own.serving) else sight.active)

    # One candidate at a time, and only for a tokenizer that all go to or that is active.
    gives_up = GiveUpCandidate in kinds
    assert gives_up == (own.candidate is not None and not is_wanted(sight, own.serving, own.candidate))
    for load in of(Load, actions):
        assert own.candidate is None or gives_up
        assert Job.LOAD not in own.jobs
        assert load.tokenizer_id != own.serving
        is_coming = change is not None and change.is_under_way and change.tokenizer_id == load.tokenizer_id
        assert load.tokenizer_id == sight.active or (is_coming and sight.leader is not None)

    # Nobody becomes a leader by looking, and a leader without its candidate leads no more.
    assert not of(RenewLease, actions) or (Job.LEAD in own.jobs and not gives_up)
    assert all(each.announced == change for each in of(RenewLease, actions))

    # Late replicas are followed only by one that has switched itself.
    for trail in of(Trail, actions):
        assert trail.announced == change
        assert change.tokenizer_id == own.serving == sight.active
        assert Job.TRAIL not in own.jobs

    # Codes go only when they are due and nobody uses them.
    used = own.in_use.union(*(each.in_use for each in sight.replicas))
    for purge in of(Purge, actions):
        assert sight.retired[purge.tokenizer_id]
        assert purge.tokenizer_id not in used

    # A catalog that others may have written to unseen is loaded before anything rests on it.
    assert (ReloadCatalog in kinds) == (own.was_behind and sight.active in (None, own.serving))
    assert ReloadCatalog not in kinds or kinds.index(ReloadCatalog) == 1


def test_the_rules_hold_in_every_combination():
    assert len(SIGHTS) * len(OWN) > 50_000
    for sight in SIGHTS:
        for own in OWN:
            check(sight, own)


@pytest.mark.parametrize("serving", [OLD, NEW])
@pytest.mark.parametrize("candidate", [OLD, NEW, OTHER])
def test_a_candidate_joins_after_the_reading_and_serves_only_what_is_active_or_the_same(serving, candidate):
    for sight in SIGHTS:
        change = sight.announced
        serves = may_serve(sight, serving, candidate)
        joins = may_join(sight, serving, candidate)
        wanted = is_wanted(sight, serving, candidate)
        is_to_it = change is not None and change.tokenizer_id == candidate
        assert serves == (candidate == serving or candidate == sight.active)
        assert joins == (serves or (is_to_it and change.phase == "joining"))
        assert wanted == (serves or (is_to_it and change.phase in ("reading", "joining")))
        assert not serves or joins, "what may serve may join"
        assert not joins or wanted, "what may join is not given up"


# --- the switch ---

PREPARED = report("prepared", prepared=NEW)
LATE = report("late", prepared=OLD)
TROUBLED = report("troubled", prepared=OLD, trouble="no such bundle")
IN_TROUBLE_BUT_PREPARED = report("both", prepared=NEW, trouble="no such bundle")


@pytest.mark.parametrize(
    ("change", "replicas", "is_overdue", "step"),
    [
        (JOINING, [], False, Switch((), ())),
        (JOINING, [PREPARED], False, Switch((), ())),
        (JOINING, [PREPARED, LATE], False, Wait()),
        (JOINING, [LATE], False, Wait()),
        (JOINING, [LATE, PREPARED], True, Switch((LATE,), ())),
        (JOINING, [PREPARED, TROUBLED], False, Switch((), (TROUBLED,))),
        (JOINING, [LATE, TROUBLED], False, Wait()),
        (JOINING, [LATE, TROUBLED], True, Switch((LATE,), (TROUBLED,))),
        (JOINING, [IN_TROUBLE_BUT_PREPARED], False, Switch((), (IN_TROUBLE_BUT_PREPARED,))),
        (None, [PREPARED], False, Lost()),
        (None, [PREPARED], True, Lost()),
        (announced("joining", OTHER), [PREPARED], True, Lost()),
        (announced("joining", OTHER), [LATE], False, Lost()),
    ],
)
def test_a_leader_switches_when_all_are_prepared_or_it_has_waited_long_enough(
    change, replicas, is_overdue, step
):
    assert decide_switch(seen(OLD, change, "me", replicas), NEW, is_overdue=is_overdue) == step


def test_never_is_a_replica_switched_that_could_still_get_ready_in_time():
    reports = [PREPARED, LATE, TROUBLED, IN_TROUBLE_BUT_PREPARED]
    for change, length in product(CHANGES, range(len(reports) + 1)):
        for replicas in combinations(reports, length):
            sight = seen(OLD, change, "me", replicas)
            step = decide_switch(sight, NEW, is_overdue=False)
            is_lost = change is None or change.tokenizer_id != NEW
            assert isinstance(step, Lost) == is_lost
            assert isinstance(step, Wait) == (not is_lost and LATE in replicas)


# --- the start ---


@pytest.mark.parametrize(
    ("active", "change", "may"),
    [
        (None, None, True),
        (None, READING, True),
        (OLD, None, True),
        (NEW, SWITCHED, True),
        (OLD, FAILED, True),
        (OLD, READING, False),
        (OLD, JOINING, False),
        (OLD, announced("switched", OLD), False),
        (OLD, announced("switched", OTHER), True),
        (OTHER, READING, False),
        (NEW, READING, True),
    ],
)
def test_a_start_does_not_undo_or_anticipate_what_an_operator_has_begun(active, change, may):
    assert may_activate(seen(active, change), NEW) is may
