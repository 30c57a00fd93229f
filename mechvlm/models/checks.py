"""What a model must show once after loading: hooks are true, the image counts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from PIL import Image
from torch import Tensor

from mechvlm.errors import ModelCheckError

if TYPE_CHECKING:
    from mechvlm.models.hooked import HookedVLM

__all__ = ["check_model", "tolerance"]

_TOLERANCE = {torch.float64: 1e-8, torch.float32: 1e-4}

_HALF_TOLERANCE = 5e-2
"""In 16 bits, where SDPA and explicit attention round differently."""


def tolerance(dtype: torch.dtype) -> float:
    """How far apart logits may be that mean the same, relative to the largest."""
    return _TOLERANCE.get(dtype, _HALF_TOLERANCE)


@torch.no_grad()
def check_model(vlm: HookedVLM) -> None:
    """Check a freshly loaded model on two made-up images.

    Raises:
        ModelCheckError: Logits are not finite, the hooked forward differs from the
            plain one, the image makes no difference, or attention rows do not sum to 1.
    """
    image = Image.linear_gradient("L").convert("RGB")
    text = f"{vlm.family.frame(vlm.processor).placeholder} ?"
    prompt = vlm.prompt_raw(text, image)
    plain = vlm.hf_model(**prompt.inputs, use_cache=False).logits
    if not torch.isfinite(plain).all():
        raise ModelCheckError(
            "the plain Hugging Face forward gives NaN or infinite logits. Weights are"
            f" damaged, or {vlm.cfg.dtype} is too narrow for them: try another dtype."
        )
    sums: list[float] = []

    def seen(pattern: Tensor, **_: Any) -> None:
        sums.append(float((pattern.float().sum(dim=-1) - 1).abs().max()))

    patterns = [
        (f"blocks.{i}.attn.hook_pattern", seen) for i in range(vlm.cfg.n_layers)
    ]
    hooked = vlm.run_with_hooks(prompt, fwd_hooks=[*patterns, (_every, _look)])
    allowed = tolerance(vlm.cfg.dtype)
    off = float((hooked - plain).abs().max() / plain.abs().max())
    if not off <= allowed:
        raise ModelCheckError(
            f"the hooked forward differs from Hugging Face's by {off:.2g} of the"
            f" largest logit (allowed {allowed:g}). Does this version of transformers"
            " compute something between the hook points that mechvlm does not know?"
        )
    if not max(sums) <= max(allowed, 1e-4):
        raise ModelCheckError(f"attention rows miss a sum of 1 by {max(sums):.2g}.")
    _check_image(vlm, text, image, plain)


def _every(_: str) -> bool:
    return True


def _look(_: Tensor, **__: Any) -> None:
    """A hook that changes nothing."""


def _check_image(vlm: HookedVLM, text: str, image: Image.Image, plain: Tensor) -> None:
    """The image must reach the answer."""
    turned = vlm.prompt_raw(text, image.transpose(Image.Transpose.ROTATE_180))
    other = vlm.hf_model(**turned.inputs, use_cache=False).logits
    if torch.equal(other, plain):
        raise ModelCheckError(
            "turning the image upside down changes no logit: the image does not reach"
            " the language backbone. Are the projector's weights loaded?"
        )
