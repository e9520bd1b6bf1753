"""The time limit of a flow: the deadline of its request, or its own timeout, whichever is first."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from service.errors import TookTooLong


@asynccontextmanager
async def within(deadline: float, timeout_s: float, what: str) -> AsyncIterator[float]:
    """Limit the time of a block; gives its deadline, by the event loop's clock.

    `what`: the subject of the error, for example "The recommendation". Raises TookTooLong.
    """
    started_at = asyncio.get_running_loop().time()
    deadline = min(deadline, started_at + timeout_s)
    try:
        async with asyncio.timeout_at(deadline):
            yield deadline
    except TimeoutError:
        raise TookTooLong(what, deadline - started_at) from None
