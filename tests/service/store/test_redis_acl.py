"""The user of Redis that the documents describe may do all that the service does, and nothing beside it."""

import asyncio
import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from redis.asyncio import Redis
from redis.exceptions import NoPermissionError

from model_export.local_service import free_port
from service.cli import main
from service.core.co_counts import CoCountSpec, CoRow
from service.store.records import RedisKeys
from tests.house import ROOT
from tests.known_bundle import KNOWN_ITEMS, PICTURES, tokenizer_id_of, write_known_bundle
from tests.service.catalogs import until, until_true
from tests.service.core.photos import photo
from tests.service.redis_nodes import cluster, node
from tests.service.running import running, starting

USER, PASSWORD, KEY = "glyphrec", "a-long-password", "an-admin-key-of-this-test"


def documented(*, on_a_cluster: bool = False) -> list[str]:
    """The rules of the line in docs/reliability.md."""
    text = (ROOT / "docs/reliability.md").read_text(encoding="utf-8")
    lines = [part.replace("\\\n", " ").split() for part in re.findall(r"ACL SETUSER [^`]+", text)]
    (user,) = (line[2:] for line in lines if line[2] == USER and "on" in line)
    (cluster,) = (line[2:] for line in lines if line[2] == USER and "on" not in line)
    rules = [rule.replace("PASSWORD", PASSWORD) for rule in user[1:]]
    return rules + cluster[1:] if on_a_cluster else rules


# The command behind a method of redis-py, where it has another name.
COMMANDS = {
    **{"delete": "del", "scan_iter": "scan", "xinfo_stream": "xinfo|stream", "script_load": "script|load"},
    **{"config_get": "config|get", "memory_usage": "memory|usage", "client_setname": "client|setname"},
}
NO_COMMANDS = {"aclose", "execute", "execute_command", "get_node_from_key", "pipeline"}


def test_the_documented_user_has_each_command_that_the_store_names() -> None:
    """In Lua and in Python, also where no test comes by."""
    store = ROOT / "service/store"
    lua = "".join(path.read_text() for path in (store / "lua").glob("*.lua"))
    python = "".join(path.read_text() for path in store.rglob("*.py"))
    called = set(re.findall(r"\b(?:_redis|redis|pipe|pipeline)\.([a-z_]+)\(", python)) - NO_COMMANDS
    named = {COMMANDS.get(each, each) for each in called}
    named |= {each.lower() for each in re.findall(r"redis\.call\('([A-Z]+)'", lua)} - {"xinfo"}
    allowed = {rule.removeprefix("+") for rule in documented() if rule.startswith("+")}
    assert named <= allowed, named - allowed
    # What remains is of connections, transactions and scripts, and what is given as text.
    assert allowed - named <= {
        "select",
        "evalsha",
        "multi",
        "exec",
        "client|setinfo",
        "xinfo|stream",
        "hexists",
    }


@asynccontextmanager
async def redis_with(folder: Path, rules: list[str]) -> AsyncIterator[tuple[Redis, str]]:
    """A server whose default user may do nothing, a client of the administrator, and a URL of the user."""
    port = free_port()
    admin = Redis(host="127.0.0.1", port=port, username="admin", password=PASSWORD, protocol=2)
    options = ("--user", "admin", "on", f">{PASSWORD}", "~*", "&*", "+@all", "--user", "default", "off")
    async with node(folder, port, *options, client=admin):
        await admin.execute_command("ACL", "SETUSER", USER, "reset", *rules)
        yield admin, f"redis://{USER}:{PASSWORD}@127.0.0.1:{port}"


async def denied(admin: Redis) -> set[str]:
    """What Redis refused, by the name of the command or key."""
    found = await admin.execute_command("ACL", "LOG", "100")
    entries = [row if isinstance(row, dict) else dict(zip(row[::2], row[1::2], strict=True)) for row in found]
    return {(entry.get("object") or entry.get(b"object")).decode() for entry in entries}


async def use_everything(one: httpx.AsyncClient, two: httpx.AsyncClient, admin: Redis) -> None:
    """Items, pages, events and a change of the model, on two replicas."""
    for client in (one, two):
        client.headers["X-API-Key"] = KEY
    item = {"item_id": "a", "title": "Thing"}
    created = await one.post("/items", json=item)
    assert created.json()["items"][0]["status"] == "created"
    assert (await two.patch("/items/a", json={"price": 3})).status_code == 200
    headers = {"Content-Type": "image/png"}
    assert (await one.put("/items/a/image", content=photo(1, "PNG"), headers=headers)).status_code == 200
    assert (await two.get("/items/a/image", params={"part": "kept"})).status_code == 200
    pictures = (await one.get("/info")).json()["pictures"]
    assert pictures["kept"] == 1
    assert pictures["kept_bytes"] > 0
    assert (await two.get("/items", params={"limit": 1_000})).status_code == 200
    page = await one.post("/recommend", json={"history": ["item-0"]})
    event = {"event_id": "e", "request_id": page.headers["x-request-id"], "item_id": "item-1"}
    assert (await two.post("/events", json={"events": [event]})).status_code == 202

    async def is_learned() -> bool:
        return "glyphrec_learned_events_total 1.0" in (await one.get("/metrics")).text

    await until_true(is_learned)
    assert (await one.post("/admin/bundles", json={"bundle": "new"})).status_code == 202

    async def is_switched() -> bool:
        infos = [(await each.get("/info")).json() for each in (one, two)]
        has_old = await admin.exists(RedisKeys.of("glyphrec", tokenizer_id_of(0)).codes)
        return {info["tokenizer_id"] for info in infos} == {tokenizer_id_of(1)} and not has_old

    await until_true(is_switched, 30)
    assert (await one.delete("/items/a")).status_code == 200


