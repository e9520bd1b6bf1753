"""`tiger`: a T5 encoder-decoder over code tokens, the usual backbone in papers (TIGER, NeurIPS 2023).

It computes the same function as T5 v1.0, weight for weight: transformers' T5ForConditionalGeneration with its
output head tied to the embedding, and so scaled by width ** -0.5. Three things differ:

- Level l is scored over the K codes of that level only, in training and serving. No other logits are
  computed.
- Beams are rows of queries. A request runs one encoder, and all beams share its cross-attention keys.
- TIGER's token for the user is left out. A live service meets users that it was not trained on, and in the
  paper's own ablation the token makes little difference.

With `reads="items"` the encoder reads one vector per item, the sum of its prefix embeddings, and not one
token per code. That is a third of the tokens, and of the encoder's work.

With `temperature` τ the training loss is cross-entropy on logits / τ (LETTER, CIKM 2024). Below 1, the wrong
codes with the highest logits weigh more. Scores use the plain logits, as in the authors' code.

A history of padding alone, of any length, gives the same result as one padding token. All keys are masked
alike, so attention is uniform over equal tokens.
"""

import math
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import TigerConfig
from model_export.generators.base import Generator, Modules
from model_export.generators.seen_prefixes import SeenPrefixes, item_vectors, seen_prefixes
from service.core.sid import SidSpec

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
MASKED = -1e9  # finite: a row with every key masked must not become nan
PAD = 0  # the token of padding, and the decoder's first input, as in T5
NUM_BUCKETS, MAX_DISTANCE = 32, 128  # T5's, of relative positions


class Memory(NamedTuple):
    """The keys and values of one attention: [batch, head, token, dim]."""

    keys: Tensor
    values: Tensor


class Past(NamedTuple):
    """Keys and values of one decoder layer: for every step so far, one of each [batch, beam, head * dim].

    They are few and small, so they are multiplied one by one. As matrices they would need hundreds of
    products with a single row.
    """

    keys: tuple[Tensor, ...]
    values: tuple[Tensor, ...]


class TigerState(NamedTuple):
    """The state of a search. Each tuple has one entry per decoder layer."""

    history: tuple[Memory, ...]  # of the encoder's states, shared by all beams
    history_bias: Tensor  # [batch, 1, 1, token]  MASKED at padding
    past: tuple[Past, ...]  # of the codes so far; empty before level 0


class RMSNorm(nn.Module):
    """T5's layer norm, without mean and bias. It is written out because opset 20 has no operator for it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        """x [..., width] -> the same shape"""
        return self.weight * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class RelativeBias(nn.Module):
    """A learnt bias for each bucket of the distance from query to key."""

    def __init__(self, num_heads: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.buckets = nn.Embedding(NUM_BUCKETS, num_heads)
        # A table, because a runtime could round the logarithm into another bucket.
        distance = torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1)
        self.register_buffer("bucket_of", bucket_of(distance, bidirectional=bidirectional), persistent=False)

    def forward(self, query_place: Tensor, key_place: Tensor) -> Tensor:
        """Positions [query] and [key] in the sequence -> [head, query, key]"""
        distance = (key_place[None, :] - query_place[:, None]).clamp(-MAX_DISTANCE, MAX_DISTANCE)
        by_distance = self.buckets(self.bucket_of).T  # [head, distance]
        result: Tensor = by_distance[:, distance + MAX_DISTANCE]
        return result


def rows_of(steps: Tensor, parent: Tensor) -> Tensor:
    """The steps of the parents: [batch, beam, width], parent [batch, new beam] -> [batch, new beam, width]"""
    batch, num_beams, _ = steps.shape
    first = torch.arange(batch, device=parent.device)[:, None] * num_beams
    return F.embedding(first + parent, steps.flatten(0, 1))


def bucket_of(distance: Tensor, *, bidirectional: bool) -> Tensor:
    """T5's bucket of each distance. Near distances have exact buckets, and far ones have logarithmic buckets.

    With `bidirectional` each direction has its own buckets. The shape stays.
    """
    if bidirectional:
        count = NUM_BUCKETS // 2
        first = torch.where(distance > 0, count, 0)
        distance = distance.abs()
    else:
        count, first = NUM_BUCKETS, torch.zeros((), dtype=torch.int64, device=distance.device)
        distance = (-distance).clamp(min=0)
    num_exact = count // 2
    log_share = torch.log(distance.clamp(min=1).float() / num_exact) / math.log(MAX_DISTANCE / num_exact)
    far = (num_exact + (log_share * (count - num_exact)).long()).clamp(max=count - 1)
    return first + torch.where(distance < num_exact, distance, far)


class Attention(nn.Module):
    """T5's attention. It has no scaling, which the initial weights replace, and only the position bias."""

    def __init__(self, config: TigerConfig) -> None:
        super().__init__()
        inner = config.num_heads * config.head_dim
        self.num_heads = config.num_heads
        self.query = nn.Linear(config.width, inner, bias=False)
        self.key = nn.Linear(config.width, inner, bias=False)
        self.value = nn.Linear(config.width, inner, bias=False)
        self.out = nn.Linear(inner, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.query.weight, std=(config.width * config.head_dim) ** -0.5)
        nn.init.normal_(self.key.weight, std=config.width**-0.5)
        nn.init.normal_(self.value.weight, std=config.width**-0.5)
        nn.init.normal_(self.out.weight, std=inner**-0.5)

    def remember(self, x: Tensor) -> Memory:
        """The keys and values of x [batch, token, width]."""
        return Memory(self._split(self.key(x)), self._split(self.value(x)))

    def forward(self, x: Tensor, memory: Memory, bias: Tensor) -> Tensor:
        """x [batch, query, width], bias [..., head, query, token] -> [batch, query, width]"""
        logits = self._split(self.query(x)) @ memory.keys.transpose(-1, -2) + bias
        mixed = self.dropout(logits.softmax(dim=-1)) @ memory.values  # [batch, head, query, dim]
        result: Tensor = self.out(mixed.transpose(1, 2).flatten(2))
        return result

    def advance(self, x: Tensor, past: Past, bias: Tensor) -> tuple[Tensor, Past]:
        """Attend from the newest step of each beam to its past and itself, for serving.

        x [batch, beam, width], bias [head, step] -> [batch, beam, width], and the past with this step.
        """
        past = Past((*past.keys, self.key(x)), (*past.values, self.value(x)))
        query = self.query(x)
        per_head = (self.num_heads, -1)
        logits = torch.stack([(query * key).unflatten(-1, per_head).sum(-1) for key in past.keys], dim=-1)
        weights = (logits + bias).softmax(dim=-1)  # [batch, beam, head, step]
        mixed = torch.zeros(())
        for step, value in enumerate(past.values):
            mixed = mixed + weights[..., step, None] * value.unflatten(-1, per_head)
        return self.out(mixed.flatten(2)), past

    def _split(self, x: Tensor) -> Tensor:
        """[batch, token, width] -> [batch, head, token, dim]"""
        result: Tensor = x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2)
        return result


