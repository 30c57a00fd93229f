"""Objects over many pictures: cropped ones, COCO's keys, words of several tokens."""

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Positions
from mechvlm.analyses.attention_flow.rows import spanned
from mechvlm.errors import PairError, RegionError
from mechvlm.items import class_of
from mechvlm.matching import mentions, words

SEEN, CROPPED = (4, 0, 20, 16), (0, 0, 4, 8)
"""CLIP sees columns 4 to 35 of these pictures."""


@pytest.fixture(scope="module")
def speaker():
    """A random model that says words and nothing else: other tokens have logit 0."""
    vlm = mv.HookedVLM(*tiny.build(tiny.Kind("llama", 2, "clip"), seed=1))
    spoken = [vlm.to_single_token(word) for word in tiny.WORDS if word.isalpha()]
    head = vlm.hf_model.lm_head.weight
    with torch.no_grad():
        kept = head[spoken].clone()
        head.zero_()
        head[spoken] = kept
    return vlm


def said(vlm, n_new):
    return vlm.generate(vlm.prompt("see", tiny.picture()), max_new_tokens=n_new).text


def item(objects, target=None, **more):
    given = {"objects": objects, "target": target, **more}
    return mv.Item(tiny.picture(), "see", **given)


# --- what the processor cropped away --------------------------------------------------


def analyses(vlm):
    """Each analysis of many pictures on items of one object, which is there or not."""
    word = said(vlm, 1)
    describe = mv.readings.generative("see", max_new_tokens=2)

    def items(*areas):
        return [
            item({word: area}, word, answer=word, id=str(i))
            for i, area in enumerate(areas)
        ]

    return {
        "knockout": lambda *a: mv.knockout_accuracy(
            vlm, items(*a), windows={"all": range(4)}
        ),
        "lens": lambda *a: mv.object_lens(vlm, items(*a)),
        "localization": lambda *a: mv.localization_accuracy(
            vlm, items(*a), reading=describe, objects="named"
        ),
    }


@pytest.mark.parametrize("name", ["knockout", "lens", "localization"])
def test_trap_11_one_cropped_object_is_left_out_and_told(speaker, name):
    run = analyses(speaker)[name]
    with pytest.warns(mv.MechVLMWarning, match="1 of 2 .* seen by no token") as told:
        found = run(SEEN, CROPPED)
    assert len(told) == 1
    assert found.attrs["n_cropped"] == 1
    alone = run(SEEN)
    assert alone.attrs["n_cropped"] == 0
    for each in alone.data_vars:
        np.testing.assert_array_equal(found[each], alone[each])
    with pytest.raises(RegionError, match=r"2 of 2 .* None is left"):
        run(CROPPED, CROPPED)
    with pytest.raises(RegionError, match="is not inside the picture"):
        run(SEEN, (0, 0, 99, 9))


def test_a_cropped_object_is_no_background_and_no_neighbour(speaker):
    """Of two objects of one picture, the one that is seen is measured alone."""
    first = said(speaker, 1)
    describe = mv.readings.generative("see", max_new_tokens=2)
    with pytest.warns(mv.MechVLMWarning, match="1 of 2 objects"):
        found = mv.localization_accuracy(
            speaker,
            [item({first: SEEN, f"{first} 2": CROPPED})],
            reading=describe,
            objects="named",
        )
    assert found["object"].values.tolist() == [f"0: {first}"]
    assert np.isnan(found["other"]).all()
    assert [found.attrs[k] for k in ("n_all", "n_cropped", "n_named")] == [2, 1, 1]


# --- names of objects -----------------------------------------------------------------


def test_a_class_is_a_key_without_its_number():
    """The rule that `coco.read` names second instances by, the other way round."""
    for kind in ("person", "traffic light"):
        for key in (kind, f"{kind} 2", f"{kind} 14"):
            assert class_of(key) == kind
    assert class_of("7") == "7"
    assert class_of("2 red ring") == "2 red ring"


def test_second_instances_are_found_by_their_class(speaker):
    """COCO's "person 2" is a person: no model says its number."""
    word = said(speaker, 1)
    both = {word: SEEN, f"{word} 2": (20, 16, 36, 32)}
    describe = mv.readings.generative("see", max_new_tokens=2)
    found = mv.localization_accuracy(
        speaker, [item(both)], reading=describe, objects="named"
    )
    assert found["object"].values.tolist() == [f"0: {word}", f"0: {word} 2"]
    assert found.attrs["n_named"] == 2
    lens = mv.object_lens(speaker, [item(both)])
    own = mv.object_lens(speaker, [item(both)], words=lambda name: [word])
    np.testing.assert_array_equal(lens["hit_rate"], own["hit_rate"])


def test_the_lens_seeks_a_word_as_it_is_shown_and_not_one_spelling(monkeypatch):
    """A token that shows " Red " names the red thing, as `object_hit_rate` has it."""
    vlm = mv.HookedVLM(*tiny.build(tiny.Kind("llama", 2, "clip"), seed=1))
    ids = vlm.to_single_token("cat"), vlm.to_single_token("dog")
    shown = mv.HookedVLM.to_str_tokens

    def capitals(self, tokens):
        return [f" {each.upper()} " for each in shown(self, tokens)]

    plain = mv.object_lens(vlm, [item({"cat": SEEN, "dog": SEEN})], topk=64)
    monkeypatch.setattr(mv.HookedVLM, "to_str_tokens", capitals)
    loud = mv.object_lens(vlm, [item({"cat": SEEN, "dog": SEEN})], topk=64)
    assert plain["best_rate"].values.tolist() == [1, 1]
    assert loud["best_rate"].values.tolist() == [1, 1]
    assert plain.attrs["by_first_piece"] == []
    assert ids[0] != ids[1]


