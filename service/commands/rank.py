"""`glyphrec rank`: asks a running service for the order of given items after a history."""

import argparse
import json
from typing import Any

from service.commands.asking import Kinds, ask, connected, has, not_ours
from service.commands.client import add_connection, filter_of, print_item
from service.commands.parsers import Subparsers

AN_ANSWER: Kinds = {"items": list, "ranked_by": str, "unknown_item_ids": list, "unknown_history_ids": list}
AN_ITEM: Kinds = {"item_id": str, "semantic_id": str, "score": (int, float, type(None))}


def add_rank(subparsers: Subparsers) -> None:
    """Add `glyphrec rank`, which runs `run_rank`."""
    parser = subparsers.add_parser(
        "rank", help="ask a running service for the order of given items after a history"
    )
    parser.add_argument("item_ids", nargs="+", metavar="ITEM_ID", help="the items to rank, in any order")
    parser.add_argument(
        "--after",
        action="append",
        default=[],
        metavar="ITEM_ID",
        help="an item of the history; give it again for each further item, oldest first",
    )
    parser.add_argument("--limit", type=int, metavar="N", help="items to show (default: all)")
    parser.add_argument(
        "--filter", metavar="JSON", help="""in the format of POST /rank: '{"categories_any": ["Pens"]}'"""
    )
    parser.add_argument("--json", action="store_true", help="print the whole answer as JSON")
    add_connection(parser)
    parser.set_defaults(run=run_rank)


def run_rank(args: argparse.Namespace) -> int:
    """Print the items in order with their scores, or the whole answer as JSON. Returns 0.

    Raises GlyphrecError if --filter is not JSON, if no service answers, or if the service refuses the
    request.
    """
    body: dict[str, Any] = {"history": args.after, "item_ids": args.item_ids}
    if args.limit is not None:
        body["limit"] = args.limit
    if args.filter is not None:
        body["filter"] = filter_of(args.filter)
    with connected(args.url, args.key) as client:
        answer = ask(client, "POST", "/rank", body)
        if not has(answer, AN_ANSWER) or not all(has(item, AN_ITEM) for item in answer["items"]):
            raise not_ours(client, json.dumps(answer, ensure_ascii=False))
        if args.json:
            print(json.dumps(answer, ensure_ascii=False, indent=2))
            return 0
        for what in ("unknown_history_ids", "unknown_item_ids"):
            if answer[what]:
                print(f"{what.replace('_', ' ')}: {', '.join(map(str, answer[what]))}")
        by = answer["ranked_by"]
        print("ranked by popularity" if by == "popularity" else f"ranked by the {by}")
        for item in answer["items"]:
            print_item(client, item, item["score"])
    return 0
