"""What flow graphs run, on real architectures and beside plain Hugging Face."""

from contextlib import contextmanager
from importlib import import_module
from itertools import product

import numpy as np
import pytest
import tiny
import torch
from unchecked import check_refusals

import mechvlm as mv
from mechvlm import Grouped, Knockout, Positions
from mechvlm.analyses.flow_graph import sweep
from mechvlm.cutting import like
from mechvlm.errors import (
    InterventionError,
    LayoutError,
    MetricError,
    PromptError,
    TokenError,
)
from mechvlm.interventions import parts

GQA = tiny.Kind("llama", 2, "clip")
WINDOWED = tiny.Kind("mistral", 2, "clip")
GEMMA3 = tiny.GEMMA_KINDS[1]
ALL = {"all": range(4)}


def asked_of(vlm, id="", prompt=None, **more):
    prompt = prompt or tiny.ask(vlm, "what color is the cat ?")
    image = prompt.layout["image"]
    at = prompt.layout.region((10, 0, 20, 16))
    groups = {"object": at, "background": image - at, "query": "query", "last": "last"}
    answer = int(vlm(prompt)[0, -1].argmax())
    return Grouped(prompt, groups | more, answer, id)


# --- beside Hugging Face alone --------------------------------------------------------


@contextmanager
def additive(vlm, cuts):
    """Minus infinity added to the eager mask of every layer that is cut."""
    model, low = vlm.hf_model, torch.finfo(torch.float32).min
    layers = model.get_submodule(vlm.family.language_model).layers
    by_layer = {}
    for cut in cuts:
        for layer in cut.layers:
            by_layer.setdefault(layer, []).append(cut)

    def hook(here):
        def change(module, args, kwargs):
            mask = kwargs["attention_mask"].clone()
            assert mask.is_floating_point()
            for cut in here:
                for target, source in product(cut.target, cut.source):
                    mask[..., target, source] = low
            return args, {**kwargs, "attention_mask": mask}

        return change

    handles = [
        layers[layer].self_attn.register_forward_pre_hook(hook(here), with_kwargs=True)
        for layer, here in by_layer.items()
    ]
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()


@torch.no_grad()
def by_hand(vlm, prompt, answer, cuts):
    with additive(vlm, cuts):
        logits = vlm.hf_model(**prompt.inputs).logits[0, -1].float()
    return logits.log_softmax(-1)[answer].item()


@pytest.mark.parametrize("kind", [GQA, GEMMA3, WINDOWED], ids=repr)
def test_trap_01_14_18_every_cut_and_like_is_plain_hugging_faces(kind, monkeypatch):
    """Grouped heads, windows, and an image whose tokens read one another both ways."""
    vlm = mv.HookedVLM(*tiny.build(kind))
    asked = asked_of(vlm)
    ran = []

    def spy(model, prompt, todo, **more):
        ran.append((todo, mv.intervene(model, prompt, todo, **more)))
        return ran[-1][1]

    monkeypatch.setattr(sweep, "intervene", spy)
    bands = {"0-1": range(2), "2-3": range(2, 4)}
    call = {"bands": bands, "n_random": 4, "progress": False}
    two = [asked, asked_of(vlm, "again")]
    result = mv.flow_graph(vlm, two, **call)
    clean = by_hand(vlm, asked.prompt, asked.answer, ())
    assert len(ran) == 4, "the clean run and one list for each prompt"
    todo, found = ran[1]
    change = {}
    for each, log_p in zip(todo, found.tolist(), strict=True):
        wanted = by_hand(vlm, asked.prompt, asked.answer, parts(each))
        assert log_p == pytest.approx(wanted, abs=2e-3), each
        change[each] = wanted - clean
    assert max(map(abs, change.values())) > 0.1
    tried = 0
    order = iter(todo)
    for target, source, band in product(asked.groups, asked.groups, bands):
        at = {"target": target, "source": source, "band": band}
        cell = result.sel(at).isel(item=0)
        if cell["status"] not in ("measured", "no control"):
            assert np.isnan(cell["item_log_effect"])
            continue
        tried += 1
        cut = Knockout(bands[band], asked.groups[target], asked.groups[source])
        assert next(order) == cut
        own = [change[next(order)] for _ in range(int(cell["n_draws"]))]
        assert cell["item_log_effect"] == pytest.approx(change[cut], abs=4e-3)
        if own:
            assert cell["item_log_control"] == pytest.approx(np.mean(own), abs=4e-3)
            assert cell["item_control"] == pytest.approx(
                np.mean(100 * np.expm1(own)), abs=0.5
            )
    assert next(order, None) is None
    assert tried == result.attrs["n_cuts"] > 15


