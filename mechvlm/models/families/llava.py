"""LLaVA-1.5: one image, one unbroken block of tokens, row by row."""

from __future__ import annotations

from typing import Any

from mechvlm.errors import FamilyError
from mechvlm.models.families.geometry import patches, seen
from mechvlm.models.families.parts import CLIP, GEMMA2, LLAMA, SIGLIP
from mechvlm.models.family import Family

__all__ = ["LLAVA"]


def _grid_shape(config: Any) -> tuple[int, int]:
    """Rows and columns: the vision tower's patches, without its CLS token."""
    if config.vision_feature_select_strategy != "default":
        has_cls = config.vision_config.model_type == "clip_vision_model"
        if has_cls:
            raise FamilyError(
                'vision_feature_select_strategy="full" keeps the CLS token of the CLIP'
                " tower, so the image has one token too many for its grid and every"
                ' cell shifts by one. Wanted: vision_feature_select_strategy="default"'
            )
    return patches(config)


LLAVA = Family(
    name="llava",
    architecture="LlavaForConditionalGeneration",
    backbones={"llama": LLAMA, "mistral": LLAMA, "qwen2": LLAMA, "gemma2": GEMMA2},
    towers={"clip_vision_model": CLIP, "siglip_vision_model": SIGLIP},
    accepts=frozenset(
        {
            "image_seq_length",
            "image_token_id",
            "image_token_index",
            "multimodal_projector_bias",
            "projector_hidden_act",
            "text_config",
            "tie_word_embeddings",
            "vision_config",
            "vision_feature_layer",
            "vision_feature_select_strategy",
        }
    ),
    image_token=lambda config: int(config.image_token_id),
    grid_shape=_grid_shape,
    seen=seen,
)
