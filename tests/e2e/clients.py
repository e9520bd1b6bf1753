"""Clients of replicas that may fail: they send again what was not acknowledged; a judge hears each answer.

What a client sends, in order, is given by its seed. Each writer has items of its own.
"""

import random
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NamedTuple

import httpx

from tests.e2e.judge import Item, Judge, Known
from tests.e2e.photos import SENT, as_stored

IDS_PER_WRITER = 150
NUM_TITLES = 200  # fewer than items, so that some share their codes
RETRY_S = 0.02
PHOTOS = 0.3  # of the items that come with a photo, or take it away
PAUSE_S = 0.005  # of a reader
DUELS = 0.3  # of the deletes that meet a patch of the same item
ANSWER_TIMEOUT_S = 45  # far more than any fault lasts
# What was not acknowledged may still be on its way to Redis, held up as long as a fault lasts. Until then
# nobody sends another change of the same item, or the old one might come after the new one.
REST_S = 10
JOIN_TIMEOUT_S = 120


class Mark(NamedTuple):
    """What had happened to a replica by some moment."""

    num_faults: int
    is_whole: bool
    num_downs: int
    is_up: bool


class Reached:
    """A replica as its clients know it; whoever disturbs it says so."""

    def __init__(self, url: str, *, num_workers: int = 1) -> None:
        self.url = url
        self._num_workers = num_workers
        self.version = 0  # the highest that it has named
        self._num_faults = self._num_downs = 0  # begun
        self._faults = self._downs = 0  # under way

    @property
    def has_one_version(self) -> bool:
        """Whether a later answer never has an older version. Each worker follows the catalog by itself."""
        return self._num_workers == 1

    @property
    def mark(self) -> Mark:
        return Mark(self._num_faults, not self._faults, self._num_downs, not self._downs)

    def was_whole_since(self, mark: Mark) -> bool:
        return mark.is_whole and self.mark.num_faults == mark.num_faults

    def was_up_since(self, mark: Mark) -> bool:
        return mark.is_up and self.mark.num_downs == mark.num_downs

    @contextmanager
    def disturbed(self, *, is_down: bool = False) -> Iterator[None]:
        """From here on its answers may be refusals; where it `is_down` there may be none."""
        self._num_faults += 1
        self._num_downs += is_down
        self._faults += 1
        self._downs += is_down
        try:
            yield
        finally:
            self._faults -= 1
            self._downs -= is_down


class Answer(NamedTuple):
    status: int
    body: Any


class Clients:
    """Writers and readers in threads, until `finish`."""

    def __init__(
        self, replicas: Sequence[Reached], judge: Judge, *, seed: int, num_writers: int, num_readers: int
    ) -> None:
        self.replicas, self.judge = list(replicas), judge
        self.wrong: list[str] = []
        self.num_acknowledged = self.num_refused = self.num_answers = 0
        self.is_over = threading.Event()
        self.lock = threading.Lock()
        kinds = [Writer] * num_writers + [Reader] * num_readers
        self._clients = [kind(self, f"{kind.__name__[0].lower()}{n}", seed) for n, kind in enumerate(kinds)]

    def start(self) -> None:
        for each in self._clients:
            each.start()

    def finish(self) -> None:
        """Every writer ends what it has begun, so some replica must answer."""
        self.is_over.set()
        for each in self._clients:
            each.join(JOIN_TIMEOUT_S)
            if each.is_alive():
                self.complain(f"{each.name} still waits for its acknowledgement")

    def complain(self, what: str) -> None:
        with self.lock:
            self.wrong.append(f"after {self.num_acknowledged}: {what}")


