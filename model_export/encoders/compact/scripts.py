"""Which letters of a catalog the compact reader was not taught: it reads them weakly, and says nothing."""

import unicodedata
from collections import Counter
from collections.abc import Iterable

from model_export.encoders.compact.reader import ALPHABET

_TAUGHT = frozenset("".join(ALPHABET[:-1]))  # the last stands for every other character


def untaught_scripts(texts: Iterable[str]) -> dict[str, float]:
    """The share of all letters that belongs to letters the reader was not taught, by script.

    A script is the first word of a letter's Unicode name: Cyrillic, Greek, Hebrew. The largest share comes
    first.
    """
    letters: Counter[str] = Counter()
    for text in texts:
        letters.update(unicodedata.normalize("NFC", text))
    for character in list(letters):
        if not character.isalpha():
            del letters[character]
    untaught: Counter[str] = Counter()
    for letter, count in letters.items():
        if letter not in _TAUGHT:
            untaught[unicodedata.name(letter, "unknown").split()[0].capitalize()] += count
    total = letters.total()
    return {script: count / total for script, count in untaught.most_common()}
