"""Pairs of prompts: every position in one group, and only what can be compared."""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from unchecked import check_refusals

import mechvlm as mv
from mechvlm.errors import LayoutError, PairError, PromptError, RegionError, TokenError
from mechvlm.layout import Positions
from mechvlm.models import planted
from mechvlm.models.hooked import HookedVLM

# The tiny prompt: BOS, 2 words of the template, 16 cells, 2 words of query, 2 of the
# template. The picture of 40 x 32 is cropped to its middle 32 x 32: cells of 8 pixels
# from x = 4 on.
CELLS = range(3, 19)
FIRST_CELL, SECOND_CELL = (4, 0, 12, 8), (12, 0, 20, 8)


@pytest.fixture
def metric(tiny_vlm):
    return mv.logit_difference(tiny_vlm, "red", "blue")


@pytest.fixture
def corrupted(tiny_vlm):
    return tiny_vlm.prompt("what color", tiny.picture(seed=1))


def picture_pair(**changes):
    """Two pictures of noise and a question in the tiny model's words."""
    given = {"clean": tiny.picture(), "corrupted": tiny.picture(seed=1)}
    words = {"question": "what color", "answer": "red", "foil": "blue"}
    return mv.PicturePair(**{**given, **words, **changes})


# --- groups -----------------------------------------------------------------------


def test_groups_are_those_of_the_layout_and_the_last_position(tiny_prompt):
    groups = mv.groups_of(tiny_prompt)
    assert list(groups) == ["bos", "image", "query", "template", "last"]
    assert groups == {
        "bos": Positions.of(0),
        "image": Positions.of(CELLS),
        "query": Positions.of(19, 20),
        "template": Positions.of(1, 2, 21),
        "last": Positions.of(22),
    }


def test_objects_part_the_image_and_an_overlap_is_the_firsts(tiny_prompt):
    objects = {"ball": Positions.of(3, 4), "dog": Positions.of(4, 5)}
    groups = mv.groups_of(tiny_prompt, objects)
    assert list(groups)[1:4] == ["ball", "dog", "background"]
    assert groups["ball"] == Positions.of(3, 4)
    assert groups["dog"] == Positions.of(5)
    assert groups["background"] == Positions.of(range(6, 19))


def test_an_object_that_fills_the_image_leaves_no_background(tiny_prompt):
    groups = mv.groups_of(tiny_prompt, {"sky": Positions.of(CELLS)})
    assert list(groups) == ["bos", "sky", "query", "template", "last"]


def test_the_last_position_is_taken_from_whichever_group_holds_it(tiny_vlm):
    """A raw text ends with its query; after an answer the last one is generated."""
    raw = tiny_vlm.prompt_raw("<image> what color", tiny.picture())
    assert mv.groups_of(raw)["query"] == raw.layout["query"] - raw.layout["last"]
    said = raw.extended(torch.tensor([raw.ids[0, -1]]), ("color",))
    groups = mv.groups_of(said)
    assert "generated" not in groups
    assert groups["query"] == said.layout["query"]


@pytest.mark.parametrize("kind", tiny.EVERY_KIND, ids=str)
def test_groups_hold_every_position_once_in_every_family(kind):
    vlm = HookedVLM(*tiny.build(kind))
    prompt = tiny.ask(vlm, "what color")
    objects = {"ball": prompt.layout.region((12, 8, 20, 16))}
    groups = mv.groups_of(prompt, objects)
    held = sorted(position for at in groups.values() for position in at)
    assert held == list(range(prompt.layout.n))
    for name in ("query", "template"):
        assert groups.get(name, Positions()) == prompt.layout[name] - groups["last"]


@pytest.mark.parametrize(
    ("objects", "said"),
    [
        ({"query": Positions.of(3)}, "called 'query', which is the name of another"),
        ({"background": Positions.of(3)}, "called 'background', which is the name"),
        ({"ball": Positions.of(2, 3)}, "of these 2 are outside the image, .* 3..18"),
        (
            {"a": Positions.of(3, 4), "b": Positions.of(4)},
            "'b' is at .* no position of",
        ),
        ({"ball": Positions()}, "'ball' is at .* no position of its own"),
    ],
)
def test_objects_that_part_nothing_are_refused(tiny_prompt, objects, said):
    with pytest.raises(LayoutError, match=said):
        mv.groups_of(tiny_prompt, objects)


