"""A serving process starts fast and light."""

import gzip
import json
import shutil

import numpy as np

from model_export.local_service import local_service
from service.core.bundle import ITEMS, MANIFEST, FileRecord, load_bundle, sha256_of

NUM_ITEMS = 5000


def test_a_bundle_of_5000_items_is_ready_in_under_5_seconds(tiny_export, redis_url, tmp_path):
    """With real graphs and many items of random codes. The best of three counts, as machines are noisy."""
    bundle = grown_bundle(tiny_export.bundle.path, tmp_path / "bundle")
    ready_s = []
    for attempt in range(3):
        with local_service(bundle, redis_url=redis_url, log=tmp_path / f"{attempt}.log") as server:
            ready_s.append(server.ready_s)
            assert server.client.get("/info").json()["catalog"]["items"] == NUM_ITEMS
            loaded = (tmp_path / f"{attempt}.log").read_text()
            assert "Traceback" not in loaded
    assert min(ready_s) < 5, ready_s


def test_a_serving_process_has_no_torch_in_memory(tiny_export, redis_url, tmp_path):
    """The files that the process has mapped show it, after it has answered both flows."""
    with local_service(tiny_export.bundle.path, redis_url=redis_url, log=tmp_path / "log") as server:
        server.client.post("/items", json={"item_id": "a", "title": "Oat milk"}).raise_for_status()
        server.client.post("/recommend", json={"history": ["a"]}).raise_for_status()
        with open(f"/proc/{server.process.pid}/maps") as maps:
            mapped = maps.read()
    assert "onnxruntime" in mapped
    assert "libtorch" not in mapped


def grown_bundle(source, target):
    """The same bundle with NUM_ITEMS items."""
    shutil.copytree(source, target)
    manifest = load_bundle(target).manifest
    rng = np.random.default_rng(0)
    with gzip.open(target / ITEMS, "wt", encoding="utf-8") as lines:
        for n in range(NUM_ITEMS):
            codes = [int(rng.integers(0, num_codes)) for num_codes in manifest.sid.levels]
            item = {"item_id": str(n), "title": f"Item number {n}"}
            row = {"item_id": str(n), "codes": codes, "slot": n, "popularity": 1, "item": item}
            lines.write(json.dumps(row) + "\n")
    record = FileRecord(sha256=sha256_of(target / ITEMS), num_bytes=(target / ITEMS).stat().st_size)
    manifest = manifest.model_copy(update={"files": manifest.files | {ITEMS: record}, "num_items": NUM_ITEMS})
    (target / MANIFEST).write_text(manifest.model_dump_json())
    return target
