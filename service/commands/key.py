"""`glyphrec key`."""

import argparse

from service.commands.parsers import Subparsers
from service.core.keys import hash_of, new_key


def add_key(subparsers: Subparsers) -> None:
    """Add `glyphrec key`, which runs `run_key`."""
    parser = subparsers.add_parser(
        "key",
        help="make a new API key and its hash",
        description="The client gets the key; the service gets the hash, in GLYPHREC_READ_KEYS, "
        "GLYPHREC_API_KEYS (which may also write) or GLYPHREC_ADMIN_KEYS.",
    )
    parser.set_defaults(run=run_key)


def run_key(_args: argparse.Namespace) -> None:
    """Print the key and its hash. The key is not stored anywhere."""
    key = new_key()
    print(f"key:  {key}\nhash: {hash_of(key)}")
