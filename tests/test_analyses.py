"""The analyses against passes made by hand, and what they refuse."""

from importlib import import_module

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm.errors import InterventionError, LayerError, MetricError, PairError

QUESTION = "what color is the cat ?"


@pytest.fixture(scope="module")
def pair(tiny_vlm):
    """Two prompts that differ in the picture, and a metric."""
    clean = tiny_vlm.prompt(QUESTION, tiny.picture(1))
    corrupted = tiny_vlm.prompt(QUESTION, tiny.picture(2))
    return clean, corrupted, mv.logit_difference(tiny_vlm, "red", "blue")


def by_hand(vlm, base, donor, layer, position):
    """Oracle: Hugging Face alone, one row of one layer's input exchanged."""
    layers, seen = vlm.hf_model.model.language_model.layers, {}

    def keep(module, args):
        seen["donor"] = args[0][0, position].clone()

    def put(module, args):
        hidden = args[0].clone()
        hidden[0, position] = seen["donor"]
        return (hidden, *args[1:])

    handle = layers[layer].register_forward_pre_hook(keep)
    vlm.hf_model(**donor.inputs)
    handle.remove()
    handle = layers[layer].register_forward_pre_hook(put)
    logits = vlm.hf_model(**base.inputs).logits[0, -1]
    handle.remove()
    red, blue = vlm.to_single_token("red"), vlm.to_single_token("blue")
    return float(logits[red] - logits[blue])


@torch.no_grad()
@pytest.mark.parametrize("direction", ["denoise", "noise"])
def test_patching_is_the_pass_made_by_hand(tiny_vlm, pair, direction):
    clean, corrupted, metric = pair
    base, donor = (corrupted, clean) if direction == "denoise" else (clean, corrupted)
    at = mv.Positions.of(4, clean.layout.last)
    heat = mv.activation_patching(
        tiny_vlm, clean, corrupted, metric=metric, at=at, direction=direction
    )
    assert heat.dims == ("layer", "position")
    assert heat["position"].values.tolist() == list(at)
    gap = heat.attrs["clean"] - heat.attrs["corrupted"]
    for layer in range(tiny_vlm.cfg.n_layers):
        for i, position in enumerate(at):
            wanted = by_hand(tiny_vlm, base, donor, layer, position)
            assert float(heat["raw"][layer, i]) == pytest.approx(wanted, abs=1e-5)
            normal = (wanted - heat.attrs["corrupted"]) / gap
            assert float(heat[layer, i]) == pytest.approx(normal, abs=1e-4)
    assert np.ptp(heat.values) > 1e-3


def test_everything_patched_at_once_is_the_other_run(tiny_vlm, pair):
    clean, corrupted, metric = pair
    every = {"all": mv.Positions.of(range(clean.layout.n))}
    for direction, wanted in (("denoise", 1), ("noise", 0)):
        heat = mv.activation_patching(
            tiny_vlm, clean, corrupted, metric=metric, at=every, direction=direction
        )
        assert heat.dims == ("layer", "set")
        np.testing.assert_allclose(heat.values, wanted, atol=1e-4)


def test_heads_add_up_to_the_attention_output(tiny_vlm, pair):
    """All heads' results patched one by one do less than the whole; z is per head."""
    clean, corrupted, metric = pair
    heat = mv.activation_patching(
        tiny_vlm, clean, corrupted, metric=metric, site="z", at="image", layers=[1, 2]
    )
    assert heat.dims == ("layer", "head")
    assert heat.shape == (2, tiny_vlm.cfg.n_heads)
    run = mv.record(tiny_vlm, clean, ["z"])
    patch = mv.Patch(mv.Site("z", 2, 3), clean.layout["image"], "clean")
    raw = mv.intervene(tiny_vlm, corrupted, [patch], runs={"clean": run}, metric=metric)
    assert float(heat["raw"][1, 3]) == pytest.approx(float(raw[0]), abs=1e-6)


@torch.no_grad()
def test_a_group_keeps_its_labels(tiny_vlm, pair):
    clean, corrupted, metric = pair
    heat = mv.activation_patching(
        tiny_vlm, clean, corrupted, metric=metric, at="query", layers=[3]
    )
    assert heat["token"].values.tolist() == QUESTION.split()
    assert set(heat["group"].values) == {"query"}
    assert heat.attrs["paper"] == "arXiv:2404.15255"


@torch.no_grad()
@pytest.mark.parametrize(
    ("mode", "windows"),
    [
        ("window", [(0, 2), (1, 3), (2, 4), (3, 4)]),
        ("from", [(0, 4), (1, 4), (2, 4), (3, 4)]),
        ("upto", [(0, 1), (0, 2), (0, 3), (0, 4)]),
    ],
)
def test_knockouts_are_eager_passes_with_a_mask_made_by_hand(tiny_vlm, mode, windows):
    prompt = tiny_vlm.prompt(QUESTION, tiny.picture(1))
    image, last = prompt.layout["image"], prompt.layout.last
    drop = mv.knockout_windows(
        tiny_vlm,
        prompt,
        {"image->last": ("last", "image"), "query->last": ("last", "query")},
        answer="red",
        width=2,
        mode=mode,
    )
    red = tiny_vlm.to_single_token("red")
    clean = tiny_vlm.hf_model(**prompt.inputs).logits[0, -1].softmax(-1)[red]
    assert drop.attrs["clean"] == pytest.approx(float(clean), rel=1e-4)
    for layer, (start, stop) in enumerate(windows):
        logits = eager(tiny_vlm.hf_model, prompt, range(start, stop), last, list(image))
        wanted = 100 * (logits.softmax(-1)[red] / clean - 1)
        found = float(drop.sel(cut="image->last", layer=layer))
        assert found == pytest.approx(float(wanted), abs=1e-2)
    assert np.abs(drop.values).max() > 0.1


