"""The URL of a Redis as people write it: what redis-py would misread or drop in silence is refused here.

No message repeats a part of the URL that may belong to the password.
"""

import re
import ssl
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

FORM = "Give redis://host:port/0, rediss://… or unix:///path"
ENCODED = "Percent-encode a password: # is %23, / is %2F, ? is %3F, @ is %40"
AT_THE_PRIMARY = (
    "Give the address of the primary, or of a proxy or Service that leads to whichever node is the primary"
)
FLAGS = ("true", "false", "yes", "no", "1", "0")
NUMBER = re.compile(r"\d{1,9}")
# What redis-py takes in the query and the service does not set itself: the values, None for any text.
OPTIONS: dict[str, tuple[str, ...] | re.Pattern[str] | None] = {
    "db": NUMBER,
    "username": None,
    "password": None,
    "health_check_interval": NUMBER,
    "socket_keepalive": FLAGS,
    "ssl_ca_certs": None,
    "ssl_ca_path": None,
    "ssl_ca_data": None,
    "ssl_cert_reqs": ("required", "optional", "none"),
    "ssl_certfile": None,
    "ssl_keyfile": None,
    "ssl_password": None,
    "ssl_check_hostname": FLAGS,
    "ssl_min_version": NUMBER,
    "ssl_ciphers": None,
}
ONLY_WITHOUT_A_CLUSTER = ("ssl_ca_path", "ssl_password")  # redis-py's cluster client does not take these


def checked_redis_url(url: str) -> str:
    """The URL without space around it. Raises ValueError where it cannot be meant as redis-py reads it."""
    url = url.strip()
    scheme, colon, _ = url.partition("://")
    if "sentinel" in scheme.lower() and colon:
        raise ValueError(f"Sentinel is not spoken. {AT_THE_PRIMARY}")
    if not colon or scheme not in ("redis", "rediss", "unix"):
        raise ValueError(f"is no URL of a Redis. {FORM}")
    if any(sign.isspace() or sign == "#" for sign in url):
        raise ValueError(f"has a space or a # in it. {ENCODED}")
    parts = _split(url)
    options = dict(parse_qsl(parts.query, keep_blank_values=True))
    if "@" in parts.path + parts.query and scheme != "unix":
        raise ValueError(f"has a / or a ? before the @. {ENCODED}")
    _check_options(options, scheme)
    if scheme == "unix":
        if parts.hostname or (parts.netloc and "@" not in parts.netloc) or not parts.path.strip("/"):
            raise ValueError("names no socket. Give unix:///path with three slashes")
        return url
    database = re.fullmatch(r"/?(\d{0,9})/?", unquote(parts.path))
    if database is None:
        raise ValueError("ends in a path that is no number of a database. Give /0, or leave it out")
    if database[1] and options.get("db", database[1]) != database[1]:
        raise ValueError("names two databases, one in the path and one as ?db=. Leave one out")
    return url


def check_certificates(url: str) -> None:
    """Raise ValueError if a file of certificates that a checked URL names cannot be used."""
    found = {name: value for name, value in parse_qsl(_split(url).query) if name.startswith("ssl_")}
    if not found:
        return
    context = ssl.create_default_context()
    for names in (("ssl_ca_certs", "ssl_ca_path", "ssl_ca_data"), ("ssl_certfile", "ssl_keyfile")):
        given = [name for name in names if name in found]
        if not given:
            continue
        try:
            if names[0] == "ssl_ca_certs":
                context.load_verify_locations(*map(found.get, names))
            else:
                context.load_cert_chain(
                    found.get("ssl_certfile") or found["ssl_keyfile"],
                    found.get("ssl_keyfile"),
                    found.get("ssl_password", ""),
                )
        except OSError as error:  # an SSLError too: the file is there, but holds no certificate
            reason = "holds no usable certificate" if isinstance(error, ssl.SSLError) else error.strerror
            raise ValueError(
                f"{' or '.join(f'?{name}=' for name in given)}: {reason}. Check the file"
            ) from None


def _split(url: str) -> SplitResult:
    try:
        parts = urlsplit(url)
        parts.port  # noqa: B018  raises if the port is no number or too large
    except ValueError:  # whose text may hold a part of the password
        raise ValueError(f"host or port cannot be read. {FORM}. {ENCODED}") from None
    return parts


def _check_options(options: dict[str, str], scheme: str) -> None:
    for name, value in options.items():
        if name not in OPTIONS:
            raise ValueError(f"?{name[:40]}= is none of its options. They are {', '.join(OPTIONS)}")
        if name.startswith("ssl_") and scheme != "rediss":
            raise ValueError(f"?{name}= is about TLS, which rediss:// speaks and {scheme}:// does not")
        allowed = OPTIONS[name]
        if not value:
            raise ValueError(f"?{name}= has no value. Give one, or leave it out")
        if isinstance(allowed, re.Pattern) and not allowed.fullmatch(value):
            raise ValueError(f"?{name}= must be a whole number")
        if isinstance(allowed, tuple) and (value.lower() if allowed is FLAGS else value) not in allowed:
            raise ValueError(f"?{name}= must be one of {', '.join(allowed)}")
