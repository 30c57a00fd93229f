"""What an experiment asks: pictures with their questions and what is known of both."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeAlias

import numpy as np
from jaxtyping import Bool
from PIL import Image

from mechvlm.errors import PromptError
from mechvlm.layout import Box
from mechvlm.wanted import mapping_to, several, words_of

__all__ = ["Area", "Entity", "Fact", "Item", "Picture", "by_picture", "class_of"]

Picture: TypeAlias = Image.Image | str | Path
"""A picture, or the path of one."""

Area: TypeAlias = Box | Bool[np.ndarray, "height width"]
"""A box (left, top, right, bottom) or a mask, in pixels of the original picture."""


@dataclass(frozen=True, eq=False)
class Item:
    """A question about a picture, its right answer, and where things are in it.

    Attributes:
        image: The picture, or its path.
        question: What is asked, without any image placeholder.
        answer: The right answer; "" where none is known.
        objects: Name of each object, in words -> where it is. A second one of a class
            is told apart by a number ("person 2"), which `class_of` leaves out. A box
            may be a list, as in JSON, and is kept as a tuple.
        target: Which of the objects the answer depends on; None if on no single one.
        prefix: Start of the assistant's answer ("It is a").
        id: What tables call it.
    """

    image: Picture
    question: str
    answer: str = ""
    objects: Mapping[str, Area] = field(default_factory=dict)
    target: str | None = None
    prefix: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        """Tell boxes from masks, and refuse a target that is none of the objects."""
        fix = '{"ball": (left, top, right, bottom)}, or a mask'
        kinds = tuple, list, np.ndarray
        given: dict[str, Sequence[object] | np.ndarray]
        given = mapping_to(self.objects, kinds, "Item.objects", fix)
        areas = {name: _area(each, name) for name, each in given.items()}
        object.__setattr__(self, "objects", areas)
        if self.target is not None and self.target not in self.objects:
            raise PromptError(
                f"target {self.target!r} is none of the item's objects, which are"
                f" {', '.join(self.objects) or 'none'}."
            )

    @property
    def area(self) -> Area:
        """Where the target is.

        Raises:
            PromptError: There is no target.
        """
        if self.target is None:
            raise PromptError(
                f"item {self.id or self.question!r} names no target, so there is no"
                " object to speak of. Give Item(..., objects={name: box}, target=name)."
            )
        return self.objects[self.target]


@dataclass(frozen=True)
class Fact:
    """One thing that is true of an entity, asked in two ways.

    Attributes:
        by_name: The question with the entity's name in it, asked without a picture.
        by_picture: The question about "the person in this image", or the like.
        answers: Everything that counts as right.
        relation: What is asked, in a word.
    """

    by_name: str
    by_picture: str
    answers: tuple[str, ...]
    relation: str = ""

    def __post_init__(self) -> None:
        """Refuse one string for several answers."""
        answers = words_of(self.answers, f"Fact.answers to {self.by_name!r}")
        object.__setattr__(self, "answers", answers)


@dataclass(frozen=True, eq=False)
class Entity:
    """Someone or something with a name, a picture and facts.

    Attributes:
        name: What it is called.
        image: A picture of it, or its path.
        facts: What is asked about it.
        kind: Celebrity, landmark, painting, ... ; chooses the question of recognition.
        aliases: Other names that count.
        id: What tables call it; the name if empty.
    """

    name: str
    image: Picture
    facts: tuple[Fact, ...]
    kind: str = ""
    aliases: tuple[str, ...] = ()
    id: str = ""

    def __post_init__(self) -> None:
        """Refuse one string for several names, and one fact for several."""
        aliases = words_of(self.aliases, f"Entity.aliases of {self.name!r}")
        fix = 'facts=(Fact(by_name, by_picture, ("Paris",)),)'
        facts = several(self.facts, Fact, f"Entity.facts of {self.name!r}", fix)
        object.__setattr__(self, "aliases", aliases)
        object.__setattr__(self, "facts", tuple(facts))

    @property
    def golds(self) -> tuple[str, ...]:
        """Every name that counts."""
        return (self.name, *self.aliases)


def class_of(name: str) -> str:
    """What an object is called in words: its name in `Item.objects` without its number.

    Args:
        name: Such as "person 2", the second person of a picture.

    Example:
        >>> class_of("person"), class_of("traffic light 12")
        ('person', 'traffic light')
    """
    return re.sub(r"(?<=\S)\s+\d+$", "", name)


def _area(given: Sequence[object] | np.ndarray, name: str) -> Area:
    """A box as a tuple of four numbers, a mask as it is.

    Raises:
        PromptError: It is neither.
    """
    if isinstance(given, np.ndarray) and given.ndim == 2:
        return given
    numbers = [each for each in given if isinstance(each, int | float | np.number)]
    if len(numbers) == len(given) == 4:
        left, top, right, bottom = (
            float(each) if isinstance(each, np.number) else each for each in numbers
        )
        return left, top, right, bottom
    raise PromptError(
        f"object {name!r} is at {str(given)[:60]}, which is no box of four numbers"
        " (left, top, right, bottom) and no mask. A mask is a bool array"
        " [height width]: np.array(rows, dtype=bool)."
    )


def by_picture(items: Sequence[Item]) -> list[list[int]]:
    """Which items are about one picture: the same object, or the same path.

    Args:
        items: Questions with pictures.

    Returns:
        Indices of the items of each picture, pictures in the order they first come in.

    Example:
        >>> by_picture([Item("a.png", "?"), Item("b.png", "?"), Item("a.png", "!")])
        [[0, 2], [1]]
    """
    groups: dict[int | str, list[int]] = {}
    for at, item in enumerate(items):
        # A picture's identity is its own as long as its item is held.
        drawn = isinstance(item.image, Image.Image)
        key = id(item.image) if drawn else str(item.image)
        groups.setdefault(key, []).append(at)
    return list(groups.values())
