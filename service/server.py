"""The HTTP server around the app. It ends in three steps: readiness off, no new connections, last answers."""

import asyncio
import math
import signal
import socket
import time
from collections.abc import Callable
from functools import partial
from types import FrameType

import uvicorn
from fastapi import FastAPI

from service.api.dependencies import ServiceState
from service.http.connection import BoundedHttp
from service.http.connection_limit import ConnectionLimit
from service.http.listening import drop_new
from service.http.open_files import connections_within_files
from service.http.refusals import Refusals
from service.lifecycle.model import Readiness
from service.settings import Settings


def http_server(app: FastAPI, settings: Settings) -> "GracefulServer":
    """A server of an app that `create_app` made, ready to run on sockets that listen."""
    state: ServiceState = app.state.service
    config = uvicorn.Config(
        app,
        loop="uvloop",
        # uvicorn asks for a class and only calls it
        http=partial(  # type: ignore[arg-type]
            BoundedHttp,
            head_timeout_s=settings.head_timeout_s,
            keep_alive_s=settings.keep_alive_s,
            limit=ConnectionLimit(connections_within_files(settings.max_connections)),
            admit=state.admit,
            refusal=state.refusal,
            is_probe=state.policies.is_probe,
            metrics=state.metrics,
            refusals=Refusals(state.metrics),
            route_of=state.policies.route_of,
            is_stopping=lambda: state.readiness.is_stopping,
            shortcuts=state.shortcuts,
        ),
        ws="none",
        lifespan="on",
        workers=1,  # otherwise uvicorn parses WEB_CONCURRENCY, which some platforms set to a word
        proxy_headers=False,  # nothing here asks who the client is
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_keep_alive=math.ceil(settings.keep_alive_s),  # BoundedHttp closes idle connections before
        timeout_graceful_shutdown=settings.shutdown_timeout_s,
    )
    siblings = state.siblings
    is_one_socket = settings.unix_socket is not None and siblings is not None
    return GracefulServer(
        config,
        readiness=state.readiness,
        stop_delay_s=settings.stop_delay_s,
        others_listen=lambda: is_one_socket and siblings is not None and not siblings.are_stopping,
    )


# In this time the event loop takes the connections that the kernel has, and reads what has come on them.
READ_S = 0.1
# For the first request of a connection that was made at the end: the way through a slow network, and more.
FIRST_REQUEST_S = 1.0


class GracefulServer(uvicorn.Server):
    """SIGTERM turns readiness off, and ends the server after `stop_delay_s`. SIGINT and any second signal end
    it at once. A start that cannot succeed ends it too.
    """

    def __init__(
        self,
        config: uvicorn.Config,
        *,
        readiness: Readiness,
        stop_delay_s: float,
        others_listen: Callable[[], bool] = lambda: False,
    ) -> None:
        """`others_listen`: whether other processes go on with the same socket, so it stays open."""
        super().__init__(config)
        self._readiness = readiness
        self._stop_delay_s = stop_delay_s
        self._others_listen = others_listen
        self._stop_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Handle a signal, in place of uvicorn."""
        is_first = not self._readiness.is_stopping
        self._readiness.is_stopping = True
        if is_first and sig == signal.SIGTERM:
            self._captured_signals.append(sig)  # uvicorn raises it again when it is done
            self._stop_at = time.monotonic() + self._stop_delay_s
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        """Called by uvicorn ten times a second. True ends the server."""
        self.should_exit |= time.monotonic() >= self._stop_at or self._readiness.failure is not None
        return await super().on_tick(counter)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Take no new connections, answer what has come or is on its way, then end as uvicorn does.

        uvicorn would close connections whose requests the kernel has, and nobody has read: they were lost.
        """
        if not self._others_listen():
            drop_new(sockets or [])  # so that none is left in the kernel when their socket is closed
        await asyncio.sleep(READ_S)
        for server in self.servers:
            server.close()
        await asyncio.sleep(READ_S)
        for _ in range(round(FIRST_REQUEST_S / READ_S)):
            connections = self.server_state.connections
            if not any(isinstance(each, BoundedHttp) and each.awaits_request for each in connections):
                break
            await asyncio.sleep(READ_S)
        await super().shutdown(sockets)
