"""Gemma 3: one image, pooled to a small square whose positions read each other."""

from __future__ import annotations

from math import isqrt
from typing import Any

from mechvlm.errors import FamilyError
from mechvlm.models.families.geometry import patches, seen
from mechvlm.models.families.parts import GEMMA3, SIGLIP
from mechvlm.models.family import Family, Frame

__all__ = ["GEMMA_3"]


def _grid_shape(config: Any) -> tuple[int, int]:
    """Rows and columns: the projector averages squares of patches into one token."""
    tokens = config.mm_tokens_per_image
    side, (rows, _) = isqrt(tokens), patches(config)
    if side**2 != tokens or rows % side:
        raise FamilyError(
            f"mm_tokens_per_image={tokens} of {rows} x {rows} patches: wanted a square"
            " number of tokens whose side divides the patches', so that every token"
            " stands for one square of the image."
        )
    return side, side


def _frame(processor: Any) -> Frame:
    tokenizer = processor.tokenizer
    return Frame(
        placeholder=str(tokenizer.boi_token),
        image=str(tokenizer.image_token),
        before=f"\n\n{tokenizer.boi_token}",
        after=f"{tokenizer.eoi_token}\n\n",
    )


GEMMA_3 = Family(
    name="gemma3",
    architecture="Gemma3ForConditionalGeneration",
    backbones={"gemma3_text": GEMMA3},
    towers={"siglip_vision_model": SIGLIP},
    accepts=frozenset(
        {
            "boi_token_index",
            "eoi_token_index",
            "image_token_index",
            "mm_tokens_per_image",
            "text_config",
            "tie_word_embeddings",
            "vision_config",
        }
    ),
    image_token=lambda config: int(config.image_token_id),
    grid_shape=_grid_shape,
    seen=seen,
    frame=_frame,
    # 1 marks an image's position, which the image's others may read ahead.
    fills={"token_type_ids": 0},
)