class Layer(nn.Module):
    """One pre-norm layer of the encoder or of the decoder. A decoder layer also attends to the encoder."""

    def __init__(self, config: TigerConfig, *, is_decoder: bool) -> None:
        super().__init__()
        self.norm_self = RMSNorm(config.width)
        self.attend_self = Attention(config)
        if is_decoder:
            self.norm_cross = RMSNorm(config.width)
            self.attend_cross = Attention(config)
        self.norm_ffn = RMSNorm(config.width)
        self.ffn_in = nn.Linear(config.width, config.ffn_dim, bias=False)
        self.ffn_out = nn.Linear(config.ffn_dim, config.width, bias=False)
        self.dropout = nn.Dropout(config.dropout)
        nn.init.normal_(self.ffn_in.weight, std=config.width**-0.5)
        nn.init.normal_(self.ffn_out.weight, std=config.ffn_dim**-0.5)

    def encode(self, x: Tensor, bias: Tensor) -> Tensor:
        """x [batch, token, width], bias [batch, head, token, token] -> [batch, token, width]"""
        normed = self.norm_self(x)
        x = x + self.dropout(self.attend_self(normed, self.attend_self.remember(normed), bias))
        return self._feed_forward(x)

    def decode(self, x: Tensor, bias: Tensor, history: Memory, history_bias: Tensor) -> Tensor:
        """All steps of one path at once, for training: x [batch, step, width], bias [head, step, step].

        Returns [batch, step, width].
        """
        normed = self.norm_self(x)
        x = x + self.dropout(self.attend_self(normed, self.attend_self.remember(normed), bias))
        return self._look_back(x, history, history_bias)

    def advance(
        self, x: Tensor, past: Past, bias: Tensor, history: Memory, history_bias: Tensor
    ) -> tuple[Tensor, Past]:
        """The newest step of each beam, for serving: x [batch, beam, width], bias [head, step].

        Returns [batch, beam, width], and the past with this step.
        """
        mixed, past = self.attend_self.advance(self.norm_self(x), past, bias)
        return self._look_back(x + mixed, history, history_bias), past

    def _look_back(self, x: Tensor, history: Memory, history_bias: Tensor) -> Tensor:
        x = x + self.dropout(self.attend_cross(self.norm_cross(x), history, history_bias))
        return self._feed_forward(x)

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.ffn_in(self.norm_ffn(x))))
        result: Tensor = x + self.dropout(self.ffn_out(hidden))
        return result


