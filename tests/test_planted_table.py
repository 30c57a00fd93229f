"""The table of planted circuits, found again through mechvlm's own calls.

The oracle is `EXPECTED`: hand arithmetic, which test_planted.py holds against plain
Hugging Face passes. Here each cell is asked for as a researcher would ask.
"""

import math
from functools import cache

import numpy as np
import pytest
import torch

import mechvlm as mv
from mechvlm import Ablate, Knockout, Patch, Positions, Site, reference
from mechvlm.models import planted
from mechvlm.models.planted import CHANCE, CIRCUITS, EXPECTED, SURE, TOLERANCE, scene

N_LAYERS = 3
PERCENT = 100 * TOLERANCE


def check_close(found, wanted, abs=TOLERANCE):
    """Compare within the stated tolerance, at once if both are sequences."""
    assert found == pytest.approx(wanted, rel=0, abs=abs)


@cache
def hooked(circuit, sink=True):
    return mv.HookedVLM(*planted.build(circuit, sink=sink))


def ask(vlm, content=0):
    return vlm.prompt(planted.QUESTION, scene(content), system=planted.SYSTEM)


def probabilities(vlm, logits):
    """P of the four answers, [run answer]."""
    ids = [vlm.to_single_token(word) for word in planted.ANSWERS]
    return logits.softmax(dim=-1)[:, ids]


class World:
    """One circuit, its clean and corrupted prompts and what was recorded of them."""

    def __init__(self, circuit):
        self.circuit, self.truth = circuit, EXPECTED[circuit]
        self.vlm = hooked(circuit)
        self.clean, self.corrupted = ask(self.vlm, 0), ask(self.vlm, 1)
        layout = self.clean.layout
        self.last = layout.last
        self.at = {
            name: layout[name] for name in ("bos", "system", "image", "query", "last")
        }
        red = np.array(self.clean.image)[:, :, 0] > 0
        self.at["object"] = layout.region(red)
        self.at["background"] = self.at["image"] - self.at["object"]
        self.at["query+last"] = self.at["query"] | self.at["last"]
        sites = ["resid_pre", Site("resid_post", N_LAYERS - 1)]
        self.runs = {
            "clean": mv.record(self.vlm, self.clean, sites),
            "corrupted": mv.record(self.vlm, self.corrupted, sites),
        }
        mean = planted.background_vector(self.vlm.hf_model, self.vlm.processor)
        self.vectors = {"background": mean}
        for layer in range(N_LAYERS):
            self.vectors[f"h{layer}"] = self.h(layer)[list(self.at["image"])]

    def h(self, layer, run="clean"):
        """The stream that enters a layer; after the last one, what leaves it."""
        end = layer == N_LAYERS
        site = Site("resid_post", layer - 1) if end else Site("resid_pre", layer)
        return self.runs[run][site]

    def p(self, *interventions, answer=0, prompt=None):
        """P of an answer after each of several interventions."""
        logits = reference.intervene(
            self.vlm,
            prompt or self.clean,
            list(interventions),
            runs=self.runs,
            vectors=self.vectors,
        )
        return tuple(probabilities(self.vlm, logits)[:, answer].tolist())

    def hold(self, source, layer):
        """Put the image tokens of h[source] into the input of a layer."""
        return Ablate(Site("resid_pre", layer), self.at["image"], value=f"h{source}")


@pytest.fixture(scope="module", params=CIRCUITS)
def world(request):
    return World(request.param)


def per_layer(make):
    return [make(layer) for layer in range(N_LAYERS)]


# --- the prompt -----------------------------------------------------------------------


def test_the_layout_finds_every_group(world):
    found = {name: tuple(world.at[name]) for name in planted.POSITIONS}
    assert found == planted.POSITIONS
    assert world.clean.layout["template"] == world.at["last"]


def test_clean_and_corrupted(world):
    check_close(world.p(mv.NOTHING), (world.truth.base,))
    check_close(world.p(mv.NOTHING, prompt=world.corrupted), (world.truth.corrupted,))


# --- ablation -------------------------------------------------------------------------


@pytest.mark.parametrize("site", [Site("embed"), Site("resid_pre", 0)], ids=repr)
def test_ablation(world, site):
    pair = Positions.of(list(world.at["object"])[:2])
    sets = {
        "object": world.at["object"],
        "background": world.at["background"],
        "two of three": pair,
    }
    done = [Ablate(site, at, value="background") for at in sets.values()]
    check_close(dict(zip(sets, world.p(*done), strict=True)), world.truth.ablated)


def test_zeros_ablate_as_the_background_does(world):
    zeroed = world.p(Ablate(Site("embed"), world.at["object"]))
    check_close(zeroed, (world.truth.ablated["object"],))


# --- knockout -------------------------------------------------------------------------


def test_knockout_per_layer(world):
    for name, wanted in world.truth.knockout.items():
        source, target = name.split("->")
        cut = world.at[target], world.at[source]
        found = world.p(
            *per_layer(lambda layer, cut=cut: Knockout(range(layer, layer + 1), *cut))
        )
        assert found == pytest.approx(wanted, rel=0, abs=TOLERANCE), name


