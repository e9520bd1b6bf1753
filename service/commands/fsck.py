"""`glyphrec fsck`."""

import argparse
import logging
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.parsers import Subparsers, environment
from service.commands.which_redis import add_redis_url, redis_url_of
from service.errors import GlyphrecError

if TYPE_CHECKING:  # what takes time to load is loaded where it is used
    from service.core.sid import SidSpec
    from service.store.fsck_report import FsckReport


def add_fsck(subparsers: Subparsers) -> None:
    """Add `glyphrec fsck`, which runs `run_fsck`. Some defaults come from the environment."""
    parser = subparsers.add_parser(
        "fsck",
        help="check that a catalog in Redis is consistent, and repair it",
        description="Checks a catalog while it is served. Exit status: 0 nothing was wrong, 1 something was "
        "wrong, repaired or not, 2 not checked.",
    )
    add_redis_url(parser)
    parser.add_argument(
        "--catalog",
        default=environment("GLYPHREC_CATALOG") or "glyphrec",
        help="default $GLYPHREC_CATALOG, else glyphrec",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=environment("GLYPHREC_BUNDLE"),
        help="the bundle whose tokenizer to check; default $GLYPHREC_BUNDLE. Not read if --levels is given",
    )
    parser.add_argument(
        "--tokenizer-id", help="default the bundle's tokenizer; without a bundle, the served one"
    )
    parser.add_argument("--levels", help="how many codes each level has, as in 64,64,32; replaces the bundle")
    parser.add_argument(
        "--repair", action="store_true", help="repair what the other data determine; replicas follow"
    )
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.set_defaults(run=run_fsck)


def run_fsck(args: argparse.Namespace) -> int:
    """Check, or repair, and print the findings. Returns 0 if nothing was wrong, else 1."""
    import asyncio
    import json

    from service.store.fsck_report import lines

    logging.basicConfig(level=logging.CRITICAL)  # the report has the skipped values
    report = asyncio.run(_check(args))
    if args.json:
        shown = {"is_clean": report.is_clean, "num_quarantined": report.num_quarantined, **vars(report)}
        print(json.dumps(shown | {"findings": [each._asdict() for each in report.findings]}))
    else:
        print("\n".join(lines(report)))
    return 0 if report.is_clean else 1


async def _check(args: argparse.Namespace) -> "FsckReport":
    """Check what the command line names. Raises GlyphrecError where it does not say enough."""
    from service.core.bundle import load_bundle
    from service.store.client import connect_to_any
    from service.store.fsck import check, served_tokenizer

    redis_url = redis_url_of(args)
    manifest = load_bundle(Path(args.bundle)).manifest if args.bundle and not args.levels else None
    spec = manifest.sid if manifest else _spec(args.levels)
    redis = await connect_to_any(redis_url)
    try:
        tokenizer_id = args.tokenizer_id or (manifest and manifest.tokenizer_id)
        tokenizer_id = tokenizer_id or await served_tokenizer(redis, args.catalog)
        if tokenizer_id is None:
            raise GlyphrecError(f"The catalog {args.catalog!r} is served by no tokenizer. Give a --bundle.")
        if manifest and tokenizer_id != manifest.tokenizer_id:
            raise GlyphrecError(
                f"The bundle has the tokenizer {manifest.tokenizer_id}, not {tokenizer_id}. Give --levels."
            )
        return await check(
            redis,
            catalog=args.catalog,
            tokenizer_id=tokenizer_id,
            spec=spec,
            vector_dim=manifest.vector_dim if manifest else None,
            repair=args.repair,
        )
    finally:
        await redis.aclose()


def _spec(levels: str | None) -> "SidSpec":
    if levels is None:
        raise GlyphrecError("Which codes are right? Give --bundle, or --levels as in 64,64,32.")
    from service.core.sid import SidSpec

    try:
        return SidSpec(levels=tuple(int(each) for each in levels.split(",")))
    except ValueError as error:
        raise GlyphrecError(f"--levels {levels!r}: not understood. Give them as in 64,64,32.") from error