class TigerGenerator(Generator):
    """TIGER as a generator."""

    learns_every_position = False

    def __init__(
        self, *, config: TigerConfig, spec: SidSpec, seen_codes: NDArray[np.integer[Any]] | None = None
    ) -> None:
        """`seen_codes` [item, level]: the items in the training sequences. `reads="items"` needs them.

        Raises ValueError if they are needed and missing.
        """
        super().__init__()
        self.spec = spec
        self.temperature = config.temperature
        self.prefixes: Modules[SeenPrefixes] | None = None
        if config.reads == "items":
            if seen_codes is None:
                raise ValueError('reads="items" needs seen_codes, the codes of the items in training')
            self.prefixes = Modules(seen_prefixes(spec, seen_codes, config.width))
        # Token of code c at level l: first_token[l] + c.
        self.first_token = tuple(1 + sum(spec.levels[:level]) for level in range(spec.num_levels))
        self.embed = nn.Embedding(1 + sum(spec.levels), config.width)
        self.bias = RelativeBias(config.num_heads, bidirectional=True)
        self.encoder: Modules[Layer] = Modules(
            Layer(config, is_decoder=False) for _ in range(config.num_layers)
        )
        self.encoder_norm = RMSNorm(config.width)
        self.causal_bias = RelativeBias(config.num_heads, bidirectional=False)
        self.decoder: Modules[Layer] = Modules(
            Layer(config, is_decoder=True) for _ in range(config.num_layers)
        )
        self.decoder_norm = RMSNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        for bias in (self.bias, self.causal_bias):
            nn.init.normal_(bias.buckets.weight, std=config.width**-0.5)

    def start(self, history: Tensor) -> TigerState:
        """Run the encoder once, and what each decoder layer remembers of it; see Generator.start."""
        x, is_token = self._tokens(history)  # [batch, token, width], [batch, token]
        place = torch.arange(x.shape[1], device=history.device)
        visible = is_token[:, None, None, :]  # [batch, 1, 1, token]
        bias = torch.where(visible, self.bias(place, place), MASKED)  # [batch, head, token, token]
        x = self.dropout(x)
        for layer in self.encoder:
            x = layer.encode(x, bias)
        x = self.dropout(self.encoder_norm(x))
        memories = tuple(layer.attend_cross.remember(x) for layer in self.decoder)
        return TigerState(memories, torch.where(visible, 0.0, MASKED), past=())

    def step(self, level: int, state: TigerState, prefix: Tensor) -> tuple[Tensor, TigerState]:
        """Run the decoder for one more step of each beam; see Generator.step."""
        if level == 0:
            token = torch.full_like(prefix, PAD)
        else:
            token = self.first_token[level - 1] + prefix % self.spec.levels[level - 1]
        place = torch.arange(level + 1, device=prefix.device)
        bias = self.causal_bias(place[-1:], place)[:, 0]  # [head, step]
        x = self.embed(token)  # [batch, beam, width]
        pasts = []
        for i, layer in enumerate(self.decoder):
            before = state.past[i] if level else Past((), ())
            x, past = layer.advance(x, before, bias, state.history[i], state.history_bias)
            pasts.append(past)
        log_probs = F.log_softmax(self._logits(level, self.decoder_norm(x)), dim=-1)
        return log_probs, state._replace(past=tuple(pasts))

    def reorder(self, state: TigerState, parent: Tensor) -> TigerState:
        """Take the past steps of the parents; see Generator.reorder."""

        def chosen(steps: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            # The first step is the same for all beams and stays as it is: [batch, 1, head * dim].
            return (steps[0], *(rows_of(step, parent) for step in steps[1:]))

        return state._replace(past=tuple(Past(*map(chosen, past)) for past in state.past))

    def loss(self, window: Tensor) -> Tensor:
        """The loss of the last item of each window, given the items before it."""
        history, target = window[:, :-1], window[:, -1]  # [batch, level]
        state = self.start(history)
        said = torch.tensor(self.first_token, device=window.device) + target
        tokens = F.pad(said[:, :-1], (1, 0), value=PAD)  # [batch, step]: the codes before each step
        place = torch.arange(tokens.shape[1], device=tokens.device)
        is_past = place[None, :] <= place[:, None]  # [step, step]
        bias = torch.where(is_past, self.causal_bias(place, place), MASKED)  # [head, step, step]
        x = self.dropout(self.embed(tokens))
        for layer, history_memory in zip(self.decoder, state.history, strict=True):
            x = layer.decode(x, bias, history_memory, state.history_bias)
        h = self.dropout(self.decoder_norm(x))  # [batch, step, width]
        losses = [
            F.cross_entropy(self._logits(level, h[:, level]) / self.temperature, target[:, level])
            for level in range(self.spec.num_levels)
        ]
        return torch.stack(losses).sum()

    def _tokens(self, history: Tensor) -> tuple[Tensor, Tensor]:
        """The encoder's input for codes [batch, position, level].

        Returns vectors [batch, token, width], and a mask [batch, token] that is false at padding.
        """
        padding = self.embed.weight[PAD]
        is_item = history[..., 0] >= 0
        if self.prefixes is not None:
            vectors = item_vectors(self.prefixes, history)
            return torch.where(is_item[..., None], vectors, padding), is_item
        first = torch.tensor(self.first_token, device=history.device)
        tokens = torch.where(history >= 0, history + first, PAD).flatten(1)
        return self.embed(tokens), (history >= 0).flatten(1)

    def _logits(self, level: int, h: Tensor) -> Tensor:
        """[..., width] -> [..., code]"""
        first = self.first_token[level]
        weight = self.embed.weight[first : first + self.spec.levels[level]]  # [code, width]
        result: Tensor = (h * weight.shape[1] ** -0.5) @ weight.T
        return result
