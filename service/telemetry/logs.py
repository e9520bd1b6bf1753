"""The form of log lines: text for people, or JSON for machines. Both have the id of their request."""

import logging
from contextvars import ContextVar
from datetime import datetime
from typing import Any, Literal

from pythonjsonlogger.json import JsonFormatter

# The id of the request that this task answers; empty in work that belongs to no request.
request_id_now: ContextVar[str] = ContextVar("request_id", default="")

_TEXT = "%(asctime)s %(levelname)s %(name)s: %(message)s%(of_request)s"
_JSON_NAMES = {"asctime": "time", "levelname": "level", "name": "logger"}


class _RequestId(logging.Filter):
    """Puts the request's id, if there is one, at the end of a text line."""

    def filter(self, record: logging.LogRecord) -> bool:
        request_id = request_id_now.get()
        record.__dict__["of_request"] = f" [{request_id}]" if request_id else ""
        return True


class _Json(JsonFormatter):
    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:  # noqa: ARG002, N802
        """Local time with its offset and milliseconds (RFC 3339), as lines of replicas are put in order."""
        return datetime.fromtimestamp(record.created).astimezone().isoformat(timespec="milliseconds")

    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        super().add_fields(log_data, record, message_dict)
        if request_id := request_id_now.get():
            log_data["request_id"] = request_id


def configure_logs(log_format: Literal["text", "json"], level: str, worker: int | None = None) -> None:
    """Let the whole process log to stderr. JSON has time, level, logger, message, and fields of the line.

    `worker`: its number, which each line has, if several processes write to the same stderr.
    """
    handler = logging.StreamHandler()
    if log_format == "json":
        names = "%(asctime)s %(levelname)s %(name)s %(message)s"
        always = {} if worker is None else {"worker": worker}
        handler.setFormatter(_Json(names, rename_fields=_JSON_NAMES, static_fields=always))
    else:
        handler.addFilter(_RequestId())
        who = "" if worker is None else f"worker {worker} "
        handler.setFormatter(logging.Formatter(_TEXT.replace("%(name)s", f"{who}%(name)s")))
    logging.basicConfig(level=level, handlers=[handler], force=True)
