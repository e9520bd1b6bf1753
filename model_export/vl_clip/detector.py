"""Grounding by a zero-shot detector of `transformers`, such as Grounding DINO (Liu et al., arXiv 2303.05499).

VL-CLIP uses Grounding DINO. OWL-ViT and OWLv2 load in the same way.
"""

from pathlib import Path
from typing import Any

import torch
from PIL import Image

from model_export.encoders.hub.base import checkpoint_files, require_transformers
from model_export.vl_clip.boxes import Box
from service.errors import GlyphrecError

VERSION = 1  # raised when the output changes; see model_export/pipeline/versions.py
TEXT_THRESHOLD = 0.0  # the label of a box is not used
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
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        self._checkpoint = checkpoint
        try:
            self._processor: Any = AutoProcessor.from_pretrained(checkpoint)
            model: Any = AutoModelForZeroShotObjectDetection.from_pretrained(checkpoint)
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
        words = " ".join(phrase.replace(END, " ").split()).lower()
        if not words:
            return []
        inputs = self._processor(images=photo, text=f"{words}{END}", return_tensors="pt").to(self._device)
        output = self._model(**inputs)
        options: dict[str, Any] = {"threshold": 0.0, "target_sizes": [(photo.height, photo.width)]}
        if "input_ids" in inputs and hasattr(self._model.config, "text_config"):
            options |= self._of_text(inputs)
        (found,) = self._processor.post_process_grounded_object_detection(output, **options)
        sides = torch.tensor([photo.width, photo.height] * 2, dtype=torch.float32)
        boxes = (found["boxes"].cpu() / sides).clamp(0, 1)  # [box, 4]
        rows = torch.cat([boxes, found["scores"].cpu()[:, None]], dim=1)
        return [Box(*row) for row in rows.tolist() if all(value == value for value in row)]

    def _of_text(self, inputs: Any) -> dict[str, Any]:
        """What Grounding DINO's last step takes beside the boxes. OWL's takes neither."""
        import inspect

        takes = inspect.signature(self._processor.post_process_grounded_object_detection).parameters
        options = {"input_ids": inputs.get("input_ids"), "text_threshold": TEXT_THRESHOLD}
        return {name: value for name, value in options.items() if name in takes}
