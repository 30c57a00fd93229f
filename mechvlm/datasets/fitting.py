"""Whether the pictures of a pair match and differ, and whether areas lie in them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps

from mechvlm.errors import DatasetError
from mechvlm.items import Area, Picture, PicturePair

__all__ = ["check_fit", "mask_in"]

_MODES = frozenset({"1", "L", "LA", "P", "RGB", "RGBA"})
"""Kinds of pixels that PNG holds and a model can be shown."""

_BLACK = (0, 0, 0)
_TRANSPARENT = frozenset({"LA", "La", "PA", "RGBA", "RGBa"})

_UNREADABLE = (OSError, SyntaxError, EOFError, ValueError, Image.DecompressionBombError)


def check_fit(pair: PicturePair, where: str) -> None:
    """Refuse pictures that cannot be matched, and areas that are not in them.

    Args:
        pair: What is looked at; its pictures are decoded.
        where: What an error begins with.

    Raises:
        DatasetError: The pictures are equal or of different sizes, one cannot be read
            or has no pixels, or an object's box or mask does not fit them.
    """
    ours = _pixels(pair.clean, f"{where}: 'clean'")
    theirs = _pixels(pair.corrupted, f"{where}: 'corrupted'")
    (height, width), (other_height, other_width) = ours.shape[:2], theirs.shape[:2]
    if ours.shape != theirs.shape:
        raise DatasetError(
            f"{where}: the clean picture has {width} x {height} pixels and the"
            f" corrupted one {other_width} x {other_height}, so that a token of one"
            " would see another place than the same token of the other. Scale or crop"
            " them to one size."
        )
    if np.array_equal(ours, theirs):
        raise DatasetError(
            f"{where}: the clean and the corrupted picture are the same, pixel for"
            " pixel, so that nothing could change the answer. Was one picture given"
            " twice, or do they differ in transparency alone, which no model sees?"
        )
    both = {"objects": pair.objects, "objects_corrupted": pair.objects_corrupted}
    for key, objects in both.items():
        for name, area in objects.items():
            _check_area(area, (width, height), f"{where}: {key!r}[{name!r}]")


def mask_in(path: Path, what: str) -> Bool[np.ndarray, "height width"]:
    """The mask that a picture of two colours is: True where it is not black.

    Args:
        path: Its file.
        what: What an error calls it.

    Raises:
        DatasetError: It cannot be read, or it is not clear what is in the mask.
    """
    picture = _opened(path, what)
    if picture.mode in _TRANSPARENT or "transparency" in picture.info:
        raise DatasetError(
            f"{what}: {path} has mode {picture.mode!r} with transparency, and the"
            " object may be what is opaque or what is not black. In the first case save"
            " picture.convert('RGBA').getchannel('A').point(lambda a: 255 * (a > 127)),"
            " in the second picture.convert('RGB')."
        )
    if _is_deep(picture):
        raise DatasetError(
            f"{what}: {path} has mode {picture.mode!r}, and Pillow would cut its values"
            " to 8 bits. Save PIL.Image.fromarray(array > 0)."
        )
    shown = picture.convert("RGB")
    counted = shown.getcolors(2)
    colors = None if counted is None else {color for _, color in counted}
    if colors is None or len(colors - {_BLACK}) > 1:
        found = "more than two colours" if colors is None else "two colours, none black"
        raise DatasetError(
            f"{what}: {path} has {found}, so that it is not clear what is in the mask."
            " Wanted black outside and one other colour inside; JPEG does not keep"
            " them."
        )
    return np.asarray(np.asarray(shown).any(axis=2))


def _opened(path: Path, what: str) -> Image.Image:
    """A picture, turned up as its file says and decoded wholly."""
    if not path.is_file():
        raise DatasetError(f"{what}: {path} is not there.")
    try:
        with Image.open(path) as file:
            return ImageOps.exif_transpose(file)
    except _UNREADABLE as cause:
        raise _unreadable(what, str(path), cause) from cause


def _is_deep(picture: Image.Image) -> bool:
    """Whether the values need more than 8 bits."""
    return picture.mode == "F" or picture.mode.startswith("I")


def _unreadable(what: str, name: str, cause: Exception) -> DatasetError:
    return DatasetError(f"{what}: {name} cannot be read as a picture: {cause}.")


def _pixels(picture: Picture, what: str) -> UInt8[np.ndarray, "height width 3"]:
    """What a model is shown of a picture, which can be written without loss."""
    if isinstance(picture, Image.Image):
        found, name, fits = picture, "the picture", picture.mode in _MODES
    else:
        found, name = _opened(Path(picture), what), str(picture)
        fits = not _is_deep(found)
    if not fits:
        raise DatasetError(
            f"{what}: the picture has mode {found.mode!r}, of which PNG or a model"
            " would lose something. Scale it to 8 bits and picture.convert('RGB')."
        )
    if 0 in found.size:
        raise DatasetError(
            f"{what}: the picture of size {found.size} has no pixels. Was it cropped to"
            " an empty box?"
        )
    try:
        # By way of RGBA, as Pillow warns of a palette's transparency on the way to RGB.
        return np.asarray(found.convert("RGBA"))[..., :3]
    except _UNREADABLE as cause:
        raise _unreadable(what, name, cause) from cause


def _check_area(area: Area, size: tuple[int, int], what: str) -> None:
    width, height = size
    if isinstance(area, np.ndarray):
        if area.shape != (height, width) or not area.any() or area.all():
            raise DatasetError(
                f"{what} is a mask of {area.shape[1]} x {area.shape[0]} with"
                f" {np.count_nonzero(area)} of {area.size} pixels set; wanted one of"
                f" the picture's size, {width} x {height}, set where the object is and"
                " nowhere else. An object that fills the picture is a box."
            )
        return
    left, top, right, bottom = area
    if not (0 <= left < right <= width and 0 <= top < bottom <= height):
        raise DatasetError(
            f"{what} is the box {list(area)}, which is not inside the picture of"
            f" {width} x {height} pixels. Wanted [left, top, right, bottom]; COCO's are"
            " [left, top, width, height]."
        )
