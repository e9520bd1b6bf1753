"""Secrets from files: X_FILE names the file that holds the value of the environment variable X.

Docker and Kubernetes mount secrets as files, which `docker inspect`, a crash report and child processes do
not show. Only secrets may come this way.
"""

from collections.abc import Mapping
from pathlib import Path

SECRETS = (
    "GLYPHREC_READ_KEYS",
    "GLYPHREC_API_KEYS",
    "GLYPHREC_ADMIN_KEYS",
    "GLYPHREC_REDIS_URL",
    "REDIS_URL",
)
ENDING = "_FILE"
MAX_BYTES = 2**20

FILE_VARIABLES = frozenset(name + ENDING for name in SECRETS)


def secrets_of_files(environment: Mapping[str, str]) -> dict[str, str]:
    """The secrets whose files the environment names, by the name of the variable that they stand for.

    White space around a value is cut off, because editors end a file with a line. Raises ValueError if a
    secret is given both ways, or if a file is missing, empty, too large or no UTF-8. It never shows a value.
    """
    return {
        name: _read(name, environment[name + ENDING], is_set=bool(environment.get(name)))
        for name in SECRETS
        if environment.get(name + ENDING)
    }


def _read(name: str, path: str, *, is_set: bool) -> str:
    variable = name + ENDING
    if is_set:
        raise ValueError(f"{variable}: {name} is set, too; leave one of them out")
    try:
        with Path(path).open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        value = data.decode("utf-8").strip()
    except OSError as error:
        raise ValueError(f"{variable}: {path} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{variable}: {path} is not text in UTF-8") from error
    if len(data) > MAX_BYTES:
        raise ValueError(f"{variable}: {path} has over {MAX_BYTES:,} bytes, so it is no secret")
    if not value:
        raise ValueError(f"{variable}: {path} is empty")
    return value
