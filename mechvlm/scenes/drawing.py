"""From things to pixels: where each lies, and how a picture of them looks."""

from collections.abc import Sequence

import numpy as np
from jaxtyping import Bool, Float, UInt8

from mechvlm.errors import SceneError
from mechvlm.scenes.entities import EMBLEM_SIDE, emblem_color, emblem_pattern
from mechvlm.scenes.world import CELL_PX, COLORS, GRID, IMAGE_PX, Emblem, Thing

Plane = Float[np.ndarray, "height width"]
Mask = Bool[np.ndarray, "height width"]
Picture = UInt8[np.ndarray, "72 72 3"]

_FIELD_PX = 4
_BLACK = 10.0
_NOISE = 8.0
_SHADE = 18.0
_DOWN, _RIGHT = np.mgrid[0:IMAGE_PX, 0:IMAGE_PX] + 0.5


def mask_of(thing: Thing | Emblem) -> Mask:
    """The pixels that the thing paints, [72 72], whatever is painted over them."""
    down, right = _from_centre(thing)
    if isinstance(thing, Emblem):
        half = EMBLEM_SIDE * _FIELD_PX / 2
        inside: Mask = (np.abs(down) < half) & (np.abs(right) < half)
        return inside
    return _inside(thing.shape, down, right, _radius(thing))


def draw(things: Sequence[Thing | Emblem], seed: int) -> Picture:
    """Paint the things over a background, later ones over earlier ones.

    The seed fixes the background's gradient, its noise and each thing's shade, so that
    two pictures with one seed differ only where their things do.
    """
    rng = np.random.default_rng(seed)
    picture = _gradient(rng)
    noise = rng.standard_normal(picture.shape, dtype=np.float32) * _NOISE
    for thing in things:
        shade = rng.uniform(-_SHADE, _SHADE, 3)
        mask = mask_of(thing)
        if isinstance(thing, Emblem):
            picture[mask] = _BLACK
            mask = _emblem_ink(thing)
        picture[mask] = np.array(COLORS[_color(thing)]) + shade
    painted: Picture = (picture + noise).clip(0, 255).astype(np.uint8)
    return painted


def _color(thing: Thing | Emblem) -> str:
    return emblem_color(thing.name) if isinstance(thing, Emblem) else thing.color


def _from_centre(thing: Thing | Emblem) -> tuple[Plane, Plane]:
    """Signed distances of each pixel's middle from the thing's centre, in pixels."""
    row, column = divmod(thing.cell, GRID)
    down = _DOWN - (row + 0.5) * CELL_PX - thing.shift[0]
    right = _RIGHT - (column + 0.5) * CELL_PX - thing.shift[1]
    return down, right


def _radius(thing: Thing) -> float:
    return 6.5 + thing.swell if thing.size == "small" else 9.4 + 1.2 * thing.swell


def _inside(shape: str, down: Plane, right: Plane, radius: float) -> Mask:
    high, wide = np.abs(down), np.abs(right)
    from_centre = down**2 + right**2
    inside: Mask
    match shape:
        case "circle":
            inside = from_centre <= radius**2
        case "square":
            inside = np.maximum(high, wide) <= radius * 0.88
        case "triangle":
            side = (down + radius) * 0.58
            inside = (down <= radius * 0.85) & (down >= -radius) & (wide <= side)
        case "diamond":
            inside = high + wide <= radius * 1.08
        case "cross":
            thin, long = np.minimum(high, wide), np.maximum(high, wide)
            inside = (thin <= radius * 0.33) & (long <= radius)
        case "ring":
            hole = from_centre < (radius * 0.55) ** 2
            inside = (from_centre <= radius**2) & ~hole
        case _:
            raise SceneError(f"no shape {shape!r}; see mechvlm.scenes.SHAPES")
    return inside


def _emblem_ink(emblem: Emblem) -> Mask:
    down, right = _from_centre(emblem)
    half = EMBLEM_SIDE * _FIELD_PX / 2
    inside = mask_of(emblem)
    ink = np.zeros_like(inside)
    rows = ((down[inside] + half) // _FIELD_PX).astype(int)
    columns = ((right[inside] + half) // _FIELD_PX).astype(int)
    ink[inside] = emblem_pattern(emblem.name)[rows, columns]
    return ink


def _gradient(rng: np.random.Generator) -> Float[np.ndarray, "72 72 3"]:
    """Two dark colours, 0..255, that blend along a random direction."""
    start, end = rng.uniform(20, 110, (2, 3))
    angle = rng.uniform(0, 2 * np.pi)
    right, down = _RIGHT / IMAGE_PX - 0.5, _DOWN / IMAGE_PX - 0.5
    along = np.cos(angle) * right + np.sin(angle) * down
    blend = (along + 0.5).clip(0, 1)[..., None]
    blended: Float[np.ndarray, "72 72 3"] = start * (1 - blend) + end * blend
    return blended
