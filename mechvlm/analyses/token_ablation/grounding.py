"""Which items the model answers from the picture, and not from what goes with it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from mechvlm.analyses.token_ablation.filling import asked
from mechvlm.errors import InterventionError
from mechvlm.items import Item
from mechvlm.models.hooked import HookedVLM
from mechvlm.progress import bar_of
from mechvlm.prompts import Prompt
from mechvlm.readings import Reading
from mechvlm.selecting import object_tokens
from mechvlm.wanted import one, several

__all__ = ["grounded_items"]


def grounded_items(
    vlm: HookedVLM,
    items: Sequence[Item],
    reading: Reading,
    *,
    seed: int = 0,
    progress: bool | None = None,
) -> tuple[Item, ...]:
    """The items that are answered right with their target seen, and wrong without it.

    Without it means: with noise in place of every pixel that a token of the target
    sees. An answer that is still right then was guessed from the rest of the picture,
    and its loss under ablation would say nothing of the target's tokens.

    Args:
        vlm: The model.
        items: Items with a target.
        reading: How items are asked; the paper's is `readings.generative()`.
        seed: Of the noise, which is even over all colours.
        progress: None shows a progress bar in a terminal for work of over a second,
            False shows none.

    Returns:
        The items that pass, in their order; maybe none. An item whose target the
        processor cropped away does not pass.

    Raises:
        InterventionError: There is no item.
        PromptError: An item has no target, or lacks what the reading asks by.
        ArgumentError: `items` are no items, or `reading` is no reading.

    Paper: Neo et al. 2024, arXiv:2410.07149, control of
    hallucination.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> thing = scene.things[0]
        >>> item = mv.Item(scene.image, "?", objects={thing.shape: scene.box(0)},
        ...     target=thing.shape)
        >>> reading = mv.readings.generative("describe the image .", max_new_tokens=8)
        >>> len(mv.grounded_items(vlm, [item], reading)) <= 1
        True
    """
    one(reading, Reading, "reading", "readings.generative()")
    items = several(items, Item, "items", "[Item(image, question, answer)]")
    if not items:
        raise InterventionError("items is empty: there is nothing to choose from.")
    shown = False if progress is False else "grounded items"
    kept = []
    with bar_of(len(items), shown) as bar:
        for i, item in enumerate(items):
            if _is_grounded(vlm, item, reading, [seed, i]):
                kept.append(item)
            bar.update()
    return tuple(kept)


def _is_grounded(
    vlm: HookedVLM, item: Item, reading: Reading, seed: Sequence[int]
) -> bool:
    whole = asked(vlm, item, reading)
    if not object_tokens()(vlm, whole, item):
        return False
    hidden = asked(vlm, item, reading, image=_hidden(vlm, item, whole, seed))
    said = [
        vlm.generate(prompt, max_new_tokens=reading.max_new_tokens).text
        for prompt in (whole, hidden)
    ]
    return reading.right(item, said[0]) and not reading.right(item, said[1])


def _hidden(
    vlm: HookedVLM, item: Item, whole: Prompt, seed: Sequence[int]
) -> Image.Image:
    """The picture with noise wherever a token of the target sees it."""
    at = object_tokens()(vlm, whole, item)
    pixels = np.array(whole.image)
    covered = np.zeros(pixels.shape[:2], dtype=bool)
    for grid in whole.layout.grids:
        for position in at & grid.positions:
            row, col = divmod(position - grid.start, grid.cols)
            left, top, right, bottom = grid.cell_box(row, col)
            rows = slice(max(0, int(np.floor(top))), int(np.ceil(max(0, bottom))))
            cols = slice(max(0, int(np.floor(left))), int(np.ceil(max(0, right))))
            covered[rows, cols] = True
    noise = np.random.default_rng(seed).integers(0, 256, pixels.shape, dtype=np.uint8)
    return Image.fromarray(np.where(covered[..., None], noise, pixels))
