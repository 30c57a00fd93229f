"""The eight sweeps, in words that belong to no library.

An act is one intervention, and so one forward pass of the plain loop.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import product
from typing import TypeAlias

from arena.geometry import Geometry

WINDOW = 5
"""Layers that a knockout cuts."""


@dataclass(frozen=True, slots=True)
class SwapStream:
    """Put the donor's residual stream into what enters a layer, at one position."""

    layer: int
    at: int


@dataclass(frozen=True, slots=True)
class SwapHead:
    """Put the donor's output of a head in place, from position `start` on."""

    layer: int
    head: int
    start: int


@dataclass(frozen=True, slots=True)
class Cut:
    """In these layers, no `target` position reads a `source` position."""

    layers: range
    target: tuple[int, ...]
    source: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Blank:
    """Put the mean image embedding at these positions of the model's input."""

    at: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Direct:
    """Add what a head's change (donor minus base) writes to the last final stream."""

    layer: int
    head: int


@dataclass(frozen=True, slots=True)
class IntoQuery:
    """Add what a head's change writes to what a later head's last query hears."""

    layer: int
    head: int
    into_layer: int
    into_head: int


Act: TypeAlias = SwapStream | SwapHead | Cut | Blank | Direct | IntoQuery


@dataclass(frozen=True)
class Sweep:
    """A list of acts, and how many times faster than the plain loop it shall be.

    Attributes:
        name: Its short name.
        what: What is done, in words.
        acts: One entry per run.
        mark: The speed-up asked for, base run excluded.
        mark_with_base: The speed-up asked for, base run included, where one is.
    """

    name: str
    what: str
    acts: tuple[Act, ...]
    mark: float
    mark_with_base: float | None = None


def windows(geometry: Geometry) -> list[range]:
    """A window of layers from each layer on, shorter at the end."""
    end = geometry.n_layers
    return [range(at, min(at + WINDOW, end)) for at in range(end)]


def boxes(geometry: Geometry, each_way: int = 8) -> list[tuple[int, ...]]:
    """Boxes of 36 image tokens, spread evenly over the image."""
    room = geometry.side - 6
    corners = [round(i * room / (each_way - 1)) for i in range(each_way)]
    return [geometry.box(row, col) for row in corners for col in corners]


def heads(geometry: Geometry) -> list[tuple[int, int]]:
    """Every layer with every head."""
    return list(product(range(geometry.n_layers), range(geometry.n_heads)))


def cuts(
    geometry: Geometry, target: Iterable[int], sources: Iterable[Iterable[int]]
) -> tuple[Act, ...]:
    """Every source set with every window of layers."""
    to = tuple(target)
    return tuple(
        Cut(layers, to, tuple(source))
        for source in sources
        for layers in windows(geometry)
    )


def residual_patching(geometry: Geometry) -> Sweep:
    """S1: every layer and text position."""
    acts = tuple(
        SwapStream(layer, at)
        for layer in range(geometry.n_layers)
        for at in geometry.text
    )
    return Sweep("S1", "resid_pre, all layers x text positions", acts, 45)


def head_patching(geometry: Geometry, name: str, start: int, mark: float) -> Sweep:
    """S2: every head, from a position on."""
    acts = tuple(SwapHead(layer, head, start) for layer, head in heads(geometry))
    what = {"S2": "every position", "S2text": "the text rows", "S2last": "the last row"}
    return Sweep(name, f"head z at {what[name]}", acts, mark)


def knockout_last(geometry: Geometry) -> Sweep:
    """S3: the last position does not read the image."""
    acts = cuts(geometry, [geometry.n - 1], [geometry.image])
    return Sweep("S3", "cut image -> last", acts, 80)


def knockout_last_many(geometry: Geometry) -> Sweep:
    """S3, for 16 regions of the image in one call."""
    acts = cuts(geometry, [geometry.n - 1], boxes(geometry, 4))
    return Sweep("S3x16", "cut 16 regions -> last", acts, 400)


def knockout_query(geometry: Geometry) -> Sweep:
    """S4: the text but its last position does not read the image."""
    acts = cuts(geometry, geometry.text[:-1], [geometry.image])
    return Sweep("S4", "cut image -> query", acts, 22)


def knockout_map(geometry: Geometry) -> Sweep:
    """S5map: the last position does not read an object's box."""
    acts = cuts(geometry, [geometry.n - 1], boxes(geometry))
    return Sweep("S5map", "cut 64 boxes -> last", acts, 450, 300)


def input_ablation(geometry: Geometry) -> Sweep:
    """S6: a box of image tokens is blanked."""
    acts = tuple(Blank(box) for box in boxes(geometry))
    return Sweep("S6", "blank 36 image tokens", acts, 1.5)


def direct_paths(geometry: Geometry) -> Sweep:
    """S7: from every head straight to the logits."""
    acts = tuple(Direct(layer, head) for layer, head in heads(geometry))
    return Sweep("S7", "head -> logits, direct", acts, 1000)


def paths_into_query(geometry: Geometry) -> Sweep:
    """S8: from every earlier head straight to a late head's query."""
    into = geometry.n_layers - 2, geometry.n_heads // 2
    acts = tuple(
        IntoQuery(layer, head, *into)
        for layer, head in heads(geometry)
        if layer < into[0]
    )
    return Sweep("S8", "head -> a late head's last query, direct", acts, 400)


Maker: TypeAlias = Callable[[Geometry], Sweep]

SWEEPS: dict[str, Maker] = {
    "S1": residual_patching,
    "S2": lambda g: head_patching(g, "S2", g.before, 2.0),
    "S2text": lambda g: head_patching(g, "S2text", g.text[0], 32),
    "S2last": lambda g: head_patching(g, "S2last", g.n - 1, 400),
    "S3": knockout_last,
    "S3x16": knockout_last_many,
    "S4": knockout_query,
    "S5map": knockout_map,
    "S6": input_ablation,
    "S7": direct_paths,
    "S8": paths_into_query,
}
