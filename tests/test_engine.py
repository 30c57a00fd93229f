"""The engine gives the reference's answers: every intervention, site, batch and model.

Batching, sharing and skipping may change the cost of a sweep, never its answers. That
the comparison would notice a wrong cone is shown in test_engine_faults.py.
"""

from dataclasses import replace
from functools import cache

import pytest
import sweeping
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sweeping import BATCHES, KINDS, check, check_equal, every_intervention, scene_of

import mechvlm as mv
from mechvlm import Ablate, Knockout, Patch, PathPatch, Positions, Site
from mechvlm.cone import Reads
from mechvlm.errors import EngineError
from mechvlm.sites import COMPONENTS

every_kind = pytest.mark.parametrize("kind", KINDS, ids=sweeping.name_of)
both_types = pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
GROUPED = KINDS[1]
SHOWS = 1e-3
"""A logit that moved this far was moved by the intervention, not by rounding."""


@pytest.fixture(scope="module")
def scene():
    return scene_of(GROUPED)


# --- one by one -----------------------------------------------------------------------


@cache
def truth_of(kind, dtype):
    """Interventions of every kind at every site, and what the reference gives them.

    All of them on one kind of model; of a list as long, each other kind takes a
    quarter of its own. In fp64, where the code is the same, every tenth will do.
    """
    scene, first = scene_of(kind, dtype), KINDS.index(kind)
    step = 10 if dtype == torch.float64 else 1 if kind == GROUPED else 4
    todo = [mv.NOTHING, *every_intervention(scene)[first % step :: step]]
    return todo, scene.truth(todo)


@every_kind
@both_types
def test_the_engine_means_what_the_reference_means(kind, dtype):
    todo, wanted = truth_of(kind, dtype)
    scene = scene_of(kind, dtype)
    for first, batch in enumerate(BATCHES):
        # Small batches are slow: each takes a third of its own.
        some = slice(None) if batch is None else slice(first % 3, None, 3)
        found = scene.engine(todo[some], batch_tokens=batch)
        off = (found - wanted[some]).abs().amax(dim=1)
        worst = todo[some][int(off.argmax())]
        assert off.max() <= scene.atol, f"{worst!r}: off by {off.max():.2g}, {batch=}"
    moved = (wanted - wanted[0]).abs().amax(dim=1)
    assert (moved[1:] > SHOWS).float().mean() > 0.95, "they did nothing: shows nothing"
    assert wanted.dtype == dtype


def test_every_kind_of_intervention_at_every_site_is_among_them():
    """What the test above is worth."""
    every = [
        mv.interventions.parts(each) for each in every_intervention(scene_of(GROUPED))
    ]
    alone = [each[0] for each in every if len(each) == 1]
    writes = [one for one in alone if isinstance(one, Patch | Ablate | mv.Add)]
    assert {(type(one), one.site.component) for one in writes} == {
        (kind, component)
        for kind in (Patch, Ablate, mv.Add)
        for component in COMPONENTS
    }
    for component in ("q", "k", "v", "z", "result"):
        heads = {
            one.site.head is None for one in writes if one.site.component == component
        }
        assert heads == {True, False}, component
    assert {type(one) for one in alone} == {Patch, Ablate, mv.Add, Knockout, PathPatch}
    assert max(map(len, every)) >= 4


# --- several at random ----------------------------------------------------------------


@every_kind
def test_random_lists_of_random_interventions(kind):
    """Overlapping ones, several at once, nested, in any order; also in fp64."""
    moved = []

    @settings(max_examples=6)
    @given(recipes=sweeping.recipes, batch=st.sampled_from(BATCHES), wide=st.booleans())
    def compare(recipes, batch, wide):
        scene = scene_of(kind, torch.float64 if wide else torch.float32)
        todo = [sweeping.made(scene, recipe) for recipe in recipes]
        moved.append(check(scene, todo, batch))

    compare()
    shown = (torch.cat(moved) > SHOWS).float().mean()
    assert shown > 0.4, f"only {shown:.0%} of them did anything: this shows little"


