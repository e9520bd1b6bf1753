"""All subcommands of `glyphrec`. Offline ones register by entry point, so serving needs none of them."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from service.commands.health import add_health
from service.commands.key import add_key
from service.commands.parsers import EXIT_FAILURE, EXIT_INTERRUPTED, Subparsers
from service.commands.serve import add_serve
from service.errors import GlyphrecError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint  # slow to import, and a health check comes every few seconds

COMMANDS = "glyphrec.commands"
EXTRA = "export"  # installs the packages that the registered commands import


def run(argv: Sequence[str]) -> int:
    """Run one subcommand -> its exit status; see service/cli.py."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # for the registered commands; runtime.py has the reason
    args = build_parser(argv).parse_args(argv)
    command: Callable[[argparse.Namespace], int | None] = args.run
    try:
        return command(args) or 0
    except GlyphrecError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in {"service", "model_export"}:
            raise  # our bug, not a missing package
        return _fail(_missing(args.command, error.name))
    except BrokenPipeError:  # `glyphrec … | head`
        sys.stderr.close()
        return EXIT_FAILURE
    except OSError as error:  # a full disk, a folder that may not be written, a file that is gone
        return _fail(_os_problem(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """The parser of all commands. Commands that `argv` cannot mean are not loaded, to save time."""
    parser = argparse.ArgumentParser(
        prog="glyphrec", description="glyphrec serves recommendations and trains the models for them."
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    subparsers = parser.add_subparsers(dest="command", required=True, metavar="command")
    add_serve(subparsers)
    add_key(subparsers)
    add_health(subparsers)
    if argv and argv[0] in ("serve", "health"):
        return parser
    from service.commands.catalogs import add_catalogs
    from service.commands.client import add_import, add_recommend
    from service.commands.doctor import add_doctor
    from service.commands.fsck import add_fsck
    from service.commands.rank import add_rank
    from service.commands.search import add_search

    add_catalogs(subparsers)
    add_doctor(subparsers)
    add_fsck(subparsers)
    add_import(subparsers)
    add_recommend(subparsers)
    add_rank(subparsers)
    add_search(subparsers)
    if argv and argv[0] in subparsers.choices:
        return parser
    from importlib.metadata import entry_points

    for command in sorted(entry_points(group=COMMANDS), key=lambda each: each.name):
        _add_registered(subparsers, command)
    return parser


class _Version(argparse.Action):
    """Looks for the version only when it is asked for."""

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        """Print it and exit."""
        from service.core.version import service_version

        print(f"{parser.prog} {service_version()}")
        parser.exit()


def _add_registered(subparsers: Subparsers, command: "EntryPoint") -> None:
    """Add a subcommand of another package. If the import fails, the command says what to install."""
    try:
        add: Callable[[Subparsers], None] = command.load()
    except ModuleNotFoundError as error:
        missing = error.name or command.module
        if missing == command.module.partition(".")[0]:
            return  # its package is absent, as in the image, and no extra would add it
        remedy = f"needs: pip install 'glyphrec[{EXTRA}]'"
        # With a prefix that cannot be typed, all following words are arguments and not options.
        parser = subparsers.add_parser(command.name, help=remedy, add_help=False, prefix_chars="\0")

        def refuse(args: argparse.Namespace) -> int:
            return _fail(_missing(args.command, missing))

        parser.add_argument("rest", nargs="*")
        parser.set_defaults(run=refuse)
    else:
        add(subparsers)


def _missing(command: str, module: str) -> str:
    return f"`glyphrec {command}` needs {module}, which is missing. Add it: pip install 'glyphrec[{EXTRA}]'"


def _os_problem(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}. Mend that, and give the command again."


def _fail(message: str) -> int:
    print(f"glyphrec: {message}", file=sys.stderr)
    return EXIT_FAILURE
