"""What an export promises and the service checks: Semantic IDs, tensor names, the manifest of a bundle.

A bundle is a folder, written once and never edited. `load_bundle` verifies every file before anything is
served.
"""

import hashlib
import json
import math
from pathlib import Path
from typing import Any, Literal, NamedTuple, NoReturn, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from service.errors import ContractMismatch

FORMAT_VERSION = 2  # 2: the recommender reads rows of bits, and a width for each level

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.onnx"
RECOMMENDER = "recommender.onnx"
ITEMS = "items.jsonl.gz"

# A slot travels as two bytes beside the codes, and none is left unused as a mark.
NUM_SLOTS = 65_535
# Codes travel as two bytes each in Redis' sorted set.
MAX_CODES_PER_LEVEL = 65_536
# Above this the rows of the deepest level are pages, given out on demand (trie.SidTrie).
MAX_DENSE_BYTES = 2**26
# The index of the pages has 4 bytes for each parent prefix of the deepest level: 256 MiB at this.
MAX_PARENTS = 2**26

FILLER = -1e8  # a beam scored below this stands for nothing: fewer live prefixes than beams
# What a manifest may ask for at most, so that a damaged one asks for no memory that nobody has.
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_HISTORY_LENGTH = 10_000
MAX_BEAM_LIMIT = 100_000

PADDING = -1  # a history position that holds no item has this in every level

LINE_PX = (8, 64)  # lowest and highest line of text

Codes = tuple[int, ...]


class Sid(NamedTuple):
    """A Semantic ID: codes carry meaning, the slot only tells items with the same codes apart."""

    codes: Codes
    slot: int

    def __str__(self) -> str:
        return "-".join(map(str, (*self.codes, self.slot)))