# --- two prompts ----------------------------------------------------------------------


def test_a_pair_keeps_what_it_was_given(tiny_prompt, corrupted, metric):
    groups = mv.groups_of(tiny_prompt)
    pair = mv.Pair(tiny_prompt, corrupted, metric, groups, "noise")
    assert (pair.clean, pair.corrupted, pair.id) == (tiny_prompt, corrupted, "noise")
    assert pair.groups == groups
    groups.clear()
    assert len(pair.groups) == 5


def test_a_run_has_the_groups_of_its_prompt(tiny_vlm, tiny_prompt):
    run = mv.base_run(tiny_vlm, tiny_prompt)
    assert mv.groups_of(run) == mv.groups_of(tiny_prompt)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"query": Positions.of(18, 19, 20)},
            r"'query' shares Positions\(18\) with im",
        ),
        ({"query": Positions.of(19)}, r"Positions\(20\) are in no group"),
        ({"query": Positions.of(19, 20, 23)}, r"holds Positions\(23\), and .* 0..22"),
        ({"system": Positions()}, "'system' has no position. Leave it out"),
    ],
)
def test_groups_that_are_no_partition_are_refused(
    tiny_prompt, corrupted, metric, change, said
):
    groups = mv.groups_of(tiny_prompt) | change
    with pytest.raises(PairError, match=said):
        mv.Pair(tiny_prompt, corrupted, metric, groups)


def refused(clean, corrupted, metric, said):
    with pytest.raises(PairError, match=said):
        mv.Pair(clean, corrupted, metric, mv.groups_of(clean))


def test_prompts_of_other_layouts_are_refused(tiny_vlm, tiny_prompt, metric):
    """Each with what differs: the length, what a position is, or what a cell sees."""
    longer = tiny_vlm.prompt("what color is", tiny.picture(seed=1))
    refused(tiny_prompt, longer, metric, "23 positions and the corrupted one 24")
    raw = tiny_vlm.prompt_raw("<image> a a a a a a", tiny.picture(seed=1))
    same_length = tiny_vlm.prompt_raw("a a <image> a a a a", tiny.picture(seed=1))
    refused(raw, same_length, metric, r"same length but other groups \(image")
    wide = tiny_vlm.prompt("what color", tiny.picture(seed=1, width=48))
    refused(
        tiny_prompt,
        wide,
        metric,
        r"picture of 40 x 32 pixels, of which a grid of 4 x 4 cells sees \(4.*, and the"
        r" corrupted one a picture of 48 x 32 .* sees \(8.*pictures of one size",
    )
    # Another model's processor may see another part of a picture of the same size.
    (grid,) = raw.layout.grids
    shifted = (replace(grid, box=(0, 0, 32, 32)),)
    elsewhere = replace(raw, layout=replace(raw.layout, grids=shifted))
    refused(raw, elsewhere, metric, r"sees \(4.*, and the corrupted .* sees \(0, 0, 32")
    text = tiny_vlm.prompt("what color")
    refused(tiny_prompt, text, metric, "and the corrupted one no picture")


def test_prompts_that_are_the_same_to_the_model_are_refused(
    tiny_vlm, tiny_prompt, metric
):
    again = tiny_vlm.prompt("what color", tiny.picture())
    refused(tiny_prompt, again, metric, "the same to the model, ids and pixels alike")
    pixels = np.array(tiny.picture())
    pixels[:, :4] = 255 - pixels[:, :4]  # columns that the processor crops away
    cropped = tiny_vlm.prompt("what color", Image.fromarray(pixels))
    refused(tiny_prompt, cropped, metric, "lie where the processor crops")
    pixels[:, 4] = 255 - pixels[:, 4]
    seen = tiny_vlm.prompt("what color", Image.fromarray(pixels))
    assert mv.Pair(tiny_prompt, seen, metric, mv.groups_of(seen)).corrupted is seen