def eager(model, prompt, layers, target, source):
    """Hugging Face alone, eager, with a 4-D additive mask in some of the layers."""
    n = prompt.layout.n
    low = torch.finfo(torch.float32).min
    mask = torch.full((n, n), low).triu(1)
    mask[target, source] = low

    def cut(module, args, kwargs):
        return args, {**kwargs, "attention_mask": mask[None, None]}

    attention = [layer.self_attn for layer in model.model.language_model.layers]
    handles = [
        attention[layer].register_forward_pre_hook(cut, with_kwargs=True)
        for layer in layers
    ]
    model.set_attn_implementation("eager")
    try:
        return model(**prompt.inputs).logits[0, -1]
    finally:
        model.set_attn_implementation("sdpa")
        for handle in handles:
            handle.remove()


def test_attention_rows_sum_to_one_and_carry_names(tiny_vlm, pair):
    pattern = mv.attention_patterns(tiny_vlm, pair[0], layers=[1, 3])
    np.testing.assert_allclose(pattern.sum("source").values, 1, atol=1e-5)
    assert pattern["layer"].values.tolist() == [1, 3]
    assert pattern["source_group"].values[-1] == "template"
    assert float(pattern.isel(target=3, source=slice(4, None)).sum()) == 0


def test_what_cannot_be_analysed_is_refused(tiny_vlm, pair, untouched):
    clean, corrupted, metric = pair
    longer = tiny_vlm.prompt(QUESTION + " ?", tiny.picture(1))
    with pytest.raises(PairError, match="matched one to one"):
        mv.activation_patching(tiny_vlm, clean, longer, metric=metric)
    with pytest.raises(MetricError, match="no gap to recover"):
        mv.activation_patching(tiny_vlm, clean, clean, metric=metric, at="last")
    with pytest.raises(LayerError, match="cannot be patched"):
        mv.activation_patching(tiny_vlm, clean, corrupted, metric=metric, layers=[4])
    with pytest.raises(InterventionError, match="nothing to patch"):
        mv.activation_patching(tiny_vlm, clean, corrupted, metric=metric, at="system")
    with pytest.raises(InterventionError, match="no cut is given"):
        mv.knockout_windows(tiny_vlm, clean, {}, answer="red")
    with pytest.raises(LayerError, match="width=5"):
        cuts = {"x": ("last", "image")}
        mv.knockout_windows(tiny_vlm, clean, cuts, answer="red", width=5)


def test_the_embedding_is_patched_as_what_enters_layer_0(tiny_vlm, pair):
    clean, corrupted, metric = pair
    ways = [
        mv.activation_patching(
            tiny_vlm, clean, corrupted, metric=metric, site=site, at="query", **more
        )
        for site, more in (("embed", {}), ("resid_pre", {"layers": [0]}))
    ]
    assert ways[0]["layer"].values.tolist() == [0]
    np.testing.assert_allclose(ways[0].values, ways[1].values, atol=1e-6)


def test_a_bad_answer_is_told_before_anything_runs(tiny_vlm, pair, no_forward):
    with pytest.raises(mv.TokenError, match="not in the vocabulary"):
        cuts = {"x": ("last", "image")}
        mv.knockout_windows(tiny_vlm, pair[0], cuts, answer="elephant")


def test_a_tuple_is_one_run_and_a_list_is_several(tiny_vlm, pair):
    image, last = pair[0].layout["image"], pair[0].layout["last"]
    cut = mv.Knockout(range(2), last, image)
    gone = mv.Ablate(mv.Site("resid_pre", 3), last)
    both = mv.intervene(tiny_vlm, pair[0], (cut, gone))
    each = mv.intervene(tiny_vlm, pair[0], [(cut, gone), cut, gone])
    assert both.shape[0] == 1
    torch.testing.assert_close(both[0], each[0], rtol=0, atol=1e-5)
    assert (each[1] - each[2]).abs().max() > 1e-3


def test_sweeps_are_those_of_whole_passes(demo, monkeypatch):
    """The engine under an analysis changes its cost, and no number of it."""
    scene = mv.scenes.sample(seed=11, n=3)
    asked = mv.scenes.questions(scene, "color")[0]
    clean = demo.prompt(asked.text, scene.image)
    corrupted = demo.prompt(asked.text, scene.recolored(asked.about, "blue").image)
    metric = mv.logit_difference(demo, asked.answer, "blue")
    cuts = {"image->last": ("last", "image"), "image->query": ("query", "image")}

    def analyses():
        given = {"metric": metric, "at": clean.layout["text"]}
        heat = mv.activation_patching(demo, clean, corrupted, **given)
        drop = mv.knockout_windows(demo, clean, cuts, answer=asked.answer, mode="from")
        return heat, drop

    def by_whole_passes(vlm, prompt, *args, **kwargs):
        prompt = prompt.prompt if isinstance(prompt, mv.Run) else prompt
        return mv.reference.intervene(vlm, prompt, *args, **kwargs)

    fast = analyses()
    for name in ("activation_patching", "knockout"):
        module = import_module(f"mechvlm.analyses.{name}")
        monkeypatch.setattr(module, "intervene", by_whole_passes)
    for ours, theirs in zip(fast, analyses(), strict=True):
        scale = float(abs(theirs).max())
        assert float(abs(ours - theirs).max()) < 1e-5 * max(1.0, scale)
        assert float(theirs.std()) > 1e-2 * scale
