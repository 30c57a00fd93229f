"""Questions whether a thing is there, and how many of a kind.

They are of three forms: by shape, by colour, and by both. Only coloured shapes count:
an emblem is no `red object`, whatever its colour.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from mechvlm.scenes.asked import Question, plain_things
from mechvlm.scenes.scene import Scene
from mechvlm.scenes.world import COLORS, NUMBERS, PLURALS, SHAPES

_ABSENT_COUNTED = 2


def ask_exists(scene: Scene) -> Iterator[Question]:
    """As many questions to answer with yes as with no, in each form.

    By colour and shape, half of the nos are hard: something of that colour is there,
    and something of that shape, but no thing that is both. The scene's seed draws what
    is asked for.

    >>> from mechvlm.scenes import Thing
    >>> scene = Scene((Thing("ring", "red", "small", 0),))
    >>> [(q.text, q.answer) for q in ask_exists(scene)][:2]
    [('is there a red ring ?', 'yes'), ('is there a green circle ?', 'no')]
    """
    rng = np.random.default_rng([scene.seed, 1])
    both = [f"{thing.color} {thing.shape}" for _, thing in plain_things(scene)]
    shapes = [thing.shape for _, thing in plain_things(scene)]
    colors = [f"{thing.color} object" for _, thing in plain_things(scene)]
    every_color = [f"{color} object" for color in COLORS]
    yield from _whether(scene, both, _absent_pairs(scene, rng), rng)
    yield from _whether(scene, shapes, _others(SHAPES, shapes, rng), rng)
    yield from _whether(scene, colors, _others(every_color, colors, rng), rng)


def ask_count_of(scene: Scene) -> Iterator[Question]:
    """How many there are of each shape and colour of the scene, and of absent ones.

    >>> from mechvlm.scenes import Thing
    >>> scene = Scene(tuple(Thing("ring", "red", "small", cell) for cell in (0, 1)))
    >>> [q.answer for q in ask_count_of(scene)]
    ['two', 'zero', 'zero', 'two', 'zero', 'zero']
    """
    rng = np.random.default_rng([scene.seed, 2])
    shapes = [PLURALS[thing.shape] for _, thing in plain_things(scene)]
    colors = [f"{thing.color} objects" for _, thing in plain_things(scene)]
    plurals = tuple(PLURALS.values())
    every_color = [f"{color} objects" for color in COLORS]
    for found, every in ((shapes, plurals), (colors, every_color)):
        absent = _others(every, found, rng)[:_ABSENT_COUNTED]
        for words in (*dict.fromkeys(found), *absent):
            n = found.count(words)
            if n < len(NUMBERS):
                yield Question(
                    f"how many {words} are there ?",
                    NUMBERS[n],
                    "count_of",
                    _only(scene, found, words),
                )


def _whether(
    scene: Scene, found: Sequence[str], absent: Sequence[str], rng: np.random.Generator
) -> Iterator[Question]:
    """Equally many yes and no: all that are found, or as many as are absent."""
    present = _shuffled(dict.fromkeys(found), rng)
    for is_there, is_not in zip(present, absent, strict=False):
        about = _only(scene, found, is_there)
        yield Question(f"is there a {is_there} ?", "yes", "exists", about)
        yield Question(f"is there a {is_not} ?", "no", "exists")


def _absent_pairs(scene: Scene, rng: np.random.Generator) -> list[str]:
    """Colour and shape that no thing has together, by turns hard ones and easy ones."""
    there = {(thing.color, thing.shape) for _, thing in plain_things(scene)}
    mixed = {(color, shape) for color, _ in there for _, shape in there}
    every = [(color, shape) for color in COLORS for shape in SHAPES]
    hard = _shuffled([" ".join(p) for p in every if p in mixed - there], rng)
    easy = _shuffled([" ".join(p) for p in every if p not in mixed], rng)
    turns = [hard, easy] if rng.random() < 0.5 else [easy, hard]
    n = min(len(hard), len(easy))
    by_turns = [words for pair in zip(*turns, strict=False) for words in pair]
    return [*by_turns, *hard[n:], *easy[n:]]


def _others(
    every: Sequence[str], found: Sequence[str], rng: np.random.Generator
) -> list[str]:
    return _shuffled([words for words in every if words not in found], rng)


def _only(scene: Scene, found: Sequence[str], words: str) -> int | None:
    """Index of the thing that goes by these words, if exactly one does."""
    if found.count(words) != 1:
        return None
    at = [i for i, _ in plain_things(scene)]
    return at[found.index(words)]


def _shuffled(words: Iterable[str], rng: np.random.Generator) -> list[str]:
    order = list(words)
    return [order[i] for i in rng.permutation(len(order))]
