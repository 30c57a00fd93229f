"""The causal cone is exactly what a nudge moves, and of that what the answer feels.

Oracle: a small attention network in fp64 that is written here, nudged by hand. What
moves is seen by comparing two passes bit by bit, what matters by backpropagation.
"""

from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeping import KINDS, name_of, scene_of

from mechvlm import NOTHING, Ablate, Knockout, PathPatch, Positions, Site
from mechvlm.cone import (
    Cones,
    Reads,
    Step,
    cells_of,
    positions_of,
    reach,
    span,
)
from mechvlm.sites import COMPONENTS

N, LAYERS, WIDTH = 9, 4, 6
LAST = N - 1


# --- masks, drawn by hand -------------------------------------------------------------


def picture(rows):
    """A mask from text: row t, column s, "x" where t reads s."""
    return torch.tensor([[c == "x" for c in row] for row in rows.split()])


CAUSAL = picture(
    """x........ xx....... xxx...... xxxx..... xxxxx....
    xxxxxx... xxxxxxx.. xxxxxxxx. xxxxxxxxx"""
)
IMAGE = picture(  # positions 1..3 read one another both ways
    """x........ xxxx..... xxxx..... xxxx..... xxxxx....
    xxxxxx... xxxxxxx.. xxxxxxxx. xxxxxxxxx"""
)
WINDOW = picture(
    """x........ xx....... xxx...... .xxx..... ..xxx....
    ...xxx... ....xxx.. .....xxx. ......xxx"""
)
WINDOWED_IMAGE = picture(
    """x........ xxxx..... xxxx..... .xxx..... ..xxx....
    ...xxx... ....xxx.. .....xxx. ......xxx"""
)
PREFIX = picture(
    """xxxxxx... xxxxxx... xxxxxx... xxxxxx... xxxxxx...
    xxxxxx... xxxxxxx.. xxxxxxxx. xxxxxxxxx"""
)
WHOLE = torch.ones(N, N, dtype=torch.bool)
PADDED = picture(
    """......... ......... ..x...... ..xx..... ..xxx....
    ..xxxx... ..xxxxx.. ..xxxxxx. ..xxxxxxx"""
)
MASKS = [CAUSAL, IMAGE, WINDOW, WINDOWED_IMAGE, PREFIX, WHOLE, PADDED]


def padded_in_all_or_none(masks):
    """What is padding is so in every layer."""
    if masks[0] is PADDED:
        return [PADDED] * LAYERS
    return [CAUSAL if mask is PADDED else mask for mask in masks]


any_masks = st.lists(st.sampled_from(MASKS), min_size=LAYERS, max_size=LAYERS).map(
    padded_in_all_or_none
)
any_positions = st.sets(st.integers(0, LAST), min_size=1, max_size=4)


# --- the oracle -----------------------------------------------------------------------


class Network:
    """Attention and MLP in every layer; nothing of it is shared with mechvlm."""

    def __init__(self, masks):
        draw = torch.Generator().manual_seed(7)

        def numbers(*shape):
            return torch.randn(*shape, generator=draw, dtype=torch.float64)

        self.masks = masks
        self.start = numbers(N, WIDTH)
        self.weights = numbers(LAYERS, 6, WIDTH, WIDTH) / WIDTH**0.5
        self.nudge = numbers(WIDTH)

    def __call__(self, intervention=()):
        """Every activation `[position width]` by (component, layer)."""
        seen = {}

        def at(component, layer, value):
            seen["unwritten", component, layer] = value
            for part in intervention:
                if isinstance(part, Ablate):
                    site = part.site.component, part.site.layer
                    if site == (component, layer):
                        value = value.clone()
                        value[list(part.at)] += self.nudge
            seen[component, layer] = value.requires_grad_().clone()
            return seen[component, layer]

        stream = at("embed", None, self.start.clone())
        for layer in range(LAYERS):
            stream = self._layer(
                layer, at, at("resid_pre", layer, stream), intervention
            )
            stream = at("resid_post", layer, stream)
        seen["end"] = stream
        return seen

    def _layer(self, layer, at, stream, intervention):
        w_q, w_k, w_v, w_o, w_in, w_out = self.weights[layer]
        q, k, v = (
            at(name, layer, stream.tanh() @ weight)
            for name, weight in (("q", w_q), ("k", w_k), ("v", w_v))
        )
        open_ = self.masks[layer].clone()
        for cut in intervention:
            if isinstance(cut, Knockout) and layer in cut.layers:
                for target in cut.target:
                    open_[target, list(cut.source)] = False
        weights = (q @ k.T / WIDTH).exp() * open_
        # A sink beside the keys: else the weight of a lone key would always be 1.
        z = at("z", layer, weights @ v / (1 + weights.sum(dim=1, keepdim=True)))
        middle = at("resid_mid", layer, stream + at("attn_out", layer, z @ w_o))
        post = at("mlp_post", layer, (middle @ w_in).tanh())
        return middle + at("mlp_out", layer, post @ w_out)


