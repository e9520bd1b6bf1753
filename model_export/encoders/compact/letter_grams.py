"""Letter grams describe an item by the short runs of letters that it shows.

The recognizer's own classifier, a linear layer, turns each frame into a letter. Letters that differ only in
case or accent become one symbol, and so do similar dashes and quotes: FRZN and frzn are equal. Each run of
three or four symbols is hashed into a bucket; where texts are too short for that, runs of one or two. An
item's features are the TF-IDF of its buckets, reduced by an SVD. Misread letters do little harm, because a
recognizer mostly makes the same mistake for the same word.
"""

import unicodedata
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import CompactConfig
from model_export.encoders.base import ITEMS_PER_CHUNK, Pooling, Reading, item_of_strip
from model_export.encoders.ctc import BLANK
from model_export.encoders.tf_idf import fit_tf_idf
from model_export.encoders.visual_words import inked_frames
from service.errors import GlyphrecError

LENGTHS = (3, 4)  # of the runs, in letters
SHORT_LENGTHS = (1, 2)  # where hardly any text has longer runs in common with another, such as "7" and "12"
MIN_GRAMS = 2  # one gram tells no two items apart
NUM_BUCKETS = 1_048_573  # a prime, and so large that hardly any two grams of a catalog share a bucket
BASE = 257  # larger than the number of symbols
MIN_ITEMS = 3  # that must show a gram, or it relates no items; a small catalog needs fewer
ALIKE = str.maketrans("–—‘’“”•×", "--''\"\"*x")


def symbols_of(alphabet: Sequence[str]) -> NDArray[np.int64]:
    """Each class's symbol -> [letter]. Letters that differ only in case, accent or typography share one."""
    folded = [_folded(letter) for letter in alphabet]
    numbers = {letter: number for number, letter in enumerate(dict.fromkeys(folded))}
    return np.array([numbers[letter] for letter in folded], dtype=np.int64)


def _folded(letter: str) -> str:
    plain = unicodedata.normalize("NFKD", letter.translate(ALIKE)).casefold()
    return "".join(part for part in plain if not unicodedata.combining(part)) or letter


class LetterGrams(Pooling):
    """The fitted pooling. CompactConfig sets its dimensions."""

    symbol_of: Tensor  # [letter]
    row_of: Tensor  # [bucket]  1 + the bucket's gram, or 0 if it is not kept
    idf: Tensor  # [gram]
    basis: Tensor  # [gram, feature]
    lengths: tuple[int, ...] = LENGTHS  # of the runs, in letters

    def __init__(
        self,
        *,
        classifier: nn.Linear,  # frames [..., dim] -> letters [..., letter]
        symbol_of: NDArray[np.int64],  # [letter]
        row_of: NDArray[np.int64],  # [bucket]  1 + the bucket's gram, or 0 if it is not kept
        idf: NDArray[np.float32],  # [gram]
        basis: NDArray[np.float32],  # [gram, feature]
        lengths: tuple[int, ...] = LENGTHS,
    ) -> None:
        super().__init__()
        self.lengths = lengths
        self.classifier = classifier
        self.register_buffer("symbol_of", torch.from_numpy(symbol_of))
        self.register_buffer("row_of", torch.from_numpy(row_of.astype(np.int32)))
        self.register_buffer("idf", torch.from_numpy(idf))
        self.register_buffer("basis", torch.from_numpy(np.ascontiguousarray(basis, dtype=np.float32)))
        self.num_grams, self.feature_dim = basis.shape

    def search_scale(self) -> Tensor:
        """Undoes half of the whitening, which costs queries with typing errors some places (decision 24)."""
        scale: Tensor = self.basis.norm(dim=0).rsqrt()
        return scale

    def with_own_spread(self) -> "LetterGrams":
        """The same without whitening: each axis has the spread that the texts have along it."""
        basis = F.normalize(self.basis, dim=0)  # whitening made the narrow axes' columns longer
        return LetterGrams(
            classifier=self.classifier,
            symbol_of=self.symbol_of.numpy(),
            row_of=self.row_of.numpy(),
            idf=self.idf.numpy(),
            basis=basis.numpy(),
            lengths=self.lengths,
        )

    def forward(self, strips: Tensor, frames: Tensor, first_strip: Tensor) -> Tensor:
        """Find the spikes by the letters and pool them, see `Pooling.forward`."""
        letters = self.classifier(frames).argmax(dim=-1)  # [strip, frame]
        before = F.pad(letters, (1, 0), value=BLANK)[:, :-1]
        is_spike = (letters != BLANK) & (letters != before) & inked_frames(strips, frames.shape[1])
        strip, frame = is_spike.nonzero(as_tuple=True)  # [spike] each, in reading order
        # A Reading stores float16. With the same rounding here the graph sees the values that were fitted.
        spikes = frames[strip, frame].to(torch.float16).to(torch.float32)  # [spike, dim]
        item = item_of_strip(strip, first_strip)  # [spike]
        return self.features_of_few(spikes, item, first_strip.shape[0])

    def features(self, frames: Tensor, item: Tensor, num_items: int) -> Tensor:
        """Features [item, feature] of spikes [spike, dim], see `Pooling.features`."""
        weights = self.counts(frames, item, num_items).log1p() * self.idf  # [item, gram]
        return F.normalize(F.normalize(weights, dim=1) @ self.basis, dim=1)  # [item, feature]

    def features_of_few(self, frames: Tensor, item: Tensor, num_items: int) -> Tensor:
        """The same for few items. It reads the rows of the grams that they show, and not the whole basis."""
        row, cell = self._cells(frames, item)  # [run] each
        count = self._counts(cell, num_items)[cell]  # [run]  how often its item shows its gram
        gram = (row - 1).clamp(min=0)
        share = torch.where(row > 0, count.log1p() * self.idf[gram] / count, 0.0)  # [run]
        item = item.repeat(len(self.lengths))
        total = torch.zeros(num_items, self.feature_dim)
        return F.normalize(total.index_add(0, item, share[:, None] * self.basis[gram]), dim=1)

    def counts(self, frames: Tensor, item: Tensor, num_items: int) -> Tensor:
        """How often each item shows each gram -> [item, gram]. frames is [spike, dim], item is [spike]."""
        _, cell = self._cells(frames, item)
        return self._counts(cell, num_items).view(num_items, self.num_grams + 1)[:, 1:]

    def _cells(self, frames: Tensor, item: Tensor) -> tuple[Tensor, Tensor]:
        """The runs that begin at each spike, those of one length after those of another.

        Returns 1 + the gram of each run, or 0 if it is not kept, and the run's cell in a table of items and
        these numbers -> [run] each.
        """
        symbols = self.symbol_of[self.classifier(frames).argmax(dim=-1)]  # [spike]
        found = [buckets(symbols, item, length) for length in self.lengths]
        row = torch.cat([self.row_of[bucket].long() * is_whole for bucket, is_whole in found])
        return row, item.repeat(len(self.lengths)) * (self.num_grams + 1) + row

    def _counts(self, cell: Tensor, num_items: int) -> Tensor:
        total = torch.zeros(num_items * (self.num_grams + 1))
        return total.index_add(0, cell, torch.ones_like(cell, dtype=torch.float32))


