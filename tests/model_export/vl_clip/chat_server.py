"""A real HTTP server on this machine that answers like one of the OpenAI chat protocol."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Reply:
    """What the server sends."""

    text: str | bytes = ""  # str: the answer of the model; bytes: the whole body as it is
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    delay_s: float = 0.0
    tokens: int | None = 10


@dataclass
class ChatServer:
    """A running server and what it was asked."""

    url: str
    asked: list[dict[str, Any]] = field(default_factory=list)
    keys: list[str | None] = field(default_factory=list)
    most_at_once: int = 0

    def prompts(self) -> list[str]:
        return [body["messages"][0]["content"][0]["text"] for body in self.asked]


@contextmanager
def chat_server(answer: Callable[[dict[str, Any], int], Reply]) -> Iterator[ChatServer]:
    """Serve answers of `answer`, which gets the question and its number, from 0."""
    lock, at_once = threading.Lock(), 0

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            nonlocal at_once
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            with lock:
                number = len(found.asked)
                found.asked.append(body)
                found.keys.append(self.headers.get("Authorization"))
                at_once += 1
                found.most_at_once = max(found.most_at_once, at_once)
            try:
                reply = answer(body, number) if self.path == "/v1/chat/completions" else Reply(status=404)
                time.sleep(reply.delay_s)
                self._send(reply)
            except (BrokenPipeError, ConnectionResetError):  # the client did not wait
                pass
            finally:
                with lock:
                    at_once -= 1

        def _send(self, reply: Reply) -> None:
            content = reply.text
            if isinstance(content, str):
                message = {"choices": [{"message": {"role": "assistant", "content": content}}]}
                usage = {} if reply.tokens is None else {"usage": {"total_tokens": reply.tokens}}
                content = json.dumps(message | usage).encode()
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            """Say nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    found = ChatServer(f"http://127.0.0.1:{server.server_port}/v1")
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
