"""The pictures that planted models see, and how a cell says what it is.

A picture is 4 x 4 cells. A cell's class is which of its four corners is lit in green.
A cell of the object is red all over and its corner bright; a background cell is dark
and its corner dim. Both facts are linear in the pixels, so one convolution reads them.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

from mechvlm.errors import SceneError
from mechvlm.models.planted.directions import N_CLASSES

__all__ = [
    "BRIGHT",
    "CELL_PX",
    "GREEN",
    "GRID",
    "N_CELLS",
    "OBJECT_CELLS",
    "PICTURE_PX",
    "RED",
    "corner",
    "scene",
]

GRID = 4
N_CELLS = GRID**2
CELL_PX = 14
PICTURE_PX = GRID * CELL_PX
RED, GREEN = 0, 1
BRIGHT = 254
"""Brightness that counts as 1. Even, so that the background's one half is exact."""

OBJECT_CELLS = (5, 6, 9)
"""Cells of the object, row-major from the top left."""


def corner(content: int) -> tuple[slice, slice]:
    """Rows and columns, inside one cell, of the corner that means class `content`."""
    half = CELL_PX // 2
    row, col = divmod(content, 2)
    return slice(row * half, (row + 1) * half), slice(col * half, (col + 1) * half)


def scene(
    content: int, *, background: int = 3, cells: Iterable[int] = OBJECT_CELLS
) -> Image.Image:
    """Draw a picture with an object of class `content` before a weak background.

    Args:
        content: Class of the object, 0 to 3; its answer is `ANSWERS[content]`.
        background: Class that every other cell carries at half strength, 0 to 3.
        cells: Cells of the object, row-major, 0 to 15; empty draws background alone.

    Returns:
        RGB picture, 56 x 56 pixels.

    Raises:
        SceneError: A class or a cell does not exist.

    >>> scene(content=0).size
    (56, 56)
    """
    held = frozenset(cells)
    _refuse_unknown(held, classes=(content, background))
    pixels = np.zeros((PICTURE_PX, PICTURE_PX, 3), dtype=np.uint8)
    for cell in range(N_CELLS):
        row, col = divmod(cell, GRID)
        tile = pixels[row * CELL_PX :, col * CELL_PX :][:CELL_PX, :CELL_PX]
        if cell in held:
            tile[:, :, RED] = BRIGHT
            tile[(*corner(content), GREEN)] = BRIGHT
        else:
            tile[(*corner(background), GREEN)] = BRIGHT // 2
    return Image.fromarray(pixels)


def _refuse_unknown(cells: frozenset[int], *, classes: tuple[int, ...]) -> None:
    """Raise unless all cells are in the picture and all classes exist."""
    for content in classes:
        if content not in range(N_CLASSES):
            raise SceneError(
                f"class {content} does not exist; planted pictures know 0 to"
                f" {N_CLASSES - 1}, the places of ANSWERS."
            )
    if outside := sorted(cells - frozenset(range(N_CELLS))):
        raise SceneError(
            f"cells {outside} are not in a picture of {GRID} x {GRID}; cells count"
            f" row-major from 0 at the top left to {N_CELLS - 1}."
        )
