"""`tiger`: a T5 encoder-decoder over code tokens, the papers' backbone (TIGER, NeurIPS 2023).

The mathematics is T5 v1.0's, weight for weight that of transformers' T5ForConditionalGeneration with its
output head tied to the embedding (and so scaled by width ** -0.5). Three things differ:

- Level l is scored over the K codes of that level only, in training and serving, so only they are computed.
- Beams are rows of queries: a request has one encoder and one set of cross-attention keys for all of them.
- TIGER's token for the user is left out: a live service meets users it was not trained on, and by the
  paper's own ablation it hardly matters.

A history of nothing but padding reads as one padding token, however long it is: with every key masked alike,
attention is uniform over equal tokens.
"""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from model_export.configs import TigerConfig
from model_export.generators.base import Generator
from service.contract import SidSpec

MASKED = -1e9  # finite: a row with every key masked must not become nan
PAD = 0  # the token of padding, and the decoder's first input, as in T5
NUM_BUCKETS, MAX_DISTANCE = 32, 128  # T5's, of relative positions


class Memory(NamedTuple):
    """What one attention looks at: keys and values [..., head, token, dim]."""

    keys: Tensor
    values: Tensor


class TigerState(NamedTuple):
    """Each tuple has one memory for each decoder layer."""

    history: tuple[Memory, ...]  # [batch, head, token, dim]  of the encoder's states, shared by all beams
    history_bias: Tensor  # [batch, 1, 1, token]  MASKED at padding
    past: tuple[Memory, ...]  # [batch, beam, head, step, dim]  of the codes so far; none before level 0


class RMSNorm(nn.Module):
    """T5's layer norm: no mean, no bias. Spelt out, as opset 20 has no operator for it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))

    def forward(self, x: Tensor) -> Tensor:
        return self.weight * (x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-6))


class RelativeBias(nn.Module):
    """A learnt bias by bucket of the distance from query to key."""

    def __init__(self, num_heads: int, *, bidirectional: bool) -> None:
        super().__init__()
        self.buckets = nn.Embedding(NUM_BUCKETS, num_heads)
        # A table, so that no runtime rounds the logarithm into another bucket.
        distance = torch.arange(-MAX_DISTANCE, MAX_DISTANCE + 1)
        self.register_buffer("bucket_of", bucket_of(distance, bidirectional=bidirectional), persistent=False)

    def forward(self, query_place: Tensor, key_place: Tensor) -> Tensor:
        """Places [query] and [key] in the sequence -> [head, query, key]"""
        distance = (key_place[None, :] - query_place[:, None]).clamp(-MAX_DISTANCE, MAX_DISTANCE)
        by_distance = self.buckets(self.bucket_of).T  # [head, distance]
        return by_distance[:, distance + MAX_DISTANCE]


def bucket_of(distance: Tensor, *, bidirectional: bool) -> Tensor:
    """T5's buckets: exact for near keys, logarithmic for far ones, one set for each direction."""
    if bidirectional:
        count = NUM_BUCKETS // 2
        first = torch.where(distance > 0, count, 0)
        distance = distance.abs()
    else:
        count, first = NUM_BUCKETS, 0
        distance = (-distance).clamp(min=0)
    num_exact = count // 2
    log_share = torch.log(distance.clamp(min=1).float() / num_exact) / math.log(MAX_DISTANCE / num_exact)
    far = (num_exact + (log_share * (count - num_exact)).long()).clamp(max=count - 1)
    return first + torch.where(distance < num_exact, distance, far)


class Attention(nn.Module):
    """T5's: no scaling (the initial weights do that), no bias but that of places."""

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
        """x [..., token, width]"""
        return Memory(self._split(self.key(x)), self._split(self.value(x)))

    def forward(self, x: Tensor, memory: Memory, bias: Tensor) -> Tensor:
        """x [..., query, width], bias [..., head, query, token] -> [..., query, width]"""
        logits = (
            self._split(self.query(x)) @ memory.keys.transpose(-1, -2) + bias
        )  # [..., head, query, token]
        mixed = self.dropout(logits.softmax(dim=-1)) @ memory.values  # [..., head, query, dim]
        return self.out(mixed.transpose(-2, -3).flatten(-2))

    def _split(self, x: Tensor) -> Tensor:
        """[..., token, width] -> [..., head, token, dim]"""
        return x.unflatten(-1, (self.num_heads, -1)).transpose(-2, -3)


