"""Clients that make a connection for each request, so every worker gets some, and a stop meets new ones."""

import socket
import threading

import httpx


class Reconnecting:
    """A client that makes a connection for each request, and goes on until none is taken any more."""

    def __init__(self, url, key=""):
        self.num_answered, self.lost = 0, []
        self._key_line = f"X-API-Key: {key}\r\n".encode() if key else b""
        self._address = (httpx.URL(url).host, httpx.URL(url).port)
        self.thread = threading.Thread(target=self._call)
        self.thread.start()

    def _call(self):
        body = b'{"history": ["item-0"]}'
        request = (
            b"POST /recommend HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d"
        )
        request = request % len(body) + b"\r\n" + self._key_line + b"\r\n" + body
        while True:
            with socket.socket() as client:
                client.settimeout(30)
                try:
                    client.connect(self._address)
                except (ConnectionRefusedError, ConnectionResetError):
                    return  # nothing was sent; a reset came amid the handshake with a socket that closed
                try:
                    client.sendall(request)
                    answer = client.recv(65_536)
                except OSError as error:
                    answer = repr(error).encode()
                if answer.startswith((b"HTTP/1.1 200", b"HTTP/1.1 429")):
                    self.num_answered += 1
                else:
                    self.lost.append(answer)
