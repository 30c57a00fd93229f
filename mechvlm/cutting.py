"""Cuts of attention: their answer, what they reach, and draws of others like them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import reduce
from itertools import islice
from operator import index, or_
from typing import Literal, SupportsIndex, TypeAlias

import numpy as np

from mechvlm.cone import Cells, Reads, cells_of, positions_of
from mechvlm.errors import ArgumentError, TokenError
from mechvlm.interventions import Knockout
from mechvlm.layout import Positions
from mechvlm.models.hooked import HookedVLM
from mechvlm.wanted import one

__all__ = [
    "Reach",
    "answer_of",
    "answer_token",
    "draws_of",
    "ends",
    "moved",
    "reach_of",
    "whole",
]

Reach = Literal["cuts", "never reads", "blind row", "cannot reach the answer"]
"""What a cut does: "never reads", the mask forbids all its pairs already; "blind row",
it would leave a target nothing to read; "cannot reach the answer", no later layer reads
what it changes."""


_ATTEMPTS = 10
"""Tries for each draw that is wanted: the same one may come again."""


def whole(given: object, what: str, fix: str) -> int:
    """A whole number; true and false are none.

    Raises:
        ArgumentError: It is something else.

    Example:
        >>> whole(3, "width", "width=3")
        3
    """
    kinds: tuple[type[SupportsIndex], ...] = (int, np.integer)
    number = one(given, kinds, what, fix)
    if isinstance(given, bool):
        raise ArgumentError(f"{what} is {given} (bool); wanted a whole number: {fix}")
    return index(number)


def answer_of(given: object, what: str) -> str | int:
    """An answer as it is asked for: a word, or a token id.

    Raises:
        ArgumentError: It is neither; true and false are no token ids.

    Example:
        >>> answer_of("red", "answer")
        'red'
    """
    if isinstance(given, str):
        return given
    fix = '"red", or a token id'
    one(given, (str, int), what, fix)
    return whole(given, what, fix)


def answer_token(vlm: HookedVLM, answer: str | int) -> int:
    """The answer's token id.

    Raises:
        ArgumentError: It is neither a word nor an id.
        TokenError: It is not exactly one token, or no token has this id.

    Example:
        >>> import mechvlm as mv
        >>> vlm = mv.load("demo")
        >>> answer_token(vlm, "red") == vlm.to_single_token("red")
        True
    """
    answer = answer_of(answer, "answer")
    if isinstance(answer, str):
        return vlm.to_single_token(answer)
    if not 0 <= answer < vlm.cfg.d_vocab:
        raise TokenError(
            f"token id {answer} is outside the vocabulary, 0..{vlm.cfg.d_vocab - 1}."
        )
    return answer


def ends(windows: Sequence[range], dim: str) -> dict[str, tuple[str, list[int]]]:
    """First and last layer of each window, as coordinates of a dimension.

    Example:
        >>> ends([range(0, 2), range(2, 5)], "band")
        {'first': ('band', [0, 2]), 'last': ('band', [1, 4])}
    """
    firsts, lasts = ([each[end] for each in windows] for end in (0, -1))
    return {"first": (dim, firsts), "last": (dim, lasts)}


def reach_of(reads: Reads, cut: Knockout, last: int) -> Reach:
    """Whether a cut of all heads can be run, and whether it does anything.

    Args:
        reads: Who may read whom.
        cut: The cut.
        last: The position that answers.
    """
    source, needed = cells_of(cut.source), reads.needed(last)
    found: Reach = "never reads"
    for layers in _kinds(reads, cut.layers):
        matters = reduce(or_, (needed[layer + 1] for layer in layers))
        for target in cut.target:
            readable = reads.readable(layers[0], target)
            if readable and not readable & ~source:
                return "blind row"
            if readable & source and found != "cuts":
                felt = matters >> target & 1
                found = "cuts" if felt else "cannot reach the answer"
    return found


def draws_of(
    reads: Reads, cut: Knockout, pool: Positions, *, n: int, seed: Sequence[int]
) -> list[tuple[Knockout, ...]]:
    """Random cuts of the same size, of which a cut's control is the mean.

    In every layer each target reads as many positions less as under the cut itself,
    drawn evenly from those of the pool that it may read there. Targets that may choose
    among the same positions lose the same ones.

    Args:
        reads: Who may read whom.
        cut: A cut of all heads.
        pool: Positions that may be cut in the place of the source.
        n: How many different ones to draw.
        seed: Of the draws.

    Returns:
        Different draws, each of them one intervention: `n`, or fewer where there are
        hardly more. None if a target may read fewer positions of the pool than the cut
        takes from it, or the cut takes none.

    Example:
        >>> import mechvlm as mv
        >>> vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
        >>> prompt = vlm.prompt("how many objects are there ?", scene.image)
        >>> at = prompt.layout
        >>> source = at.region(scene.box(0))
        >>> cut = mv.Knockout(range(2), at["last"], source)
        >>> reads = mv.base_run(vlm, prompt).base.reads
        >>> ((drawn,),) = draws_of(reads, cut, at["image"] - source, n=1, seed=[0])
        >>> len(drawn.source) == len(source), drawn.source & source
        (True, Positions())
    """
    choices = _choices(reads, cut, cells_of(pool))
    if not choices or any(
        cells.bit_count() < size for _, rows in choices for cells, size in rows
    ):
        return []
    # What no target may read, such as padding, must not stir the draws.
    candidates = reduce(or_, (cells for _, rows in choices for cells, _ in rows), 0)
    places = list(positions_of(candidates))
    rng = np.random.default_rng(list(seed))
    found: dict[tuple[Knockout, ...], None] = {}
    for _ in range(_ATTEMPTS * n):
        order = [places[i] for i in rng.permutation(len(places))]
        parts = [_drawn(layers, rows, order) for layers, rows in choices]
        found[tuple(part for each in parts for part in each)] = None
        if len(found) == n:
            break
    return list(found)


def moved(
    reads: Reads, draws: Iterable[tuple[Knockout, ...]], layers: Iterable[int]
) -> list[tuple[Knockout, ...]]:
    """The same draws in other layers, whose masks are those of the layers before.

    Args:
        reads: Who may read whom.
        draws: What `draws_of` found.
        layers: Layers that use the same masks.

    Example:
        >>> import torch
        >>> reads = Reads([torch.ones(4, 4).tril().bool()] * 2)
        >>> cut = Knockout((0,), Positions.of(3), Positions.of(1))
        >>> drawn = draws_of(reads, cut, Positions.of(2), n=1, seed=[0])
        >>> moved(reads, drawn, [1])
        [(Knockout(layers=(1,), target=Positions(3), source=Positions(2), heads=None),)]
    """
    there = {reads.kind(each[0]): each for each in _kinds(reads, layers)}
    return [
        tuple(replace(part, layers=there[reads.kind(part.layers[0])]) for part in drawn)
        for drawn in draws
    ]


_Rows: TypeAlias = dict[tuple[Cells, int], list[int]]
"""What a target may read of the pool, and how much of it it loses: the targets."""


def _choices(
    reads: Reads, cut: Knockout, pool: Cells
) -> list[tuple[tuple[int, ...], _Rows]]:
    """From what each target may lose how many positions, by layers of one mask."""
    source, found = cells_of(cut.source), []
    for layers in _kinds(reads, cut.layers):
        rows: _Rows = {}
        for target in cut.target:
            readable = reads.readable(layers[0], target)
            if size := (readable & source).bit_count():
                rows.setdefault((readable & pool, size), []).append(target)
        if rows:
            found.append((layers, rows))
    return found


def _drawn(layers: tuple[int, ...], rows: _Rows, order: list[int]) -> list[Knockout]:
    """The cuts of one draw: each target loses the first in order that it may read."""
    found: dict[Positions, list[int]] = {}
    for (cells, size), targets in rows.items():
        allowed = (place for place in order if cells >> place & 1)
        found.setdefault(Positions.of(islice(allowed, size)), []).extend(targets)
    return [Knockout(layers, Positions.of(rows), at) for at, rows in found.items()]


def _kinds(reads: Reads, layers: Iterable[int]) -> list[tuple[int, ...]]:
    """Layers of the same mask together, in the order of their first."""
    found: dict[int, list[int]] = {}
    for layer in layers:
        found.setdefault(reads.kind(layer), []).append(layer)
    return [tuple(each) for each in found.values()]
