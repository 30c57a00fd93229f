"""Scenes: things on a grid before a noisy background, with their truth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from mechvlm.errors import SceneError
from mechvlm.scenes.drawing import draw, mask_of
from mechvlm.scenes.entities import NAMES, index
from mechvlm.scenes.world import COLORS, GRID, SHAPES, Emblem, Thing


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in raster order and the seed of everything else in the picture.

    Where two things overlap, the later one in raster order is painted over the other.

    >>> from mechvlm.scenes import sample
    >>> scene = sample(seed=0, n=3)
    >>> scene.image.size
    (72, 72)
    >>> bool(scene.mask(0).any())
    True

    Attributes:
        things: Sorted by cell; at most one per cell.
        seed: Of the background's gradient and noise and of the things' shades.
    """

    things: tuple[Thing | Emblem, ...]
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse cells that are out of order or taken twice.

        Raises:
            SceneError: The things are not in raster order, one to a cell.
        """
        cells = [thing.cell for thing in self.things]
        if cells != sorted(set(cells)) or not all(
            0 <= cell < GRID**2 for cell in cells
        ):
            raise SceneError(
                f"things stand in cells {cells}; they must be in raster order, one to a"
                f" cell, cells 0..{GRID**2 - 1}. mechvlm.scenes.arrange sorts them."
            )

    @property
    def pixels(self) -> UInt8[np.ndarray, "72 72 3"]:
        """The picture as RGB values."""
        return draw(self.things, self.seed)

    @property
    def image(self) -> Image.Image:
        """The picture, 72 x 72 pixels, RGB."""
        return Image.fromarray(self.pixels)

    def mask(self, i: int) -> Bool[np.ndarray, "72 72"]:
        """True where thing `i` is seen; masks of two things never overlap."""
        seen = mask_of(self.things[i])
        for later in self.things[i % len(self.things) + 1 :]:
            seen &= ~mask_of(later)
        return seen

    def full_mask(self, i: int) -> Bool[np.ndarray, "72 72"]:
        """True on the whole shape of thing `i`, also where another one hides it.

        >>> from mechvlm.scenes import sample
        >>> scene = sample(seed=0, n=2, overlapping=True)
        >>> bool((scene.full_mask(0) & scene.full_mask(1)).any())
        True
        """
        return mask_of(self.things[i])

    @property
    def overlapping(self) -> bool:
        """Whether some thing hides a part of another one."""
        each = range(len(self.things))
        return any((self.mask(i) != self.full_mask(i)).any() for i in each)

    def box(self, i: int) -> tuple[int, int, int, int]:
        """Tight box of what is seen of thing `i`: (x0, y0, x1, y1) px, half-open."""
        rows, columns = np.nonzero(self.mask(i))
        x0, y0 = int(columns.min()), int(rows.min())
        return x0, y0, int(columns.max()) + 1, int(rows.max()) + 1

    def recolored(self, i: int, color: str) -> "Scene":
        """The counterfactual twin: thing `i` in another colour, all else the same.

        Raises:
            SceneError: Unknown colour, or thing `i` is an emblem.

        >>> from mechvlm.scenes import sample
        >>> scene = sample(seed=0, n=2)
        >>> twin = scene.recolored(0, "cyan")
        >>> (scene.pixels != twin.pixels)[~scene.mask(0)].any().item()
        False
        """
        if color not in COLORS:
            raise SceneError(f"no color {color!r}; there are {', '.join(COLORS)}")
        return self._with(i, replace(self._plain(i), color=color))

    def reshaped(self, i: int, shape: str) -> "Scene":
        """The counterfactual twin: thing `i` in another shape, all else the same.

        Raises:
            SceneError: Unknown shape, or thing `i` is an emblem.
        """
        if shape not in SHAPES:
            raise SceneError(f"no shape {shape!r}; there are {', '.join(SHAPES)}")
        return self._with(i, replace(self._plain(i), shape=shape))

    def renamed(self, i: int, name: str) -> "Scene":
        """The counterfactual twin: another entity's emblem where `i`'s stands.

        Raises:
            SceneError: Unknown name, or thing `i` is not an emblem.
        """
        thing = self.things[i]
        if not isinstance(thing, Emblem):
            raise SceneError(
                f"thing {i} is {thing.words!r}, which has no name to change"
            )
        return self._with(i, replace(thing, name=NAMES[index(name)]))

    def describe(self) -> str:
        """The description that the demo model was taught.

        >>> Scene((Thing("ring", "red", "small", 0), Emblem("lumina", 5))).describe()
        'a red ring and lumina .'
        """
        return " and ".join(thing.words for thing in self.things) + " ."

    def describe_in_detail(self) -> str:
        """The same with sizes and places.

        >>> Scene((Thing("ring", "red", "small", 0),)).describe_in_detail()
        'a small red ring in the top left .'
        """
        return " and ".join(thing.detail for thing in self.things) + " ."

    def _plain(self, i: int) -> Thing:
        thing = self.things[i]
        if isinstance(thing, Emblem):
            raise SceneError(f"thing {i} is the emblem of {thing.name!r}; use renamed")
        return thing

    def _with(self, i: int, thing: Thing | Emblem) -> "Scene":
        i %= len(self.things)
        return Scene((*self.things[:i], thing, *self.things[i + 1 :]), self.seed)


def arrange(things: Sequence[Thing | Emblem], seed: int = 0) -> Scene:
    """A scene of these things, sorted by cell."""
    return Scene(tuple(sorted(things, key=lambda thing: thing.cell)), seed)
