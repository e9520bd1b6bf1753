"""`glyphrec health`: the health check of a container, for the address that the environment sets."""

import argparse
import os
import socket
import sys
from contextlib import closing
from typing import TYPE_CHECKING

from service.commands.parsers import Subparsers, environment
from service.core.addresses import own_address
from service.core.service_links import is_service_link

if TYPE_CHECKING:
    from http.client import HTTPConnection  # slow to import, and `glyphrec serve` needs it not

PATHS = {False: "/health/live", True: "/health/ready"}
TIMEOUT_S = 2.0
UNHEALTHY = 1  # the only status that Docker counts as unhealthy


def add_health(subparsers: Subparsers) -> None:
    """Add `glyphrec health`, which runs `run_health`."""
    parser = subparsers.add_parser(
        "health",
        help="ask the service on this machine whether it is alive",
        description="It asks where the same environment lets `glyphrec serve` listen: GLYPHREC_UNIX_SOCKET, "
        "GLYPHREC_HOST and GLYPHREC_PORT. Exit status: 0 it is, 1 it is not.",
    )
    parser.add_argument("--ready", action="store_true", help="ask whether it is ready for requests instead")
    parser.add_argument("--unix-socket", default=environment("GLYPHREC_UNIX_SOCKET"), help=argparse.SUPPRESS)
    parser.add_argument("--host", default=environment("GLYPHREC_HOST") or "127.0.0.1", help=argparse.SUPPRESS)
    parser.add_argument("--port", default=_port(), type=int, help=argparse.SUPPRESS)
    parser.set_defaults(run=run_health)


def run_health(args: argparse.Namespace) -> int:
    """Ask once. Says on stderr what is wrong."""
    from http.client import OK, HTTPException

    where = args.unix_socket or f"{own_address(args.host)}:{args.port}"
    try:
        with closing(_connected(args)) as connection:
            connection.request("GET", PATHS[args.ready])
            status = connection.getresponse().status
    except (OSError, HTTPException) as error:
        print(f"glyphrec: {where}: {error}", file=sys.stderr)
        return UNHEALTHY
    if status != OK:
        print(f"glyphrec: {where}{PATHS[args.ready]}: answered {status}", file=sys.stderr)
        return UNHEALTHY
    return 0


def _connected(args: argparse.Namespace) -> "HTTPConnection":
    from http.client import HTTPConnection  # urllib would use a proxy of the environment

    if args.unix_socket:
        connection = HTTPConnection("localhost", timeout=TIMEOUT_S)
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.settimeout(TIMEOUT_S)
        connection.sock.connect(args.unix_socket)
        return connection
    return HTTPConnection(own_address(args.host), args.port, timeout=TIMEOUT_S)


def _port() -> str:
    given = os.environ.get("GLYPHREC_PORT", "")
    return "8000" if is_service_link("GLYPHREC_PORT", given) else given or "8000"
