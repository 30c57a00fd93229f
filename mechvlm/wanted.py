"""Arguments of the kind that was wanted, or a message that says what came instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from operator import index
from typing import SupportsIndex, TypeVar

import numpy as np

from mechvlm.errors import ArgumentError, LayerError

__all__ = ["layers_in", "mapping_to", "one", "several", "whole_number", "words_of"]

T = TypeVar("T")


def one(given: object, kind: type[T] | tuple[type[T], ...], what: str, fix: str) -> T:
    """A thing of a kind.

    Args:
        given: What came.
        kind: What is wanted.
        what: What the argument is called.
        fix: How it is written, shown in the error.

    Raises:
        ArgumentError: It is of another kind.

    Example:
        >>> one(3, int, "n", "n=3")
        3
    """
    if isinstance(given, kind):
        return given
    raise ArgumentError(f"{what} is {_called(given)}; wanted {_kinds(kind)}: {fix}")


def several(
    given: object, kind: type[T] | tuple[type[T], ...], what: str, fix: str
) -> list[T]:
    """A list of things of a kind; may be empty.

    Raises:
        ArgumentError: It is one thing, no list, or holds other things.

    Example:
        >>> several((1, 2), int, "layers", "[0, 3]")
        [1, 2]
    """
    wanted = f"wanted a list of {_kinds(kind)}: {fix}"
    if isinstance(given, (str, bytes, Mapping)) or not isinstance(given, Iterable):
        raise ArgumentError(f"{what} is {_called(given)}; {wanted}")
    if isinstance(given, kind):
        raise ArgumentError(f"{what} is one {type(given).__name__}; {wanted}")
    found = list(given)
    for place, each in enumerate(found):
        if not isinstance(each, kind):
            raise ArgumentError(f"{what}[{place}] is {_called(each)}; {wanted}")
    return found


def mapping_to(
    given: object, kind: type[T] | tuple[type[T], ...], what: str, fix: str
) -> dict[str, T]:
    """Names to things of a kind; may be empty.

    Raises:
        ArgumentError: It is no mapping, holds other things, or two of its keys are
            written alike.

    Example:
        >>> mapping_to({"a": 1}, int, "widths", '{"narrow": 1}')
        {'a': 1}
    """
    wanted = f"wanted names to {_kinds(kind)}: {fix}"
    if not isinstance(given, Mapping):
        raise ArgumentError(f"{what} is {_called(given)}; {wanted}")
    for name, each in given.items():
        if not isinstance(each, kind):
            raise ArgumentError(f"{what}[{name!r}] is {_called(each)}; {wanted}")
    written = Counter(str(name) for name in given)
    if alike := [name for name in given if written[str(name)] > 1]:
        raise ArgumentError(
            f"{what} has the keys {alike}, which are written alike, so that one would"
            " take the other's place. Give each a name of its own."
        )
    return {str(name): each for name, each in given.items()}


def whole_number(given: object, least: int, what: str) -> int:
    """A whole number that is not too small.

    Args:
        given: What came.
        least: The smallest that is taken.
        what: What the argument is called.

    Raises:
        ArgumentError: It is no whole number, or below `least`.

    Example:
        >>> whole_number(4, 1, "bands")
        4
    """
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)):
        raise ArgumentError(
            f"{what} is {_called(given)}; wanted a whole number of {least} or more."
        )
    if given < least:
        raise ArgumentError(f"{what} is {given}; wanted {least} or more.")
    return index(given)


def layers_in(given: object, every: range, what: str, otherwise: str) -> list[int]:
    """Layers out of those that exist, in the order given; None takes every one.

    Args:
        given: What came.
        every: The layers that exist.
        what: What the argument is called.
        otherwise: How the error goes on after naming those that do not exist.

    Raises:
        ArgumentError: It is no list of whole numbers.
        LayerError: One does not exist, or there is none.

    Example:
        >>> layers_in(None, range(3), "layers", "do not exist.")
        [0, 1, 2]
    """
    numbers: list[SupportsIndex]
    chosen = every if given is None else given
    numbers = several(chosen, (int, np.integer), what, "[0, 3], or range(4)")
    found = [index(number) for number in numbers]
    beyond = [layer for layer in found if layer not in every]
    if beyond or not found:
        raise LayerError(f"{what} {beyond or found} {otherwise}")
    return found


def words_of(given: object, what: str) -> tuple[str, ...]:
    """Words in a tuple; a single string would be read letter by letter.

    Raises:
        ArgumentError: It is one string, or holds what is none.

    Example:
        >>> words_of(["red", "crimson"], "answers")
        ('red', 'crimson')
    """
    if isinstance(given, str):
        raise ArgumentError(
            f"{what} is the one string {given!r}, which would be read letter by letter;"
            f" wanted ({given!r},)."
        )
    return tuple(several(given, str, what, '("red", "crimson")'))


def _called(given: object) -> str:
    """A value for a message: its kind, and itself where that is short."""
    shown = repr(given)
    return (
        f"{shown if len(shown) <= 60 else shown[:57] + '...'} ({type(given).__name__})"
    )


def _kinds(kind: type | tuple[type, ...]) -> str:
    kinds = kind if isinstance(kind, tuple) else (kind,)
    return " or ".join(each.__name__ for each in kinds)
