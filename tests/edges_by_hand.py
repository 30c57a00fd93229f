"""An edge in Hugging Face's model alone, in fp64 and by torch's own hooks.

It shares nothing with the package but the names of a layer's modules: one edge carries
a part of its change, and everything else stays as it is.
"""

from functools import cache

import tiny
import torch

import mechvlm as mv
from mechvlm.graph import LOGITS

STEP = 1e-4


class Norm64(torch.nn.Module):
    """RMS norm that stays in fp64, where Hugging Face's would go by way of fp32."""

    def __init__(self, norm):
        super().__init__()
        self.weight, gemma = norm.weight, type(norm).__name__.startswith("Gemma")
        self.offset = float(gemma)
        self.eps = norm.eps if gemma else norm.variance_epsilon

    def forward(self, x):
        scale = (x.pow(2).mean(-1, keepdim=True) + self.eps).rsqrt()
        return x * scale * (self.weight + self.offset)


def in_fp64(model):
    for name, module in list(model.named_modules()):
        if type(module).__name__.endswith("RMSNorm"):
            parent, _, child = name.rpartition(".")
            setattr(model.get_submodule(parent), child, Norm64(module))
    return model.double()


@cache
def pair_of(kind):
    model, processor = tiny.build(kind)
    vlm = mv.HookedVLM(in_fp64(model), processor)
    clean, corrupted = (
        tiny.ask(vlm, "what color is the cat ?", tiny.picture(seed)) for seed in (0, 1)
    )
    metric = mv.logit_difference(vlm, "red", "blue")
    return vlm, mv.Pair(clean, corrupted, metric, mv.groups_of(clean))


class Plain:
    """Hugging Face's model and torch's hooks, and what passes by them."""

    def __init__(self, vlm):
        self.hf, self.names = vlm.hf_model, vlm.family.backbone(vlm.hf_model.config)
        language_model = vlm.hf_model.get_submodule(vlm.family.language_model)
        self.layers, self.last = language_model.layers, language_model.norm
        self.d_head = vlm.cfg.d_head

    def part(self, layer, name):
        return self.layers[layer].get_submodule(getattr(self.names, name))

    @torch.no_grad()
    def run(self, prompt, metric, *, seen=None, put=()):
        """The metric in fp64; `seen` is filled, and `put` (module, function) acts."""
        handles = []
        if seen is not None:
            for at in range(len(self.layers)):
                for name in ("o", "ln1", "ln2"):
                    hear = _first_of(seen, (at, name))
                    handles.append(self.part(at, name).register_forward_pre_hook(hear))
                hear = _out_of(seen, (at, "mlp"))
                handles.append(self.part(at, "mlp_out").register_forward_hook(hear))
            hear = _first_of(seen, "embed")
            handles.append(self.layers[0].register_forward_pre_hook(hear))
            hear = _first_of(seen, "last")
            handles.append(self.last.register_forward_pre_hook(hear))
        for module, hook, kind in put:
            handles.append(getattr(module, f"register_{kind}")(hook))
        logits = self.hf(**prompt.inputs, use_cache=False).logits[0, -1]
        for handle in handles:
            handle.remove()
        answer, foil = metric.tokens
        return float(logits[answer] - logits[foil])

    def given(self, seen, sender, change, groups, size):
        """What the sender adds to the stream by a part of its change; 1 is all."""
        if sender.kind == "mlp":
            return size * change[sender.layer, "mlp"]
        if sender.kind == "tokens":
            added = torch.zeros_like(change["embed"])
            rows = list(groups[sender.group])
            added[:, rows] = size * change["embed"][:, rows]
            return added
        at = slice(sender.head * self.d_head, (sender.head + 1) * self.d_head)
        old = seen[sender.layer, "o"]
        new = old.clone()
        new[..., at] += size * change[sender.layer, "o"][..., at]
        ends = [self.part(sender.layer, "o")(x) for x in (old, new)]
        if self.names.attn_out != "self_attn":
            ends = [self.part(sender.layer, "attn_out")(x) for x in ends]
        return ends[1] - ends[0]

    def taking(self, seen, receiver, added):
        """A hook under which this receiver alone reads what was added."""
        if receiver == LOGITS:
            return self.last, lambda _, args: (args[0] + added,), "forward_pre_hook"
        if receiver.kind == "mlp":
            norm = self.part(receiver.layer, "ln2")
            return norm, lambda _, args: (args[0] + added,), "forward_pre_hook"
        norm = self.part(receiver.layer, "ln1")
        projection = self.part(receiver.layer, receiver.kind)
        heard = projection(norm(seen[receiver.layer, "ln1"] + added))
        at = slice(receiver.head * self.d_head, (receiver.head + 1) * self.d_head)

        def put(_, __, output):
            new = output.clone()
            new[..., at] = heard[..., at]
            return new

        return projection, put, "forward_hook"

    @cache  # noqa: B019 - it lives as long as a test
    def known(self, pair):
        """Clean values, what the corrupted ones add to them, and the metric's gap."""
        clean, corrupted = {}, {}
        value = self.run(pair.clean, pair.metric, seen=clean)
        gap = value - self.run(pair.corrupted, pair.metric, seen=corrupted)
        change = {name: corrupted[name] - clean[name] for name in clean}
        return clean, change, value, gap

    def slope(self, pair, edge, *, place=1.0, change=None):
        """Share of the gap that is lost, per way along the edge, at its beginning.

        `place` is where between corrupted (0) and clean (1) embeddings it is taken.
        """
        clean, own, _, gap = self.known(pair)
        change = own if change is None else change(clean)
        there = clean["embed"] + (1 - place) * change["embed"]
        enter = lambda _, args: (there, *args[1:])  # noqa: E731
        start = [(self.layers[0], enter, "forward_pre_hook")]
        here = {}
        self.run(pair.clean, pair.metric, seen=here, put=start)
        found = []
        for size in (STEP, -STEP):
            put = self.put(here, edge, change, pair.groups, size)
            found.append(self.run(pair.clean, pair.metric, put=[*start, put]))
        return -(found[0] - found[1]) / (2 * STEP) / gap

    def effect(self, pair, edge):
        """Share of the gap that is lost where the edge carries all of its change."""
        clean, change, value, gap = self.known(pair)
        put = self.put(clean, edge, change, pair.groups, 1)
        return (value - self.run(pair.clean, pair.metric, put=[put])) / gap

    @torch.no_grad()
    def put(self, here, edge, change, groups, size):
        added = self.given(here, edge.sender, change, groups, size)
        return self.taking(here, edge.receiver, added)


def _first_of(seen, name):
    def hear(_, args, kwargs=None):
        seen[name] = args[0].clone()

    return hear


def _out_of(seen, name):
    def hear(_, __, output):
        seen[name] = output.clone()

    return hear
