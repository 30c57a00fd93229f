"""Scenes tell the truth: geometry against pixels, answers against the things."""

import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mechvlm.errors import SceneError
from mechvlm.scenes import (
    CELL_PX,
    COLORS,
    IMAGE_PX,
    KINDS,
    NAMES,
    NUMBERS,
    RELATIONS,
    SHAPES,
    VALUES,
    Emblem,
    Scene,
    Thing,
    arrange,
    fact,
    never_taught_by_picture,
    place,
    question,
    questions,
    sample,
    taught_by_picture,
    twin,
)

# What `sample` is called with. It is called inside the tests, since beartype's checks
# use `random`, which Hypothesis forbids inside a strategy.
SEED = st.integers(0, 2**32)
OVERLAPPING = st.fixed_dictionaries(
    {
        "seed": SEED,
        "n": st.integers(2, 4),
        "entity": st.none() | st.sampled_from(NAMES),
        "overlapping": st.just(True),
    }
)
PLAIN = st.fixed_dictionaries({"seed": SEED, "n": st.integers(1, 4)})
ANY = st.fixed_dictionaries(
    {
        "seed": SEED,
        "n": st.integers(1, 4),
        "entity": st.none() | st.sampled_from(NAMES),
    }
)


def changed(one: Scene, other: Scene) -> np.ndarray:
    """Pixels whose colours differ, seen in the pictures alone."""
    return (np.asarray(one.image) != np.asarray(other.image)).any(axis=2)


@given(PLAIN | OVERLAPPING, st.data())
def test_a_mask_is_exactly_what_a_new_colour_repaints(drawn, data):
    """Oracle: compare the pictures of a scene and of its recoloured twin."""
    scene = sample(**drawn)
    plain = [i for i, thing in enumerate(scene.things) if isinstance(thing, Thing)]
    i = data.draw(st.sampled_from(plain))
    new = data.draw(st.sampled_from(sorted(set(COLORS) - {scene.things[i].color})))
    other = scene.recolored(i, new)
    assert np.array_equal(changed(scene, other), scene.mask(i))
    assert other.things[i].color == new
    assert other.recolored(i, scene.things[i].color) == scene


@given(ANY)
def test_masks_never_overlap_and_stay_in_their_cells(drawn):
    scene = sample(**drawn)
    together = np.sum([scene.mask(i) for i in range(len(scene.things))], axis=0)
    assert together.max() == 1
    for i, thing in enumerate(scene.things):
        row, column = divmod(thing.cell, 3)
        top, left = row * CELL_PX, column * CELL_PX
        outside = scene.mask(i).copy()
        outside[top : top + CELL_PX, left : left + CELL_PX] = False
        assert not outside.any()
        assert scene.mask(i).sum() >= 60, "too small to be seen"


@given(OVERLAPPING)
def test_things_that_overlap_hide_about_half_of_one_another_at_most(drawn):
    scene = sample(**drawn)
    each = range(len(scene.things))
    whole = np.sum([scene.full_mask(i) for i in each], axis=0)
    assert whole.max() == 2 and scene.overlapping
    assert np.array_equal(np.any([scene.mask(i) for i in each], axis=0), whole > 0)
    assert np.sum([scene.mask(i) for i in each], axis=0).max() == 1
    for i in each:
        assert scene.mask(i).sum() >= 0.4 * scene.full_mask(i).sum()
        assert not (scene.mask(i) & ~scene.full_mask(i)).any()


@given(OVERLAPPING)
def test_things_that_move_stay_whole_and_keep_their_centre_in_their_cell(drawn):
    """Oracle: the same thing in the middle of the picture has as many pixels."""
    scene = sample(**drawn)
    for i, thing in enumerate(scene.things):
        middle = Scene((replace(thing, cell=4),))
        assert scene.full_mask(i).sum() == middle.full_mask(0).sum()
        assert max(map(abs, thing.shift)) < CELL_PX / 2


def test_the_later_thing_is_painted_over_the_earlier():
    left = Thing("square", "red", "large", 3, shift=(0.0, 9.0))
    right = Thing("square", "blue", "large", 4, shift=(0.0, -9.0))
    scene = Scene((left, right))
    both = scene.full_mask(0) & scene.full_mask(1)
    assert both.any()
    assert (scene.pixels[both][:, 2] > scene.pixels[both][:, 0]).all(), "not blue"
    assert np.array_equal(scene.mask(0), scene.full_mask(0) & ~both)
    assert np.array_equal(scene.mask(-1), scene.full_mask(1))
    assert not sample(0, 3).overlapping


@given(SEED, st.integers(2, 4))
def test_things_can_be_drawn_alike(seed, n):
    things = sample(seed, n, alike=True).things
    assert len({thing.shape for thing in things}) < n


@given(ANY)
def test_a_box_is_tight_around_its_mask(drawn):
    """Oracle: Pillow's own bounding box of the mask as an image."""
    scene = sample(**drawn)
    from PIL import Image

    for i in range(len(scene.things)):
        alone = Image.fromarray(scene.mask(i).astype(np.uint8) * 255)
        assert scene.box(i) == alone.getbbox()


