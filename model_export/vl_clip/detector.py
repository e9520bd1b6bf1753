"""Grounding by Grounding DINO (Liu et al., arXiv 2303.05499), a zero-shot detector, through `transformers`.

VL-CLIP uses Grounding DINO. Other detectors take their phrases in another form and are refused.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from model_export.encoders.hub.base import (
    checkpoint_files,
    load_config,
    load_model,
    require_transformers,
    wrong_model,
)
from model_export.vl_clip.boxes import Box
from service.errors import GlyphrecError

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
# Types of checkpoints and their classes; both have one processor.
KNOWN = {
    "grounding-dino": "GroundingDinoForObjectDetection",
    "mm-grounding-dino": "MMGroundingDinoForObjectDetection",
}
MAX_WORDS = 60  # of a phrase; a checkpoint reads at most 256 tokens
END = "."  # Grounding DINO wants phrases in small letters, each with a period at its end


class Detector:
    """Boxes of a checkpoint."""

    threshold = 0.35  # the paper names none

    def __init__(self, checkpoint: str) -> None:
        """`checkpoint`: a folder or a name on the model hub. Raises GlyphrecError if it cannot be used."""
        if not checkpoint:
            raise GlyphrecError(
                "Grounding by a detector needs a checkpoint: a folder, or a name on the model hub. "
                "Add --detector FOLDER"
            )
        require_transformers()
        model_type = load_config(checkpoint).model_type
        if model_type not in KNOWN:
            raise wrong_model(checkpoint, model_type, tuple(KNOWN))
        import transformers

        self._checkpoint = checkpoint
        try:
            self._processor: Any = transformers.AutoProcessor.from_pretrained(checkpoint)
            model: Any = load_model(getattr(transformers, KNOWN[model_type]), checkpoint)
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().split("\n")[0]
            raise GlyphrecError(
                f"{checkpoint}: is no zero-shot detector that transformers can load ({reason}). Give the "
                "folder of a checkpoint such as Grounding DINO, or its name on the model hub."
            ) from error
        self._device = "cuda" if torch.cuda.is_available() else "cpu"
        self._model = model.eval().to(self._device)

    def key(self) -> tuple[Any, ...]:
        """The files of the checkpoint, or its name on the model hub."""
        identity: list[Path | str] = [*checkpoint_files(self._checkpoint)] or [self._checkpoint]
        return ("detector", *identity, {"detector": VERSION})

    @torch.inference_mode()
    def boxes(self, photo: Image.Image, phrase: str) -> list[Box]:
        """See `Grounder`."""
        words = " ".join(phrase.replace(END, " ").split()[:MAX_WORDS]).lower()
        if not words:
            return []
        inputs = self._processor(images=photo, text=f"{words}{END}", return_tensors="pt").to(self._device)
        output = self._model(**inputs)
        (found,) = self._processor.post_process_grounded_object_detection(
            output,
            inputs["input_ids"],
            threshold=0.0,
            text_threshold=0.0,  # the label of a box is not used
            target_sizes=[(photo.height, photo.width)],
        )
        sides = torch.tensor([photo.width, photo.height] * 2, dtype=torch.float32)
        boxes = (found["boxes"].cpu() / sides).clamp(0, 1)  # [box, 4]
        rows = torch.cat([boxes, found["scores"].cpu()[:, None]], dim=1)
        return [Box(*row) for row in rows.tolist() if all(value == value for value in row)]
