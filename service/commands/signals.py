"""Which signals end the process.

The kernel drops a signal to the first process of a container if it has no handler, so the handlers come
first, and the module imports little.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence

ENDED_BY_SIGTERM = 128 + signal.SIGTERM  # as shells count it


def end_on_sigterm(argv: Sequence[str]) -> None:
    """Let SIGTERM end the command, from now on."""
    if list(argv[:1]) == ["serve"]:
        # While modules are imported there is nothing to end, and an exception might be caught by one of them.
        signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
    else:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(ENDED_BY_SIGTERM))


def keep_serving_on_others(say: Callable[[str], None]) -> None:
    """Let only a terminal that closes end the service, as SIGTERM does.

    SIGHUP from anybody else, SIGUSR1 and SIGUSR2 let other servers read their settings or open their logs
    again. By default they would end this process at once. Here they do nothing, and `say` gets a line.
    """

    def ignore(number: int, _frame: object) -> None:
        told = f"{signal.Signals(number).name} changes nothing: settings are read once, and logs go to stderr"
        # In a thread, because the main thread may be amid another line of the log.
        threading.Thread(target=say, args=(told,)).start()

    def hang_up(*_: object) -> None:
        signal.signal(signal.SIGHUP, lambda *_: None)  # the shell and the kernel may both send it
        signal.raise_signal(signal.SIGTERM)

    for number in (signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, ignore)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # as nohup has it
        signal.signal(signal.SIGHUP, hang_up if _has_terminal() else ignore)


def _has_terminal() -> bool:
    try:
        os.close(os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY))
    except OSError:
        return False
    return True