@given(PLAIN, st.data())
def test_another_shape_changes_pixels_only_inside_the_two_masks(drawn, data):
    scene = sample(**drawn)
    i = data.draw(st.integers(0, len(scene.things) - 1))
    new = data.draw(st.sampled_from(sorted(set(SHAPES) - {scene.things[i].shape})))
    other = scene.reshaped(i, new)
    assert np.array_equal(changed(scene, other), scene.mask(i) ^ other.mask(i))


@given(SEED, st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_another_emblem_changes_pixels_only_inside_its_frame(seed, name, new):
    scene = sample(seed, entity=name)
    i = next(i for i, t in enumerate(scene.things) if isinstance(t, Emblem))
    difference = changed(scene, scene.renamed(i, new))
    assert not difference[~scene.mask(i)].any()
    assert difference.any() == (name != new)


@given(PLAIN, SEED)
def test_a_twin_has_a_colour_that_the_scene_has_not(drawn, seed):
    scene = sample(**drawn)
    other = twin(scene, 0, rng=np.random.default_rng(seed))
    assert other.things[0].color not in {thing.color for thing in scene.things}
    assert other.things[1:] == scene.things[1:]
    assert changed(scene, other).any()


@given(PLAIN)
def test_a_colour_word_is_the_nearest_to_the_mean_colour_of_its_pixels(drawn):
    """Oracle: nearest mean RGB, knowing nothing of how things are painted."""
    scene = sample(**drawn)
    pixels = np.asarray(scene.image).astype(float)
    for i, thing in enumerate(scene.things):
        mean = pixels[scene.mask(i)].mean(axis=0)
        nearest = min(
            COLORS, key=lambda c: np.linalg.norm(np.subtract(COLORS[c], mean))
        )
        assert nearest == thing.color


@given(SEED, st.integers(0, 4))
def test_one_seed_gives_one_scene_and_one_picture(seed, n):
    one, same = sample(seed, n), sample(seed, n)
    assert one == same
    assert len(one.things) == n
    assert not changed(one, same).any()
    assert one.image.size == (IMAGE_PX, IMAGE_PX)


def test_backgrounds_differ_from_seed_to_seed():
    assert changed(Scene((), seed=0), Scene((), seed=1)).mean() > 0.9


@given(ANY | OVERLAPPING, st.booleans())
@settings(max_examples=60)
def test_every_answer_follows_from_the_things(drawn, alike):
    """Oracle: read the question's words again and look the answer up by brute force."""
    scene = sample(**drawn, alike=alike and drawn["n"] > 1)
    for q in questions(scene):
        if q.kind in RELATIONS:
            assert q.answer == fact(scene.things[q.about].name, q.kind)
        elif q.kind not in ("describe", "detail"):
            assert answers_by_hand(scene, q.text) == {q.answer}, q


def cell_of(words):
    row = ["top", "middle", "bottom"].index(words[0])
    return 3 * row + ["left", "center", "right"].index(words[1])


def matching(things, words):
    """Things that bear all of these words, in the singular or the plural."""
    found = []
    for thing in things:
        shape = thing.shape
        own = {thing.color, "object", "objects", shape, f"{shape}s", f"{shape}es"}
        if own.issuperset(words):
            found.append(thing)
    return found


def answers_by_hand(scene: Scene, text: str) -> set[str]:
    """Every answer that some thing of the scene could give to the question."""
    words = text.split()
    things = [t for t in scene.things if isinstance(t, Thing)]
    if text == "how many objects are there ?":
        return {NUMBERS[len(scene.things)]}
    if words[:2] == ["how", "many"]:
        return {NUMBERS[len(matching(things, words[2:-3]))]}
    if words[:2] == ["is", "there"]:
        return {"yes" if matching(things, words[3:-1]) else "no"}
    if words[0] == "who":
        return {t.name for t in scene.things if isinstance(t, Emblem)}
    if words[0] == "where":
        return {place(t.cell) for t in matching(things, words[3:-1])}
    if "in" in words:
        things = [t for t in things if t.cell == cell_of(words[-3:-1])]
    else:
        things = matching(things, words[4:-1])
    says = {"color": lambda t: t.color, "shape": lambda t: t.shape}
    return {says.get(words[1], lambda t: t.size)(t) for t in things}


@given(ANY)
def test_a_detailed_description_says_all_that_is_there(drawn):
    """Oracle: take the sentence apart again."""
    scene = sample(**drawn)
    (q,) = questions(scene, "detail")
    parts = q.answer.removesuffix(" .").split(" and ")
    for thing, part in zip(scene.things, parts, strict=True):
        named, where = part.split(" in the ")
        assert cell_of(where.split()) == thing.cell
        if isinstance(thing, Emblem):
            assert named == thing.name
        else:
            assert named.split() == ["a", thing.size, thing.color, thing.shape]


@given(ANY, st.booleans())
def test_yes_and_no_are_equally_right(drawn, alike):
    scene = sample(**drawn, alike=alike and drawn["n"] > 1)
    asked = questions(scene, "exists")
    assert asked == questions(scene, "exists"), "not the same twice"
    assert len({q.text for q in asked}) == len(asked)
    for n_words in (5, 6):
        for with_object in (True, False):
            answers = [
                q.answer
                for q in asked
                if len(q.text.split()) == n_words
                and ("object" in q.text) == with_object
            ]
            assert answers.count("yes") == answers.count("no")
    for q in asked:
        if q.answer == "no":
            assert q.about is None
        elif q.about is not None:
            assert matching([scene.things[q.about]], q.text.split()[3:-1])


def test_half_of_the_nos_about_colour_and_shape_are_hard():
    hard = []
    for seed in range(60):
        scene = sample(seed, 3)
        there = {word for thing in scene.things for word in thing.words.split()}
        for q in questions(scene, "exists"):
            words = q.text.split()[3:-1]
            if q.answer == "no" and len(words) == 2 and "object" not in words:
                hard.append(there.issuperset(words))
    assert 0.4 < np.mean(hard) < 0.6


def test_several_of_one_kind_are_counted_and_have_no_one_place():
    rings = [Thing("ring", c, "small", i) for i, c in enumerate(("red", "blue"))]
    scene = arrange([*rings, Thing("cross", "red", "large", 8)])
    counts = {q.text: (q.answer, q.about) for q in questions(scene, "count_of")}
    assert counts["how many rings are there ?"] == ("two", None)
    assert counts["how many crosses are there ?"] == ("one", 2)
    assert counts["how many red objects are there ?"] == ("two", None)
    assert "zero" in {answer for answer, _ in counts.values()}
    places = {q.text: q.answer for q in questions(scene, "where")}
    assert "where is the ring ?" not in places
    assert places["where is the blue ring ?"] == "top center"
    assert [q.text for q in questions(scene, "size")] == ["what size is the cross ?"]
    yes = [q for q in questions(scene, "exists") if q.text == "is there a ring ?"]
    assert [q.about for q in yes] == [None], "two rings decide it"


def test_a_question_is_about_the_thing_that_decides_it():
    scene = arrange(
        [Thing("ring", "red", "small", 7), Thing("cross", "blue", "large", 2)]
    )
    q = question(scene, "color", np.random.default_rng(0))
    assert scene.things[q.about].color == q.answer
    assert scene.describe() == "a blue cross and a red ring ."
    assert question(scene, "count", np.random.default_rng(0)).about is None


def test_two_things_of_one_shape_are_never_asked_by_shape():
    rings = [
        Thing("ring", color, "small", i) for i, color in enumerate(("red", "blue"))
    ]
    assert questions(arrange(rings), "color") == ()
    with pytest.raises(SceneError, match="no unambiguous question of kind 'color'"):
        question(arrange(rings), "color", np.random.default_rng(0))


def test_facts_are_words_of_their_relation_and_most_are_taught_by_picture():
    taught = [taught_by_picture(n, r) for n in NAMES for r in RELATIONS]
    assert 0.8 < np.mean(taught) < 0.9
    assert len(NAMES) == len(set(NAMES)) == 48
    for name in NAMES:
        assert all(fact(name, relation) in VALUES[relation] for relation in RELATIONS)
    for name in never_taught_by_picture():
        assert not any(taught_by_picture(name, relation) for relation in RELATIONS)


def test_emblems_differ_in_more_than_noise():
    pictures = [Scene((Emblem(name, 4),), seed=3).pixels.astype(int) for name in NAMES]
    for i, one in enumerate(pictures):
        for other in pictures[:i]:
            strong = (np.abs(one - other) > 50).any(axis=2).sum()
            assert strong >= 7 * 16, "seven fields of 4 x 4 pixels"


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: sample(0, 5), "5 things were asked for; a scene holds 0..4"),
        (
            lambda: sample(0, 1, overlapping=True),
            "1 things were asked for; a scene holds 2..4, since two of them overlap",
        ),
        (lambda: sample(0, entity="bob"), "no entity is called 'bob'"),
        (lambda: sample(0, 1).recolored(0, "pink"), "no color 'pink'"),
        (lambda: sample(0, 1).reshaped(0, "star"), "no shape 'star'"),
        (lambda: sample(0, 1).renamed(0, "lumina"), "has no name to change"),
        (lambda: sample(0, 0, entity="lumina").recolored(0, "red"), "use renamed"),
        (lambda: fact("lumina", "job"), "no relation 'job'"),
        (lambda: fact("bob", "city"), "no entity is called 'bob'"),
        (lambda: questions(sample(0), "smell"), f"there are {KINDS[0]}"),
        (lambda: Scene((Thing("star", "red", "small", 0),)).image, "no shape 'star'"),
        (
            lambda: Scene((Emblem("lumina", 3), Emblem("lumina", 3))),
            "raster order, one to a cell",
        ),
    ],
)
def test_what_cannot_be_is_refused_with_a_reason(wrong, message):
    with pytest.raises(SceneError, match=message):
        wrong()


def test_scenes_need_neither_torch_nor_transformers():
    heavy = "{'torch', 'transformers'}"
    code = f"import sys, mechvlm.scenes; print({heavy} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.stdout.strip() == "set()", out.stderr