def test_order_and_company_change_nothing(scene):
    """An intervention alone, in a crowd and in the crowd turned round: one answer."""
    todo = every_intervention(scene)[::4]
    together = scene.engine(todo)
    check_equal(scene, scene.engine(todo[::-1]).flip(0), together)
    for what, wanted in list(zip(todo, together, strict=True))[::8]:
        check_equal(scene, scene.engine([what])[0], wanted)
        check_equal(scene, scene.engine([what, what])[1], wanted)


def test_a_receiver_hears_what_was_there_before_a_sender_behind_it(scene):
    """What leaves a layer and what enters the next are one tensor until one is sent."""
    senders = Site("embed"), Site("resid_pre", 1)
    left, entered = Site("resid_post", 0), Site("resid_pre", 1)
    todo = [
        *(PathPatch(senders, (each,), "other") for each in (left, entered)),
        PathPatch(senders, (left, Site("q", 2)), "other"),
        PathPatch((Site("embed"), left), (Site("mlp_out", 0), entered), "other"),
    ]
    moved = check(scene, todo, None, 7)
    assert (moved > SHOWS).all()
    first, second, third, _ = scene.truth(todo)
    check_equal(scene, first, second)  # a site is no path to itself
    assert (first - third).abs().max() > SHOWS


@pytest.mark.parametrize("mlps", ["recomputed", "frozen"])
def test_beside_others_a_path_puts_all_its_rows_back(scene, mlps):
    """Rows that no sender changes are this run's own, whatever stands beside it."""
    at, stream = scene.prompt.layout, Site("resid_post", 2)
    push = mv.Add(Site("resid_mid", 1), at["image"] | at["last"], "a (64,)")
    paths = [
        PathPatch((Site("z", 0),), receivers, "other", at=at["query"], mlps=mlps)
        for receivers in ((stream,), (Site("v", 1), stream))
    ]
    todo = [*paths, *((push, path) for path in paths), push]
    moved = check(scene, todo, None)
    assert (moved > SHOWS).all()
    alone, joint, *beside, pushed = scene.truth(todo)
    check_equal(scene, torch.stack(beside), torch.stack([alone, joint]))
    assert (pushed - alone).abs().max() > SHOWS


def test_one_intervention_is_a_list_of_one(scene):
    cut = sweeping.cuts_of(scene)[0]
    both = (cut, Ablate(Site("z", 1), cut.target))
    assert torch.equal(scene.engine(cut), scene.engine([cut]))
    assert torch.equal(scene.engine(both), scene.engine([both]))
    assert scene.engine(both).shape == (1, scene.vlm.cfg.d_vocab)


# --- what is read ---------------------------------------------------------------------


def metrics_of(scene):
    """With few tokens and with all of them."""
    vlm, clean = scene.vlm, scene.runs["other"].logits
    difference = mv.logit_difference(vlm, "red", "blue")
    return {
        "difference": difference,
        "recovery": mv.recovery(difference, clean=0.5, corrupted=-0.25),
        "probability": mv.probability(vlm, "red"),
        "log": mv.log_probability(vlm, "cat"),
        "kl": mv.kl_divergence(clean),
        "rank": mv.rank(vlm, "red"),
    }


