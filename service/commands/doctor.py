"""`glyphrec doctor`: whether this machine, these settings, this bundle and this Redis fit together."""

import argparse
import logging
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.parsers import EXIT_FAILURE, Subparsers, environment

if TYPE_CHECKING:  # slow to import
    from collections.abc import AsyncIterator

    from service.commands.checkup import Finding

MARKS = {"ok": "ok      ", "warning": "warning ", "wrong": "WRONG   "}


def add_doctor(subparsers: Subparsers) -> None:
    """Add `glyphrec doctor`, which runs `run_doctor`."""
    parser = subparsers.add_parser(
        "doctor",
        help="tell whether machine, settings, bundle and Redis fit together",
        description="It reads the same environment as `glyphrec serve`, opens the bundle once, asks Redis, "
        "and changes nothing. A line for each finding, with the remedy. Exit status: 0 nothing is wrong, 2 "
        "something is.",
    )
    parser.add_argument("--bundle", type=Path, help="default $GLYPHREC_BUNDLE")
    parser.add_argument("--redis-url", help="default as of `glyphrec serve`")
    parser.add_argument("--json", action="store_true", help="print one JSON object for each finding")
    parser.set_defaults(run=run_doctor)


def run_doctor(args: argparse.Namespace) -> int:
    """Print each finding as it comes. Returns 0 if nothing is wrong."""
    import asyncio

    logging.basicConfig(level=logging.CRITICAL)  # the findings say it
    return asyncio.run(_run(args))


async def _run(args: argparse.Namespace) -> int:
    states: Counter[str] = Counter()
    async for finding in _findings(args):
        states[finding.state] += 1
        _show(finding, as_json=args.json)
    if not args.json:
        print(f"{states['wrong']} wrong, {states['warning']} to look at, {states['ok']} as they should be")
    return EXIT_FAILURE if states["wrong"] else 0


async def _findings(args: argparse.Namespace) -> "AsyncIterator[Finding]":
    from service.commands.checkup import Finding, of_bundle, of_machine, of_redis, of_settings
    from service.settings import BadSettings, load_settings

    for finding in of_machine():
        yield finding
    is_named = args.bundle is not None or environment("GLYPHREC_BUNDLE") is not None
    try:
        settings = load_settings(bundle=args.bundle if is_named else Path(), redis_url=args.redis_url)
    except BadSettings as error:
        yield Finding("settings", "wrong", str(error))
        return
    for finding in of_settings(settings):
        yield finding
    if is_named:
        for finding in of_bundle(settings):
            yield finding
    else:
        yield Finding("bundle", "warning", "none is named. Give --bundle or set GLYPHREC_BUNDLE")
    async for finding in of_redis(settings.redis_url, settings.catalog):
        yield finding


def _show(finding: "Finding", *, as_json: bool) -> None:
    import json

    if as_json:
        print(json.dumps(finding._asdict()), flush=True)
    else:
        print(f"{MARKS[finding.state]}{finding.topic:<12}{finding.text}", flush=True)
