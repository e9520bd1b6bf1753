"""Items that must be read: one by one, in bulk, and beside live traffic. A part of serving.py."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from benchmarks.timing import each_ms
from benchmarks.workload.processes import run_import, start_import
from model_export.local_service import LocalService
from service.core.bundle import TOKENIZER, Bundle
from service.core.render import item_text, render_text
from service.inference.runtime import Tokenizer, TokenizerInput
from service.settings import default_threads

BATCHES = (1, 4, 8, 16, 32)
LIVE_SHARE = 0.3  # of saturation, beside the ingest


class Load(NamedTuple):
    p99_ms: Callable[[float], float]  # of POST /recommend, at a share of saturation
    seconds: float  # that it lasts
    items_per_s: float  # of the import beside it
    turns: int  # with and without it


def ingest(
    service: LocalService,
    bundle: Bundle,
    catalog: Sequence[dict[str, Any]],
    folder: Path,
    num_items: int,
    load: Load,
) -> tuple[dict[str, float], dict[str, float]]:
    """Figures and baseline, by name."""
    one_by_one, bulk = new_items(catalog, num_items // 5, "one"), new_items(catalog, num_items, "bulk")
    own = tokenizer_alone(bundle, bulk)
    took_ms = each_ms(
        lambda n: service.client.post("/items", json=one_by_one[n]).raise_for_status(), len(one_by_one)
    )
    started = time.perf_counter()
    run_import(lines_of(bulk, folder), "--url", service.url)
    bulk_s = time.perf_counter() - started
    without, beside = [], []
    for turn in range(load.turns):  # one after the other, as the machine changes
        without.append(load.p99_ms(LIVE_SHARE))
        some = new_items(catalog, int(load.items_per_s * load.seconds), f"beside {turn}")
        process = start_import(lines_of(some, folder), "--url", service.url, "--rate", load.items_per_s)
        beside.append(load.p99_ms(LIVE_SHARE))
        process.wait()
    figures = {
        "one_by_one_items_per_s": 1_000 / float(np.mean(took_ms)),
        "items_p50_ms": float(np.percentile(took_ms, 50)),
        "items_p99_ms": float(np.percentile(took_ms, 99)),
        "bulk_items_per_s": len(bulk) / bulk_s,
        "ingest_share": len(bulk) / bulk_s / own,
        "p99_while_ingesting_ms": float(np.median(beside)),
        "p99_rise_while_ingesting": float(np.median(beside) / np.median(without) - 1),
    }
    return figures, {"tokenizer_items_per_s": own, "p99_without_ingest_ms": float(np.median(without))}


def tokenizer_alone(bundle: Bundle, items: Sequence[dict[str, Any]]) -> float:
    """Items a second of the graph, in its best batches, with the threads that the service gives it."""
    tokenizer = Tokenizer(bundle.file(TOKENIZER), bundle.manifest.tokenizer, threads=default_threads())
    render = bundle.manifest.render
    inputs = [TokenizerInput(render_text(item_text(item, render), render).strips) for item in items[:256]]

    def items_per_s(batch: int) -> float:
        parts = [inputs[start : start + batch] for start in range(0, len(inputs), batch)]
        tokenizer.run(parts[0])
        started = time.perf_counter()
        for part in parts:
            tokenizer.run(part)
        return len(inputs) / (time.perf_counter() - started)

    return max(items_per_s(batch) for batch in BATCHES)


def new_items(catalog: Sequence[dict[str, Any]], count: int, mark: str) -> list[dict[str, Any]]:
    """As long as the catalog's, but with a number in each title, so that nothing was read before."""
    rows = [catalog[n % len(catalog)]["item"] for n in range(count)]
    return [
        {**row, "item_id": f"{mark}-{n}", "title": f"{row.get('title', '')} {mark} {n}"}
        for n, row in enumerate(rows)
    ]


def lines_of(items: Sequence[dict[str, Any]], folder: Path) -> Path:
    path = folder / "new.jsonl"
    path.write_text("".join(json.dumps(item) + "\n" for item in items), encoding="utf-8")
    return path