class _Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SidSpec(_Frozen):
    """How many codes each level has, outermost first: `levels=(64, 64, 32)`."""

    levels: tuple[int, ...] = Field(min_length=1, max_length=8)
    paged: bool | None = Field(
        default=None, description="whether the trie's deepest level is paged; null: where it is too large"
    )

    @field_validator("levels")
    @classmethod
    def _levels_fit(cls, levels: tuple[int, ...]) -> tuple[int, ...]:
        if any(not 1 <= codes <= MAX_CODES_PER_LEVEL for codes in levels):
            raise ValueError(f"each level needs 1 to {MAX_CODES_PER_LEVEL} codes, got {levels}")
        if math.prod(levels[:-1]) > MAX_PARENTS:
            raise ValueError(
                f"{levels} has {math.prod(levels[:-1])} prefixes above the last level; the trie's index "
                f"holds {MAX_PARENTS}. Use fewer or smaller levels"
            )
        return levels

    @property
    def num_levels(self) -> int:
        return len(self.levels)

    @property
    def num_prefixes(self) -> tuple[int, ...]:
        """How many different prefixes each level has: K1, K1*K2, …"""
        return tuple(math.prod(self.levels[: level + 1]) for level in range(self.num_levels))

    @property
    def num_parents(self) -> tuple[int, ...]:
        """How many different prefixes lead to each level: 1, K1, K1*K2, …"""
        return (1, *self.num_prefixes[:-1])

    @property
    def row_bytes(self) -> tuple[int, ...]:
        """Bytes of one trie row of each level: a bit for each code."""
        return tuple(-(-num_codes // 8) for num_codes in self.levels)

    @property
    def is_paged(self) -> bool:
        if self.paged is not None:
            return self.paged
        return self.num_parents[-1] * self.row_bytes[-1] > MAX_DENSE_BYTES

    def check(self, codes: Codes) -> None:
        """Raise ValueError unless `codes` has one code of each level, each within its level."""
        fits = len(codes) == self.num_levels and all(
            0 <= c < k for c, k in zip(codes, self.levels, strict=True)
        )
        if not fits:
            raise ValueError(f"codes {codes} do not fit the levels {self.levels}")

    def prefixes(self, codes: Codes) -> tuple[int, ...]:
        """The prefix of each level as one integer: p1 = c1, p2 = c1*K2 + c2, …"""
        prefix, found = 0, []
        for code, num_codes in zip(codes, self.levels, strict=True):
            prefix = prefix * num_codes + code
            found.append(prefix)
        return tuple(found)

    def prefixes_of(self, codes: NDArray[np.integer[Any]]) -> tuple[NDArray[np.int64], ...]:
        """`prefixes` of many at once: codes [item, level] -> for each level the prefixes [item]."""
        prefix = np.zeros(len(codes), dtype=np.int64)
        found = []
        for level, num_codes in enumerate(self.levels):
            prefix = prefix * num_codes + codes[:, level]
            found.append(prefix)
        return tuple(found)

    def codes_of(self, prefix: int) -> Codes:
        """The codes whose full prefix is `prefix`; the inverse of `prefixes(codes)[-1]`."""
        codes = []
        for num_codes in reversed(self.levels):
            prefix, code = divmod(prefix, num_codes)
            codes.append(code)
        return tuple(reversed(codes))


class TensorSpec(_Frozen):
    """One tensor of a graph. A dimension is a number, or a name where it may vary between runs."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


class GraphSpec(_Frozen):
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


class FileRecord(_Frozen):
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_bytes: int = Field(ge=0)


class RenderSpec(_Frozen):
    """How an item's text becomes strips of pixels; only service/core/render.py reads it."""

    height_px: int = Field(default=16, ge=8, le=4096, description="of a strip, with all of its lines")
    width_px: int = Field(default=216, ge=32, le=2048)
    lines_per_strip: int = Field(default=1, ge=1, le=256, description="more than one makes a strip a page")
    max_strips: int = Field(default=5, ge=1, le=64)
    squeeze: float = Field(default=0.6, gt=0.2, le=1.0, description="horizontal scale of the letters")
    font: str = Field(default="DejaVuSans.ttf", description="a file of service/fonts")
    font_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", description="filled in by the export")
    fields: tuple[str, ...] = Field(
        default=("title", "brand", "categories", "*", "description"),
        description="the order of an item's fields; * stands for all others, by name",
    )

    @property
    def line_px(self) -> int:
        return self.height_px // self.lines_per_strip

    @model_validator(mode="after")
    def _lines_fit(self) -> Self:
        low, high = LINE_PX
        if self.height_px % self.lines_per_strip or not low <= self.line_px <= high:
            raise ValueError(
                f"{self.lines_per_strip} lines do not share height_px={self.height_px} in whole pixels, "
                f"{low} to {high} each. Choose height_px as lines_per_strip times the height of a line"
            )
        return self


class Manifest(_Frozen):
    """manifest.json. Everything the service needs to know before it opens a graph."""

    format_version: Literal[2]
    export_key: str = Field(description="equal for equal data, configuration and versions of the stages")
    created_at: str
    config: str
    sid: SidSpec
    render: RenderSpec
    tokenizer_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    recommender_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    trained_for_tokenizer_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    tokenizer: GraphSpec
    recommender: GraphSpec
    generator: str
    precision: Literal["float32", "int8"] = Field(
        default="float32", description="of the recommender's weight products"
    )
    history_length: int = Field(ge=1, le=MAX_HISTORY_LENGTH)
    beam_limit: int = Field(ge=1, le=MAX_BEAM_LIMIT)
    data_fingerprint: str
    data_name: str
    num_items: int = Field(ge=0)
    metrics: dict[str, float]
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _same_tokenizer(self) -> Self:
        if self.trained_for_tokenizer_id != self.tokenizer_id:
            raise ValueError(
                f"the recommender was trained for tokenizer {self.trained_for_tokenizer_id}, "
                f"but the bundle holds {self.tokenizer_id}"
            )
        return self

    @model_validator(mode="after")
    def _graphs_of_this_spec(self) -> Self:
        dims = [
            tensor.shape[-1] for tensor in self.tokenizer.outputs if tensor.name == "vector" and tensor.shape
        ]
        dim = dims[0] if dims and isinstance(dims[0], int) else 0
        height, width = self.render.height_px, self.render.width_px
        if self.tokenizer != tokenizer_graph(self.sid, height=height, width=width, vector_dim=dim):
            raise ValueError(
                f"tokenizer: its tensors are not those of levels {self.sid.levels} and this render"
            )
        if self.recommender != recommender_graph(self.sid):
            raise ValueError(f"recommender: its tensors are not those of levels {self.sid.levels}")
        return self


class Bundle(NamedTuple):
    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        return self.path / name


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load_bundle(path: Path) -> Bundle:
    """Read and verify a bundle. Raises ContractMismatch with the file at fault and the remedy."""
    manifest_path = path / MANIFEST
    raw = _read_json(manifest_path)
    version = raw.get("format_version") if isinstance(raw, dict) else None
    if version != FORMAT_VERSION:
        raise ContractMismatch(
            f"{manifest_path}: format version {version!r}, this service reads {FORMAT_VERSION}. "
            "Export again with the glyphrec release that serves."
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        raise ContractMismatch(f"{manifest_path}: {where}: {first['msg']}. Export again.") from error
    for name, record in manifest.files.items():
        _check_file(path, name, record)
    for name in (TOKENIZER, RECOMMENDER, ITEMS):
        if name not in manifest.files:
            raise ContractMismatch(f"{manifest_path}: lists no {name}. Export again.")
    return Bundle(path, manifest)


def _read_json(path: Path) -> Any:
    if not path.is_file():
        raise ContractMismatch(f"{path}: not found. Give the folder that `glyphrec export --out` wrote.")
    try:
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise ContractMismatch(f"{path}: over {MAX_MANIFEST_BYTES} bytes, so it is none. Export again.")
        return json.loads(content.decode("utf-8"), parse_constant=_no_number)
    except OSError as error:
        raise ContractMismatch(f"{path}: cannot be read ({error.strerror}).") from error
    except (ValueError, RecursionError) as error:
        raise ContractMismatch(f"{path}: not JSON ({error}). Export again.") from error


def _no_number(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is no number there")


def _check_file(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a NUL, a loop of links: nothing there has that name
        inside = False
    if not inside:
        raise ContractMismatch(f"{folder / MANIFEST}: {name!r} lies outside the bundle. Export again.")
    try:
        if not path.is_file():
            raise ContractMismatch(f"{path}: missing. Copy the whole bundle, or export again.")
        num_bytes, found = path.stat().st_size, ""
        if num_bytes == record.num_bytes:
            found = sha256_of(path)
    except OSError as error:
        raise ContractMismatch(
            f"{path}: cannot be read ({error.strerror}). Copy the whole bundle."
        ) from error
    if num_bytes != record.num_bytes:
        raise ContractMismatch(
            f"{path}: {num_bytes} bytes, manifest says {record.num_bytes}. Copy it again, or export again."
        )
    if found != record.sha256:
        raise ContractMismatch(
            f"{path}: sha256 is {found[:12]}, manifest says {record.sha256[:12]}. "
            "Copy it again, or export again."
        )
