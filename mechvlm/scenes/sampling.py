"""Scenes drawn at random: plain ones, with things alike, with things that overlap."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from mechvlm.errors import SceneError
from mechvlm.scenes.entities import NAMES, index
from mechvlm.scenes.overlap import moved_together
from mechvlm.scenes.scene import Scene, arrange
from mechvlm.scenes.world import COLORS, GRID, SHAPES, SIZES, Emblem, Thing

MAX_THINGS = 4
_SHIFT_PX = 1.0
_ALL_DIFFERENT = 0.8
_P_THINGS = (0.15, 0.3, 0.3, 0.25)
_P_BESIDE_EMBLEM = (0.4, 0.3, 0.3)


def sample(
    seed: int,
    n: int | None = None,
    *,
    entity: str | None = None,
    overlapping: bool = False,
    alike: bool = False,
) -> Scene:
    """The scene of this seed.

    Args:
        seed: Any non-negative integer; the same one gives the same scene.
        n: Number of plain things, 0..4; None draws it.
        entity: Name of an entity whose emblem stands among them.
        overlapping: Whether two plain things stand so near that one hides a part of
            the other: at most about half of it.
        alike: Whether two plain things have one shape.

    Returns:
        A scene; its picture is the same on every call.

    Raises:
        SceneError: Too many things, too few for two to overlap or to be alike, or no
            entity has this name.

    >>> sample(seed=0, n=3) == sample(seed=0, n=3)
    True
    >>> len(sample(seed=0, n=3).things)
    3
    """
    rng = np.random.default_rng(seed)
    return sample_scene(rng, n, entity=entity, overlapping=overlapping, alike=alike)


def sample_scene(
    rng: np.random.Generator,
    n: int | None = None,
    *,
    entity: str | None = None,
    overlapping: bool = False,
    alike: bool = False,
) -> Scene:
    """Draw a scene; arguments as in `sample`, from a generator that moves on.

    Raises:
        SceneError: Too many things, too few for two to overlap or to be alike, or no
            entity has this name.
    """
    least = 2 if overlapping or alike else 0
    if n is None:
        shares = _P_THINGS if entity is None else _P_BESIDE_EMBLEM
        n = int(rng.choice(len(shares), p=shares)) + (entity is None)
        n = max(n, least)
    if not least <= n <= MAX_THINGS:
        raise SceneError(
            f"{n} things were asked for; a scene holds {least}..{MAX_THINGS}"
            + (", since two of them overlap or are alike" if least else "")
        )
    cells = [int(cell) for cell in rng.permutation(GRID**2)]
    things = _plain(rng, cells[:n])
    if alike:
        things[1] = replace(things[1], shape=things[0].shape)
    emblems: list[Emblem] = []
    if entity is not None:
        emblems.append(Emblem(NAMES[index(entity)], cells[n], _shift(rng)))
    seed = int(rng.integers(2**31))
    if overlapping:
        things = moved_together(things, free=cells[n + len(emblems) :], rng=rng)
    return arrange([*things, *emblems], seed)


def twin(scene: Scene, i: int, *, rng: np.random.Generator) -> Scene:
    """Recolour thing `i` with a colour that no thing of the scene has.

    >>> scene = sample(seed=1, n=2)
    >>> twin(scene, 0, rng=np.random.default_rng(0)).things[1] == scene.things[1]
    True
    """
    taken = {thing.color for thing in scene.things if isinstance(thing, Thing)}
    free = [color for color in COLORS if color not in taken]
    return scene.recolored(i, str(rng.choice(free)))


def _plain(rng: np.random.Generator, cells: Sequence[int]) -> list[Thing]:
    return [
        Thing(shape, color, size, cell, _shift(rng), float(rng.random()))
        for shape, color, size, cell in zip(
            _words(rng, SHAPES),
            _words(rng, tuple(COLORS)),
            rng.choice(SIZES, len(cells)).tolist(),
            cells,
            strict=False,
        )
    ]


def _words(rng: np.random.Generator, words: Sequence[str]) -> list[str]:
    """One word for each possible thing: mostly all different."""
    if rng.random() < _ALL_DIFFERENT:
        return [words[i] for i in rng.permutation(len(words))[:MAX_THINGS]]
    return [words[i] for i in rng.integers(len(words), size=MAX_THINGS)]


def _shift(rng: np.random.Generator) -> tuple[float, float]:
    down, right = rng.uniform(-_SHIFT_PX, _SHIFT_PX, 2)
    return float(down), float(right)
