"""Ends background tasks."""

import asyncio
from typing import Any


async def cancel(task: asyncio.Task[Any]) -> None:
    """Cancel a task and wait until it has ended.

    The request to cancel is repeated, because asyncio.wait_for, which redis-py uses, may swallow one before
    Python 3.12.
    """
    while not task.done():
        task.cancel()
        await asyncio.wait([task], timeout=1)
