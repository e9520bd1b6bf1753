"""The manifest of a bundle: the promises of an export, which the service checks.

A bundle is a folder that is written once and never edited. `load_bundle` verifies every file before any
of them is used.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

from pydantic import (
    Field,
    SerializerFunctionWrapHandler,
    ValidationError,
    model_serializer,
    model_validator,
)

from service.core.co_counts import CoCountSpec
from service.core.graphs import (
    GraphSpec,
    field_tokenizer_graph,
    ranker_graph,
    recommender_graph,
    tokenizer_graph,
)
from service.core.json_lines import parse_json
from service.core.readable import why_unreadable
from service.core.sid import Frozen, SidSpec
from service.errors import ContractMismatch

# 2: the recommender reads rows of bits, and a width for each level. 3: it reads neighbors of the history.
# 4: the tokenizer reads pictures. 5: there is a ranker. 6: fields are read as pictures. A change that older
# releases cannot read takes a new number. A bundle has the lowest number that fits it, so that older releases
# can serve what they understand.
FormatVersion = Literal[3, 4, 5, 6]
FORMAT_VERSION: Literal[6] = 6
READABLE = (3, 4, 5, 6)

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.onnx"
RECOMMENDER = "recommender.onnx"
RANKER = "ranker.onnx"  # only if the manifest has a RankerSpec
ITEMS = "items.jsonl.gz"
CO_COUNTS = "co_counts.jsonl.gz"  # only if the manifest has a CoCountSpec
VOCABULARY = "vocabulary.jsonl.gz"  # only if the manifest has a FieldsSpec

# Upper limits, so that a damaged manifest cannot ask for more memory than there is.
MAX_MANIFEST_BYTES = 16 * 2**20
MAX_HISTORY_LENGTH = 10_000
MAX_BEAM_LIMIT = 100_000

UNIT_PX = 512  # side of CARD's unit (service/core/unit.py)
LINE_PX = (8, 64)  # lowest and highest line of text


class FileRecord(Frozen):
    """Size and SHA-256 of one file of the bundle. `load_bundle` compares both."""

    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    num_bytes: int = Field(ge=0)


class RenderSpec(Frozen):
    """How an item's text becomes strips of pixels. Only service/core/render.py uses it."""

    height_px: int = Field(default=16, ge=8, le=4096, description="of a strip, with all of its lines")
    width_px: int = Field(default=216, ge=32, le=2048)
    lines_per_strip: int = Field(default=1, ge=1, le=256, description="more than one makes a strip a page")
    max_strips: int = Field(default=5, ge=1, le=64)
    squeeze: float = Field(default=0.6, gt=0.2, le=1.0, description="horizontal scale of the letters")
    font: str = Field(default="DejaVuSans.ttf", description="a file of service/core/fonts")
    font_sha256: str = Field(default="", pattern=r"^([0-9a-f]{64})?$", description="filled in by the export")
    fields: tuple[str, ...] = Field(
        default=("title", "brand", "categories", "*", "description"),
        description="the order of an item's fields; * stands for all others, by name",
    )

    @property
    def line_px(self) -> int:
        """Height of one line of text in pixels."""
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


class PictureSpec(Frozen):
    """How an item's photo becomes pixels. Only service/core/pictures.py uses it."""

    size_px: int = Field(default=224, ge=32, le=1024, description="side of the square that the encoder reads")
    shows: Literal["photo", "unit"] = Field(
        default="photo", description="what the square shows: the photo, or CARD's unit of photo and text"
    )

    @model_validator(mode="after")
    def _unit_has_its_size(self) -> Self:
        if self.shows == "unit" and self.size_px != UNIT_PX:
            raise ValueError(f"a unit has {UNIT_PX} pixels, not {self.size_px}")
        return self


class FieldsSpec(Frozen):
    """Which fields the tokenizer reads: by their values (service/core/item_fields.py), or as pictures
    (service/core/drawn_fields.py).
    """

    names: tuple[str, ...] = Field(
        min_length=1, max_length=100, description='in order: "item_id", "brand", "categories.2", ...'
    )
    num_values: tuple[int, ...] = Field(description="numbers of each field, with 0 for what is unknown")
    beside_pixels: bool = Field(
        default=False, description="true: the tokenizer reads them and pixels; false: it reads no pixels"
    )
    drawn: bool = Field(
        default=False,
        description="true: the strips of an item are those of each field in turn, and the graph's input "
        "`fields` has the number of strips of each; the item's text is the field item_id, the first one",
    )

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if len(set(self.names)) != len(self.names) or len(self.num_values) != len(self.names):
            raise ValueError(f"{self.num_values} are not numbers of values of the fields {self.names}")
        if min(self.num_values) < 1:
            raise ValueError(f"a field has at least one number, for what is unknown; got {self.num_values}")
        if self.drawn and not (self.beside_pixels and self.names[0] == "item_id"):
            raise ValueError("fields that are drawn are pixels, and begin with item_id")
        return self

    @model_serializer(mode="wrap")
    def _without_what_older_releases_do_not_know(
        self, write: SerializerFunctionWrapHandler
    ) -> dict[str, Any]:
        written: dict[str, Any] = write(self)
        if not self.drawn:
            del written["drawn"]
        return written


