"""Path patching against a literal one: whole Hugging Face passes and plain hooks.

Nothing of mechvlm runs in the oracle. Wang et al. 2022, pass by pass: record both
prompts; run the clean one with every head frozen but the senders', and note what the
receiver gets; run it again with just that put in. In fp64, to 1e-9.
"""

from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache

import pytest
import sweeping
import tiny
import torch

import mechvlm as mv
from mechvlm import PathPatch, Positions, Site, reference

CLOSE = 1e-9
SHOWS = 1e-6
KINDS = {
    "every head its own key": tiny.KINDS[0],
    "grouped queries": tiny.KINDS[1],
    "a norm behind, images both ways": tiny.GEMMA_KINDS[1],
}


class Literal:
    """A model of Hugging Face's, run with plain hooks."""

    def __init__(self, vlm, clean, corrupted):
        model = vlm.hf_model
        self.model, self.inputs = model, clean.inputs
        self.backbone = model.get_submodule("model.language_model")
        self.width = vlm.cfg.d_head
        self.clean = self.passed(clean.inputs)
        self.corrupted = self.passed(corrupted.inputs)

    def places(self):
        """Where each component is: a module, and whether it enters or leaves there."""
        first, *_ = layers = self.backbone.layers
        yield ("embed", None), (first, "enters")
        for number, layer in enumerate(layers):
            gemma = "pre_feedforward_layernorm" in dict(layer.named_children())
            attn, mlp = layer.self_attn, layer.mlp
            behind = layer.post_attention_layernorm, attn
            added = layer.post_feedforward_layernorm if gemma else mlp
            yield ("z", number), (attn.o_proj, "enters")
            yield ("attn_out", number), (behind[0] if gemma else attn, "leaves")
            yield ("mlp_out", number), (added, "leaves")
            for component in "qkv":
                projection = attn.get_submodule(f"{component}_proj")
                yield (component, number), (projection, "leaves")
        yield ("resid_post", number), (self.backbone.norm, "enters")

    @torch.no_grad()
    def passed(self, inputs, writes=None):
        """One pass: rows are written where told, and everything is noted."""
        writes, noted = writes or {}, {}

        def through(place, value):
            for write in writes.get(place, ()):
                value = write(value.clone())
            noted[place] = value[0].clone()
            return value

        def entering(place):
            def hook(_, args, kwargs):
                if args:
                    return (through(place, args[0]), *args[1:]), kwargs
                stream = through(place, kwargs["hidden_states"])
                return args, {**kwargs, "hidden_states": stream}

            return hook

        def leaving(place):
            def hook(_, __, output):
                if isinstance(output, tuple):
                    return (through(place, output[0]), *output[1:])
                return through(place, output)

            return hook

        with ExitStack() as stack:
            for place, (module, where) in self.places():
                if where == "enters":
                    handle = module.register_forward_pre_hook(
                        entering(place), with_kwargs=True
                    )
                else:
                    handle = module.register_forward_hook(leaving(place))
                stack.callback(handle.remove)
            noted["logits"] = self.model(**inputs, use_cache=False).logits[0, -1]
        return noted

    def put(self, rows, at=None, head=None):
        """Put rows of another pass there: at all positions or some, of one head."""
        at = list(range(len(rows)) if at is None else at)
        own = slice(None)
        if head is not None:
            own = slice(head * self.width, (head + 1) * self.width)

        def write(value):
            value[0, at, own] = rows[at, own]
            return value

        return write

    def patched(self, path):
        """Logits of the last pass, for a path with one receiver."""
        (receiver,) = path.receivers
        there = receiver.component, receiver.layer
        writes = {}
        for layer in range(len(self.backbone.layers)):
            if there != ("attn_out", layer):
                writes["z", layer] = [self.put(self.clean["z", layer])]
            if path.mlps == "frozen" and there != ("mlp_out", layer):
                writes["mlp_out", layer] = [self.put(self.clean["mlp_out", layer])]
        for site in path.senders:
            place = site.component, site.layer
            write = self.put(self.corrupted[place], path.at, site.head)
            writes.setdefault(place, []).append(write)
        heard = self.passed(self.inputs, writes)[there]
        last = self.put(heard, path.to, receiver.head)
        return self.passed(self.inputs, {there: [last]})["logits"]


@dataclass(frozen=True)
class World:
    """A model in fp64, its prompts, and the oracle."""

    vlm: mv.HookedVLM
    clean: mv.Prompt
    run: mv.Run
    literal: Literal


@cache
def world_of(name):
    vlm = mv.HookedVLM(*tiny.build(KINDS[name])).double()
    sweeping.widen_norms(vlm)
    clean, corrupted = (
        tiny.ask(vlm, sweeping.QUESTION, tiny.picture(seed)) for seed in range(2)
    )
    literal = Literal(vlm, clean, corrupted)
    run = mv.record(vlm, corrupted, ["z", "mlp_out", "embed"])
    return World(vlm, clean, run, literal)


