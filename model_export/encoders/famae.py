"""FAMAE (ReSID, arXiv 2602.02338): vectors of items that are learnt from purchases and fields.

The model reads a history and the item that was bought next, the target. A token is the sum of the embeddings
of an item's fields, its id among them, and of its position. Some of the target's fields are masked, drawn
anew for each target: first how many, then which. A masked field has a learned vector in place of its
embedding. The model predicts each masked field from what is left and from the history, by the cosine to the
values in the field's own table. An item's vector is its fields' embeddings side by side, not normalized.

Two figures tell how good the vectors are before anything is quantized. *Collaborative sufficiency* is the
recall of the target's id with all fields masked: only the history is left. *Discriminability* is its recall
with only the id masked: the other fields help. Training stops when their mean gets no better.

What is not known of an item is masked, too: a field that it lacks, a value that is rare, and the id of an
item that nobody has bought. It is never predicted. So a new item, whose id nobody knows, has a vector in the
same space (core/item_fields.py). The paper has no such items. It samples negatives for large tables, by a
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
from model_export.data.item_fields import ItemFields
from model_export.data.splits import Targets
from service.core.item_fields import UNKNOWN, Vocabulary
from service.core.progress import ProgressBar

VERSION = 3  # raised when the output changes; see model_export/pipeline/versions.py
PADDING = -1
K = 10
BATCH_TO_RANK = 256
BATCHES_PER_POOL = 16  # see batches_of
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


class FieldTables(nn.Module):
    """The embeddings of the values of each field. The first row of a table is its mask vector."""

    def __init__(self, num_values: Sequence[int], width: int) -> None:
        super().__init__()
        self.tables = nn.ParameterList(
            nn.Parameter(START_STD * torch.randn(count, width)) for count in num_values
        )  # of each field [value, width]

    def forward(self, numbers: Tensor) -> Tensor:
        """Numbers of fields [..., field] -> their embeddings [..., field, width]."""
        return torch.stack([table[numbers[..., place]] for place, table in enumerate(self.tables)], dim=-2)

    def table(self, field: int) -> Tensor:
        """The embeddings of a field's values [value, width]."""
        found: Tensor = self.tables[field]
        return found

    def vectors(self, numbers: Tensor) -> Tensor:
        """Numbers of fields [item, field] -> the items' vectors [item, fields * width]."""
        result: Tensor = self(numbers).flatten(1)
        return result


class FieldPictures(nn.Module):
    """The same with a projection of what a reader sees of each value. Only the mask vectors are tables."""

    def __init__(self, features: Sequence[NDArray[np.float32]], width: int) -> None:
        """`features` of the values of each field [value, feature]. Row 0 is not looked at."""
        super().__init__()
        self.num_fields = len(features)
        for place, each in enumerate(features):
            self.register_buffer(f"features_{place}", torch.from_numpy(each))
        self.masks = nn.Parameter(START_STD * torch.randn(len(features), width))
        self.projections = nn.ParameterList(
            nn.Parameter(START_STD * torch.randn(each.shape[1], width)) for each in features
        )  # of each field [feature, width]

    def forward(self, numbers: Tensor) -> Tensor:
        """Numbers of fields [..., field] -> their embeddings [..., field, width]."""
        tables = [self.table(place) for place in range(self.num_fields)]
        return torch.stack([table[numbers[..., place]] for place, table in enumerate(tables)], dim=-2)

    def table(self, field: int) -> Tensor:
        """The embeddings of a field's values [value, width]."""
        features: Tensor = getattr(self, f"features_{field}")
        return torch.cat([self.masks[field][None], features[1:] @ self.projections[field]])

    def vectors(self, features: Tensor, has_value: Tensor) -> Tensor:
        """Features [item, field, feature] of fields that have a value [item, field] -> the items' vectors
        [item, fields * width].
        """
        seen = torch.stack(
            [features[:, place] @ projection for place, projection in enumerate(self.projections)], dim=1
        )  # [item, field, width]
        result: Tensor = torch.where(has_value[..., None], seen, self.masks).flatten(1)
        return result


@dataclass(frozen=True)
class FamaeResult:
    """Vectors, what made them, and how good they are."""

    vectors: NDArray[np.float32]  # [item, fields * width]
    tables: FieldTables | FieldPictures
    vocabulary: Vocabulary
    diagnostics: Diagnostics  # of the best epoch
    history: tuple[Diagnostics, ...]  # one per epoch

    @property
    def fields(self) -> tuple[str, ...]:
        """The names of the fields, the item's id first."""
        return self.vocabulary.names


