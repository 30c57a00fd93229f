"""Scenes tell the truth: geometry against pixels, answers against the things."""

import subprocess
import sys

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
    question,
    questions,
    sample,
    taught_by_picture,
    twin,
)

# What `sample` is called with. It is called inside the tests, since beartype's checks
# use `random`, which Hypothesis forbids inside a strategy.
SEED = st.integers(0, 2**32)
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


@given(PLAIN, st.data())
def test_a_mask_is_exactly_what_a_new_colour_repaints(drawn, data):
    """Oracle: compare the pictures of a scene and of its recoloured twin."""
    scene = sample(**drawn)
    i = data.draw(st.integers(0, len(scene.things) - 1))
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


@given(ANY)
@settings(max_examples=50)
def test_every_answer_follows_from_the_things(drawn):
    """Oracle: read the question's words again and look the answer up by brute force."""
    scene = sample(**drawn)
    for q in questions(scene):
        if q.kind not in ("describe", *RELATIONS):
            assert answers_by_hand(scene, q.text) == {q.answer}
        if q.kind in RELATIONS:
            assert q.answer == fact(scene.things[q.about].name, q.kind)


def answers_by_hand(scene: Scene, text: str) -> set[str]:
    """Every answer that some thing of the scene could give to the question."""
    words = text.split()
    if words[:2] == ["how", "many"]:
        return {NUMBERS[len(scene.things)]}
    if words[0] == "who":
        return {t.name for t in scene.things if isinstance(t, Emblem)}
    things = [t for t in scene.things if isinstance(t, Thing)]
    if "in" in words:
        row, column = words[-3], words[-2]
        down = ["top", "middle", "bottom"].index(row)
        right = ["left", "center", "right"].index(column)
        things = [t for t in things if t.cell == 3 * down + right]
    else:
        key = words[4]
        things = [t for t in things if key in (t.shape, t.color)]
    return {t.color if words[1] == "color" else t.shape for t in things}


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
    assert 0.5 < np.mean(taught) < 0.7
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
