"""nnsight: a trace per act on the Hugging Face model.

It mounts a method onto every Python object, so it lives in a process of its own.
"""

from __future__ import annotations

import torch
from nnsight import NNsight
from torch import Tensor

from arena.plain import Plain
from arena.sweeps import Act, Blank, Cut, Direct, IntoQuery, SwapHead, SwapStream


class Sight:
    """A trace is a forward whose modules' inputs and outputs can be written."""

    name = "nnsight"

    def __init__(self, plain: Plain) -> None:
        """Wrap the plain model; it carries nnsight's hooks from now on."""
        self.plain = plain
        self.model = NNsight(plain.model)
        self.layers = self.model.model.language_model.layers
        self.norm = self.model.model.language_model.norm
        self.fixed = {"logits_to_keep": 1, "use_cache": False}

    def run(self, act: Act) -> Tensor:
        """Last-position logits `[vocab]` under one act."""
        embeds = self.plain.embeds
        match act:
            case SwapStream(layer, at):
                return self.with_stream(layer, at, self.plain.donor.stream[layer][at])
            case SwapHead(layer, head, at):
                own = self.plain.columns(head)
                return self.with_head(
                    layer, own, at, self.plain.donor.z[layer][at:, own]
                )
            case Cut(layers, target, source):
                mask = self.plain.causal.clone()
                rows, keys = torch.tensor(target)[:, None], torch.tensor(source)[None]
                mask[..., rows, keys] = torch.finfo(mask.dtype).min
                return self.with_mask(layers, mask)
            case Blank(at):
                embeds = embeds.clone()
                embeds[:, list(at)] = self.plain.scene.mean
                return self.untouched(embeds)
            case Direct(layer, head):
                return self.with_final(self.plain.written(layer, head))
            case IntoQuery(_, _, layer, head):
                own, query = self.plain.columns(head), self.plain.query(act)
                return self.with_query(layer, own, query)

    def untouched(self, embeds: Tensor) -> Tensor:
        """Nothing but other embeddings."""
        with self.model.trace(inputs_embeds=embeds, **self.fixed):
            logits = self.model.lm_head.output.save()
        return logits[0, -1]

    def with_stream(self, layer: int, at: int, row: Tensor) -> Tensor:
        """A row put into what enters a layer."""
        with self.model.trace(inputs_embeds=self.plain.embeds, **self.fixed):
            stream = self.layers[layer].input.clone()
            stream[:, at] = row
            self.layers[layer].input = stream
            logits = self.model.lm_head.output.save()
        return logits[0, -1]

    def with_head(self, layer: int, own: slice, at: int, rows: Tensor) -> Tensor:
        """A head's columns put into what enters the output projection."""
        with self.model.trace(inputs_embeds=self.plain.embeds, **self.fixed):
            z = self.layers[layer].self_attn.o_proj.input.clone()
            z[:, at:, own] = rows
            self.layers[layer].self_attn.o_proj.input = z
            logits = self.model.lm_head.output.save()
        return logits[0, -1]

    def with_query(self, layer: int, own: slice, query: Tensor) -> Tensor:
        """A head's last query put into what leaves the query projection."""
        with self.model.trace(inputs_embeds=self.plain.embeds, **self.fixed):
            queries = self.layers[layer].self_attn.q_proj.output.clone()
            queries[:, -1, own] = query
            self.layers[layer].self_attn.q_proj.output = queries
            logits = self.model.lm_head.output.save()
        return logits[0, -1]

    def with_mask(self, layers: range, mask: Tensor) -> Tensor:
        """Another mask handed to the attention of some layers."""
        with self.model.trace(inputs_embeds=self.plain.embeds, **self.fixed):
            for layer in layers:
                args, kwargs = self.layers[layer].self_attn.inputs
                masked = {**kwargs, "attention_mask": mask}
                self.layers[layer].self_attn.inputs = (args, masked)
            logits = self.model.lm_head.output.save()
        return logits[0, -1]

    def with_final(self, change: Tensor) -> Tensor:
        """A vector added to the last position of the final stream."""
        with self.model.trace(inputs_embeds=self.plain.embeds, **self.fixed):
            stream = self.norm.input.clone()
            stream[:, -1] += change
            self.norm.input = stream
            logits = self.model.lm_head.output.save()
        return logits[0, -1]
