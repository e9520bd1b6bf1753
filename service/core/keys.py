"""API keys: how a setting spells them, and how they are hashed and made. Pure.

A setting may hold `sha256:` and the hash instead of the key, so that nobody who reads the environment can
use it. No salt and no slow hash: a key of `new_key` has 256 random bits, which nobody guesses.
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
    """43 characters that fit into a header, an URL and a shell."""
    return secrets.token_urlsafe(32)


def hash_of(key: str) -> str:
    """`sha256:` and 64 hexadecimal digits."""
    return HASHED + sha256(key.encode()).hexdigest()


def hashed(spelt: str) -> str:
    """The hash of a key that a setting holds plain or hashed. Raises ValueError, without the key in it."""
    if spelt.startswith(HASHED):
        if not _HASH.fullmatch(spelt):
            raise ValueError(f"a hashed key is {HASHED} and 64 hexadecimal digits; `glyphrec key` prints one")
        return spelt
    if len(spelt) < MIN_KEY_LENGTH:
        raise ValueError(f"a key needs {MIN_KEY_LENGTH} characters or more, or it can be guessed")
    if not (spelt.isascii() and spelt.isprintable() and " " not in spelt):
        raise ValueError("a key must be printable ASCII without spaces, as it travels in a header")
    return hash_of(spelt)


def holds(hashes: Iterable[str], key: str) -> bool:
    """Whether one of `hashes` is the key's. Compares all of them: the time tells nothing about which."""
    given, found = hash_of(key), False
    for each in hashes:
        found |= hmac.compare_digest(each, given)
    return found