def test_words_may_differ_instead_of_the_picture(tiny_vlm, tiny_prompt, metric):
    other = tiny_vlm.prompt("what cat", tiny.picture())
    pair = mv.Pair(tiny_prompt, other, metric, mv.groups_of(tiny_prompt))
    assert not torch.equal(pair.clean.ids, pair.corrupted.ids)


# --- two pictures ---------------------------------------------------------------------


def test_a_picture_pair_knows_where_its_target_is_in_both():
    mask = np.ones((32, 40), dtype=bool)
    pair = picture_pair(
        objects={"ball": (0, 0, 9, 9.5), "dog": mask},
        objects_corrupted={"ball": (1, 0, 9, 9)},
        target="ball",
    )
    assert pair.areas == ((0, 0, 9, 9.5), (1, 0, 9, 9))
    moved = replace(pair, target="dog").areas
    assert moved[0] is mask and moved[1] is mask
    with pytest.raises(PromptError, match="pair 'what color' names no target"):
        _ = picture_pair().areas


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"question": " "}, r"\['question'\] of pair ' ' are empty"),
        ({"answer": "", "id": "x"}, r"\['answer'\] of pair 'x' are empty"),
        ({"foil": " Red"}, "answer and foil of pair 'what color' are both 'red'"),
        (
            {"target": "ball"},
            "target 'ball' is none of the PicturePair's objects, .* none",
        ),
        (
            {"objects": {"a": (0, 0, 9, 9)}, "objects_corrupted": {"b": (0, 0, 9, 9)}},
            r"names \['b'\]; its objects are a\. It says where",
        ),
    ],
)
def test_picture_pairs_that_ask_nothing_are_refused(changes, said):
    with pytest.raises(PromptError, match=said):
        picture_pair(**changes)


def test_binding_makes_both_prompts_of_one_question(tiny_vlm, tmp_path):
    tiny.picture(seed=1).save(tmp_path / "other.png")
    given = picture_pair(corrupted=tmp_path / "other.png", prefix=" a", id="noise")
    pair = mv.bind(tiny_vlm, given, system="see")
    for prompt, seed in ((pair.clean, 0), (pair.corrupted, 1)):
        alone = tiny_vlm.prompt(
            "what color", tiny.picture(seed=seed), prefix=" a", system="see"
        )
        assert prompt.tokens == alone.tokens
        assert all(
            torch.equal(prompt.inputs[name], alone.inputs[name])
            for name in alone.inputs
        )
    assert pair.id == "noise"
    assert pair.groups["system"] == pair.clean.layout["system"]
    red, blue = tiny_vlm.to_single_token("red"), tiny_vlm.to_single_token("blue")
    assert pair.metric.tokens == (red, blue)
    assert "object" not in pair.groups


def test_the_object_is_where_the_target_is_in_either_picture(tiny_vlm):
    given = picture_pair(
        objects={"dog": (20, 8, 28, 16), "ball": FIRST_CELL},
        objects_corrupted={"ball": SECOND_CELL},
        target="ball",
    )
    groups = mv.bind(tiny_vlm, given).groups
    assert groups["object"] == Positions.of(3, 4)
    assert groups["background"] == Positions.of(range(5, 19))
    still = mv.bind(tiny_vlm, replace(given, objects_corrupted={})).groups
    assert still["object"] == Positions.of(3)


def test_a_counterfactual_is_bound_as_its_pair(demo):
    twin = mv.scenes.counterfactual(mv.scenes.sample(3), "position")
    ours, theirs = mv.bind(demo, twin), mv.bind(demo, twin.pair)
    assert ours.groups == theirs.groups
    assert ours.metric.tokens == theirs.metric.tokens
    for one, other in ((ours.clean, theirs.clean), (ours.corrupted, theirs.corrupted)):
        assert one.text == other.text
        assert all(
            torch.equal(one.inputs[name], other.inputs[name]) for name in one.inputs
        )


