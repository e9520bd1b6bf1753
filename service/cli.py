"""The `glyphrec` command. It imports little, so that signals are handled before the slow imports begin."""

import sys
from collections.abc import Sequence

from service.commands.signals import end_on_sigterm


def main(argv: Sequence[str] | None = None) -> int:
    """Run one subcommand. Exit status: 0 done, 1 partly done, 2 failed; then stderr has the reason.

    Without `argv` the process is the command's own, so signals are its own, too.
    """
    if argv is None:
        argv = sys.argv[1:]
        end_on_sigterm(argv)
    from service.commands.command_line import run

    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
