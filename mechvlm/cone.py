"""The causal cone: which cells an intervention can change, and which the answer needs.

A cell is one position in one layer. A set of positions is an int with one bit per
position. Who may read whom comes from the masks that each layer really used: causal,
windowed, or with an image whose positions read one another both ways.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import reduce
from itertools import accumulate
from operator import or_
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor

from mechvlm.interventions import Intervention, Knockout, PathPatch, parts
from mechvlm.sites import Site

__all__ = [
    "ENTERED",
    "LEFT",
    "Cells",
    "Cones",
    "Reads",
    "Step",
    "cells_of",
    "place_of",
    "positions_of",
    "reach",
    "span",
]

Cells = int
"""A set of positions: bit p stands for position p."""


LEFT, ENTERED = "left", "entered"
"""The stream between two layers: as the first leaves it, and as it enters the next."""


def place_of(site: Site) -> tuple[int, str]:
    """Layer and component under which a site is found; the stream's by where it goes.

    Example:
        >>> place_of(Site("resid_post", 3)), place_of(Site("resid_pre", 4))
        ((4, 'left'), (4, 'entered'))
    """
    layer = site.layer or 0
    if site.component == "resid_post":
        return layer + 1, LEFT
    if site.component in ("embed", "resid_pre"):
        return layer, ENTERED
    return layer, site.component


def cells_of(positions: Iterable[int]) -> Cells:
    """The set of some positions.

    Example:
        >>> cells_of([0, 3])
        9
    """
    return reduce(or_, (1 << position for position in positions), 0)


def positions_of(cells: Cells) -> Iterator[int]:
    """The positions of a set, in rising order.

    Example:
        >>> list(positions_of(9))
        [0, 3]
    """
    while cells:
        yield (cells & -cells).bit_length() - 1
        cells &= cells - 1


def span(cells: Cells) -> range:
    """The shortest range that holds a set.

    Example:
        >>> span(0b10100)
        range(2, 5)
    """
    if not cells:
        return range(0)
    return range((cells & -cells).bit_length() - 1, cells.bit_length())


class Reads:
    """Who may read whom in each layer, as sets.

    Layers of the same mask share their sets, and every question is answered once.
    """

    def __init__(self, masks: Sequence[Bool[Tensor, "position position"]]) -> None:
        """Take one mask per layer: `masks[layer][t, s]`, whether t may read s."""
        self.n_layers, self.n = len(masks), len(masks[0])
        self.everything = (1 << self.n) - 1
        kinds: dict[bytes | int, _Mask] = {}
        self._layers: list[_Mask] = []
        for mask in masks:
            if id(mask) not in kinds:
                packed = _packed(mask)
                kinds[id(mask)] = kinds.setdefault(
                    packed.tobytes(), _Mask(packed, mask)
                )
            self._layers.append(kinds[id(mask)])
        self._masks = tuple(masks)  # alive, so that no id is given out twice

    def readable(self, layer: int, target: int) -> Cells:
        """What one position may read."""
        return self._layers[layer].rows[target]

    def readers(self, layer: int, source: Cells) -> Cells:
        """Every position that may read at least one of some sources."""
        return self._layers[layer].union("cols", source)

    def sources(self, layer: int, target: Cells) -> Cells:
        """Every position that at least one of some targets may read."""
        return self._layers[layer].union("rows", target)

    def kind(self, layer: int) -> int:
        """A number that layers of the same mask share."""
        return id(self._layers[layer])

    def mask(self, layer: int) -> Bool[Tensor, "position position"]:
        """The mask itself: whether a target (row) may read a source (column)."""
        return self._layers[layer].mask

    def pairs(self, layer: int, rows: range) -> int:
        """How many pairs of a target among some rows and a source are allowed."""
        ahead = self._layers[layer].ahead
        return ahead[rows.stop] - ahead[rows.start]

    def needed(self, last: int) -> list[Cells]:
        """What the answers from the position `last` on can depend on.

        Returns:
            For each boundary 0..n_layers (before each layer, and behind the last one)
            the positions of the stream that matter there.
        """
        matters = [self.everything & -(1 << last)]
        for layer in reversed(range(self.n_layers)):
            matters.append(matters[-1] | self.sources(layer, matters[-1]))
        return matters[::-1]


class _Mask:
    """One mask, row by row and column by column, with the unions already asked for."""

    def __init__(self, packed: np.ndarray, mask: Tensor) -> None:
        self.mask = mask
        self.rows = [int.from_bytes(row.tobytes(), "little") for row in packed]
        columns = _packed(mask.T)
        self.cols = [int.from_bytes(row.tobytes(), "little") for row in columns]
        self.ahead = [0, *accumulate(row.bit_count() for row in self.rows)]
        self._known: dict[tuple[str, Cells], Cells] = {}

    def union(self, of: str, cells: Cells) -> Cells:
        key = (of, cells)
        if key not in self._known:
            sets = self.rows if of == "rows" else self.cols
            self._known[key] = reduce(or_, (sets[p] for p in positions_of(cells)), 0)
        return self._known[key]


def _packed(mask: Tensor) -> np.ndarray:
    return np.packbits(mask.cpu().numpy(), axis=1, bitorder="little")


def reach(
    reads: Bool[Tensor, "layer position position"], layer: int, at: Iterable[int]
) -> Bool[Tensor, "boundary position"]:
    """Cells of the stream that a write to the stream entering `layer` can change.

    Nothing is assumed of the masks' shape.

    Args:
        reads: Whether a target position (second axis) may read a source, per layer.
        layer: 0-based layer before which the stream is written; the number of layers
            stands for the end of the last one.
        at: Positions that are written.

    Returns:
        One row per boundary: the stream entering layer 0, 1, ... and leaving the last.
        Every cell outside keeps its clean value.

    Example:
        >>> causal = torch.ones(2, 3, 3).tril().bool()
        >>> reach(causal, 1, [1]).int().tolist()
        [[0, 0, 0], [0, 1, 0], [0, 1, 1]]
    """
    known, changed = Reads(list(reads)), cells_of(at)
    found = torch.zeros(len(reads) + 1, reads.shape[1], dtype=torch.bool)
    for boundary in range(layer, len(reads) + 1):
        found[boundary, list(positions_of(changed))] = True
        if boundary < len(reads):
            changed |= known.readers(boundary, changed)
    return found


@dataclass(frozen=True, slots=True)
class Step:
    """What one layer has to compute again for one intervention.

    Attributes:
        layer: The layer.
        rows: Positions whose keys and values may differ, or whose output is needed.
        out: Positions whose output is needed; all of them are among the rows.
        attends: Whether attention is computed again. Where it is not, all heads keep
            what they gave in the base run, and only what comes after differs.
        n_out: How many positions need their output computed: without the holes that
            the range `out` has.
        n_keys: How many others only need their keys and values computed.
    """

    layer: int
    rows: range
    out: range
    attends: bool
    n_out: int
    n_keys: int = 0


class Cones:
    """The cones of many interventions on one prompt; equal ones are found once."""

    def __init__(self, reads: Reads, last: int) -> None:
        """Take the masks that the layers used, and the last position of the prompt.

        Positions behind it, if the masks have any, are still to be generated. They are
        computed later, from keys and values that the cones then include.
        """
        self.reads = reads
        self._needed = reads.needed(last)
        self._prompt = (1 << (last + 1)) - 1
        self._known: dict[_Touches, tuple[Step, ...]] = {}

    def of(self, intervention: Intervention) -> tuple[Step, ...]:
        """Every layer that an intervention makes necessary to compute again.

        Args:
            intervention: Without path patches; those consist of several runs.

        Returns:
            Steps in the order of the layers, closed by one at the end of the last layer
            (its layer is the number of layers). None at all where nothing that the
            answer depends on can change.
        """
        touched = _touches(intervention)
        if touched not in self._known:
            self._known[touched] = tuple(self._steps(touched))
        return self._known[touched]

    def felt(self, site: Site) -> Cells:
        """Positions at which an activation matters to the answer."""
        layer, place = place_of(site)
        if place in (LEFT, ENTERED):
            return self._needed[layer]
        needed = self._needed[layer + 1]
        return self.reads.sources(layer, needed) if place in ("k", "v") else needed

    def _steps(self, touched: _Touches) -> Iterator[Step]:
        stream, keys, queries, late = (
            {layer: cells & self._prompt for layer, cells in each} for each in touched
        )
        changed = 0  # at the boundary before the layer
        for layer in range(self.reads.n_layers):
            changed |= stream.get(layer, 0)
            own_keys = changed | keys.get(layer, 0)
            attended = changed | queries.get(layer, 0)
            attended |= self.reads.readers(layer, own_keys) & self._prompt
            changed = attended | late.get(layer, 0)
            step = self._step(layer, own_keys, attended, changed)
            if step is not None:
                yield step
        changed |= stream.get(self.reads.n_layers, 0)
        last = changed & self._needed[-1]
        if last:
            rows = span(last)
            yield Step(self.reads.n_layers, rows, rows, False, last.bit_count())

    def _step(
        self, layer: int, keys: Cells, attended: Cells, changed: Cells
    ) -> Step | None:
        """What a layer computes again of what is changed in and behind it."""
        needed = self._needed[layer + 1]
        out = changed & needed
        keys &= self.reads.sources(layer, out | (needed & ~self._prompt))
        if not out | keys:
            return None
        rows, n_keys = span(out | keys), (keys & ~out).bit_count()
        attends = bool(keys or attended & needed)
        return Step(layer, rows, span(out), attends, out.bit_count(), n_keys)


class _Touches(NamedTuple):
    """What an intervention writes or cuts: pairs of a layer and positions."""

    stream: tuple[tuple[int, Cells], ...]  # by boundary
    keys: tuple[tuple[int, Cells], ...]  # keys or values
    queries: tuple[tuple[int, Cells], ...]  # or cut rows
    late: tuple[tuple[int, Cells], ...]  # behind the attention


_STAGE = {LEFT: 0, ENTERED: 0, "k": 1, "v": 1, "q": 2}


def _touches(intervention: Intervention) -> _Touches:
    found: tuple[dict[int, Cells], ...] = ({}, {}, {}, {})
    for part in parts(intervention):
        if isinstance(part, PathPatch):
            raise TypeError(f"{part!r} must be lowered before its cone is known")
        if isinstance(part, Knockout):
            target = cells_of(part.target)
            for layer in part.layers:
                found[2][layer] = found[2].get(layer, 0) | target
            continue
        layer, place = place_of(part.site)
        stage = found[_STAGE.get(place, 3)]
        stage[layer] = stage.get(layer, 0) | cells_of(part.at)
    return _Touches(*(tuple(sorted(each.items())) for each in found))
