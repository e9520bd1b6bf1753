"""A worker without models: it calls its supervisor as a real one does, and ends as its second argument says.

`python small_worker.py LINE FILE [WAY]`: LINE is its end of the line. It writes `PID WAY` to the end of FILE
when it is ready. WAY is `refuses` (says why and ends before it is ready), `fails` (ends once it is ready),
`hangs` (does not end on SIGTERM), `silent` (answers nothing) or `serves`.
"""

import asyncio
import os
import signal
import socket
import sys

from service.workers.siblings import Siblings


async def serve(line: int, path: str, way: str) -> int:
    ended = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set if way != "hangs" else lambda: None)
    siblings = Siblings(socket.socket(fileno=line), 1, opens_when_ready=False)

    async def metrics(_):
        return [["glyphrec_requests", "counter", "Requests.", [["glyphrec_requests_total", {}, 1.0]]]]

    async def readiness(_):
        if way == "silent":
            await asyncio.Event().wait()
        return {"status": "ready", "phase": str(os.getpid())}

    async def change(name):
        return "" if name == "good" else f"{name} is refused"

    answers = {"own metrics": metrics, "own readiness": readiness, "own change": change}
    talking = asyncio.create_task(siblings.run(answers, ended.is_set))
    while not siblings.has_called:
        await asyncio.sleep(0)
    siblings.tell_ready()
    assert await siblings.readiness()  # so the supervisor has heard that it is ready
    os.write(os.open(path, os.O_WRONLY | os.O_APPEND), f"{os.getpid()} {way}\n".encode())
    if way == "fails":
        return 1
    await ended.wait()
    await siblings.tell_last(await metrics(None))
    talking.cancel()
    return 0


if __name__ == "__main__":
    if sys.argv[3] == "refuses":
        sys.exit(2)
    sys.exit(asyncio.run(serve(int(sys.argv[1]), sys.argv[2], sys.argv[3])))
