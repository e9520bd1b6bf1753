"""A short form of benchmarks/chaos.py, one fault of each kind; and that the run and its judge can fail."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.chaos import chaos
from benchmarks.workload.faults import KINDS, OF_A_WORKER, REDIS, Fault, schedule
from tests.e2e.judge import Judge, Known
from tests.known_bundle import known_codes

ITEM = {"item_id": "a", "title": "Pen", "price": 2.0}
CODES = known_codes({"title": "Pen"})
SID = "-".join(map(str, (*CODES, 0)))
ROW = {"item_id": "a", "semantic_id": SID, "score": None}
PAGE = {
    "items": [ROW],
    "catalog_version": 7,
    "matching_items": 1,
    "unknown_item_ids": [],
    "source": "popular",
    "exact": False,
}
ASKED = {"history": [], "limit": 10, "filter": {"item_ids": ["a", "b"]}}


def test_nothing_is_lost_whatever_fails(tmp_path: Path) -> None:
    workers = min(2, len(os.sched_getaffinity(0)))
    kinds = {*KINDS, OF_A_WORKER} if workers > 1 else set(KINDS)
    faults = schedule(3, faults=len(kinds), operations=800, replicas=2, workers=workers)
    assert {each.kind for each in faults} == kinds
    found = chaos(tmp_path, None, seed=3, operations=800, faults=faults, replicas=2, workers=workers)
    assert found.is_clean, found
    assert found.acknowledged >= 800
    assert found.faults == len(kinds)


def test_a_redis_that_keeps_nothing_is_found_out(tmp_path: Path) -> None:
    faults = [Fault(100, "kill redis", REDIS, 0.2)]
    found = chaos(tmp_path, None, seed=1, operations=150, faults=faults, replicas=2, keeps=False)
    assert len(found.lost) > 30
    assert found.wrong


def test_the_same_seed_gives_the_same_faults() -> None:
    first, again, other = (schedule(seed, faults=50, operations=10_000, replicas=3) for seed in (1, 1, 2))
    assert first == again != other
    assert len(first) == 50
    assert sorted(first) == first


@pytest.fixture
def judge() -> Judge:
    """`a` lives since version 5, `b` was deleted with version 6."""
    judge = Judge(lambda item: known_codes({"title": item["title"]}))
    judge.settle("a", Known(ITEM, SID, 5))
    judge.settle("b", Known(None, None, 6))
    return judge


def complaints_of_page(judge: Judge, asked: dict[str, Any] = ASKED, **changes: Any) -> list[str]:
    return list(judge.of_page(asked, PAGE | changes, judge.now()))


def test_the_judge_lets_pass_what_is_right(judge: Judge) -> None:
    known, stored = judge.now(), {"item": ITEM, "semantic_id": SID, "codes": list(CODES)}
    assert complaints_of_page(judge) == []
    assert list(judge.of_item("a", stored, known)) == []
    assert list(judge.of_item("b", None, known)) == []
    assert list(judge.of_listing([stored], known)) == []
    put = {**ROW, "status": "unchanged", "codes": list(CODES)}
    assert list(judge.of_row(ITEM, put, known["a"], is_first=True)) == []
    assert list(judge.of_row(ITEM, put | {"status": "created"}, known["b"], is_first=True)) == []


@pytest.mark.parametrize(
    "changes",
    [
        {"items": []},
        {"items": [ROW, ROW]},
        {"items": [ROW | {"semantic_id": "0-0-0-1"}]},
        {"items": [ROW, ROW | {"item_id": "b", "semantic_id": "0-0-0-1"}]},
        {"items": [ROW | {"item_id": "nobody"}]},
        {"matching_items": 2},
    ],
)
def test_the_judge_notices_a_wrong_page(judge: Judge, changes: dict[str, Any]) -> None:
    assert complaints_of_page(judge, **changes)


@pytest.mark.parametrize(
    "asked",
    [
        ASKED | {"exclude_item_ids": ["a"]},
        ASKED | {"history": ["b"]},
        ASKED | {"limit": 0},
        ASKED | {"filter": {"item_ids": ["b"]}},
        ASKED | {"filter": {"attributes": {"price": {"gte": 3, "lt": 9}}}},
        ASKED | {"filter": {"available": False}},
        ASKED | {"filter": {"categories_any": ["ink"]}},
    ],
)
def test_the_judge_notices_a_page_that_was_not_asked_for(judge: Judge, asked: dict[str, Any]) -> None:
    assert complaints_of_page(judge, asked)


def test_a_replica_may_lag_and_says_by_how_much(judge: Judge) -> None:
    late = {"items": [ROW | {"item_id": "b"}], "matching_items": 1}
    assert complaints_of_page(judge, catalog_version=4, **late) == []
    assert complaints_of_page(judge, catalog_version=6, **late)
    judge.begin(["b"])
    assert complaints_of_page(judge, catalog_version=6, items=[ROW]) == []


def test_the_judge_notices_a_wrong_item(judge: Judge) -> None:
    known, stored = judge.now(), {"item": ITEM, "semantic_id": SID, "codes": list(CODES)}
    assert list(judge.of_item("a", None, known))
    assert list(judge.of_item("b", stored, known))
    assert list(judge.of_item("a", stored | {"item": ITEM | {"price": 3}}, known))
    assert list(judge.of_item("a", stored | {"codes": [0, 0, 0]}, known))
    assert list(judge.of_listing([], known))
    assert list(judge.of_listing([stored, stored], known))
    put = {**ROW, "status": "updated", "codes": list(CODES)}
    assert list(judge.of_row(ITEM, put, known["a"], is_first=True))
    assert list(judge.of_row(ITEM, put | {"codes": [0, 0, 0]}, known["a"], is_first=False))
    moved = replace(known["a"], sid=f"{SID}1", item=ITEM | {"price": 3})
    assert list(judge.of_row(ITEM, put, moved, is_first=True))