def test_a_window_hides_a_group_in_its_own_bands_alone():
    """Gemma 3 here has windows of 12 in layers 0, 1 and 3, and all in layer 2."""
    vlm = mv.HookedVLM(*tiny.build(GEMMA3))
    prompt = tiny.ask(vlm, "what color is the cat ?")
    far = Positions.of(min(prompt.layout["image"]))
    assert prompt.layout.last - max(far) > tiny.WINDOW
    asked = Grouped(prompt, {"far": far, "last": "last"}, 5)
    bands = {str(i): range(i, i + 1) for i in range(4)}
    result = mv.flow_graph(vlm, [asked], bands=bands)
    status = result["status"].sel(target="last", source="far")[0]
    seen = "never reads"
    assert status.values.tolist() == [seen, seen, "measured", seen]
    assert result["n"].sel(target="last", source="far").values.tolist() == [0, 0, 1, 0]


def test_trap_02_a_blind_row_is_reported_and_never_run(tiny_vlm, tiny_prompt):
    groups = {"bos": "bos", "image": "image", "last": "last"}
    result = mv.flow_graph(tiny_vlm, [Grouped(tiny_prompt, groups, "red")])
    status = result["status"][0]
    own = status.sel(target="bos", source="bos")
    assert own.values.tolist() == ["blind row"] * 4
    assert (
        status.sel(target="bos", source="image").values.tolist() == ["never reads"] * 4
    )
    for name in ("item_effect", "item_control"):
        assert np.isnan(result[name].sel(target="bos")).all()
    assert (result["n"].sel(target="bos") == 0).all()
    assert not result["kept"].sel(target="bos").any()
    # BOS itself may be cut, and its likes are positions of text and image.
    assert (status.sel(target="last", source="bos") == "measured").all()


def test_bos_and_both_groups_are_in_no_like(tiny_vlm, tiny_prompt, monkeypatch):
    drawn = []

    def spy(reads, cut, pool, **more):
        drawn.append((cut, pool))
        return like(reads, cut, pool, **more)

    monkeypatch.setattr(sweep, "like", spy)
    asked = asked_of(tiny_vlm, prompt=tiny_prompt)
    mv.flow_graph(tiny_vlm, [asked, asked_of(tiny_vlm, "b")], n_random=4)
    assert len(drawn) == 2 * 11 * 4
    for cut, pool in drawn:
        everything = pool | cut.target | cut.source | Positions.of(0)
        assert not pool & (cut.target | cut.source | Positions.of(0))
        assert len(everything) == everything.indices[-1] + 1


