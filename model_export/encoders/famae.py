"""FAMAE (ReSID, arXiv 2602.02338): vectors of items that are learnt from purchases and fields.

The model reads a history and the item that was bought next, the target. A token is the sum of the embeddings
of an item's fields, its id among them, and of its position. Some of the target's fields are masked, drawn
anew for each target: first how many, then which. A masked field has a learned vector in place of its
embedding. The model predicts each masked field from what is left and from the history, by the cosine to the
values in the field's own table. An item's vector is its fields' embeddings side by side, not normalized.

Two figures tell how good the vectors are before anything is quantized. *Collaborative sufficiency* is the
recall of the target's id with all fields masked: only the history is left. *Discriminability* is its recall
with only the id masked: the other fields help. Training stops when their mean gets no better.

It compares with encoders of content, and no service can run it: an item that nobody has bought has an id
without a vector. Such items have zeros in its place. The paper samples negatives for large tables, by a
distribution that it does not tell. Here the softmax is over the whole table.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import FamaeConfig
from model_export.data.dataset import ItemSequence
from model_export.data.item_fields import ItemField
from model_export.data.splits import Targets
from service.core.progress import ProgressBar

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
PADDING = -1
K = 10
BATCH_TO_RANK = 256
START_STD = 0.02  # of all embeddings

Masking = Literal["all", "id"]


class Diagnostics(NamedTuple):
    """Recall@10 of the validation targets' ids among all items."""

    all_masked: float  # only the history is known: collaborative sufficiency
    id_masked: float  # the other fields are known too: discriminability

    @property
    def mean(self) -> float:
        """What early stopping watches."""
        return (self.all_masked + self.id_masked) / 2


@dataclass(frozen=True)
class FamaeResult:
    """Vectors, and how good they are."""

    vectors: NDArray[np.float32]  # [item, fields * width]
    fields: tuple[str, ...]
    diagnostics: Diagnostics  # of the best epoch
    history: tuple[Diagnostics, ...]  # one per epoch


class Famae(nn.Module):
    """Tables of embeddings, and a bidirectional transformer that is normalized inside its blocks only."""

    def __init__(self, fields: Sequence[ItemField], config: FamaeConfig) -> None:
        super().__init__()
        self.values: Tensor
        self.register_buffer("values", torch.from_numpy(np.stack([field.value for field in fields], axis=1)))
        self.tables = nn.ParameterList(
            nn.Parameter(START_STD * torch.randn(field.num_values, config.width)) for field in fields
        )  # of each field [value, width]
        self.masks = nn.Parameter(START_STD * torch.randn(len(fields), config.width))
        # Row 0 is the target's.
        self.places = nn.Parameter(START_STD * torch.randn(config.history_length + 1, config.width))
        block = nn.TransformerEncoderLayer(
            config.width,
            config.num_heads,
            config.ffn_dim,
            config.dropout,
            activation="relu",
            batch_first=True,
            norm_first=True,
        )
        self.blocks = nn.TransformerEncoder(block, config.num_layers, enable_nested_tensor=False)

    def forward(self, window: Tensor, masked: Tensor) -> Tensor:
        """Items [batch, position] and masked [batch, field] -> the targets' states [batch, width].

        The target is the last item. PADDING stands before the oldest item.
        """
        is_item = window != PADDING  # [batch, position]
        embedded = self.embed(window.clamp(min=0))  # [batch, position, field, width]
        target = torch.where(masked[..., None], self.masks, embedded[:, -1])  # [batch, field, width]
        tokens = torch.cat([embedded[:, :-1].sum(dim=2), target.sum(dim=1, keepdim=True)], dim=1)
        tokens = tokens + self.places[: window.shape[1]].flip(0)  # [batch, position, width]
        states: Tensor = self.blocks(tokens, src_key_padding_mask=~is_item)
        return states[:, -1]

    def embed(self, items: Tensor) -> Tensor:
        """Items [...] -> the embeddings of their fields [..., field, width]."""
        values = self.values[items]  # [..., field]
        return torch.stack([table[values[..., place]] for place, table in enumerate(self.tables)], dim=-2)

    def logits(self, states: Tensor, field: int) -> Tensor:
        """The scores [batch, value] of all values of a field: cosines times the root of the width."""
        scale = self.masks.shape[1] ** 0.5
        result: Tensor = scale * F.normalize(states, dim=-1) @ F.normalize(self.tables[field], dim=-1).T
        return result

    def loss(self, window: Tensor, masked: Tensor) -> Tensor:
        """The cross-entropy of the masked fields in nats: a sum over fields, and the mean over targets."""
        states = self(window, masked)  # [batch, width]
        values = self.values[window[:, -1]]  # [batch, field]
        total = states.new_zeros(())
        for field in range(len(self.tables)):
            chosen = masked[:, field]  # [batch]
            total = total + F.cross_entropy(
                self.logits(states[chosen], field), values[chosen, field], reduction="sum"
            )
        mean: Tensor = total / len(window)
        return mean

    @torch.no_grad()
    def item_vectors(self, is_learnt: NDArray[np.bool_]) -> NDArray[np.float32]:
        """The vectors [item, fields * width]. The id of an item that is not learnt [item] is left out."""
        embedded = self.embed(torch.arange(len(self.values), device=self.values.device))
        embedded[:, 0] *= torch.from_numpy(is_learnt).to(embedded.device)[:, None]  # the id comes first
        result: NDArray[np.float32] = embedded.flatten(1).cpu().numpy()
        return result


