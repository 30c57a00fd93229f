"""What flow graphs run, on real architectures and beside plain Hugging Face."""

import warnings
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
from mechvlm.cutting import draws_of
from mechvlm.errors import (
    InterventionError,
    LayoutError,
    MechVLMWarning,
    MetricError,
    PromptError,
    TokenError,
)
from mechvlm.interventions import parts

GQA = tiny.Kind("llama", 2, "clip")
NO_BOS = tiny.Kind("qwen2", 2, "siglip")
WINDOWED = tiny.Kind("mistral", 2, "clip")
GEMMA3 = tiny.GEMMA_KINDS[1]
ALL = {"all": range(4)}


def quietly(vlm, asked, **more):
    """A random model loses by many a cut, and most of them have no control."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", MechVLMWarning)
        return mv.flow_graph(vlm, asked, **more)


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
def test_trap_01_14_18_every_cut_and_draw_is_plain_hugging_faces(kind, monkeypatch):
    """Grouped heads, windows, and an image whose tokens read one another both ways."""
    vlm = mv.HookedVLM(*tiny.build(kind))
    asked = asked_of(vlm)
    ran = []

    def spy(model, prompt, todo, **more):
        ran.append((todo, mv.intervene(model, prompt, todo, **more)))
        return ran[-1][1]

    monkeypatch.setattr(sweep, "intervene", spy)
    bands = {"0-1": range(2), "2-3": range(2, 4)}
    groups = {name: asked.groups[name] for name in ("object", "query", "last")}
    asked = Grouped(asked.prompt, groups, asked.answer)
    result = quietly(vlm, [asked], bands=bands, n_random=19)
    clean = by_hand(vlm, asked.prompt, asked.answer, ())
    assert len(ran) == 2, "the clean run and one list"
    assert len(ran[1][0]) == result.attrs["n_runs"]
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
    assert tried == result.attrs["n_cuts"] > 8


def test_a_window_hides_a_group_in_its_own_bands_alone():
    """Gemma 3 here has windows of 12 in layers 0, 1 and 3, and all in layer 2."""
    vlm = mv.HookedVLM(*tiny.build(GEMMA3))
    prompt = tiny.ask(vlm, "what color is the cat ?")
    far = Positions.of(min(prompt.layout["image"]))
    assert prompt.layout.last - max(far) > tiny.WINDOW
    asked = Grouped(prompt, {"far": far, "last": "last"}, 5)
    bands = {str(i): range(i, i + 1) for i in range(4)}
    result = quietly(vlm, [asked], bands=bands)
    status = result["status"].sel(target="last", source="far")[0]
    seen = "never reads"
    assert status.values.tolist() == [seen, seen, "measured", seen]
    assert result["n"].sel(target="last", source="far").values.tolist() == [0, 0, 1, 0]


def test_trap_02_a_blind_row_is_reported_and_never_run(tiny_vlm, tiny_prompt):
    groups = {"bos": "bos", "image": "image", "last": "last"}
    result = quietly(tiny_vlm, [Grouped(tiny_prompt, groups, "red")])
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
    # BOS itself may be cut, but is in no draw.
    assert (status.sel(target="last", source="bos") == "measured").all()


@pytest.mark.parametrize("kind", [GQA, NO_BOS], ids=repr)
def test_the_sink_and_both_groups_are_in_no_draw(kind, monkeypatch):
    """Without BOS the first position is the sink."""
    vlm, drawn = mv.HookedVLM(*tiny.build(kind)), []
    if kind is NO_BOS:
        vlm.tokenizer.bos_token = None

    def spy(reads, cut, pool, **more):
        drawn.append((cut, pool))
        return draws_of(reads, cut, pool, **more)

    monkeypatch.setattr(sweep, "draws_of", spy)
    asked = asked_of(vlm)
    layout = asked.prompt.layout
    assert bool(layout["bos"]) == (kind is GQA)
    quietly(vlm, [asked], bands=ALL)
    pools = {"image": 0, "text": 0, "any": 0}
    for cut, pool in drawn:
        every = Positions.of(range(layout.n))
        free = every - cut.target - cut.source - Positions.of(0)
        kind = "text" if cut.source - layout["image"] else "image"
        pools[kind if pool == free & layout[kind] else "any"] += 1
        assert pool in (free & layout[kind], free)
        assert 0 not in pool
    assert min(pools.values()) > 0


def test_a_pairs_draws_are_the_same_in_every_band_and_differ_otherwise(
    tiny_vlm, tiny_prompt, monkeypatch
):
    seeds = {}

    def spy(reads, cut, pool, *, n, seed):
        seeds.setdefault((cut.target, cut.source), []).append((pool, seed))
        return draws_of(reads, cut, pool, n=n, seed=seed)

    monkeypatch.setattr(sweep, "draws_of", spy)
    ran = []

    def keep(model, prompt, todo, **more):
        ran.append(todo)
        return mv.intervene(model, prompt, todo, **more)

    monkeypatch.setattr(sweep, "intervene", keep)
    one = asked_of(tiny_vlm, "one", prompt=tiny_prompt)
    two = asked_of(tiny_vlm, "two", prompt=tiny_prompt)
    first = quietly(tiny_vlm, [one, two], n_random=19)
    every = [call for each in seeds.values() for call in each]
    assert len({seed for _, seed in every}) == 2 * len(seeds)
    assert len(set(every)) == len(every), "drawn once, not in every band"
    at, source = one.groups["last"], one.groups["object"]
    sets = {
        layer: [
            each.source
            for todo in ran[1]
            for each in parts(todo)
            if each.target == at and each.layers[0] == layer and each.source != source
        ]
        for layer in range(4)
    }
    sets = {
        layer: {
            cells
            for cells in found
            if cells.indices[-1] < 19 and len(cells) == len(source)
        }
        for layer, found in sets.items()
    }
    assert len(sets[0]) >= 19
    assert all(found == sets[0] for found in sets.values())
    again = quietly(tiny_vlm, [one, two], n_random=19)
    other = quietly(tiny_vlm, [one, two], n_random=19, seed=1)
    assert first.identical(again)
    same = first["item_effect"].equals(other["item_effect"])
    assert same and not first["item_control"].equals(other["item_control"])


def test_trap_07_left_padding_changes_no_flow(tiny_vlm, tiny_prompt):
    """Padding is no position that may be drawn, and moves every group."""
    bare = asked_of(tiny_vlm, prompt=tiny_prompt)
    at = {name: Positions.of(p + 3 for p in own) for name, own in bare.at.items()}
    padded = Grouped(tiny_prompt.left_padded(3, 0), at, bare.answer)
    one, two = (quietly(tiny_vlm, [each], bands=ALL) for each in (bare, padded))
    assert one["status"].equals(two["status"])
    for name in ("item_effect", "item_control", "clean"):
        np.testing.assert_allclose(one[name], two[name], rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("make", [mv.base_run, mv.record])
def test_a_run_of_the_prompt_serves_as_well(tiny_vlm, tiny_prompt, make):
    asked = asked_of(tiny_vlm, prompt=tiny_prompt)
    run = Grouped(make(tiny_vlm, tiny_prompt), asked.groups, asked.answer)
    one, two = (quietly(tiny_vlm, [each], bands=ALL) for each in (asked, run))
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
    quietly(tiny_vlm, two, n_random=19)
    assert len(passes) == 2


def test_an_untouched_model_is_left(tiny_vlm, tiny_prompt, untouched):
    quietly(tiny_vlm, [asked_of(tiny_vlm, prompt=tiny_prompt)], bands=ALL)
    assert untouched() == []


# --- a trained model ------------------------------------------------------------------


def test_the_demo_reads_the_question_first_and_then_the_object(demo):
    """Query -> last in the first layer, object -> last in those that follow."""
    rng, asked = np.random.default_rng(7), []
    while len(asked) < 8:
        scene = mv.scenes.sample_scene(rng)
        colors = mv.scenes.questions(scene, "color")
        if not colors or len(scene.things) > 3:
            continue
        prompt = demo.prompt(colors[0].text, scene.image)
        at = prompt.layout.region(scene.mask(colors[0].about))
        groups = {"object": at, "query": "query", "last": "last"}
        asked.append(Grouped(prompt, groups, colors[0].answer, str(len(asked))))
    bands = {"first": range(1), "middle": range(1, 4), "late": range(4, 8)}
    result = quietly(demo, asked, bands=bands, n_random=19)
    edges = {(edge.source[0], *edge.target) for edge in mv.flow_edges(result)}
    assert ("query", "last", "middle") in edges
    assert ("object", "last", "late") in edges
    assert not [edge for edge in edges if edge[0] == "last"]
    assert not [edge for edge in edges if edge[2] == "end"]
    cut = result.sel(target="last", source="object", band="middle")
    assert cut["beyond_high"] < -5
    assert (cut["pool"] == "own kind").all()
    assert not [edge for edge in mv.flow_edges(result) if edge.n_control < 6]


def test_a_pairs_groups_are_asked_without_bos(demo):
    made = mv.scenes.counterfactual(mv.scenes.sample(seed=0, n=2))
    pair = mv.bind(demo, made.pair)
    asked = Grouped.of(pair, made.answer)
    assert "bos" in pair.groups
    assert asked.groups == {k: v for k, v in pair.groups.items() if k != "bos"}
    assert (asked.prompt, asked.answer, asked.id) == (pair.clean, made.answer, pair.id)
    assert asked.at == asked.groups
    with pytest.raises(TypeError, match="does not support item assignment"):
        asked.groups["last"] = Positions.of(0)


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
    (lambda: mv.Grouped(prompt, at, True), "Grouped.answer is True (bool)"),
    (lambda: mv.Grouped.of(prompt, "one"), "pair is Prompt("),
    (lambda: mv.flow_edges([1]), "result is [1] (list)"),
    (lambda: mv.flow_networkx(None), "result is None"),
]
flow = lambda **more: lambda: mv.flow_graph(vlm, [one], **more)
cut = lambda **more: lambda: mv.knockout_windows(
    vlm, prompt, {"a": ("last", "query")}, **{"answer": "one"} | more
)
cases += [
    (flow(seed=-1), "seed=-1: wanted 0 or more"),
    (flow(seed=None), "seed is None (NoneType)"),
    (flow(seed=0.5), "seed is 0.5 (float)"),
    (flow(seed=True), "seed is True (bool)"),
    (flow(n_random=20.0), "n_random is 20.0 (float)"),
    (flow(n_random="20"), "n_random is '20' (str)"),
    (flow(least="1"), "least is '1' (str)"),
    (flow(least=True), "least is True (bool)"),
    (flow(least=None), "least is None"),
    (cut(answer=True), "answer is True (bool)"),
    (cut(width=2.7), "width is 2.7 (float)"),
    (cut(width="3"), "width is '3' (str)"),
    (cut(width=True), "width is True (bool)"),
    (cut(windows=range(4)), "windows is range(0, 4) (range)"),
    (cut(windows={"a": 3}), "windows['a'] is 3 (int)"),
    (cut(windows={"a": "early"}), "windows['a'] is 'early' (str)"),
]
def never(*_):
    raise AssertionError("a forward pass ran although an argument is bad")
vlm.hf_model.lm_head.forward = never
"""
    )
