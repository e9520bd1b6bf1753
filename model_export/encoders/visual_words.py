"""Visual words describe an item by its spike frames and keep their local order, which a mean would lose.

Each spike opens a window that holds it and the spikes after it. The nearest of `num_words` centroids is the
window's word (Sivic and Zisserman, "Video Google", 2003). An item's features are the TF-IDF of its words,
reduced by an SVD, and the whitened mean and spread of its frames.
"""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from sklearn.cluster import MiniBatchKMeans
from sklearn.decomposition import PCA
from torch import Tensor
from torch.nn import functional as F

from model_export.configs import PpOcrConfig
from model_export.encoders.base import Pooling, Reading, item_of_strip
from model_export.encoders.tf_idf import MIN_SPREAD, TfIdf, fit_tf_idf
from service.core.progress import ProgressBar
from service.errors import GlyphrecError

PAPER = 255
INK_CONTRAST = 64  # levels of 255; a paler pixel does not count as ink
KMEANS_PASSES = 3
KMEANS_BATCH = 8192  # windows
MAX_FIT_WINDOWS = 300_000
STATS_WEIGHT = 0.5  # of mean and spread against the words; both vectors have length 1
WINDOWS_PER_WORD = 4  # at least; with fewer, a word would be a single window


def inked_frames(strips: Tensor, num_frames: int) -> Tensor:
    """True for each frame that begins before the end of the text -> [strip, frame] bool.

    strips is [strip, height, width] uint8. Frames after the text show only paper.
    """
    width_px = strips.shape[-1]
    darkest = (PAPER - strips.to(torch.int64)).amax(dim=1)  # [strip, column]
    column = torch.arange(1, width_px + 1, device=strips.device)
    end_px = torch.where(darkest > INK_CONTRAST, column, 0).amax(dim=1)  # [strip]
    begin_px = torch.arange(num_frames, device=strips.device) * width_px / num_frames  # [frame]
    return begin_px < end_px[:, None]


class VisualWords(Pooling):
    """The fitted pooling. PpOcrConfig sets its dimensions."""

    gate: Tensor  # [dim + 1]
    mean: Tensor  # [dim]
    projection: Tensor  # [dim, projection_dim]
    centroids: Tensor  # [word, window * projection_dim]
    idf: Tensor  # [word]
    word_basis: Tensor  # [word, word_dim]
    stats_mean: Tensor  # [2 * dim]
    stats_basis: Tensor  # [2 * dim, stats_dim]

    def __init__(
        self,
        *,
        gate: NDArray[np.float32],  # [dim + 1]
        mean: NDArray[np.float32],  # [dim]
        projection: NDArray[np.float32],  # [dim, projection_dim]
        centroids: NDArray[np.float32],  # [word, window * projection_dim]
        idf: NDArray[np.float32],  # [word]
        word_basis: NDArray[np.float32],  # [word, word_dim]
        stats_mean: NDArray[np.float32],  # [2 * dim]
        stats_basis: NDArray[np.float32],  # [2 * dim, stats_dim]
    ) -> None:
        super().__init__()
        arrays = {
            "gate": gate,
            "mean": mean,
            "projection": projection,
            "centroids": centroids,
            "idf": idf,
            "word_basis": word_basis,
            "stats_mean": stats_mean,
            "stats_basis": stats_basis,
        }
        for name, array in arrays.items():
            self.register_buffer(name, torch.from_numpy(np.ascontiguousarray(array, dtype=np.float32)))
        self.window = centroids.shape[1] // projection.shape[1]
        self.num_words = len(centroids)
        self.feature_dim = word_basis.shape[1] + stats_basis.shape[1]

    def forward(self, strips: Tensor, frames: Tensor, first_strip: Tensor) -> Tensor:
        """Find the spikes with the gate and pool them, see `Pooling.forward`."""
        # Not `frames @ gate`: ONNX Runtime 1.32 folds the body's last transpose into it and gets it wrong.
        is_spike = (frames * self.gate[:-1]).sum(dim=-1) + self.gate[-1] > 0  # [strip, frame]
        is_spike = is_spike & inked_frames(strips, frames.shape[1])
        strip, frame = is_spike.nonzero(as_tuple=True)  # [spike] each, in reading order
        # A Reading stores float16. With the same rounding here the graph sees the values that were fitted.
        spikes = frames[strip, frame].to(torch.float16).to(torch.float32)  # [spike, dim]
        item = item_of_strip(strip, first_strip)  # [spike]
        return self.features(spikes, item, first_strip.shape[0])

    def features(self, frames: Tensor, item: Tensor, num_items: int) -> Tensor:
        """Features [item, word_dim + stats_dim] of spikes [spike, dim], see `Pooling.features`."""
        words = self._word_features(self.words(frames, item), item, num_items)  # [item, word_dim]
        return torch.cat([words, STATS_WEIGHT * self._stats(frames, item, num_items)], dim=1)

    def words(self, frames: Tensor, item: Tensor) -> Tensor:
        """The word of each spike's window -> [spike]. frames is [spike, dim], item is [spike]."""
        projected = (frames - self.mean) @ self.projection  # [spike, projection_dim]
        return nearest(make_windows(projected, item, self.window), self.centroids)

    def _word_features(self, words: Tensor, item: Tensor, num_items: int) -> Tensor:
        cell = item * self.num_words + words  # [spike]
        ones = torch.ones_like(cell, dtype=torch.float32)
        counts = torch.zeros(num_items * self.num_words).index_add(0, cell, ones)
        weights = counts.view(num_items, self.num_words).log1p() * self.idf  # [item, word]
        return F.normalize(F.normalize(weights, dim=1) @ self.word_basis, dim=1)  # [item, word_dim]

    def _stats(self, frames: Tensor, item: Tensor, num_items: int) -> Tensor:
        stats = spike_stats(frames - self.mean, item, num_items)  # [item, 2 * dim]
        return F.normalize((stats - self.stats_mean) @ self.stats_basis, dim=1)  # [item, stats_dim]


