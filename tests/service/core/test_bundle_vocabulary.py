"""The file of a vocabulary: what is written is read again, and damage is named with its line."""

import gzip

import pytest

from service.core.bundle import FieldsSpec
from service.core.bundle_vocabulary import read_vocabulary, write_vocabulary
from service.core.item_fields import Vocabulary
from service.errors import ContractMismatch

NUMBERS = {"item_id": {"a": 1, "7": 2}, "brand": {}, "categories.2": {("x", "y"): 1, ("x", "y", "z"): 1}}
SPEC = FieldsSpec(names=("item_id", "brand", "categories.2"), num_values=(3, 1, 2))
LINE = '{"field": "item_id", "value": "a", "number": 1}'


def test_what_is_written_is_read_again(tmp_path):
    path = tmp_path / "vocabulary.jsonl.gz"
    assert write_vocabulary(path, Vocabulary(NUMBERS)) == SPEC
    found = read_vocabulary(path, SPEC)
    assert found.numbers == NUMBERS
    assert found.names == SPEC.names
    content = path.read_bytes()
    write_vocabulary(path, Vocabulary(NUMBERS))
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (['{"field": "color", "value": "red", "number": 1}'], ":1: not a value of a field .*'color'"),
        ([LINE, LINE], ":2: not a value of a field .'a' is there already"),
        (['{"field": "item_id", "value": "a", "number": 3}'], ":1: .*number 3 of 3"),
        (['{"field": "item_id", "value": "a", "number": 0}'], ":1: .*number 0 of 3"),
        (['{"field": "item_id", "value": "a", "number": true}'], ":1: .*number True of 3"),
        (['{"field": "item_id", "value": 5, "number": 1}'], ":1: .*5 is neither a text nor a path"),
        (['{"field": "item_id", "value": [], "number": 1}'], ":1: .*neither a text nor a path"),
        (['{"field": ["a"], "value": "a", "number": 1}'], ":1: not a value"),
        (["[]"], ":1: not a value"),
        (["{"], ":1: not whole"),
        ([LINE], r"its fields have \(2, 1, 1\) numbers, manifest says \(3, 1, 2\)"),
    ],
)
def test_a_file_that_is_none_is_refused_with_its_line_and_the_remedy(tmp_path, lines, fault):
    path = tmp_path / "vocabulary.jsonl.gz"
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    with pytest.raises(ContractMismatch, match=f"(?s){fault}.*[Ee]xport\\s+again"):
        read_vocabulary(path, SPEC)


def test_a_file_that_is_cut_off_or_missing_is_refused(tmp_path):
    path = tmp_path / "vocabulary.jsonl.gz"
    write_vocabulary(path, Vocabulary(NUMBERS))
    path.write_bytes(path.read_bytes()[:-12])
    for _ in range(2):
        with pytest.raises(ContractMismatch, match="not whole .*Copy it again, or export again"):
            read_vocabulary(path, SPEC)
        path.unlink(missing_ok=True)
