"""Attention over the picture: one map for each layer and row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import xarray as xr
from jaxtyping import Float
from torch import Tensor

from mechvlm.analyses.attention_flow.rows import (
    Rows,
    chosen_layers,
    continued,
    reduced,
    row_labels,
    rows_of,
)
from mechvlm.axes import labelled
from mechvlm.errors import InterventionError, LayoutError
from mechvlm.layout import ImageGrid, Layout
from mechvlm.models.generation import Generation
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt
from mechvlm.record import Run

__all__ = ["attention_map", "grid_coords", "grid_of"]

PAPER = "arXiv:2411.17491"


def attention_map(
    vlm: HookedVLM,
    prompt: Prompt | Run,
    *,
    generation: Generation | None = None,
    rows: Rows = "last",
    layers: Sequence[int] | range | None = None,
    head_reduce: Literal["mean", "max"] = "mean",
    image: int = 0,
) -> xr.DataArray:
    """Lay each row's attention to the image tokens out as the picture's grid.

    Args:
        vlm: The model.
        prompt: The prompt.
        generation: What `vlm.generate` made of it; None reads the prompt alone.
        rows: "last", "generated" (for each generated token the row that it was chosen
            from) or positions, such as those of `word_rows`.
        layers: Layers to read; None takes all.
        head_reduce: "mean" over heads, as in the paper, or the largest of them.
        image: Which image of the prompt.

    Returns:
        Share of the row's attention that each image token takes, 0 to 1, over (layer,
        row, grid_row, grid_col): with the mean over heads, a map adds up to the image's
        attention fraction. The coordinate "position" holds each cell's position. Layer
        l is the attention inside layer l.

    Raises:
        LayoutError: The prompt has no such image, or a row does not exist.
        LayerError: A layer does not exist.
        InterventionError: `head_reduce` is neither of the two.

    Paper: Kaduri et al. 2024, arXiv:2411.17491, figures 6 and 7.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=0)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> mv.attention_map(vlm, prompt, layers=[0, 4]).dims
        ('layer', 'row', 'grid_row', 'grid_col')
    """
    if head_reduce not in ("mean", "max"):
        raise InterventionError(f"head_reduce={head_reduce!r}: wanted 'mean' or 'max'.")
    longer = continued(vlm, prompt, generation)
    grid, at = grid_of(longer.layout, image), rows_of(longer, rows)
    chosen = chosen_layers(vlm, layers)
    targets, cells = list(at), slice(grid.start, grid.start + grid.rows * grid.cols)

    def over_image(pattern: Float[Tensor, "head target source"]) -> Tensor:
        picked = pattern[:, targets, cells].float()
        return picked.mean(dim=0) if head_reduce == "mean" else picked.amax(dim=0)

    maps = torch.stack(reduced(vlm, longer, chosen, over_image))
    return labelled(
        maps.unflatten(-1, (grid.rows, grid.cols)).numpy(),
        name="attention to the image",
        units="share of the row",
        paper=PAPER,
        attrs={
            **longer.described,
            "model": vlm.cfg.model_name,
            "image": image,
            "picture": [grid.width, grid.height],
            "head_reduce": head_reduce,
            "layer_convention": "attention inside layer l",
        },
        layer=chosen,
        row=targets,
        grid_row=range(grid.rows),
        grid_col=range(grid.cols),
    ).assign_coords(row_labels(longer, at) | grid_coords(grid))


def grid_of(layout: Layout, image: int) -> ImageGrid:
    """One image's grid.

    Raises:
        LayoutError: There is no such image.
    """
    if not 0 <= image < len(layout.grids):
        raise LayoutError(
            f"image {image} was asked for, and the prompt has {len(layout.grids)}."
            " Was the prompt built without its image?"
        )
    return layout.grids[image]


def grid_coords(grid: ImageGrid) -> dict[str, tuple[tuple[str, str], list[list[int]]]]:
    """Each cell's position in the sequence, as a coordinate."""
    rows, cols = range(grid.rows), range(grid.cols)
    positions = [[grid.position(row, col) for col in cols] for row in rows]
    return {"position": (("grid_row", "grid_col"), positions)}
