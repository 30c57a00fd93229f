"""Counterfactual scenes: one attribute of one thing, in the pictures and in words."""

import re
from dataclasses import fields

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import mechvlm as mv
from mechvlm.errors import SceneError
from mechvlm.scenes import (
    CHANGES,
    COLORS,
    NAMES,
    ROWS,
    SHAPES,
    Emblem,
    Scene,
    Thing,
    arrange,
    counterfactual,
    place,
    sample,
)

# What `sample` is called with, inside the tests.
DRAWN = st.fixed_dictionaries(
    {
        "seed": st.integers(0, 2**32),
        "n": st.integers(2, 4),
        "entity": st.none() | st.sampled_from(NAMES),
        "overlapping": st.booleans(),
    }
)
CHANGED = {
    "color": {"color"},
    "shape": {"shape"},
    "position": {"cell"},
    "object": {"color", "shape"},
}


def made(scene, change, **drawn):
    """A counterfactual, or None where the scene has none."""
    try:
        return counterfactual(scene, change, **drawn)
    except SceneError as refused:
        assert "has no counterfactual of" in str(refused)
        return None


def told(scene, question):
    """Every answer that is true of the scene, from the question's words alone."""
    things = [thing for thing in scene.things if isinstance(thing, Thing)]
    if found := re.fullmatch(r"what color is the (\w+) \?", question):
        return [t.color for t in things if t.shape == found[1]]
    if found := re.fullmatch(r"what shape is the (\w+) object \?", question):
        return [t.shape for t in things if t.color == found[1]]
    asked = re.fullmatch(r"(where is the|is there a) (?:(\w+) )?(\w+) \?", question)
    meant = [
        t for t in things if t.shape == asked[3] and asked[2] in (None, "", t.color)
    ]
    if asked[1] == "where is the":
        return [place(t.cell).split()[0] for t in meant]
    return ["yes" if meant else "no"]


@given(DRAWN, st.sampled_from(CHANGES), st.integers(0, 99))
@settings(max_examples=80)
def test_nothing_else_in_the_picture_differs(drawn, change, seed):
    """Oracle: the pixels of the two pictures."""
    scene = sample(**drawn)
    if (found := made(scene, change, seed=seed)) is None:
        return
    assert found.clean is scene and found.corrupted.seed == scene.seed
    differs = (scene.pixels != found.corrupted.pixels).any(axis=2)
    inside = scene.full_mask(found.about) | found.corrupted.full_mask(found.about)
    assert differs.any() and not differs[~inside].any()


@given(DRAWN, st.sampled_from(CHANGES), st.integers(0, 99))
@settings(max_examples=80)
def test_one_attribute_of_one_thing_differs_and_is_asked_for(drawn, change, seed):
    scene = sample(**drawn)
    if (found := made(scene, change, seed=seed)) is None:
        return
    others = [i for i in range(len(scene.things)) if i != found.about]
    assert all(found.corrupted.things[i] == scene.things[i] for i in others)
    thing, twin = (each.things[found.about] for each in (scene, found.corrupted))
    names = {each.name for each in fields(Thing)}
    differing = {name for name in names if getattr(thing, name) != getattr(twin, name)}
    assert differing == CHANGED[change]
    for name in {"color", "shape"} & differing:
        plain = [each for each in scene.things if isinstance(each, Thing)]
        assert getattr(twin, name) not in {getattr(each, name) for each in plain}
    assert told(scene, found.question) == [found.answer]
    assert told(found.corrupted, found.question) == [found.foil]
    assert found.answer != found.foil and found.change == change


@given(DRAWN, st.sampled_from(CHANGES), st.integers(0, 99))
@settings(max_examples=40)
def test_what_is_changed_is_still_seen(drawn, change, seed):
    scene = sample(**drawn)
    if (found := made(scene, change, seed=seed)) is None:
        return
    twin = found.corrupted
    for i in range(len(twin.things)):
        before, seen = scene.mask(i).sum(), twin.mask(i).sum()
        assert seen >= min(before, twin.full_mask(i).sum() / 2)
    if change == "position":
        moved = twin.mask(found.about)
        assert moved.sum() == scene.full_mask(found.about).sum()


