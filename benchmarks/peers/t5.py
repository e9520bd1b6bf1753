"""The same weights in transformers' T5, decoded by `generate` under a Python trie: the usual way."""

import re
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from model_export.generators.tiger import TigerGenerator
from service.core.sid import SidSpec

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # only while importing: transformers warns of its own dependencies
    from transformers import T5Config, T5ForConditionalGeneration

T5_NAMES = (  # of transformers -> ours
    (r"^(shared|lm_head|(en|de)coder\.embed_tokens)", "embed"),
    (r"encoder.block.0.layer.0.SelfAttention.relative_attention_bias", "bias.buckets"),
    (r"decoder.block.0.layer.0.SelfAttention.relative_attention_bias", "causal_bias.buckets"),
    (r"coder.final_layer_norm", "coder_norm"),
    (r"\.block\.", "."),
    (r"layer.\d.DenseReluDense.wi", "ffn_in"),
    (r"layer.\d.DenseReluDense.wo", "ffn_out"),
    (r"layer.0.SelfAttention", "attend_self"),
    (r"layer.1.EncDecAttention", "attend_cross"),
    (r"\.q\.", ".query."),
    (r"\.k\.", ".key."),
    (r"\.v\.", ".value."),
    (r"\.o\.", ".out."),
    (r"layer.0.layer_norm", "norm_self"),
    (r"(decoder.\d+.)layer.1.layer_norm", r"\1norm_cross"),
    (r"layer.\d.layer_norm", "norm_ffn"),
)


class LevelwiseT5(T5ForConditionalGeneration):
    """T5 that scores after each token only the codes of the next level, as `tiger` normalizes them."""

    outside_next_level: Tensor  # [token, next token]

    def forward(self, *args: Any, decoder_input_ids: Tensor | None = None, **kwargs: Any) -> Any:
        output = super().forward(*args, decoder_input_ids=decoder_input_ids, **kwargs)
        output.logits += self.outside_next_level[decoder_input_ids]
        return output


def as_t5(generator: TigerGenerator, *, levelwise: bool = False) -> Any:
    """The generator's weights as a T5ForConditionalGeneration. Raises where a weight has no place in it."""
    decoder: Any = generator.decoder
    layer = decoder[0]
    spec = generator.spec
    others: Any = {"attn_implementation": "eager", "decoder_start_token_id": 0}
    config = T5Config(
        vocab_size=1 + sum(spec.levels),
        d_model=layer.ffn_in.in_features,
        d_kv=layer.attend_self.query.out_features // layer.attend_self.num_heads,
        d_ff=layer.ffn_in.out_features,
        num_layers=len(decoder),
        num_heads=layer.attend_self.num_heads,
        dropout_rate=layer.dropout.p,
        eos_token_id=None,  # every sequence has as many codes as there are levels
        pad_token_id=0,
        **others,
    )
    t5: Any = (LevelwiseT5 if levelwise else T5ForConditionalGeneration)(config)
    ours, used = generator.state_dict(), {}
    for name in t5.state_dict():
        our_name = name
        for pattern, replacement in T5_NAMES:
            our_name = re.sub(pattern, replacement, our_name)
        used[name] = our_name
    t5.load_state_dict({name: ours[our_name] for name, our_name in used.items()})
    if unused := set(ours) - set(used.values()):
        raise ValueError(f"T5 has no place for {sorted(unused)}")
    if levelwise:
        t5.outside_next_level = _outside_next_level(spec)
    return t5.eval()


def _outside_next_level(spec: SidSpec) -> Tensor:
    """[token, next token] 0 where the next token is of the level after the token's, else -1e9."""
    level_of = torch.tensor([-1, *(level for level, k in enumerate(spec.levels) for _ in range(k))])
    return torch.where(level_of[None, :] == level_of[:, None] + 1, 0.0, -1e9)


class DictTrie:
    """The usual trie: dictionaries of children, from token to node."""

    def __init__(self, spec: SidSpec, codes: Any) -> None:
        """codes [item, level]"""
        self.first = [1 + sum(spec.levels[:level]) for level in range(spec.num_levels)]
        self.root: dict[int, Any] = {}
        for row in codes.tolist():
            self.insert(row)

    def insert(self, codes: list[int]) -> None:
        node = self.root
        for first, code in zip(self.first, codes, strict=True):
            node = node.setdefault(first + code, {})

    def allowed(self, tokens: list[int]) -> list[int]:
        """The tokens that may follow; `tokens` without the start."""
        node = self.root
        for token in tokens:
            node = node.get(token, {})
        return list(node)


def generate(t5: Any, trie: DictTrie, history: Tensor, num_beams: int) -> tuple[Tensor, Tensor]:
    """Histories of codes [batch, position, level] -> codes [batch, beam, level] and scores, best first."""
    batch, _, num_levels = history.shape
    first = torch.tensor(trie.first)
    allowed: Callable[[int, Tensor], list[int]] = lambda _row, tokens: trie.allowed(tokens[1:].tolist())  # noqa: E731
    output = t5.generate(
        input_ids=torch.where(history >= 0, history + first, 0).flatten(1),
        attention_mask=(history >= 0).flatten(1).long(),
        num_beams=num_beams,
        num_return_sequences=num_beams,
        max_new_tokens=num_levels,
        min_new_tokens=num_levels,
        do_sample=False,
        length_penalty=0.0,
        prefix_allowed_tokens_fn=allowed,
        return_dict_in_generate=True,
        output_scores=True,
    )
    codes = (output.sequences[:, 1:] - first).view(batch, num_beams, num_levels)
    return codes, output.sequences_scores.view(batch, num_beams)
