"""Sixteen bits, and weights that are not where the model is."""

from dataclasses import replace

import pytest
import sweeping
import tiny
import torch
from sweeping import every_intervention, scene_of

import mechvlm as mv
from mechvlm import Ablate, Positions, Site, reference

GROUPED = tiny.KINDS[1]

# --- 16 bits --------------------------------------------------------------------------


def sixteen_bits(name, dtype):
    """A scene in fp32 and its twin in 16 bits: the same weights, runs and vectors."""
    if name == "demo":
        full, half = mv.load("demo"), mv.load("demo")
        pictures = [mv.scenes.sample(seed=seed).image for seed in range(2)]
        ask = [vlm.prompt for vlm in (full, half)]
        question = "how many objects are there ?"
        ours, theirs = (full.prompt(question, picture) for picture in pictures)
        scene = sweeping.Scene.of(full, ours, theirs)
        half = half.to(dtype)
        return scene, replace(scene, vlm=half, prompt=ask[1](question, pictures[0]))
    scene = scene_of(name)
    half = mv.HookedVLM(*tiny.build(name)).to(dtype)
    return scene, replace(scene, vlm=half, prompt=tiny.ask(half, sweeping.QUESTION))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("name", ["demo", GROUPED, tiny.GEMMA_KINDS[1]], ids=str)
def test_sixteen_bits_are_as_near_the_truth_as_plain_passes(
    name, dtype, record_testsuite_property
):
    scene, half = sixteen_bits(name, dtype)
    todo = [mv.NOTHING, *every_intervention(scene)[::8]]
    truth = scene.truth(todo)
    engine, plain = (run(todo).float() for run in (half.engine, half.truth))
    ours, theirs = ((found - truth).abs().mean(dim=1) for found in (engine, plain))
    both = f"engine {ours.mean():.3g}, plain loop {theirs.mean():.3g}"
    record_testsuite_property(f"distance to fp32: {name} {dtype}", both)
    assert ours.mean() <= 1.5 * theirs.mean() + 1e-4, both
    # No single one is far off where the plain loop is near.
    assert (ours <= 4 * theirs + 4 * theirs.mean()).all()
    moved = (truth - truth[0]).abs().mean(dim=1)[1:]
    assert moved.median() > 5 * theirs.mean(), "rounding hides what was done"


@pytest.mark.parametrize("kind", tiny.GEMMA_KINDS, ids=sweeping.name_of)
def test_an_emptied_attention_is_empty_in_sixteen_bits(kind):
    """Trap: a norm stands behind it, and makes a whole signal of what rounding left."""
    scene, half = sixteen_bits(kind, torch.bfloat16)
    at = scene.prompt.layout["query"] | scene.prompt.layout["last"]
    sites = [Site("result", 1), Site("z", 1), Site("attn_out", 1)]
    todo = [Ablate(site, at) for site in sites]
    truth, found = scene.truth(todo), half.engine(todo)
    assert (found - truth).abs().mean(dim=1).max() < 0.05
    assert (scene.truth([mv.NOTHING]) - truth).abs().mean(dim=1).min() > 0.1


# --- weights on other devices and on the disk -----------------------------------------


@pytest.fixture(scope="module", params=["all on one", "some on the disk"])
def dispatched(request, tmp_path_factory):
    """A model under accelerate's hooks; weights on the disk are read at each call."""
    accelerate = pytest.importorskip("accelerate")
    model, processor = tiny.build(GROUPED)
    names = "vision_tower", "multi_modal_projector", "language_model"
    device = dict.fromkeys((f"model.{name}" for name in names), "cpu")
    if request.param == "some on the disk":
        del device["model.language_model"]
        parts = [name for name, _ in model.model.language_model.named_children()]
        named = {f"model.language_model.{name}": "cpu" for name in parts}
        del named["model.language_model.layers"]
        device |= named | {
            f"model.language_model.layers.{i}": "disk" if i % 2 else "cpu"
            for i in range(4)
        }
    folder = tmp_path_factory.mktemp("offloaded")
    device["lm_head"] = "cpu"
    accelerate.dispatch_model(
        model, device, main_device="cpu", offload_dir=folder, force_hooks=True
    )
    vlm = mv.HookedVLM(model, processor)
    scene = scene_of(GROUPED)
    return replace(scene, vlm=vlm, prompt=tiny.ask(vlm, sweeping.QUESTION))


def where(scene):
    layers = scene.vlm.hf_model.model.language_model.layers
    return [str(next(layer.parameters()).device) for layer in layers]


# Reading the way of the weights on the disk, torch says that a tensor is read-only.
@pytest.mark.filterwarnings("ignore:The given NumPy array is not writable")
class TestDispatched:
    def test_the_same_answers_as_on_one_device(self, dispatched):
        plain, before = scene_of(GROUPED), where(dispatched)
        todo = [
            what
            for what in every_intervention(plain)
            if not any(
                isinstance(part, Ablate | mv.Add | mv.Patch)
                and part.site.component == "result"
                for part in mv.interventions.parts(what)
            )
        ][::7]
        wanted = plain.truth(todo)
        sweeping.check_equal(plain, dispatched.engine(todo), wanted)
        sweeping.check_equal(plain, dispatched.truth(todo[::5]), wanted[::5])
        metric = mv.logit_difference(dispatched.vlm, "red", "blue")
        found = dispatched.engine(todo, metric=metric, batch_tokens=50)
        sweeping.check_equal(plain, found, metric(wanted))
        assert where(dispatched) == before

    def test_heads_results(self, dispatched):
        plain = scene_of(GROUPED)
        last = plain.prompt.layout["last"]
        todo = [
            Ablate(Site("result", layer, head), last)
            for layer in range(4)
            for head in (None, 2)
        ]
        if "meta" in where(dispatched):
            for run in (dispatched.engine, dispatched.truth):
                with pytest.raises(mv.HookError, match="are offloaded"):
                    run(todo)
            return
        wanted = reference.intervene(plain.vlm, plain.prompt, todo)
        sweeping.check_equal(plain, dispatched.engine(todo), wanted)
        sweeping.check_equal(plain, dispatched.truth(todo), wanted)

    def test_one_base_run_serves_many_sweeps(self, dispatched):
        """Trap: weights that come and go are other objects each time."""
        plain = scene_of(GROUPED)
        base = mv.base_run(dispatched.vlm, dispatched.prompt)
        last = plain.prompt.layout["last"]
        for layer in (0, 1, 3):
            for what in (Ablate(Site("z", layer), last), sweeping.cuts_of(plain)[0]):
                found = mv.intervene(dispatched.vlm, base, what)
                sweeping.check_equal(plain, found, plain.truth([what]))
        if "meta" in where(dispatched):
            value = Ablate(Site("k", 1), Positions.of(4))
            assert mv.plan(dispatched.vlm, base, value).work > 0