def test_a_pairs_draws_are_the_same_in_every_band_and_differ_otherwise(
    tiny_vlm, tiny_prompt, monkeypatch
):
    seeds = {}

    def spy(reads, cut, pool, *, n, seed):
        seeds.setdefault((cut.target, cut.source), []).append(seed)
        return like(reads, cut, pool, n=n, seed=seed)

    monkeypatch.setattr(sweep, "like", spy)
    one = asked_of(tiny_vlm, "one", prompt=tiny_prompt)
    two = asked_of(tiny_vlm, "two", prompt=tiny_prompt)
    first = mv.flow_graph(tiny_vlm, [one, two], n_random=4)
    assert all(len(each) == 2 * 4 and len(set(each)) == 2 for each in seeds.values())
    every = [seed for each in seeds.values() for seed in set(each)]
    assert len(set(every)) == len(every)
    again = mv.flow_graph(tiny_vlm, [one, two], n_random=4)
    other = mv.flow_graph(tiny_vlm, [one, two], n_random=4, seed=1)
    assert first.identical(again)
    same = first["item_effect"].equals(other["item_effect"])
    assert same and not first["item_control"].equals(other["item_control"])


def test_trap_07_left_padding_changes_no_flow(tiny_vlm, tiny_prompt):
    """Padding is no position that may be drawn, and moves every group."""
    bare = asked_of(tiny_vlm, prompt=tiny_prompt)
    at = {name: Positions.of(p + 3 for p in own) for name, own in bare.at.items()}
    padded = Grouped(tiny_prompt.left_padded(3, 0), at, bare.answer)
    one, two = (mv.flow_graph(tiny_vlm, [each], bands=ALL) for each in (bare, padded))
    assert one["status"].equals(two["status"])
    for name in ("item_effect", "item_control", "clean"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("make", [mv.base_run, mv.record])
def test_a_run_of_the_prompt_serves_as_well(tiny_vlm, tiny_prompt, make):
    asked = asked_of(tiny_vlm, prompt=tiny_prompt)
    run = Grouped(make(tiny_vlm, tiny_prompt), asked.groups, asked.answer)
    one, two = (mv.flow_graph(tiny_vlm, [each], bands=ALL) for each in (asked, run))
    for name in ("item_effect", "item_control"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-5, atol=1e-4)


def test_each_prompt_is_run_once_and_its_cuts_in_one_list(
    tiny_vlm, tiny_prompt, monkeypatch
):
    passes = []
    for name in ("mechvlm.engine", "mechvlm.record"):
        module = import_module(name)
        made = module.base_pass
        monkeypatch.setattr(
            module, "base_pass", lambda *a, made=made: passes.append(a) or made(*a)
        )
    two = [asked_of(tiny_vlm, name, prompt=tiny_prompt) for name in "ab"]
    mv.flow_graph(tiny_vlm, two, n_random=4)
    assert len(passes) == 2


def test_an_untouched_model_is_left(tiny_vlm, tiny_prompt, untouched):
    mv.flow_graph(tiny_vlm, [asked_of(tiny_vlm, prompt=tiny_prompt)], bands=ALL)
    assert untouched() == []


# --- a trained model ------------------------------------------------------------------


def test_the_demo_reads_the_question_first_and_then_the_object(demo):
    """Object -> last in the middle layers, and next to nothing from the background."""
    rng, asked = np.random.default_rng(7), []
    while len(asked) < 12:
        scene = mv.scenes.sample_scene(rng)
        colors = mv.scenes.questions(scene, "color")
        if not colors or len(scene.things) > 3:
            continue
        prompt = demo.prompt(colors[0].text, scene.image)
        at = prompt.layout.region(scene.mask(colors[0].about))
        groups = {"object": at, "background": prompt.layout["image"] - at}
        groups |= {"query": "query", "last": "last"}
        asked.append(Grouped(prompt, groups, colors[0].answer, str(len(asked))))
    bands = {"first": range(1), "middle": range(1, 4), "late": range(4, 8)}
    result = mv.flow_graph(demo, asked, bands=bands, n_random=3, progress=False)
    edges = {(edge.source[0], *edge.target) for edge in mv.flow_edges(result)}
    assert ("query", "last", "middle") in edges
    assert ("object", "last", "late") in edges
    assert not [edge for edge in edges if edge[0] in ("background", "last")]
    assert not [edge for edge in edges if edge[2] == "end"]
    assert result["excess_high"].sel(target="last", source="object", band="middle") < -5


# --- what is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("groups", "error", "said"),
    [
        ({"image": "image"}, InterventionError, r"has the groups \['image'\]: a flow"),
        ({}, InterventionError, "Wanted two or more"),
        (
            {"image": "image", "spot": Positions.of(4, 5)},
            InterventionError,
            r"groups 'image' and 'spot' .* share Positions\(4\.\.5\).*image - object",
        ),
        (
            {"image": "image", "none": Positions()},
            InterventionError,
            "group 'none' is empty in prompt .* cropped away",
        ),
        (
            {"image": "image", "past": Positions.of(30)},
            InterventionError,
            r"group 'past' reaches beyond .* 0\.\.22.*another prompt",
        ),
        ({"image": "image", "last": "lst"}, LayoutError, "no group is called 'lst'"),
    ],
)
def test_groups_that_are_none_are_refused(tiny_prompt, groups, error, said):
    with pytest.raises(error, match=f"(?s){said}"):
        Grouped(tiny_prompt, groups, "red")


