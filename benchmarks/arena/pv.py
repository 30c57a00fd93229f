"""pyvene: an intervenable model per layer and place, and one call per act.

pyvene 0.1.8 has a table of names for LLaVA, whose paths are those of an older
transformers; modules are named by their own path instead. It gathers and scatters one
tensor that enters or leaves a module, so attention masks and scores are out of reach.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import pyvene
from torch import Tensor

from arena.plain import Plain
from arena.sweeps import Act, Blank, Cut, Direct, IntoQuery, SwapHead, SwapStream

UNSUPPORTED = (
    "pyvene writes one tensor that enters or leaves a module; an attention edge is in"
    " none of them (the mask is a second argument, the scores are no module's)"
)


class Pyvene:
    """Functions at module inputs, at positions that each call names."""

    name = "pyvene"

    def __init__(self, plain: Plain) -> None:
        """Wrap the plain model; intervenable models are made once per place."""
        self.plain = plain
        self.value: Callable[[Tensor], Tensor] = lambda x: x
        self.at = cache(self._at)

    def _at(self, place: str) -> Any:
        """An intervenable model whose only function writes what `self.value` says."""
        config = pyvene.RepresentationConfig(
            component=f"model.language_model.{place}",
            unit="pos",
            intervention=lambda base, source: self.value(base),
        )
        whole = pyvene.IntervenableConfig([config])
        return pyvene.IntervenableModel(whole, model=self.plain.model)

    def run(self, act: Act) -> Tensor:
        """Last-position logits `[vocab]` under one act."""
        n, embeds = self.plain.scene.geometry.n, self.plain.embeds
        match act:
            case SwapStream(layer, at):
                row = self.plain.donor.stream[layer][at]
                return self.call(
                    f"layers[{layer}].input", [at], lambda _: row[None, None]
                )
            case SwapHead(layer, head, at):
                own = self.plain.columns(head)
                rows = self.plain.donor.z[layer][at:, own]

                def put(z: Tensor) -> Tensor:
                    z[:, :, own] = rows
                    return z

                place = f"layers[{layer}].self_attn.o_proj.input"
                return self.call(place, list(range(at, n)), put)
            case Blank(at):
                mean = self.plain.scene.mean
                return self.call(
                    "layers[0].input", list(at), lambda x: mean.expand_as(x)
                )
            case Direct(layer, head):
                change = self.plain.written(layer, head)
                return self.call("norm.input", [n - 1], lambda x: x + change)
            case IntoQuery(_, _, layer, head):
                own, query = self.plain.columns(head), self.plain.query(act)

                def ask(queries: Tensor) -> Tensor:
                    queries[:, :, own] = query
                    return queries

                place = f"layers[{layer}].self_attn.q_proj.output"
                return self.call(place, [n - 1], ask)
            case Cut():
                raise NotImplementedError(UNSUPPORTED)
        raise ValueError(act, embeds.shape)

    def call(
        self, place: str, positions: list[int], value: Callable[[Tensor], Tensor]
    ) -> Tensor:
        """One call; it writes in place, so it gets embeddings of its own."""
        self.value = value
        base = {
            "inputs_embeds": self.plain.embeds.clone(),
            "logits_to_keep": 1,
            "use_cache": False,
        }
        _, out = self.at(place)(base, unit_locations={"base": positions})
        return out.logits[0, -1]