class Client(threading.Thread, ABC):
    def __init__(self, clients: Clients, name: str, seed: int) -> None:
        super().__init__(name=name, daemon=True)
        self.rng = random.Random(f"{seed} {name}")
        self._clients, self._judge, self._replicas = clients, clients.judge, clients.replicas
        # Much shorter than GLYPHREC_KEEP_ALIVE_S, so that no request meets the end of its connection.
        self._http = httpx.Client(timeout=ANSWER_TIMEOUT_S, limits=httpx.Limits(keepalive_expiry=2))

    def run(self) -> None:
        with self._http:
            while not self._clients.is_over.is_set():
                try:
                    self.act()
                except (
                    Exception
                ) as error:  # outermost: a client that ends unseen would hide what it had found
                    self._clients.complain(f"the client failed on an answer: {error!r}")

    @abstractmethod
    def act(self) -> None:
        """One thing that this kind of client does, and what it holds against the judge."""

    def send(
        self, replica: Reached, method: str, path: str, body: Any = None, *, may_be_absent: bool = False
    ) -> Answer | None:
        """None where it was refused as documented, or nobody was there to answer."""
        mark = replica.mark
        what = f"{method} {replica.url}{path} {body}"
        try:
            answer = self._http.request(method, replica.url + path, json=body)
            told = answer.json()
        except httpx.TransportError as error:
            if replica.was_up_since(mark):
                self._clients.complain(f"{what}: no answer, {error!r}")
            return None
        except ValueError as error:
            self._clients.complain(f"{what}: a broken body, {error!r}")
            return None
        with self._clients.lock:
            self._clients.num_answers += 1
        may_be_absent = may_be_absent or method in ("GET", "DELETE")
        is_absent = answer.status_code == httpx.codes.NOT_FOUND and may_be_absent
        if answer.status_code == httpx.codes.OK or is_absent:
            return Answer(answer.status_code, told)
        is_refusal = answer.status_code in (httpx.codes.SERVICE_UNAVAILABLE, httpx.codes.TOO_MANY_REQUESTS)
        if not (is_refusal and "retry-after" in answer.headers and told["status"] == answer.status_code):
            self._clients.complain(f"{what}: {answer.status_code} {answer.text}")
        with self._clients.lock:
            self._clients.num_refused += 1
        return None

    def hold(self, complaints: Iterable[str]) -> None:
        for each in complaints:
            self._clients.complain(each)

    def page(self, replica: Reached, asked: dict[str, Any]) -> Item | None:
        """A recommendation, held against what is known."""
        before, version = self._judge.now(), replica.version
        answer = self.send(replica, "POST", "/recommend", asked)
        if answer is None:
            return None
        page: Item = answer.body
        if replica.has_one_version and page["catalog_version"] < version:
            self.hold([f"{replica.url} went back from version {version} to {page['catalog_version']}"])
        replica.version = max(replica.version, page["catalog_version"])
        self.hold(self._judge.of_page(asked, page, before))
        return page

    def item(self, replica: Reached, item_id: str) -> None:
        before = self._judge.now()
        answer = self.send(replica, "GET", f"/items/{item_id}")
        if answer is not None:
            found = answer.body if answer.status == httpx.codes.OK else None
            self.hold(self._judge.of_item(item_id, found, before))


