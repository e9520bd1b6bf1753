"""Puts, deletes, restarts and changes of the model in any order: replicas say what a model in memory says.

Hypothesis makes up the steps, the same ones each time; STATE_MACHINE_EXAMPLES=200 makes up as many others.
"""

import os
import signal
import subprocess
from collections import Counter
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
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
from redis import Redis

from model_export.local_service import LocalService, free_port, glyphrec_command, local_service
from service.core.sid import Codes
from service.store.server import RedisServer, start_server
from tests.e2e import photos
from tests.e2e.judge import FIELDS_READ, FILTER_FIELDS, Judge, Known, codes_in, text_of
from tests.e2e.traffic import fsck, until
from tests.known_bundle import KNOWN_ITEMS, PICTURES, known_codes, tokenizer_id_of, write_known_bundle

EXAMPLES = int(os.environ.get("STATE_MACHINE_EXAMPLES", 0))
STEPS = 24
SLOW_STEPS = 2  # restarts and changes of the model in one example: they take seconds
KEY = "an-admin-key-of-this-test"
READER_OF = {"old": 0, "retrained": 0, "new": 1}  # bundle -> its tokenizer
READS_PHOTOS = {1}  # tokenizers
IDS = ["a", "b", "c/d", "é #?%", "…", "f", "g", "h"]

OTHER_ITEMS = [each._replace(item=each.item | {"title": f"Tool {n}"}) for n, each in enumerate(KNOWN_ITEMS)]

