"""`glyphrec fsck`."""

import argparse
import logging
from pathlib import Path

from service.commands.parsers import Subparsers, environment


def add_fsck(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "fsck",
        help="prove that a catalogue in Redis is whole, and mend it",
        description="Checks a catalogue while it is served. Status: 0 whole, 1 something was wrong, "
        "mended or not, 2 not checked.",
    )
    parser.add_argument("--redis-url", default=environment("REDIS_URL", "GLYPHREC_REDIS_URL"))
    parser.add_argument(
        "--catalog",
        default=environment("GLYPHREC_CATALOG") or "glyphrec",
        help="default $GLYPHREC_CATALOG, else glyphrec",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=environment("GLYPHREC_BUNDLE"),
        help="whose tokenizer to check; default $GLYPHREC_BUNDLE",
    )
    parser.add_argument("--tokenizer-id", help="without a bundle; default the one that is served")
    parser.add_argument("--levels", help="without a bundle: how many codes each level has, as in 64,64,32")
    parser.add_argument(
        "--repair", action="store_true", help="mend what follows from the rest; replicas follow"
    )
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.set_defaults(run=run_fsck)


def run_fsck(args: argparse.Namespace) -> int:
    """Check, or mend, and print what was found -> 0 where nothing was wrong, else 1."""
    import asyncio
    import json

    from service.store import fsck

    logging.basicConfig(level=logging.CRITICAL)  # what is skipped stands in the report
    report = asyncio.run(fsck.run(args))
    if args.json:
        shown = {"is_clean": report.is_clean, "num_quarantined": report.num_quarantined, **vars(report)}
        print(json.dumps(shown | {"findings": [each._asdict() for each in report.findings]}))
    else:
        print("\n".join(fsck.lines(report)))
    return 0 if report.is_clean else 1