def moved(clean, nudged, *where):
    """Positions at which an activation differs."""
    return set((clean[where] != nudged[where]).any(dim=1).nonzero().flatten().tolist())


def felt(seen, *where, last=LAST):
    """Positions of an activation that the end of the last one, or behind it, feels."""
    probe = torch.linspace(1, 2, WIDTH, dtype=torch.float64)
    (slope,) = torch.autograd.grad(
        (seen["end"][last:] @ probe).sum(),
        seen[where],
        retain_graph=True,
        allow_unused=True,
    )
    return (
        set() if slope is None else set(slope.any(dim=1).nonzero().flatten().tolist())
    )


# --- reach ----------------------------------------------------------------------------


@given(masks=any_masks, layer=st.integers(0, LAYERS), at=any_positions)
def test_reach_is_exactly_what_a_nudge_moves(masks, layer, at):
    network = Network(masks)
    into = layer < LAYERS
    site = Site("resid_pre", layer) if into else Site("resid_post", LAYERS - 1)
    clean, nudged = network(), network([Ablate(site, Positions.of(at))])
    wanted = [
        *(moved(clean, nudged, "resid_pre", boundary) for boundary in range(LAYERS)),
        moved(clean, nudged, "resid_post", LAYERS - 1),
    ]
    found = reach(torch.stack(masks), layer, at)
    assert found.shape == (LAYERS + 1, N)
    assert [set(row.nonzero().flatten().tolist()) for row in found] == wanted


def test_reach_by_hand():
    """A window of three passes on two positions a layer; an image goes back as well."""
    window = reach(torch.stack([WINDOW] * 3), 0, [2])
    assert [row.nonzero().flatten().tolist() for row in window] == [
        *([2], [2, 3, 4], [2, 3, 4, 5, 6], [2, 3, 4, 5, 6, 7, 8])
    ]
    image = reach(torch.stack([WINDOWED_IMAGE] * 2), 1, [3])
    assert image.nonzero().tolist() == [[1, 3], *([2, p] for p in (1, 2, 3, 4, 5))]
    assert not torch.equal(image, reach(torch.stack([WINDOW] * 2), 1, [3]))


@torch.no_grad()
def streams(scene, layer=None, at=()):
    """Oracle: Hugging Face with torch's own hooks; [boundary position d_model]."""
    seen = []
    decoder = scene.vlm.hf_model.model.language_model

    def enter(number):
        def hook(_, args):
            stream = args[0].clone()
            if number == layer:
                stream[0, list(at)] *= -1
            seen.append(stream[0])
            return (stream, *args[1:])

        return hook

    hooks = [
        module.register_forward_pre_hook(enter(number))
        for number, module in enumerate((*decoder.layers, decoder.norm))
    ]
    try:
        scene.vlm.hf_model(**scene.prompt.inputs, use_cache=False)
    finally:
        for hook in hooks:
            hook.remove()
    return torch.stack(seen)


@pytest.mark.parametrize("kind", KINDS, ids=name_of)
def test_reach_of_the_masks_of_real_models(kind):
    scene = scene_of(kind)
    clean, image = streams(scene), scene.prompt.layout["image"].indices
    for layer, at in ((0, [image[-1]]), (1, [2, image[5]]), (2, [image[-2]]), (4, [4])):
        changed = (streams(scene, layer, at) != clean).any(dim=-1)
        assert torch.equal(reach(scene.reads, layer, at), changed), (layer, at)


# --- steps ----------------------------------------------------------------------------


WRITTEN = [c for c in COMPONENTS if c != "result"]
writes = st.tuples(st.sampled_from(WRITTEN), st.integers(0, LAYERS - 1), any_positions)
cuts = st.tuples(
    st.just("cut"),
    st.integers(0, LAYERS - 1),
    st.sets(st.integers(2, LAST), min_size=1, max_size=3),
)


def made(recipe):
    """A write, or a cut from everything."""
    kind, layer, at = recipe
    if kind == "cut":
        return Knockout((layer,), Positions.of(at), Positions.of(range(N)))
    return Ablate(Site(kind, None if kind == "embed" else layer), Positions.of(at))


def wanted_steps(masks, what, last=LAST):
    """What the oracle sees: of each layer that counts, all that a `Step` says.

    Positions behind the last one are generated later, from the prompt's keys.
    """
    network, prompt = Network(masks), set(range(last + 1))
    clean, nudged = network(), network(what)
    counts = [
        {s for s in felt(clean, *where, last=last) if s in prompt}
        for layer in range(LAYERS)
        for where in [("resid_pre", layer + 1)][: LAYERS - 1 - layer]
        or [("resid_post", layer)]
    ]
    for layer in range(LAYERS):
        # A write to what leaves the layer is not the layer's own work.
        out = moved(clean, nudged, "unwritten", "resid_post", layer) & counts[layer]
        z = moved(clean, nudged, "unwritten", "z", layer) & prompt
        keys = prompt & felt(clean, "v", layer, last=last)
        keys &= moved(clean, nudged, "k", layer) | moved(clean, nudged, "v", layer)
        z &= felt(clean, "z", layer, last=last)
        if not z and last == LAST:
            keys = set()
        if out | keys:
            yield layer, out, keys, bool(z or keys)
    if last in moved(clean, nudged, "resid_post", LAYERS - 1):
        yield LAYERS, {last}, set(), False