RING, CROSS = Thing("ring", "red", "small", 0), Thing("cross", "blue", "large", 4)
TWO = Scene((RING, CROSS), seed=5)


def test_by_hand():
    """One thing that can be meant, and every new value but one taken or told."""
    color = counterfactual(TWO, about=1)
    assert (color.question, color.answer) == ("what color is the cross ?", "blue")
    assert color.foil in set(COLORS) - {"red", "blue"}
    shape = counterfactual(TWO, "shape", about=0)
    assert (shape.question, shape.answer) == ("what shape is the red object ?", "ring")
    assert shape.foil in set(SHAPES) - {"ring", "cross"}
    # The ring comes before the cross in cell 4 wherever it goes: only cell 3 is left.
    moved = counterfactual(TWO, "position", about=0)
    assert moved.question == "where is the ring ?"
    assert (moved.answer, moved.foil) == ("top", "middle")
    assert [thing.cell for thing in moved.corrupted.things] == [3, 4]
    replaced = counterfactual(TWO, "object", about=0)
    assert (replaced.question, replaced.answer, replaced.foil) == (
        "is there a ring ?",
        "yes",
        "no",
    )
    assert replaced.corrupted.things[1] == CROSS


def test_a_shape_that_is_there_twice_is_asked_for_with_its_colour():
    scene = arrange([RING, Thing("ring", "blue", "small", 8)])
    for change, question in (
        ("position", "where is the red ring ?"),
        ("object", "is there a red ring ?"),
    ):
        assert counterfactual(scene, change, about=0).question == question


def test_the_seed_draws_what_is_left_open():
    seeds = range(24)
    for change in CHANGES:
        drawn = [counterfactual(TWO, change, seed=seed) for seed in seeds]
        assert drawn[:4] == [counterfactual(TWO, change, seed=s) for s in range(4)]
        assert {each.about for each in drawn} == {0, 1}
        if change in ("color", "shape"):
            free = len(COLORS if change == "color" else SHAPES) - 2
            assert len({each.foil for each in drawn}) == free
    rows = {counterfactual(TWO, "position", seed=seed).foil for seed in seeds}
    assert rows == {"middle", "bottom", "top"} == set(ROWS)


def test_a_thing_that_cannot_be_changed_is_not_drawn():
    """The red ring stands where nothing is free before the cross in cell 3."""
    scene = arrange([RING, Thing("cross", "blue", "small", 3)])
    abouts = {counterfactual(scene, "position", seed=s).about for s in range(20)}
    assert abouts == {1}
    with pytest.raises(
        SceneError, match=r"a red ring: it can go to no free cell in an"
    ):
        counterfactual(scene, "position", about=0)


def test_a_thing_moves_only_to_where_it_is_whole_and_alone():
    """It leans 9 px to the right: the last column cuts it, in cell 6 it meets the 7."""
    leaning = Thing("ring", "red", "large", 0, (0.0, 9.0))
    scene = arrange([leaning, Thing("cross", "blue", "large", 7)])
    drawn = [counterfactual(scene, "position", about=0, seed=s) for s in range(30)]
    assert {each.corrupted.things[0].cell for each in drawn} == {3, 4}


def test_a_new_shape_does_not_hide_most_of_what_is_below_it():
    """Of the ring are seen: .79 below a cross, .48 and .44 below circle and square."""
    ring = Thing("ring", "red", "small", 3, (0.0, 8.0))
    cross = Thing("cross", "blue", "large", 4, (0.0, -8.0))
    scene = Scene((ring, cross))
    drawn = [counterfactual(scene, "shape", about=1, seed=s) for s in range(30)]
    assert {each.foil for each in drawn} == {"triangle", "diamond"}


def test_what_was_hidden_before_is_no_hindrance():
    """Less than half of the square is seen, whatever colour the cross has."""
    square = Thing("square", "red", "small", 3, (0.0, 9.0))
    scene = Scene((square, Thing("cross", "blue", "large", 4, (0.0, -9.0))))
    assert scene.mask(0).sum() < scene.full_mask(0).sum() / 2
    assert counterfactual(scene, about=1).answer == "blue"