@pytest.mark.parametrize("kind", [GROUPED, tiny.GEMMA_KINDS[3]], ids=sweeping.name_of)
def test_a_metric_of_the_engine_is_the_references(kind):
    """The second caps its logits, and its unembedding is the embedding."""
    scene = scene_of(kind)
    todo = [mv.NOTHING, *every_intervention(scene)[::16]]
    logits, metrics = scene.truth(todo), metrics_of(scene)
    for name, metric in metrics.items():
        found = scene.engine(todo, metric=metric, batch_tokens=64)
        assert found.shape == (len(todo),), name
        check_equal(scene, found, metric(logits))
        assert len(found.unique()) > (1 if name == "rank" else len(todo) // 2), name
    wanted = scene.truth(todo[:4], metric=metrics["recovery"])
    check_equal(scene, wanted, metrics["recovery"](logits[:4]))


def test_a_metric_of_few_tokens_computes_no_others(scene, monkeypatch):
    """The whole unembedding runs once: in the base run, which needs its logits."""
    head, rows = scene.vlm.hf_model.lm_head, []
    sweeping.watch(monkeypatch, [head], lambda _, given: rows.append(len(given)))
    metric = mv.logit_difference(scene.vlm, "red", "blue")
    base = mv.base_run(scene.vlm, scene.prompt)
    rows.clear()
    mv.intervene(scene.vlm, base, sweeping.cuts_of(scene), metric=metric)
    assert rows == []
    mv.intervene(scene.vlm, base, sweeping.cuts_of(scene))
    assert rows


# --- the base run ---------------------------------------------------------------------


@every_kind
def test_a_base_run_stands_for_its_prompt(kind, monkeypatch):
    """The same answers and activations, and the prompt does not run again."""
    scene, ran = scene_of(kind), []
    base = mv.base_run(scene.vlm, scene.prompt)
    theirs = replace(scene, prompt=mv.base_run(scene.vlm, scene.prompt))
    todo = [mv.NOTHING, *every_intervention(scene)[::11]]
    tower = scene.vlm.hf_model.get_submodule(scene.vlm.family.vision_tower)
    watched = scene.vlm.hf_model, tower, scene.vlm.blocks[0].layer.mlp
    with monkeypatch.context() as patch:
        sweeping.watch(patch, watched, lambda module, _: ran.append(module))
        found = theirs.engine(todo, batch_tokens=50)
    assert watched[2] in ran
    assert watched[0] not in ran and tower not in ran
    check_equal(scene, found, scene.engine(todo))
    check_equal(scene, base.logits, scene.truth([mv.NOTHING])[0])
    kept = mv.record(scene.vlm, scene.prompt, list(base.activations))
    for name, value in kept.activations.items():
        torch.testing.assert_close(base.activations[name], value, rtol=1e-5, atol=1e-5)


@every_kind
def test_the_masks_of_a_base_run_are_the_models(kind):
    scene = scene_of(kind)
    found = mv.base_run(scene.vlm, scene.prompt).base.reads
    assert torch.equal(torch.stack([found.mask(i) for i in range(4)]), scene.reads)
    assert isinstance(found, Reads)


def test_a_recorded_run_stands_for_its_prompt(scene):
    todo = sweeping.cuts_of(scene)
    recorded = mv.record(scene.vlm, scene.prompt, ["z"])
    check_equal(scene, mv.intervene(scene.vlm, recorded, todo), scene.engine(todo))


def test_a_base_run_keeps_what_it_says(scene):
    base, cfg, n = (
        mv.base_run(scene.vlm, scene.prompt),
        scene.vlm.cfg,
        scene.prompt.layout.n,
    )
    of_layer = cfg.d_model + cfg.d_head * (cfg.n_heads + 2 * cfg.n_key_value_heads)
    assert base.base.n_bytes == 4 * n * (cfg.n_layers * of_layer + cfg.d_model)


def other_weights(vlm):
    return mv.HookedVLM(*tiny.build(GROUPED, seed=1))


def written(vlm):
    with torch.no_grad():
        vlm.hf_model.model.language_model.layers[2].mlp.up_proj.weight[0, 0] += 1
    return vlm


def loaded(vlm):
    vlm.hf_model.load_state_dict(tiny.build(GROUPED, seed=1)[0].state_dict())
    return vlm


def converted(vlm):
    return vlm.to(torch.bfloat16)


@pytest.mark.parametrize("change", [other_weights, written, loaded, converted])
def test_a_base_run_of_other_weights_is_refused(change):
    vlm = mv.HookedVLM(*tiny.build(GROUPED))
    base = mv.base_run(vlm, tiny.ask(vlm, sweeping.QUESTION))
    mv.intervene(vlm, base, mv.NOTHING)
    with pytest.raises(
        EngineError, match=r"another model, or .* changed since: .*again"
    ):
        mv.intervene(change(vlm), base, mv.NOTHING)


# --- prompts and models of other forms ------------------------------------------------


def check_prompts(vlm, prompt, other):
    """Every eighth intervention on these prompts."""
    scene = sweeping.Scene.of(vlm, prompt, other)
    moved = check(scene, every_intervention(scene)[::17], None, 9)
    assert (moved > SHOWS).float().mean() > 0.9


@every_kind
def test_padding_on_the_left(kind):
    scene = scene_of(kind)
    vlm, n_pad = scene.vlm, 5
    prompts = (
        tiny.ask(vlm, sweeping.QUESTION, tiny.picture(seed)) for seed in range(2)
    )
    check_prompts(vlm, *(prompt.left_padded(n_pad, 0) for prompt in prompts))
    padded = replace(scene, prompt=scene.prompt.left_padded(n_pad, 0))
    assert list(padded.prompt.layout["pad"]) == list(range(n_pad))
    check_equal(scene, padded.engine([mv.NOTHING]), scene.engine([mv.NOTHING]))


@pytest.mark.parametrize("kind", [KINDS[2], tiny.GEMMA_KINDS[1]], ids=sweeping.name_of)
def test_a_prompt_without_an_image(kind):
    vlm = scene_of(kind).vlm
    first, second = (
        vlm.prompt_raw(f"{question} what is the dog ? see the red cat . a blue dog is")
        for question in ("what color is the cat ?", "the cat is a red dog .")
    )
    scene = sweeping.Scene.of(vlm, first, second)
    layout = first.layout
    assert not layout["image"] and layout.n > tiny.WINDOW
    few, last = Positions.of(layout["query"].indices[1::3]), layout["last"]
    sites = sweeping.sites_of(scene, (0, 2))
    todo = [w for one in sites for w in sweeping.writes_at(scene, one, few)]
    cut = Knockout(range(4), last, few)
    path = PathPatch((Site("z", 0),), (Site("q", 2), Site("v", 3)), "other", to=last)
    moved = check(scene, [*todo[::9], cut, path], None, 9)
    assert (moved > SHOWS).float().mean() > 0.9


@every_kind
def test_what_is_generated_is_a_prompt_too(kind):
    scene = scene_of(kind)
    vlm, prompt = scene.vlm, scene.prompt
    said = vlm.generate(prompt, max_new_tokens=3).ids
    longer = prompt.extended(said, tuple(vlm.to_str_tokens(said)))
    grown = sweeping.Scene.of(vlm, longer, longer)
    made = longer.layout["generated"]
    before = longer.layout["query"]
    todo = [
        Ablate(Site("k", 1), made),
        Ablate(Site("resid_pre", 0), before | made),
        Knockout(range(4), made, before),
        Patch(Site("z", 2), made, "other", from_=Positions.of(range(len(made)))),
    ]
    assert (check(grown, todo, None, 9) > SHOWS).all()


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("kind", [*tiny.KINDS[1:3], tiny.GEMMA_KINDS[1]], ids=str)
def test_the_attention_that_a_model_was_loaded_with(kind, attention):
    vlm = mv.HookedVLM(*tiny.build(kind, attention=attention))
    check_prompts(
        vlm, *(tiny.ask(vlm, sweeping.QUESTION, tiny.picture(i)) for i in (0, 1))
    )
    assert vlm.hf_model.config.text_config._attn_implementation == attention


def test_the_demo(demo):
    """Trained weights attend sharply, and its prompts are those that people use."""
    scenes = [mv.scenes.sample(seed=seed).image for seed in range(2)]
    check_prompts(
        demo, *(demo.prompt("how many objects are there ?", one) for one in scenes)
    )