@pytest.mark.parametrize("kind", [tiny.KINDS[3], tiny.GEMMA_KINDS[1]], ids=str)
def test_pictures_of_another_size_are_bound_by_other_families(kind):
    """SigLIP squeezes 48 x 64 to a square: a cell is 12 x 16 pixels of it."""
    vlm = HookedVLM(*tiny.build(kind))
    clean, corrupted = (tiny.picture(seed, 48, 64) for seed in (0, 1))
    given = picture_pair(
        clean=clean,
        corrupted=corrupted,
        objects={"ball": (12, 16, 36, 32)},
        target="ball",
    )
    pair = mv.bind(vlm, given)
    start = pair.clean.layout.grids[0].start
    assert pair.groups["object"] == Positions.of(start + 5, start + 6)
    logits = torch.cat([vlm(each)[:, -1] for each in (pair.clean, pair.corrupted)])
    clean_value, corrupted_value = pair.metric(logits).tolist()
    assert clean_value != corrupted_value


def test_binding_refuses_pictures_of_two_sizes(tiny_vlm):
    given = picture_pair(corrupted=tiny.picture(seed=1, width=64))
    with pytest.raises(PairError, match=r"40 x 32 .* 4 x 4 .* 64 x 32 .* of one size"):
        mv.bind(tiny_vlm, given)


def test_binding_refuses_one_picture_for_two(tiny_vlm):
    with pytest.raises(PairError, match="Was the same picture given twice"):
        mv.bind(tiny_vlm, picture_pair(corrupted=tiny.picture()))


def test_trap_11_a_target_outside_the_crop_is_refused(tiny_vlm):
    given = picture_pair(objects={"ball": (0, 0, 4, 32)}, target="ball")
    with pytest.raises(RegionError, match="no cell of the image grid"):
        mv.bind(tiny_vlm, given)


def test_trap_08_words_of_several_tokens_need_a_metric(tiny_vlm):
    several = picture_pair(answer="red dog", id="dogs")
    with pytest.raises(
        TokenError, match=r"pair 'dogs': 'red dog' is 2 tokens .* bind\(\.\.\., metric="
    ):
        mv.bind(tiny_vlm, several)
    with pytest.raises(TokenError, match="'green' is not in the vocabulary"):
        mv.bind(tiny_vlm, picture_pair(foil="green"))
    own = mv.probability(tiny_vlm, "red")
    assert mv.bind(tiny_vlm, several, metric=own).metric is own


@pytest.mark.parametrize("circuit", planted.CIRCUITS)
def test_a_planted_pair_has_the_groups_and_the_gap_that_it_was_given(circuit):
    """By hand: logit 4 for the class that is shown and 0 for the other."""
    vlm = mv.HookedVLM(*planted.build(circuit))
    clean, corrupted = planted.scene(0), planted.scene(1)
    given = mv.PicturePair(
        *(clean, corrupted, planted.QUESTION, *planted.ANSWERS[:2]),
        objects={"thing": np.array(clean)[:, :, 0] > 0},
        target="thing",
    )
    pair = mv.bind(vlm, given, system=planted.SYSTEM)
    names = ("bos", "system", "object", "query", "last")
    groups = {name: Positions.of(planted.POSITIONS[name]) for name in names}
    rest = Positions.of(planted.POSITIONS["image"]) - groups["object"]
    assert pair.groups == {**groups, "background": rest}
    logits = torch.cat([vlm(each)[:, -1] for each in (pair.clean, pair.corrupted)])
    gap = 0 if circuit == "too_late" else 4
    wanted = pytest.approx([gap, -gap], rel=0, abs=4 * planted.TOLERANCE)
    assert pair.metric(logits).tolist() == wanted


