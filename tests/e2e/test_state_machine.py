"""Puts, deletes, restarts and changes of the model in any order: replicas say what a model in memory says.

Hypothesis makes up the steps, the same ones each time; STATE_MACHINE_EXAMPLES=200 makes up as many others.
"""

import os
import signal
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from model_export.local_service import LocalService, local_service
from service.store.server import RedisServer, start_server
from tests.e2e.judge import FIELDS_READ, FILTER_FIELDS, Judge, Known, codes_in, text_of
from tests.e2e.traffic import fsck, until
from tests.known_bundle import KNOWN_ITEMS, known_codes, tokenizer_id_of, write_known_bundle

EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", 0))
STEPS = 20
SLOW_STEPS = 2  # restarts and changes of the model in one example: they take seconds
KEY = "an-admin-key-of-this-test"
READER_OF = {"old": 0, "retrained": 0, "new": 1}  # bundle -> its tokenizer
IDS = ["a", "b", "c/d", "é #?%", "…", "f", "g", "h"]

REPLICA = st.integers(0, 1)
ID = st.sampled_from(IDS)
TITLE = st.sampled_from([f"Thing {n}" for n in range(5)])
MORE = {
    "categories": st.lists(st.sampled_from(["pens", "ink"]), unique=True),
    "price": st.integers(0, 8).map(lambda price: price / 2),
    "available": st.booleans(),
}
ITEM = st.fixed_dictionaries({"title": TITLE}, optional=MORE)
PATCH = st.fixed_dictionaries(
    {}, optional={"title": TITLE} | {name: value | st.none() for name, value in MORE.items()}
)
PRICES = st.tuples(st.integers(0, 4), st.integers(0, 4)).map(lambda pair: {"gte": min(pair), "lt": max(pair)})
FILTER = st.fixed_dictionaries(
    {},
    optional={
        "item_ids": st.lists(ID),
        "available": st.booleans(),
        "categories_any": st.just(["ink"]),
        "attributes": st.fixed_dictionaries({"price": PRICES}),
    },
)


class Scene:
    """Two replicas on one Redis, for all examples."""

    def __init__(self, folder: Path, server: RedisServer, stack: ExitStack) -> None:
        self.server = server
        self.bundles = folder / "bundles"
        self.done: Counter[str] = Counter()  # what the steps came to
        self._folder, self._stack, self._num_starts = folder, stack, 0
        for name, reader in READER_OF.items():
            write_known_bundle(
                self.bundles / name,
                KNOWN_ITEMS,
                reader=reader,
                recommender_id="00000000beef" if name == "retrained" else "ba9876543210",
                fields=FIELDS_READ,
            )
        self.services = [self._start(), self._start()]

    def _start(self) -> LocalService:
        self._num_starts += 1
        log = self._folder / f"{self._num_starts}.log"
        service = self._stack.enter_context(
            local_service(self.bundles / "old", redis_url=self.server.url, log=log)
        )
        service.client.headers["X-API-Key"] = KEY
        return service

    def restart(self, replica: int, how: signal.Signals) -> None:
        process = self.services[replica].process
        process.send_signal(how)
        status = process.wait(30)
        assert status == (0 if how == signal.SIGTERM else -how), status
        self.services[replica] = self._start()

    def ask(self, replica: int, method: str, path: str, body: Any = None, expect: int = 200) -> Any:
        answer = self.services[replica].client.request(method, path, json=body)
        assert answer.status_code == expect, answer.text
        return answer.json()

    def catalog(self, replica: int) -> dict[str, Any]:
        shown = self.ask(replica, "GET", "/info")["catalog"]
        return {name: shown[name] for name in ("items", "version", "digest")}

    def listed(self, replica: int, limit: int) -> list[dict[str, Any]]:
        rows, cursor = [], ""
        while True:
            page = self.ask(replica, "GET", f"/items?limit={limit}{cursor}")
            rows += page["items"]
            if page["next_cursor"] is None:
                return rows
            cursor = f"&cursor={page['next_cursor']}"

    def change(self, replica: int, bundle: str) -> None:
        """Go over to a bundle, and wait until it is served: here, or everywhere for another tokenizer."""
        served = self.ask(replica, "GET", "/admin/bundles")["serving"]
        tokenizer_id = tokenizer_id_of(READER_OF[bundle])
        is_new = served["tokenizer_id"] != tokenizer_id
        asked: list[httpx.Response] = []

        def is_taken() -> bool:  # not while the last change still ends somewhere
            asked.append(self.services[replica].client.post("/admin/bundles", json={"bundle": bundle}))
            return asked[-1].status_code != httpx.codes.CONFLICT

        until(is_taken, timeout_s=20)
        assert asked[-1].status_code == (httpx.codes.ACCEPTED if is_new else httpx.codes.OK), asked[-1].text
        self.done["another tokenizer" if is_new else "the same tokenizer"] += 1
        if not is_new:
            assert asked[-1].json()["serving"]["bundle"] == bundle
        for each in range(len(self.services)) if is_new else [replica]:
            until(
                lambda each=each: (
                    self.ask(each, "GET", "/admin/bundles")["serving"]["tokenizer_id"] == tokenizer_id
                )
            )


