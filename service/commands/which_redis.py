"""Which Redis a command speaks to that reads a catalog itself."""

import argparse
import os

from service.commands.parsers import environment
from service.core.secret_files import secrets_of_files
from service.errors import GlyphrecError


def add_redis_url(parser: argparse.ArgumentParser) -> None:
    """Add --redis-url, whose default is the environment's."""
    parser.add_argument(
        "--redis-url",
        default=environment("REDIS_URL", "GLYPHREC_REDIS_URL"),
        help="default $REDIS_URL, else $GLYPHREC_REDIS_URL, else what the file in $REDIS_URL_FILE holds",
    )


def redis_url_of(args: argparse.Namespace) -> str:
    """The URL that was given or that the environment names. Raises GlyphrecError if there is none."""
    url: str | None = args.redis_url or _url_of_file()
    if not url:
        raise GlyphrecError("Which Redis? Set REDIS_URL or REDIS_URL_FILE, or give --redis-url.")
    return url


def _url_of_file() -> str | None:
    try:
        secrets = secrets_of_files(os.environ)
    except ValueError as error:
        raise GlyphrecError(str(error)) from error
    return secrets.get("REDIS_URL") or secrets.get("GLYPHREC_REDIS_URL")
