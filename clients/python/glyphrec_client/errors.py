"""What can go wrong with a request. problems.py has one class for each problem of the service."""

from collections.abc import Mapping
from typing import Any, ClassVar

import httpx

MAX_SHOWN = 200  # characters of somebody else's answer
PROBLEM_TYPES = "urn:glyphrec:problem:"


class ClientError(Exception):
    """The base of all errors of this package, except ValueError and TypeError for wrong arguments."""


class NoAnswer(ClientError):
    """No answer came: nobody listens, the connection was lost, or the name is unknown.

    `was_sent` is False only if the request cannot have reached a service.
    """

    def __init__(self, url: str, reason: str, *, was_sent: bool = True) -> None:
        super().__init__(f"{url}: {reason}")
        self.url = url
        self.reason = reason
        self.was_sent = was_sent


class TimedOut(NoAnswer):
    """No answer came within the timeout of the client. A change may have been made nevertheless."""


class UnexpectedAnswer(ClientError):
    """Something answered, but not as the service does: a proxy, a login page, or another program.

    `response` is that answer, and `value` its JSON if `has_json`.
    """

    def __init__(
        self, response: httpx.Response, reason: str, value: Any = None, *, has_json: bool = True
    ) -> None:
        super().__init__(f"{shown_url(response.url)}: answered {response.status_code}, {reason}")
        self.response = response
        self.reason = reason
        self.value = value
        self.has_json = has_json


class ProblemError(ClientError):
    """The service refused the request. Each type of problem has a subclass; a newer type is this class.

    `type` is stable. `str(error)` is the problem's `detail`, which says what is wrong and what to do.
    """

    slug: ClassVar[str] = ""  # the last part of `type`

    def __init__(self, response: httpx.Response, document: Mapping[str, Any]) -> None:
        super().__init__(str(document.get("detail", "")))
        self.response = response
        self.document = dict(document)
        self.status = response.status_code
        self.type = str(document.get("type", ""))
        self.detail = str(document.get("detail", ""))
        self.request_id = str(document.get("request_id", ""))


class PassingProblem(ProblemError):
    """The same request may succeed later. The client has repeated it as often as its Retry allows."""


def shown_url(url: httpx.URL) -> str:
    """The URL without a password."""
    return str(url.copy_with(username=None, password=None)).rstrip("/")


def one_line(text: str) -> str:
    """The text, cut, and without characters that a terminal obeys."""
    line = "".join(sign if sign.isprintable() else " " for sign in text[: MAX_SHOWN + 1])
    return line if len(text) <= MAX_SHOWN else line[:MAX_SHOWN] + "…"
