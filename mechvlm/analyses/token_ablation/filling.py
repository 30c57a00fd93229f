"""What is put in the place of ablated tokens."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from mechvlm.analyses.token_ablation.means import mean_token
from mechvlm.errors import InterventionError, PairError
from mechvlm.gradients import Vector, as_vector
from mechvlm.interventions import Ablate, Patch
from mechvlm.items import Item, Picture
from mechvlm.layout import Positions
from mechvlm.models.hooked import HookedVLM
from mechvlm.prompts import Prompt, check_pair
from mechvlm.readings import Reading
from mechvlm.record import Run, record
from mechvlm.sites import Site

__all__ = ["Filling", "Value", "asked", "filling"]

Value: TypeAlias = Literal["mean", "zero", "resample"] | Vector

EMBED = Site("embed")
_DONOR = "donor"


@dataclass(frozen=True, eq=False)
class Filling:
    """What stands for ablated tokens.

    Attributes:
        name: In words.
        rows: One vector `[1 d_model]`, or one for each image position; None takes
            another item's tokens.
        donors: With no rows: the item that each item takes its tokens from, by place.
    """

    name: str
    rows: Float[Tensor, "row d_model"] | None
    donors: tuple[int, ...] = ()

    def arm(
        self, prompt: Prompt, at: Positions, name: str
    ) -> tuple[Ablate | Patch, dict[str, Tensor]]:
        """The intervention on some image positions, and the vector that it names."""
        if self.rows is None:
            return Patch(EMBED, at, _DONOR), {}
        if len(self.rows) == 1:
            return Ablate(EMBED, at, name), {name: self.rows[0]}
        image = prompt.layout["image"].indices
        if len(self.rows) != len(image):
            raise InterventionError(
                f"value= holds vectors for {len(self.rows)} positions, and the image"
                f" has {len(image)}. Was the mean made of pictures of another size?"
            )
        cells = [image.index(position) for position in at]
        return Ablate(EMBED, at, name), {name: self.rows[cells]}

    def runs(
        self, vlm: HookedVLM, items: Sequence[Item], i: int, reading: Reading
    ) -> Mapping[str, Run]:
        """What is recorded for the item at place `i`: the other item's tokens.

        Raises:
            PairError: The two pictures are laid out differently.
        """
        if self.rows is not None:
            return {}
        item, donor = items[i], items[self.donors[i]]
        ours = asked(vlm, item, reading)
        theirs = asked(vlm, item, reading, image=donor.image)
        try:
            check_pair(ours, theirs)
        except PairError as cause:
            raise PairError(
                f"the tokens of item {donor.id or self.donors[i]} cannot stand in for"
                f" those of item {item.id or i} at the same positions: {cause} Give"
                " pictures of one size, or value='mean'."
            ) from cause
        return {_DONOR: record(vlm, theirs, [EMBED])}


def asked(
    vlm: HookedVLM, item: Item, reading: Reading, *, image: Picture | None = None
) -> Prompt:
    """The reading's question about an item, of its own picture or of another one."""
    picture = item.image if image is None else image
    return vlm.prompt(reading.question(item), picture, prefix=reading.prefix(item))


def filling(vlm: HookedVLM, items: Sequence[Item], value: Value, seed: int) -> Filling:
    """What `value` means for these items.

    Raises:
        InterventionError: It is not understood, does not fit the model, or asks for
            another picture where there is none.
    """
    if isinstance(value, str):
        return _named(vlm, items, value, seed)
    rows = as_vector(value).to(vlm.cfg.device)
    if rows.ndim not in (1, 2) or rows.shape[-1] != vlm.cfg.d_model:
        raise InterventionError(
            f"value= is a vector of shape {list(rows.shape)}; wanted"
            f" [{vlm.cfg.d_model}], or one such row per image position."
        )
    return Filling("given vector", rows.reshape(-1, vlm.cfg.d_model))


def _named(vlm: HookedVLM, items: Sequence[Item], value: str, seed: int) -> Filling:
    if value == "zero":
        rows = torch.zeros(1, vlm.cfg.d_model, device=vlm.cfg.device)
        return Filling("zero", rows)
    if value == "mean":
        mean = mean_token(vlm, [item.image for item in items])
        name = f"mean of {mean.attrs['n_tokens']} image tokens of the items"
        return Filling(name, as_vector(mean)[None].to(vlm.cfg.device))
    if value == "resample":
        return Filling("another item's tokens", None, _donors(items, seed))
    raise InterventionError(
        f"value={value!r}: wanted 'mean', 'zero', 'resample' or a vector."
    )


def _donors(items: Sequence[Item], seed: int) -> tuple[int, ...]:
    """For each item another one with another picture."""
    rng = np.random.default_rng(seed)
    shown = [_shown(item.image) for item in items]
    found = []
    for mine in shown:
        others = [j for j, other in enumerate(shown) if other != mine]
        if not others:
            raise InterventionError(
                "value='resample' takes tokens of another picture, and all items have"
                " the same one. Give items of several pictures, or value='mean'."
            )
        found.append(others[int(rng.integers(len(others)))])
    return tuple(found)


def _shown(picture: Picture) -> tuple[object, ...]:
    """What tells a picture from others: its path, or its size and pixels."""
    if isinstance(picture, Image.Image):
        return (*picture.size, zlib.crc32(picture.tobytes()))
    return (str(picture),)
