"""Where the pixels of an original picture go, for processors that give one square."""

from __future__ import annotations

from typing import Any

from mechvlm.errors import FamilyError
from mechvlm.layout import Box

__all__ = ["patches", "seen"]


def patches(config: Any) -> tuple[int, int]:
    """Rows and columns of the vision tower's patches, without any CLS token."""
    side = config.vision_config.image_size // config.vision_config.patch_size
    return side, side


_UNDERSTOOD = frozenset(
    {"do_center_crop", "do_convert_rgb", "do_normalize", "do_pad", "do_rescale"}
    | {"do_resize"}
)
"""What an image processor may do and its geometry still be known."""


def seen(image_processor: Any, size: tuple[int, int]) -> Box:
    """Rectangle of the picture left after the processor's pad, resize and crop."""
    does = image_processor.to_dict()
    unknown = {key for key in does if key.startswith("do_") and does[key]} - _UNDERSTOOD
    if unknown or (does.get("do_pad") and does.get("pad_size")):
        raise FamilyError(
            f"the image processor does {sorted(unknown) or 'pad_size'}, which moves"
            " pixels in a way that is not understood here; understood are"
            f" {sorted(_UNDERSTOOD)}."
        )
    width, height = size
    # Padding makes a square with the picture in its middle, before anything else.
    side = max(size)
    square = (side, side) if does.get("do_pad") else size
    pad_left, pad_top = (square[0] - width) // 2, (square[1] - height) // 2
    new_width, new_height = _resized(image_processor, *square)
    crop_width, crop_height = new_width, new_height
    if does.get("do_center_crop"):
        crop_width = image_processor.crop_size["width"]
        crop_height = image_processor.crop_size["height"]
    # The processor crops whole pixels of the resized picture.
    left, top = (new_width - crop_width) // 2, (new_height - crop_height) // 2
    x, y = square[0] / new_width, square[1] / new_height
    return (
        left * x - pad_left,
        top * y - pad_top,
        (left + crop_width) * x - pad_left,
        (top + crop_height) * y - pad_top,
    )


def _resized(image_processor: Any, width: int, height: int) -> tuple[int, int]:
    """Size in pixels after the processor's resize."""
    if not image_processor.do_resize:
        return width, height
    size = dict(image_processor.size)
    shortest = size.get("shortest_edge")
    if shortest is not None:
        if width <= height:
            return shortest, int(shortest * height / width)
        return int(shortest * width / height), shortest
    if size.get("height") is not None and size.get("width") is not None:
        return size["width"], size["height"]
    raise FamilyError(
        f"the image processor resizes by {size}, which is not understood here;"
        " understood are shortest_edge, and height with width."
    )