def test_sets_that_are_none_are_refused(tiny_vlm, tiny_prompt, no_forward):
    groups = {"image": "image", "last": "last"}
    one = Grouped(tiny_prompt, groups, "red")
    with pytest.raises(PromptError, match="no prompt is given"):
        mv.flow_graph(tiny_vlm, [])
    with pytest.raises(PromptError, match=r"share ids \['a'\]"):
        mv.flow_graph(tiny_vlm, [Grouped(tiny_prompt, groups, "red", "a")] * 2)
    other = Grouped(tiny_prompt, {"picture": "image", "last": "last"}, "red", "b")
    with pytest.raises(
        PromptError, match=r"'b' has the groups \['last', 'picture'\], and '0' has"
    ):
        mv.flow_graph(tiny_vlm, [one, other])
    for answer, said in (("unheard", "unheard"), (64, r"id 64 is outside .*\.\.63")):
        with pytest.raises(TokenError, match=said):
            mv.flow_graph(tiny_vlm, [one, Grouped(tiny_prompt, groups, answer)])


def test_an_answer_without_a_probability_has_none_to_lose(tiny_vlm, tiny_prompt):
    vlm = mv.HookedVLM(*tiny.build(GQA))
    with torch.no_grad():
        vlm.hf_model.lm_head.weight.mul_(1e4)
    asked = asked_of(vlm, prompt=tiny_prompt)
    lowest = int(vlm(tiny_prompt)[0, -1].argmin())
    with pytest.raises(MetricError, match=f"prompt 'x': answer {lowest} has probabi"):
        mv.flow_graph(vlm, [Grouped(tiny_prompt, asked.groups, lowest, "x")])


def test_what_is_of_the_wrong_kind_is_named():
    check_refusals(
        """
import mechvlm as mv
vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
prompt = vlm.prompt("how many objects are there ?", scene.image)
at = {"image": "image", "last": "last"}
one = mv.Grouped(prompt, at, "one")
cases = [
    (lambda: mv.flow_graph(vlm, one), "asked is Grouped("),
    (lambda: mv.flow_graph(vlm, prompt), "asked is "),
    (lambda: mv.flow_graph(vlm, [prompt]), "asked[0] is Prompt"),
    (lambda: mv.flow_graph(vlm, [one], bands={"a": 3}), "bands['a'] is 3 (int)"),
    (lambda: mv.Grouped("red?", at, "one"), "Grouped.prompt is 'red?' (str)"),
    (lambda: mv.Grouped(prompt, {"a": [3]}, "one"), "Grouped.groups['a'] is [3]"),
    (lambda: mv.Grouped(prompt, "image", "one"), "Grouped.groups is 'image' (str)"),
    (lambda: mv.Grouped(prompt, at, ["one"]), "Grouped.answer is ['one'] (list)"),
]
"""
    )
