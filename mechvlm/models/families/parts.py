"""Language backbones and vision towers that several families are made of."""

from __future__ import annotations

from dataclasses import replace

from mechvlm.models.family import Decoder, Tower

__all__ = ["CLIP", "GEMMA", "GEMMA2", "GEMMA3", "LLAMA", "SIGLIP"]

LLAMA = Decoder()
"""Llama, and all that have its parts by the same names: Mistral, Qwen2."""

_OLD = frozenset({"cache_implementation", "num_image_tokens", "hidden_act"})
"""Keys that published Gemma configs carry and no forward pass reads."""

GEMMA = Decoder(norm_eps="eps", norm_offset=1.0, accepts=_OLD | {"hidden_activation"})
"""Gemma: Llama's parts, norms that scale by one more than their weight."""

GEMMA2 = Decoder(
    ln2="pre_feedforward_layernorm",
    attn_out="post_attention_layernorm",
    mlp_out="post_feedforward_layernorm",
    norm_eps="eps",
    norm_offset=1.0,
    act="hidden_activation",
    accepts=_OLD,
)
"""Gemma-2: a norm also behind the attention and behind the MLP."""

GEMMA3 = replace(
    GEMMA2,
    accepts=_OLD | {"_sliding_window_pattern", "sliding_window_pattern"},
)
"""Gemma-3: Gemma-2 whose config may say by a number which layers see a window."""

_ENCODER = "encoder.layers", "vision_model.encoder.layers"

CLIP = Tower(_ENCODER)
"""CLIP's vision tower, whose first token is CLS."""

SIGLIP = Tower(
    _ENCODER,
    accepts=frozenset({"num_image_tokens", "projection_dim", "projector_hidden_act"}),
)
"""SigLIP's vision tower: patches and nothing else."""