def make_windows(vectors: Tensor, item: Tensor, window: int) -> Tensor:
    """Each vector with the `window - 1` vectors after it in the same item -> [spike, window * dim].

    vectors is [spike, dim], item is [spike]. Places past the item's end are zeros.
    """
    num_spikes = vectors.shape[0]
    here = torch.arange(num_spikes, device=vectors.device)
    columns = []
    for step in range(window):
        there = (here + step).clamp(max=num_spikes - 1)  # [spike]
        same_item = (here + step < num_spikes) & (item[there] == item)
        columns.append(vectors[there] * same_item[:, None])
    return torch.cat(columns, dim=1)


def nearest(windows: Tensor, centroids: Tensor) -> Tensor:
    """The centroid [word, dim] nearest to each window [spike, dim] -> [spike]. Of equals the first wins."""
    # |w - c|^2 / 2 without |w|^2 / 2, which is the same for all centroids
    return (centroids.square().sum(dim=1) / 2 - windows @ centroids.T).argmin(dim=1)


def spike_stats(frames: Tensor, item: Tensor, num_items: int) -> Tensor:
    """Mean and standard deviation of each item's frames [spike, dim] -> [item, 2 * dim].

    item [spike] is the item of each frame. An item without frames has the mean 0.
    """
    zeros = torch.zeros(num_items, frames.shape[1])
    ones = torch.ones_like(item, dtype=torch.float32)
    count = torch.zeros(num_items).index_add(0, item, ones).clamp(min=1)  # [item]
    mean = zeros.index_add(0, item, frames) / count[:, None]  # [item, dim]
    variance = zeros.index_add(0, item, (frames - mean[item]).square()) / count[:, None]
    return torch.cat([mean, (variance + 1e-6).sqrt()], dim=1)


def fit_visual_words(reading: Reading, config: PpOcrConfig, seed: int) -> VisualWords:
    """Fit the visual words to a Reading. A small catalog gets fewer words and dimensions.

    Raises GlyphrecError if the Reading has fewer frames than a window.
    """
    rng = np.random.default_rng(seed)
    kept = np.sort(rng.permutation(reading.num_items)[: config.max_fit_items])
    sample = Reading.join([reading.of_items(item, item + 1) for item in kept])
    if len(sample.frames) < config.window:
        raise GlyphrecError("The OCR encoder saw no letters in the items' text. Give the items titles.")
    frames = sample.frames.astype(np.float32)  # [spike, dim]
    item = torch.from_numpy(sample.item_of_frame())  # [spike]

    mean = frames.mean(axis=0)
    some = frames[rng.permutation(len(frames))[:MAX_FIT_WINDOWS]]
    projection = PCA(min(config.projection_dim, *some.shape), random_state=seed).fit(some).components_.T
    windows = make_windows(torch.from_numpy((frames - mean) @ projection), item, config.window)
    centroids = _fit_centroids(windows.numpy(), config.num_words, rng, seed)
    word = torch.cat([nearest(chunk, torch.from_numpy(centroids)) for chunk in windows.split(KMEANS_BATCH)])
    idf, word_basis = _fit_tf_idf(word.numpy(), sample, len(centroids), config.word_dim, seed)
    stats = spike_stats(torch.from_numpy(frames - mean), item, sample.num_items).numpy()  # [item, 2 * dim]
    whitening = PCA(min(config.stats_dim, *stats.shape), random_state=seed).fit(stats)
    spread = np.sqrt(whitening.explained_variance_)  # [stats_dim]
    spread = spread.clip(min=max(MIN_SPREAD * spread[0], MIN_SPREAD))
    return VisualWords(
        gate=reading.gate,
        mean=mean,
        projection=projection,
        centroids=centroids,
        idf=idf,
        word_basis=word_basis,
        stats_mean=whitening.mean_,
        stats_basis=whitening.components_.T / spread,
    )


def _fit_centroids(
    windows: NDArray[np.float32], num_words: int, rng: np.random.Generator, seed: int
) -> NDArray[np.float32]:
    """K-means over windows [spike, dim] -> [word, dim]."""
    some = windows[rng.permutation(len(windows))[:MAX_FIT_WINDOWS]]
    num_words = max(1, min(num_words, len(some) // WINDOWS_PER_WORD))
    batch = max(KMEANS_BATCH, 2 * num_words)
    # The start is random windows: k-means++ takes minutes for thousands of words.
    kmeans = MiniBatchKMeans(num_words, init=some[:num_words], n_init=1, batch_size=batch, random_state=seed)
    batches = [some[i : i + batch] for _ in range(KMEANS_PASSES) for i in range(0, len(some), batch)]
    for part in ProgressBar(batches, desc="Finding visual words", unit="batch", mininterval=1.0):
        if len(part) >= num_words:
            kmeans.partial_fit(part)
    result: NDArray[np.float32] = kmeans.cluster_centers_
    return result


def _fit_tf_idf(word: NDArray[np.int64], sample: Reading, num_words: int, word_dim: int, seed: int) -> TfIdf:
    """Fit TF-IDF to the words [spike] of the sample."""
    num_items = sample.num_items
    ones = np.ones(len(word), np.float32)
    counts = csr_matrix((ones, (sample.item_of_frame(), word)), shape=(num_items, num_words))
    counts.sum_duplicates()
    items_with = np.bincount(counts.indices, minlength=num_words)  # [word]
    return fit_tf_idf(counts, items_with, num_items, word_dim, seed)
