"""Which bundle a benchmark serves: the one that is named, the demo's newest, or with --tiny a known one."""

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.report import NotAvailable
from service.core.bundle import ITEMS, Bundle, load_bundle
from service.core.json_lines import read_json_lines
from tests.known_bundle import items_without_text_twice, write_known_bundle

DEMO_BUNDLES = Path(".glyphrec/demo/bundles")
NUM_TINY_ITEMS = 60
TINY_USERS = 40
TINY_HISTORY = 8


def add_argument(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--bundle", type=Path, help="a folder; by default the newest that `make demo` made")


def chosen(args: argparse.Namespace, folder: Path) -> Bundle:
    """`folder` takes the tiny bundle. Raises NotAvailable where there is none."""
    if args.bundle is None and args.tiny:
        return tiny_bundle(folder)
    return load_bundle(args.bundle or newest_demo_bundle())


def newest_demo_bundle() -> Path:
    found = sorted(DEMO_BUNDLES.glob("*/manifest.json"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise NotAvailable("there is no bundle yet. Run `make demo` once, or give --bundle FOLDER.")
    return found[-1].parent


def tiny_bundle(folder: Path) -> Bundle:
    """Graphs of fixed arithmetic over some items: written and started fast, and its speed means nothing."""
    items = items_without_text_twice(NUM_TINY_ITEMS, seed=0)
    return load_bundle(write_known_bundle(folder / "tiny", items))


def tiny_data(bundle: Bundle, folder: Path) -> Path:
    """Random purchases of the bundle's items, in the neutral form."""
    rows = catalog_of(bundle)
    folder.mkdir()
    rng = np.random.default_rng(0)
    users = [
        {
            "user_id": f"user-{n}",
            "items": [rows[i]["item_id"] for i in rng.choice(len(rows), TINY_HISTORY, replace=False)],
        }
        for n in range(TINY_USERS)
    ]
    for name, lines in (("items", [row["item"] for row in rows]), ("interactions", users)):
        text = "".join(json.dumps(line) + "\n" for line in lines)
        (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return folder


def catalog_of(bundle: Bundle) -> list[dict[str, Any]]:
    """Its items as lines with `item_id`, `codes` and `item`."""
    return [line.value for line in read_json_lines(bundle.file(ITEMS))]
