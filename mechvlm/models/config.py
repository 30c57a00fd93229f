"""The numbers of a model, under TransformerLens's names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mechvlm.models.family import Family

__all__ = ["Config", "device_of"]


@dataclass(frozen=True)
class Config:
    """What `vlm.cfg` tells of the language backbone.

    TransformerLens's own tools read the same names; `normalization_type`, `final_rms`
    and `attn_only` are there for them.
    """

    n_layers: int
    d_model: int
    n_heads: int
    n_key_value_heads: int
    d_head: int
    d_mlp: int
    d_vocab: int
    n_ctx: int
    eps: float
    act_fn: str
    dtype: torch.dtype
    device: torch.device
    model_name: str
    family: str
    normalization_type: str = "RMS"
    final_rms: bool = True
    gated_mlp: bool = True
    attn_only: bool = False
    use_attn_result: bool = False
    attn_scores_soft_cap: float | None = None

    @classmethod
    def of(cls, model: Any, family: Family) -> Config:
        """Read off a Hugging Face model."""
        text = model.config.text_config
        keys = text.to_dict()
        head_dim = keys.get("head_dim")
        return cls(
            n_layers=text.num_hidden_layers,
            d_model=text.hidden_size,
            n_heads=text.num_attention_heads,
            n_key_value_heads=text.num_key_value_heads or text.num_attention_heads,
            d_head=head_dim or text.hidden_size // text.num_attention_heads,
            d_mlp=text.intermediate_size,
            d_vocab=text.vocab_size,
            n_ctx=text.max_position_embeddings,
            eps=text.rms_norm_eps,
            act_fn=keys[family.backbone(model.config).act],
            dtype=model.dtype,
            device=device_of(model),
            model_name=_name(model.config.name_or_path) or family.architecture,
            family=family.name,
            attn_scores_soft_cap=text.to_dict().get("attn_logit_softcapping"),
        )


def device_of(model: Any) -> torch.device:
    """Where a model's inputs go; offloaded weights are nowhere until they are used."""
    devices = (each.device for each in model.parameters() if not each.is_meta)
    return next(devices, torch.device("cpu"))


def _name(name_or_path: str) -> str:
    """A hub name as it is; of a folder only its own name, not where it is kept."""
    path = Path(name_or_path)
    return path.name if path.is_absolute() or path.exists() else name_or_path