def draw_masks(num_targets: int, num_fields: int) -> Tensor:
    """Masked fields [target, field]: first a number from 1 to all, then as many fields, both uniform."""
    count = torch.randint(1, num_fields + 1, (num_targets, 1))
    rank = torch.rand(num_targets, num_fields).argsort(dim=1).argsort(dim=1)  # [target, field]
    return rank < count


def train_famae(
    fields: Sequence[ItemField],
    sequences: Sequence[ItemSequence],
    validation: Targets,
    config: FamaeConfig,
    *,
    seed: int,
) -> FamaeResult:
    """Fit to sequences of the training part, oldest first. `fields` begins with the item's id.

    Each epoch ends with both diagnostics of the validation users. The vectors are those of the epoch with the
    best mean. Raises ValueError if no sequence has two items.
    """
    windows = torch.from_numpy(windows_of(sequences, config.history_length))  # [target, position]
    if not len(windows):
        raise ValueError("no sequence has two items, so there is nothing to fit FAMAE to.")
    validation = validation.first(config.max_validation_users)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = Famae(fields, config).to(device)
        history, best = _train(model, windows, validation, config)
    model.load_state_dict(best)
    is_learnt = np.isin(np.arange(len(fields[0].value)), np.concatenate(sequences))
    return FamaeResult(
        model.eval().item_vectors(is_learnt),
        tuple(field.name for field in fields),
        max(history, key=lambda epoch: epoch.mean),
        tuple(history),
    )


def windows_of(sequences: Sequence[ItemSequence], history_length: int) -> NDArray[np.int64]:
    """A window for each item of a sequence but the first: up to `history_length` items before, and the item.

    [target, position], with PADDING in front.
    """
    found = []
    for sequence in sequences:
        padded = np.concatenate([np.full(history_length, PADDING), sequence])
        if len(sequence) > 1:
            found.append(np.lib.stride_tricks.sliding_window_view(padded, history_length + 1)[1:])
    return np.concatenate(found).astype(np.int64) if found else np.zeros((0, history_length + 1), np.int64)


@torch.no_grad()
def diagnose(model: Famae, validation: Targets, history_length: int) -> Diagnostics:
    """Both diagnostics. They are 0 without validation users."""
    if not len(validation):
        return Diagnostics(0.0, 0.0)
    model.eval()
    pairs = zip(validation.histories, validation.targets, strict=True)
    windows = torch.from_numpy(
        np.stack([windows_of([np.append(history, target)], history_length)[-1] for history, target in pairs])
    )  # [user, position]
    return Diagnostics(*(_recall(model, windows, masking) for masking in ("all", "id")))


def _recall(model: Famae, windows: Tensor, masking: Masking) -> float:
    hits = 0
    for window in windows.to(model.values.device).split(BATCH_TO_RANK):
        masked = torch.zeros(len(window), len(model.tables), dtype=torch.bool, device=window.device)
        masked[:, 0 if masking == "id" else slice(None)] = True
        scores = model.logits(model(window, masked), 0)  # [user, item]
        best = scores.topk(min(K, scores.shape[1]), dim=1).indices  # [user, rank]
        hits += int((best == window[:, -1:]).any(dim=1).sum())
    return hits / len(windows)


def _train(
    model: Famae, windows: Tensor, validation: Targets, config: FamaeConfig
) -> tuple[list[Diagnostics], dict[str, Tensor]]:
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
    )
    steps_per_epoch = -(-len(windows) // config.batch_size)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.max_epochs * steps_per_epoch)
    history: list[Diagnostics] = []
    best_epoch, best = 0, _copy(model)
    bar = ProgressBar(range(config.max_epochs), desc="train FAMAE", unit="epoch")
    for epoch in bar:
        model.train()
        for batch in torch.randperm(len(windows)).split(config.batch_size):
            masked = draw_masks(len(batch), len(model.tables)).to(model.values.device)
            loss = model.loss(windows[batch].to(model.values.device), masked)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        history.append(diagnose(model, validation, config.history_length))
        bar.set_postfix_str(
            f"recall@{K} of ids: {history[-1].all_masked:.3f}, {history[-1].id_masked:.3f} with fields",
            refresh=False,
        )
        if epoch == 0 or history[-1].mean > history[best_epoch].mean:
            best_epoch, best = epoch, _copy(model)
        elif epoch - best_epoch >= config.patience:
            break
    return history, best


def _copy(model: Famae) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}
