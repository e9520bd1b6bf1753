"""Bundles on this machine: verifies and opens them, and finds one by its name or by its tokenizer."""

import json
import logging
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from service.core.bundle import MANIFEST, RANKER, RECOMMENDER, TOKENIZER, Bundle, Manifest, load_bundle
from service.core.bundle_items import BundledItem, bundle_items
from service.core.bundle_vocabulary import bundle_vocabulary
from service.core.graphs import PADDING, beam_widths
from service.core.item_fields import Vocabulary
from service.core.readable import why_unreadable
from service.core.render import render_text
from service.core.trie import SidTrie
from service.errors import BundleNotFound, BundleRefused, ContractMismatch, GlyphrecError, NoBundlesFolder
from service.inference.runtime import (
    NO_STRIPS,
    RankerSession,
    RecommenderSession,
    Tokenizer,
    TokenizerInput,
    tried,
)

log = logging.getLogger(__name__)

WARM_UP = "warm-up"
# Beams in one run. A CPU takes 16 requests of 50 beams in 5 ms, and larger batches gain nothing there. A GPU
# takes 256 such requests in 2 ms.
BATCH_BEAMS_CPU, BATCH_BEAMS_GPU = 800, 12_800


@dataclass(frozen=True)
class GraphOptions:
    """How the graphs run."""

    threads: int  # of ONNX Runtime, for each graph
    num_beams: int  # of a search, if the bundle allows so many
    max_batch_beams: int | None  # in one run of the recommender; None: as suits the device


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle that has passed every check which needs no Redis."""

    bundle: Bundle
    items: list[BundledItem]
    tokenizer: Tokenizer
    session: RecommenderSession
    num_beams: int
    max_batch_beams: int
    vocabulary: Vocabulary | None = None  # of a tokenizer that reads fields
    ranker: RankerSession | None = None  # if the bundle has one

    @property
    def name(self) -> str:
        """The bundle's folder, without its path."""
        return self.bundle.path.resolve().name

    @property
    def manifest(self) -> Manifest:
        """The bundle's manifest, verified."""
        return self.bundle.manifest

    @cached_property
    def popularity(self) -> dict[str, float]:
        """Interactions of each item in the training data."""
        return {each.item_id: each.popularity for each in self.items}

    def search_once(self, trie: SidTrie) -> None:
        """Run the recommender on a history of one item, so that the first request does not pay for it."""
        history = np.zeros((1, 1, trie.spec.num_levels), dtype=np.int64)
        self.session.run(history, trie.tables, beam_widths(trie.spec, self.num_beams))


def load(path: Path, options: GraphOptions) -> LoadedBundle:
    """Verify a bundle, open its graphs and run each once. Takes seconds. Raises GlyphrecError."""
    bundle = load_bundle(path)
    manifest = bundle.manifest
    tokenizer = Tokenizer(bundle.file(TOKENIZER), manifest.tokenizer, threads=options.threads)
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=options.threads)
    loaded = LoadedBundle(
        bundle=bundle,
        items=bundle_items(bundle),
        tokenizer=tokenizer,
        session=session,
        num_beams=min(options.num_beams, manifest.beam_limit),
        max_batch_beams=options.max_batch_beams
        or (BATCH_BEAMS_GPU if session.is_on_gpu else BATCH_BEAMS_CPU),
        vocabulary=bundle_vocabulary(bundle),
        ranker=_ranker(bundle, options.threads),
    )
    tried(bundle.file(RECOMMENDER), lambda: loaded.search_once(SidTrie(manifest.sid)))
    _tokenize_once(loaded.tokenizer, manifest, bundle.file(TOKENIZER))
    if options.num_beams > manifest.beam_limit:
        log.warning(
            "GLYPHREC_NUM_BEAMS is %d, but the bundle was exported for at most %d beams, so searches "
            "use %d. Export with a larger beam_limit, or set GLYPHREC_NUM_BEAMS to %d.",
            *(options.num_beams, manifest.beam_limit, manifest.beam_limit, manifest.beam_limit),
        )
    return loaded


