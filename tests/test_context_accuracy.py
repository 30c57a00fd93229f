"""What compressed contexts answer: by hand arithmetic, and as a table of the demo."""

import math
from functools import cache

import numpy as np
import pytest
import torch
from unchecked import check_refusals

# --- planted circuits, by hand arithmetic ---------------------------------------------
import mechvlm as mv
from mechvlm import Count, Item, Positions
from mechvlm.models import planted
from mechvlm.models.compressing import LastRow
from mechvlm.models.context import whole_context
from mechvlm.models.planted import CHANCE, CIRCUITS, EXPECTED, SURE, TOLERANCE, scene


@cache
def read(circuit):
    vlm = mv.HookedVLM(*planted.build(circuit))
    prompt = vlm.prompt(planted.QUESTION, scene(0), system=planted.SYSTEM)
    return vlm, prompt


def p_of(circuit, answer=0, render=None, **how):
    """P of a class, asked of a compressed context."""
    vlm, prompt = read(circuit)
    context = mv.compressed_context(vlm, prompt, **{"select": "last"} | how)
    said = mv.ask(vlm, context, planted.QUESTION, max_new_tokens=1, render=render)
    word = vlm.to_single_token(planted.ANSWERS[answer])
    return float(said.logits[0].softmax(dim=-1)[word])


def near(wanted):
    return pytest.approx(wanted, rel=0, abs=TOLERANCE)


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_all_of_the_context_answers_as_the_picture_does(circuit):
    vlm, prompt = read(circuit)
    naive = vlm.generate(prompt, max_new_tokens=1).logits[0].softmax(dim=-1)
    word = vlm.to_single_token(planted.ANSWERS[0])
    assert float(naive[word]) == near(EXPECTED[circuit].base)
    assert p_of(circuit, keep=1.0) == near(EXPECTED[circuit].base)
    assert p_of(circuit, keep=1.0, text=Positions.of()) == near(EXPECTED[circuit].base)


HALF = math.exp(2) / (math.exp(2) + 3)
"""Two of the four question words hold the class, so that half of it is read."""


def test_question_words_hold_what_they_collected_from_the_image():
    assert p_of("relay", keep=0) == near(HALF)
    cue = planted.words.CUE
    assert p_of("relay", keep=0, render=lambda _: cue) == near(SURE)


@pytest.mark.parametrize("circuit", ["direct", "enrich"])
def test_what_reads_the_image_itself_needs_its_positions(circuit):
    """Attention of the last row finds the three of them in the layer that reads."""
    nothing = Positions.of()
    assert p_of(circuit, keep=0) == near(CHANCE)
    for keep in (Count(3), Count(2), Count(1)):
        assert p_of(circuit, keep=keep) == near(SURE)
        assert p_of(circuit, keep=keep, text=nothing) == near(SURE)
    found = mv.compressed_context(
        *read(circuit), keep=Count(3), select="last", text=nothing
    )
    assert found.kept[1].indices == planted.POSITIONS["object"]


def test_without_a_beginning_to_rest_on_the_background_is_read():
    """13 background positions and 3 new ones share the attention evenly.

    Each background position holds half of class 3, so that its logit is 4 * 13 / 32.
    """
    loud = math.exp(4 * 0.5 * 13 / 16)
    object_at = [at - 2 for at in planted.POSITIONS["object"]]
    scores = torch.ones(3, 16)
    scores[:, object_at] = 0.0
    background = {"keep": Count(13), "select": lambda vlm, prompt: scores}
    assert p_of("direct", **background) == near(CHANCE)
    assert p_of("direct", **background, text="bos") == near(CHANCE)
    alone = background | {"text": Positions.of()}
    assert p_of("direct", **alone) == near(1 / (3 + loud))
    assert p_of("direct", answer=3, **alone) == near(loud / (3 + loud))


# --- the table ------------------------------------------------------------------------

DESCRIBE, COUNT = "describe the image .", "how many objects are there ?"
NUMBERS = ("zero", "one", "two", "three", "four")


@pytest.fixture(scope="module")
def items():
    """Two questions about one picture, one about another."""
    found = []
    for seed, n in ((3, 1), (5, 3)):
        drawn = mv.scenes.sample(seed=seed, n=n)
        image = drawn.image
        found.append(Item(image, COUNT, NUMBERS[n], id=f"count {seed}"))
        if n == 1:
            color = f"what color is the {drawn.things[0].shape} ?"
            found.append(Item(image, color, drawn.things[0].color, id="color"))
    return found[0], found[2], found[1]


@pytest.fixture(scope="module")
def table(demo, items):
    return mv.context_accuracy(
        demo, items, keeps=[0.0, 0.1, 1], selects=["last"], describe=DESCRIBE
    )


