"""Selectors: which cells of the image an item is about, against counting by hand."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Positions, selecting
from mechvlm.errors import InterventionError, MetricError, PromptError, RegionError
from mechvlm.models import planted
from mechvlm.models.planted import OBJECT_CELLS, POSITIONS, scene
from mechvlm.selecting import Selector

SQUARE = tiny.Kind("llama", 2, "siglip")
"""Squeezes a picture to a square, so that cells are a quarter of each side."""


@cache
def hooked(circuit="direct"):
    return mv.HookedVLM(*planted.build(circuit))


@cache
def random_model(kind):
    return mv.HookedVLM(*tiny.build(kind))


def digit(content=0, **more):
    """A planted picture and what is in it."""
    image = scene(content)
    area = np.array(image)[:, :, 0] > 0
    word = planted.ANSWERS[content]
    return mv.Item(image, planted.QUESTION, word, {"digit": area}, "digit", **more)


def asked(vlm, item):
    return vlm.prompt(item.question, item.image)


def boxes(target, image=None, **others):
    """An item with boxes in a picture of 40 x 32 pixels."""
    image = tiny.picture() if image is None else image
    return mv.Item(image, "what", "red", {"it": target, **others}, "it")


def cells(selector, item, vlm=None):
    """Chosen cells, row by row from 0."""
    vlm = vlm or random_model(SQUARE)
    prompt = tiny.ask(vlm, "what", item.image)
    start = prompt.layout.grids[0].start
    return [at - start for at in selector(vlm, prompt, item)]


# --- objects --------------------------------------------------------------------------


def test_object_and_background_part_the_image():
    """Cells of a 40 x 32 picture are 10 x 8; this box lies in rows 1-2, column 1."""
    item = boxes((11, 9, 19, 17))
    assert cells(selecting.object_tokens(), item) == [5, 9]
    assert cells(selecting.object_tokens(rule="center"), item) == [5]
    assert cells(selecting.object_tokens(rule=0.9), item) == []
    ring = [0, 1, 2, 4, 5, 6, 8, 9, 10, 12, 13, 14]
    assert cells(selecting.object_tokens(buffer=1), item) == ring
    assert cells(selecting.object_tokens(buffer=2), item) == [*range(16)]
    rest = [each for each in range(16) if each not in (5, 9)]
    assert cells(selecting.background_tokens(), item) == rest
    assert cells(selecting.background_tokens(buffer=1), item) == [3, 7, 11, 15]
    assert cells(selecting.image_tokens(), item) == [*range(16)]


def test_overlapping_objects_of_one_class_are_told_apart():
    """The other object shares cell 5 with the target, and has 6 for itself."""
    item = boxes((11, 9, 15, 11), **{"it 2": (16, 9, 29, 11), "bag": (0, 0, 5, 5)})
    assert cells(selecting.object_tokens(), item) == [5]
    assert cells(selecting.other_object_tokens(), item) == [0, 6]
    assert cells(selecting.all_object_tokens(), item) == [0, 5, 6]
    assert cells(selecting.other_object_tokens(), boxes((11, 9, 15, 11))) == []


def test_trap_10_a_cell_is_the_token_that_sees_it():
    """A kept CLS token would shift all by one: which rows of h[0] feel the object?"""
    vlm, item = hooked(), digit(0)
    with torch.no_grad():
        ours, theirs = (
            vlm(vlm.prompt(planted.QUESTION, scene(c)), stop_at_layer=0)[0]
            for c in (0, 1)
        )
    moved = (ours != theirs).any(dim=-1).nonzero().flatten().tolist()
    found = selecting.object_tokens()(vlm, asked(vlm, item), item)
    assert list(found) == moved
    start = asked(vlm, item).layout.grids[0].start
    assert [at - start for at in found] == list(OBJECT_CELLS)


def test_trap_11_what_is_cropped_away_has_no_token():
    """CLIP sees columns 4 to 35 of this picture; its cells are 8 x 8."""
    vlm = random_model(tiny.Kind("llama", 2, "clip"))
    assert cells(selecting.object_tokens(), boxes((0, 0, 4, 8)), vlm) == []
    assert cells(selecting.object_tokens(), boxes((0, 0, 5, 8)), vlm) == [0]
    assert cells(selecting.object_tokens(), boxes((36, 0, 40, 8)), vlm) == []
    assert len(cells(selecting.background_tokens(), boxes((0, 0, 4, 8)), vlm)) == 16


def test_no_rim_of_the_picture_is_left_uncovered():
    """Cells of whole pixels, 43 // 4 of them, would end at pixel 40 of 43."""
    item = boxes((42, 34, 43, 35), tiny.picture(0, 43, 35))
    assert cells(selecting.object_tokens(), item) == [15]


def test_trap_07_positions_move_with_padding():
    vlm, item = hooked(), digit(0)
    prompt = asked(vlm, item)
    for selector in (
        selecting.object_tokens(),
        selecting.register_tokens(k_std=0.5),
        selecting.random_tokens(4),
        selecting.attribution_tokens(3, steps=4),
    ):
        plain = selector(vlm, prompt, item)
        padded = selector(vlm, prompt.left_padded(2, 0), item)
        assert plain
        assert list(padded) == [at + 2 for at in plain]