def _ranker(bundle: Bundle, threads: int) -> RankerSession | None:
    """The bundle's ranker, which has scored two items: one after nothing, and one after a known item."""
    manifest, path = bundle.manifest, bundle.file(RANKER)
    if manifest.ranker is None:
        return None
    session = RankerSession(path, manifest.ranker.graph, threads=threads)
    history = np.array([PADDING, 0], np.int64)[:, None, None].repeat(manifest.sid.num_levels, axis=2)
    candidates = np.zeros((2, 1, manifest.sid.num_levels), np.int64)
    scores = tried(path, lambda: session.run(history, candidates, np.zeros((2, 1), np.float32)))
    if not np.isfinite(scores).all():
        raise ContractMismatch(f"{path}: gives a score that is not finite. Export again.")
    return session


def _tokenize_once(tokenizer: Tokenizer, manifest: Manifest, path: Path) -> None:
    """Run the tokenizer on each kind of input that it reads."""
    tokens = [tried(path, partial(tokenizer.run, batch)) for batch in _first_batches(manifest)]
    try:
        for codes in (codes for each in tokens for codes in each.codes.tolist()):
            manifest.sid.check(tuple(codes))
    except ValueError as error:
        raise ContractMismatch(f"{path}: {error}. Export again.") from error


def _first_batches(manifest: Manifest) -> list[list[TokenizerInput]]:
    """A text, and unknown fields, and then the last number of each. With a photo too, if photos are read.

    Where fields are drawn, their numbers are those of their strips: first none, and then the text alone.
    """
    strips = NO_STRIPS
    if manifest.reads_pixels:
        strips = render_text(WARM_UP, manifest.render).strips  # refuses a font that is not the export's
    fields: list[NDArray[np.int64] | None] = [None]
    if manifest.fields is not None:
        last = np.array(manifest.fields.num_values, np.int64) - 1  # [field]
        if manifest.draws_fields:
            last[:] = 0
            last[0] = len(strips)
        fields = [np.zeros_like(last), last]
    batches = [[TokenizerInput(strips, None, each) for each in fields]]
    if manifest.pictures is not None:
        side = manifest.pictures.size_px
        photo = TokenizerInput(strips, np.zeros((side, side, 3), np.uint8), fields[0])
        batches.append([photo, *batches[0]])
    return batches


class BundleFolder:
    """The bundles that POST /admin/bundles may name: folders directly under GLYPHREC_BUNDLES_DIR."""

    def __init__(self, folder: Path | None, options: GraphOptions) -> None:
        """`folder` None: there are no bundles."""
        self._folder = folder
        self._options = options

    def load(self, name: str) -> LoadedBundle:
        """Load the bundle `name`. Takes seconds. Raises NoBundlesFolder, BundleNotFound or BundleRefused."""
        if self._folder is None:
            raise NoBundlesFolder
        path = self._folder / name
        if not _is_folder(path):
            raise BundleNotFound(name)
        try:
            return load(path, self._options)
        except GlyphrecError as error:
            # A client need not know where the folder lies.
            told = (
                str(error).replace(f"{self._folder}/", "").replace(str(self._folder), "the folder of bundles")
            )
            raise BundleRefused(name, told) from error

    def with_tokenizer(self, tokenizer_id: str, preferred: str = "") -> str | None:
        """The name of a bundle with this tokenizer: `preferred` if that has it. None if no bundle has it."""
        if self._folder is None or not _is_folder(self._folder):
            return None
        found = sorted(
            path.parent.name
            for path in self._folder.glob(f"*/{MANIFEST}")
            if _tokenizer_of(path) == tokenizer_id
        )
        return preferred if preferred in found else next(iter(found), None)


def _is_folder(path: Path) -> bool:
    """Also if we may not look there: then whoever opens a file of it says so."""
    try:
        return path.is_dir()
    except PermissionError:
        return True


def _tokenizer_of(manifest: Path) -> str | None:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))["tokenizer_id"]
    except PermissionError as error:
        log.warning("%s: %s", manifest, why_unreadable(manifest, error))
        return None
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, str) else None
