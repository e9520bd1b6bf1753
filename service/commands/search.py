"""`glyphrec search`: asks a running service for the items most like a text or a picture."""

import argparse
import json
from pathlib import Path
from typing import Any

from service.commands.asking import Kinds, ask, connected, has, not_ours, picture
from service.commands.client import add_connection, filter_of, print_item
from service.commands.parsers import Subparsers
from service.errors import GlyphrecError

A_PAGE: Kinds = {"items": list, "exact": bool, "matching_items": (int, type(None))}
AN_ITEM: Kinds = {"item_id": str, "semantic_id": str, "score": (int, float)}


def add_search(subparsers: Subparsers) -> None:
    """Add `glyphrec search`, which runs `run_search`."""
    parser = subparsers.add_parser(
        "search", help="ask a running service for the items most like a text or a picture"
    )
    parser.add_argument("query", nargs="?", default="", help='for example "oat milk 32 oz"')
    parser.add_argument(
        "--image",
        type=Path,
        metavar="FILE",
        help="a JPEG, PNG or WebP to search with, for a bundle that reads pictures",
    )
    parser.add_argument("--limit", type=int, default=10, metavar="N", help="items to show (default 10)")
    parser.add_argument(
        "--filter", metavar="JSON", help="""in the format of POST /search: '{"categories_any": ["Pens"]}'"""
    )
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    add_connection(parser)
    parser.set_defaults(run=run_search)


def run_search(args: argparse.Namespace) -> int:
    """Print the found items with their likeness, or the whole answer as JSON. Returns 0.

    Raises GlyphrecError if there is nothing to search with, --filter is not JSON, no service answers, or
    the service refuses the request, and OSError if the picture cannot be read.
    """
    if not args.query and args.image is None:
        raise GlyphrecError("What shall the items be like? Give a text, or a picture with --image.")
    body: dict[str, Any] = {"limit": args.limit}
    if args.query:
        body["query"] = args.query
    if args.image is not None:
        body["image"] = picture(args.image.read_bytes())
    if args.filter is not None:
        body["filter"] = filter_of(args.filter)
    with connected(args.url, args.key) as client:
        answer = ask(client, "POST", "/search", body)
        if not has(answer, A_PAGE) or not all(has(item, AN_ITEM) for item in answer["items"]):
            raise not_ours(client, json.dumps(answer, ensure_ascii=False))
        if args.json:
            print(json.dumps(answer, ensure_ascii=False, indent=2))
            return 0
        if not answer["items"]:
            print("no item passes the filter" if answer["matching_items"] == 0 else "nothing was found")
        for item in answer["items"]:
            print_item(client, item, item["score"])
    return 0
