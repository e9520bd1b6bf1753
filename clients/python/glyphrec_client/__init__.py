"""Client of a glyphrec service: `Client` for plain programs, `AsyncClient` for asyncio."""

from glyphrec_client.calls import picture
from glyphrec_client.client import AsyncClient, Client
from glyphrec_client.errors import (
    ClientError,
    NoAnswer,
    PassingProblem,
    ProblemError,
    TimedOut,
    UnexpectedAnswer,
)
from glyphrec_client.retries import Retry

__all__ = [
    "AsyncClient",
    "Client",
    "ClientError",
    "NoAnswer",
    "PassingProblem",
    "ProblemError",
    "Retry",
    "TimedOut",
    "UnexpectedAnswer",
    "picture",
]
