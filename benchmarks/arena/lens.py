"""TransformerLens: the bridge of version 4 and the HookedTransformer of 3.9.

Both are fed the merged embeddings, so that neither pays for the vision tower, and
unembed the last position only; the hook functions are the same.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from arena.plain import Plain
from arena.sweeps import Act, Blank, Cut, Direct, IntoQuery, SwapHead, SwapStream


class Bridge:
    """TransformerLens 4: `bridge.run_with_hooks`."""

    name = "bridge"

    def __init__(self, plain: Plain) -> None:
        """The bridge over the same weights; recorded values are the plain ones."""
        self.plain = plain
        self.model = self.made()

    def made(self) -> Any:
        """The other library's model."""
        return self.plain.scene.vlm.to_bridge()

    def forward(self, embeds: Tensor, hooks: list[tuple[str, Any]]) -> Tensor:
        """Last-position logits under hooks."""
        return self.model.run_with_hooks(embeds, fwd_hooks=hooks, logits_to_keep=1)[
            0, -1
        ]

    def run(self, act: Act) -> Tensor:
        """Last-position logits `[vocab]` under one act."""
        embeds = self.plain.embeds
        if isinstance(act, Blank):
            embeds = embeds.clone()
            embeds[:, list(act.at)] = self.plain.scene.mean
            return self.forward(embeds, [])
        return self.forward(embeds, self.hooks(act))

    def hooks(self, act: Act) -> list[tuple[str, Any]]:
        """Hook names and functions of an act."""
        match act:
            case SwapStream(layer, at):
                row = self.plain.donor.stream[layer][at]
                return [(f"blocks.{layer}.hook_resid_pre", put((0, at), row))]
            case SwapHead(layer, head, at):
                rows = self.plain.donor.z[layer][at:, self.plain.columns(head)]
                where = 0, slice(at, None), head
                return [(f"blocks.{layer}.attn.hook_z", put(where, rows))]
            case Cut(layers, target, source):
                rows, keys = torch.tensor(target)[:, None], torch.tensor(source)[None]
                where = 0, slice(None), rows, keys
                cut = put(where, torch.tensor(-torch.inf))
                return [(f"blocks.{at}.attn.hook_attn_scores", cut) for at in layers]
            case Direct(layer, head):
                change = self.plain.written(layer, head)
                last = self.plain.scene.geometry.n_layers - 1

                def add(stream: Tensor, hook: Any) -> Tensor:
                    stream[:, -1] += change
                    return stream

                return [(f"blocks.{last}.hook_resid_post", add)]
            case IntoQuery(_, _, layer, head):
                query = self.plain.query(act)
                return [(f"blocks.{layer}.attn.hook_q", put((0, -1, head), query))]
        raise ValueError(act)


def put(where: tuple[Any, ...], value: Tensor) -> Any:
    """A hook function that writes in place, as TransformerLens's own patching does."""

    def function(activation: Tensor, hook: Any) -> Tensor:
        activation[where] = value.to(activation)
        return activation

    return function


class Legacy(Bridge):
    """TransformerLens 3.9: `HookedTransformer.run_with_hooks`."""

    name = "transformer-lens-3"

    def made(self) -> Any:
        """A real HookedTransformer with a copy of the weights."""
        return self.plain.scene.vlm.to_hooked_transformer()

    def forward(self, embeds: Tensor, hooks: list[tuple[str, Any]]) -> Tensor:
        """Last-position logits under hooks; it would unembed every position."""
        end = self.plain.scene.geometry.n_layers
        stream = self.model.run_with_hooks(
            embeds, fwd_hooks=hooks, start_at_layer=0, stop_at_layer=end
        )
        return self.model.unembed(self.model.ln_final(stream[:, -1:]))[0, -1]
