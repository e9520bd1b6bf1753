"""Environment variables that Kubernetes sets in each container for every Service of its namespace.

A Service called glyphrec gives GLYPHREC_PORT=tcp://10.0.0.1:8000, GLYPHREC_SERVICE_HOST=10.0.0.1 and more
(https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables). They look like our
settings and are none. Only the standard library is imported here, as the health check needs this file.
"""

import ipaddress
import re
from collections.abc import Mapping
from typing import TypeVar

Value = TypeVar("Value", str, str | None)

_ADDRESS = re.compile(r".+_(SERVICE_HOST|PORT_\d+_(TCP|UDP|SCTP)_ADDR)", re.IGNORECASE)
# By the end of the name, the form of the value.
_FORMS = tuple(
    (re.compile(name, re.IGNORECASE), re.compile(value))
    for name, value in (
        (r".+_PORT(_\d+_(TCP|UDP|SCTP))?", r"(tcp|udp|sctp)://.+:\d+"),
        (r".+_SERVICE_PORT(_\w+)?", r"\d+"),
        (r".+_PORT_\d+_(TCP|UDP|SCTP)_PORT", r"\d+"),
        (r".+_PORT_\d+_(TCP|UDP|SCTP)_PROTO", r"tcp|udp|sctp"),
    )
)


def is_service_link(name: str, value: str | None) -> bool:
    """Whether Kubernetes has set the variable: its name ends as those do, and its value has that form."""
    if not value:
        return False
    if _ADDRESS.fullmatch(name):
        return _is_address(value)
    return any(ending.fullmatch(name) and form.fullmatch(value) for ending, form in _FORMS)


def service_links(environment: Mapping[str, str], prefix: str) -> list[str]:
    """The names that begin with `prefix` and that Kubernetes has set, sorted."""
    return sorted(
        name
        for name, value in environment.items()
        if name.startswith(prefix) and is_service_link(name, value)
    )


def without_service_links(environment: Mapping[str, Value]) -> dict[str, Value]:
    """The variables that Kubernetes has not set."""
    return {name: value for name, value in environment.items() if not is_service_link(name, value)}


def _is_address(value: str) -> bool:
    try:
        ipaddress.ip_address(value)
    except ValueError:
        return False
    return True
