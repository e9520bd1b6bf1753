"""CLIP's two towers as the joint space (Radford et al., arXiv 2103.00020), fine-tuned on pairs as in VL-CLIP.

For a checkpoint such as openai/clip-vit-base-patch32, with its tokenizer and its image processor.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from model_export.encoders.hub.base import load_config, load_model, require_transformers, wrong_model
from model_export.vl_clip.configs import ClipConfig
from model_export.vl_clip.retrieval import figures_of, ranks_of_pairs
from model_export.vl_clip.space import TextPhotoSpace, Vectors, symmetric_contrastive_loss
from service.core.progress import ProgressBar
from service.errors import GlyphrecError

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
MODEL_TYPE = "clip"
AT_ONCE = 64
CLIP_NORM = 1.0


class ClipSpace(TextPhotoSpace):
    """The towers of a checkpoint."""

    def __init__(self, checkpoint: str) -> None:
        """`checkpoint`: a folder or a name on the model hub. Raises GlyphrecError if it cannot be used."""
        require_transformers()
        config = load_config(checkpoint)
        if config.model_type != MODEL_TYPE:
            raise wrong_model(checkpoint, config.model_type, (MODEL_TYPE,))
        from transformers import AutoTokenizer, CLIPImageProcessorPil, CLIPModel

        try:
            self._tokenizer: Any = AutoTokenizer.from_pretrained(checkpoint)
            self._processor: Any = CLIPImageProcessorPil.from_pretrained(checkpoint)
            self.model: Any = load_model(CLIPModel, checkpoint, attn_implementation="eager")
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise GlyphrecError(
                f"{checkpoint}: transformers cannot load it as CLIP ({reason}). A checkpoint's folder must "
                "hold config.json, preprocessor_config.json, model.safetensors and the tokenizer's files."
            ) from error
        self.model.eval().to("cuda" if torch.cuda.is_available() else "cpu")
        self._max_tokens = int(config.text_config.max_position_embeddings)

    @torch.inference_mode()
    def texts(self, texts: Sequence[str]) -> Vectors:
        """See the base. A text is cut at the length that the tower reads."""
        return self._in_batches(texts, self._of_texts)

    @torch.inference_mode()
    def photos(self, photos: Sequence[Image.Image]) -> Vectors:
        """See the base."""
        return self._in_batches(photos, self._of_photos)

    def _in_batches(self, inputs: Sequence[Any], read: Callable[[Sequence[Any]], Tensor]) -> Vectors:
        starts = range(0, len(inputs), AT_ONCE)
        found = [read(inputs[start : start + AT_ONCE]).cpu().numpy() for start in starts]
        return np.concatenate([np.zeros((0, self.model.projection_dim), np.float32), *found])

    def save(self, folder: Path) -> None:
        """Write the checkpoint with its tokenizer and image processor, in the form of the model hub."""
        for part in (self.model, self._tokenizer, self._processor):
            part.save_pretrained(folder)

    def _of_texts(self, texts: Sequence[str]) -> Tensor:
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._max_tokens, return_tensors="pt"
        ).to(self.model.device)
        output = self.model.text_model(input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"])
        return F.normalize(self.model.text_projection(output.pooler_output), dim=-1)

    def _of_photos(self, photos: Sequence[Image.Image]) -> Tensor:
        pixels = self._processor(list(photos), return_tensors="pt")["pixel_values"].to(self.model.device)
        output = self.model.vision_model(pixel_values=pixels)
        return F.normalize(self.model.visual_projection(output.pooler_output), dim=-1)

    def fine_tune(
        self,
        texts: Sequence[str],
        photos: Sequence[Image.Image],
        validation_texts: Sequence[str],
        validation_photos: Sequence[Image.Image],
        config: ClipConfig,
        seed: int,
    ) -> list[float]:
        """Train both towers and the temperature on pairs, and keep the epoch with the best validation MRR.

        Returns the MRR before the first epoch and after each one. Training stops after `patience` epochs
        without a better one.
        """
        curve = [self._quality(validation_texts, validation_photos)]
        best, since_best = _copy(self.model), 0
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            optimizer = torch.optim.AdamW(
                self.model.parameters(), config.learning_rate, weight_decay=config.weight_decay
            )
            progress = ProgressBar(range(config.max_epochs), desc="Fine-tuning CLIP", unit="epoch")
            for _epoch in progress:
                self.model.train()
                for batch in torch.randperm(len(texts)).split(config.batch_size):
                    if len(batch) < 2:  # one pair has nothing to be told apart from
                        continue
                    chosen = batch.tolist()
                    temperature = self.model.logit_scale.exp().clamp(max=100).reciprocal()
                    loss = symmetric_contrastive_loss(
                        self._of_texts([texts[place] for place in chosen]),
                        self._of_photos([photos[place] for place in chosen]),
                        temperature,
                    )
                    optimizer.zero_grad()
                    loss.backward()
                    torch.nn.utils.clip_grad_norm_(self.model.parameters(), CLIP_NORM)
                    optimizer.step()
                self.model.eval()
                curve.append(self._quality(validation_texts, validation_photos))
                progress.set_postfix(mrr=f"{curve[-1]:.3f}")
                if curve[-1] > max(curve[:-1]):
                    best, since_best = _copy(self.model), 0
                elif (since_best := since_best + 1) >= config.patience:
                    break
        self.model.load_state_dict(best)
        return curve

    def _quality(self, texts: Sequence[str], photos: Sequence[Image.Image]) -> float:
        found = figures_of(ranks_of_pairs(self.texts(texts), self.photos(photos)))
        return found.get("mrr", 0.0)


def _copy(model: Any) -> dict[str, Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}
