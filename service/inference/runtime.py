"""ONNX Runtime behind three classes: arrays in, arrays out. Each session is checked when it loads."""

import logging
import os
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from service.core.drawn_fields import DrawnFields
from service.core.graphs import NO_PICTURE, GraphSpec, Neighbors, TensorSpec
from service.errors import ContractMismatch, GlyphrecError
from service.inference.onnx_file import external_tensors, with_outputs

# Best first. TensorRT is left out: it builds for minutes on first use.
PREFERRED_PROVIDERS = ("CUDAExecutionProvider", "CPUExecutionProvider")
# TF32 keeps ten bits of each factor of a product. Scores would be off by thousandths, often more than
# the difference between two items.
PROVIDER_OPTIONS = {"CUDAExecutionProvider": {"use_tf32": "0"}}
RUNTIMES = ("onnxruntime", "onnxruntime-gpu")

_ORT_TYPES = {
    "float32": "tensor(float)",
    "int32": "tensor(int32)",
    "int64": "tensor(int64)",
    "uint16": "tensor(uint16)",
    "uint8": "tensor(uint8)",
}

T = TypeVar("T")

log = logging.getLogger(__name__)


NO_STRIPS = np.zeros((0, 1, 1), np.uint8)  # of an item that is read by its fields


class TokenizerInput(NamedTuple):
    """What the tokenizer reads of one item: pixels, the numbers of its fields, or both."""

    strips: NDArray[np.uint8]  # [strip, height, width], at least one strip, or NO_STRIPS
    picture: NDArray[np.uint8] | None = None  # [size, size, 3]; None: the item has no photo
    # [field], from core/item_fields.py, or the strips of each (core/drawn_fields.py); None: none are read
    fields: NDArray[np.int64] | None = None

    @classmethod
    def of_fields(cls, fields: NDArray[np.int64]) -> "TokenizerInput":
        """An item that is read by its fields [field] alone."""
        return cls(NO_STRIPS, fields=fields)

    @classmethod
    def of_drawn(cls, drawn: DrawnFields) -> "TokenizerInput":
        """An item whose fields are read as pictures."""
        return cls(drawn.strips, fields=drawn.counts)


class Tokens(NamedTuple):
    """The tokenizer's output for each item, in the order of its input."""

    codes: NDArray[np.int64]  # [item, level]
    vectors: NDArray[np.float32]  # [item, dim]


class Beams(NamedTuple):
    """The recommender's output: for each history of the batch, the sequences of codes that it found."""

    codes: NDArray[np.int64]  # [batch, beam, level]
    scores: NDArray[np.float32]  # [batch, beam], best first; a filler is below graphs.FILLER_SCORE
    bound: NDArray[np.float32]  # [batch], at least the score of everything that was pruned


class Tokenizer:
    """Pixels of text and photos, and numbers of fields -> codes and vectors."""

    def __init__(
        self, path: Path, graph: GraphSpec, *, threads: int, providers: Sequence[str] | None = None
    ) -> None:
        self._session = _open(path, graph, threads, providers)
        self._picture_shape: tuple[int, ...] | None = next(
            (tuple(map(int, each.shape[1:])) for each in graph.inputs if each.name == "pictures"), None
        )
        self._num_fields = next((each.shape[1] for each in graph.inputs if each.name == "fields"), None)
        self._reads_pixels = any(each.name == "strips" for each in graph.inputs)

    @property
    def reads_pictures(self) -> bool:
        """Whether the graph takes photos. If not, every `TokenizerInput.picture` must be None."""
        return self._picture_shape is not None

    def run(self, items: Sequence[TokenizerInput]) -> Tokens:
        """Read at least one item. Raises ContractMismatch for a photo or fields that do not fit the graph."""
        return Tokens(*self._session.run(["codes", "vector"], self._feeds(items)))

    def _feeds(self, items: Sequence[TokenizerInput]) -> dict[str, NDArray[Any]]:
        for item in items:
            num_fields = None if item.fields is None else len(item.fields)
            if num_fields != self._num_fields:
                raise ContractMismatch(
                    f"an item has {num_fields or 'no'} numbers of fields, but the graph takes "
                    f"{self._num_fields or 'none'}. Use the bundle's FieldsSpec."
                )
        fields: dict[str, NDArray[Any]] = {}
        if self._num_fields is not None:
            fields["fields"] = np.stack([item.fields for item in items if item.fields is not None])
        if not self._reads_pixels:
            return fields
        counts = [len(item.strips) for item in items]
        first_strip = np.cumsum([0, *counts[:-1]], dtype=np.int64)  # [item]
        feeds = {"strips": np.concatenate([item.strips for item in items]), "first_strip": first_strip}
        return feeds | self._photos(items) | fields

    def _photos(self, items: Sequence[TokenizerInput]) -> dict[str, NDArray[Any]]:
        pictures = [item.picture for item in items if item.picture is not None]
        for picture in pictures:
            if picture.shape != self._picture_shape:
                takes = f"takes {list(self._picture_shape)}" if self._picture_shape else "reads none"
                raise ContractMismatch(
                    f"a picture is {list(picture.shape)}, but the graph {takes}. "
                    "Use the bundle's PictureSpec."
                )
        if self._picture_shape is None:
            return {}
        has_picture = np.array([item.picture is not None for item in items])  # [item]
        picture_of = np.where(has_picture, np.cumsum(has_picture) - 1, NO_PICTURE).astype(np.int64)
        stacked = np.stack(pictures) if pictures else np.zeros((0, *self._picture_shape), np.uint8)
        return {"pictures": stacked, "picture_of": picture_of}


