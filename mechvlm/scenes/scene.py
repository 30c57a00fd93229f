"""Scenes: things on a grid before a noisy background, with their truth."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from mechvlm.errors import SceneError
from mechvlm.scenes.drawing import draw, mask_of
from mechvlm.scenes.entities import NAMES, index
from mechvlm.scenes.world import COLORS, GRID, SHAPES, SIZES, Emblem, Thing

MAX_THINGS = 4
_SHIFT_PX = 1.0
_ALL_DIFFERENT = 0.8
_P_THINGS = (0.15, 0.3, 0.3, 0.25)
_P_BESIDE_EMBLEM = (0.4, 0.3, 0.3)


@dataclass(frozen=True, slots=True)
class Scene:
    """Things in raster order and the seed of everything else in the picture.

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
        """True on the pixels of thing `i`; masks of two things never overlap."""
        return mask_of(self.things[i])

    def box(self, i: int) -> tuple[int, int, int, int]:
        """The tight box of thing `i` in pixels: (x0, y0, x1, y1), half-open."""
        rows, columns = np.nonzero(self.mask(i))
        x0, y0 = int(columns.min()), int(rows.min())
        return x0, y0, int(columns.max()) + 1, int(rows.max()) + 1

    def recolored(self, i: int, color: str) -> "Scene":
        """The counterfactual twin: thing `i` in another colour, all else the same.

        Raises:
            SceneError: Unknown colour, or thing `i` is an emblem.

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


def twin(scene: Scene, i: int, *, rng: np.random.Generator) -> Scene:
    """Recolour thing `i` with a colour that no thing of the scene has.

    >>> scene = sample(seed=1, n=2)
    >>> twin(scene, 0, rng=np.random.default_rng(0)).things[1] == scene.things[1]
    True
    """
    taken = {thing.color for thing in scene.things if isinstance(thing, Thing)}
    free = [color for color in COLORS if color not in taken]
    return scene.recolored(i, str(rng.choice(free)))


def sample(seed: int, n: int | None = None, *, entity: str | None = None) -> Scene:
    """The scene of this seed.

    Args:
        seed: Any non-negative integer; the same one gives the same scene.
        n: Number of plain things, 0..4; None draws it.
        entity: Name of an entity whose emblem stands among them.

    Returns:
        A scene; its picture is the same on every call.

    Raises:
        SceneError: Too many things, or no entity has this name.

    >>> sample(seed=0, n=3) == sample(seed=0, n=3)
    True
    >>> len(sample(seed=0, n=3).things)
    3
    """
    return sample_scene(np.random.default_rng(seed), n, entity=entity)


def sample_scene(
    rng: np.random.Generator, n: int | None = None, *, entity: str | None = None
) -> Scene:
    """Draw a scene; arguments as in `sample`, from a generator that moves on.

    Raises:
        SceneError: Too many things, or no entity has this name.
    """
    if n is None:
        shares = _P_THINGS if entity is None else _P_BESIDE_EMBLEM
        n = int(rng.choice(len(shares), p=shares)) + (entity is None)
    if not 0 <= n <= MAX_THINGS:
        raise SceneError(f"{n} things were asked for; a scene holds 0..{MAX_THINGS}")
    cells = rng.permutation(GRID**2)
    things: list[Thing | Emblem] = [
        Thing(shape, color, size, int(cell), _shift(rng), float(rng.random()))
        for shape, color, size, cell in zip(
            _words(rng, SHAPES),
            _words(rng, tuple(COLORS)),
            rng.choice(SIZES, n).tolist(),
            cells[:n],
            strict=False,
        )
    ]
    if entity is not None:
        things.append(Emblem(NAMES[index(entity)], int(cells[n]), _shift(rng)))
    return arrange(things, seed=int(rng.integers(2**31)))


def _words(rng: np.random.Generator, words: Sequence[str]) -> list[str]:
    """One word for each possible thing: mostly all different."""
    if rng.random() < _ALL_DIFFERENT:
        return [words[i] for i in rng.permutation(len(words))[:MAX_THINGS]]
    return [words[i] for i in rng.integers(len(words), size=MAX_THINGS)]


def _shift(rng: np.random.Generator) -> tuple[float, float]:
    down, right = rng.uniform(-_SHIFT_PX, _SHIFT_PX, 2)
    return float(down), float(right)
