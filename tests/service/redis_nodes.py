"""Redis servers on TCP ports, with the options that a test is about."""

import asyncio
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from service.store.server import find_server_binary
from tests.service.catalogs import until_true

START_TIMEOUT_S = 20


@asynccontextmanager
async def node(
    folder: Path,
    port: int,
    *options: str,
    binary: Path | None = None,
    client: Redis | None = None,
    waits: bool = True,
) -> AsyncIterator[Redis]:
    """A running server and a client of it; `client` has further options for that client.

    `waits` until it answers, which one that loads does not.
    """
    folder.mkdir(parents=True, exist_ok=True)
    command = [
        *(str(binary or find_server_binary()), "--port", str(port), "--bind", "127.0.0.1"),
        *("--dir", str(folder), "--save", "", "--appendonly", "yes", *options),
    ]
    with (folder / "server.log").open("ab") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    client = client or Redis(host="127.0.0.1", port=port, protocol=2)

    async def answers() -> bool:
        try:
            return bool(await client.ping())
        except (RedisError, OSError):
            return False

    try:
        if waits:
            await until_true(answers, START_TIMEOUT_S)
        yield client
    finally:
        await client.aclose()
        process.kill()
        await asyncio.to_thread(process.wait)
