"""Two scenes that differ in one attribute of one thing, and what to ask of both."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from operator import index

import numpy as np
from jaxtyping import Bool

from mechvlm.errors import SceneError
from mechvlm.items import PicturePair
from mechvlm.scenes.asked import plain_things
from mechvlm.scenes.questions import questions
from mechvlm.scenes.scene import Scene
from mechvlm.scenes.world import COLORS, GRID, SHAPES, Thing, place
from mechvlm.wanted import one


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A scene, its twin in which one attribute of one thing differs, and a question.

    Attributes:
        clean: The scene.
        corrupted: Its twin: same background, same other things, pixel for pixel.
        about: Index of the thing that differs, the same in both.
        change: What differs: one of `CHANGES`.
        question: What is asked of both.
        answer: One word, right of the clean scene; of a position the first of the two
            that the model answers with.
        foil: Likewise of the corrupted scene.
    """

    clean: Scene
    corrupted: Scene
    about: int
    change: str
    question: str
    answer: str
    foil: str

    @property
    def pair(self) -> PicturePair:
        """The two pictures, their objects the masks of all things, the target one.

        >>> from mechvlm.scenes import sample
        >>> made = counterfactual(sample(seed=0, n=2), "shape")
        >>> made.pair.target == made.clean.things[made.about].words.removeprefix("a ")
        True
        """
        names = _names(self.clean)
        here, there = (
            {name: scene.mask(i) for i, name in enumerate(names)}
            for scene in (self.clean, self.corrupted)
        )
        return PicturePair(
            *(self.clean.image, self.corrupted.image),
            *(self.question, self.answer, self.foil),
            objects=here,
            objects_corrupted={
                name: mask
                for name, mask in there.items()
                if not np.array_equal(mask, here[name])
            },
            target=names[self.about],
            change=self.change,
        )


def counterfactual(
    scene: Scene, change: str = "color", *, about: int | None = None, seed: int = 0
) -> Counterfactual:
    """The scene with one attribute of one thing changed, and a question that tells it.

    What is asked is answered without ambiguity by both scenes. The new colour or shape
    is one that no thing of the scene has.

    Args:
        scene: What is changed; must hold a coloured shape.
        change: "color" asks "what color is the ring ?". "shape" asks "what shape is the
            red object ?". "position" moves the thing to a free cell in another row and
            asks "where is the ring ?", whose answer begins with the row (top, middle or
            bottom), which is compared; it passes no other thing in raster order, in
            which shades are drawn, or others would look different too, so that a
            crowded scene leaves few cells or none. "object" puts a thing of another
            shape and colour in its place and asks "is there a ring ?", to be answered
            yes and no.
        about: Index of the thing; None draws one of those that can be changed.
        seed: Draws what is left open; any non-negative integer.

    Returns:
        Both scenes, the question and its two answers.

    Raises:
        ArgumentError: Something is of another kind.
        SceneError: There is no such change or coloured shape, or none that can be
            changed and asked about, and the message tells why; or the seed is negative.

    Paper: semantic image pairs of Golovanevsky et al. 2024, arXiv:2406.16320.

    >>> from mechvlm.scenes import Scene, Thing
    >>> scene = Scene((Thing("ring", "red", "small", 0),))
    >>> made = counterfactual(scene, "position")
    >>> made.question, made.answer, made.foil in ("middle", "bottom")
    ('where is the ring ?', 'top', True)
    """
    one(scene, Scene, "scene", "scenes.sample(seed=0, n=2)")
    if one(change, str, "change", '"color"') not in _KINDS:
        raise SceneError(
            f"no change of {change!r} is known; there are {', '.join(CHANGES)}."
        )
    rng = np.random.default_rng(_seed(seed))
    refused = []
    for i in _candidates(scene, about, rng):
        try:
            return _counterfactual(scene, change, i, rng)
        except SceneError as cause:
            refused.append(f"{_thing(scene, i).words}: {cause}")
    raise SceneError(
        f"{scene.describe()!r} has no counterfactual of {change}. {' '.join(refused)}"
        " Take another change, or sample another scene."
    )


def _seed(given: int) -> int:
    one(given, (int, np.integer), "seed", "seed=0")
    if given < 0:
        raise SceneError(f"seed={given}: wanted 0 or more.")
    return given


def _candidates(
    scene: Scene, about: int | None, rng: np.random.Generator
) -> Sequence[int]:
    """Things that may be changed: the one that is asked for, or all in any order."""
    plain = [i for i, _ in plain_things(scene)]
    if about is not None:
        one(about, (int, np.integer), "about", "about=0, or None")
    if about is not None and about not in plain:
        raise SceneError(
            f"about={about!r}: coloured shapes of {scene.describe()!r} are things"
            f" {plain}, counted from 0; an emblem is none."
        )
    if not plain:
        raise SceneError(
            f"{scene.describe()!r} has no coloured shape to change. Sample a scene with"
            " some, such as scenes.sample(seed=0, n=2)."
        )
    return [index(about)] if about is not None else rng.permutation(plain).tolist()


