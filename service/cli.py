"""The `glyphrec` command. Offline subcommands register by entry point, so serving needs none of theirs."""

import argparse
import logging
import os
import signal
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any

from service.core.keys import hash_of, new_key
from service.errors import GlyphrecError

COMMANDS = "glyphrec.commands"
EXTRA = "export"  # brings what the registered commands import

# A graph that is done waits until the event loop lets go of the interpreter: 5 ms as Python has it, longer
# than a batch takes, so that two cores did the work of one.
SWITCH_INTERVAL_S = 0.0005

EXIT_FAILURE = 2
EXIT_INTERRUPTED = 130

Subparsers = Any  # argparse names no public type for what add_subparsers returns


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand -> exit status: 0 done, 1 in part, 2 not at all, and why in one line on stderr."""
    argv = sys.argv[1:] if argv is None else argv
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for the registered commands; runtime.py says why
    args = build_parser(argv).parse_args(argv)
    run: Callable[[argparse.Namespace], int | None] = args.run
    try:
        return run(args) or 0
    except GlyphrecError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in {"service", "model_export"}:
            raise  # a fault of ours, not of the installation
        return _fail(_missing(args.command, error.name))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # `glyphrec … | head`
        sys.stderr.close()
        return EXIT_FAILURE


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands. Those that `argv` cannot mean are left out: loading them takes time."""
    parser = argparse.ArgumentParser(
        prog="glyphrec", description="Recommendations from items read as pictures, online and exported."
    )
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_serve(subparsers)
    add_key(subparsers)
    if list(argv[:1]) == ["serve"]:
        return parser
    from service.commands.client import add_import, add_recommend

    add_fsck(subparsers)
    add_import(subparsers)
    add_recommend(subparsers)
    if argv and argv[0] in subparsers.choices:
        return parser
    for command in sorted(entry_points(group=COMMANDS), key=lambda each: each.name):
        _add_registered(subparsers, command)
    return parser


def add_serve(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "serve",
        help="serve a bundle over HTTP",
        description="Every other setting is an environment variable, see service/settings.py.",
    )
    parser.add_argument("--bundle", type=Path, help="folder that `glyphrec export --out` wrote")
    parser.add_argument("--host", help="address to listen on (default 127.0.0.1)")
    parser.add_argument("--port", type=int, help="TCP port (default 8000)")
    parser.add_argument("--redis-url", help="default $REDIS_URL, else a server of its own under --data-dir")
    parser.add_argument("--data-dir", type=Path, help="where that keeps its files (default .glyphrec/redis)")
    parser.set_defaults(run=run_serve)


def run_serve(args: argparse.Namespace) -> int:
    """One process, one event loop, until SIGINT or SIGTERM; requests in flight are answered first."""
    from service.app import create_app
    from service.server import http_server
    from service.settings import load_settings
    from service.store.server import redis_url_or_server
    from service.telemetry.logs import configure_logs

    settings = load_settings(
        bundle=args.bundle, host=args.host, port=args.port, redis_url=args.redis_url, data_dir=args.data_dir
    )
    configure_logs(settings.log_format, settings.log_level)
    # uvicorn hands the signal on when it is done; the embedded server must still be stopped then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    # Before the event loop: what is wrong with this machine is one line then, not a failed start of uvicorn.
    with redis_url_or_server(settings.redis_url, settings.data_dir) as redis_url:
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        app = create_app(settings.model_copy(update={"redis_url": redis_url}))
        server = http_server(app, settings)
        server.run()
    return 0 if server.started else EXIT_FAILURE


def add_fsck(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "fsck",
        help="prove that a catalogue in Redis is whole, and mend it",
        description="Checks a catalogue while it is served. Status: 0 whole, 1 something was wrong, "
        "mended or not, 2 not checked.",
    )
    parser.add_argument("--redis-url", default=_environment("REDIS_URL", "GLYPHREC_REDIS_URL"))
    parser.add_argument(
        "--catalog",
        default=_environment("GLYPHREC_CATALOG") or "glyphrec",
        help="default $GLYPHREC_CATALOG, else glyphrec",
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=_environment("GLYPHREC_BUNDLE"),
        help="whose tokenizer to check; default $GLYPHREC_BUNDLE",
    )
    parser.add_argument("--tokenizer-id", help="without a bundle; default the one that is served")
    parser.add_argument("--levels", help="without a bundle: how many codes each level has, as in 64,64,32")
    parser.add_argument(
        "--repair", action="store_true", help="mend what follows from the rest; replicas follow"
    )
    parser.add_argument("--json", action="store_true", help="print the whole report as JSON")
    parser.set_defaults(run=run_fsck)


def run_fsck(args: argparse.Namespace) -> int:
    """Check, or mend, and print what was found -> 0 where nothing was wrong, else 1."""
    import asyncio
    import json

    from service.store import fsck

    logging.basicConfig(level=logging.CRITICAL)  # what is skipped stands in the report
    report = asyncio.run(fsck.run(args))
    if args.json:
        shown = {"is_clean": report.is_clean, "num_quarantined": report.num_quarantined, **vars(report)}
        print(json.dumps(shown | {"findings": [each._asdict() for each in report.findings]}))
    else:
        print("\n".join(fsck.lines(report)))
    return 0 if report.is_clean else 1


def add_key(subparsers: Subparsers) -> None:
    parser = subparsers.add_parser(
        "key",
        help="make a new API key and its hash",
        description="The client gets the key; the service gets the hash, in GLYPHREC_READ_KEYS, "
        "GLYPHREC_API_KEYS (which may also write) or GLYPHREC_ADMIN_KEYS.",
    )
    parser.set_defaults(run=run_key)


def run_key(_args: argparse.Namespace) -> None:
    """Print two lines. Nothing keeps the key."""
    key = new_key()
    print(f"key:  {key}\nhash: {hash_of(key)}")


def _environment(*names: str) -> str | None:
    return next((os.environ[name] for name in names if os.environ.get(name)), None)


def _add_registered(subparsers: Subparsers, command: EntryPoint) -> None:
    """A subcommand of another package. Where that cannot be imported, it shows and says what to install."""
    try:
        add: Callable[[Subparsers], None] = command.load()
    except ModuleNotFoundError as error:
        missing = error.name or command.module
        remedy = f"needs: pip install 'glyphrec[{EXTRA}]'"
        # With a prefix that nobody types, whatever follows is taken as it is and not as an option.
        parser = subparsers.add_parser(command.name, help=remedy, add_help=False, prefix_chars="\0")

        def refuse(args: argparse.Namespace) -> int:
            return _fail(_missing(args.command, missing))

        parser.add_argument("rest", nargs="*")
        parser.set_defaults(run=refuse)
    else:
        add(subparsers)


def _missing(command: str, module: str) -> str:
    return f"`glyphrec {command}` needs {module}, which is missing. Add it: pip install 'glyphrec[{EXTRA}]'"


def _fail(message: str) -> int:
    print(f"glyphrec: {message}", file=sys.stderr)
    return EXIT_FAILURE


if __name__ == "__main__":
    sys.exit(main())
