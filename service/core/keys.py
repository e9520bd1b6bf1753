"""API keys: how a setting holds them, how they are hashed, how new ones are made. Pure.

A setting may hold `sha256:` and the hash instead of the key. Then a person who reads the environment cannot
use the key. There is no salt and no slow hash, because a key from `new_key` has 256 random bits.
"""

import hmac
import re
import secrets
from collections.abc import Iterable
from hashlib import sha256

HASHED = "sha256:"
MIN_KEY_LENGTH = 16

_HASH = re.compile(HASHED + r"[0-9a-f]{64}")


def new_key() -> str:
    """A random key of 43 characters that are safe in a header, a URL and a shell."""
    return secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return HASHED + sha256(key.encode()).hexdigest()


def hashed(given_key: str) -> str:
    """The hash of a key that a setting holds plain or hashed. A ValueError does not show the key."""
    if given_key.startswith(HASHED):
        if not _HASH.fullmatch(given_key):
            raise ValueError(f"a hashed key is {HASHED} and 64 hexadecimal digits; `glyphrec key` prints one")
        return given_key
    if len(given_key) < MIN_KEY_LENGTH:
        raise ValueError(f"a key needs {MIN_KEY_LENGTH} characters or more, or it can be guessed")
    if not (given_key.isascii() and given_key.isprintable() and " " not in given_key):
        raise ValueError("a key must be printable ASCII without spaces, as it travels in a header")
    return hash_of(given_key)


def holds(hashes: Iterable[str], key: str) -> bool:
    """Whether `hashes` has the key's hash. It compares all of them, so the time tells nothing."""
    given, found = hash_of(key), False
    for each in hashes:
        found |= hmac.compare_digest(each, given)
    return found
