"""Shared by the parsers of all commands."""

import os
from typing import Any

EXIT_FAILURE = 2
EXIT_INTERRUPTED = 130

Subparsers = Any  # argparse names no public type for what add_subparsers returns


def environment(*names: str) -> str | None:
    """The first of these environment variables that is set and not empty, or None."""
    return next((os.environ[name] for name in names if os.environ.get(name)), None)