class CatalogMachine(RuleBasedStateMachine):
    def __init__(self, scene: Scene) -> None:
        super().__init__()
        self.scene = scene
        self.slow_steps = 0
        scene.change(0, "old")
        for row in scene.listed(0, 100):
            scene.ask(0, "DELETE", f"/items/{quote(row['item']['item_id'], safe='')}")
        self.reader = 0
        self.judge = Judge(lambda item: known_codes(text_of(item), self.reader))
        for item_id in IDS:
            self.judge.settle(item_id, Known(None, None, 0))

    # --- what is done ---

    @rule(replica=REPLICA, posted=st.dictionaries(ID, ITEM, min_size=1, max_size=4))
    def put(self, replica: int, posted: Mapping[str, dict[str, Any]]) -> None:
        self._put(replica, [{"item_id": item_id, **item} for item_id, item in posted.items()])

    @precondition(lambda self: self.judge.living)
    @rule(replica=REPLICA, data=st.data())
    def put_again(self, replica: int, data: st.DataObject) -> None:
        living = self.judge.living
        again = data.draw(st.lists(st.sampled_from(sorted(living)), min_size=1, unique=True))
        self._put(replica, [living[each].item or {} for each in again])

    @rule(replica=REPLICA, item_id=ID, changes=PATCH)
    def patch(self, replica: int, item_id: str, changes: dict[str, Any]) -> None:
        was = self.judge.known[item_id]
        path = f"/items/{quote(item_id, safe='')}"
        if was.item is None:
            self.scene.ask(replica, "PATCH", path, changes, httpx.codes.NOT_FOUND)
            return
        row = self.scene.ask(replica, "PATCH", path, changes)
        item = {name: value for name, value in (was.item | changes).items() if value is not None}
        assert row["item"] == item
        self._acknowledged(item, {**row, "item_id": item_id}, row["catalog_version"])

    @rule(replica=REPLICA, item_id=ID)
    def delete(self, replica: int, item_id: str) -> None:
        lives = self.judge.known[item_id].item is not None
        expect = httpx.codes.OK if lives else httpx.codes.NOT_FOUND
        answer = self.scene.ask(replica, "DELETE", f"/items/{quote(item_id, safe='')}", expect=expect)
        if lives:
            self.judge.settle(item_id, Known(None, None, answer["catalog_version"]))
            self.scene.done["deleted"] += 1

    @precondition(lambda self: self.slow_steps < SLOW_STEPS)
    @rule(replica=REPLICA)
    def kill(self, replica: int) -> None:
        self._restart(replica, signal.SIGKILL)

    @precondition(lambda self: self.slow_steps < SLOW_STEPS)
    @rule(replica=REPLICA)
    def end(self, replica: int) -> None:
        self._restart(replica, signal.SIGTERM)

    @precondition(lambda self: self.slow_steps < SLOW_STEPS)
    @rule(replica=REPLICA, bundle=st.sampled_from(sorted(READER_OF)))
    def change_model(self, replica: int, bundle: str) -> None:
        self.slow_steps += 1
        self.scene.change(replica, bundle)
        if self.reader == READER_OF[bundle]:
            return
        self.reader = READER_OF[bundle]
        rows = {row["item"]["item_id"]: row for row in self.scene.listed(replica, 100)}
        living = self.judge.living
        assert rows.keys() == living.keys()
        for item_id, known in living.items():  # the codes are the judge's to tell, the slots are not
            assert codes_in(rows[item_id]["semantic_id"]) == known_codes(
                text_of(known.item or {}), self.reader
            )
            self.judge.settle(item_id, Known(known.item, rows[item_id]["semantic_id"], 0))
        for item_id in IDS:  # the versions are of another log
            if item_id not in living:
                self.judge.settle(item_id, Known(None, None, 0))

    @rule(
        replica=REPLICA,
        history=st.lists(ID | st.just("nobody"), max_size=6),
        asked=FILTER,
        limit=st.integers(1, 10),
        excluded=st.lists(ID, max_size=2),
        guarantee=st.sampled_from(["none", "exact"]),
    )
    def recommend(self, replica: int, history: list[str], asked: dict[str, Any], **more: Any) -> None:
        body = {"history": history, "limit": more["limit"], "guarantee": more["guarantee"]}
        body |= {"exclude_item_ids": more["excluded"], **({"filter": asked} if asked else {})}
        page = self._page(replica, body)
        self.scene.done["exact" if page["exact"] else "not proven"] += 1

    # --- what holds after each of it ---

    @invariant()
    def both_replicas_say_what_was_acknowledged(self) -> None:
        scene, judge, known = self.scene, self.judge, self.judge.now()
        until(lambda: scene.catalog(0) == scene.catalog(1), timeout_s=10)
        for replica in range(2):
            for item_id in IDS:
                expect = 200 if known[item_id].item is not None else 404
                answer = scene.ask(replica, "GET", f"/items/{quote(item_id, safe='')}", expect=expect)
                held(judge.of_item(item_id, answer if expect == 200 else None, known))
            rows = scene.listed(replica, 3)
            held(judge.of_listing(rows, known))
            sids = [tuple(map(int, row["semantic_id"].split("-"))) for row in rows]
            assert sids == sorted(set(sids)), "in trie order, no SID twice"
            assert scene.catalog(replica)["items"] == len(judge.living)
            page = self._page(replica, {"history": [], "limit": 100, "filter": {"item_ids": IDS}})
            assert page["matching_items"] == len(judge.living)

    def teardown(self) -> None:
        report = fsck(self.scene.server.url, self.scene.bundles / ("new" if self.reader else "old"))
        assert report["is_clean"], report["findings"]
        assert report["num_items"] == len(self.judge.living)

    # --- how ---

    def _restart(self, replica: int, how: signal.Signals) -> None:
        self.slow_steps += 1
        self.scene.restart(replica, how)
        self.scene.done[how.name] += 1

    def _put(self, replica: int, items: list[dict[str, Any]]) -> None:
        answer = self.scene.ask(replica, "POST", "/items", {"items": items})
        for item, row in zip(items, answer["items"], strict=True):
            assert row["error"] is None, row
            self._acknowledged(item, row, answer["catalog_version"])
        self._page(
            replica,
            {"history": [], "limit": 100, "filter": {"item_ids": [each["item_id"] for each in items]}},
        )

    def _acknowledged(self, item: dict[str, Any], row: dict[str, Any], version: int) -> None:
        held(self.judge.of_row(item, row, self.judge.known[item["item_id"]], is_first=True))
        self.judge.settle(item["item_id"], Known(item, row["semantic_id"], version))
        self.scene.done[row["status"]] += 1

    def _page(self, replica: int, body: dict[str, Any]) -> dict[str, Any]:
        page: dict[str, Any] = self.scene.ask(replica, "POST", "/recommend", body)
        held(self.judge.of_page(body, page, self.judge.now()))
        return page