def many(n, colors=tuple(COLORS), shapes=SHAPES):
    """Things in the first cells, with colours and shapes by turns."""
    return Scene(
        tuple(
            Thing(shapes[i % len(shapes)], colors[i % len(colors)], "small", i)
            for i in range(n)
        )
    )


EMBLEM = Emblem(NAMES[0], 8)


@pytest.mark.parametrize(
    ("scene", "change", "about", "said"),
    [
        (
            TWO,
            "size",
            None,
            "no change of 'size' is known; there are color, shape, pos",
        ),
        (TWO, "color", 2, r"about=2: coloured shapes .* are things \[0, 1\]"),
        (TWO, "color", -1, r"about=-1: .*counted from 0"),
        (arrange([RING, EMBLEM]), "color", 1, r"things \[0\], .* an emblem is none"),
        (Scene((EMBLEM,)), "color", None, "has no coloured shape to change"),
        (Scene(()), "object", None, "has no coloured shape to change"),
        (
            many(2, shapes=("ring",)),
            "color",
            None,
            "another thing has its shape, by wh",
        ),
        (
            many(2, colors=("red",)),
            "shape",
            None,
            "another thing has its colour, by wh",
        ),
        (many(2, ("red",), ("ring",)), "position", 0, "has its colour and shape, by"),
        (many(2, ("red",), ("ring",)), "object", 1, "and would still be there"),
        (many(8, shapes=("ring", *7 * ["cross"])), "color", 0, "every colour is taken"),
        (many(6), "shape", None, "a yellow diamond: every shape is taken, or would"),
        (many(6), "object", None, "every colour or shape is taken, or would hide"),
        (many(9), "position", None, "without passing another thing in raster order"),
    ],
)
def test_a_scene_that_bears_no_such_question_is_refused(scene, change, about, said):
    with pytest.raises(SceneError, match=said):
        counterfactual(scene, change, about=about)


def test_a_seed_is_never_negative():
    with pytest.raises(SceneError, match="seed=-1: wanted 0 or more"):
        counterfactual(TWO, seed=-1)


# --- as pictures ----------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_the_pair_says_where_things_are_in_both_pictures(change):
    scene = arrange([RING, CROSS, EMBLEM], seed=5)
    found = counterfactual(scene, change, about=1)
    pair = found.pair
    assert list(pair.objects) == ["red ring", "blue cross", NAMES[0]]
    for i, mask in enumerate(pair.objects.values()):
        assert np.array_equal(mask, scene.mask(i))
    moved = {} if change == "color" else {"blue cross": found.corrupted.mask(1)}
    assert list(pair.objects_corrupted) == list(moved)
    for name, mask in moved.items():
        assert np.array_equal(pair.objects_corrupted[name], mask)
    assert np.array_equal(np.asarray(pair.clean), scene.pixels)
    assert np.array_equal(np.asarray(pair.corrupted), found.corrupted.pixels)
    assert (pair.target, pair.change) == ("blue cross", change)
    assert (pair.question, pair.answer, pair.foil) == (
        found.question,
        found.answer,
        found.foil,
    )


def test_things_of_the_same_words_are_numbered():
    scene = arrange([*many(2, ("red",), ("ring",)).things, CROSS])
    pair = counterfactual(scene, about=2).pair
    assert list(pair.objects) == ["red ring", "red ring 2", "blue cross"]


@pytest.mark.parametrize("change", CHANGES)
def test_the_demo_answers_both_pictures(demo, change):
    right = []
    for seed in range(12):
        if (found := made(sample(seed), change, seed=seed)) is None:
            continue
        for picture, answer in (
            (found.pair.clean, found.answer),
            (found.pair.corrupted, found.foil),
        ):
            logits = demo(demo.prompt(found.question, picture))[0, -1]
            right.append(int(logits.argmax()) == demo.to_single_token(answer))
    assert len(right) > 18
    assert np.mean(right) > 0.8


def test_masks_become_the_pairs_group(demo):
    """The moved thing's group has the cells of both places."""
    found = counterfactual(TWO, "position", about=0)
    pair = mv.bind(demo, found.pair)
    layout = pair.clean.layout
    here, there = TWO.mask(0), found.corrupted.mask(0)
    assert pair.groups["object"] == layout.region(here) | layout.region(there)
    assert torch.equal(pair.clean.ids, pair.corrupted.ids)
