"""Arguments of the wrong kind, as they come without type checks: each is named."""

import pytest
import tiny
from unchecked import check_refusals

import mechvlm as mv
from mechvlm.errors import TokenError

BEGINNING = """
import mechvlm as mv
from mechvlm import ArgumentError, Positions, readings, selecting
vlm, scene = mv.load("demo"), mv.scenes.sample(seed=3, n=1)
prompt = vlm.prompt("how many objects are there ?", scene.image)
item = mv.Item(scene.image, "how many objects are there ?", "one",
    {"it": scene.box(0)}, "it")
sets = {"object": selecting.object_tokens()}
metric = mv.logit_difference(vlm, "one", "two")
lens = mv.logit_lens(vlm, prompt, topk=1)
share = mv.attention_fraction(vlm, prompt)
lose = lambda items=[item], at=sets, **k: mv.token_ablation(
    vlm, items, at, **{"metric": readings.vqa(), "n_random": 1} | k)
cut = lambda cuts={"a": ("last", "image")}, answer="one": mv.knockout_windows(
    vlm, prompt, cuts, answer=answer)
table = lambda items=[item], **k: mv.knockout_accuracy(vlm, items, **k)
named = lambda items=[item], **k: mv.localization_accuracy(vlm, items, **k)
grounded = lambda items=[item], reading=readings.vqa(): mv.grounded_items(
    vlm, items, reading)
track = lambda answers: mv.answer_track(vlm, prompt, answers)
read = lambda **k: mv.logit_lens(vlm, prompt, **k)
slope = lambda metric=metric, **k: mv.integrated_gradients(vlm, prompt, metric, **k)
cases = [
"""

ABLATION = """
    (lambda: lose(at=sets["object"]), "sets is Selector"),
    (lambda: lose(at=Positions.of(3)), "sets is Positions(3)"),
    (lambda: lose(at={"x": Positions.of(3)}), "sets['x'] is Positions(3)"),
    (lambda: lose(at={"x": selecting.object_tokens}), "sets['x'] is <function"),
    (lambda: lose(metric="vqa"), "metric is 'vqa' (str); wanted a list of Reading"),
    (lambda: lose(metric=metric), "metric is Metric("),
    (lambda: lose(metric=readings.vqa), "metric is <function vqa"),
    (lambda: lose(item), "items is Item("),
    (lambda: lose(pool=selecting.image_tokens), "pool is <function"),
    (lambda: grounded(item), "items is Item("),
    (lambda: grounded(reading=readings.vqa), "reading is <function"),
    (lambda: mv.mean_token(vlm, "a.png"), "images is 'a.png' (str); wanted pictures"),
    (lambda: mv.mean_token_per_position(vlm, scene.image), "(Image); wanted pictures"),
    (lambda: mv.mean_token(vlm, 3), "images is '3' (int); wanted pictures"),
    (lambda: selecting.random_tokens(0.5), "n is 0.5 (float); wanted int or Selector"),
    (lambda: slope("red"), "metric is 'red' (str); wanted Metric"),
    (lambda: slope(at=[3, 4]), "at is [3, 4] (list); wanted str or Positions"),
    (lambda: mv.gradient_x_input(vlm, prompt, 3), "metric is 3 (int); wanted Metric"),
"""

READING = """
    (lambda: read(at=[3, 4]), "at is [3, 4] (list); wanted str or Positions"),
    (lambda: read(at=5), "at is 5 (int); wanted str or Positions"),
    (lambda: read(layers=3), "layers is 3 (int); wanted a list of int"),
    (lambda: track(["red"]), "answers is ['red'] (list); wanted names to"),
    (lambda: track("red"), "answers is 'red' (str); wanted names to str or int"),
    (lambda: mv.object_hit_rate(lens, "red"), "words is 'red' (str); wanted a list"),
    (lambda: mv.object_lens(vlm, item), "items is Item("),
    (lambda: mv.object_lens(vlm, [item], words=str), "words is 'it' (str); wanted a"),
    (lambda: mv.pool_fractions(share), "wanted a list of Dataset"),
    (lambda: mv.attention_patterns(vlm, prompt, layers=3), "layers is 3 (int)"),
    (lambda: mv.attention_map(vlm, prompt, layers="all"), "layers is 'all' (str)"),
    (lambda: mv.attention_fraction(vlm, prompt, exclude=3), "exclude is 3 (int)"),
    (lambda: mv.attention_fraction(vlm, prompt, exclude=[3]), "exclude[0] is 3 (int)"),
    (lambda: mv.attention_fraction(vlm, prompt, groups={"a": [3]}), "a group is [3]"),
    (lambda: named(item), "items is Item("),
    (lambda: named(reading=readings.generative), "reading is <function generative"),
"""

CUTTING = """
    (lambda: cut({"a": "image"}), "cuts['a'] is 'image' (str); wanted names to tuple"),
    (lambda: cut("image"), "cuts is 'image' (str); wanted names to tuple"),
    (lambda: cut({"a": ("last",)}), "cuts['a'] has 1 parts; wanted (target, source)"),
    (lambda: cut({"a": ("last", [3])}), "a side of cuts['a'] is [3] (list)"),
    (lambda: cut(answer=0.5), "answer is 0.5 (float); wanted str or int"),
    (lambda: table(item), "items is Item("),
    (lambda: table(reading=readings.vqa), "reading is <function vqa"),
    (lambda: table(windows={"all": 3}), "windows['all'] is 3 (int); wanted names to"),
"""

END = """
]
one = mv.object_lens(vlm, (each for each in [item]), words=lambda name: ["red"])
assert one.attrs["n_objects"] == 1
assert lose((each for each in [item]), value="zero").attrs["n_items"] == 1
"""


def test_what_is_of_the_wrong_kind_is_named():
    """In a process of its own: the tests' type checks would speak first."""
    code = BEGINNING + ABLATION + READING + CUTTING + END
    check_refusals(code)


def test_a_token_id_beyond_the_vocabulary_is_refused(tiny_vlm, tiny_prompt, no_forward):
    cuts = {"image->last": ("last", "image")}
    for answer in (10**6, -1):
        with pytest.raises(TokenError, match=rf"token id {answer} is outside .*\.\.63"):
            mv.knockout_windows(tiny_vlm, tiny_prompt, cuts, answer=answer)


def test_pictures_to_take_a_mean_over_are_still_opened_one_by_one(tiny_vlm):
    """A list made of them all would hold hundreds of pictures at once."""
    opened = []

    def pictures():
        for seed in (0, 1):
            opened.append(seed)
            yield tiny.picture(seed)
        raise RuntimeError("asked for a third")

    with pytest.raises(RuntimeError, match="a third"):
        mv.mean_token(tiny_vlm, pictures())
    assert opened == [0, 1]
