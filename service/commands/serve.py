"""`glyphrec serve`."""

import argparse
import logging
import os
import signal
import socket
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from service.commands.parsers import EXIT_FAILURE, Subparsers
from service.commands.signals import keep_serving_on_others

if TYPE_CHECKING:
    from service.settings import Settings  # slow to import, and the parser needs it not
    from service.workers.siblings import Siblings
    from service.workers.supervisor import Start

log = logging.getLogger("glyphrec")

# A finished graph waits until the event loop releases the interpreter. Python's default of 5 ms is longer
# than a batch takes, so two cores did the work of one.
SWITCH_INTERVAL_S = 0.0005
# Beside GLYPHREC_STOP_DELAY_S and GLYPHREC_SHUTDOWN_TIMEOUT_S: for last connections, Redis and the graphs.
STOP_MARGIN_S = 15.0


def add_serve(subparsers: Subparsers) -> None:
    """Add `glyphrec serve`, which runs `run_serve`. Its options override environment variables."""
    parser = subparsers.add_parser(
        "serve",
        help="serve a bundle over HTTP",
        description="All other settings are environment variables; see service/settings.py.",
    )
    parser.add_argument(
        "--bundle", type=Path, help="the folder that `glyphrec export --out` wrote; default $GLYPHREC_BUNDLE"
    )
    parser.add_argument("--host", help="address to listen on; default $GLYPHREC_HOST, else 127.0.0.1")
    parser.add_argument("--port", type=int, help="TCP port; default $GLYPHREC_PORT, else 8000")
    parser.add_argument(
        "--unix-socket",
        type=Path,
        help="socket of the file system to listen on, in place of an address; default $GLYPHREC_UNIX_SOCKET",
    )
    parser.add_argument(
        "--redis-url",
        help="default $GLYPHREC_REDIS_URL, else $REDIS_URL, else a server of its own under --data-dir",
    )
    parser.add_argument(
        "--data-dir", type=Path, help="where that server keeps its files (default .glyphrec/redis)"
    )
    parser.add_argument(
        "--workers",
        type=int,
        help="processes that share the address, each a whole replica; default $GLYPHREC_WORKERS, else 1",
    )
    # How the supervisor starts a worker: its number, its end of the line, and a socket that all share, or -1.
    parser.add_argument("--as-worker", nargs=3, type=int, help=argparse.SUPPRESS)
    parser.add_argument("--opens-when-ready", action="store_true", help=argparse.SUPPRESS)
    parser.set_defaults(run=run_serve)


def run_serve(args: argparse.Namespace) -> int:
    """Serve until SIGINT or SIGTERM: with one process and one event loop, or with several workers."""
    keep_serving_on_others(log.info)
    # NumPy reads it when it is imported. Nothing here multiplies matrices, and OpenBLAS would start a thread
    # for each processor of the machine, which fails in a container that may have few threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from service.core.service_links import service_links
    from service.settings import PREFIX, load_settings
    from service.telemetry.logs import configure_logs

    settings = load_settings(
        bundle=args.bundle,
        host=args.host,
        port=args.port,
        unix_socket=args.unix_socket,
        redis_url=args.redis_url,
        data_dir=args.data_dir,
        workers=args.workers,
    )
    worker = args.as_worker[0] if args.as_worker else None
    configure_logs(settings.log_format, settings.log_level, worker)
    if worker in (None, 1):  # the others would say the same
        if links := service_links(os.environ, PREFIX):
            log.info("ignored, as Kubernetes sets them for its Services and not for us: %s", ", ".join(links))
        if worker is not None or settings.workers == 1:
            is_given = "threads" in settings.model_fields_set
            log_threads(settings.threads, is_given=is_given, num_workers=settings.workers)
    # uvicorn raises the signal again when it is done; then we must still stop the embedded server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if args.as_worker:
        return _serve_as_worker(settings, args)
    return _serve_alone(settings) if settings.workers == 1 else _supervise(settings, args.redis_url)


def _serve_alone(settings: "Settings") -> int:
    """With one process and one event loop. Requests in flight are answered at the end."""
    from service.http.listening import tcp_sockets, unix_socket
    from service.store.server import redis_url_or_server

    path = settings.unix_socket
    # Before the event loop starts, so that a problem is one line and not a failed start of uvicorn.
    with (
        tcp_sockets(settings.host, settings.port) if path is None else unix_socket(path) as sockets,
        redis_url_or_server(settings.redis_url, settings.data_dir) as redis_url,
    ):
        return _serve_on(sockets, settings.model_copy(update={"redis_url": redis_url}), None)