def test_knockout_from_a_layer_on(world):
    cut = world.at["query+last"], world.at["image"]
    found = world.p(*per_layer(lambda layer: Knockout(range(layer, N_LAYERS), *cut)))
    check_close((*found, *world.p(mv.NOTHING)), world.truth.knockout_from)


def test_knockout_windows_say_percent_of_the_clean_probability(world):
    cuts = {}
    for name in world.truth.knockout:
        source, target = name.split("->")
        cuts[name] = world.at[target], world.at[source]
    drop = mv.knockout_windows(
        world.vlm, world.clean, cuts, answer=planted.ANSWERS[0], width=1
    )
    check_close(drop.attrs["clean"], world.truth.base)
    for name, wanted in world.truth.knockout.items():
        percent = tuple(100 * (p / world.truth.base - 1) for p in wanted)
        check_close(
            tuple(drop.sel(cut=name).values), percent, PERCENT / world.truth.base
        )


@pytest.mark.parametrize("mode", ["from", "upto"])
def test_knockout_windows_to_the_end_and_from_the_start(world, mode):
    cuts = {"image->query+last": (world.at["query+last"], "image")}
    drop = mv.knockout_windows(world.vlm, world.clean, cuts, answer="zero", mode=mode)
    found = tuple(world.truth.base * (1 + drop[0].values / 100))
    wanted = world.truth.knockout_from[:N_LAYERS]
    if mode == "upto":  # at which layer the circuit first reads the image is cut
        reader = world.truth.locates[1]
        cut = [layer >= reader for layer in range(N_LAYERS)]
        wanted = tuple(CHANCE if dead else world.truth.base for dead in cut)
    check_close(found, wanted)


@pytest.mark.parametrize("heads", [(0,), (1,), (0, 1)])
def test_only_head_0_has_influence(heads):
    world = World("direct")
    cut = Knockout(range(1, 2), world.at["last"], world.at["object"], heads)
    check_close(world.p(cut), (CHANCE if 0 in heads else SURE,))
    silent = [Ablate(Site("z", 1, head), world.at["last"]) for head in heads]
    check_close(world.p(tuple(silent)), (CHANCE if 0 in heads else SURE,))


@pytest.mark.parametrize(
    ("sink", "wanted"), [(False, planted.RENORMALISED), (True, [CHANCE] * 4)]
)
def test_without_a_sink_a_knockout_invents_an_answer(sink, wanted):
    vlm = hooked("direct", sink)
    prompt = ask(vlm)
    at = Positions.of(planted.POSITIONS["object"])
    cut = Knockout(range(N_LAYERS), prompt.layout["last"], at)
    base, done = probabilities(vlm, reference.intervene(vlm, prompt, [mv.NOTHING, cut]))
    check_close(base[0].item(), SURE)
    check_close(done.tolist(), list(wanted))


# --- patching -------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [0, 1])
def test_cross_patch(world, answer):
    wanted = (world.truth.original, world.truth.injected)[answer]
    swaps = per_layer(
        lambda layer: Patch(Site("resid_pre", layer), world.at["image"], "corrupted")
    )
    check_close(world.p(*swaps, answer=answer), wanted)


def test_a_donor_of_another_place_in_the_picture():
    """`from_` reads elsewhere: the donor's object lands where the target has none."""
    world = World("direct")
    donor = mv.record(world.vlm, world.corrupted, ["resid_pre"])
    moved = Positions.of(2, 3, 4)
    site = Site("resid_pre", 0)
    blank = Ablate(site, world.at["object"], value="background")
    put = Patch(site, moved, "donor", from_=world.at["object"])
    logits = reference.intervene(
        world.vlm,
        world.clean,
        [(blank, put)],
        runs={"donor": donor},
        vectors=world.vectors,
    )
    check_close(probabilities(world.vlm, logits)[0, 1].item(), SURE)


@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_recovery_at_the_object(world, direction):
    metric = mv.logit_difference(world.vlm, "zero", "one")
    call = {"metric": metric, "direction": direction}
    at = {name: world.at[name] for name in ("object", "background")}
    if world.truth.recovery is None:
        with pytest.raises(mv.MetricError, match="no gap to recover"):
            mv.activation_patching(
                world.vlm, world.clean, world.corrupted, at=at, **call
            )
        return
    heat = mv.activation_patching(
        world.vlm, world.clean, world.corrupted, at=at, **call
    )
    # One circuit and nothing beside it: what suffices to restore it, destroys it.
    wanted = world.truth.recovery
    if direction == "noise":
        wanted = tuple(1 - share for share in wanted)
    check_close(tuple(heat.sel(set="object").values), wanted)
    idle = 0.0 if direction == "denoise" else 1.0
    check_close(tuple(heat.sel(set="background").values), (idle,) * N_LAYERS)
    check_close((heat.attrs["clean"], heat.attrs["corrupted"]), (4, -4), 4 * TOLERANCE)


