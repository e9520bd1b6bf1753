"""Addresses as people write them."""

import pytest

from service.core.addresses import is_loopback, own_address, plain_host, url_of


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.8.8.8",
        "::1",
        "[::1]",
        "0:0:0:0:0:0:0:1",
        "::ffff:127.0.0.1",
        "localhost",
        "LocalHost",
    ],
)
def test_only_this_machine_reaches_a_loopback_address(host):
    assert is_loopback(host)


@pytest.mark.parametrize(
    "host",
    [
        "0.0.0.0",
        "::",
        "[::]",
        "10.1.2.3",
        "::ffff:10.1.2.3",
        "fe80::1%eth0",
        "localhost.example.org",
        "127",
        "",
    ],
)
def test_others_reach_any_other_address(host):
    assert not is_loopback(host)


def test_brackets_belong_to_urls_and_not_to_addresses():
    assert [plain_host(host) for host in ("[::1]", "::1", "example.org")] == ["::1", "::1", "example.org"]
    assert [url_of(host, 80) for host in ("::1", "10.1.2.3")] == ["http://[::1]:80", "http://10.1.2.3:80"]


@pytest.mark.parametrize(
    ("host", "own"), [("0.0.0.0", "127.0.0.1"), ("::", "::1"), ("[::]", "::1"), ("10.1.2.3", "10.1.2.3")]
)
def test_a_server_on_all_addresses_is_reached_by_the_loopback_address(host, own):
    assert own_address(host) == own