class Famae(nn.Module):
    """Tables of embeddings, and a bidirectional transformer that is normalized inside its blocks only."""

    def __init__(
        self, fields: ItemFields, config: FamaeConfig, features: Sequence[NDArray[np.float32]] | None = None
    ) -> None:
        """`features` [value, feature] of the values of each field; None: each value has a row of its own."""
        super().__init__()
        self.numbers: Tensor
        self.register_buffer("numbers", torch.from_numpy(fields.numbers))  # [item, field]
        self.embed = (
            FieldTables(fields.vocabulary.num_values, config.width)
            if features is None
            else FieldPictures(features, config.width)
        )
        # Row 0 is the target's.
        self.places = nn.Parameter(START_STD * torch.randn(config.history_length + 1, config.width))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                config.width,
                config.num_heads,
                config.ffn_dim,
                config.dropout,
                activation="relu",
                batch_first=True,
                norm_first=True,
            )
            for _ in range(config.num_layers)
        )

    def forward(self, window: Tensor, masked: Tensor) -> Tensor:
        """Items [batch, position] and masked [batch, field] -> the targets' states [batch, width].

        The target is the last item. PADDING stands before the oldest item.
        """
        is_item = window != PADDING  # [batch, position]
        numbers = self.numbers[window.clamp(min=0)]  # [batch, position, field]
        target = numbers[:, -1:].masked_fill(masked[:, None], UNKNOWN)  # [batch, 1, field]
        tokens = self.embed(torch.cat([numbers[:, :-1], target], dim=1)).sum(dim=2)
        tokens = tokens + self.places[: window.shape[1]].flip(0)  # [batch, position, width]
        for block in self.blocks[:-1]:
            tokens = block(tokens, src_key_padding_mask=~is_item)
        last = self.blocks[-1]
        assert isinstance(last, nn.TransformerEncoderLayer)
        return _last_state(last, tokens, ~is_item)

    def logits(self, states: Tensor, field: int) -> Tensor:
        """The scores [batch, value] of a field's values: cosines times the root of the width.

        UNKNOWN is never the answer.
        """
        table = self.embed.table(field)  # [value, width]
        found = table.shape[1] ** 0.5 * F.normalize(states, dim=-1) @ F.normalize(table, dim=-1).T
        is_unknown = torch.arange(len(table), device=table.device) == UNKNOWN
        result: Tensor = found.masked_fill(is_unknown, -torch.inf)
        return result

    def loss(self, window: Tensor, masked: Tensor) -> Tensor:
        """The cross-entropy of the masked fields in nats: a sum over fields, and the mean over targets.

        What is not known of a target is not asked.
        """
        states = self(window, masked)  # [batch, width]
        numbers = self.numbers[window[:, -1]]  # [batch, field]
        total = states.new_zeros(())
        for field in range(numbers.shape[1]):
            asked = masked[:, field] & (numbers[:, field] != UNKNOWN)  # [batch]
            total = total + F.cross_entropy(
                self.logits(states[asked], field), numbers[asked, field], reduction="sum"
            )
        mean: Tensor = total / len(window)
        return mean


def _last_state(block: nn.TransformerEncoderLayer, states: Tensor, is_padding: Tensor) -> Tensor:
    """What a block makes of the last of the states [batch, position, width]: [batch, width].

    Nothing reads what it would make of the others, so they are not computed.
    """
    normalized = block.norm1(states)
    read, _ = block.self_attn(
        normalized[:, -1:], normalized, normalized, key_padding_mask=is_padding, need_weights=False
    )
    found = states[:, -1] + block.dropout1(read)[:, 0]
    hidden = block.dropout(block.activation(block.linear1(block.norm2(found))))
    result: Tensor = found + block.dropout2(block.linear2(hidden))
    return result


def draw_masks(num_targets: int, num_fields: int) -> Tensor:
    """Masked fields [target, field]: first a number from 1 to all, then as many fields, both uniform."""
    count = torch.randint(1, num_fields + 1, (num_targets, 1))
    rank = torch.rand(num_targets, num_fields).argsort(dim=1).argsort(dim=1)  # [target, field]
    return rank < count


def train_famae(
    fields: ItemFields,
    sequences: Sequence[ItemSequence],
    validation: Targets,
    config: FamaeConfig,
    *,
    seed: int,
    features: Sequence[NDArray[np.float32]] | None = None,
) -> FamaeResult:
    """Fit to sequences of the training part, oldest first. `fields` begins with the item's id.

    With `features` [value, feature] of the values of each field, their embeddings are projections of these.
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
        model = Famae(fields, config, features).to(device)
        history, best = _train(model, windows, validation, config)
    model.load_state_dict(best)
    tables: FieldTables | FieldPictures = model.embed.cpu().eval().requires_grad_(False)
    with torch.no_grad():
        vectors: NDArray[np.float32] = tables(torch.from_numpy(fields.numbers)).flatten(1).numpy()
    return FamaeResult(
        vectors, tables, fields.vocabulary, max(history, key=lambda epoch: epoch.mean), tuple(history)
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


def batches_of(windows: Tensor, batch_size: int) -> list[Tensor]:
    """Batches of row numbers in a random order. The windows of a batch are about equally long.

    Most histories are short, so a batch of any length is mostly padding. Each pool of random windows is
    sorted by length before it is cut into batches.
    """
    lengths = (windows != PADDING).sum(dim=1)  # [target]
    found: list[Tensor] = []
    for pool in torch.randperm(len(windows)).split(batch_size * BATCHES_PER_POOL):
        found += pool[lengths[pool].argsort()].split(batch_size)
    return [found[place] for place in torch.randperm(len(found))]


def without_padding(windows: Tensor) -> Tensor:
    """The windows without the columns in front that are padding in all of them."""
    longest = int((windows != PADDING).sum(dim=1).max())
    return windows[:, -longest:]


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
    by_length = windows[(windows != PADDING).sum(dim=1).argsort()].to(model.numbers.device)
    for window in map(without_padding, by_length.split(BATCH_TO_RANK)):
        targets = model.numbers[window[:, -1]]  # [user, field]
        masked = torch.zeros_like(targets, dtype=torch.bool)
        masked[:, 0 if masking == "id" else slice(None)] = True
        scores = model.logits(model(window, masked), 0)  # [user, id]
        best = scores.topk(min(K, scores.shape[1] - 1), dim=1).indices  # [user, rank]
        hits += int((best == targets[:, :1]).any(dim=1).sum())
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
        for batch in batches_of(windows, config.batch_size):
            masked = draw_masks(len(batch), model.numbers.shape[1]).to(model.numbers.device)
            loss = model.loss(without_padding(windows[batch]).to(model.numbers.device), masked)
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
