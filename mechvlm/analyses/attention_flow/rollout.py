"""Attention rollout: attention followed through the layers, residual stream and all."""

from __future__ import annotations

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechvlm.analyses.attention_flow.maps import grid_coords, grid_of
from mechvlm.analyses.attention_flow.rows import Rows, reduced, row_labels, rows_of
from mechvlm.axes import labelled
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run, prompt_of

__all__ = ["attention_rollout"]

PAPER = "arXiv:2005.00928"


def attention_rollout(
    vlm: HookedVLM, prompt: Prompt | Run, *, rows: Rows = "last", image: int = 0
) -> xr.Dataset:
    """Follow attention from rows down to the positions that they come from.

    Each layer mixes positions by half its attention, mean over heads, and half the
    identity, for the residual stream; the layers' mixtures are multiplied. Values and
    MLPs are not looked at, so it tells where a row could have read, not what it did.

    Args:
        vlm: The model.
        prompt: The prompt.
        rows: "last", "generated" or positions.
        image: Which image of the prompt is mapped.

    Returns:
        Dataset: "rollout" (layer, row, source), the share of the row's stream behind
        layer l that comes from each position of the embedding, 0 to 1, summing to 1;
        "map" (layer, row, grid_row, grid_col), the same of the image's cells. Layer l
        is the output of layer l: the product of layers 0 to l.

    Raises:
        LayoutError: The prompt has no such image, or a row does not exist.

    Paper: Abnar and Zuidema 2020, arXiv:2005.00928, attention rollout.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> found = mv.attention_rollout(vlm, prompt)
        >>> bool(abs(found["rollout"].sum("source") - 1).max() < 1e-4)
        True
    """
    asked = prompt_of(prompt)
    grid, at = grid_of(asked.layout, image), rows_of(asked, rows)
    targets = list(at)
    joint: list[Tensor] = []

    def follow(pattern: Float[Tensor, "head target source"]) -> Tensor:
        mean = pattern.float().mean(dim=0)
        mixed = (mean + torch.eye(len(mean), device=mean.device)) / 2
        below = joint.pop().to(mixed.device) if joint else None
        joint.append(mixed if below is None else mixed @ below)
        return joint[0][targets]

    layers = range(vlm.cfg.n_layers)
    found = torch.stack(reduced(vlm, asked, layers, follow))
    cells = slice(grid.start, grid.start + grid.rows * grid.cols)
    share = "share of the row's stream"
    rollout = labelled(
        found.numpy(),
        name="rollout",
        units=share,
        paper=PAPER,
        layer=layers,
        row=targets,
        source=range(asked.layout.n),
    )
    over_image = labelled(
        found[:, :, cells].unflatten(-1, (grid.rows, grid.cols)).numpy(),
        name="map",
        units=share,
        paper=PAPER,
        attrs={**asked.described, "image": image, "picture": [grid.width, grid.height]},
        layer=layers,
        row=targets,
        grid_row=range(grid.rows),
        grid_col=range(grid.cols),
    )
    attrs = {
        **asked.described,
        "paper": PAPER,
        "model": vlm.cfg.model_name,
        "layer_convention": "output of layer l: layers 0 to l multiplied",
    }
    sources = {f"source_{k}": v for k, v in asked.labels("source").items()}
    return xr.Dataset(
        {"rollout": rollout, "map": over_image}, attrs=attrs
    ).assign_coords(sources | row_labels(asked, at) | grid_coords(grid))