def buckets(symbols: Tensor, item: Tensor, length: int) -> tuple[Tensor, Tensor]:
    """Hash the run of `length` symbols that starts at each spike. symbols and item are [spike].

    Returns each run's bucket [spike], and whether the whole run lies within one item [spike].
    """
    num_spikes = symbols.shape[0]
    here = torch.arange(num_spikes, device=symbols.device)
    code = torch.full_like(symbols, length)
    is_whole = torch.ones_like(symbols, dtype=torch.bool)
    for step in range(length):
        there = (here + step).clamp(max=num_spikes - 1)  # [spike]
        is_whole = is_whole & (here + step < num_spikes) & (item[there] == item)
        code = code * BASE + symbols[there]
    return code % NUM_BUCKETS, is_whole


def fit_letter_grams(
    reading: Reading, classifier: nn.Linear, alphabet: Sequence[str], config: CompactConfig, seed: int
) -> LetterGrams:
    """Keep the grams that the most items show, and fit the widest axes of their TF-IDF.

    A small catalog gets fewer of both. Texts that share no runs of three letters get shorter ones.
    Raises GlyphrecError if the Reading holds no frames, or if the texts have nothing in common.
    """
    if not len(reading.frames):
        raise GlyphrecError("The OCR encoder saw no letters in the items' text. Give the items titles.")
    symbol_of = symbols_of(alphabet)
    num_items = reading.num_items
    for lengths in (LENGTHS, SHORT_LENGTHS):
        counts = vstack(_sparse_counts(reading, classifier, symbol_of, lengths)).tocsr()  # [item, bucket]
        items_with = np.bincount(counts.indices, minlength=NUM_BUCKETS)  # [bucket]
        enough = items_with >= min(MIN_ITEMS, max(1, num_items // 20))
        kept = np.argsort(-items_with, kind="stable")[: config.num_grams]
        kept = np.sort(kept[enough[kept]])  # [gram]
        if len(kept) >= MIN_GRAMS:
            break
    else:
        raise GlyphrecError(
            "The items' texts have no letters in common, so they tell nothing about each other. "
            "Give the items titles or descriptions."
        )
    row_of = np.zeros(NUM_BUCKETS, np.int64)
    row_of[kept] = np.arange(1, len(kept) + 1)
    idf, basis = fit_tf_idf(counts[:, kept], items_with[kept], num_items, config.feature_dim, seed)
    return LetterGrams(
        classifier=classifier, symbol_of=symbol_of, row_of=row_of, idf=idf, basis=basis, lengths=lengths
    )


@torch.no_grad()
def _sparse_counts(
    reading: Reading, classifier: nn.Linear, symbol_of: NDArray[np.int64], lengths: tuple[int, ...]
) -> list[csr_matrix]:
    """Count all buckets, one part of the catalog after another -> a matrix [item, bucket] for each part."""
    found = []
    for start in range(0, reading.num_items, ITEMS_PER_CHUNK):
        part = reading.of_items(start, min(start + ITEMS_PER_CHUNK, reading.num_items))
        frames = torch.from_numpy(part.frames.astype(np.float32))
        item = torch.from_numpy(part.item_of_frame())
        symbols = torch.from_numpy(symbol_of[classifier(frames).argmax(dim=-1).numpy()])  # [spike]
        runs = [buckets(symbols, item, length) for length in lengths]
        rows = torch.cat([item[is_whole] for _, is_whole in runs]).numpy()
        columns = torch.cat([bucket[is_whole] for bucket, is_whole in runs]).numpy()
        shape = (part.num_items, NUM_BUCKETS)
        counted = csr_matrix((np.ones(len(rows), np.float32), (rows, columns)), shape=shape)
        counted.sum_duplicates()
        found.append(counted)
    return found