# --- registers, random tokens, attribution --------------------------------------------


@pytest.mark.parametrize("kind", [SQUARE, *tiny.GEMMA_KINDS], ids=str)
def test_registers_are_far_longer_than_the_rest(kind):
    vlm = random_model(kind)
    prompt = tiny.ask(vlm, "what color")
    image = list(prompt.layout["image"])
    _, cache = vlm.run_with_cache(prompt, names_filter=["hook_embed"])
    norms = np.linalg.norm(cache["hook_embed"][0, image].detach().numpy(), axis=-1)
    for k_std in (0.5, 1):
        long = np.flatnonzero(norms > norms.mean() + k_std * norms.std())
        found = selecting.register_tokens(k_std=k_std)(vlm, prompt, boxes((0, 0, 9, 9)))
        assert list(found) == [image[i] for i in long]
        assert 0 < len(found) < 16
    none = selecting.register_tokens(k_std=20)
    assert none(vlm, prompt, boxes((0, 0, 9, 9))) == Positions()
    assert none.name == "register (norm > mean + 20 std)"


def test_random_tokens_are_drawn_once_for_each_picture():
    item, other = boxes((11, 9, 19, 17)), boxes((11, 9, 19, 17), tiny.picture(5))
    some = selecting.random_tokens(5)
    assert cells(some, item) == cells(some, item)
    assert len(set(cells(some, item))) == 5
    assert cells(some, item) == cells(some, replace(item, question="which"))
    assert cells(some, item) != cells(some, other)
    assert cells(some, item) != cells(selecting.random_tokens(5, seed=1), item)


def test_random_tokens_of_equal_size_outside_the_object():
    item, target = boxes((11, 9, 19, 17)), selecting.object_tokens()
    drawn = [
        cells(selecting.random_tokens(target, outside=target, seed=seed), item)
        for seed in range(30)
    ]
    assert {len(each) for each in drawn} == {2}
    assert {each for pair in drawn for each in pair} == set(range(16)) - {5, 9}
    none = Selector("none", lambda vlm, prompt, item: Positions())
    assert cells(selecting.random_tokens(none), item) == []
    assert selecting.random_tokens(target, outside=target).name == (
        "random object outside object"
    )
    with pytest.raises(MetricError, match="15 positions cannot be drawn from 14"):
        cells(selecting.random_tokens(15, outside=target), item)


@pytest.mark.parametrize("circuit", ["relay", "direct", "enrich"])
def test_attribution_finds_the_object(circuit):
    vlm, item = hooked(circuit), digit(1)
    prompt = vlm.prompt(item.question, item.image, system=planted.SYSTEM)
    mean = planted.background_vector(vlm.hf_model, vlm.processor)
    top = selecting.attribution_tokens(3, baseline=mean)
    assert tuple(top(vlm, prompt, item)) == POSITIONS["object"]


def test_attribution_keeps_the_sign():
    """What speaks loudest against the word is not among the highest."""
    vlm = random_model(SQUARE)
    item = boxes((11, 9, 19, 17))
    prompt = tiny.ask(vlm, "what", item.image)
    red = vlm.to_single_token("red")
    metric = mv.Metric("red", "nats", lambda logits: logits[:, red])
    scores = mv.integrated_gradients(vlm, prompt, metric, steps=4).values
    image = np.array(list(prompt.layout["image"]))
    highest = sorted(image[np.argsort(-scores[image])[:5]].tolist())
    loudest = sorted(image[np.argsort(-np.abs(scores[image]))[:5]].tolist())
    found = selecting.attribution_tokens(5, steps=4)(vlm, prompt, item)
    assert list(found) == highest != loudest


# --- what is refused ------------------------------------------------------------------


def test_what_cannot_be_chosen_is_refused():
    vlm, item = hooked(), digit(0)
    prompt, bare = asked(vlm, item), mv.Item(item.image, "what")
    beyond = boxes((0, 0, 60, 10), item.image)
    text = vlm.prompt("what")
    outside = Selector("last", lambda vlm, prompt, item: prompt.layout["last"])
    for selector, at, about, error, told in [
        (selecting.object_tokens(), prompt, bare, PromptError, "names no target"),
        (selecting.object_tokens(), text, item, PromptError, "prompt has no image"),
        (selecting.object_tokens(), prompt, beyond, RegionError, "not inside"),
        (selecting.all_object_tokens(), prompt, bare, PromptError, "names no objects"),
        (selecting.attribution_tokens(2), prompt, bare, PromptError, "has no answer"),
        (selecting.attribution_tokens(17), prompt, item, MetricError, "1 to 16"),
        (outside, prompt, item, InterventionError, "'last' chose .* no positions"),
    ]:
        with pytest.raises(error, match=told):
            selector(vlm, at, about)
