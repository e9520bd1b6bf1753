"""Cells on how the generator embeds the items of a history (docs/embeddings.md)."""

from dataclasses import fields, replace

from model_export.configs import HashedTreeConfig, RunConfig, TreeConfig
from model_export.ranker_config import ParameterizationKind
from model_export.study.cell import Cell

# A generator sees codes and no ids, and its codes have three levels: no individual rows, and no fourgrams.
KINDS: dict[ParameterizationKind, str] = {
    "plain-sum": "a vector for each code, added up",
    "trigram": "a row for all three codes",
    "all-bigrams": "rows of all bigrams",
    "all-ngrams": "rows of all n-grams",
    "random-hash": "a hashed row for all codes",
}


def history_cells(learnt: RunConfig) -> list[Cell]:
    """`learnt`, which adds up the rows of prefixes, with each other way."""
    tree = learnt.generator
    assert isinstance(tree, TreeConfig)
    same = {field.name: getattr(tree, field.name) for field in fields(TreeConfig)}
    return [
        Cell(
            f"history_{kind.replace('-', '_')}",
            f"tree, history items by {words}",
            ("generators",),
            replace(learnt, generator=HashedTreeConfig(**same, history=kind)),
        )
        for kind, words in KINDS.items()
    ]
