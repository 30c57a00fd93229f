"""Numbers and words on their way into a page, in few bytes and harmless."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping

import numpy as np
from PIL import Image

from mechvlm.viz.labels import Axis
from mechvlm.viz.palette import DARK, LIGHT, Scale

__all__ = ["data_uri", "packed", "picture_uri", "script_json", "spoken", "tinted"]

MISSING = 65535
PICTURE_PX = 640


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


def packed(values: np.ndarray) -> dict[str, object]:
    """Values as base64 of 16-bit steps between their extremes.

    Args:
        values: Any shape, any finite range; NaN and infinities become missing.

    Returns:
        `data`, `low`, `high`: value = low + step / 65534 * (high - low), row-major,
        little-endian; step 65535 is missing.
    """
    values = np.asarray(values, dtype=float)
    good = np.isfinite(values)
    low = float(values[good].min()) if good.any() else 0.0
    high = float(values[good].max()) if good.any() else 0.0
    span = (high - low) or 1.0
    steps = np.where(good, np.rint((values - low) / span * (MISSING - 1)), MISSING)
    data = base64.b64encode(steps.astype("<u2").tobytes()).decode()
    return {"data": data, "low": low, "high": low + span}


def spoken(axis: Axis) -> dict[str, object]:
    """An axis as the page's scripts read it."""
    return {
        "name": axis.name,
        "labels": axis.labels,
        "tokens": axis.tokens,
        "groups": axis.groups,
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