def held(complaints: Iterator[str]) -> None:
    assert list(complaints) == []


@pytest.fixture
def scene(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Scene]:
    options = {
        "BUNDLES_DIR": str(tmp_path / "bundles"),
        "ADMIN_KEYS": KEY,
        "THREADS": "1",
        "SEED_CATALOG": "false",
        "FILTER_FIELDS": FILTER_FIELDS,
        "STOP_DELAY_S": "0",
        "REREAD_SHARE": "1",
    }
    for name, value in options.items():
        monkeypatch.setenv(f"GLYPHREC_{name}", value)
    with start_server(tmp_path / "redis") as server, ExitStack() as stack:
        yield Scene(tmp_path, server, stack)


def test_two_replicas_say_what_a_model_in_memory_says(scene: Scene) -> None:
    run_state_machine_as_test(
        lambda: CatalogMachine(scene),
        settings=settings(
            max_examples=EXAMPLES or 8,
            stateful_step_count=STEPS,
            derandomize=not EXAMPLES,
            database=None,
            deadline=None,
            print_blob=True,
            phases=[Phase.generate, Phase.shrink] if EXAMPLES else [Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )
    ways = {"created", "updated", "moved", "unchanged", "deleted", "exact", "SIGKILL", "SIGTERM"}
    assert scene.done.keys() >= ways | {"another tokenizer", "the same tokenizer"}, "or nothing was shown"
