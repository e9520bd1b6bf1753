"""The HTTP server's end: readiness off first, then no new connections, then the answers that are due."""

import math
import signal
import time
from types import FrameType

import uvicorn

from service.model import Readiness


class GracefulServer(uvicorn.Server):
    """SIGTERM turns readiness off and is obeyed after `stop_delay_s`; SIGINT, or a second signal, at once."""

    def __init__(self, config: uvicorn.Config, *, readiness: Readiness, stop_delay_s: float) -> None:
        super().__init__(config)
        self._readiness = readiness
        self._stop_delay_s = stop_delay_s
        self._stop_at = math.inf

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        is_first = not self._readiness.is_stopping
        self._readiness.is_stopping = True
        if is_first and sig == signal.SIGTERM:
            self._captured_signals.append(sig)  # what uvicorn hands on when it is done
            self._stop_at = time.monotonic() + self._stop_delay_s
        else:
            super().handle_exit(sig, frame)

    async def on_tick(self, counter: int) -> bool:
        self.should_exit |= time.monotonic() >= self._stop_at
        return await super().on_tick(counter)
