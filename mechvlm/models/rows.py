"""Row-wise passes: many interventions at once, each computing only its own rows.

The Hugging Face layers are called unchanged on the rows of all interventions, one below
the other, as one sequence. Only their attention is answered here: own keys for the rows
of an intervention, the base run's for all other positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from mechvlm.cone import Step
from mechvlm.interventions import Intervention, Knockout, parts
from mechvlm.models.attention import Answer, Asked, answering
from mechvlm.models.base import Backbone, Base
from mechvlm.models.edits import STREAM, Placed, edited, edits_of, place_of, writes_of
from mechvlm.models.family import Layer
from mechvlm.models.lowering import Sources
from mechvlm.models.row_attention import Cuts, CutTable, Group, Shared, attend_rows
from mechvlm.models.taps import tap_site
from mechvlm.sites import Component, Site

__all__ = ["WORTH_TWO_CALLS", "Item", "RowPass"]


@dataclass(frozen=True)
class Item:
    """One intervention of a pass.

    Attributes:
        intervention: What is done, without path patches.
        steps: What it makes necessary to compute again, layer by layer.
        hears: Sites whose activation is kept on the way, at all rows of their step.
    """

    intervention: Intervention
    steps: tuple[Step, ...]
    hears: tuple[Site, ...] = ()


@dataclass(frozen=True)
class _Batch:
    """The flat rows of several groups in one layer.

    `places` tells for each item where its rows stand.
    """

    groups: tuple[Group, ...]
    positions: Int[Tensor, " row"]
    places: Mapping[int, Placed]

    @classmethod
    def of(
        cls, items: Mapping[tuple[range, range], list[int]], cuts: _CutsOf
    ) -> _Batch:
        """One group for each pair (rows, out) that several items share."""
        groups, places, positions = [], {}, []
        first_row = first_out = 0
        for (rows, out), members in items.items():
            active = tuple(map(cuts, members))
            group = Group(
                tuple(members),
                rows,
                out,
                first_row,
                first_out,
                active if any(active) else (),
            )
            for i, item in enumerate(members):
                places[item] = Placed(rows, first_row + i * len(rows))
            positions.append(torch.arange(rows.start, rows.stop).repeat(len(members)))
            first_row, first_out = first_row + group.n_rows, first_out + group.n_out
            groups.append(group)
        return cls(tuple(groups), torch.cat(positions), places)

    @property
    def n_rows(self) -> int:
        return len(self.positions)

    def narrowed(self) -> tuple[_Batch, Int[Tensor, " out"]]:
        """The batch of the rows whose output is needed, and where they stand here."""
        kept, places, groups = [], {}, []
        for group in self.groups:
            offset = group.out.start - group.rows.start
            starts = torch.arange(len(group.items)) * len(group.rows) + group.first_row
            each = torch.arange(offset, offset + len(group.out))
            kept.append((starts[:, None] + each).flatten())
            for i, item in enumerate(group.items):
                start = group.first_out + i * len(group.out)
                places[item] = Placed(group.out, start)
            groups.append(group)
        at = torch.cat(kept)
        return _Batch(tuple(groups), self.positions[at], places), at


_CutsOf = Callable[[int], Cuts]


@dataclass(frozen=True)
class _State:
    """Rows of the stream behind a layer, and where those of each item stand."""

    rows: Float[Tensor, "row d_model"]
    places: Mapping[int, Placed]


class _Grabbed(Exception):  # noqa: N818 - it ends a call, it is no error
    """Keys and values are known; the rest of the layer is not wanted."""


class _Known(nn.Module):
    """Stands in for attention whose heads are known to keep what they gave before."""

    def __init__(self, o: nn.Module, z: Tensor) -> None:
        super().__init__()
        self.o = o
        self._z = (z,)

    def forward(self, *_: Any, **__: Any) -> tuple[Tensor, None]:
        return self.o(self._z[0]), None


class RowPass:
    """One pass of several interventions through the layers."""

    def __init__(
        self, vlm: Backbone, base: Base, items: Sequence[Item], sources: Sources
    ) -> None:
        """Prepare a pass; nothing runs yet.

        Args:
            vlm: The model.
            base: Its base run on the prompt.
            items: The interventions; each has at least one step.
            sources: The named runs and vectors.
        """
        self._vlm, self._base, self._sources = vlm, base, sources
        self._layers = [block.layer for block in vlm.tapped.blocks]
        self._n_items = len(items)
        self._steps: dict[int, dict[int, Step]] = defaultdict(dict)
        self._writes: dict[tuple[int, str], dict[int, Any]] = defaultdict(dict)
        self._hears: dict[tuple[int, str], dict[int, list[Site]]] = defaultdict(dict)
        self._cuts: dict[int, list[tuple[frozenset[int], int]]] = {}
        self._table = CutTable(vlm.cfg.n_heads, base.reads.n)
        self.heard: dict[tuple[int, Site], Tensor] = {}
        for i, item in enumerate(items):
            self._take(i, item)
        self._attend: Callable[[Asked], Tensor | None] = lambda _: None

    def _take(self, i: int, item: Item) -> None:
        for step in item.steps:
            self._steps[step.layer][i] = step
        for place, writes in writes_of(item.intervention).items():
            self._writes[place][i] = writes
        for site in item.hears:
            layer, component = place_of(site)
            self._hears[layer, component].setdefault(i, []).append(site)
        cuts = [x for x in parts(item.intervention) if isinstance(x, Knockout)]
        if cuts:
            self._cuts[i] = [
                (frozenset(cut.layers), self._table.number(cut)) for cut in cuts
            ]

    def run(self) -> Float[Tensor, "item d_model"]:
        """The last rows of the stream that leaves the last layer, one per item."""
        places, rows = self._run()
        return rows[[places[i].start for i in range(self._n_items)]]

    def run_frozen(self) -> None:
        """Only what is to be heard, of items whose steps may end before the last."""
        self._run()

    @torch.no_grad()
    def _run(self) -> tuple[Mapping[int, Placed], Tensor]:
        state: _State | None = None
        answers: dict[nn.Module, Answer] = {
            layer.attn: self._answer for layer in self._layers
        }
        with answering(self._vlm.tapped.text_config, answers):
            for number in range(len(self._layers)):
                steps = self._steps.get(number)
                state = self._layer(number, steps, state) if steps else None
        number = len(self._layers)
        if number not in self._steps:
            return {}, torch.empty(0)
        batch = self._batch(number, self._steps[number])
        return batch.places, self._enter(number, batch, state)

    def _answer(self, asked: Asked) -> Tensor | None:
        return self._attend(asked)

    def _batch(self, number: int, steps: Mapping[int, Step]) -> _Batch:
        alike: dict[tuple[range, range], list[int]] = defaultdict(list)
        for i, step in steps.items():
            alike[step.rows, step.out].append(i)
        return _Batch.of(alike, partial(self._cuts_at, number))

    def _cuts_at(self, number: int, item: int) -> Cuts:
        cuts = self._cuts.get(item, ())
        return tuple(cut for layers, cut in cuts if number in layers)

    def _layer(
        self, number: int, steps: Mapping[int, Step], state: _State | None
    ) -> _State:
        """Every item's rows after a layer."""
        again = {i: step for i, step in steps.items() if step.attends}
        known = {i: step for i, step in steps.items() if not step.attends}
        done = []
        if again:
            done.append(self._attending(number, self._batch(number, again), state))
        if known:
            done.append(self._knowing(number, self._batch(number, known), state))
        return _joined(done)

    def _enter(
        self, number: int, batch: _Batch, state: _State | None
    ) -> Float[Tensor, "row d_model"]:
        """The rows that enter a layer: those carried on, the base run's elsewhere."""
        stream = self._base.stream[number]
        runs = [] if state is None else list(_runs(state.places, batch.places))
        if state is not None and sum(n for *_, n in runs) == batch.n_rows:
            rows = stream.new_empty(batch.n_rows, stream.shape[1])
        else:
            rows = stream[batch.positions.to(stream.device)]
        for here, there, n in runs:
            rows[here : here + n] = cast("_State", state).rows[there : there + n]
        made = self._through(number, STREAM, batch.places, rows[None])
        return made[0]

    def _attending(self, number: int, batch: _Batch, state: _State | None) -> _State:
        """Call a layer on rows whose attention is computed again."""
        rows = self._enter(number, batch, state)
        narrow, at = batch.narrowed()
        shared = self._shared(number)
        layer = self._layers[number]
        if narrow.n_rows > WORTH_TWO_CALLS * batch.n_rows:
            wide = [replace(g, out=g.rows, first_out=g.first_row) for g in batch.groups]

            def attend(asked: Asked) -> Tensor:
                flat = asked.query[0], asked.key[0], asked.value[0]
                return attend_rows(*flat, asked, shared, wide, self._table)

            self._attend = attend
            out = self._called(number, layer, batch, rows, _BEFORE | _BEHIND)
            return _State(out, batch.places)
        key, value = self._keys(number, batch, rows)

        def attend_few(asked: Asked) -> Tensor:
            flat = asked.query[0], key, value
            return attend_rows(*flat, asked, shared, batch.groups, self._table)

        self._attend = attend_few
        few = rows[at.to(rows.device)]
        out = self._called(number, layer, narrow, few, _BEHIND | {"q"})
        return _State(out, narrow.places)

    def _keys(self, number: int, batch: _Batch, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of rows, from a call of the layer that ends there."""
        found: list[Asked] = []

        def grab(asked: Asked) -> Tensor | None:
            found.append(asked)
            raise _Grabbed

        self._attend = grab
        with suppress(_Grabbed):
            self._called(number, self._layers[number], batch, rows, _BEFORE)
        return found[0].key[0], found[0].value[0]

    def _knowing(self, number: int, batch: _Batch, state: _State | None) -> _State:
        """Call a layer on rows whose heads keep what they gave in the base run."""
        rows = self._enter(number, batch, state)
        if any((number, c) in self._hears for c in ("q", "k", "v")):
            self._keys(number, batch, rows)
        layer = self._layers[number]
        z = self._base.z[number][batch.positions.to(rows.device)]
        known = _Known(layer.o, z[None])
        seen = replace(
            layer,
            attn=known,
            attn_out=known if layer.attn_out is layer.attn else layer.attn_out,
        )
        with _exchanged(layer, known):
            out = self._called(number, seen, batch, rows, _BEHIND)
        return _State(out, batch.places)

    def _shared(self, number: int) -> Shared:
        base = self._base
        return Shared(base.key[number], base.value[number], base.reads.mask(number))

    def _called(
        self,
        number: int,
        layer: Layer,
        batch: _Batch,
        rows: Float[Tensor, "row d_model"],
        components: Iterable[str],
    ) -> Float[Tensor, "row d_model"]:
        """What a layer makes of flat rows, with all writes to these components."""
        called = self._base.called(number, batch.positions)
        with ExitStack() as stack:
            for component in components:
                key = number, component
                if key not in self._writes and key not in self._hears:
                    continue
                hear = partial(self._through, number, component, batch.places)
                if component == "result":
                    _tap_result(stack, layer, self._vlm.cfg.d_head, hear)
                else:
                    known = cast("Component", component)
                    tap_site(stack, layer, known, hear, self._vlm.cfg.d_head)
            out = layer.whole(rows[None], attention_mask=None, **called)
        found: Tensor = out[0] if isinstance(out, tuple) else out
        return found[0]

    def _through(
        self,
        number: int,
        component: str,
        places: Mapping[int, Placed],
        activation: Float[Tensor, "1 row ..."],
    ) -> Float[Tensor, "1 row ..."]:
        """An activation after all writes to it; what is to be heard of it is kept."""
        writes = self._writes.get((number, component), {})
        found = [(places[i], each) for i, each in writes.items() if i in places]
        if found:
            shape = tuple(activation.shape[2:])
            edits = edits_of(found, shape, self._sources, activation)
            activation = edited(activation, edits)
        for i, sites in self._hears.get((number, component), {}).items():
            if i in places:
                start, n = places[i].start, len(places[i].rows)
                for site in sites:
                    heard = activation[0, start : start + n].clone()
                    of_head = heard if site.head is None else heard[:, site.head]
                    self.heard[i, site] = of_head
        return activation


def _runs(
    old: Mapping[int, Placed], new: Mapping[int, Placed]
) -> Iterator[tuple[int, int, int]]:
    """Rows that both have, as (start in the new, start in the old, how many)."""
    run: tuple[int, int, int] | None = None
    for item, place in new.items():
        if item not in old:
            continue
        before = old[item]
        first = max(place.rows.start, before.rows.start)
        n = min(place.rows.stop, before.rows.stop) - first
        if n <= 0:
            continue
        here = place.start + first - place.rows.start
        there = before.start + first - before.rows.start
        if run is not None and (here, there) == (run[0] + run[2], run[1] + run[2]):
            run = run[0], run[1], run[2] + n
            continue
        if run is not None:
            yield run
        run = here, there, n
    if run is not None:
        yield run


def _joined(states: Sequence[_State]) -> _State:
    if len(states) == 1:
        return states[0]
    places, first = {}, 0
    for state in states:
        for item, place in state.places.items():
            places[item] = replace(place, start=place.start + first)
        first += len(state.rows)
    return _State(torch.cat([state.rows for state in states]), places)


@contextmanager
def _exchanged(layer: Layer, stand_in: nn.Module) -> Iterator[None]:
    """Put a module in the place of a layer's attention, for one call."""
    children = layer.whole.named_children()
    name = next(name for name, child in children if child is layer.attn)
    layer.whole.register_module(name, stand_in)
    try:
        yield
    finally:
        layer.whole.register_module(name, layer.attn)


def _tap_result(
    stack: ExitStack, layer: Layer, d_head: int, hear: Callable[[Tensor], Tensor]
) -> None:
    """Pass each head's own addition to the stream through a function."""
    w_o = layer.o.weight.T.unflatten(0, (-1, d_head))

    def hook(_: nn.Module, args: tuple[Tensor], output: Tensor) -> Tensor:
        result = torch.einsum(
            "bphe,hed->bphd", args[0].unflatten(-1, (-1, d_head)), w_o
        )
        new = hear(result)
        return output if new is result else output + (new - result).sum(dim=2)

    stack.callback(layer.o.register_forward_hook(hook).remove)


_BEFORE = frozenset({"q", "k", "v"})
_BEHIND = frozenset({"z", "result", "attn_out", "resid_mid", "mlp_post", "mlp_out"})
"""Components of a layer before and behind the attention itself."""

WORTH_TWO_CALLS = 0.6
"""Share of rows with needed output below which keys and values get a call of their own.

They are about a third of a layer's work.
"""
