"""Says why this process may not read a file: which part of its path stops it, for whom that part is open."""

import os
import stat
from pathlib import Path


def why_unreadable(path: Path, error: OSError) -> str:
    """One sentence for a log: the system's reason, and for a missing right the path, its mode and our uid."""
    reason = f"cannot be read ({error.strerror or error})"
    if not isinstance(error, PermissionError):
        return f"{reason}."
    stop = _first_closed(path)
    try:
        status = stop.stat()
    except OSError:  # it went meanwhile
        return f"{reason} by uid {os.geteuid()}."
    mode, shown = stat.S_IMODE(status.st_mode), stat.filemode(status.st_mode)
    return (
        f"{reason}. This process runs as uid {os.geteuid()} and gid {os.getegid()}; {stop} has mode "
        f"{mode:04o} ({shown}) and belongs to uid {status.st_uid} and gid {status.st_gid}."
    )


def _first_closed(path: Path) -> Path:
    """The first folder on the way that may not be passed, or else the path itself."""
    absolute = path.absolute()
    for folder in reversed(absolute.parents):
        if not os.access(folder, os.X_OK, effective_ids=True):
            return folder
    return absolute
