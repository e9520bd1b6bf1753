"""A connection is an open file. Where a process may open too few, no probe gets an answer any more."""

import logging
import resource

from service.http.connection_limit import PROBE_RESERVE

OWN_FILES = 128  # connections to Redis, logs, libraries and what the event loop needs

log = logging.getLogger(__name__)


def files_needed(max_connections: int) -> int:
    """How many files a process needs open for so many connections beside probes and its own files."""
    return max_connections + PROBE_RESERVE + OWN_FILES


def connections_within_files(max_connections: int) -> int:
    """`max_connections`, or as many as this process may have beside its other files.

    Raises the soft limit of open files as far as needed and allowed, which needs no rights. Logs a warning if
    it is not enough.
    """
    needed = files_needed(max_connections)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= needed:
        return max_connections
    allowed = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
    except (ValueError, OSError):  # macOS has a lower limit than it tells
        allowed = soft
    if allowed >= needed:
        return max_connections
    possible = max(1, allowed - PROBE_RESERVE - OWN_FILES)
    log.warning(
        "GLYPHREC_MAX_CONNECTIONS is %d, but this process may open only %d files, so it takes %d "
        "connections. Raise the limit of open files to %d (ulimit -n).",
        *(max_connections, allowed, possible, needed),
    )
    return possible
