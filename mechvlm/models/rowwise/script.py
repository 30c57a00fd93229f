"""What the items of a pass do: writes, cuts and readings, layer by layer."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvlm.cone import ENTERED, LEFT, place_of
from mechvlm.interventions import Knockout, parts
from mechvlm.models.family import Layer
from mechvlm.models.lowering import Sources
from mechvlm.models.rowwise.batches import Item, Placed
from mechvlm.models.rowwise.edits import (
    Write,
    edited,
    edits_of,
    writes_of,
)
from mechvlm.models.rowwise.row_attention import Cuts, Masks
from mechvlm.models.taps import output_weights, tap_site
from mechvlm.sites import Component, Site

__all__ = ["BEFORE", "BEHIND", "Heard", "Script"]

BEFORE = frozenset({"q", "k", "v"})
BEHIND = frozenset({"z", "result", "attn_out", "resid_mid", "mlp_post", "mlp_out"})
"""Components of a layer before and behind the attention itself."""


@dataclass(frozen=True, eq=False)
class Heard:
    """What was read of an activation, at the rows of one item.

    Attributes:
        rows: The positions.
        values: What stood there, a row each.
    """

    rows: range
    values: Float[Tensor, "row ..."]

    def at(self, positions: Iterable[int]) -> Float[Tensor, "position ..."]:
        """The values at some of the positions."""
        return self.values[[position - self.rows.start for position in positions]]


class Script:
    """The writes, cuts and readings of all items of a pass.

    Attributes:
        masks: The masks of the pass.
        heard: What was read, by item and site.
    """

    def __init__(
        self, items: Sequence[Item], sources: Sources, n_heads: int, n: int
    ) -> None:
        """Sort what the items do, on a sequence of `n` positions."""
        self.masks = Masks(n_heads, n)
        self.heard: dict[tuple[int, Site], Heard] = {}
        self._sources = sources
        self._writes: dict[tuple[int, str], dict[int, list[Write]]]
        self._writes = defaultdict(dict)
        self._hears: dict[tuple[int, str], dict[int, list[Site]]] = defaultdict(dict)
        self._cuts: dict[int, list[tuple[frozenset[int], int]]] = {}
        for i, item in enumerate(items):
            for place, writes in writes_of(item.intervention).items():
                self._writes[place][i] = writes
            for site in item.hears:
                self._hears[place_of(site)].setdefault(i, []).append(site)
            found = parts(item.intervention)
            cuts = [part for part in found if isinstance(part, Knockout)]
            if cuts:
                numbers = map(self.masks.number, cuts)
                layers = (frozenset(cut.layers) for cut in cuts)
                self._cuts[i] = list(zip(layers, numbers, strict=True))

    def cuts(self, number: int, item: int) -> Cuts:
        """What an item cuts in a layer."""
        cuts = self._cuts.get(item, ())
        return tuple(cut for layers, cut in cuts if number in layers)

    def waits(self, number: int, component: str) -> bool:
        """Whether any item writes or reads a component of a layer."""
        key = number, component
        return key in self._writes or key in self._hears

    def reads(self, number: int, component: str) -> bool:
        """Whether any item reads a component of a layer."""
        return (number, component) in self._hears

    def called(
        self,
        layer: Layer,
        number: int,
        rows: Float[Tensor, "row d_model"],
        *,
        given: Mapping[str, Any],
        places: Mapping[int, Placed],
        components: Iterable[str],
        d_head: int,
    ) -> Float[Tensor, "row d_model"]:
        """What a layer makes of flat rows, with all that is done to its components.

        Args:
            layer: The layer's modules.
            number: Which layer that is.
            rows: The rows that enter it.
            given: What else it is called with.
            places: Where the rows of each item stand.
            components: Components whose writes are made and whose readings are taken.
            d_head: Width of a head.
        """
        with ExitStack() as stack:
            for component in sorted(components):
                if not self.waits(number, component):
                    continue
                if component == "result":
                    self._tap_result(stack, layer, number, places, d_head)
                    continue
                hear = partial(self.through, number, component, places)
                tap_site(stack, layer, cast("Component", component), hear, d_head)
            out = layer.whole(rows[None], attention_mask=None, **given)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found[0]

    def between(
        self,
        number: int,
        places: Mapping[int, Placed],
        rows: Float[Tensor, "row d_model"],
    ) -> Float[Tensor, "row d_model"]:
        """The stream on its way into a layer, with all that is done to it."""
        left = self.through(number, LEFT, places, rows[None])
        return self.through(number, ENTERED, places, left)[0]

    def through(
        self,
        number: int,
        component: str,
        places: Mapping[int, Placed],
        activation: Float[Tensor, "1 row ..."],
    ) -> Float[Tensor, "1 row ..."]:
        """An activation after all writes to it; what is to be read of it is kept.

        Args:
            number: The layer.
            component: Its component.
            places: Where the rows of each item stand in the activation.
            activation: The rows.
        """
        writes = self._writes.get((number, component), {})
        found = [(places[i], each) for i, each in writes.items() if i in places]
        if found:
            shape = tuple(activation.shape[2:])
            edits = edits_of(found, shape, self._sources, activation)
            activation = edited(activation, edits)
        for i, sites in self._hears.get((number, component), {}).items():
            if i in places and places[i].rows:
                rows = slice(places[i].start, places[i].start + len(places[i].rows))
                for site in sites:
                    heard = activation[0, rows]
                    of_head = heard if site.head is None else heard[:, site.head]
                    self.heard[i, site] = Heard(places[i].rows, of_head.clone())
        return activation

    def _tap_result(
        self,
        stack: ExitStack,
        layer: Layer,
        number: int,
        places: Mapping[int, Placed],
        d_head: int,
    ) -> None:
        """Each head's own addition to the stream, of the rows that need it alone."""
        key = number, "result"
        busy = self._writes.get(key, {}).keys() | self._hears.get(key, {}).keys()
        rows, few = [torch.empty(0, dtype=torch.long)], {}
        for i in sorted(busy & places.keys()):
            start, n = places[i].start, len(places[i].rows)
            few[i] = replace(places[i], start=sum(map(len, rows)))
            rows.append(torch.arange(start, start + n))
        at = torch.cat(rows)
        w_o = output_weights(layer, d_head)

        def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
            z = args[0][:, at.to(output.device)].unflatten(-1, (-1, d_head))
            result = torch.einsum("bphe,hed->bphd", z, w_o)
            new = self.through(number, "result", few, result)
            if new is result:
                return output
            total = new.sum(dim=2)
            if layer.o.bias is not None:
                total = total + layer.o.bias
            # Not output + (new - result): a norm behind blows up what rounding leaves.
            written = (new != result).flatten(2).any(dim=2, keepdim=True)
            here, output = at.to(output.device), output.clone()
            output[:, here] = torch.where(written, total, output[:, here])
            return output

        stack.callback(layer.o.register_forward_hook(hook).remove)