class RankerSpec(Frozen):
    """The ranker of a bundle: a third graph, which scores given candidates after a history."""

    ranker_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    trained_for_tokenizer_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    graph: GraphSpec = Field(description="its tensors, those of graphs.ranker_graph")
    history_length: int = Field(
        ge=1, le=MAX_HISTORY_LENGTH, description="it reads so many of the newest items of a history"
    )
    parameterization: str = Field(description="how codes become rows of its table, in words for people")
    aggregation: str = Field(description="how it reads the history, in words for people")
    num_rows: int = Field(ge=1, description="of its embedding table")


class Manifest(Frozen):
    """manifest.json: everything the service needs to know before it opens a graph."""

    format_version: FormatVersion
    export_key: str = Field(description="equal for equal data, configuration and versions of the stages")
    created_at: str
    config: str
    sid: SidSpec
    render: RenderSpec = Field(description="how an item becomes a line of text, and how that is drawn")
    pictures: PictureSpec | None = Field(
        default=None, description="how photos are read; null: the tokenizer reads none"
    )
    fields: FieldsSpec | None = Field(
        default=None, description="which fields are read; null: the tokenizer reads the text and photos alone"
    )
    tokenizer_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    recommender_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    trained_for_tokenizer_id: str = Field(pattern=r"^[0-9a-f]{12}$")
    tokenizer: GraphSpec
    recommender: GraphSpec
    ranker: RankerSpec | None = Field(default=None, description="null: the bundle has no ranker")
    generator: str
    precision: Literal["float32", "int8"] = Field(
        default="float32", description="of the recommender's weight products"
    )
    history_length: int = Field(ge=1, le=MAX_HISTORY_LENGTH)
    beam_limit: int = Field(ge=1, le=MAX_BEAM_LIMIT)
    co_counts: CoCountSpec | None = Field(
        default=None, description="how counts have a say in the search; null: the search runs without any"
    )
    data_fingerprint: str
    items_fingerprint: str = Field(default="", description="of the items alone; empty in older bundles")
    training_fingerprint: str = Field(
        default="", description="of the users' training parts; empty in older bundles"
    )
    data_name: str
    num_items: int = Field(ge=0)
    metrics: dict[str, float]
    files: dict[str, FileRecord]

    @property
    def reads_pixels(self) -> bool:
        """Whether the tokenizer reads drawn texts, and perhaps photos."""
        return self.fields is None or self.fields.beside_pixels

    @property
    def draws_fields(self) -> bool:
        """Whether the tokenizer reads fields as pictures."""
        return self.fields is not None and self.fields.drawn

    @model_validator(mode="after")
    def _same_tokenizer(self) -> Self:
        if self.trained_for_tokenizer_id != self.tokenizer_id:
            raise ValueError(
                f"the recommender was trained for tokenizer {self.trained_for_tokenizer_id}, "
                f"but the bundle holds {self.tokenizer_id}"
            )
        if self.ranker is not None and self.ranker.trained_for_tokenizer_id != self.tokenizer_id:
            raise ValueError(
                f"the ranker was trained for tokenizer {self.ranker.trained_for_tokenizer_id}, "
                f"but the bundle holds {self.tokenizer_id}"
            )
        return self

    @property
    def vector_dim(self) -> int:
        """Numbers of the vector that the tokenizer gives for an item; 0 if its graph promises none."""
        dims = [each.shape[-1] for each in self.tokenizer.outputs if each.name == "vector" and each.shape]
        return dims[0] if dims and isinstance(dims[0], int) else 0

    @model_validator(mode="after")
    def _graphs_of_this_spec(self) -> Self:
        dim = self.vector_dim
        num_fields = 0 if self.fields is None else len(self.fields.names)
        if not self.reads_pixels:
            if self.pictures is not None:
                raise ValueError("pictures: the tokenizer reads fields and no pixels")
            expected, of_what = field_tokenizer_graph(self.sid, num_fields, dim), "these fields"
        else:
            expected = tokenizer_graph(
                self.sid,
                height=self.render.height_px,
                width=self.render.width_px,
                vector_dim=dim,
                picture_px=self.pictures.size_px if self.pictures else None,
                num_fields=num_fields,
            )
            of_what = "this render, these pictures and these fields"
            if self.draws_fields and self.pictures is not None:
                raise ValueError("pictures: the tokenizer reads fields as pictures, and no photos")
        if self.tokenizer != expected:
            raise ValueError(f"tokenizer: its tensors are not those of levels {self.sid.levels}, {of_what}")
        if self.recommender != recommender_graph(self.sid):
            raise ValueError(f"recommender: its tensors are not those of levels {self.sid.levels}")
        if self.ranker is not None and self.ranker.graph != ranker_graph(self.sid):
            raise ValueError(f"ranker: its tensors are not those of levels {self.sid.levels}")
        return self

    @model_serializer(mode="wrap")
    def _without_what_is_not_read(self, write: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """A bundle does not name pictures, fields or a ranker if it has none, so that older releases can
        serve it.
        """
        written: dict[str, Any] = write(self)
        for name in ("pictures", "fields", "ranker"):
            if getattr(self, name) is None:
                written.pop(name, None)
        return written


def format_version_of(
    *, reads_text_alone: bool, has_ranker: bool = False, draws_fields: bool = False
) -> FormatVersion:
    """The lowest version whose readers understand such a bundle.

    Photos and fields came with version 4, the ranker with version 5, and fields as pictures with version 6.
    """
    if draws_fields:
        return 6
    if has_ranker:
        return 5
    return 3 if reads_text_alone else 4


class Bundle(NamedTuple):
    """A verified bundle: all files have the sizes and hashes of the manifest."""

    path: Path
    manifest: Manifest

    def file(self, name: str) -> Path:
        """The path of a file in the bundle, by its name in the manifest. Whether it exists is not checked."""
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
    if version not in READABLE:
        is_newer = type(version) is int and version > FORMAT_VERSION
        raise ContractMismatch(
            f"{manifest_path}: format version {version!r}, this release of glyphrec reads "
            f"{', '.join(map(str, READABLE[:-1]))} and {READABLE[-1]}. "
            + ("Serve it with the release that exported it, or a later one." if is_newer else "Export again.")
        )
    try:
        manifest = Manifest.model_validate(raw)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "manifest"
        if first["type"] == "extra_forbidden":
            raise ContractMismatch(
                f"{manifest_path}: {where}: this release of glyphrec does not know it. Serve the bundle with "
                "the release that exported it, or a later one."
            ) from error
        raise ContractMismatch(f"{manifest_path}: {where}: {first['msg']}. Export again.") from error
    for name, record in manifest.files.items():
        _check_file(path, name, record)
    counts = (CO_COUNTS,) if manifest.co_counts is not None else ()
    vocabulary = (VOCABULARY,) if manifest.fields is not None else ()
    ranker = (RANKER,) if manifest.ranker is not None else ()
    for name in (TOKENIZER, RECOMMENDER, ITEMS, *counts, *vocabulary, *ranker):
        if name not in manifest.files:
            raise ContractMismatch(f"{manifest_path}: lists no {name}. Export again.")
    return Bundle(path, manifest)


def _read_json(path: Path) -> Any:
    try:
        if not _is_file(path):
            raise ContractMismatch(f"{path}: not found. Give the folder that `glyphrec export --out` wrote.")
        with path.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
        if len(content) > MAX_MANIFEST_BYTES:
            raise ContractMismatch(f"{path}: too large, over {MAX_MANIFEST_BYTES} bytes. Export again.")
        return parse_json(content.decode("utf-8"))
    except OSError as error:
        raise ContractMismatch(f"{path}: {why_unreadable(path, error)}{_let_read(path, error)}") from error
    except ValueError as error:
        raise ContractMismatch(f"{path}: not JSON ({error}). Export again.") from error


def _is_file(path: Path) -> bool:
    """As Path.is_file, but raises OSError if a folder may not be looked into, also from Python 3.14 on."""
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError):
        return False


