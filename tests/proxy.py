"""A network between a service and Redis that a test can cut, freeze and mend."""

import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Self


class Proxy:
    """Listens on a TCP port of this machine and passes everything on to a unix socket or another port.

    `change` may replace bytes on their way, in either direction.
    """

    def __init__(self, target: str | int, change: Callable[[bytes], bytes] = bytes) -> None:
        self.target = target
        self._change = change
        self._listener: socket.socket | None = None
        self._port = 0
        self._pairs: set[socket.socket] = set()
        self._flows = threading.Event()
        self._flows.set()

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self._port}"

    def __enter__(self) -> Self:
        self.mend()
        return self

    def __exit__(self, *_: object) -> None:
        self._flows.set()
        self.cut()

    def cut(self) -> None:
        """End every connection and refuse new ones."""
        if self._listener is not None:
            self._listener.shutdown(socket.SHUT_RDWR)  # which wakes the thread that accepts
            self._listener.close()
            self._listener = None
        for each in list(self._pairs):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)

    def freeze(self) -> None:
        """Connections stay and new ones are taken, but nothing comes through: as if packets were lost."""
        self._flows.clear()

    def mend(self) -> None:
        self._flows.set()
        if self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port))
            self._port = self._listener.getsockname()[1]
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            is_port = isinstance(self.target, int)
            server = socket.socket(socket.AF_INET if is_port else socket.AF_UNIX)
            try:
                server.connect(("127.0.0.1", self.target) if is_port else self.target)
            except OSError:
                client.close()
                server.close()
                continue
            self._pairs |= {client, server}
            for source, sink in ((client, server), (server, client)):
                threading.Thread(target=self._pass_on, args=(source, sink), daemon=True).start()

    def _pass_on(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65_536):
                self._flows.wait()
                sink.sendall(self._change(data))
        for each in (source, sink):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        with suppress(OSError):
            source.close()
        self._pairs.discard(source)