class Layer(nn.Module):
    """One pre-norm layer of the encoder, or of the decoder, which also looks at the encoder."""

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
        """x [batch, token, width], bias [batch, head, token, token]"""
        normed = self.norm_self(x)
        x = x + self.dropout(self.attend_self(normed, self.attend_self.remember(normed), bias))
        return self._feed_forward(x)

    def decode(
        self, x: Tensor, past: Memory | None, bias: Tensor, history: Memory, history_bias: Tensor
    ) -> tuple[Tensor, Memory]:
        """x [batch, beam, step, width] -> x, and the memory of these steps and all before them."""
        normed = self.norm_self(x)
        memory = self.attend_self.remember(normed)  # [batch, beam, head, step, dim]
        if past is not None:
            memory = Memory(*(torch.cat(pair, dim=3) for pair in zip(past, memory, strict=True)))
        x = x + self.dropout(self.attend_self(normed, memory, bias))
        queries = self.norm_cross(x).flatten(1, 2)  # [batch, beam * step, width]
        x = x + self.dropout(self.attend_cross(queries, history, history_bias)).view(x.shape)
        return self._feed_forward(x), memory

    def _feed_forward(self, x: Tensor) -> Tensor:
        hidden = self.dropout(F.relu(self.ffn_in(self.norm_ffn(x))))
        return x + self.dropout(self.ffn_out(hidden))


class TigerGenerator(Generator):
    learns_every_position = False

    def __init__(self, *, config: TigerConfig, spec: SidSpec) -> None:
        super().__init__()
        self.spec = spec
        # Token of code c at level l: first_token[l] + c.
        self.first_token = tuple(1 + sum(spec.levels[:level]) for level in range(spec.num_levels))
        self.embed = nn.Embedding(1 + sum(spec.levels), config.width)
        self.bias = RelativeBias(config.num_heads, bidirectional=True)
        self.encoder = nn.ModuleList(Layer(config, is_decoder=False) for _ in range(config.num_layers))
        self.encoder_norm = RMSNorm(config.width)
        self.causal_bias = RelativeBias(config.num_heads, bidirectional=False)
        self.decoder = nn.ModuleList(Layer(config, is_decoder=True) for _ in range(config.num_layers))
        self.decoder_norm = RMSNorm(config.width)
        self.dropout = nn.Dropout(config.dropout)
        for bias in (self.bias, self.causal_bias):
            nn.init.normal_(bias.buckets.weight, std=config.width**-0.5)

    def start(self, history: Tensor) -> TigerState:
        first = torch.tensor(self.first_token, device=history.device)
        is_code = (history >= 0).flatten(1)  # [batch, token]
        tokens = torch.where(is_code, (history + first).flatten(1), PAD)
        place = torch.arange(tokens.shape[1], device=history.device)
        visible = is_code[:, None, None, :]  # [batch, 1, 1, token]
        bias = torch.where(visible, self.bias(place, place), MASKED)  # [batch, head, token, token]
        x = self.dropout(self.embed(tokens))
        for layer in self.encoder:
            x = layer.encode(x, bias)
        x = self.dropout(self.encoder_norm(x))
        memories = tuple(layer.attend_cross.remember(x) for layer in self.decoder)
        return TigerState(memories, torch.where(visible, 0.0, MASKED), past=())

    def step(self, level: int, state: TigerState, prefix: Tensor) -> tuple[Tensor, TigerState]:
        if level == 0:
            token = torch.full_like(prefix, PAD)
        else:
            token = self.first_token[level - 1] + prefix % self.spec.levels[level - 1]
        h, state = self._decode(token[..., None], state, past=level)
        return F.log_softmax(self._logits(level, h[:, :, 0]), dim=-1), state

    def reorder(self, state: TigerState, parent: Tensor) -> TigerState:
        row = torch.arange(parent.shape[0], device=parent.device)[:, None]
        past = tuple(Memory(keys[row, parent], values[row, parent]) for keys, values in state.past)
        return state._replace(past=past)

    def loss(self, window: Tensor) -> Tensor:
        """Learns the last item of each window from those before it."""
        history, target = window[:, :-1], window[:, -1]  # [batch, level]
        said = torch.tensor(self.first_token, device=window.device) + target
        tokens = F.pad(said[:, :-1], (1, 0), value=PAD)  # [batch, step]: the decoder is told what came before
        h, _ = self._decode(tokens[:, None], self.start(history), past=0)
        losses = [
            F.cross_entropy(self._logits(level, h[:, 0, level]), target[:, level])
            for level in range(self.spec.num_levels)
        ]
        return torch.stack(losses).sum()

    def _decode(self, tokens: Tensor, state: TigerState, *, past: int) -> tuple[Tensor, TigerState]:
        """tokens [batch, beam, step], the first of which is at place `past` -> [batch, beam, step, width]"""
        place = torch.arange(past + tokens.shape[2], device=tokens.device)
        is_past = place[None, :] <= place[past:, None]  # [step, token]
        bias = torch.where(is_past, self.causal_bias(place[past:], place), MASKED)  # [head, step, token]
        x = self.dropout(self.embed(tokens))
        memories = []
        for i, layer in enumerate(self.decoder):
            before = state.past[i] if past else None
            x, memory = layer.decode(x, before, bias, state.history[i], state.history_bias)
            memories.append(memory)
        return self.dropout(self.decoder_norm(x)), state._replace(past=tuple(memories))

    def _logits(self, level: int, h: Tensor) -> Tensor:
        """[..., width] -> [..., code]"""
        first = self.first_token[level]
        weight = self.embed.weight[first : first + self.spec.levels[level]]  # [code, width]
        return (h * weight.shape[1] ** -0.5) @ weight.T
