"""The sockets that the server listens on: TCP over IPv4, IPv6 or both, or a socket of the file system."""

import ctypes
import errno
import os
import socket
import stat
import struct
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from service.core.addresses import LOOPBACK_OF, plain_host, url_of
from service.errors import GlyphrecError

BACKLOG = 2_048  # connections that the kernel holds until the event loop takes them
ATTACH_FILTER = 26  # SO_ATTACH_FILTER of socket(7), which Python has no name for
# Drops the packets that begin a connection of TCP: load the flags, drop if SYN is set, else take the packet.
# Code, jumps if true and if not, value: https://docs.kernel.org/networking/filter.html
ALL_BUT_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 0x02), (0x06, 0, 0, 0), (0x06, 0, 0, 0xFFFF_FFFF))
EVERY_IPV6 = "::"
ANYBODY = 0o666  # on this machine, as with a loopback address; the folder may say otherwise


@contextmanager
def tcp_sockets(host: str, port: int, *, is_shared: bool = False) -> Iterator[list[socket.socket]]:
    """Bound sockets, one for each address of `host`; not listening yet. Port 0 takes a free one for all.

    `::` stands for all addresses, of IPv4 too. With `is_shared`, other processes of the same user may listen
    there too, and the kernel deals connections out among those that do. Raises GlyphrecError.
    """
    host = plain_host(host)
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError) as error:  # UnicodeError: no name of a host can have this form
        raise GlyphrecError(f"GLYPHREC_HOST {host!r} is no address of this machine: {error}") from None
    sockets: list[socket.socket] = []
    absent: list[OSError] = []
    try:
        for family, address in dict.fromkeys((family, address) for family, *_, address in found):
            try:
                where = (address[0], port, *address[2:])
                sockets.append(_bound(family, where, is_dual=host == EVERY_IPV6, is_shared=is_shared))
                port = sockets[0].getsockname()[1]
            except OSError as error:
                if error.errno not in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):  # as ::1 without IPv6
                    raise _cannot_listen(url_of(host, port), error) from None
                absent.append(error)
        if not sockets:
            raise _cannot_listen(url_of(host, port), absent[0]) from None
        yield sockets
    finally:
        for each in sockets:
            each.close()


@contextmanager
def shared_port(host: str, port: int) -> Iterator[int]:
    """Keeps a port for `tcp_sockets(…, is_shared=True)` of this service's processes -> the port.

    Another service of the same user could share it unseen, and each would get a part of the requests. So it
    must be free at first, and a name that only one process can have stands for it from then on. Raises
    GlyphrecError.
    """
    with tcp_sockets(host, port) as sockets:
        port = sockets[0].getsockname()[1]
    with tcp_sockets(host, port, is_shared=True) as sockets, ExitStack() as names:
        for each in sockets:
            name = names.enter_context(socket.socket(socket.AF_UNIX))
            try:
                name.bind(
                    f"\0glyphrec {each.getsockname()[:2]}"
                )  # gone with the process; see unix(7), abstract
            except OSError as error:
                raise _cannot_listen(_shown(each), error) from None
        yield port


@contextmanager
def unix_socket(path: Path) -> Iterator[list[socket.socket]]:
    """A bound socket in the file system; not listening yet. The file is removed at the end.

    A file that a killed server left is replaced. Raises GlyphrecError if a server still listens on it.
    """
    server = socket.socket(socket.AF_UNIX)
    try:
        _remove_stale(path)
        server.bind(str(path))
        path.chmod(ANYBODY)
        inode = path.stat().st_ino
    except OSError as error:
        server.close()
        raise _cannot_listen(str(path), error) from None
    try:
        yield [server]
    finally:
        server.close()
        with suppress(OSError):
            if path.stat().st_ino == inode:  # it may be another server's by now
                path.unlink()


def listen(sockets: list[socket.socket]) -> str:
    """Let clients connect -> where, for the log. Raises GlyphrecError if another server was faster."""
    for each in sockets:
        try:
            each.listen(BACKLOG)
        except OSError as error:
            raise _cannot_listen(_shown(each), error) from None
    return ", ".join(map(_shown, sockets))


def drop_new(sockets: list[socket.socket]) -> None:
    """Let the kernel make no further connection. Those that it has made can still be taken.

    The kernel resets connections that nobody has taken when their socket is closed. So this comes first. A
    client that tries to connect hears nothing, and once the socket is closed that nobody listens.
    """
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *each) for each in ALL_BUT_SYN))
    option = struct.pack("HP", len(ALL_BUT_SYN), ctypes.addressof(program))
    for each in sockets:
        each.listen(0)  # where there are no filters, the kernel still makes one connection
        if sys.platform == "linux" and each.family in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # a sandbox may forbid them
                each.setsockopt(socket.SOL_SOCKET, ATTACH_FILTER, option)


def _bound(family: int, address: tuple[object, ...], *, is_dual: bool, is_shared: bool) -> socket.socket:
    server = socket.socket(family, socket.SOCK_STREAM)
    try:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if is_shared:
            server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            is_dual = is_dual and socket.has_dualstack_ipv6()
            server.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, not is_dual)
        server.bind(address)
    except OSError:
        server.close()
        raise
    return server


def _remove_stale(path: Path) -> None:
    with suppress(FileNotFoundError):
        if not stat.S_ISSOCK(path.stat().st_mode):
            raise OSError(errno.EEXIST, "a file of another kind is there")
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(1)
            try:
                client.connect(str(path))
            except ConnectionRefusedError:
                path.unlink()
            else:
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))


def _shown(server: socket.socket) -> str:
    name = server.getsockname()
    if server.family == socket.AF_UNIX:
        return f"unix:{name}"
    is_dual = server.family == socket.AF_INET6 and not server.getsockopt(
        socket.IPPROTO_IPV6, socket.IPV6_V6ONLY
    )
    return url_of(name[0], name[1]) + (" (IPv6 and IPv4)" if is_dual and name[0] in LOOPBACK_OF else "")


def _cannot_listen(where: str, error: OSError) -> GlyphrecError:
    return GlyphrecError(
        f"Cannot listen on {where}: {(error.strerror or str(error)).lower()}. Give another address, or end "
        "the process that has it."
    )
