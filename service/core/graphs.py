"""The inputs and outputs of a bundle's graphs: names, types and shapes of their tensors."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from service.core.sid import Frozen, SidSpec

FILLER_SCORE = -1e8  # a beam below this is a filler: there are fewer live prefixes than beams
NO_PICTURE = -1  # in `picture_of`: the item has no photo
PADDING = -1  # every level of a history position without an item


class TensorSpec(Frozen):
    """One tensor of a graph. A dimension is a number, or a name if it may vary between runs."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphSpec(Frozen):
    """The tensors of an ONNX graph, in order. The export promises them and the service checks them."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


class Neighbors(NamedTuple):
    """For each history of a batch, the items that were taken together with its items (core/co_counts.py).

    A place without a neighbor has PADDING and mass 0. There is at least one place.
    """

    prefixes: NDArray[np.int64]  # [batch, neighbor]  full prefixes, each at most once
    mass: NDArray[np.float32]  # [batch, neighbor]  in units of what every item has without any count

    @classmethod
    def none(cls, batch: int) -> "Neighbors":
        """No neighbors: the search then has no opinion from counts."""
        return cls(np.full((batch, 1), PADDING, np.int64), np.zeros((batch, 1), np.float32))


def tokenizer_graph(
    spec: SidSpec,
    *,
    height: int,
    width: int,
    vector_dim: int,
    picture_px: int | None = None,
    num_fields: int = 0,
) -> GraphSpec:
    """The tokenizer's tensors.

    Items have different numbers of strips, so the strips of a batch follow one another. `first_strip` [item]
    is the index of each item's first strip, ascending from 0 (as the offsets of torch.nn.EmbeddingBag).

    With `picture_px` the tokenizer also reads photos: `pictures` are RGB squares of that side, and
    `picture_of` [item] is the index of each item's photo among them, or NO_PICTURE. A batch may have no
    pictures at all.

    With `num_fields` it also reads the numbers of so many fields, as core/item_fields.py gives them, or how
    many of an item's strips belong to each, as core/drawn_fields.py draws them.
    """
    photos: tuple[TensorSpec, ...] = ()
    if picture_px is not None:
        photos = (
            TensorSpec(name="pictures", dtype="uint8", shape=("picture", picture_px, picture_px, 3)),
            TensorSpec(name="picture_of", dtype="int64", shape=("item",)),
        )
    return GraphSpec(
        inputs=(
            TensorSpec(name="strips", dtype="uint8", shape=("strip", height, width)),
            TensorSpec(name="first_strip", dtype="int64", shape=("item",)),
            *photos,
            *([_fields(num_fields)] if num_fields else []),
        ),
        outputs=_codes_and_vector(spec, vector_dim),
    )


def field_tokenizer_graph(spec: SidSpec, num_fields: int, vector_dim: int) -> GraphSpec:
    """The tensors of a tokenizer that reads fields and no pixels."""
    return GraphSpec(inputs=(_fields(num_fields),), outputs=_codes_and_vector(spec, vector_dim))


def _fields(num_fields: int) -> TensorSpec:
    return TensorSpec(name="fields", dtype="int64", shape=("item", num_fields))


def _codes_and_vector(spec: SidSpec, vector_dim: int) -> tuple[TensorSpec, ...]:
    return (
        TensorSpec(name="codes", dtype="int64", shape=("item", spec.num_levels)),
        TensorSpec(name="vector", dtype="float32", shape=("item", vector_dim)),
    )


def recommender_graph(spec: SidSpec) -> GraphSpec:
    """The recommender's tensors.

    `history` holds codes, oldest first, with PADDING on the left. Only the length of `beams_l` matters: the
    number of prefixes that survive level l. These are inputs so that a request can widen its search.
    `neighbors` and `neighbor_mass` are those of Neighbors.
    """
    beams = tuple(
        TensorSpec(name=f"beams_{level}", dtype="int64", shape=(f"beam_{level}",))
        for level in range(1, spec.num_levels + 1)
    )
    last = f"beam_{spec.num_levels}"
    return GraphSpec(
        inputs=(
            TensorSpec(name="history", dtype="int64", shape=("batch", "position", spec.num_levels)),
            TensorSpec(name="neighbors", dtype="int64", shape=("batch", "neighbor")),
            TensorSpec(name="neighbor_mass", dtype="float32", shape=("batch", "neighbor")),
            *beams,
            *trie_tables(spec),
        ),
        outputs=(
            TensorSpec(name="codes", dtype="int64", shape=("batch", last, spec.num_levels)),
            TensorSpec(name="scores", dtype="float32", shape=("batch", last)),
            TensorSpec(name="bound", dtype="float32", shape=("batch",)),
        ),
    )


def ranker_graph(spec: SidSpec) -> GraphSpec:
    """The tensors of the ranker, which scores given candidates after a history. A bundle may have none.

    `history` holds codes, oldest first, with PADDING on the left: at least one position, and only PADDING if
    no item of the history is known. `candidates` holds the codes of the items to score. Where a batch has
    fewer for one history than for another, all levels are PADDING, and the score there means nothing.
    `popularity` has for each candidate how often training took it, as items.jsonl.gz has it: 0 for a new
    item. `neighbors` and `neighbor_mass` are those of Neighbors, for this history.

    `scores` are log-odds: the higher, the more likely the candidate is taken. They are finite. The score of a
    candidate depends on nothing but its history, its codes, its popularity and the neighbors, so neither on
    the other candidates nor on the other histories of the batch.
    """
    return GraphSpec(
        inputs=(
            TensorSpec(name="history", dtype="int64", shape=("batch", "position", spec.num_levels)),
            TensorSpec(name="candidates", dtype="int64", shape=("batch", "candidate", spec.num_levels)),
            TensorSpec(name="popularity", dtype="float32", shape=("batch", "candidate")),
            TensorSpec(name="neighbors", dtype="int64", shape=("batch", "neighbor")),
            TensorSpec(name="neighbor_mass", dtype="float32", shape=("batch", "neighbor")),
        ),
        outputs=(TensorSpec(name="scores", dtype="float32", shape=("batch", "candidate")),),
    )


def trie_tables(spec: SidSpec) -> tuple[TensorSpec, ...]:
    """The tables of trie.SidTrie: `live_l` has a bit for each code of level l after each parent prefix."""
    rows: list[int | str] = [*spec.num_parents]
    index: tuple[TensorSpec, ...] = ()
    if spec.is_paged:
        index = (TensorSpec(name="page_of", dtype="int32", shape=(spec.num_parents[-1],)),)
        rows[-1] = "page"
    live = tuple(
        TensorSpec(name=f"live_{level}", dtype="uint8", shape=(count, width))
        for level, (count, width) in enumerate(zip(rows, spec.row_bytes, strict=True), start=1)
    )
    return (*live[:-1], *index, live[-1])


def beam_widths(spec: SidSpec, num_beams: int) -> tuple[int, ...]:
    """How many prefixes a search with `num_beams` keeps after each level: at most as many as there can be."""
    widths: list[int] = []
    for num_codes in spec.levels:
        widths.append(min(num_beams, (widths[-1] if widths else 1) * num_codes))
    return tuple(widths)
