"""The mean image token: what stands for a token that is taken away."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import xarray as xr
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mechvlm.axes import labelled
from mechvlm.errors import ArgumentError, LayoutError, MissingImageError
from mechvlm.items import Picture
from mechvlm.models.hooked import HookedVLM

__all__ = ["PAPER", "mean_token", "mean_token_per_position"]

PAPER = "arXiv:2410.07149"


def mean_token(vlm: HookedVLM, images: Iterable[Picture]) -> xr.DataArray:
    """The mean of all image tokens of all images: one vector, wherever it is put.

    Tokens are taken as they enter layer 0 ("hook_embed"), behind the projector and any
    scaling of the embeddings, because that is where `token_ablation` puts the mean.

    Args:
        vlm: The model.
        images: Pictures or paths, opened one by one; several hundred make a steady
            mean.

    Returns:
        Mean over images and positions, dimension (d_model), in units of the stream.
        `attrs` holds "n_images" and "n_tokens".

    Raises:
        MissingImageError: There is no image.
        ArgumentError: `images` is one picture.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens (table 1).

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> mean = mv.mean_token(vlm, [mv.scenes.sample(seed=s).image for s in (0, 1)])
        >>> mean.dims, mean.sizes["d_model"] == vlm.cfg.d_model, mean.attrs["n_images"]
        (('d_model',), True, 2)
    """
    _check_many(images)
    total = torch.zeros(vlm.cfg.d_model, dtype=torch.float64)
    n_images = n_tokens = 0
    for tokens in (_tokens(vlm, image) for image in images):
        total += tokens.sum(dim=0)
        n_tokens += len(tokens)
        n_images += 1
    return labelled(
        (total / _some(n_tokens)).float().numpy(),
        name="mean image token",
        units="activation",
        paper=PAPER,
        attrs=_described(vlm, n_images, n_tokens),
        d_model=range(vlm.cfg.d_model),
    )


def mean_token_per_position(vlm: HookedVLM, images: Iterable[Picture]) -> xr.DataArray:
    """The mean image token of each position by itself.

    Args:
        vlm: The model.
        images: As in `mean_token`, all of the same number of tokens.

    Returns:
        Mean over images, dimensions (cell, d_model), in units of the stream; cell
        counts the image's positions from 0. `attrs` as in `mean_token`.

    Raises:
        MissingImageError: There is no image.
        ArgumentError: `images` is one picture.
        LayoutError: Images have different numbers of tokens.

    Paper: Neo et al. 2024, arXiv:2410.07149, ablation of tokens, with a
        mean per position.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> mv.mean_token_per_position(vlm, [mv.scenes.sample(seed=0).image]).dims
        ('cell', 'd_model')
    """
    _check_many(images)
    total: Tensor | None = None
    n_images = 0
    for tokens in (_tokens(vlm, image) for image in images):
        if total is not None and total.shape != tokens.shape:
            raise LayoutError(
                f"an image has {len(tokens)} tokens where those before have"
                f" {len(total)}: a mean per position needs pictures of one size. Use"
                " mean_token, which has one vector for every position."
            )
        total = tokens if total is None else total + tokens
        n_images += 1
    n_cells = _some(0 if total is None else len(total))
    mean = torch.zeros(n_cells, vlm.cfg.d_model) if total is None else total / n_images
    return labelled(
        mean.float().numpy(),
        name="mean image token per position",
        units="activation",
        paper=PAPER,
        attrs=_described(vlm, n_images, n_images * n_cells),
        cell=range(n_cells),
        d_model=range(vlm.cfg.d_model),
    )


def _check_many(images: Iterable[Picture]) -> None:
    """Refuse one picture; several are left as they are, to be opened one by one."""
    alone = isinstance(images, (str, Path, Image.Image))
    if alone or not isinstance(images, Iterable):
        raise ArgumentError(
            f"images is {str(images)!r:.60} ({type(images).__name__}); wanted pictures"
            ' to take the mean over: ["a.png", "b.png"].'
        )


@torch.no_grad()
def _tokens(vlm: HookedVLM, image: Picture) -> Float[Tensor, "image d_model"]:
    """An image's tokens as they enter layer 0; no layer is run for them."""
    # Any text does: image tokens do not depend on it before layer 0.
    text = f"{vlm.family.frame(vlm.processor).placeholder} ?"
    prompt = vlm.prompt_raw(text, image)
    entering = vlm(prompt, stop_at_layer=0)[0]
    tokens: Tensor = entering[list(prompt.layout["image"])]
    return tokens.double().cpu()


def _some(n_tokens: int) -> int:
    if n_tokens == 0:
        raise MissingImageError(
            "no image was given to take a mean over. An iterator that was used before"
            " is empty: give a list."
        )
    return n_tokens


def _described(vlm: HookedVLM, n_images: int, n_tokens: int) -> dict[str, object]:
    return {
        "model": vlm.cfg.model_name,
        "n_images": n_images,
        "n_tokens": n_tokens,
        "layer_convention": "h[0], what enters layer 0",
    }
