"""Paths inside the name of a source. A path may hold commas and blanks, and `~` is the home folder."""

from pathlib import Path


def expanded(text: str) -> Path:
    """The path that `text` names, with `~` as the home folder. An unknown user's `~name` stays as it is."""
    try:
        return Path(text).expanduser()
    except RuntimeError:
        return Path(text)


def split_paths(argument: str) -> list[str]:
    """Split `A,B` at the comma that leaves two names of something that exists.

    If no comma does, the argument is split at every comma. A single existing path is not split.
    """
    if matching(argument):
        return [argument]
    parts = argument.split(",")
    for place in range(1, len(parts)):
        left, right = ",".join(parts[:place]), ",".join(parts[place:])
        if matching(left) and matching(right):
            return [left, right]
    return parts


def matching(text: str) -> list[Path]:
    """The existing path that `text` names, or else the files that match it as a pattern, in order."""
    if not text:
        return []
    path = expanded(text)
    if path.exists():
        return [path]
    if any(sign in path.name for sign in "*?["):
        return sorted(found for found in path.parent.glob(path.name) if found.is_file())
    return []