@pytest.fixture(scope="module", params=KINDS)
def world(request):
    return world_of(request.param)


SENDERS = {
    "a head": (Site("z", 1, 2),),
    "an MLP": (Site("mlp_out", 0),),
    "embeddings": (Site("embed"),),
    "all three": (Site("embed"), Site("mlp_out", 0), Site("z", 1, 0)),
}
RECEIVERS = {
    "the logits": Site("resid_post", 3),
    "a query": Site("q", 2, 3),
    "a key": Site("k", 2, 1),
    "values of all heads": Site("v", 3),
    "an MLP": Site("mlp_out", 2),
    "what attention writes": Site("attn_out", 3),
}
LATE = "a query", "an MLP", "the logits"


def places_of(world):
    """Positions that send and that receive."""
    at, layout = Positions.of, world.clean.layout
    image, last = layout["image"], layout["last"]
    some = at(image.indices[::3]) | layout["query"] | last
    yield None, None
    yield some, some | at(image.indices[1])


def check(world, paths):
    """Engine and reference say what the literal passes say, and that is something."""
    wanted = torch.stack([world.literal.patched(path) for path in paths])
    given = {"runs": {"corrupted": world.run}}
    found = mv.intervene(world.vlm, world.clean, paths, **given)
    torch.testing.assert_close(found, wanted, rtol=0, atol=CLOSE)
    for path, one in list(zip(paths, wanted, strict=True))[::7]:
        slow = reference.intervene(world.vlm, world.clean, [path], **given)[0]
        torch.testing.assert_close(slow, one, rtol=0, atol=CLOSE)
    return (wanted - world.literal.clean["logits"]).abs().amax(dim=1)


@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
@pytest.mark.parametrize("receiver", RECEIVERS)
def test_a_path_is_what_literal_passes_say(world, receiver, mlps):
    paths = [
        PathPatch(senders, (RECEIVERS[receiver],), "corrupted", at, to, mlps)
        for senders in SENDERS.values()
        for at, to in places_of(world)
    ]
    moved = check(world, paths)
    silent = [path for path, by in zip(paths, moved, strict=True) if by < SHOWS]
    # The word at the end is the same in both prompts, so its embedding sends nothing.
    assert all(path.senders == SENDERS["embeddings"] for path in silent)
    assert not silent or receiver in LATE


@pytest.mark.parametrize("receiver", RECEIVERS)
def test_mlps_on_the_way_make_a_difference(world, receiver):
    """Recomputed and frozen are two questions wherever an MLP stands between."""
    ends = SENDERS["all three"], (RECEIVERS[receiver],), "corrupted"
    paths = [PathPatch(*ends, mlps=mlps) for mlps in ("recomputed", "frozen")]
    one, other = (world.literal.patched(path) for path in paths)
    assert (one - other).abs().max() > SHOWS


def test_attention_gathers_from_positions_that_do_not_receive(world):
    image, last = world.clean.layout["image"], world.clean.layout["last"]
    paths = [
        PathPatch(senders, (Site("attn_out", 2),), "corrupted", image, last, mlps)
        for senders in SENDERS.values()
        for mlps in ("recomputed", "frozen")
    ]
    assert (check(world, paths) > SHOWS).all()


def test_a_head_of_the_same_layer_reaches_what_attention_writes(world):
    heads = Site("z", 2, 1), Site("z", 0, 3)
    paths = [
        PathPatch(senders, (Site("attn_out", 2),), "corrupted", mlps=mlps)
        for senders in (heads, heads[:1])
        for mlps in ("recomputed", "frozen")
    ]
    assert (check(world, paths) > SHOWS).all()


def test_trap_14_a_key_serves_every_query_head_of_its_group():
    """Its path is not the one of either head's query, and not their sum."""
    world = world_of("grouped queries")
    head = (Site("z", 1, 2),)
    key, *queries = (Site("k", 3, 1), Site("q", 3, 2), Site("q", 3, 3))
    paths = [
        PathPatch(head, (each,), "corrupted", mlps="frozen") for each in (key, *queries)
    ]
    moved = check(world, paths)
    assert (moved > SHOWS).all() and len({float(by) for by in moved}) == 3


def test_trap_18_an_image_gathers_from_behind_where_it_reads_both_ways():
    """An image position hears the one behind it, if the mask lets it read it."""
    moved = []
    for name in KINDS:
        world = world_of(name)
        image = world.clean.layout["image"]
        ends = (Site("z", 0),), (Site("attn_out", 2),), "corrupted"
        before, last = (Positions.of(image.indices[i]) for i in (-2, -1))
        paths = [
            PathPatch(*ends, last, before, mlps) for mlps in ("recomputed", "frozen")
        ]
        moved.append((check(world, paths) > SHOWS).tolist())
    assert moved == [[False, False], [False, False], [True, True]]
