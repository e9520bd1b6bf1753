"""The least that a recommendation over HTTP costs in Python: a protocol on uvloop, and no service behind it.

It parses with httptools and decodes the body with msgspec, looks up the ids of the history, and joins ten
prepared items into an answer of the same size. There is no graph, no limit, no metric and no key.

python -m benchmarks.peers.floor PORT FILE     the answer is like the content of the file
"""

import asyncio
import sys
from pathlib import Path
from typing import cast

import httptools
import msgspec
import uvloop


class Asked(msgspec.Struct):
    history: list[str]
    limit: int = 10


class Floor(asyncio.Protocol):
    def __init__(self, answer: bytes) -> None:
        answered = msgspec.json.decode(answer)
        self._items = [msgspec.json.encode(each) for each in answered["items"]]
        self._after = msgspec.json.encode({**answered, "items": []}).partition(b"[]")[2]
        self._known = {each["item_id"]: place for place, each in enumerate(answered["items"])}
        self._decode = msgspec.json.Decoder(Asked).decode

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        self._parser = httptools.HttpRequestParser(self)
        self._body = b""

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_body(self, body: bytes) -> None:
        self._body += body

    def on_message_complete(self) -> None:
        asked, self._body = self._decode(self._body), b""
        places = list(map(self._known.get, asked.history))
        assert len(places) == len(asked.history)
        body = b'{"items":[' + b",".join(self._items) + b"]" + self._after
        head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
        self._transport.write(head % len(body) + body)


async def serve(port: int, answer: bytes) -> None:
    server = await asyncio.get_running_loop().create_server(lambda: Floor(answer), "127.0.0.1", port)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(serve(int(sys.argv[1]), Path(sys.argv[2]).read_bytes()))
