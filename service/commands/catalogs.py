"""`glyphrec catalogs`."""

import argparse
import logging
from typing import TYPE_CHECKING

from service.commands.parsers import EXIT_FAILURE, Subparsers
from service.commands.which_redis import add_redis_url, redis_url_of
from service.errors import GlyphrecError

if TYPE_CHECKING:  # what takes time to load is loaded where it is used
    from service.store.catalogs import CatalogSummary


def add_catalogs(subparsers: Subparsers) -> None:
    """Add `glyphrec catalogs`, which runs `run_catalogs`."""
    parser = subparsers.add_parser(
        "catalogs",
        help="list the catalogs in a Redis, or delete one",
        description="Lists every catalog in a Redis: its items, the memory that Redis estimates for it, the "
        "replicas that serve it, its tokenizer and its bundle. With --delete and --confirm it deletes one. "
        "Exit status: 0 done, 2 not done.",
    )
    add_redis_url(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object for each catalog")
    parser.add_argument("--delete", metavar="NAME", help="delete this catalog, with all items and counts")
    parser.add_argument(
        "--confirm", metavar="NAME", help="the same name once more; without it nothing is deleted"
    )
    parser.set_defaults(run=run_catalogs)


def run_catalogs(args: argparse.Namespace) -> int:
    """List, or delete, and print what was found. Returns 0 if it was done."""
    import asyncio

    if args.confirm is not None and args.confirm != args.delete:
        raise GlyphrecError(
            f"--confirm {args.confirm!r} is not the catalog of --delete. Nothing was deleted."
        )
    logging.basicConfig(level=logging.CRITICAL)  # the error says what went wrong
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    from service.store.catalogs import all_catalogs, delete_catalog, one_catalog
    from service.store.client import connect_to_any

    redis = await connect_to_any(redis_url_of(args))
    try:
        if args.delete is None:
            _show(await all_catalogs(redis), as_json=args.json)
            return 0
        found = await one_catalog(redis, args.delete)
        if found is None:
            names = ", ".join(each.name for each in await all_catalogs(redis)) or "none"
            raise GlyphrecError(f"Redis has no catalog {args.delete!r}. It has: {names}.")
        if args.confirm is None:
            _show([found], as_json=args.json)
            print(f"Nothing was deleted. To delete it: --delete {args.delete} --confirm {args.delete}")
            return EXIT_FAILURE
        print(f"Deleted the catalog {args.delete}: {await delete_catalog(redis, args.delete):,} keys.")
        return 0
    finally:
        await redis.aclose()


def _show(catalogs: "list[CatalogSummary]", *, as_json: bool) -> None:
    import json

    from service.store.catalogs import lines

    if as_json:
        for each in catalogs:
            print(json.dumps(each._asdict()))
    elif catalogs:
        print("\n".join(lines(catalogs)))
    else:
        print("Redis has no catalog.")
