"""The version of the installed distribution, which its build took from the newest git tag."""

from importlib.metadata import PackageNotFoundError, version


def service_version() -> str:
    """The version as packaging tools write it, or "0" in a source tree that is not installed."""
    try:
        return version("glyphrec")
    except PackageNotFoundError:
        return "0"