class RecommenderSession:
    """Histories and the trie's tables -> the best living codes."""

    def __init__(
        self,
        path: Path,
        graph: GraphSpec,
        *,
        threads: int,
        providers: Sequence[str] | None = None,
        inside: Sequence[str] = (),
    ) -> None:
        """`inside`: tensors inside the graph that its session shall give too; see beam_levels.py."""
        self._session = _open(path, graph, threads, providers, inside)
        names = [tensor.name for tensor in graph.inputs]
        self._beams = [name for name in names if name.startswith("beams_")]
        other = {"history", "neighbors", "neighbor_mass", *self._beams}
        self._tables = [tensor for tensor in graph.inputs if tensor.name not in other]

    @property
    def is_on_gpu(self) -> bool:
        """Whether the graph runs on a GPU. False if ONNX Runtime fell back to the CPU."""
        return bool(self._session.get_providers()[0] != PREFERRED_PROVIDERS[-1])

    def run(
        self,
        history: NDArray[np.int64],
        tables: Sequence[NDArray[Any]],
        widths: Sequence[int],
        neighbors: Neighbors | None = None,
    ) -> Beams:
        """Search. `history` [batch, position, level] is oldest first, with PADDING on the left; `tables` come
        from SidTrie, `widths` from graphs.beam_widths, one for each level. Without `neighbors` the counts
        have no say.

        Raises ContractMismatch if tables or widths belong to another spec than the graph.
        """
        feeds = self.feeds(history, tables, widths, neighbors)
        return Beams(*self._session.run(["codes", "scores", "bound"], feeds))

    def run_inside(self, names: Sequence[str], feeds: dict[str, NDArray[Any]]) -> list[NDArray[Any]]:
        """These tensors of one search, which are outputs or were given as `inside`; `feeds` as of `feeds`."""
        found: list[NDArray[Any]] = self._session.run(list(names), feeds)
        return found

    def feeds(
        self,
        history: NDArray[np.int64],
        tables: Sequence[NDArray[Any]],
        widths: Sequence[int],
        neighbors: Neighbors | None = None,
    ) -> dict[str, NDArray[Any]]:
        """The graph's inputs for `run`, by name. Raises the same errors."""
        for what, num_given, names in (
            ("trie tables", len(tables), [tensor.name for tensor in self._tables]),
            ("beam widths", len(widths), self._beams),
        ):
            if num_given != len(names):
                raise ContractMismatch(
                    f"{num_given} {what} were given; the graph takes {len(names)}: {', '.join(names)}. "
                    "Build them with the bundle's SidSpec."
                )
        for tensor, table in zip(self._tables, tables, strict=True):
            sizes = zip(tensor.shape, table.shape, strict=False)
            fits = table.ndim == len(tensor.shape) and all(isinstance(p, str) or p == n for p, n in sizes)
            if table.dtype != tensor.dtype or not fits:
                raise ContractMismatch(
                    f"trie table {tensor.name!r} is {table.dtype} {list(table.shape)}; the graph takes "
                    f"{tensor.dtype} {list(tensor.shape)}. Build the trie with the bundle's SidSpec."
                )
        beams = {name: np.zeros(width, np.int64) for name, width in zip(self._beams, widths, strict=True)}
        live = {tensor.name: table for tensor, table in zip(self._tables, tables, strict=True)}
        found = neighbors or Neighbors.none(len(history))
        return {
            "history": history, "neighbors": found.prefixes, "neighbor_mass": found.mass, **beams, **live
        }  # fmt: skip


class RankerSession:
    """Histories and candidates -> a score for each candidate."""

    def __init__(
        self, path: Path, graph: GraphSpec, *, threads: int, providers: Sequence[str] | None = None
    ) -> None:
        self._session = _open(path, graph, threads, providers)

    def run(
        self,
        history: NDArray[np.int64],
        candidates: NDArray[np.int64],
        popularity: NDArray[np.float32],
        neighbors: Neighbors | None = None,
    ) -> NDArray[np.float32]:
        """Score. `history` [batch, position, level], `candidates` [batch, candidate, level] and `popularity`
        [batch, candidate] as graphs.ranker_graph has them -> log-odds [batch, candidate]. Without `neighbors`
        the counts have no say.
        """
        found = neighbors or Neighbors.none(len(history))
        feeds = {
            "history": history, "candidates": candidates, "popularity": popularity,
            "neighbors": found.prefixes, "neighbor_mass": found.mass,
        }  # fmt: skip
        scores: NDArray[np.float32] = self._session.run(["scores"], feeds)[0]
        return scores