def _serve_as_worker(settings: "Settings", args: argparse.Namespace) -> int:
    """As `_serve_alone`, on an address that others have, too."""
    from service.http.listening import tcp_sockets
    from service.workers.siblings import Siblings

    number, line, shared = args.as_worker
    siblings = Siblings(socket.socket(fileno=line), number, opens_when_ready=args.opens_when_ready)
    with ExitStack() as stack:
        if shared >= 0:
            sockets = [stack.enter_context(socket.socket(fileno=shared))]
        else:
            sockets = stack.enter_context(tcp_sockets(settings.host, settings.port, is_shared=True))
        return _serve_on(sockets, settings, siblings)


def _serve_on(sockets: list[socket.socket], settings: "Settings", siblings: "Siblings | None") -> int:
    from service.app import create_app
    from service.http.listening import listen
    from service.server import http_server

    sys.setswitchinterval(SWITCH_INTERVAL_S)
    app = create_app(settings, siblings=siblings)
    server = http_server(app, settings)
    if siblings is None or not siblings.opens_when_ready:
        log.info("listening on %s", listen(sockets))
    server.run(sockets)
    if (failure := app.state.service.readiness.failure) is not None:
        raise failure
    return 0 if server.started else EXIT_FAILURE


def _supervise(settings: "Settings", given_redis_url: str | None) -> int:
    """Start the workers and keep them running. The address and the embedded Redis are theirs together.

    `given_redis_url`: from the command line. From the environment it comes to the workers as it came to us,
    because it may hold a password, and everybody on the machine can read a command line.
    """
    import asyncio

    from service.core.cpus import usable_cpus
    from service.core.memory import usable_memory
    from service.errors import GlyphrecError
    from service.http.listening import shared_port, unix_socket
    from service.store.server import redis_url_or_server
    from service.workers.limits import check_workers
    from service.workers.supervisor import Supervisor, Times

    if sys.platform != "linux":
        raise GlyphrecError(
            f"GLYPHREC_WORKERS is {settings.workers}, and {sys.platform} does not deal connections out among "
            "processes. Leave it at 1, and start several replicas behind a balancer."
        )
    check_workers(settings.workers, settings.bundle, usable_cpus(), usable_memory())
    with ExitStack() as stack:
        if settings.unix_socket is None:
            port, shared = stack.enter_context(shared_port(settings.host, settings.port)), -1
        else:
            port = settings.port
            shared = stack.enter_context(unix_socket(settings.unix_socket))[0].fileno()
        redis_url = stack.enter_context(redis_url_or_server(settings.redis_url, settings.data_dir))

        def command(start: "Start") -> list[str]:
            more = ["--opens-when-ready"] if start.opens_when_ready else []
            if settings.redis_url is None or given_redis_url is not None:
                more += ["--redis-url", redis_url]
            if settings.unix_socket is not None:
                more += ["--unix-socket", str(settings.unix_socket)]
            return [
                # `-m` alone puts the working directory first on sys.path, and `-P` leaves it out.
                *(sys.executable, "-P", "-m", "service.cli", "serve"),
                *("--bundle", str(start.bundle or settings.bundle), "--host", settings.host),
                *("--port", str(port), "--workers", str(settings.workers)),
                *("--as-worker", str(start.number), str(start.channel_fd), str(shared), *more),
            ]

        supervisor = Supervisor(
            settings.workers,
            command,
            pass_fds=() if shared < 0 else (shared,),
            times=Times(stop_s=settings.stop_delay_s + settings.shutdown_timeout_s + STOP_MARGIN_S),
        )
        return asyncio.run(supervisor.run())


def log_threads(threads: int, *, is_given: bool, num_workers: int = 1) -> None:
    """Log how many threads each graph has, and why. Warn if more are wanted than can run."""
    from service.core.cpus import usable_cpus

    cpus = usable_cpus()
    why = "set by GLYPHREC_THREADS, with" if is_given else "half of"
    of_workers = f", for {num_workers} workers" if num_workers > 1 else ""
    log.info("threads of each graph: %d, %s %s%s", threads, why, cpus, of_workers)
    most = max(1, int(cpus.num_threads / num_workers))
    if threads > max(1, cpus.num_cpus / num_workers):
        log.warning(
            "GLYPHREC_THREADS is %d, but this process may use %g processors%s. Threads that wait for a "
            "processor make every answer many times slower. Set it to %d or leave it out.",
            *(threads, cpus.num_cpus, of_workers, most),
        )