def _let_read(manifest: Path, error: OSError) -> str:
    return f" Let it read: chmod -R a+rX {manifest.parent}" if isinstance(error, PermissionError) else ""


def _check_file(folder: Path, name: str, record: FileRecord) -> None:
    path = folder / name
    try:
        inside = path.resolve().is_relative_to(folder.resolve())
    except (OSError, ValueError, RuntimeError):  # a NUL or a loop of links: no file has that name
        inside = False
    if not inside:
        if Path(os.path.normpath(path)).is_relative_to(os.path.normpath(folder)):
            raise ContractMismatch(
                f"{path}: is a link or lies below one, and what it leads to lies outside the bundle. Copy "
                "the files themselves, for example with cp -rL."
            )
        raise ContractMismatch(f"{folder / MANIFEST}: {name!r} lies outside the bundle. Export again.")
    try:
        if not _is_file(path):
            raise ContractMismatch(f"{path}: missing. Copy the whole bundle, or export again.")
        num_bytes, found = path.stat().st_size, ""
        if num_bytes == record.num_bytes:
            found = sha256_of(path)
    except OSError as error:
        remedy = _let_read(folder / MANIFEST, error) or " Copy the whole bundle."
        raise ContractMismatch(f"{path}: {why_unreadable(path, error)}{remedy}") from error
    if num_bytes != record.num_bytes:
        raise ContractMismatch(
            f"{path}: {num_bytes} bytes, manifest says {record.num_bytes}. Copy it again, or export again."
        )
    if found != record.sha256:
        raise ContractMismatch(
            f"{path}: sha256 is {found[:12]}, manifest says {record.sha256[:12]}. "
            "Copy it again, or export again."
        )