def test_the_relay_hands_the_class_from_the_object_to_the_question_to_the_end():
    """Every position alone.

    An object token is one of three that a question word reads, and a question word one
    of two that the last position reads.
    """
    world = World("relay")
    metric = mv.logit_difference(world.vlm, "zero", "one")
    heat = mv.activation_patching(
        world.vlm, world.clean, world.corrupted, metric=metric
    )
    wanted = np.zeros((N_LAYERS, 21))
    wanted[0, list(world.at["object"])] = 1 / 3
    wanted[1:, list(world.at["query"])] = 1 / 2
    np.testing.assert_allclose(heat.values, wanted, rtol=0, atol=TOLERANCE)
    assert list(heat["token"].values[-3:]) == ["what", "digit", "answer"]


def test_freezing(world):
    found = {
        source: world.p(
            tuple(world.hold(source, layer) for layer in range(source + 1, N_LAYERS))
        )[0]
        for source in world.truth.frozen
    }
    check_close(found, world.truth.frozen)


def test_back_patching(world):
    found = {
        (source, target): world.p(world.hold(source, target))[0]
        for source, target in world.truth.back_patched
    }
    check_close(found, world.truth.back_patched)


# --- reading --------------------------------------------------------------------------


@torch.no_grad()
def test_the_lens_reads_the_object(world):
    names = [f"blocks.{layer}.hook_resid_pre" for layer in range(N_LAYERS)]
    names.append(f"blocks.{N_LAYERS - 1}.hook_resid_post")
    _, cache = world.vlm.run_with_cache(world.clean, names_filter=names)
    zero = world.vlm.to_single_token("zero")
    rows = list(world.at["object"])
    tops = [
        (world.vlm.ln_final(cache[name][0, rows]) @ world.vlm.W_U).argmax(dim=-1)
        for name in names
    ]
    assert tuple((top == zero).float().mean().item() for top in tops) == (
        world.truth.lens
    )


def test_attention_fractions_of_the_last_position(world):
    rows = mv.attention_patterns(world.vlm, world.clean).mean("head")
    last = rows.sel(target=world.last)
    groups = ("bos", "system", "image", "query", "last")
    for layer, reads in enumerate(world.truth.reads):
        row = last.sel(layer=layer)
        found = {
            group: float(row.sel(source=list(world.at[group])).sum())
            for group in groups
        }
        check_close(found, {group: float(group == reads) for group in groups})
    named = last.groupby("source_group").sum()
    check_close(tuple(named.sum("source_group").values), (1, 1, 1))


def test_attention_lies_on_the_object(world):
    reader, layer = world.truth.locates
    rows = mv.attention_patterns(world.vlm, world.clean, layers=[layer]).mean("head")
    row = rows.sel(layer=layer, target=next(iter(world.at[reader])))
    image = row.sel(source=list(world.at["image"]))
    assert int(image.idxmax()) in world.at["object"]
    on_object = row.sel(source=list(world.at["object"]))
    check_close(float(on_object.sum() / image.sum()), 1)
    check_close(on_object.values.tolist(), [1 / 3] * 3)


def test_integrated_gradients_are_complete(world):
    """Gradients flow through `hook_embed`, from a hook that puts a new value there."""
    steps = 60
    clean = world.h(0)
    rows = list(world.at["image"])
    baseline = clean.clone()
    baseline[rows] = world.vectors["background"]
    zero = world.vlm.to_single_token("zero")

    def logit(embeds):
        put = ("hook_embed", lambda _, hook: embeds[None])
        return world.vlm.run_with_hooks(world.clean, fwd_hooks=[put])[0, -1, zero]

    gradient = torch.zeros_like(clean)
    for step in range(steps):
        share = (step + 0.5) / steps
        at = (baseline + share * (clean - baseline)).requires_grad_()
        gradient += torch.autograd.grad(logit(at), at)[0] / steps
    given = (gradient * (clean - baseline)).sum(dim=-1)
    with torch.no_grad():
        whole = (logit(clean) - logit(baseline)).item()
    # The integral is a sum of 60 here; both it and the logits are in units of 4.
    check_close(given.sum().item(), whole, 4 * TOLERANCE)
    check_close(whole, world.truth.attribution, 4 * TOLERANCE)
    if whole > 1:
        assert sorted(given.topk(3).indices.tolist()) == list(world.at["object"])
    else:
        assert math.isclose(world.truth.base, CHANCE)


def test_a_planted_model_says_its_answer_and_stops(world):
    """One word and the end; `too_late` has nothing to say, and all four words tie."""
    made = world.vlm.generate(world.clean, max_new_tokens=5)
    if world.circuit == "too_late":
        check_close(probabilities(world.vlm, made.logits)[0].tolist(), [CHANCE] * 4)
    else:
        assert made.text == "zero"
    assert len(made.ids) == 2
    cut = Knockout(range(N_LAYERS), world.at["query+last"], world.at["image"])
    blind = world.vlm.generate(world.clean, max_new_tokens=1, interventions=cut)
    check_close(probabilities(world.vlm, blind.logits)[0].tolist(), [CHANCE] * 4)
