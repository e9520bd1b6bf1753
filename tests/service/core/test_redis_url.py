"""URLs of Redis: those that redis-py reads as they are meant pass, all others are refused without an echo."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio.connection import parse_url

from service.core.redis_url import check_certificates, checked_redis_url

MEANT = [
    ("redis://host", {"host": "host"}),
    ("redis://host:6380/3", {"host": "host", "port": 6380, "db": 3}),
    ("redis://host/", {"host": "host"}),
    ("redis://host?db=3", {"host": "host", "db": 3}),
    ("redis://:p%23w@host", {"host": "host", "password": "p#w"}),
    ("redis://:p@w@host:1/2", {"host": "host", "port": 1, "db": 2, "password": "p@w"}),
    (
        "redis://me:pw@[::1]:6379/0",
        {"host": "::1", "port": 6379, "db": 0, "username": "me", "password": "pw"},
    ),
    ("rediss://host:6379/0?ssl_check_hostname=False", {"host": "host", "ssl_check_hostname": False}),
    ("rediss://host?ssl_cert_reqs=none", {"host": "host", "ssl_cert_reqs": "none"}),
    ("unix:///run/redis.sock", {"path": "/run/redis.sock"}),
    ("unix:///run/redis.sock?db=2", {"path": "/run/redis.sock", "db": 2}),
    ("unix://me:pw@/run/@1/redis.sock", {"path": "/run/@1/redis.sock", "username": "me", "password": "pw"}),
    ("  redis://host:6379/0\n", {"host": "host", "port": 6379, "db": 0}),  # as a file of a secret ends
]


@pytest.mark.parametrize(("url", "read"), MEANT)
def test_a_url_that_is_right_is_read_as_it_is_meant(url: str, read: dict[str, object]) -> None:
    found = parse_url(checked_redis_url(url))
    assert read.items() <= found.items()
    assert {"username", "password"} & found.keys() == {"username", "password"} & read.keys()


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("redis://:se#cret@host:6379/0", "# is %23"),
        ("redis://:12#cret@host:6379/0", "# is %23"),  # which would be port 12 of this machine
        ("redis://:se/cret@host:6379/0", "/ is %2F"),
        ("redis://other:6380/cret@host:6379/0", "a / or a ? before the @"),  # which would go to `other`
        ("redis://:1/se@cret/x@host", "a / or a ? before the @"),
        ("redis://:6?cret@host", "a / or a ? before the @"),
        ("redis://:se cret@host", "a space"),
        ("redis://:[secret@host", "host or port cannot be read"),
        ("redis://host:port", "host or port cannot be read"),
        ("redis://host:99999", "host or port cannot be read"),
        ("redis://host/prod", "a path that is no number of a database"),
        ("redis://host/1/2", "a path that is no number of a database"),
        ("redis://host/-1", "a path that is no number of a database"),
        ("redis://host?db=prod", "?db= must be a whole number"),
        ("redis://host/1?db=2", "names two databases"),
        ("redis+sentinel://host:26379/mymaster", "Sentinel is not spoken. Give the address of the primary"),
        ("sentinel://host:26379", "Sentinel is not spoken"),
        ("http://host", "is no URL of a Redis. Give redis://host:port/0"),
        ("host:6379", "is no URL of a Redis"),
        ("unix://run/redis.sock", "three slashes"),
        ("unix://", "three slashes"),
        ("redis://host?decode_responses=true", "?decode_responses= is none of its options. They are db, "),
        ("redis://host?protocol=3", "?protocol= is none of its options"),
        ("redis://host?ssl_ca_certs=/ca.crt", "rediss:// speaks and redis:// does not"),
        ("rediss://host?ssl_ca_certs=", "?ssl_ca_certs= has no value"),
        ("rediss://host?ssl_cert_reqs=CERT_NONE", "must be one of required, optional, none"),
        ("rediss://host?ssl_check_hostname=never", "must be one of true, false"),
    ],
)
def test_a_url_that_would_be_misread_is_refused_with_what_to_write(url: str, said: str) -> None:
    with pytest.raises(ValueError, match=re.escape(said)) as refused:
        checked_redis_url(url)
    assert "cret" not in str(refused.value)


@given(st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E), min_size=1, max_size=12))
def test_a_password_reaches_the_right_host_or_is_refused(password: str) -> None:
    """Whatever it holds; percent-encoded, it always does."""
    assert parse_url(checked_redis_url(f"redis://:{quote(password, safe='')}@host:1/2")) == {
        "host": "host",
        "port": 1,
        "db": 2,
        "password": password,
    }
    try:
        found = parse_url(checked_redis_url(f"redis://:{password}@host:1/2"))
    except ValueError:
        return
    assert (found["host"], found["port"], found["db"]) == ("host", 1, 2)


def test_a_file_of_certificates_that_cannot_be_used_is_named_by_its_option(tmp_path: Path) -> None:
    (tmp_path / "empty.crt").write_text("no certificate")
    check_certificates("rediss://host?ssl_cert_reqs=none")
    for option in ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile"):
        with pytest.raises(ValueError, match=rf"\?{option}=: No such file or directory"):
            check_certificates(f"rediss://host?{option}={tmp_path}/absent.crt")
        with pytest.raises(ValueError, match=rf"\?{option}=: holds no usable certificate"):
            check_certificates(f"rediss://host?{option}={tmp_path}/empty.crt")
