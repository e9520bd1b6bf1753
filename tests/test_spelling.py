"""Every tracked text is in American spelling, but for names that others hold."""

import re
from pathlib import Path

import pytest

from tests.house import ROOT, texts

# Stems with an ending that is British after them, so that `promise` and `organism` pass; then whole words.
BRITISH = re.compile(
    r"(?:author|categor|character|custom|emphas|general|initial|maxim|minim|normal|optim|organ|parametr|prior|quant"
    r"|random|real|recogn|regular|serial|special|standard|summar|synchron|token|util|vector|visual)"
    r"is(?:e[drs]?|ing|ation)"
    r"|analyse|artefact|behaviour|catalogue|colour|favour|labelled|labelling|licence|modelled|modelling|neighbour"
    r"|travelled",
    flags=re.IGNORECASE,
)
# Names that users, dashboards, bundles or libraries hold, each with where it is a contract.
KEPT_BRITISH = {
    r"--tokenised\b": "the former spelling of a flag of `glyphrec import`, which still works",
    r"""\btokenise(?=\\?["'`=,])""": "the name of a stage in metrics, in traces and in Server-Timing",
    r"\bglyphrec-catalogue\b": "the uid of a dashboard, which links and bookmarks hold",
    r"\bsettings_customise_sources\b": "a method that pydantic-settings calls",
}
# What a program wrote from names of its own.
GENERATED = re.compile(r"^(docs/study\.json|docs/(study|embeddings)/cells/.*|deploy/requirements-.*\.txt)$")


def british_in(text: str) -> list[str]:
    return BRITISH.findall(re.sub("|".join(KEPT_BRITISH), "", text))


def test_every_text_is_in_american_spelling() -> None:
    own = str(Path(__file__).relative_to(ROOT))
    found = {
        name: sorted({word.lower() for word in british_in(f"{name}\n{text}")})
        for name, text in texts().items()
        if name != own and not GENERATED.match(name)
    }
    assert {name: words for name, words in found.items() if words} == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("Tokenises the colours of neighbours.", ["Tokenises", "colour", "neighbour"]),
        ("tokenizes colors; an organism that raises a promise, otherwise precise", []),
        ('`glyphrec import --tokenised`, stage="tokenise", stage=\\"tokenise\\"', []),
        ("normalised_catalogue", ["normalised", "catalogue"]),
    ],
)
def test_a_british_spelling_is_told_from_a_word_that_looks_like_one(text: str, words: list[str]) -> None:
    assert british_in(text) == words


def test_every_british_name_that_is_kept_is_still_used() -> None:
    own = str(Path(__file__).relative_to(ROOT))
    everything = "\n".join(text for name, text in texts().items() if name != own)
    assert [each for each in KEPT_BRITISH if not re.search(each, everything)] == []
