"""The subcommands that call a running service over HTTP: import and recommend.

Tokenized items go to Redis instead: import_tokenized.py.
"""

import argparse
import asyncio
import json
import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from glyphrec_client import Client
from glyphrec_client.calls import path_of
from service.commands.asking import Kinds, ask, connected, has, not_ours, results_of
from service.commands.import_images import Limits, batches, names_a_file
from service.commands.parsers import Subparsers
from service.commands.unused_values import UnusedValues
from service.core.image_field import FIELD
from service.core.json_lines import JsonLine, parse_json, read_json_lines
from service.core.progress import ProgressBar
from service.errors import GlyphrecError
from service.settings import CLIENT_KEY, load_settings

DEFAULT_URL = "http://127.0.0.1:8000"
DEFAULT_BATCH = 100
REQUESTS_PER_S = 10  # with --rate: many small requests, evenly spread
MAX_SHOWN_FAILURES = 20
AGAIN = "Give the same command again: items that are there already stay as they are."
A_PAGE: Kinds = {
    "items": list,
    "matching_items": (int, type(None)),
    "unknown_item_ids": list,
    "source": str,
    "exact": bool,
}
AN_ITEM: Kinds = {"item_id": str, "semantic_id": str, "score": (int, float, type(None))}


def add_import(subparsers: Subparsers) -> None:
    """Add `glyphrec import`, which runs `run_import`."""
    parser = subparsers.add_parser(
        "import",
        help="post the items of a file to a running service, or put tokenized items into Redis",
        description="Exit status: 0 all items are in, 1 some failed (the first 20 are named), 2 stopped.",
    )
    parser.add_argument("source", type=Path, help="items.jsonl[.gz], or a folder with one")
    parser.add_argument(
        "--batch", type=int, metavar="N", help=f"items in one request (default {DEFAULT_BATCH})"
    )
    parser.add_argument(
        "--rate", type=float, metavar="N", help="post at most N items a second, to leave room for traffic"
    )
    add_connection(parser)
    direct = parser.add_argument_group(
        "items that have codes already",
        "These go directly to Redis, without a service; running services follow. The settings are those of "
        "`glyphrec serve`. The popularity of a line is not stored: the served bundle's popularity counts.",
    )
    direct.add_argument(
        "--tokenized",
        action="store_true",
        help="the lines are like those of a bundle's items.jsonl.gz: item_id, codes, popularity, item",
    )
    # The old spelling still works.
    direct.add_argument("--tokenised", dest="tokenized", action="store_true", help=argparse.SUPPRESS)
    direct.add_argument(
        "--bundle", type=Path, help="the bundle whose tokenizer gave the codes; default $GLYPHREC_BUNDLE"
    )
    direct.add_argument("--redis-url", help="default $GLYPHREC_REDIS_URL, else $REDIS_URL")
    direct.add_argument("--catalog", help="default $GLYPHREC_CATALOG, else glyphrec")
    parser.set_defaults(run=run_import)


def add_recommend(subparsers: Subparsers) -> None:
    """Add `glyphrec recommend`, which runs `run_recommend`."""
    parser = subparsers.add_parser(
        "recommend", help="ask a running service for the next items after a history"
    )
    parser.add_argument(
        "history", nargs="*", metavar="ITEM_ID", help="oldest first; without any, popular items are shown"
    )
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="items to show (default 10)")
    parser.add_argument(
        "--exact",
        action="store_true",
        help="widen the search until the page is proven to be exact or the bundle's beam limit is reached",
    )
    parser.add_argument(
        "--filter",
        metavar="JSON",
        help="""in the format of POST /recommend: '{"categories_any": ["Pens"]}'""",
    )
    parser.add_argument(
        "--rerank", action="store_true", help="let the bundle's ranker order the page, if it has one"
    )
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    parser.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        help='ask for each line of users.jsonl[.gz], such as {"user_id": "u1", "history": ["a1"]}; its other '
        "fields are those of POST /recommend. Exit status: 0 all have a page, 1 some have none (the first "
        "20 are named)",
    )
    parser.add_argument(
        "--out",
        type=Path,
        metavar="FILE",
        help="with --users: a line for each line, with its page. What an earlier run wrote there is kept, "
        "and this one goes on behind it",
    )
    add_connection(parser)
    parser.set_defaults(run=run_recommend)


