"""What is at the other end of REDIS_URL: what can never be a Redis of ours ends the start with a line."""

import asyncio
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from urllib.parse import unquote

import pytest
from redis.asyncio import Redis

from model_export.local_service import free_port
from service.store.server import find_server_binary
from tests.service.catalogs import until
from tests.service.processes import finished
from tests.service.redis_nodes import cluster, make_certificates, node, tls_front
from tests.service.running import running, starting

pytestmark = pytest.mark.slow

needs_openssl = pytest.mark.skipif(not shutil.which("openssl"), reason="no openssl. apt install openssl")


@pytest.fixture
async def sentinel(tmp_path: Path) -> AsyncIterator[int]:
    """The port of a Sentinel."""
    port = free_port()
    (tmp_path / "sentinel.conf").write_text(f"port {port}\nbind 127.0.0.1\ndir {tmp_path}\n")
    process = subprocess.Popen(
        [find_server_binary(), tmp_path / "sentinel.conf", "--sentinel"], stdout=subprocess.DEVNULL
    )
    client = Redis(host="127.0.0.1", port=port, protocol=2)
    try:
        await until(lambda: answers(port))
        yield port
    finally:
        await client.aclose()
        process.kill()
        process.wait()


def answers(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


async def ended(bundle: Path, url: str) -> str:
    """What `glyphrec serve` says, which ends by itself."""
    status, out, err = await asyncio.to_thread(
        finished, "serve", "--bundle", bundle, "--port", "0", REDIS_URL=url
    )
    assert (status, out) == (2, "")
    assert "Traceback" not in err
    return str(err.splitlines()[-1])


@pytest.mark.parametrize("database", ["", "/0", "/1"])
async def test_the_port_of_a_sentinel_ends_the_start(bundle: Path, sentinel: int, database: str) -> None:
    line = await ended(bundle, f"redis://127.0.0.1:{sentinel}{database}")
    assert line.startswith(
        "glyphrec: REDIS_URL: leads to a Sentinel, which holds no data. Give the address of"
    )


async def test_a_database_that_the_server_does_not_have_ends_the_start(bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    async with node(tmp_path, port, "--databases", "2"):
        async with running(bundle, f"redis://127.0.0.1:{port}/1") as client:
            assert (await client.post("/items", json={"item_id": "a", "title": "A"})).is_success
        line = await ended(bundle, f"redis://127.0.0.1:{port}/2")
    assert "REDIS_URL: this Redis has no database of that number." in line


async def test_a_number_of_a_database_on_a_cluster_ends_the_start(bundle: Path, tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes:
        line = await ended(bundle, f"redis://127.0.0.1:{nodes[0][0]}/1")
    assert "REDIS_URL: a Redis Cluster has the database 0 alone. Leave the number out." in line


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("rediss://h?ssl_ca_certs=/nowhere/ca.crt", "REDIS_URL: ?ssl_ca_certs=: No such file or directory"),
        ("redis://h?decode_responses=true", "REDIS_URL: ?decode_responses= is none of its options"),
        ("redis+sentinel://h/mymaster", "REDIS_URL: Sentinel is not spoken"),
        ("redis://:se#cret@h", "REDIS_URL: has a space or a # in it"),
    ],
)
async def test_a_url_that_cannot_be_right_is_one_line_for_every_command(
    bundle: Path, url: str, said: str
) -> None:
    assert said in await ended(bundle, url)
    status, _, err = await asyncio.to_thread(finished, "fsck", "--bundle", bundle, REDIS_URL=url)
    assert status == 2
    assert err.startswith(f"glyphrec: {said}")
    assert "cret" not in err


@needs_openssl
@pytest.mark.parametrize(
    ("name", "options", "asks", "said"),
    [
        ("IP:127.0.0.1", "?ssl_ca_certs={}/ca.crt", False, ""),
        (
            "DNS:redis.example",
            "?ssl_ca_certs={}/ca.crt",
            False,
            "certificate is for another name than the host",
        ),
        ("DNS:redis.example", "?ssl_ca_certs={}/ca.crt&ssl_check_hostname=false", False, ""),
        ("IP:127.0.0.1", "", False, "is not trusted. Name its authority with ?ssl_ca_certs="),
        ("IP:127.0.0.1", "?ssl_cert_reqs=none", False, ""),
        (
            "IP:127.0.0.1",
            "?ssl_ca_certs={0}/ca.crt&ssl_certfile={0}/ca.crt&ssl_keyfile={0}/ca.key",
            True,
            "",
        ),
    ],
)
async def test_each_problem_of_tls_has_its_own_advice(
    bundle: Path, redis_url: str, tmp_path: Path, name: str, options: str, asks: bool, said: str
) -> None:
    make_certificates(tmp_path, name)
    async with tls_front(tmp_path, unquote(redis_url.removeprefix("unix://")), asks=asks) as port:
        url = f"rediss://127.0.0.1:{port}{options.format(tmp_path)}"
        if not said:
            async with running(bundle, url) as client:
                assert (await client.post("/items", json={"item_id": "a", "title": "A"})).is_success
            return
        async with starting(bundle, url) as (app, _):
            await until(lambda: said in app.state.service.readiness.phase)


async def test_tls_spoken_to_a_port_that_answers_without_it_is_told_as_that(bundle: Path) -> None:
    """A Redis answers the greeting of TLS like this if its random bytes hold the end of a line."""

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"-ERR unknown command\r\n")
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    async with starting(bundle, f"rediss://127.0.0.1:{port}") as (app, _):
        await until(lambda: "does not speak TLS" in app.state.service.readiness.phase)
    server.close()


def address_of_this_machine() -> str | None:
    """One that other machines may use, too. No packet is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            return None
        found: str = probe.getsockname()[0]
        return None if found.startswith("127.") else found


async def test_a_redis_that_keeps_others_out_says_why(bundle: Path, tmp_path: Path) -> None:
    address = address_of_this_machine()
    if address is None:
        pytest.skip("this machine has no address but loopback")
    port = free_port()
    async with (
        node(tmp_path, port, "--bind", "0.0.0.0", "--protected-mode", "yes") as redis,
        starting(bundle, f"redis://{address}:{port}") as (app, _),
    ):
        readiness = app.state.service.readiness
        await until(lambda: "protected mode" in readiness.phase)
        await redis.config_set("protected-mode", "no")
        await until(lambda: readiness.model is not None)


async def test_a_redis_with_too_many_clients_says_so(bundle: Path, tmp_path: Path) -> None:
    port = free_port()
    async with node(tmp_path, port) as redis:
        await redis.config_set("maxclients", 1)
        async with starting(bundle, f"redis://127.0.0.1:{port}") as (app, _):
            readiness = app.state.service.readiness
            await until(lambda: "as many clients as its maxclients allows" in readiness.phase)
            await redis.config_set("maxclients", 100)
            await until(lambda: readiness.model is not None)