def hull(positions):
    return range(min(positions), max(positions) + 1) if positions else range(0)


@settings(max_examples=300)
@given(
    masks=any_masks,
    recipes=st.lists(writes | cuts, min_size=1, max_size=3),
    last=st.just(LAST) | st.just(6),
)
def test_steps_are_exactly_what_moves_and_is_felt(masks, recipes, last):
    """Nothing less, or the answer is wrong; nothing more, or the work is."""
    what = tuple(map(made, recipes))
    masks = [mask.clone() for mask in masks]
    for mask in masks:  # no position of the prompt reads what is generated
        mask[: last + 1, last + 1 :] = False
    found = Cones(Reads(masks), last).of(what)
    wanted = [
        Step(layer, hull(out | keys), hull(out), attends, len(out), len(keys - out))
        for layer, out, keys, attends in wanted_steps(masks, what, last)
    ]
    assert list(found) == wanted
    assert all(one.layer < other.layer for one, other in pairwise(found))


def test_the_oracle_sees_steps_of_every_form():
    """Else the test above would show little."""
    image = Ablate(Site("resid_pre", 1), Positions.of(2))
    found = {
        name: list(wanted_steps([CAUSAL] * LAYERS, (what,)))
        for name, what in {
            "image": image,
            "late": Ablate(Site("mlp_out", 2), Positions.of(5, LAST)),
            "cut": Knockout((3,), Positions.of(LAST), Positions.of(0, 1)),
            "value": Ablate(Site("v", 3), Positions.of(0, 1)),
            "nowhere": Ablate(Site("z", 3), Positions.of(0, 7)),
        }.items()
    }
    end = (LAYERS, {LAST}, set(), False)
    rest = set(range(2, N))
    assert found == {
        "image": [
            (1, rest, {2}, True),
            (2, rest, rest, True),
            (3, {LAST}, rest, True),
            end,
        ],
        "late": [(2, {5, LAST}, set(), False), (3, {LAST}, {5, LAST}, True), end],
        "cut": [(3, {LAST}, set(), True), end],
        "value": [(3, {LAST}, {0, 1}, True), end],
        "nowhere": [],
    }


def test_what_cannot_reach_the_last_position_has_no_steps():
    cones = Cones(Reads([WINDOW] * LAYERS), LAST)
    far, near = Positions.of(range(4)), Positions.of(4)
    assert cones.of(NOTHING) == cones.of((NOTHING, ())) == ()
    assert cones.of(Ablate(Site("resid_pre", 2), far)) == ()
    assert cones.of(Ablate(Site("resid_pre", 2), near)) != ()
    assert cones.of(Ablate(Site("resid_post", 3), Positions.of(range(LAST)))) == ()
    path = PathPatch((Site("z", 0),), (Site("q", 1),), "other")
    with pytest.raises(TypeError, match="must be lowered before"):
        cones.of(path)


# --- sets -----------------------------------------------------------------------------


@given(masks=any_masks, some=any_positions, layer=st.integers(0, LAYERS - 1))
def test_reads_are_the_masks(masks, some, layer):
    reads, mask = Reads(masks), masks[layer]
    cells = cells_of(some)
    assert torch.equal(reads.mask(layer), mask)
    for target in range(N):
        row = mask[target].nonzero().flatten().tolist()
        assert list(positions_of(reads.readable(layer, target))) == row
    assert list(positions_of(reads.sources(layer, cells))) == [
        s for s in range(N) if any(mask[t, s] for t in some)
    ]
    assert list(positions_of(reads.readers(layer, cells))) == [
        t for t in range(N) if any(mask[t, s] for s in some)
    ]
    for other in range(LAYERS):
        alike = torch.equal(mask, masks[other])
        assert (reads.kind(layer) == reads.kind(other)) == alike
    assert (reads.n_layers, reads.n) == (LAYERS, N)
    assert list(positions_of(reads.everything)) == list(range(N))


@given(masks=any_masks)
def test_what_is_needed_is_what_is_felt(masks):
    seen = Network(masks)()
    wanted = [felt(seen, "resid_pre", layer) for layer in range(LAYERS)]
    found = Reads(masks).needed(LAST)
    assert [set(positions_of(cells)) for cells in found] == [*wanted, {LAST}]


@given(st.sets(st.integers(0, 700)))
def test_cells_are_sets(positions):
    cells = cells_of(positions)
    assert list(positions_of(cells)) == sorted(positions)
    assert span(cells) == hull(positions)


def test_equal_masks_of_other_tensors_are_one_kind():
    reads = Reads([CAUSAL, CAUSAL.clone(), IMAGE, CAUSAL])
    assert reads.kind(0) == reads.kind(1) == reads.kind(3) != reads.kind(2)