def run_import(args: argparse.Namespace) -> int:
    """Import all items. Returns 1 if some of them failed; stderr names them."""
    path = find_items(args.source)
    if args.tokenized:
        _refuse(
            args,
            {"url", "key", "batch", "rate"},
            "goes to a service; --tokenized goes to Redis, see --redis-url",
        )
        return _import_tokenized(path, args)
    _refuse(args, {"bundle", "redis_url", "catalog"}, "goes with --tokenized")
    return _import_by_service(path, args)


def _refuse(args: argparse.Namespace, names: set[str], why: str) -> None:
    """Raise GlyphrecError for the options in `names` that were given: they would be ignored."""
    defaults = {"url": DEFAULT_URL, "key": os.environ.get(CLIENT_KEY)}
    for name in sorted(names):
        if getattr(args, name) != defaults.get(name):
            raise GlyphrecError(f"--{name.replace('_', '-')}: {why}")


def _import_tokenized(path: Path, args: argparse.Namespace) -> int:
    from service.commands import import_tokenized  # here, because it is slow to load

    logging.basicConfig(level=logging.CRITICAL)  # a refusal is retried, or reported at the end
    settings = load_settings(bundle=args.bundle, redis_url=args.redis_url, catalog=args.catalog)
    counts = asyncio.run(import_tokenized.run(path, settings))
    return _conclude(counts, num_shown=import_tokenized.MAX_NAMED)


def _import_by_service(path: Path, args: argparse.Namespace) -> int:
    if args.rate is not None and not args.rate > 0:
        raise GlyphrecError(f"--rate {args.rate}: must be above 0")
    even = DEFAULT_BATCH if args.rate is None else min(DEFAULT_BATCH, math.ceil(args.rate / REQUESTS_PER_S))
    num_at_once = even if args.batch is None else args.batch
    if num_at_once < 1:
        raise GlyphrecError(f"--batch {num_at_once}: at least one item must be in a request")
    pause_s = 0.0 if args.rate is None else 1 / args.rate  # for each item
    # All lines first, so that a broken line is found before anything is posted.
    lines = list(read_json_lines(path, parse=partial(parse_json, strict=True)))
    _check_kind(path, lines)
    num_left = len(lines)
    counts: dict[str, int] = {}
    unused = UnusedValues()
    shown = 0
    with (
        connected(args.url, args.key) as client,
        ProgressBar(total=len(lines), desc=f"posting {path.name}", unit=" items") as bar,
    ):
        limits = _limits(client) if any(map(names_a_file, lines)) else None
        for batch in batches(lines, path.parent, limits, num_at_once):
            next_at = time.monotonic() + len(batch) * pause_s
            try:
                answer = ask(client, "POST", "/items", {"items": [each.line.value for each in batch]})
                results = results_of(client, answer, len(batch))
            except GlyphrecError as error:
                num_posted = len(lines) - num_left
                done = f" {num_posted} of {len(lines)} items were posted. {AGAIN}" if num_posted else ""
                raise GlyphrecError(f"{error}{done}") from error
            for (line, _, note), result in zip(batch, results, strict=True):
                if note:
                    unused.add(f"{path}:{line.number}", FIELD, note)
                counts[result["status"]] = counts.get(result["status"], 0) + 1
                for value in result.get("unused_values", ()):  # an earlier release does not tell them
                    if note and value["field"] == FIELD:
                        continue  # the note says why
                    unused.add(f"{path}:{line.number}", value["field"], value["reason"])
                if result.get("error") and shown < MAX_SHOWN_FAILURES:
                    shown += 1
                    ProgressBar.write(f"{path}:{line.number}: {result['error']['detail']}", file=sys.stderr)
            bar.update(len(batch))
            num_left -= len(batch)
            if num_left:
                time.sleep(max(0.0, next_at - time.monotonic()))
    unused.tell()
    return _conclude(counts, num_shown=shown)


def _limits(client: Client) -> Limits:
    answer = ask(client, "GET", "/info")
    if not has(answer, {"limits": dict}) or not has(answer["limits"], {"body_bytes": int}):
        raise not_ours(client, json.dumps(answer, ensure_ascii=False))
    return Limits.of(answer)


def _check_kind(path: Path, lines: Sequence[JsonLine]) -> None:
    """Raise GlyphrecError at the first line that is no item but a line of another known file."""
    for number, value in lines:
        if isinstance(value, list):
            raise GlyphrecError(
                f"{path}:{number}: a list, not an item. Write one item a line: jq -c '.[]' {path.name}"
            )
        if not isinstance(value, dict):
            continue
        if isinstance(value.get("item"), dict) and {"codes", "popularity"} <= value.keys():
            raise GlyphrecError(
                f"{path}:{number}: an item with its codes, as in a bundle. Import such a file with "
                "--tokenized, or import the items that it was made from."
            )
        if "item_id" not in value and isinstance(value.get("items"), list) and "user_id" in value:
            raise GlyphrecError(
                f"{path}:{number}: a user's interactions, not an item. Give the file of items, items.jsonl."
            )
        if value.keys() == {"items"} and isinstance(value["items"], list):
            raise GlyphrecError(
                f"{path}:{number}: a body of POST /items, not an item. Write one item a line: "
                f"jq -c '.items[]' {path.name}"
            )


