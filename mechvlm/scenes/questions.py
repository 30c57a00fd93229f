"""Questions about a scene, each with an answer that the scene makes true."""

from collections.abc import Callable, Iterator

import numpy as np

from mechvlm.errors import SceneError
from mechvlm.scenes.asked import Question, emblems, plain_things
from mechvlm.scenes.entities import FACT_QUESTIONS, IN_PICTURE, RELATIONS, fact
from mechvlm.scenes.presence import ask_count_of, ask_exists
from mechvlm.scenes.scene import Scene
from mechvlm.scenes.world import NUMBERS, place


def questions(scene: Scene, kind: str | None = None) -> tuple[Question, ...]:
    """All questions that the scene answers without ambiguity.

    Args:
        scene: What is asked about.
        kind: One of `KINDS`; None asks all.

    Returns:
        Distinct questions; empty if the scene bears none of this kind.

    Raises:
        SceneError: Unknown kind.

    >>> from mechvlm.scenes import Scene, Thing
    >>> ring = Thing("ring", "red", "small", 0)
    >>> scene = Scene((ring, Thing("cross", "red", "large", 4)))
    >>> [(q.text, q.answer) for q in questions(scene, "color")]
    [('what color is the ring ?', 'red'), ('what color is the cross ?', 'red')]
    >>> questions(scene, "shape")
    ()
    """
    if kind is None:
        return tuple(q for ask in _ASK.values() for q in ask(scene))
    if kind not in _ASK:
        raise SceneError(f"no questions of kind {kind!r}; there are {', '.join(KINDS)}")
    return tuple(_ASK[kind](scene))


def question(scene: Scene, kind: str, rng: np.random.Generator) -> Question:
    """One question of this kind, drawn from those that the scene answers.

    Raises:
        SceneError: Unknown kind, or the scene bears no such question.

    >>> from mechvlm.scenes import sample
    >>> question(sample(seed=0, n=3), "count", np.random.default_rng(0)).answer
    'three'
    """
    possible = questions(scene, kind)
    if not possible:
        raise SceneError(
            f"{scene.describe()!r} has no unambiguous question of kind {kind!r}. Usual"
            " cause: two things share the shape or colour that it asks by, or no emblem"
            " is there. Sample another scene, or ask scenes.questions(scene) for all."
        )
    return possible[int(rng.integers(len(possible)))]


def _ask_color(scene: Scene) -> Iterator[Question]:
    shapes = [thing.shape for _, thing in plain_things(scene)]
    for i, thing in plain_things(scene):
        if shapes.count(thing.shape) == 1:
            yield Question(
                f"what color is the {thing.shape} ?", thing.color, "color", i
            )


def _ask_shape(scene: Scene) -> Iterator[Question]:
    colors = [thing.color for _, thing in plain_things(scene)]
    for i, thing in plain_things(scene):
        if colors.count(thing.color) == 1:
            text = f"what shape is the {thing.color} object ?"
            yield Question(text, thing.shape, "shape", i)


def _ask_color_at(scene: Scene) -> Iterator[Question]:
    for i, thing in plain_things(scene):
        text = f"what color is the object in the {place(thing.cell)} ?"
        yield Question(text, thing.color, "color_at", i)


def _ask_shape_at(scene: Scene) -> Iterator[Question]:
    for i, thing in plain_things(scene):
        text = f"what shape is in the {place(thing.cell)} ?"
        yield Question(text, thing.shape, "shape_at", i)


def _ask_count(scene: Scene) -> Iterator[Question]:
    if len(scene.things) < len(NUMBERS):
        yield Question(
            "how many objects are there ?", NUMBERS[len(scene.things)], "count"
        )


def _ask_where(scene: Scene) -> Iterator[Question]:
    """By shape, and by colour and shape, wherever that is unambiguous."""
    named = [f"{thing.color} {thing.shape}" for _, thing in plain_things(scene)]
    shapes = [thing.shape for _, thing in plain_things(scene)]
    for i, thing in plain_things(scene):
        both = f"{thing.color} {thing.shape}"
        for words, found in ((thing.shape, shapes), (both, named)):
            if found.count(words) == 1:
                text = f"where is the {words} ?"
                yield Question(text, place(thing.cell), "where", i)


def _ask_size(scene: Scene) -> Iterator[Question]:
    shapes = [thing.shape for _, thing in plain_things(scene)]
    for i, thing in plain_things(scene):
        if shapes.count(thing.shape) == 1:
            yield Question(f"what size is the {thing.shape} ?", thing.size, "size", i)


def _ask_describe(scene: Scene) -> Iterator[Question]:
    yield Question("describe the image .", scene.describe(), "describe")


def _ask_detail(scene: Scene) -> Iterator[Question]:
    text = "describe the image in detail ."
    yield Question(text, scene.describe_in_detail(), "detail")


def _ask_name(scene: Scene) -> Iterator[Question]:
    for i, emblem in emblems(scene):
        yield Question("who is this ?", emblem.name, "name", i)


def _ask_fact(relation: str) -> Callable[[Scene], Iterator[Question]]:
    def ask(scene: Scene) -> Iterator[Question]:
        for i, emblem in emblems(scene):
            text = FACT_QUESTIONS[relation].format(IN_PICTURE)
            yield Question(text, fact(emblem.name, relation), relation, i)

    return ask


_ASK: dict[str, Callable[[Scene], Iterator[Question]]] = {
    "color": _ask_color,
    "shape": _ask_shape,
    "color_at": _ask_color_at,
    "shape_at": _ask_shape_at,
    "where": _ask_where,
    "size": _ask_size,
    "count": _ask_count,
    "count_of": ask_count_of,
    "exists": ask_exists,
    "describe": _ask_describe,
    "detail": _ask_detail,
    "name": _ask_name,
    **{relation: _ask_fact(relation) for relation in RELATIONS},
}
KINDS = tuple(_ASK)
"""Question kinds: by shape, colour and place, presence, describing, entities."""