def test_every_arm_is_there_and_chance_always_is(table):
    assert table["arm"].values.tolist() == [
        "naive",
        "query only",
        "query + image, 1",
        "image only, 1",
        "query + image, 0.1 last",
        "image only, 0.1 last",
        "query + image, 0.1 random",
        "image only, 0.1 random",
    ]
    assert table["keep"].values[1:].tolist() == [0, 1, 1, 0.1, 0.1, 0.1, 0.1]
    assert table["item"].values.tolist() == ["count 3", "count 5", "color"]
    assert table["image"].values.tolist() == [0, 1, 0]


def test_answers_are_those_asked_one_by_one(demo, items, table):
    said = table["said"]
    for at, item in enumerate(items):
        prompt = demo.prompt(DESCRIBE, item.image)
        naive = demo.generate(demo.prompt(item.question, item.image), max_new_tokens=10)
        wanted = {"naive": naive.text}
        for name, how in {
            "query only": {"keep": 0},
            "query + image, 1": {"keep": 1.0},
            "image only, 1": {"keep": 1.0, "text": Positions.of()},
            "query + image, 0.1 last": {"keep": 0.1},
            "image only, 0.1 last": {"keep": 0.1, "text": Positions.of()},
        }.items():
            context = mv.compressed_context(demo, prompt, select="last", **how)
            asked = mv.ask(demo, context, item.question, max_new_tokens=10)
            wanted[name] = asked.text
        for name, words in wanted.items():
            assert str(said.sel(arm=name)[at].values) == words, name
            right = words.split()[:1] == [item.answer]
            assert bool(table["correct"].sel(arm=name)[at]) == right


def test_what_is_held_is_counted(demo, items, table):
    """Image positions from the layout, text and questions counted by hand."""
    cfg, at = demo.cfg, {"item": 0}
    prompt = demo.prompt(DESCRIBE, items[0].image)
    image = len(prompt.layout["image"])
    text, tenth = prompt.layout.n - image, image // 10
    asked = demo.prompt(COUNT, items[0].image).layout.n
    new = len(COUNT.split()) + len(["ASSISTANT", ":"])
    tokens = [asked, text + new, text + image + new, image + new]
    tokens += [text + tenth + new, tenth + new] * 2
    held = [image, 0, image, image] + [tenth] * 4
    assert table["image_tokens"].isel(at).values.tolist() == held
    assert table["tokens"].isel(at).values.tolist() == tokens
    each = 2 * cfg.n_layers * cfg.n_key_value_heads * cfg.d_head * 4
    assert table["bytes"].isel(at).values.tolist() == [n * each for n in tokens]
    assert whole_context(demo, prompt).n_bytes == prompt.layout.n * each


def test_numbers_of_an_arm_are_those_of_its_items(table):
    correct = table["correct"].values
    assert table["accuracy"].values == pytest.approx(correct.mean(axis=1))
    assert table["minus_naive"].values == pytest.approx(
        correct.mean(axis=1) - correct[0].mean()
    )
    chance = table["minus_random"].values
    assert np.isnan(chance[[0, 1, 2, 3, 6, 7]]).all()
    assert chance[4:6] == pytest.approx((correct[4:6] - correct[6:]).mean(axis=1))
    for k, n in zip(range(8), correct.sum(axis=1), strict=True):
        low, high = wilson(n, 3)
        assert float(table["accuracy_low"][k]) == pytest.approx(low)
        assert float(table["accuracy_high"][k]) == pytest.approx(high)
    assert (table["seconds"] > 0).all()
    assert table["median_seconds"].values == pytest.approx(
        np.median(table["seconds"].values, axis=1)
    )
    spent = table["seconds_context"].values
    assert (spent[0] == 0).all() and (spent[1:] > 0).all()
    assert (spent[:, 0] == spent[:, 2]).all(), "both questions share one context"


def wilson(hits, n, z=1.959963984540054):
    """The score interval, from its formula."""
    p = hits / n
    middle, width = (
        p + z**2 / (2 * n),
        z * math.sqrt(p * (1 - p) / n + (z / n / 2) ** 2),
    )
    return (middle - width) / (1 + z**2 / n), (middle + width) / (1 + z**2 / n)


def test_a_picture_is_read_and_scored_once(demo, items, monkeypatch):
    """Two pictures: two readings, two passes of the selector, two draws of chance."""
    calls = []

    def scores(vlm, prompt):
        calls.append(prompt)
        return LastRow()(vlm, prompt)

    found = mv.context_accuracy(
        demo, items, keeps=[0.5, 0.1], selects={"mine": scores}, describe=DESCRIBE
    )
    assert len(calls) == 2
    assert set(found["select"].values) == {"", "mine", "random"}


def test_the_table_is_kept_and_cited(table, tmp_path):
    kept = mv.save_result(table, tmp_path / "table.nc")
    assert mv.open_result(kept).identical(table)
    assert "What's in the Image?" in mv.cite(table)
    assert table.attrs["n"] == 3 and table.attrs["n_images"] == 2
    for name, values in table.data_vars.items():
        assert values.attrs["units"] and values.attrs["paper"], name


