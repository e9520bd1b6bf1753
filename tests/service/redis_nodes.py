"""Redis servers on TCP ports, with the options that a test is about."""

import asyncio
import ssl
import subprocess
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from pathlib import Path

from redis.asyncio import Redis
from redis.exceptions import RedisError

from model_export.local_service import free_port
from service.store.server import find_server_binary
from tests.service.catalogs import until_true

START_TIMEOUT_S = 20
NUM_SLOTS = 16_384  # of a cluster


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


@asynccontextmanager
async def cluster(folder: Path) -> AsyncIterator[list[tuple[int, Redis]]]:
    """Three primaries, each with a third of the slots."""
    async with AsyncExitStack() as stack:
        found: list[tuple[int, Redis]] = []
        buses = []
        for i in range(3):
            port, bus = free_port(20_000 + 1_000 * i), free_port(30_000 + 1_000 * i)
            options = (
                "--cluster-enabled",
                "yes",
                "--cluster-port",
                str(bus),
                "--cluster-node-timeout",
                "2000",
            )
            client = await stack.enter_async_context(node(folder / f"node-{i}", port, *options))
            found.append((port, client))
            buses.append(bus)
        edges = [NUM_SLOTS * i // 3 for i in range(4)]
        for i, (_, client) in enumerate(found):
            await client.execute_command("CLUSTER ADDSLOTSRANGE", edges[i], edges[i + 1] - 1)
        for (port, _), bus in zip(found, buses, strict=True):
            await found[0][1].execute_command("CLUSTER MEET", "127.0.0.1", port, bus)

        async def is_whole() -> bool:
            infos = [await client.execute_command("CLUSTER INFO") for _, client in found]
            return all(
                info["cluster_state"] == "ok" and info["cluster_known_nodes"] == "3"
                for info in map(read, infos)
            )

        await until_true(is_whole, 30)
        yield found


def read(info: object) -> dict[str, str]:
    if isinstance(info, dict):
        return info
    return dict(line.split(":", 1) for line in bytes(info).decode().split())  # type: ignore[call-overload]


def make_certificates(folder: Path, name: str = "IP:127.0.0.1") -> None:
    """A temporary authority `ca.crt`, and its certificate `redis.crt` for a server of that name."""
    (folder / "names").write_text(f"subjectAltName={name}\nextendedKeyUsage=serverAuth\n")
    new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    for arguments in (
        (*new, "-x509", "-days", "2", "-subj", "/CN=test authority", "-keyout", "ca.key", "-out", "ca.crt"),
        (*new, "-subj", "/CN=redis", "-keyout", "redis.key", "-out", "redis.csr"),
        (
            *("x509", "-req", "-in", "redis.csr", "-CA", "ca.crt", "-CAkey", "ca.key", "-CAcreateserial"),
            *("-days", "2", "-extfile", "names", "-out", "redis.crt"),
        ),
    ):
        subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True, timeout=30)


@asynccontextmanager
async def tls_front(folder: Path, socket_path: str, *, asks: bool = False) -> AsyncIterator[int]:
    """A port that speaks TLS with the certificate of `make_certificates` and passes all on to a socket.

    With `asks`, it wants a certificate of the client.
    """
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=folder / "ca.crt")
    context.load_cert_chain(folder / "redis.crt", folder / "redis.key")
    if asks:
        context.verify_mode = ssl.CERT_REQUIRED

    async def pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError):
            while part := await reader.read(2**16):
                writer.write(part)
                await writer.drain()
        writer.close()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        back_reader, back_writer = await asyncio.open_unix_connection(socket_path)
        await asyncio.gather(pipe(reader, back_writer), pipe(back_reader, writer))

    server = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
