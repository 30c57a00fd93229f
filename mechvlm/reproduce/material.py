"""Synthetic scenes as what experiments ask: items with objects, entities with facts."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from mechvlm.items import Entity, Fact, Item
from mechvlm.scenes import (
    COLORS,
    FACT_QUESTIONS,
    IN_PICTURE,
    NAMES,
    RELATIONS,
    SHAPES,
    Emblem,
    Question,
    Scene,
    Thing,
    fact,
    questions,
    sample_scene,
)

__all__ = ["asked_twice", "called_things", "entities", "item_of", "items", "scenes_of"]

DESCRIBE = "describe the image ."
NAMING = "who is this ?"
HOW_MANY = "how many objects are there ?"
PRESENCE = "is there a {} ?"


def scenes_of(
    n: int, seed: int, *, overlapping: bool = False, alike: bool = False
) -> list[Scene]:
    """Scenes of two to four plain things of different colours.

    Their shapes differ too, unless two things are to be alike.
    """
    rng = np.random.default_rng(seed)
    found: list[Scene] = []
    while len(found) < n:
        n_things = int(rng.integers(2, 5))
        scene = sample_scene(rng, n_things, overlapping=overlapping, alike=alike)
        things = [thing for thing in scene.things if isinstance(thing, Thing)]
        shapes, colors = {t.shape for t in things}, {t.color for t in things}
        if len(colors) == len(things) and len(shapes) == len(things) - alike:
            found.append(scene)
    return found


def item_of(scene: Scene, asked: Question, *, id: str = "") -> Item:
    """A question about a scene, with the masks of all its things."""
    objects = {called(thing): scene.mask(i) for i, thing in enumerate(scene.things)}
    target = None if asked.about is None else called(scene.things[asked.about])
    return Item(scene.image, asked.text, asked.answer, objects, target, id=id)


def items(
    n: int,
    seed: int,
    kind: str = "color",
    *,
    overlapping: bool = False,
    alike: bool = False,
) -> list[Item]:
    """One item per scene: a question of this kind, about each thing in turn."""
    return [
        item_of(scene, asked[i % len(asked)], id=f"{kind}, scene {seed}/{i}")
        for i, scene in enumerate(
            scenes_of(n, seed, overlapping=overlapping, alike=alike)
        )
        if (asked := questions(scene, kind))
    ]


def asked_twice(n: int, seed: int, *, kinds: Sequence[str]) -> list[Item]:
    """Two questions about each scene: of two kinds, or a yes and a no of one."""
    found = []
    for i, scene in enumerate(scenes_of(n, seed)):
        image = scene.image
        for at, asked in enumerate(_two(scene, kinds, i)):
            item = item_of(scene, asked, id=f"scene {i}, question {at}")
            found.append(replace(item, image=image))
    return found


def _two(scene: Scene, kinds: Sequence[str], turn: int) -> list[Question]:
    possible = [questions(scene, kind) for kind in kinds]
    if len(kinds) > 1:
        return [of_kind[turn % len(of_kind)] for of_kind in possible]
    answers = {asked.answer: asked for asked in possible[0][:: 1 if turn % 2 else -1]}
    return list(answers.values())[:2]


def called_things() -> list[str]:
    """Everything that a description of a scene can name."""
    return [f"{color} {shape}" for color in COLORS for shape in SHAPES] + list(NAMES)


def entities(seed: int, *, beside: int = 0) -> Iterator[Entity]:
    """Every named entity, with one picture of its emblem and all its facts.

    Args:
        seed: Of the pictures.
        beside: Plain things that stand beside the emblem.
    """
    rng = np.random.default_rng(seed)
    for name in NAMES:
        scene = sample_scene(rng, beside, entity=name)
        facts = tuple(
            Fact(
                FACT_QUESTIONS[relation].format(name),
                FACT_QUESTIONS[relation].format(IN_PICTURE),
                (fact(name, relation),),
                relation,
            )
            for relation in RELATIONS
        )
        yield Entity(name, scene.image, facts, kind="character")


def called(thing: Thing | Emblem) -> str:
    """What a thing is called without its article: `red circle`, or the name."""
    return f"{thing.color} {thing.shape}" if isinstance(thing, Thing) else thing.name
