"""Attention patterns as labelled results."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import xarray as xr

from mechvlm.analyses.attention_flow.rows import chosen_layers
from mechvlm.axes import labelled
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of

__all__ = ["attention_patterns"]


@torch.no_grad()
def attention_patterns(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    *,
    layers: Sequence[int] | range | None = None,
) -> xr.DataArray:
    """Attention of every head: how much each position reads each other.

    Args:
        vlm: The model.
        prompt: The prompt, or its `base_run`.
        layers: Layers to take; None takes all.

    Returns:
        Attention after the softmax, (layer, head, target, source); each row sums to 1.
        Layer l is the attention inside layer l.

    Raises:
        ArgumentError: `layers` are no whole numbers.
        LayerError: A layer does not exist, or there is none.

    Paper: Kaduri et al. 2024, arXiv:2411.17491.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> image = mv.scenes.sample(seed=0).image
        >>> prompt = vlm.prompt("how many objects are there ?", image)
        >>> pattern = mv.attention_patterns(vlm, prompt, layers=[0])
        >>> pattern.dims, round(float(pattern[0, 0, -1].sum()), 3)
        (('layer', 'head', 'target', 'source'), 1.0)
    """
    asked, chosen = prompt_of(prompt), chosen_layers(vlm, layers)
    names = [f"blocks.{layer}.attn.hook_pattern" for layer in chosen]
    _, cache = vlm.run_with_cache(asked, names_filter=names)
    values = torch.stack([cache[name][0].float() for name in names]).cpu().numpy()
    each = range(asked.layout.n)
    result = labelled(
        values,
        name="attention",
        units="share of a row",
        paper="arXiv:2411.17491",
        attrs={
            **asked.described,
            "model": vlm.cfg.model_name,
            "layer_convention": "attention inside layer l",
        },
        layer=chosen,
        head=range(vlm.cfg.n_heads),
        target=each,
        source=each,
    )
    for side in ("target", "source"):
        labels = asked.labels(side)
        result = result.assign_coords({f"{side}_{k}": v for k, v in labels.items()})
    return result
