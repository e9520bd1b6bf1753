"""A program that answers in place of a service, over a real socket, with the answers it was told."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import NamedTuple


class Asked(NamedTuple):
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes


class Other:
    """A program that gives every request the next of its answers, and the last one from then on.

    An answer of None closes the connection without a word.
    """

    def __init__(self, *answers: tuple[int, dict[str, str], bytes] | None) -> None:
        self.answers = list(answers)
        self.requests: list[Asked] = []
        self.url = ""

    @property
    def asked(self) -> list[str]:
        """The paths of all requests."""
        return [each.path for each in self.requests]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        body = handler.rfile.read(int(handler.headers.get("Content-Length", 0)))
        headers = {name.lower(): value for name, value in handler.headers.items()}
        self.requests.append(Asked(handler.command, handler.path, headers, body))
        told = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if told is None:
            handler.close_connection = True
            return
        status, headers, body = told
        handler.send_response_only(status)
        for name, value in ({"Content-Length": str(len(body))} | headers).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body)


@contextmanager
def running(other: Other) -> Iterator[Other]:
    """The program at work; `url` of it tells where."""

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            other.answer(self)

        do_GET = do_PUT = do_PATCH = do_DELETE = do_POST  # noqa: N815  names of http.server

        def log_message(self, *_: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        other.url = f"http://127.0.0.1:{server.server_port}"
        yield other
        server.shutdown()