@pytest.mark.parametrize("change", mv.scenes.CHANGES)
def test_the_demo_tells_the_pictures_of_a_pair_apart(demo, change):
    pair = mv.bind(demo, mv.scenes.counterfactual(mv.scenes.sample(3), change).pair)
    assert list(pair.groups)[1:3] == ["object", "background"]
    logits = torch.cat([demo(each)[:, -1] for each in (pair.clean, pair.corrupted)])
    clean, corrupted = pair.metric(logits).tolist()
    assert corrupted < 0 < clean


# Here beartype would say so first; a user's calls go unchecked.
WRONG_KINDS = """
import dataclasses
import numpy as np
import mechvlm as mv
words = ("a.png", "b.png", "?", "x", "y")
assert mv.PicturePair(*words, {"a": [0, 0, 9, 9]}).objects["a"] == (0, 0, 9, 9)
vlm = mv.load("demo")
scene = mv.scenes.sample(seed=0, n=2)
clean = vlm.prompt("how many objects are there ?", scene.image)
metric, groups = mv.logit_difference(vlm, "red", "blue"), mv.groups_of(clean)
made = mv.scenes.counterfactual(scene)
same = mv.scenes.counterfactual(scene, about=np.int64(made.about), seed=np.int64(0))
assert same.about == made.about and type(same.about) is int
changed = lambda **fields: lambda: dataclasses.replace(made.pair, **fields)
told = lambda **given: lambda: mv.scenes.counterfactual(**{"scene": scene, **given})
cases = [
    (lambda: mv.Pair("a.png", clean, metric, groups), "Pair.clean is 'a.png'"),
    (lambda: mv.Pair(clean, scene, metric, groups), "Pair.corrupted is Scene"),
    (lambda: mv.Pair(clean, clean, "red", groups), "Pair.metric is 'red'"),
    (lambda: mv.Pair(clean, clean, metric, ["image"]), "Pair.groups is ['image']"),
    (lambda: mv.Pair(clean, clean, metric, {"a": [0]}), "Pair.groups['a'] is [0]"),
    (lambda: mv.groups_of(clean, {"a": (0, 0, 9, 9)}), "objects['a'] is (0, 0, 9, 9)"),
    (lambda: mv.groups_of("x"), "prompt is 'x' (str); wanted Prompt or Run"),
    (
        lambda: mv.groups_of(clean, {1: mv.Positions.of(4), "1": mv.Positions.of(5)}),
        "objects has the keys [1, '1'], which are written alike",
    ),
    (lambda: mv.bind(vlm, "a.png"), "pair is 'a.png' (str); wanted PicturePair"),
    (lambda: mv.bind(made, vlm), "pair is HookedVLM"),
    (lambda: mv.datasets.pairs.write(mv.PicturePair(*words), "x"), "wanted a list of"),
    (lambda: mv.datasets.pairs.write([made], "x"), "of a counterfactual its .pair"),
    (changed(clean=np.zeros((9, 9, 3))), "PicturePair.clean is array"),
    (changed(corrupted=None), "PicturePair.corrupted is None"),
    (changed(question=None), "PicturePair.question is None"),
    (changed(answer=3), "PicturePair.answer is 3 (int); wanted str"),
    (changed(foil=4), "PicturePair.foil is 4"),
    (changed(target=["x"]), "PicturePair.target is ['x']"),
    (changed(change=None), "PicturePair.change is None"),
    (changed(prefix=None), "PicturePair.prefix is None"),
    (changed(id=3), "PicturePair.id is 3"),
    (told(scene="x"), "scene is 'x' (str); wanted Scene"),
    (told(change=[]), "change is []"),
    (told(about="0"), "about is '0' (str)"),
    (told(seed="1"), "seed is '1'"),
    (lambda: mv.PicturePair(*words, [1]), "PicturePair.objects is [1]"),
    (lambda: mv.PicturePair(*words, {}, [1]), "PicturePair.objects_corrupted is [1]"),
    (lambda: mv.PicturePair(*words, {"a": (0, 0, 9)}), mv.PromptError, "no box of"),
]
"""


def test_what_is_of_another_kind_is_named():
    check_refusals(WRONG_KINDS)
