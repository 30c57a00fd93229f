"""A checkpoint that answers as any does: `AutoProcessor`, `generate`, text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mechvlm.models.demo import PATH
from mechvlm.models.demo.language import hidden_states
from mechvlm.models.demo.packing import UNASKED, Row, answered, pack
from mechvlm.models.demo.pool import normalised
from mechvlm.scenes import Question, Scene

_BATCH = 32
_LONGEST = 48


@dataclass(frozen=True, slots=True)
class Asked:
    """A question put to the model: with a scene, or by name alone.

    Attributes:
        scene: Whose picture is shown; None shows none.
        question: What is asked, and its answer.
        after: A question that stands before it and stays unanswered, if any.
    """

    scene: Scene | None
    question: Question
    after: str = ""

    @property
    def prompt(self) -> str:
        """The prompt's text, as the chat template renders it."""
        picture = "" if self.scene is None else "<image>\n"
        before = f"{self.after} ASSISTANT: " if self.after else ""
        return f"USER: {picture}{before}{self.question.text} ASSISTANT:"


@dataclass(frozen=True)
class Checkpoint:
    """A model with its processor."""

    network: LlavaForConditionalGeneration
    processor: LlavaProcessor

    @classmethod
    def load(cls, folder: Path = PATH) -> "Checkpoint":
        """Load a folder in Hugging Face's format, in float32."""
        network = LlavaForConditionalGeneration.from_pretrained(folder)
        processor = AutoProcessor.from_pretrained(folder)
        network.eval()
        return cls(network, processor)

    def answers(self, asked: Sequence[Asked]) -> list[str]:
        """What the model generates, greedily, up to the end of its answer.

        Args:
            asked: All with a scene, or all without.
        """
        found: list[str] = []
        for start in range(0, len(asked), _BATCH):
            found += self._batch(asked[start : start + _BATCH])
        return found

    def right_blind(self, asked: Sequence[Asked]) -> Bool[np.ndarray, " question"]:
        """Whether second questions get their answers if they cannot read the picture.

        The picture can be read up to the end of the first question alone. What is
        right here word by word is what greedy generation would say.

        Args:
            asked: All with a scene, and all after another question.
        """
        starts = range(0, len(asked), _BATCH)
        return np.concatenate(
            [self._batch_blind(asked[at : at + _BATCH]) for at in starts]
        )

    @torch.no_grad()
    def _batch_blind(self, asked: Sequence[Asked]) -> Bool[np.ndarray, " question"]:
        pixels = np.stack([a.scene.pixels for a in asked if a.scene is not None])
        images = self.network.get_image_features(normalised(torch.from_numpy(pixels)))
        segments = [
            answered(a.question.text, a.question.answer, "", after=a.after, blind=True)
            for a in asked
        ]
        batch = pack([Row([segment]) for segment in segments], [""])
        shown = torch.stack(list(images.pooler_output))
        said = self.network.lm_head(hidden_states(self.network, batch, shown))
        wanted = batch.labels[:, 1:]
        right = (said[:, :-1].argmax(dim=-1) == wanted) | (wanted == UNASKED)
        return np.asarray(right.all(dim=1))

    def _batch(self, asked: Sequence[Asked]) -> list[str]:
        images = [a.scene.image for a in asked if a.scene is not None]
        prompts = [a.prompt for a in asked]
        inputs = self.processor(
            images=images or None, text=prompts, return_tensors="pt", padding=True
        )
        with torch.no_grad():
            ids = self.network.generate(  # type: ignore[misc]
                **inputs, max_new_tokens=_LONGEST
            )
        said = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(said, skip_special_tokens=True)
        return [text.strip() for text in texts]