def _conclude(counts: Mapping[str, int], num_shown: int) -> int:
    failed = counts.get("failed", 0)
    if failed > num_shown:
        print(f"and {failed - num_shown} more that failed", file=sys.stderr)
    print(", ".join(f"{count} {status}" for status, count in sorted(counts.items())) or "no items")
    return 1 if failed else 0


def run_recommend(args: argparse.Namespace) -> int:
    """Print the recommended items with their scores, or the whole answer as JSON. Returns 0.

    Raises GlyphrecError if --filter is not JSON, if no service answers, or if the service refuses the
    request.
    """
    body = {"history": args.history, "limit": args.limit, "guarantee": "exact" if args.exact else "none"}
    if args.filter is not None:
        body["filter"] = filter_of(args.filter)
    if args.rerank:  # an earlier release does not know the field
        body["rerank"] = True
    if args.users is not None or args.out is not None:
        return _recommend_to_users(args, body)
    with connected(args.url, args.key) as client:
        answer = ask(client, "POST", "/recommend", body)
        if not has(answer, A_PAGE) or not all(has(item, AN_ITEM) for item in answer["items"]):
            raise not_ours(client, json.dumps(answer, ensure_ascii=False))
        if args.json:
            print(json.dumps(answer, ensure_ascii=False, indent=2))
            return 0
        if answer["matching_items"] == 0:
            print("no item passes the filter")
            return 0
        if answer["unknown_item_ids"]:
            print(f"unknown: {', '.join(answer['unknown_item_ids'])}")
        print(
            "popular items" if answer["source"] == "popular" else f"next items{', exact' * answer['exact']}"
        )
        for item in answer["items"]:
            print_item(client, item, item.get("ranker_score") if args.rerank else item["score"])
    return 0


def _recommend_to_users(args: argparse.Namespace, defaults: dict[str, Any]) -> int:
    from service.commands.recommend_users import recommend_users

    if args.users is None or args.out is None:
        raise GlyphrecError("--users and --out belong together: the file of users, and that of their pages.")
    if args.history or args.json:
        raise GlyphrecError(
            "--users: the file has the histories, and --out gets JSON. Leave out ids and --json."
        )
    del defaults["history"]
    with connected(args.url, args.key) as client:
        return recommend_users(client, args.users, args.out, defaults)


def print_item(client: Client, item: dict[str, Any], score: float | None) -> None:
    """A line with the score, the Semantic ID, the id and the words of an item of an answer."""
    shown = "" if score is None else f"{score:.3f}"
    print(f"{shown:>8}  {item['semantic_id']:<16} {item['item_id']}  {words_of(client, item['item_id'])}")


def filter_of(text: str) -> Any:
    """The value of --filter. Raises GlyphrecError if it is not JSON."""
    try:
        return parse_json(text, strict=True)
    except ValueError as error:
        raise GlyphrecError(f"--filter {text}: not JSON ({error})") from None


def find_items(source: Path) -> Path:
    """The file of items: `source` itself, or the one in that folder. Raises GlyphrecError."""
    if not source.is_dir():
        return source
    for name in ("items.jsonl", "items.jsonl.gz"):
        if (source / name).is_file():
            return source / name
    raise GlyphrecError(f"{source}: has no items.jsonl or items.jsonl.gz")


def add_connection(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the service is, and the key for it."""
    parser.add_argument("--url", default=DEFAULT_URL, help="the service's address (default %(default)s)")
    parser.add_argument("--key", default=os.environ.get(CLIENT_KEY), help=f"API key (default ${CLIENT_KEY})")


def words_of(client: Client, item_id: str) -> str:
    """What an item says, for a line of a list. Raises GlyphrecError, also for an id that is empty."""
    if not item_id:
        raise not_ours(client, "an item without an id")
    answer = ask(client, "GET", path_of(item_id))
    if not has(answer, {"item": dict}):
        raise not_ours(client, json.dumps(answer, ensure_ascii=False))
    item = answer["item"]
    return str(item.get("title") or "; ".join(str(v) for k, v in item.items() if k != "item_id"))[:100]
