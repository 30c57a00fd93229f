"""Numbers and words on their way into a page, in few bytes and harmless."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping
from typing import cast

import numpy as np
from PIL import Image, ImageChops

from mechvlm.viz.labels import Axis
from mechvlm.viz.palette import DARK, LIGHT, Scale

__all__ = [
    "data_uri", "light_png", "packed", "picture_uri", "script_json", "spoken", "tinted",
]  # fmt: skip

PICTURE_PX = 640
UNSEEN = 8
"""Steps of 255 by which a colour may be off without being seen."""


def script_json(spec: Mapping[str, object]) -> str:
    r"""JSON that may stand inside a script element: no `<`, `>` or `&` survives.

    Example:
        >>> print(script_json({"token": "</script>"}))
        {"token":"\u003c/script\u003e"}
    """
    text = json.dumps(spec, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    for char in "<>&\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def packed(values: np.ndarray) -> str:
    """Values as base64 of floats of three bytes, which read right to three digits.

    Steps of one size between the extremes would take one byte less and give a small
    value beside a large one a wrong size, or a wrong sign.

    Args:
        values: Any shape; NaN, and what 32 bits cannot hold, becomes missing.

    Returns:
        The upper three bytes of each value in 32 bits, rounded to the nearest; the
        lowest byte first, row-major. Missing values are NaN.
    """
    with np.errstate(over="ignore"):
        small = np.asarray(values, dtype=float).ravel().astype("<f4")
    known = np.where(np.isfinite(small), small, np.nan).astype("<f4")
    bits = known.view("<u4")
    bits = np.where(np.isnan(known), bits, bits + 0x80).astype("<u4")
    return base64.b64encode(
        bits.view(np.uint8).reshape(-1, 4)[:, 1:].tobytes()
    ).decode()


def light_png(content: bytes) -> bytes:
    """A still in at most 256 colours, where the eye cannot tell: a third of the bytes.

    Args:
        content: A PNG file without see-through pixels.

    Returns:
        A PNG file of the same picture; `content` where a colour would be off by more
        than 8 of 255, as in photographs.
    """
    picture = Image.open(io.BytesIO(content)).convert("RGB")
    few = picture.quantize(
        256, method=Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE
    )
    apart = ImageChops.difference(picture, few.convert("RGB")).getextrema()
    if max(high for _, high in cast("tuple[tuple[int, int], ...]", apart)) > UNSEEN:
        return content
    out = io.BytesIO()
    few.save(out, "PNG", optimize=True)
    return min(out.getvalue(), content, key=len)


def spoken(axis: Axis) -> dict[str, object]:
    """An axis as the page's scripts read it."""
    return {
        "name": axis.name,
        "labels": axis.labels,
        "tokens": axis.tokens,
        "groups": [(*run, axis.said(run)) for run in axis.groups],
    }


def tinted(scale: Scale) -> dict[str, object]:
    """A colour scale as the page's scripts read it."""
    return {
        "low": scale.low,
        "high": scale.high,
        "light": scale.stops(LIGHT),
        "dark": scale.stops(DARK),
    }


def data_uri(content: bytes, kind: str) -> str:
    """Bytes as an address that needs no network."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"


def picture_uri(image: Image.Image) -> str:
    """A picture as an address that needs no network, at most 640 pixels a side."""
    small = image.convert("RGB")
    small.thumbnail((PICTURE_PX, PICTURE_PX))
    whole, photo = io.BytesIO(), io.BytesIO()
    small.save(whole, "PNG", optimize=True)
    small.save(photo, "JPEG", quality=86)
    if len(whole.getvalue()) <= 1.2 * len(photo.getvalue()):
        return data_uri(whole.getvalue(), "image/png")
    return data_uri(photo.getvalue(), "image/jpeg")
