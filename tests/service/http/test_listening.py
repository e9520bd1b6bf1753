"""Where the server listens, with real sockets, and what it says if it cannot."""

import socket

import pytest

from service.errors import GlyphrecError
from service.http.listening import listen, tcp_sockets, unix_socket

HERE = "127.0.0.1"


def has_ipv6():
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


needs_ipv6 = pytest.mark.skipif(
    not has_ipv6(), reason="no IPv6. Enable it: sysctl net.ipv6.conf.lo.disable_ipv6=0"
)


def answers(host, port):
    try:
        socket.create_connection((host, port), timeout=5).close()
    except ConnectionRefusedError:
        return False
    return True


def test_nobody_connects_before_it_listens():
    with tcp_sockets(HERE, 0) as sockets:
        port = sockets[0].getsockname()[1]
        assert not answers(HERE, port)
        assert listen(sockets) == f"http://{HERE}:{port}"
        assert answers(HERE, port)
    assert not answers(HERE, port)


@needs_ipv6
@pytest.mark.parametrize("host", ["::", "[::]"])
def test_two_colons_stand_for_all_addresses_of_both_kinds(host):
    with tcp_sockets(host, 0) as sockets:
        port = sockets[0].getsockname()[1]
        assert listen(sockets) == f"http://[::]:{port} (IPv6 and IPv4)"
        assert answers("::1", port)
        assert answers(HERE, port)


@needs_ipv6
def test_one_address_of_ipv6_is_that_address_alone():
    with tcp_sockets("[::1]", 0) as sockets:
        port = sockets[0].getsockname()[1]
        assert listen(sockets) == f"http://[::1]:{port}"
        assert answers("::1", port)
        assert not answers(HERE, port)


def test_a_name_is_served_at_each_of_its_addresses_that_this_machine_has():
    with tcp_sockets("localhost", 0) as sockets:
        assert len({each.getsockname()[1] for each in sockets}) == 1
        listen(sockets)
        assert answers("localhost", sockets[0].getsockname()[1])


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("no-such-host.invalid", "is no address of this machine"),
        ("a" * 80, "is no address of this machine"),
        ("a..b", "is no address of this machine"),
        ("203.0.113.1", "http://203.0.113.1:0: cannot assign requested address"),  # of RFC 5737
    ],
)
def test_a_host_that_is_not_here_is_one_error(host, words):
    with pytest.raises(GlyphrecError, match=words), tcp_sockets(host, 0):
        pass


def test_a_port_that_is_taken_is_one_error():
    with tcp_sockets(HERE, 0) as first:
        port = first[0].getsockname()[1]
        with tcp_sockets(HERE, port) as second:  # two that start at once may both bind
            listen(first)
            with pytest.raises(GlyphrecError, match=f"{port}: address already in use"):
                listen(second)
        with pytest.raises(GlyphrecError, match=f"{port}: address already in use"), tcp_sockets(HERE, port):
            pass


def test_a_unix_socket_is_there_for_everybody_and_gone_at_the_end(tmp_path):
    path = tmp_path / "socket"
    with unix_socket(path) as sockets:
        assert listen(sockets) == f"unix:{path}"
        assert path.stat().st_mode & 0o777 == 0o666
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert not path.exists()


def test_a_unix_socket_that_a_killed_server_left_is_replaced(tmp_path):
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as killed:
        killed.bind(str(path))
        killed.listen()
    assert path.exists()
    with unix_socket(path) as sockets:
        listen(sockets)


def test_a_unix_socket_on_which_a_server_listens_is_left_alone(tmp_path):
    path = tmp_path / "socket"
    with unix_socket(path) as sockets:
        listen(sockets)
        with pytest.raises(GlyphrecError, match="address already in use"), unix_socket(path):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


def test_the_end_of_a_server_leaves_the_socket_of_its_successor(tmp_path):
    path = tmp_path / "socket"
    with unix_socket(path):
        path.unlink()
        path.touch()
    assert path.exists()


@pytest.mark.parametrize("name", ["no/such/folder", "x" * 200, "file"])
def test_a_unix_socket_that_cannot_be_made_is_one_error(tmp_path, name):
    (tmp_path / "file").write_text("of somebody")
    with (
        pytest.raises(GlyphrecError, match=f"Cannot listen on {tmp_path}/{name}: "),
        unix_socket(tmp_path / name),
    ):
        pass
    assert (tmp_path / "file").read_text() == "of somebody"
