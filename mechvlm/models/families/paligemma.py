"""PaliGemma: the image, then the text, all of which read each other both ways."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from mechvlm.models.families.geometry import patches, seen
from mechvlm.models.families.parts import GEMMA, GEMMA2, SIGLIP
from mechvlm.models.family import Family, Frame

__all__ = ["PALIGEMMA"]


_CAPPED_SINCE = (5, 23)
"""First transformers whose PaliGemma bounds its logits as a Gemma-2 backbone says."""


def _softcap(config: Any) -> float | None:
    bound = config.text_config.to_dict().get("final_logit_softcapping")
    major, minor, *_ = version("transformers").split(".")
    if bound is None or (int(major), int(minor)) < _CAPPED_SINCE:
        return None
    return float(bound)


def _frame(processor: Any) -> Frame:
    image, bos = str(processor.image_token), str(processor.tokenizer.bos_token)
    return Frame(placeholder=image, image=image, after=bos, end="\n")


PALIGEMMA = Family(
    name="paligemma",
    architecture="PaliGemmaForConditionalGeneration",
    backbones={"gemma": GEMMA, "gemma2": GEMMA2},
    towers={"siglip_vision_model": SIGLIP},
    accepts=frozenset(
        {
            "_vocab_size",
            "hidden_size",
            "image_token_index",
            "projection_dim",
            "text_config",
            "tie_word_embeddings",
            "vision_config",
        }
    ),
    image_token=lambda config: int(config.image_token_id),
    grid_shape=patches,
    seen=seen,
    softcap=_softcap,
    frame=_frame,
    # 0 marks the prompt, which is read both ways; what comes after reads back only.
    fills={"token_type_ids": 1},
    unused=frozenset({"labels"}),
    needs_image=True,
)
