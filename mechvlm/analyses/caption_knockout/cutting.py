"""Which attention is cut in each arm: a flow of information, in some of the layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, SupportsInt, TypeAlias

import numpy as np

from mechvlm.errors import InterventionError, LayerError
from mechvlm.interventions import Knockout
from mechvlm.layout import Positions
from mechvlm.prompts import Prompt
from mechvlm.statistics import random_sets
from mechvlm.wanted import mapping_to, several

__all__ = ["FLOWS", "NOTHING_CUT", "Cut", "Flow", "cuts_of", "knockout_of"]

Flow: TypeAlias = Literal[
    "image->generated", "image->last+generated", "image->prompt_text", "image->both"
]
"""Who stops reading the image; see `caption_knockout`."""

FLOWS: Mapping[Flow, tuple[str, ...]] = {
    "image->generated": ("generated",),
    "image->last+generated": ("last", "generated"),
    "image->prompt_text": ("prompt_text",),
    "image->both": ("prompt_text", "generated"),
}
"""Flow -> the groups whose positions stop reading the image."""

_STARTS = 8
"""Starts of cuts that are tried unless said otherwise."""


@dataclass(frozen=True, slots=True)
class Cut:
    """Layers in which a flow is cut.

    Attributes:
        name: What tables call it.
        layers: The layers, none for the arm in which nothing is cut.
        start: The layer from which on all are cut; -1 where it is another kind of cut.
    """

    name: str
    layers: tuple[int, ...]
    start: int = -1


NOTHING_CUT = "nothing"


def cuts_of(
    n_layers: int,
    start_layers: Sequence[int] | None,
    bands: Mapping[str, range],
    *,
    n_random: int,
    seed: int,
) -> list[Cut]:
    """Every cut, the empty one first; arguments as in `caption_knockout`.

    Raises:
        ArgumentError: A band is no range, or the layers are no list of numbers.
        InterventionError: There is nothing to cut.
        LayerError: A layer or a band does not exist.
    """
    mapping_to(bands, range, "bands", '{"middle": range(8, 16)}')
    every = range(n_layers)
    step = max(1, n_layers // _STARTS)
    given = every[::step] if start_layers is None else start_layers
    numbers: list[SupportsInt]
    numbers = several(given, (int, np.integer), "start_layers", "[0, 8, 16]")
    starts = [int(layer) for layer in numbers]
    beyond = [layer for layer in starts if layer not in every]
    if beyond or len(set(starts)) < len(starts):
        raise LayerError(
            f"start_layers={starts}: wanted different layers of 0..{n_layers - 1}."
        )
    if not starts and not bands:
        raise InterventionError(
            "there is no layer to start from and no band, so nothing would be cut. Give"
            ' start_layers=[0], or bands={"middle": range(8, 16)}.'
        )
    if n_random < 0:
        raise InterventionError(f"n_random={n_random}: wanted 0 or more.")
    cuts = [Cut(NOTHING_CUT, (), n_layers)]
    cuts += [Cut(f"from {at}", tuple(every[at:]), at) for at in starts]
    for number, (name, band) in enumerate(bands.items()):
        _check_band(name, band, every)
        cuts += _in_and_out(name, frozenset(band), every)
        draw = _drawn(every, frozenset(band), seed + 1000 * number)
        for i in range(n_random):
            cuts += _in_and_out(f"{name}, random {i}", next(draw), every)
    return cuts


def knockout_of(flow: Flow, cut: Cut, prompt: Prompt, max_new_tokens: int) -> Knockout:
    """A cut of a flow in a prompt and the tokens that follow it.

    The last new token is never fed back in, so it has no position to cut.

    Raises:
        InterventionError: The prompt has no position that the flow could reach.
    """
    layout = prompt.layout
    new = Positions.of(range(layout.n, layout.n + max_new_tokens - 1))
    target = Positions()
    for group in FLOWS[flow]:
        target = target | layout[group] | (new if group == "generated" else Positions())
    return Knockout(cut.layers, target, layout["image"])


def _check_band(name: str, band: range, every: range) -> None:
    if not band or not set(band) <= set(every):
        raise LayerError(
            f"band {name!r} is {band}: wanted one or more layers of"
            f" 0..{every.stop - 1}, as a half-open range."
        )
    if len(band) == len(every):
        raise LayerError(
            f"band {name!r} holds every layer, so that a cut in all but it would cut"
            " nothing. To cut every layer, use start_layers=[0]."
        )


def _in_and_out(name: str, band: frozenset[int], every: range) -> tuple[Cut, Cut]:
    """A cut in a band, and one in all layers but it."""
    inside = tuple(layer for layer in every if layer in band)
    outside = tuple(layer for layer in every if layer not in band)
    return Cut(f"in {name}", inside), Cut(f"not in {name}", outside)


def _drawn(every: range, band: frozenset[int], seed: int) -> Iterator[frozenset[int]]:
    """Random sets of as many layers as a band has, none of them the band itself."""
    while True:
        (drawn,) = random_sets(Positions.of(every), len(band), seed=seed)
        seed += 1
        if frozenset(drawn) != band:
            yield frozenset(drawn)
