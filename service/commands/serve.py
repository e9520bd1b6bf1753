"""`glyphrec serve`."""

import argparse
import logging
import os
import signal
import sys
from pathlib import Path

from service.commands.parsers import EXIT_FAILURE, Subparsers
from service.commands.signals import keep_serving_on_others

log = logging.getLogger("glyphrec")

# A finished graph waits until the event loop releases the interpreter. Python's default of 5 ms is longer
# than a batch takes, so two cores did the work of one.
SWITCH_INTERVAL_S = 0.0005


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
    parser.set_defaults(run=run_serve)


def run_serve(args: argparse.Namespace) -> int:
    """Serve with one process and one event loop until SIGINT or SIGTERM. Requests in flight are answered."""
    keep_serving_on_others(log.info)
    # NumPy reads it when it is imported. Nothing here multiplies matrices, and OpenBLAS would start a thread
    # for each processor of the machine, which fails in a container that may have few threads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    from service.app import create_app
    from service.core.service_links import service_links
    from service.http.listening import listen, tcp_sockets, unix_socket
    from service.server import http_server
    from service.settings import PREFIX, load_settings
    from service.store.server import redis_url_or_server
    from service.telemetry.logs import configure_logs

    settings = load_settings(
        bundle=args.bundle,
        host=args.host,
        port=args.port,
        unix_socket=args.unix_socket,
        redis_url=args.redis_url,
        data_dir=args.data_dir,
    )
    configure_logs(settings.log_format, settings.log_level)
    if links := service_links(os.environ, PREFIX):
        log.info("ignored, as Kubernetes sets them for its Services and not for us: %s", ", ".join(links))
    log_threads(settings.threads, is_given="threads" in settings.model_fields_set)
    # uvicorn raises the signal again when it is done; then we must still stop the embedded server.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    path = settings.unix_socket
    # Before the event loop starts, so that a problem is one line and not a failed start of uvicorn.
    with (
        tcp_sockets(settings.host, settings.port) if path is None else unix_socket(path) as sockets,
        redis_url_or_server(settings.redis_url, settings.data_dir) as redis_url,
    ):
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        app = create_app(settings.model_copy(update={"redis_url": redis_url}))
        server = http_server(app, settings)
        log.info("listening on %s", listen(sockets))
        server.run(sockets)
    if (failure := app.state.service.readiness.failure) is not None:
        raise failure
    return 0 if server.started else EXIT_FAILURE


def log_threads(threads: int, *, is_given: bool) -> None:
    """Log how many threads each graph has, and why. Warn if more are wanted than can run."""
    from service.core.cpus import usable_cpus

    cpus = usable_cpus()
    why = "set by GLYPHREC_THREADS, with" if is_given else "half of"
    log.info("threads of each graph: %d, %s %s", threads, why, cpus)
    if threads > max(1, cpus.num_cpus):
        log.warning(
            "GLYPHREC_THREADS is %d, but this process may use %g processors. Threads that wait for a "
            "processor make every answer many times slower. Set it to %d or leave it out.",
            *(threads, cpus.num_cpus, cpus.num_threads),
        )
