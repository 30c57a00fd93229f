"""Plain Hugging Face with plain torch hooks: one forward per act, and nothing else.

`Plain` is the yardstick. Attention is SDPA, the merged embeddings are made once, and
only the last position is unembedded: what a careful user's loop costs. `Prefix` is the
trick of a more careful one: keys and values in front of the first changed position are
kept, and only the rest is run. Nothing of what they run comes from mechvlm.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from arena.geometry import Scene
from arena.sweeps import Act, Blank, Cut, Direct, IntoQuery, SwapHead, SwapStream


@dataclass
class Kept:
    """What a plain run leaves behind, by layer.

    Attributes:
        stream: What enters each layer, `[position d_model]`.
        z: The heads' outputs side by side, `[position d_model]`.
    """

    stream: list[Tensor] = field(default_factory=list)
    z: list[Tensor] = field(default_factory=list)


@contextmanager
def hooked(*handles: Any) -> Iterator[None]:
    """Take hooks away again at the end."""
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def entering(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor:
    """The stream that a layer is called with."""
    return args[0] if args else kwargs["hidden_states"]


class Plain:
    """One whole forward pass per act."""

    name = "hf"

    def __init__(self, scene: Scene) -> None:
        """Record both prompts once; sweeps are timed without that."""
        self.scene = scene
        self.model = scene.vlm.hf_model
        self.layers = list(self.model.model.language_model.layers)
        self.norm = self.model.model.language_model.norm
        self.embeds = scene.base_embeds
        self.base = self.record(scene.base_embeds)
        self.donor = self.record(scene.donor_embeds)
        n = scene.geometry.n
        least = torch.finfo(self.embeds.dtype).min
        causal = torch.full((n, n), least, dtype=self.embeds.dtype).triu(1)
        self.causal = causal[None, None].to(self.embeds.device)

    def start(self, act: Act) -> int:
        """First position that is run."""
        return 0

    def logits(self, embeds: Tensor, start: int = 0) -> Tensor:
        """Last-position logits of a forward from the merged embeddings."""
        out = self.model(inputs_embeds=embeds, logits_to_keep=1, use_cache=False)
        return out.logits[0, -1]

    def run(self, act: Act) -> Tensor:
        """Last-position logits `[vocab]` under one act."""
        start = self.start(act)
        match act:
            case SwapStream(layer, at):
                handles = [self.with_stream(layer, at, start)]
            case SwapHead(layer, head, at):
                handles = [self.with_head(layer, head, at, start)]
            case Cut(layers, target, source):
                handles = self.without_edges(layers, target, source, start)
            case Blank(at):
                embeds = self.embeds.clone()
                embeds[:, list(at)] = self.scene.mean
                return self.logits(embeds, start)
            case Direct(layer, head):
                handles = [self.with_final(self.written(layer, head))]
            case IntoQuery():
                handles = [self.with_query(act)]
        with hooked(*handles):
            return self.logits(self.embeds, start)

    def record(self, embeds: Tensor) -> Kept:
        """Run once and keep streams and head outputs."""
        kept, handles = Kept(), []

        def stream(_: Any, args: Any, kwargs: Any) -> None:
            kept.stream.append(entering(args, kwargs)[0].clone())

        def z(_: Any, args: Any) -> None:
            kept.z.append(args[0][0].clone())

        for layer in self.layers:
            handles += [
                layer.register_forward_pre_hook(stream, with_kwargs=True),
                layer.self_attn.o_proj.register_forward_pre_hook(z),
            ]
        with hooked(*handles):
            Plain.logits(self, embeds)
        return kept

    def columns(self, head: int) -> slice:
        """Where a head's output stands in z."""
        width = self.scene.geometry.d_head
        return slice(head * width, (head + 1) * width)

    def written(self, layer: int, head: int) -> Tensor:
        """What the head's change at the last position writes into the stream."""
        own = self.columns(head)
        change = self.donor.z[layer][-1, own] - self.base.z[layer][-1, own]
        return self.layers[layer].self_attn.o_proj.weight[:, own] @ change

    def query(self, act: IntoQuery) -> Tensor:
        """The later head's last query, with the change in what enters its layer."""
        layer = self.layers[act.into_layer]
        stream = self.base.stream[act.into_layer][-1]
        heard = layer.input_layernorm(stream + self.written(act.layer, act.head))
        return layer.self_attn.q_proj.weight[self.columns(act.into_head)] @ heard

    def with_query(self, act: IntoQuery) -> Any:
        """That query at the last position."""
        query, own = self.query(act), self.columns(act.into_head)

        def put(_: Any, __: Any, output: Tensor) -> Tensor:
            queries = output.clone()
            queries[:, -1, own] = query
            return queries

        projection = self.layers[act.into_layer].self_attn.q_proj
        return projection.register_forward_hook(put)

    def with_stream(self, layer: int, at: int, start: int) -> Any:
        """The donor's stream at one position of what enters a layer."""

        def put(_: Any, args: Any, kwargs: Any) -> Any:
            stream = entering(args, kwargs).clone()
            stream[:, at - start] = self.donor.stream[layer][at]
            if args:
                return (stream, *args[1:]), kwargs
            return args, {**kwargs, "hidden_states": stream}

        return self.layers[layer].register_forward_pre_hook(put, with_kwargs=True)

    def with_head(self, layer: int, head: int, at: int, start: int) -> Any:
        """The donor's output of a head, from a position on."""
        own = self.columns(head)

        def put(_: Any, args: Any) -> Any:
            z = args[0].clone()
            z[:, at - start :, own] = self.donor.z[layer][at:, own]
            return (z,)

        return self.layers[layer].self_attn.o_proj.register_forward_pre_hook(put)

    def without_edges(
        self,
        layers: range,
        target: tuple[int, ...],
        source: tuple[int, ...],
        start: int,
    ) -> list[Any]:
        """A mask with the cut edges in place of the causal one."""
        mask = self.causal[:, :, start:].clone()
        rows, keys = torch.tensor(target)[:, None] - start, torch.tensor(source)[None]
        mask[..., rows, keys] = torch.finfo(mask.dtype).min

        def put(_: Any, args: Any, kwargs: Any) -> Any:
            return args, {**kwargs, "attention_mask": mask}

        attentions = [self.layers[layer].self_attn for layer in layers]
        return [x.register_forward_pre_hook(put, with_kwargs=True) for x in attentions]

    def with_final(self, change: Tensor) -> Any:
        """A vector added to the last position of the final stream."""

        def put(_: Any, args: Any) -> Any:
            stream = args[0].clone()
            stream[:, -1] += change
            return (stream,)

        return self.norm.register_forward_pre_hook(put)


class Prefix(Plain):
    """The rows from the first changed position on, over a cache of what is before."""

    name = "prefix"

    def __init__(self, scene: Scene) -> None:
        """Keep keys and values of the base prompt."""
        super().__init__(scene)
        whole = DynamicCache()
        self.model(inputs_embeds=self.embeds, past_key_values=whole, logits_to_keep=1)
        self.kept = [(layer.keys, layer.values) for layer in whole.layers]

    def start(self, act: Act) -> int:
        """First position that the act can change."""
        match act:
            case SwapStream(_, at):
                return at
            case SwapHead(_, _, at):
                return at
            case Cut(_, target, _):
                return min(target)
            case Blank(at):
                return min(at)
            case Direct() | IntoQuery():
                return self.scene.geometry.n - 1

    def logits(self, embeds: Tensor, start: int = 0) -> Tensor:
        """Last-position logits; the cache is a view, and grows into a copy."""
        before = [(k[:, :, :start], v[:, :, :start]) for k, v in self.kept]
        out = self.model(
            inputs_embeds=embeds[:, start:],
            past_key_values=DynamicCache(before),
            logits_to_keep=1,
        )
        return out.logits[0, -1]