@pytest.mark.slow
async def test_the_documented_user_may_do_all_that_the_service_and_its_commands_do(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundles = tmp_path / "bundles"
    counts = {
        "pictures": PICTURES,
        "co_counts": CoCountSpec(),
        "rows": [CoRow(f"item-{n}", 1.0, {}) for n in range(3)],
    }
    write_known_bundle(bundles / "old", KNOWN_ITEMS, **counts)
    write_known_bundle(bundles / "new", KNOWN_ITEMS[:10], reader=1, **counts)
    settings = {"bundles_dir": bundles, "admin_keys": (KEY,), "keep_old_codes_s": 0}
    async with redis_with(tmp_path / "redis", documented()) as (admin, url):
        old = bundles / "old"
        async with running(old, url, **settings) as one, running(old, url, **settings) as two:
            await use_everything(one, two, admin)
        line = {"item_id": "b", "item": {"item_id": "b", "title": "B"}, "codes": [1, 2, 2]}
        (lines := tmp_path / "items.jsonl").write_text(json.dumps(line | {"slot": 0, "popularity": 0}))
        new = ("--redis-url", url, "--bundle", str(bundles / "new"))
        assert await asyncio.to_thread(main, ["import", str(lines), "--tokenized", *new]) == 0
        await admin.delete(RedisKeys.of("glyphrec", tokenizer_id_of(1)).trie)
        await admin.hset(RedisKeys.of("glyphrec", "").pictures, "nobody", b"x")
        assert await asyncio.to_thread(main, ["fsck", "--repair", *new]) == 1
        assert await asyncio.to_thread(main, ["fsck", *new]) == 0, capsys.readouterr().out
        assert await denied(admin) == set()

        user = Redis.from_url(url, protocol=2)
        for command in (
            ("KEYS", "*"),
            ("FLUSHALL",),
            ("GET", "of-another-program"),
            ("CONFIG", "SET", "a", "b"),
        ):
            with pytest.raises(NoPermissionError):
                await user.execute_command(*command)
        await user.aclose()


@pytest.mark.slow
async def test_the_documented_user_may_do_all_on_a_cluster_too(bundle: Path, tmp_path: Path) -> None:
    async with cluster(tmp_path) as nodes:
        for _, admin in nodes:
            await admin.execute_command("ACL", "SETUSER", USER, "reset", *documented(on_a_cluster=True))
        url = f"redis://{USER}:{PASSWORD}@127.0.0.1:{nodes[0][0]}"
        async with running(bundle, url) as client:
            posted = await client.post("/items", json={"item_id": "a", "title": "Thing"})
            assert posted.json()["items"][0]["status"] == "created"
            assert (await client.delete("/items/a")).status_code == 200
        assert await asyncio.to_thread(main, ["fsck", "--redis-url", url, "--bundle", str(bundle)]) == 0
        assert set.union(*[await denied(admin) for _, admin in nodes]) == set()


async def test_a_user_who_may_not_name_clients_or_read_settings_serves_all_the_same(
    bundle: Path, tmp_path: Path
) -> None:
    rules = [*documented(), "-client", "-client|setname", "-config|get"]
    async with redis_with(tmp_path / "redis", rules) as (admin, url):
        async with running(bundle, url) as client:
            posted = await client.post("/items", json={"item_id": "a", "title": "Thing"})
            assert posted.json()["items"][0]["status"] == "created"
            assert (await client.get("/info")).json()["redis"]["append_fsync"] == "unknown"
        assert await denied(admin) <= {"client|setname", "config|get"}


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ("-info", "the command INFO "),
        ("-evalsha", "the command EVALSHA "),
        ("-script|load", "the command SCRIPT LOAD "),
        ("-hset", "the command HSET "),  # inside a script
        ("resetkeys", "the keys of the catalog "),
    ],
)
async def test_the_phase_names_what_redis_refused(bundle: Path, tmp_path: Path, rule: str, said: str) -> None:
    async with (
        redis_with(tmp_path / "redis", [*documented(), rule]) as (admin, url),
        starting(bundle, url) as (app, client),
    ):
        readiness = app.state.service.readiness
        await until(lambda: said in readiness.phase)
        answer = await client.get("/health/ready")
        assert answer.status_code == 503
        assert "docs/reliability.md" in answer.json()["phase"]
        assert USER not in answer.text.replace("glyphrec:problem", "")
        # When the user may, the start goes on.
        await admin.execute_command("ACL", "SETUSER", USER, "reset", *documented())
        await until(lambda: readiness.model is not None)
