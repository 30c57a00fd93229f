"""Row-wise passes: many interventions at once, each computing only its own rows.

The Hugging Face layers are called unchanged on the rows of all interventions, one below
the other, as one sequence. Only their attention is answered here: own keys for the rows
of an intervention, the base run's for all other positions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from mechvlm.cone import Step
from mechvlm.models.attention import Answer, Asked, answering
from mechvlm.models.family import Layer
from mechvlm.models.lowering import Sources
from mechvlm.models.passes import exchanged
from mechvlm.models.rowwise.base import Backbone, Base
from mechvlm.models.rowwise.batches import Batch, Item, State
from mechvlm.models.rowwise.row_attention import Attention
from mechvlm.models.rowwise.script import BEFORE, BEHIND, Script

__all__ = ["WORTH_TWO_CALLS", "Keys", "RowPass"]

WORTH_TWO_CALLS = 0.6
"""Share of rows with needed output below which keys and values get a call of their own.

They are about a third of a layer's work.
"""


@dataclass(frozen=True, eq=False)
class Keys:
    """Keys and values that the rows of a batch have of their own in one layer."""

    batch: Batch
    key: Float[Tensor, "kv_head row d_head"]
    value: Float[Tensor, "kv_head row d_head"]


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
    """One pass of several interventions through the layers.

    Attributes:
        keys: Own keys and values by layer, where they were asked for.
        script: What the interventions do; it holds what was read on the way.
    """

    def __init__(
        self,
        vlm: Backbone,
        base: Base,
        items: Sequence[Item],
        sources: Sources,
        *,
        keep_keys: bool = False,
    ) -> None:
        """Prepare a pass; nothing runs yet.

        Args:
            vlm: The model.
            base: Its base run on the prompt.
            items: The interventions; each has at least one step.
            sources: The named runs and vectors.
            keep_keys: Keep the own keys and values of every layer.
        """
        self._vlm, self._base = vlm, base
        self._layers = [block.layer for block in vlm.tapped.blocks]
        self._steps: dict[int, dict[int, Step]] = defaultdict(dict)
        for i, item in enumerate(items):
            for step in item.steps:
                self._steps[step.layer][i] = step
        self.script = Script(items, sources, vlm.cfg.n_heads, base.reads.n)
        self.keys: dict[int, Keys] = {}
        self._keep_keys = keep_keys
        self._attend: Answer = lambda _: None

    @torch.no_grad()
    def run(self) -> tuple[list[int], Float[Tensor, "row d_model"]]:
        """Run the pass.

        Returns:
            Items that reach the end, and the last row of the stream that leaves the
            last layer for each of them.
        """
        none = state = State(self._base.stream[0][:0], {})
        attentions = [layer.attn for layer in self._layers]
        config = self._vlm.tapped.text_config
        with answering(config, attentions, self._answer):
            for number in range(len(self._layers)):
                steps = self._steps.get(number)
                state = self._layer(number, steps, state) if steps else none
        number = len(self._layers)
        batch = Batch.of(self._steps.get(number, {}), lambda _: ())
        return list(batch.places), self._enter(number, batch, state)

    def _answer(self, asked: Asked) -> Tensor | None:
        return self._attend(asked)

    def _layer(self, number: int, steps: Mapping[int, Step], state: State) -> State:
        """Every item's rows after a layer."""
        again = {i: step for i, step in steps.items() if step.attends}
        known = {i: step for i, step in steps.items() if not step.attends}
        done = []
        cuts = partial(self.script.cuts, number)
        if again:
            done.append(self._attending(number, Batch.of(again, cuts), state))
        if known:
            done.append(self._knowing(number, Batch.of(known, cuts), state))
        return State.joined(done)

    def _enter(
        self, number: int, batch: Batch, state: State
    ) -> Float[Tensor, "row d_model"]:
        """The rows that enter a layer: those carried on, the base run's elsewhere."""
        stream = self._base.stream[number]
        rows = state.carried(batch, stream)
        return self.script.between(number, batch.places, rows)

    def _attending(self, number: int, batch: Batch, state: State) -> State:
        """Call a layer on rows whose attention is computed again."""
        rows = self._enter(number, batch, state)
        narrow, at = batch.narrow()
        if narrow.n_rows > WORTH_TWO_CALLS * batch.n_rows:
            whole = batch.wide()
            self._attend = partial(self._attend_rows, number, whole, None)
            out = self._called(number, whole, rows, BEFORE | BEHIND)
            return State(out, whole.places)
        keys = self._kept(number, self._grabbed(number, batch, rows))
        if not narrow.n_rows:
            return State(rows[:0], {})
        self._attend = partial(self._attend_rows, number, narrow, keys)
        few = rows[at.to(rows.device)]
        out = self._called(number, narrow, few, BEHIND | {"q"})
        return State(out, narrow.places)

    def _attend_rows(
        self, number: int, batch: Batch, keys: Keys | None, asked: Asked
    ) -> Tensor:
        """Attention of a batch's rows, to keys of their own and the base run's."""
        if keys is None:
            keys = self._kept(number, Keys(batch, asked.key[0], asked.value[0]))
        attention = Attention(self._base.shared(number), self.script.masks)
        return attention.of_batch(asked.query[0], keys.key, keys.value, batch.groups)

    def _grabbed(self, number: int, batch: Batch, rows: Tensor) -> Keys:
        """Keys and values of rows, from a call of the layer that ends there."""
        found: list[Asked] = []

        def grab(asked: Asked) -> Tensor | None:
            found.append(asked)
            raise _Grabbed

        self._attend = grab
        with suppress(_Grabbed):
            self._called(number, batch, rows, BEFORE)
        return Keys(batch, found[0].key[0], found[0].value[0])

    def _kept(self, number: int, keys: Keys) -> Keys:
        if self._keep_keys:
            self.keys[number] = keys
        return keys

    def _knowing(self, number: int, batch: Batch, state: State) -> State:
        """Call a layer on rows whose heads keep what they gave in the base run."""
        rows = self._enter(number, batch, state)
        if any(self.script.reads(number, component) for component in BEFORE):
            self._grabbed(number, batch, rows)
        layer = self._layers[number]
        z = self._base.z[number]
        z = z[batch.positions.to(z.device)]
        known = _Known(layer.o, z[None])
        seen = replace(
            layer,
            attn=known,
            attn_out=known if layer.attn_out is layer.attn else layer.attn_out,
        )
        children = layer.whole.named_children()
        name = next(name for name, child in children if child is layer.attn)
        with exchanged(layer.whole, name, known):
            out = self._called(number, batch, rows, BEHIND, layer=seen)
        return State(out, batch.places)

    def _called(
        self,
        number: int,
        batch: Batch,
        rows: Float[Tensor, "row d_model"],
        components: Iterable[str],
        *,
        layer: Layer | None = None,
    ) -> Float[Tensor, "row d_model"]:
        return self.script.called(
            self._layers[number] if layer is None else layer,
            number,
            rows,
            given=self._base.setting.called(number, batch.positions),
            places=batch.places,
            components=components,
            d_head=self._vlm.cfg.d_head,
        )
