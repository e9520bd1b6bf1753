"""Reads an ONNX file, and makes tensors inside its graph readable from outside. Pure.

Tensors whose data lie in another file are found, because we refuse them: ONNX Runtime follows such a path if
it stays in the folder, but nobody has verified the file there. The onnx package is not installed where we
serve, so this walks protobuf's wire format, by the numbers of onnx.proto.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

# Field number -> kind of message, of all fields that lead to a tensor.
_MESSAGES = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node", 11: "attribute"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
    "tensor": {},
}
_TENSOR_NAME, _EXTERNAL_DATA, _DATA_LOCATION = 8, 13, 14
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5


_GRAPH, _NODE, _OUTPUT, _VALUE_NAME = 7, 1, 12, 1  # of a model, of a graph twice, of a value
_NODE_OUTPUT, _OP_TYPE = 2, 4


class _Field(NamedTuple):
    number: int
    value: int | memoryview


def external_tensors(model: bytes) -> list[str]:
    """The names of tensors whose data are in other files. Raises ValueError if `model` is not protobuf."""
    return list(_external(memoryview(model), "model"))


def outputs_of(model: bytes, op_type: str) -> list[list[str]]:
    """The names of the outputs of each node of this type, in the order of the graph. Not of nested graphs.

    Raises ValueError if `model` is not protobuf.
    """
    nodes = (node for graph in _messages(memoryview(model), _GRAPH) for node in _messages(graph, _NODE))
    return [
        [bytes(each).decode() for each in _messages(node, _NODE_OUTPUT)]
        for node in nodes
        if [bytes(each).decode() for each in _messages(node, _OP_TYPE)] == [op_type]
    ]


def with_outputs(model: bytes, names: Iterable[str]) -> bytes:
    """The same model, whose graph also gives these tensors as outputs.

    Protobuf merges messages that follow one another, and a second graph with nothing but outputs adds them.
    """
    values = (_written(_OUTPUT, _written(_VALUE_NAME, name.encode())) for name in names)
    return model + _written(_GRAPH, b"".join(values))


def _written(number: int, value: bytes) -> bytes:
    length, rest = b"", len(value)
    while rest >= 0x80:
        length, rest = length + bytes([rest & 0x7F | 0x80]), rest >> 7
    return bytes([number << 3 | _BYTES]) + length + bytes([rest]) + value


def _messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """The fields of this number that are messages or texts."""
    return (
        each.value
        for each in _fields(message)
        if each.number == number and isinstance(each.value, memoryview)
    )


def _external(message: memoryview, kind: str) -> Iterator[str]:
    if kind == "tensor":
        values = {each.number: each.value for each in _fields(message)}
        if _EXTERNAL_DATA in values or values.get(_DATA_LOCATION):
            name = values.get(_TENSOR_NAME, b"")
            yield "unnamed" if isinstance(name, int) else bytes(name).decode(errors="replace")
        return
    inner = _MESSAGES[kind]
    for each in _fields(message):
        if each.number in inner and isinstance(each.value, memoryview):
            yield from _external(each.value, inner[each.number])


def _fields(message: memoryview) -> Iterator[_Field]:
    place = 0
    while place < len(message):
        tag, place = _varint(message, place)
        number, wire = tag >> 3, tag & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
            yield _Field(number, value)
            continue
        if wire == _BYTES:
            length, place = _varint(message, place)
        elif wire in (_FIXED64, _FIXED32):
            length = 8 if wire == _FIXED64 else 4
        else:
            raise ValueError(f"wire type {wire}")
        if place + length > len(message):
            raise ValueError("cut off")
        yield _Field(number, message[place : place + length])
        place += length


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """The number, and the position after it."""
    value = 0
    for shift in range(0, 70, 7):
        if place == len(message):
            raise ValueError("cut off")
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, place
    raise ValueError("a number has more than ten bytes")
