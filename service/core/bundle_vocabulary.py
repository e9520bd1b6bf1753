"""The vocabulary of a bundle: the only reader and writer of vocabulary.jsonl.gz, for service and export.

A line has a field, one of its values, and the value's number:

    {"field": "brand", "value": "acme", "number": 3}

A path of categories is a list. The fields stand in the order of the manifest.
"""

from pathlib import Path
from typing import Any

from service.core.bundle import VOCABULARY, Bundle, FieldsSpec
from service.core.bundle_items import MAX_INFLATION
from service.core.item_fields import UNKNOWN, Value, Vocabulary
from service.core.json_lines import JsonLinesError, read_json_lines, write_json_lines
from service.errors import ContractMismatch


def bundle_vocabulary(bundle: Bundle) -> Vocabulary | None:
    """The vocabulary, or None if no fields are read. Raises ContractMismatch with the line at fault."""
    spec = bundle.manifest.fields
    return None if spec is None else read_vocabulary(bundle.file(VOCABULARY), spec)


def read_vocabulary(path: Path, spec: FieldsSpec) -> Vocabulary:
    """Read a file, which must agree with the manifest. Raises ContractMismatch with the line at fault."""
    numbers: dict[str, dict[Value, int]] = {name: {} for name in spec.names}
    most = dict(zip(spec.names, spec.num_values, strict=True))
    try:
        # As for the items: no export unpacks to more.
        max_bytes = MAX_INFLATION * path.stat().st_size if path.is_file() else None
        for number, line in read_json_lines(path, max_bytes=max_bytes, allow_blank=False):
            try:
                name, value = line["field"], _value(line["value"])
                if value in numbers[name]:
                    raise ValueError(f"{value!r} is there already")
                if type(line["number"]) is not int or not UNKNOWN < line["number"] < most[name]:
                    raise ValueError(f"number {line['number']!r} of {most[name]}")
            except (ValueError, TypeError, KeyError) as error:
                raise ContractMismatch(
                    f"{path}:{number}: not a value of a field ({error}). Export again."
                ) from error
            numbers[name][value] = line["number"]
    except JsonLinesError as error:
        raise ContractMismatch(
            f"{error.where}: not whole ({error.problem}). Copy it again, or export again."
        ) from error
    found = Vocabulary(numbers)
    if found.num_values != spec.num_values:
        raise ContractMismatch(
            f"{path}: its fields have {found.num_values} numbers, manifest says {spec.num_values}. Export "
            "again."
        )
    return found


def write_vocabulary(
    path: Path, vocabulary: Vocabulary, *, beside_pixels: bool = False, drawn: bool = False
) -> FieldsSpec:
    """Write the vocabulary, whole or not at all. Returns what the manifest says of it."""
    write_json_lines(
        path,
        (
            {"field": name, "value": value, "number": number}
            for name, known in vocabulary.numbers.items()
            for value, number in known.items()
        ),
    )
    return FieldsSpec(
        names=vocabulary.names, num_values=vocabulary.num_values, beside_pixels=beside_pixels, drawn=drawn
    )


def _value(raw: Any) -> Value:
    if isinstance(raw, str) and raw:
        return raw
    if isinstance(raw, list) and raw and all(isinstance(part, str) for part in raw):
        return tuple(raw)
    raise ValueError(f"{raw!r} is neither a text nor a path")
