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
from mechvlm.wanted import mapping_to, one, several, words_of

__all__ = [
    "Area",
    "Entity",
    "Fact",
    "Item",
    "Picture",
    "PicturePair",
    "by_picture",
    "class_of",
]

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
        _check_picture(self.image, "Item.image")
        said = {"question": self.question, "answer": self.answer}
        _check_words({**said, "prefix": self.prefix, "id": self.id}, "Item")
        areas = _areas(self.objects, "Item.objects")
        object.__setattr__(self, "objects", areas)
        _check_target(self.target, areas, "Item")

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


@dataclass(frozen=True, eq=False)
class PicturePair:
    """Two pictures that differ in one thing, and a question whose answer it changes.

    Paper: semantic corruption of Golovanevsky et al. 2024, arXiv:2406.16320.

    Attributes:
        clean: The picture, or its path.
        corrupted: The same picture with one attribute changed, or its path. It must be
            of the same size, or the two have no tokens in common places.
        question: What is asked of both, without any image placeholder.
        answer: The right answer to the clean picture.
        foil: The right answer to the corrupted one.
        objects: Name of each object, in words -> where it is in the clean picture, as
            in `Item`.
        objects_corrupted: Those of the objects that are elsewhere in the corrupted
            picture -> where. The others are taken to be where they were.
        target: Which of the objects differs; None if no single one does.
        change: What differs, in a word ("color").
        prefix: Start of the assistant's answer ("It is a").
        id: What tables call it.

    Example:
        >>> ball = {"ball": (0, 0, 9, 9)}
        >>> pair = PicturePair(
        ...     *("red.png", "blue.png", "What color is the ball?", "Red", "Blue"),
        ...     objects=ball,
        ...     target="ball",
        ... )
        >>> pair.areas
        ((0, 0, 9, 9), (0, 0, 9, 9))
    """

    clean: Picture
    corrupted: Picture
    question: str
    answer: str
    foil: str
    objects: Mapping[str, Area] = field(default_factory=dict)
    objects_corrupted: Mapping[str, Area] = field(default_factory=dict)
    target: str | None = None
    change: str = ""
    prefix: str = ""
    id: str = ""

    def __post_init__(self) -> None:
        """Refuse what asks nothing, or asks what the pictures do not change."""
        _check_picture(self.clean, "PicturePair.clean")
        _check_picture(self.corrupted, "PicturePair.corrupted")
        said = {"question": self.question, "answer": self.answer, "foil": self.foil}
        further = {"change": self.change, "prefix": self.prefix, "id": self.id}
        _check_words({**said, **further}, "PicturePair")
        here = _areas(self.objects, "PicturePair.objects")
        there = _areas(self.objects_corrupted, "PicturePair.objects_corrupted")
        object.__setattr__(self, "objects", here)
        object.__setattr__(self, "objects_corrupted", there)
        empty = [name for name, text in said.items() if not text.strip()]
        if empty:
            raise PromptError(
                f"{empty} of pair {self.id or self.question!r} are empty. Wanted what"
                " is asked, and what is right of each picture."
            )
        if self.answer.strip().casefold() == self.foil.strip().casefold():
            raise PromptError(
                f"answer and foil of pair {self.id or self.question!r} are both"
                f" {self.answer!r}, so that nothing tells the clean picture from the"
                " corrupted one. Wanted what is right of each."
            )
        unknown = sorted(set(there) - set(here))
        if unknown:
            raise PromptError(
                f"objects_corrupted of pair {self.id or self.question!r} names"
                f" {unknown}; its objects are {', '.join(here) or 'none'}. It says"
                " where objects of the clean picture are in the corrupted one."
            )
        _check_target(self.target, here, "PicturePair")

    @property
    def areas(self) -> tuple[Area, Area]:
        """Where the target is in the clean picture, and where in the corrupted one.

        Raises:
            PromptError: There is no target.
        """
        if self.target is None:
            raise PromptError(
                f"pair {self.id or self.question!r} names no target, so there is no"
                " object to speak of. Give PicturePair(..., objects={name: box},"
                " target=name)."
            )
        here = self.objects[self.target]
        return here, self.objects_corrupted.get(self.target, here)


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
        asked = {"by_name": self.by_name, "by_picture": self.by_picture}
        _check_words({**asked, "relation": self.relation}, "Fact")
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
        _check_picture(self.image, "Entity.image")
        told = {"name": self.name, "kind": self.kind, "id": self.id}
        _check_words(told, "Entity")
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


def _areas(given: object, what: str) -> dict[str, Area]:
    """Names of objects to boxes and masks, told apart."""
    fix = '{"ball": (left, top, right, bottom)}, or a mask'
    areas: dict[str, Sequence[object] | np.ndarray]
    areas = mapping_to(given, (tuple, list, np.ndarray), what, fix)
    return {name: _area(each, name) for name, each in areas.items()}


def _check_picture(given: object, what: str) -> None:
    fix = '"ball.png", or a PIL image; of an array PIL.Image.fromarray(array)'
    one(given, (Image.Image, str, Path), what, fix)


def _check_words(given: Mapping[str, object], whose: str) -> None:
    """Refuse what is no text in the attributes of that."""
    for name, text in given.items():
        one(text, str, f"{whose}.{name}", f'{name}="..."')


def _check_target(target: object, objects: Mapping[str, Area], whose: str) -> None:
    if target is None:
        return
    name = one(target, str, f"{whose}.target", "the name of one of its objects")
    if name not in objects:
        raise PromptError(
            f"target {name!r} is none of the {whose}'s objects, which are"
            f" {', '.join(objects) or 'none'}."
        )


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
