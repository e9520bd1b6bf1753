"""How far a long command is: a bar on a terminal, elsewhere a line now and then."""

import io
import sys
from time import monotonic
from typing import Any

from tqdm import tqdm

LINE_INTERVAL_S = 10.0


class ProgressBar(tqdm):  # type: ignore[misc]  # tqdm has no types
    """tqdm's bar, with its arguments. Where `file` (stderr by default) is no terminal, it writes whole lines.

    A line comes every LINE_INTERVAL_S seconds at most, and one at the end, so that a log stays readable.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        output = options.get("file") or sys.stderr
        self._log = None if output.isatty() else output
        self._next_line_at = monotonic() + LINE_INTERVAL_S
        if self._log is not None:
            options["file"] = io.StringIO()  # takes the cursor movements that tqdm writes between bars
        super().__init__(*args, **options)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Show `msg`, or the state; tqdm calls it for every refresh and once more when the bar closes."""
        if self._log is None:
            return bool(super().display(msg, pos))
        is_closing = self.disable
        if msg == "" or not (is_closing or monotonic() >= self._next_line_at):
            return False
        self._next_line_at = monotonic() + LINE_INTERVAL_S
        print(str(self) if msg is None else msg, file=self._log, flush=True)
        return True
