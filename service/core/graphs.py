"""What goes into the two graphs of a bundle and what comes out: names, types and shapes of their tensors."""

from service.core.sid import Frozen, SidSpec

FILLER = -1e8  # a beam scored below this stands for nothing: fewer live prefixes than beams
PADDING = -1  # a history position that holds no item has this in every level


class TensorSpec(Frozen):
    """One tensor of a graph. A dimension is a number, or a name where it may vary between runs."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphSpec(Frozen):
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def tokenizer_graph(spec: SidSpec, *, height: int, width: int, vector_dim: int) -> GraphSpec:
    """The tokenizer's tensors.

    Items have different numbers of strips, so strips of a batch lie one after another and `first_strip`
    [item] says where each item's begin, ascending from 0 (the layout of torch.nn.EmbeddingBag's offsets).
    """
    return GraphSpec(
        inputs=(
            TensorSpec(name="strips", dtype="uint8", shape=("strip", height, width)),
            TensorSpec(name="first_strip", dtype="int64", shape=("item",)),
        ),
        outputs=(
            TensorSpec(name="codes", dtype="int64", shape=("item", spec.num_levels)),
            TensorSpec(name="vector", dtype="float32", shape=("item", vector_dim)),
        ),
    )


def recommender_graph(spec: SidSpec) -> GraphSpec:
    """The recommender's tensors.

    `history` holds codes, oldest first, with PADDING on the left. `beams_l` carries nothing but its length,
    the number of prefixes that survive level l; they are inputs so that a request can widen its search.
    """
    beams = tuple(
        TensorSpec(name=f"beams_{level}", dtype="int64", shape=(f"beam_{level}",))
        for level in range(1, spec.num_levels + 1)
    )
    last = f"beam_{spec.num_levels}"
    return GraphSpec(
        inputs=(
            TensorSpec(name="history", dtype="int64", shape=("batch", "position", spec.num_levels)),
            *beams,
            *trie_tables(spec),
        ),
        outputs=(
            TensorSpec(name="codes", dtype="int64", shape=("batch", last, spec.num_levels)),
            TensorSpec(name="scores", dtype="float32", shape=("batch", last)),
            TensorSpec(name="bound", dtype="float32", shape=("batch",)),
        ),
    )


def trie_tables(spec: SidSpec) -> tuple[TensorSpec, ...]:
    """The tables of trie.SidTrie: `live_l` has one bit for each code of level l after each parent prefix."""
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
    """How many prefixes a search of `num_beams` keeps after each level: never more than there can be."""
    widths: list[int] = []
    for num_codes in spec.levels:
        widths.append(min(num_beams, (widths[-1] if widths else 1) * num_codes))
    return tuple(widths)