def _counterfactual(
    scene: Scene, change: str, i: int, rng: np.random.Generator
) -> Counterfactual:
    """Thing `i` changed.

    Raises:
        SceneError: It cannot be asked about, or there is nothing to change it to.
    """
    question = _question(scene, change, i)
    twins = [twin for twin in _KINDS[change].twins(scene, i) if _seen(twin, scene)]
    if not twins:
        raise SceneError(_KINDS[change].exhausted)
    twin = twins[int(rng.integers(len(twins)))]
    answers = _answers(_thing(scene, i), _thing(twin, i))[change]
    return Counterfactual(scene, twin, i, change, question, *answers)


def _question(scene: Scene, change: str, i: int) -> str:
    """What is asked of thing `i`, in words that name no other thing.

    Raises:
        SceneError: There are none.
    """
    if change == "object":
        asked = [f"is there a {words} ?" for words in _only(scene, i)]
    else:
        kind = "where" if change == "position" else change
        asked = [each.text for each in questions(scene, kind) if each.about == i]
    if not asked:
        raise SceneError(f"another thing has {_KINDS[change].shared}.")
    return asked[0]


def _only(scene: Scene, i: int) -> list[str]:
    """Words for thing `i` that are true of no other: shape, or colour and shape."""
    others = [thing for j, thing in plain_things(scene) if j != i]
    own = _thing(scene, i)
    both = {(thing.color, thing.shape) for thing in others}
    by_shape = [own.shape] if own.shape not in {each.shape for each in others} else []
    by_both = [f"{own.color} {own.shape}"] if (own.color, own.shape) not in both else []
    return by_shape + by_both


def _answers(thing: Thing, twin: Thing) -> dict[str, tuple[str, str]]:
    """What is right of a thing, and of what it is changed to."""
    row, other_row = (place(each.cell).split()[0] for each in (thing, twin))
    return {
        "color": (thing.color, twin.color),
        "shape": (thing.shape, twin.shape),
        "position": (row, other_row),
        "object": ("yes", "no"),
    }


def _recolored(scene: Scene, i: int) -> list[Scene]:
    taken = {thing.color for _, thing in plain_things(scene)}
    return [scene.recolored(i, color) for color in COLORS if color not in taken]


def _reshaped(scene: Scene, i: int) -> list[Scene]:
    taken = {thing.shape for _, thing in plain_things(scene)}
    return [scene.reshaped(i, shape) for shape in SHAPES if shape not in taken]


def _replaced(scene: Scene, i: int) -> list[Scene]:
    colors = [_thing(each, i).color for each in _recolored(scene, i)]
    shaped = _reshaped(scene, i)
    return [each.recolored(i, color) for each in shaped for color in colors]


def _moved(scene: Scene, i: int) -> list[Scene]:
    """Thing `i` in each cell of another row where nothing is, its index the same.

    Were the order of the things another one, then so were their shades, and more than
    one thing would look different.
    """
    thing = _thing(scene, i)
    cells = [-1, *(each.cell for each in scene.things), GRID**2]
    between = range(cells[i] + 1, cells[i + 2])
    free = [cell for cell in between if cell // GRID != thing.cell // GRID]
    before, after = scene.things[:i], scene.things[i + 1 :]
    twins = [
        Scene((*before, replace(thing, cell=cell), *after), scene.seed) for cell in free
    ]
    return [twin for twin in twins if _alone(twin, i, scene.full_mask(i))]


def _alone(scene: Scene, i: int, before: Bool[np.ndarray, "72 72"]) -> bool:
    """Whether thing `i` touches no other and is as whole as it was before."""
    own = scene.full_mask(i)
    others = [scene.full_mask(j) for j in range(len(scene.things)) if j != i]
    touched = any((own & other).any() for other in others)
    return not touched and bool(own.sum() == before.sum())


def _seen(twin: Scene, scene: Scene) -> bool:
    """Whether of every thing half is seen, or as much of it as there was before."""
    return all(
        twin.mask(i).sum() >= min(twin.full_mask(i).sum() / 2, scene.mask(i).sum())
        for i in range(len(scene.things))
    )


def _thing(scene: Scene, i: int) -> Thing:
    return dict(plain_things(scene))[i]


def _names(scene: Scene) -> list[str]:
    """A name for each thing; a further one of the same words is numbered."""
    words = [thing.words.removeprefix("a ") for thing in scene.things]
    nth = [words[: i + 1].count(each) for i, each in enumerate(words)]
    return [
        each if n == 1 else f"{each} {n}" for each, n in zip(words, nth, strict=True)
    ]


@dataclass(frozen=True, slots=True)
class _Kind:
    """How a change is made, and what is said where it cannot be."""

    twins: Callable[[Scene, int], list[Scene]]
    shared: str
    exhausted: str


_KINDS = {
    "color": _Kind(
        _recolored,
        "its shape, by which its colour is asked",
        "every colour is taken.",
    ),
    "shape": _Kind(
        _reshaped,
        "its colour, by which its shape is asked",
        "every shape is taken, or would hide most of a thing.",
    ),
    "position": _Kind(
        _moved,
        "its colour and shape, by which its place is asked",
        "it can go to no free cell in another row without passing another thing in"
        " raster order.",
    ),
    "object": _Kind(
        _replaced,
        "its colour and shape, and would still be there",
        "every colour or shape is taken, or would hide most of a thing.",
    ),
}
CHANGES = tuple(_KINDS)
"""What can differ between a scene and its counterfactual."""
