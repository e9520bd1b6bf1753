"""Bundles on this machine: verified and opened; found by name or by tokenizer in the folder of them all."""

import json
import logging
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from service.core.bundle import ITEMS, MANIFEST, RECOMMENDER, TOKENIZER, Bundle, Manifest, load_bundle
from service.core.graphs import beam_widths
from service.core.render import render_text
from service.core.sid import SidSpec
from service.core.trie import SidTrie
from service.errors import BundleNotFound, BundleRefused, ContractMismatch, GlyphrecError, NoBundlesFolder
from service.flows.indexing import Strips
from service.inference.runtime import RecommenderSession, Tokenizer, tried
from service.lifecycle.seeding import BundledItem, read_items
from service.settings import Settings

log = logging.getLogger(__name__)

WARM_UP = "warm-up"
# In one run. A CPU takes 16 requests of 50 beams in 5 ms and gains nothing from more; a GPU 256 in 2 ms.
BATCH_BEAMS_CPU, BATCH_BEAMS_GPU = 800, 12_800


@dataclass(frozen=True)
class LoadedBundle:
    """A bundle that has passed every check that needs no Redis."""

    bundle: Bundle
    items: list[BundledItem]
    tokenizer: Tokenizer
    session: RecommenderSession
    num_beams: int
    max_batch_beams: int

    @property
    def name(self) -> str:
        return self.bundle.path.resolve().name

    @property
    def manifest(self) -> Manifest:
        return self.bundle.manifest

    def search_once(self, trie: SidTrie) -> None:
        history = np.zeros((1, 1, trie.spec.num_levels), dtype=np.int64)
        self.session.run(history, trie.tables, beam_widths(trie.spec, self.num_beams))


def load(path: Path, settings: Settings) -> LoadedBundle:
    """Verify a bundle, open its graphs and run both once. Takes seconds. Raises GlyphrecError."""
    bundle = load_bundle(path)
    manifest = bundle.manifest
    strips = render_text(WARM_UP, manifest.render).strips  # refuses another font than the export's
    tokenizer = Tokenizer(bundle.file(TOKENIZER), manifest.tokenizer, threads=settings.threads)
    session = RecommenderSession(bundle.file(RECOMMENDER), manifest.recommender, threads=settings.threads)
    loaded = LoadedBundle(
        bundle=bundle,
        items=read_items(bundle.file(ITEMS), manifest.sid, manifest.num_items),
        tokenizer=tokenizer,
        session=session,
        num_beams=min(settings.num_beams, manifest.beam_limit),
        max_batch_beams=settings.max_batch_beams
        or (BATCH_BEAMS_GPU if session.is_on_gpu else BATCH_BEAMS_CPU),
    )
    tried(bundle.file(RECOMMENDER), lambda: loaded.search_once(SidTrie(manifest.sid)))
    _tokenise_once(loaded.tokenizer, strips, manifest.sid, bundle.file(TOKENIZER))
    if settings.num_beams > manifest.beam_limit:
        log.warning(
            "GLYPHREC_NUM_BEAMS is %d, but the bundle was exported for at most %d beams, so searches "
            "have %d. Export with a larger beam_limit, or set GLYPHREC_NUM_BEAMS to %d.",
            *(settings.num_beams, manifest.beam_limit, manifest.beam_limit, manifest.beam_limit),
        )
    return loaded


def _tokenise_once(tokenizer: Tokenizer, strips: Strips, spec: SidSpec, path: Path) -> None:
    tokens = tried(path, lambda: tokenizer.run([strips]))
    try:
        spec.check(tuple(tokens.codes[0].tolist()))
    except ValueError as error:
        raise ContractMismatch(f"{path}: {error}. Export again.") from error


class BundleFolder:
    """The bundles that POST /admin/bundles may name: folders directly under GLYPHREC_BUNDLES_DIR."""

    def __init__(self, settings: Settings) -> None:
        self._folder = settings.bundles_dir
        self._settings = settings

    def load(self, name: str) -> LoadedBundle:
        """Takes seconds. Raises NoBundlesFolder, BundleNotFound or BundleRefused."""
        if self._folder is None:
            raise NoBundlesFolder
        path = self._folder / name
        if not path.is_dir():
            raise BundleNotFound(name)
        try:
            return load(path, self._settings)
        except GlyphrecError as error:
            # Where the folder lies is nothing that a client needs to know.
            raise BundleRefused(name, str(error).replace(f"{self._folder}/", "")) from error

    def with_tokenizer(self, tokenizer_id: str, preferred: str = "") -> str | None:
        """The name of a bundle with this tokenizer, the `preferred` one if it has it; or None."""
        if self._folder is None or not self._folder.is_dir():
            return None
        found = sorted(
            path.parent.name
            for path in self._folder.glob(f"*/{MANIFEST}")
            if _tokenizer_of(path) == tokenizer_id
        )
        return preferred if preferred in found else next(iter(found), None)


def _tokenizer_of(manifest: Path) -> str | None:
    try:
        found = json.loads(manifest.read_text(encoding="utf-8"))["tokenizer_id"]
    except (OSError, ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, str) else None