class Writer(Client):
    """Puts, patches and deletes, each until it is acknowledged, and looks whether that replica knows it."""

    def __init__(self, clients: Clients, name: str, seed: int) -> None:
        super().__init__(clients, name, seed)
        self._ids = [f"{name}-{n}" for n in range(IDS_PER_WRITER)]
        self._turn: list[str] = []  # those that this round has not come to
        self._rests_until: dict[str, float] = {}

    def act(self) -> None:
        draw, changes = self.rng.random(), None
        if draw < 0.25:
            ids, items = self._next_ids(1), None
        elif draw < 0.45:
            ids, items = self._next_ids(1), []
            changes = some_changes(self.rng)
        else:
            ids = self._next_ids(self.rng.choice([1, 2, 5]))
            items = [some_item(each, self.rng) for each in ids]
        first = self.rng.randrange(len(self._replicas))
        also_elsewhere = self.rng.random() < 0.3
        until = max(self._rests_until.pop(each, 0.0) for each in ids)
        time.sleep(max(0.0, until - time.monotonic()))
        known = self._judge.known[ids[0]].item if ids[0] in self._judge.known else None
        if changes is not None and known is None:
            items, changes = [some_item(ids[0], self.rng)], None
        if items is None and known is not None and self.rng.random() < DUELS:
            patched = {**some_changes(self.rng), "title": f"Thing {self.rng.randrange(NUM_TITLES)}"}
            with self._patching_meanwhile(ids[0], patched, self.rng.choice(self._replicas)):
                replica = self._change(ids, items, first)
        else:
            replica = self._change(ids, items, first, changes)
        page = self.page(replica, {"history": [], "limit": len(ids), "filter": {"item_ids": ids}})
        if page is not None:
            self._must_show(replica, page, ids)
        if also_elsewhere:
            other = self._replicas[(first + 1) % len(self._replicas)]
            self.page(other, {"history": [], "limit": len(ids), "filter": {"item_ids": ids}})
            self.item(other, ids[0])

    def _next_ids(self, num: int) -> list[str]:
        if len(self._turn) < num:
            self._turn = self.rng.sample(self._ids, len(self._ids))
        ids, self._turn = self._turn[:num], self._turn[num:]
        return ids

    @contextmanager
    def _patching_meanwhile(self, item_id: str, changes: Item, replica: Reached) -> Iterator[None]:
        """Patch an item while it is deleted: whichever comes first, it is gone afterwards."""

        def patch() -> None:
            answer = self.send(replica, "PATCH", f"/items/{item_id}", changes, may_be_absent=True)
            if answer is not None and answer.body.get("status") == "created":
                self.hold([f"PATCH has created {item_id}: {answer.body}"])

        thread = threading.Thread(target=patch)
        thread.start()
        try:
            yield
        finally:
            thread.join()

    def _change(
        self, ids: Sequence[str], items: Sequence[Item] | None, first: int, changes: Item | None = None
    ) -> Reached:
        """Put these items, or delete or patch the one of `ids` -> the replica that has acknowledged it."""
        before = self._judge.begin(ids)
        if changes is not None:
            was = before[ids[0]]
            assert was is not None
            assert was.item is not None
            items = [was.item | changes]
        stored = [as_stored(each, _item_of(before[each["item_id"]])) for each in items or ()]
        attempt = 0
        while True:
            replica = self._replicas[(first + attempt) % len(self._replicas)]
            mark = replica.mark
            if items is None:
                answer = self.send(replica, "DELETE", f"/items/{ids[0]}")
            elif changes is not None:
                answer = self.send(replica, "PATCH", f"/items/{ids[0]}", changes)
                answer = answer and answer._replace(body=_as_put(answer.body))
            else:
                answer = self.send(replica, "POST", "/items", {"items": items})
            is_sure = attempt == 0 and replica.was_whole_since(mark)
            if answer is not None:
                if items is None:
                    self._deleted(ids[0], answer, before[ids[0]], is_sure)
                    break
                if self._put(stored, answer.body, before, is_sure):
                    break
            attempt += 1
            time.sleep(RETRY_S)
        if attempt:
            self._rests_until |= dict.fromkeys(ids, time.monotonic() + REST_S)
        with self._clients.lock:
            self._clients.num_acknowledged += len(ids)
        return replica

    def _deleted(self, item_id: str, answer: Answer, before: Known | None, is_sure: bool) -> None:
        is_there = answer.status == httpx.codes.OK
        if is_sure and is_there != (before is not None and before.item is not None):
            self.hold([f"DELETE of {item_id} was answered with {answer.status}; it was {before}"])
        # A refusal as absent names no version: what the next page of this replica names will do.
        version = answer.body["catalog_version"] if is_there else None
        self._judge.settle(item_id, Known(None, None, version))

    def _put(self, items: Sequence[Item], body: Item, before: dict[str, Known | None], is_sure: bool) -> bool:
        """Whether all of them were taken."""
        if any(row["error"] for row in body["items"]):
            for row in body["items"]:
                if row["error"] and row["error"]["status"] not in (429, 503):
                    self.hold([f"an item was refused: {row}"])
            return False
        for item, row in zip(items, body["items"], strict=True):
            self.hold(self._judge.of_row(item, row, before[item["item_id"]], is_first=is_sure))
            self._judge.settle(item["item_id"], Known(item, row["semantic_id"], body["catalog_version"]))
        return True

    def _must_show(self, replica: Reached, page: Item, ids: Sequence[str]) -> None:
        """What was acknowledged here is seen here: `page` is of a version that has it."""
        if not replica.has_one_version:  # another worker may not have it yet
            return
        for item_id in ids:
            known = self._judge.known[item_id]
            if known.version is None:
                if item_id in [row["item_id"] for row in page["items"]]:
                    self.hold([f"{item_id} is absent by DELETE and yet recommended by {replica.url}"])
                self._judge.settle(item_id, replace(known, version=page["catalog_version"]))
            elif page["catalog_version"] < known.version:
                self.hold([f"{replica.url} answers by version {page['catalog_version']}, not by {known}"])


