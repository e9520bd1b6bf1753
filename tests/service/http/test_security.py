"""Keys and scopes, over a whole service."""

import pytest

from service.cli import main
from service.core.keys import hash_of, holds, new_key
from tests.service.running import is_problem, running

READ, WRITE, ADMIN = (f"a-key-of-the-scope-{name}" for name in ("read", "write", "admin"))
ALL = {"read_keys": (READ,), "api_keys": (WRITE,), "admin_keys": (ADMIN,)}

OPEN_PATHS = ("/health/live", "/health/ready", "/livez", "/readyz", "/healthz", "/metrics", "/docs")
READS = (("GET", "/info"), ("GET", "/items"), ("POST", "/recommend"), ("GET", "/items/item-0"))
WRITES = (
    ("POST", "/items"),
    ("PATCH", "/items/item-1"),
    ("DELETE", "/items/item-2"),
    ("POST", "/events"),
)
ADMINS = (("GET", "/admin/nothing"), ("POST", "/admin/nothing"), ("GET", "/admin"))
BODY = {
    "POST /recommend": {"history": []},
    "POST /items": {"item_id": "a", "title": "x"},
    "POST /events": {"events": [{"event_id": "e", "request_id": "r", "item_id": "a"}]},
}


def by_key(key):
    return {"X-API-Key": key}


async def asked(client, method, path, headers):
    body = BODY.get(f"{method} {path}", {"brand": "y"} if method == "PATCH" else None)
    return await client.request(method, path, json=body, headers=headers)


async def test_each_scope_may_what_the_ones_before_it_may_and_no_more(bundle, redis_url):
    async with running(bundle, redis_url, **ALL) as client:
        for headers in (
            by_key(READ),
            {"Authorization": f"Bearer {READ}"},
            {"Authorization": f"bearer {READ}"},
        ):
            for method, path in READS:
                assert (await asked(client, method, path, headers)).status_code == 200
            for method, path in WRITES:
                assert is_problem(await asked(client, method, path, headers), 403, "read-only-key")
        for key in (READ, WRITE):
            for method, path in ADMINS:
                assert is_problem(await asked(client, method, path, by_key(key)), 403, "admin-key-needed")
        for method, path in (*READS, *WRITES):
            assert (await asked(client, method, path, by_key(WRITE))).is_success
        for method, path in (*READS, ("POST", "/items"), ("DELETE", "/items/item-3")):
            assert (await asked(client, method, path, by_key(ADMIN))).status_code == 200
        for method, path in ADMINS:  # past the guard: there is no such route
            assert is_problem(await asked(client, method, path, by_key(ADMIN)), 404, "no-such-route")


@pytest.mark.parametrize(
    "headers",
    [
        {},
        by_key(""),
        by_key("wrong"),
        by_key(hash_of(WRITE)),  # from somebody who reads the environment
        by_key(WRITE + " "),
        by_key(WRITE[:-1]),
        by_key("ключ".encode()),
        {"Authorization": "Basic " + WRITE},
        {"Authorization": WRITE},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {WRITE}"},
        {"Cookie": f"X-API-Key={WRITE}"},
    ],
)
async def test_without_a_known_key_all_but_probes_and_the_description_is_refused(bundle, redis_url, headers):
    hashes = {name: tuple(map(hash_of, keys)) for name, keys in ALL.items()}
    async with running(bundle, redis_url, **hashes) as client:
        for method, path in (*READS, *WRITES, *ADMINS, ("GET", "/nowhere")):
            response = await asked(client, method, path, headers)
            assert is_problem(response, 401, "missing-key")
            assert response.headers["www-authenticate"].startswith("Bearer")
        for path in OPEN_PATHS:
            assert (await client.get(path, headers=headers)).status_code == 200


async def test_an_old_and_a_new_key_are_good_at_once_while_clients_change_over(bundle, redis_url):
    old, new = new_key(), new_key()
    async with running(bundle, redis_url, api_keys=(old, hash_of(new))) as client:
        for key in (old, new):
            assert (await asked(client, "POST", "/items", by_key(key))).status_code == 200


@pytest.mark.parametrize("settings", [{}, {"allow_anonymous": True, "host": "0.0.0.0"}])
async def test_without_any_key_all_is_open_but_what_needs_an_admin(bundle, redis_url, settings):
    async with running(bundle, redis_url, **settings) as client:
        assert (await asked(client, "POST", "/items", {})).status_code == 200
        for method, path in ADMINS:
            refused = await asked(client, method, path, by_key(ADMIN))
            assert is_problem(refused, 403, "no-admin-key")
            assert "GLYPHREC_ADMIN_KEYS" in refused.json()["detail"]


async def test_with_keys_but_none_of_an_admin_the_setting_is_named_to_who_has_a_key(bundle, redis_url):
    async with running(bundle, redis_url, api_keys=(WRITE,)) as client:
        assert is_problem(await asked(client, "GET", "/admin/x", {}), 401, "missing-key")
        assert is_problem(await asked(client, "GET", "/admin/x", by_key(WRITE)), 403, "no-admin-key")


@pytest.mark.parametrize("path", ["/health/../items/item-0", "/docs/../items/item-0", "/docs//../info"])
async def test_a_path_that_only_begins_like_an_open_one_leads_nowhere(bundle, redis_url, path):
    async with running(bundle, redis_url, **ALL) as client:
        raw = path.replace("..", "%2e%2e")  # or the client resolves it
        assert is_problem(await client.get(raw), 404, "no-such-route")


def test_a_new_key_is_printed_with_its_hash_and_no_two_are_alike(capsys):
    seen = set()
    for _ in range(2):
        assert main(["key"]) == 0
        key, shown = (line.split()[1] for line in capsys.readouterr().out.splitlines())
        assert shown == hash_of(key)
        assert holds([hash_of("another"), shown], key)
        assert not holds([shown], shown)
        assert len(key) == 43
        seen.add(key)
    assert len(seen) == 2