def _open(
    path: Path,
    graph: GraphSpec,
    threads: int,
    providers: Sequence[str] | None,
    inside: Sequence[str] = (),
) -> Any:
    runtime = onnx_runtime()
    available = runtime.get_available_providers()
    wanted = list(providers) if providers else [name for name in PREFERRED_PROVIDERS if name in available]
    if unknown := [name for name in wanted if name not in available]:
        raise GlyphrecError(f"ONNX Runtime here has no {', '.join(unknown)}; it has {', '.join(available)}.")
    _refuse_external_data(path)
    options = runtime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    with_options = [(name, PROVIDER_OPTIONS.get(name, {})) for name in wanted]
    model = with_outputs(path.read_bytes(), inside) if inside else str(path)
    try:
        session = runtime.InferenceSession(model, options, providers=with_options)
    except Exception as error:  # ONNX Runtime's own classes share no base below Exception
        raise ContractMismatch(
            f"{path}: ONNX Runtime cannot load it ({_reason(error)}). Export again."
        ) from error
    if wanted[0] not in session.get_providers():  # ONNX Runtime falls back to the next one
        log.warning(
            "%s runs on %s: %s could not start. The lines above say why. Usually there is no GPU, or a "
            "library of CUDA or cuDNN is missing.",
            path.name,
            session.get_providers()[0],
            wanted[0],
        )
    _check(path, "input", graph.inputs, session.get_inputs())
    promised = [output for output in session.get_outputs() if output.name not in inside]
    _check(path, "output", graph.outputs, promised)
    return session


def _refuse_external_data(path: Path) -> None:
    try:
        elsewhere = external_tensors(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ContractMismatch(f"{path}: not an ONNX file ({error}). Export again.") from error
    except OSError as error:
        raise ContractMismatch(f"{path}: cannot be read ({error.strerror}). Copy it again.") from error
    if elsewhere:
        raise ContractMismatch(
            f"{path}: keeps {len(elsewhere)} tensors in other files, {elsewhere[0]!r} first, which nothing "
            "verifies. Export again, with all data inside."
        )


def tried(path: Path, run: Callable[[], T]) -> T:
    """The result of a graph's first run. Raises ContractMismatch if the run fails."""
    try:
        return run()
    except ContractMismatch:
        raise
    except Exception as error:  # ONNX Runtime's own classes share no base below Exception
        raise ContractMismatch(f"{path}: loads but does not run ({_reason(error)}). Export again.") from error


def _reason(error: Exception) -> str:
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def _check(path: Path, kind: str, promised: Sequence[TensorSpec], found: Sequence[Any]) -> None:
    """Raise ContractMismatch unless the session has exactly the promised tensors."""
    by_name = {tensor.name: tensor for tensor in found}
    if by_name.keys() != {tensor.name for tensor in promised}:
        names = ", ".join(sorted(tensor.name for tensor in promised))
        raise ContractMismatch(
            f"{path}: its {kind}s are {', '.join(sorted(by_name))}; the manifest promises {names}. "
            "Export again."
        )
    for tensor in promised:
        shape, dtype = tuple(by_name[tensor.name].shape), by_name[tensor.name].type
        if dtype != _ORT_TYPES.get(tensor.dtype) or not _shape_fits(tensor.shape, shape):
            raise ContractMismatch(
                f"{path}: {kind} {tensor.name!r} is {dtype} {list(shape)}; the manifest promises "
                f"{tensor.dtype} {list(tensor.shape)}. Export again."
            )


def _shape_fits(promised: tuple[int | str, ...], found: tuple[Any, ...]) -> bool:
    """A number must match exactly. A name promises that the dimension may vary, so a number breaks it."""
    return len(promised) == len(found) and all(
        isinstance(size, str | None) if isinstance(dimension, str) else size == dimension
        for dimension, size in zip(promised, found, strict=True)
    )


def onnx_runtime() -> Any:
    """Import ONNX Runtime. Its CPU and GPU wheels overwrite each other's files, so only one may be there."""
    installed = [name for name in RUNTIMES if _is_installed(name)]
    if len(installed) > 1:
        raise GlyphrecError(
            "Both onnxruntime and onnxruntime-gpu are installed and overwrite each other's files. Run "
            "`pip uninstall -y onnxruntime onnxruntime-gpu`, then `pip install 'glyphrec[cpu]'` or "
            "`pip install 'glyphrec[gpu]'`."
        )
    if not installed:
        raise GlyphrecError(
            "ONNX Runtime is not installed. Run `pip install 'glyphrec[cpu]'`, or [gpu] for CUDA."
        )
    # Without this, set before the import, it writes a database to the home folder and sends telemetry.
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    import onnxruntime

    if installed == ["onnxruntime-gpu"]:
        onnxruntime.preload_dlls()  # the CUDA libraries of pip's nvidia packages, if there are any
    return onnxruntime


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True