def test_attention_finds_the_object_that_answers_need():
    """Planted: the last row's attention keeps all three of the object in one layer."""
    vlm, _ = read("direct")
    asked = [
        Item(scene(k), planted.QUESTION, planted.ANSWERS[k], id=str(k))
        for k in range(3)
    ]
    found = mv.context_accuracy(
        vlm, asked, keeps=[0.125], selects=["last"], describe=planted.QUESTION
    )
    accuracy = found["accuracy"]
    assert float(accuracy.sel(arm="naive")) == 1
    assert float(accuracy.sel(arm="query + image, 0.125 last")) == 1
    assert float(accuracy.sel(arm="image only, 0.125 last")) == 1
    # Nothing read: all four classes alike, so that the first of them is said.
    assert float(accuracy.sel(arm="query only")) < 0.5


def test_what_the_table_refuses(demo, items):
    def made(items=items, **how):
        how = {"keeps": [0.1], "selects": ["last"], "describe": DESCRIBE} | how
        return mv.context_accuracy(demo, items, **how)

    with pytest.raises(mv.PromptError, match="no item is given"):
        made([])
    with pytest.raises(mv.LayoutError, match="wanted shares of the image positions"):
        made(keeps=[5])
    with pytest.raises(
        mv.LayoutError, match="image positions is less than one of them"
    ):
        made(keeps=[0.01])
    with pytest.raises(mv.PromptError, match="wanted names among generated, last"):
        made(selects=["best"])
    with pytest.raises(mv.PromptError, match=r"2 items share ids \['count 3'\]"):
        made([items[0], items[0]])
    with pytest.raises(mv.PromptError, match=r"share ids \['1'\]"):
        made([Item(items[0].image, COUNT, "one", id="1"), Item("b.png", COUNT, "two")])
    with pytest.raises(mv.PromptError, match="has no answer to compare with"):
        made([Item(items[0].image, COUNT)])


def test_an_answerer_holds_the_context_of_one_picture(demo, items):
    read = []

    def scores(vlm, prompt):
        read.append(prompt)
        return LastRow()(vlm, prompt)

    answer = mv.context_answerer(demo, keep=0.5, select=scores, describe=DESCRIBE)
    first, other, second = items
    said = [answer(item) for item in (first, second, other, first)]
    assert len(read) == 3 and said[0] == said[3]
    context = mv.compressed_context(
        demo, demo.prompt(DESCRIBE, first.image), keep=0.5, select="last"
    )
    assert said[0] == mv.ask(demo, context, COUNT, max_new_tokens=10).text
    begun = Item(first.image, COUNT, prefix=" there are")
    wanted = mv.ask(demo, context, COUNT, prefix=" there are", max_new_tokens=10)
    assert answer(begun) == wanted.text


def test_an_answerer_keeps_a_number_too(demo, items):
    answer = mv.context_answerer(
        demo, keep=Count(8), select="last", describe=DESCRIBE, max_new_tokens=3
    )
    prompt = demo.prompt(DESCRIBE, items[0].image)
    context = mv.compressed_context(demo, prompt, keep=Count(8), select="last")
    wanted = mv.ask(demo, context, COUNT, max_new_tokens=3)
    assert context.n_image == 8
    assert answer(items[0]) == wanted.text


WRONG_KINDS = """
import mechvlm as mv
from mechvlm import Count, Item
vlm, image = mv.load("demo"), mv.scenes.sample(seed=3, n=1).image
prompt = vlm.prompt("describe the image .", image)
item = Item(image, "how many objects are there ?", "one")
context = mv.compressed_context(vlm, prompt, keep=0.1, select="last")
table = lambda items=[item], **how: mv.context_accuracy(vlm, items, **how)
kept = lambda prompt=prompt, **how: mv.compressed_context(vlm, prompt, **how)
put = lambda *asked: mv.ask(vlm, *asked)
scored = lambda items: mv.mme(vlm, items, answerer=lambda item: "yes")
cases = [
    (lambda: table(item), "items is Item"),
    (lambda: table(["describe"]), "items[0] is 'describe' (str)"),
    (lambda: table(keeps=0.5), "keeps is 0.5 (float); wanted a list"),
    (lambda: table(keeps=[Count(28)]), "keeps[0] is Count(n=28) (Count)"),
    (lambda: table(selects="last"), "selects is the one string 'last'"),
    (lambda: kept("describe", keep=0.5), "prompt is 'describe' (str); wanted Prompt"),
    (lambda: kept(keep="5%"), "keep is '5%' (str)"),
    (lambda: Count(0.5), "Count is 0.5 (float)"),
    (lambda: put(prompt, "how many ?"), "(Prompt); wanted Context: compressed_c"),
    (lambda: put(context, item), "question is Item"),
    (lambda: scored([item, item]), "items is [Item"),
    (lambda: scored({"count": item}), "items['count'] is Item"),
    (lambda: scored({"count": ["a.png"]}), "items['count'][0] is 'a.png' (str)"),
]
"""


def test_what_is_of_the_wrong_kind_is_named():
    check_refusals(WRONG_KINDS)
