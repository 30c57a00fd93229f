"""A checkpoint that answers as any does: `AutoProcessor`, `generate`, text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import (
    AutoProcessor,
    LlavaForConditionalGeneration,
    LlavaProcessor,
)

from mechvlm.models.demo import PATH
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
