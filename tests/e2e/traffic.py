"""Clients that put and delete through services which may fail, and know what was acknowledged."""

import json
import random
import subprocess
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Self

import httpx

from model_export.local_service import glyphrec_command

IDS_PER_WRITER = 40
RETRY_S = 0.02


class Traffic:
    """Each writer has ids of its own and sends what was not acknowledged again, until it is.

    So at the end every id is in one known state: `acknowledged` has its semantic id, or None once deleted.
    """

    def __init__(self, urls: Sequence[str], *, num_writers: int = 3, seed: int = 0) -> None:
        self.acknowledged: dict[str, str | None] = {}
        self.items: dict[str, dict[str, Any]] = {}  # as acknowledged last
        self.num_acknowledged = 0
        self.num_refused = 0
        self.unexpected: list[str] = []
        self._urls = list(urls)
        self._is_over = threading.Event()
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._write, args=(f"w{n}", random.Random(100 * seed + n)), daemon=True)
            for n in range(num_writers)
        ]

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.finish()

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Every writer ends what it has begun, so some service must answer."""
        self._is_over.set()
        for thread in self._threads:
            thread.join(60)
            assert not thread.is_alive(), "a writer still waits for its acknowledgement"
        assert not self.unexpected, self.unexpected

    def go_on(self, num_more: int, timeout_s: float = 60) -> None:
        """Until that many more requests were acknowledged."""
        enough = self.num_acknowledged + num_more
        until(lambda: self.num_acknowledged >= enough, timeout_s)

    def _write(self, writer: str, rng: random.Random) -> None:
        with httpx.Client(timeout=20) as client:
            while not self._is_over.is_set():
                ids = rng.sample([f"{writer}-{n}" for n in range(IDS_PER_WRITER)], 3)
                if rng.random() < 0.3:
                    self._until_acknowledged(client, rng, "DELETE", f"/items/{ids[0]}", None)
                else:
                    self._until_acknowledged(
                        client, rng, "POST", "/items", {"items": [_item(each, rng) for each in ids]}
                    )

    def _until_acknowledged(
        self, client: httpx.Client, rng: random.Random, method: str, path: str, body: Any
    ) -> None:
        while True:
            try:
                answer = client.request(method, rng.choice(self._urls) + path, json=body)
            except httpx.TransportError:
                answer = None
            if answer is not None and self._take(method, path, body, answer):
                return
            time.sleep(RETRY_S)

    def _take(self, method: str, path: str, body: Any, answer: httpx.Response) -> bool:
        """Whether all of it was acknowledged."""
        with self._lock:
            if answer.status_code == httpx.codes.SERVICE_UNAVAILABLE:
                if "retry-after" not in answer.headers:
                    self.unexpected.append(answer.text)
                self.num_refused += 1
                return False
            if method == "DELETE" and answer.status_code in (httpx.codes.OK, httpx.codes.NOT_FOUND):
                self.acknowledged[path.removeprefix("/items/")] = None
            elif method == "POST" and answer.status_code == httpx.codes.OK:
                rows = answer.json()["items"]
                for row, item in zip(rows, body["items"], strict=True):
                    if row["error"] is None:
                        self.acknowledged[row["item_id"]] = row["semantic_id"]
                        self.items[row["item_id"]] = item
                    elif row["error"]["status"] != httpx.codes.SERVICE_UNAVAILABLE:
                        self.unexpected.append(answer.text)
                if any(row["error"] for row in rows):
                    return False
            else:
                self.unexpected.append(f"{method} {path}: {answer.status_code} {answer.text}")
            self.num_acknowledged += 1
            return True


def _item(item_id: str, rng: random.Random) -> dict[str, Any]:
    """Titles come again, so that items come back to where they were."""
    return {
        "item_id": item_id,
        "title": f"Thing {rng.randrange(30)}",
        "categories": [rng.choice(["pens", "ink", "paper"])],
        "price": rng.randrange(100) / 4,
        "available": rng.random() < 0.8,
    }


def fsck(redis_url: str, bundle: Path, *more: str) -> dict[str, Any]:
    """The report of the real command; its status says the same."""
    command = glyphrec_command("fsck", "--redis-url", redis_url, "--bundle", bundle, "--json", *more)
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode in (0, 1), done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["is_clean"] == (done.returncode == 0)
    return report


def until(claim: Callable[[], object], timeout_s: float = 60) -> None:
    deadline = time.monotonic() + timeout_s
    while not claim():
        assert time.monotonic() < deadline, "not in time"
        time.sleep(0.01)