def test_classes_of_several_words_are_sought_by_their_first_piece(speaker):
    objects = {"red dog": SEEN, "red dog 2": (20, 16, 36, 32), "cat": SEEN}
    found = mv.object_lens(speaker, [item(objects)], topk=3)
    assert found.attrs["by_first_piece"] == ["red dog"]
    lenient = mv.object_lens(
        speaker, [item(objects)], topk=3, words=lambda n: [n.split()[0]]
    )
    np.testing.assert_array_equal(found["hit_rate"], lenient["hit_rate"])
    assert "by_first_piece" not in lenient.attrs
    with pytest.raises(mv.TokenError, match="'elephant' begins with no token"):
        mv.object_lens(speaker, [item({"elephant 2": SEEN})])


# --- words of what was said -----------------------------------------------------------


SPELLED = [
    ("a cyan-square.", "cyan square", 2, "cyan-square"),
    ("a Cyan  Square", "cyan-square", 2, "Cyan  Square"),
    ("the  cafe\u0301 there", "cafe", 5, "cafe\u0301"),
    ("the ch\u00e2teau there", "Chateau", 4, "ch\u00e2teau"),
    ("located cat", "cat", 8, "cat"),
    ("it, it's itself", "it s", 4, "it's"),
    ("a cat, a cat", "cat", 2, "cat"),
]


@pytest.mark.parametrize(("text", "word", "start", "span"), SPELLED)
def test_steps_are_found_for_whatever_counts_as_mentioned(text, word, start, span):
    """Pieces of two letters; those of the span by hand."""
    assert mentions(text, [word])
    assert text[start : start + len(span)] == span
    heard = [text[: i + 2] for i in range(0, len(text), 2)]
    stop = start + len(span)
    wanted = [i for i in range(len(heard)) if 2 * i < stop and start < 2 * i + 2]
    assert list(spanned(heard, word)) == wanted
    for other in (word[:-1], "a", " - "):
        assert bool(spanned(heard, other)) == mentions(text, [other])


def test_special_tokens_are_no_words(speaker):
    """`</s>` at an answer's end does not say "s"."""
    prompt = speaker.prompt("see", tiny.picture())
    end = speaker.tokenizer.eos_token_id
    ids = torch.tensor([speaker.to_single_token("cat"), end])
    layout = prompt.layout.extended(2)
    made = mv.Generation(ids, "cat", torch.zeros(2, 64), layout)
    assert words("</s>") == ("s",)
    with pytest.raises(mv.TokenError, match="'s' was not said"):
        mv.word_rows(speaker, prompt, made, "s")
    assert mv.word_rows(speaker, prompt, made, "cat") == prompt.layout["last"]


# --- shares of attention --------------------------------------------------------------


def test_excluding_a_group_that_is_not_there_is_refused(tiny_vlm, tiny_prompt):
    """It would do nothing, and the result would say that it was excluded."""
    with pytest.raises(mv.LayoutError, match=r"'system'.*It has bos, template, image"):
        mv.attention_fraction(tiny_vlm, tiny_prompt, exclude=("system",))
    with pytest.raises(mv.LayoutError, match="no position"):
        mv.attention_fraction(tiny_vlm, tiny_prompt, exclude=(Positions(),))


def test_one_group_may_be_excluded_by_its_bare_name(tiny_vlm, tiny_prompt):
    call = lambda exclude: mv.attention_fraction(  # noqa: E731
        tiny_vlm, tiny_prompt, exclude=exclude
    )
    assert call("bos").identical(call(("bos",)))
    one = call(tiny_prompt.layout["bos"])
    np.testing.assert_array_equal(one["fraction"], call("bos")["fraction"])


def test_fractions_of_two_models_are_not_pooled(tiny_vlm, tiny_prompt):
    one = mv.attention_fraction(tiny_vlm, tiny_prompt)
    other = one.assign_attrs(model="another")
    with pytest.raises(PairError, match=r"of 2 kinds \(models .*, another"):
        mv.pool_fractions([one, other])


def test_patterns_say_their_layers_and_take_a_run(tiny_vlm, tiny_prompt):
    run = mv.base_run(tiny_vlm, tiny_prompt)
    found = mv.attention_patterns(tiny_vlm, run, layers=[1])
    plain = mv.attention_patterns(tiny_vlm, tiny_prompt, layers=[1])
    assert found.identical(plain)
    assert found.attrs["layer_convention"] == "attention inside layer l"
    with pytest.raises(mv.LayerError, match=r"layers \[\] have no attention"):
        mv.attention_patterns(tiny_vlm, tiny_prompt, layers=[])
    with pytest.raises(mv.LayerError, match=r"layers \[4\]"):
        mv.attention_patterns(tiny_vlm, tiny_prompt, layers=[4])
