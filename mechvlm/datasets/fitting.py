"""Whether the pictures of a pair match, and whether areas lie in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from mechvlm.errors import DatasetError
from mechvlm.items import Area, Picture, PicturePair

__all__ = ["check_fit", "opened"]

_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
"""Kinds of pixels that PNG holds and a model can be shown."""

_UNREADABLE = (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError)


def check_fit(pair: PicturePair, where: str) -> None:
    """Refuse pictures that cannot be matched, and areas that are not in them.

    Args:
        pair: What is looked at; its pictures are decoded.
        where: What an error begins with.

    Raises:
        DatasetError: The pictures are of different sizes, one cannot be read, or an
            object's box or mask does not fit them.
    """
    size = _size(pair.clean, f"{where}: 'clean'")
    other = _size(pair.corrupted, f"{where}: 'corrupted'")
    if size != other:
        raise DatasetError(
            f"{where}: the clean picture has {size[0]} x {size[1]} pixels and the"
            f" corrupted one {other[0]} x {other[1]}, so that a token of one would see"
            " another place than the same token of the other. Scale or crop them to"
            " one size."
        )
    both = {"objects": pair.objects, "objects_corrupted": pair.objects_corrupted}
    for key, objects in both.items():
        for name, area in objects.items():
            _check_area(area, size, f"{where}: {key!r}[{name!r}]")


def opened(path: Path, what: str) -> Image.Image:
    """A picture, turned up as its file says and decoded wholly.

    Args:
        path: Its file.
        what: What an error calls it.

    Raises:
        DatasetError: There is no such file, or it is no picture or a torn one.
    """
    if not path.is_file():
        raise DatasetError(
            f"{what}: {path} is not there. Paths in a file of pairs begin at its own"
            " folder."
        )
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file)
    except _UNREADABLE as cause:
        raise DatasetError(
            f"{what}: {path} cannot be read as a picture: {cause}."
        ) from cause


def _size(picture: Picture, what: str) -> tuple[int, int]:
    """Width and height of a picture that can be written and shown to a model."""
    if isinstance(picture, Image.Image):
        found, fits = picture, picture.mode in _MODES
    else:
        found = opened(Path(picture), what)
        fits = found.mode != "F" and not found.mode.startswith("I")
    if not fits:
        raise DatasetError(
            f"{what}: the picture has mode {found.mode!r}, of which PNG or a model"
            " would lose something. Scale it to 8 bits and picture.convert('RGB')."
        )
    return found.size


def _check_area(area: Area, size: tuple[int, int], what: str) -> None:
    width, height = size
    if isinstance(area, np.ndarray):
        if area.shape != (height, width) or not area.any():
            raise DatasetError(
                f"{what} is a mask of {area.shape[1]} x {area.shape[0]} with"
                f" {np.count_nonzero(area)} pixels set; wanted one of the picture's"
                f" size, {width} x {height}, and not empty."
            )
        return
    left, top, right, bottom = area
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise DatasetError(
            f"{what} is the box {list(area)}, which is not inside the picture of"
            f" {width} x {height} pixels. Wanted [left, top, right, bottom]; COCO's are"
            " [left, top, width, height]."
        )