class Reader(Client):
    """Asks for everything that there is to ask."""

    def act(self) -> None:
        replica, draw = self.rng.choice(self._replicas), self.rng.random()
        ids = self.rng.sample(sorted(self._judge.ids), 5)
        if draw < 0.1:
            self._listing(replica)
        elif draw < 0.3:
            self.item(replica, ids[0])
        else:
            self.page(replica, self._some_request(ids))
        time.sleep(PAUSE_S)

    def _some_request(self, ids: list[str]) -> dict[str, Any]:
        asked: dict[str, Any] = {"history": ids[:3], "limit": self.rng.choice([1, 10, 100])}
        asked["exclude_item_ids"] = ids[3:]
        condition: dict[str, Any] = {}
        if self.rng.random() < 0.3:
            condition["available"] = self.rng.random() < 0.5
        if self.rng.random() < 0.3:
            condition["categories_any"] = ["ink"]
        if self.rng.random() < 0.3:
            condition["attributes"] = {"price": {"gte": 5, "lt": 15}}
        if condition:
            asked["filter"] = condition
        return asked

    def _listing(self, replica: Reached) -> None:
        before, rows, cursor = self._judge.now(), [], ""
        while True:
            answer = self.send(replica, "GET", f"/items?limit=200{cursor}")
            if answer is None:
                return
            rows += answer.body["items"]
            if answer.body["next_cursor"] is None:
                break
            cursor = f"&cursor={answer.body['next_cursor']}"
        self.hold(self._judge.of_listing(rows, before))


def _item_of(known: Known | None) -> Item | None:
    return None if known is None else known.item


def _as_put(patched: Item) -> Item:
    """The answer to a patch in the form of that to a put."""
    row = {**patched, "item_id": patched["item"]["item_id"], "error": None}
    return {"items": [row], "catalog_version": patched["catalog_version"]}


def some_changes(rng: random.Random) -> Item:
    """Some fields of an item; a new title moves it."""
    item = some_item("", rng)
    names = ["title", "price", "available", *(["image"] if "image" in item else [])]
    return {name: item[name] for name in rng.sample(names, rng.randint(1, 2))}


def some_item(item_id: str, rng: random.Random) -> Item:
    """Most come without a photo, which leaves the one that is kept."""
    image = rng.choice([*SENT, None]) if rng.random() < PHOTOS else SENT
    return {
        **({} if image is SENT else {"image": image}),
        "item_id": item_id,
        "title": f"Thing {rng.randrange(NUM_TITLES)}",
        "categories": [rng.choice(["pens", "ink", "paper"])],
        "price": rng.randrange(80) / 4,
        "available": rng.random() < 0.8,
    }