REPLICA = st.integers(0, 1)
ID = st.sampled_from(IDS)
TITLE = st.sampled_from([f"Thing {n}" for n in range(5)])
MORE = {
    "categories": st.lists(st.sampled_from(["pens", "ink"]), unique=True),
    "price": st.integers(0, 8).map(lambda price: price / 2),
    "available": st.booleans(),
}
PHOTO = st.integers(0, len(photos.SENT) - 1)
IMAGE = PHOTO.map(photos.SENT.__getitem__) | st.none()
ITEM = st.fixed_dictionaries({"title": TITLE}, optional=MORE | {"image": IMAGE})
PATCH = st.fixed_dictionaries(
    {},
    optional={"title": TITLE, "image": IMAGE} | {name: value | st.none() for name, value in MORE.items()},
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
                pictures=PICTURES if reader in READS_PHOTOS else None,
            )
        self.another_shop = write_known_bundle(folder / "another shop", OTHER_ITEMS, reader=5)
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
        answer = self._request(replica, method, path, body)
        assert answer.status_code == expect, answer.text
        return answer.json()

    def _request(self, replica: int, method: str, path: str, body: Any) -> httpx.Response:
        """`body`: bytes are a photo, anything else is JSON."""
        client = self.services[replica].client
        if isinstance(body, bytes):
            return client.request(method, path, content=body, headers={"Content-Type": "image/jpeg"})
        return client.request(method, path, json=body)

    def ask_at_once(self, *requests: tuple[int, str, str, Any]) -> list[httpx.Response]:
        """Requests to replicas at the same time -> their answers, in the order of the requests."""
        with ThreadPoolExecutor(len(requests)) as pool:
            sent = [
                pool.submit(self._request, replica, method, path, body)
                for replica, method, path, body in requests
            ]
            return [each.result() for each in sent]

    def are_ready(self, status: int) -> bool:
        """Whether every replica answers its readiness with this status."""
        return all(each.client.get("/health/ready").status_code == status for each in self.services)

    def open_another_shop(self) -> None:
        """Start a service with an unrelated bundle on this catalog, and end it when it has said why not."""
        port, log = free_port(), self._folder / "another-shop.log"
        command = glyphrec_command("serve", "--bundle", self.another_shop, "--port", port)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("GLYPHREC_")}
        with log.open("wb") as output:
            process = subprocess.Popen(
                [*command, "--redis-url", self.server.url], stdout=output, stderr=output, env=kept
            )
        try:
            until(lambda: "GLYPHREC_TAKE_OVER=true" in log.read_text(), timeout_s=30)
            answer = httpx.get(f"http://127.0.0.1:{port}/health/ready")
            assert answer.status_code == httpx.codes.SERVICE_UNAVAILABLE, answer.text
        finally:
            process.terminate()
            assert process.wait(30) == 0

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
        self.judge = Judge(self._codes_of)
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

    @rule(replica=REPLICA, item_id=ID, which=PHOTO | st.none())
    def change_photo(self, replica: int, item_id: str, which: int | None) -> None:
        """Send the bytes of a photo, or take it away."""
        was = self.judge.known[item_id].item
        path = f"/items/{quote(item_id, safe='')}/image"
        method, body = ("DELETE", None) if which is None else ("PUT", photos.BYTES[which])
        if was is None:
            self.scene.ask(replica, method, path, body, httpx.codes.NOT_FOUND)
            return
        row = self.scene.ask(replica, method, path, body)
        image = None if which is None else photos.SENT[which]
        self._acknowledged(
            photos.as_stored(was | {"image": image}, was),
            {**row, "item_id": item_id},
            row["catalog_version"],
        )
        self.scene.done["photo removed" if which is None else "photo sent"] += 1

    @precondition(lambda self: self.judge.living)
    @rule(title=TITLE, which=PHOTO, data=st.data())
    def post_text_and_photo_at_once(self, title: str, which: int, data: st.DataObject) -> None:
        """A feed of texts on one replica and a photo on the other are both in."""
        item_id = data.draw(st.sampled_from(sorted(self.judge.living)))
        posted = {"item_id": item_id, "title": title}
        text, sent = self.scene.ask_at_once(
            (0, "POST", "/items", {"items": [posted]}),
            (1, "PUT", f"/items/{quote(item_id, safe='')}/image", photos.BYTES[which]),
        )
        assert text.json()["items"][0]["error"] is None, text.text
        assert sent.status_code == httpx.codes.OK, sent.text
        item = photos.as_stored(posted | {"image": photos.SENT[which]}, None)
        shown = self.scene.ask(0, "GET", f"/items/{quote(item_id, safe='')}")
        assert shown["item"] == item
        version = max(text.json()["catalog_version"], sent.json()["catalog_version"])
        self.judge.settle(item_id, Known(item, shown["semantic_id"], version))
        self.scene.done["text and photo at once"] += 1

    @rule(replica=REPLICA, item_id=ID, changes=PATCH)
    def patch(self, replica: int, item_id: str, changes: dict[str, Any]) -> None:
        was = self.judge.known[item_id]
        path = f"/items/{quote(item_id, safe='')}"
        if was.item is None:
            self.scene.ask(replica, "PATCH", path, changes, httpx.codes.NOT_FOUND)
            return
        row = self.scene.ask(replica, "PATCH", path, changes)
        item = {name: value for name, value in (was.item | changes).items() if value is not None}
        if "image" in changes and changes["image"] is None:
            item["image"] = None
        item = photos.as_stored(item, was.item)
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

    @precondition(lambda self: self.judge.living)
    @rule(replica=REPLICA, other=REPLICA, changes=PATCH, data=st.data())
    def patch_while_deleting(
        self, replica: int, other: int, changes: dict[str, Any], data: st.DataObject
    ) -> None:
        """The item is gone, whichever comes first."""
        item_id = data.draw(st.sampled_from(sorted(self.judge.living)))
        path = f"/items/{quote(item_id, safe='')}"
        patched, deleted = self.scene.ask_at_once(
            (replica, "PATCH", path, changes), (other, "DELETE", path, None)
        )
        assert patched.status_code in (httpx.codes.OK, httpx.codes.NOT_FOUND), patched.text
        assert patched.json().get("status") != "created", patched.text
        assert deleted.status_code == httpx.codes.OK, deleted.text
        self.judge.settle(item_id, Known(None, None, deleted.json()["catalog_version"]))
        self.scene.done["patched while deleted"] += 1

    @precondition(lambda self: self.judge.living)
    @rule(price=MORE["price"], title=TITLE, data=st.data())
    def patch_twice_at_once(self, price: float, title: str, data: st.DataObject) -> None:
        """Patches of different fields on both replicas are both in."""
        item_id = data.draw(st.sampled_from(sorted(self.judge.living)))
        was = self.judge.known[item_id].item or {}
        path = f"/items/{quote(item_id, safe='')}"
        answers = self.scene.ask_at_once(
            (0, "PATCH", path, {"price": price}), (1, "PATCH", path, {"title": title})
        )
        assert [each.status_code for each in answers] == [httpx.codes.OK] * 2
        rows = [each.json() for each in answers]
        item = was | {"price": price, "title": title}
        last = max(rows, key=lambda row: row["item"] == item)
        assert last["item"] == item, rows
        version = max(row["catalog_version"] for row in rows)
        self.judge.settle(item_id, Known(item, last["semantic_id"], version))
        self.scene.done["patched twice"] += 1

    @precondition(lambda self: EXAMPLES and self.slow_steps < SLOW_STEPS and self.judge.living)
    @rule(kind=st.sampled_from(["codes", "trie"]), replica=REPLICA)
    def evict(self, kind: str, replica: int) -> None:
        """Redis loses the codes or the trie: nobody is ready, nothing is changed, and fsck brings it back."""
        self.slow_steps += 1
        scene = self.scene
        tokenizer_id = tokenizer_id_of(self.reader)
        with Redis.from_url(scene.server.url) as redis:
            redis.unlink(f"{{glyphrec}}:{kind}:{tokenizer_id}")
        posted = {"item_id": IDS[0], "title": "Lost"}
        refused = scene.ask(replica, "POST", "/items", posted, httpx.codes.SERVICE_UNAVAILABLE)
        assert refused["type"] == "urn:glyphrec:problem:catalog-damaged"
        until(lambda: scene.are_ready(httpx.codes.SERVICE_UNAVAILABLE), timeout_s=10)
        fsck(scene.server.url, scene.bundles / ("new" if self.reader else "old"), "--repair")
        until(lambda: scene.are_ready(httpx.codes.OK), timeout_s=10)
        scene.done["evicted"] += 1

    @precondition(lambda self: EXAMPLES and self.slow_steps < SLOW_STEPS)
    @rule()
    def another_shop_starts(self) -> None:
        self.slow_steps += 1
        self.scene.open_another_shop()
        self.scene.done["another shop"] += 1

    @precondition(lambda self: self.slow_steps < SLOW_STEPS)
    @rule(replica=REPLICA, how=st.sampled_from([signal.SIGKILL, signal.SIGTERM]))
    def restart(self, replica: int, how: signal.Signals) -> None:
        self._restart(replica, how)

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
            assert codes_in(rows[item_id]["semantic_id"]) == self._codes_of(known.item or {})
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
            ranked = scene.ask(replica, "POST", "/rank", {"history": IDS, "item_ids": IDS})
            living = {row["item"]["item_id"]: row["semantic_id"] for row in rows}
            assert {row["item_id"]: row["semantic_id"] for row in ranked["items"]} == living
            assert set(ranked["unknown_item_ids"]) == {*IDS} - living.keys()

    def teardown(self) -> None:
        report = fsck(self.scene.server.url, self.scene.bundles / ("new" if self.reader else "old"))
        assert report["is_clean"], report["findings"]
        assert report["num_items"] == len(self.judge.living)
        assert report["num_pictures"] == sum(
            "image" in (each.item or {}) for each in self.judge.living.values()
        )

    # --- how ---

    def _codes_of(self, item: dict[str, Any]) -> Codes:
        kept = photos.kept_of(item) if self.reader in READS_PHOTOS else None
        return known_codes(text_of(item), self.reader, kept)

    def _restart(self, replica: int, how: signal.Signals) -> None:
        self.slow_steps += 1
        self.scene.restart(replica, how)
        self.scene.done[how.name] += 1

    def _put(self, replica: int, items: list[dict[str, Any]]) -> None:
        answer = self.scene.ask(replica, "POST", "/items", {"items": items})
        for item, row in zip(items, answer["items"], strict=True):
            assert row["error"] is None, row
            was = self.judge.known[item["item_id"]].item
            self._acknowledged(photos.as_stored(item, was), row, answer["catalog_version"])
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
    ways |= {"photo sent", "photo removed", "text and photo at once"}
    ways |= {"another tokenizer", "the same tokenizer", "patched while deleted", "patched twice"}
    assert scene.done.keys() >= ways, "or nothing was shown"


def test_what_takes_long_is_done_once_and_more_often_with_many_examples(scene: Scene) -> None:
    machine = CatalogMachine(scene)
    machine.put(0, {item_id: {"title": f"Thing {n % 3}"} for n, item_id in enumerate(IDS)})
    for step in (
        lambda: machine.evict("trie", 0),
        lambda: machine.evict("codes", 1),
        machine.another_shop_starts,
        lambda: machine.delete(1, IDS[3]),
    ):
        step()
        machine.both_replicas_say_what_was_acknowledged()
    machine.teardown()
