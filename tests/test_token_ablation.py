"""Token ablation: planted circuits by hand, real models by passes without a cache."""

from functools import cache

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Positions, readings, selecting
from mechvlm.errors import (
    InterventionError,
    LayoutError,
    MetricError,
    MissingImageError,
    PairError,
    PromptError,
)
from mechvlm.models import planted
from mechvlm.models.planted import ANSWERS, CIRCUITS, EXPECTED, SURE, TOLERANCE, WRONG
from mechvlm.readings import Reading
from mechvlm.selecting import Selector

OBJECT = selecting.object_tokens()
TWO = Selector("two", lambda v, p, item: Positions.of(list(OBJECT(v, p, item))[:2]))
SETS = {
    "object": OBJECT,
    "background": selecting.background_tokens(),
    "two of three": TWO,
}
KINDS = (tiny.Kind("llama", 2, "clip"), tiny.GEMMA_KINDS[1])
QUIET = {"progress": False}


@cache
def hooked(circuit="direct"):
    return mv.HookedVLM(*planted.build(circuit))


def digit(content, **more):
    """A planted picture, what is asked of it and where its object is."""
    image = planted.scene(content)
    area = np.array(image)[:, :, 0] > 0
    given = {"answer": ANSWERS[content], "objects": {"digit": area}, "target": "digit"}
    given |= {"id": ANSWERS[content], **more}
    return mv.Item(image, planted.QUESTION, **given)


DIGITS = [digit(content) for content in range(4)]


def mean_of_backgrounds(vlm):
    blank = [planted.scene(0, background=c, cells=()) for c in range(4)]
    return mv.mean_token(vlm, blank)


def near(wanted, abs=TOLERANCE):
    return pytest.approx(wanted, rel=0, abs=abs)


def heard(**more):
    """A reading that finds all answers right and keeps what was said."""
    said = []
    right = lambda item, text: said.append(text) is None  # noqa: E731
    return said, Reading("heard", lambda item: item.question, right, **more)


# --- planted circuits -----------------------------------------------------------------


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_planted_ablations(circuit):
    """The table's probabilities: the last word's logits are 4, 0, 0, 0, or all 0.

    `too_late` says the same word whatever it sees, and is right where that is it.
    """
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    mean = mean_of_backgrounds(vlm)
    lost = mv.token_ablation(vlm, DIGITS, SETS, metric=readings.vqa(), value=mean)
    n = 1 if circuit == "too_late" else 4
    assert (int(lost.n_correct[0]), lost.n.values.tolist()) == (n, [[n, n, n]])
    asked = lost.item_before.values[0] == 1
    for name in SETS:
        change = np.log(truth.ablated[name] / truth.base)
        each = lost.item_log_p_change.sel(reading="VQA", set=name).values
        assert each[asked] == near(change, 4 * TOLERANCE)
        assert np.isnan(each[~asked]).all()
        assert float(lost.log_p_change.sel(set=name)[0]) == near(change, 4 * TOLERANCE)
    # With nothing left to read, all four words tie, and one of the items is that one.
    wanted = [0, 0, 0] if circuit == "too_late" else [3 / 4, 0, 0]
    assert lost.decrease.values[0].tolist() == near(wanted)
    assert lost.n_tokens.values[0].tolist() == [3, 13, 2]


@pytest.mark.parametrize("circuit", ["relay", "direct", "enrich"])
def test_resampling_says_the_donors_word(circuit):
    """Two of three object tokens of another class: logits 4/3 for ours, 8/3 for its."""
    vlm = hooked(circuit)
    lost = mv.token_ablation(vlm, DIGITS, SETS, metric=readings.vqa(), value="resample")
    assert lost.decrease.values[0].tolist() == [1, 0, 1]
    part = np.exp(4 / 3) / (np.exp(4 / 3) + np.exp(8 / 3) + 2)
    wanted = [np.log(WRONG / SURE), 0, np.log(part / SURE)]
    assert lost.log_p_change.values[0].tolist() == near(wanted, 4 * TOLERANCE)
    assert lost.attrs["value"] == "another item's tokens"


def test_the_control_is_of_equal_size_and_paired():
    """Controls that can only be the object's own tokens, or never them, are known."""
    vlm = hooked()
    call = {"metric": readings.vqa(), "value": "resample", "n_random": 3}
    three = Selector("three", lambda v, p, item: Positions.of(range(7, 10)))
    same = mv.token_ablation(vlm, DIGITS, {"three": three}, pool=OBJECT, **call)
    whole = mv.token_ablation(vlm, DIGITS, {"object": OBJECT}, **call)
    assert (float(same.control[0, 0]), int(same.n_control[0, 0])) == (1, 4)
    assert float(same.log_p_control[0, 0]) == near(float(whole.log_p_change[0, 0]))
    away = selecting.background_tokens()
    other = mv.token_ablation(vlm, DIGITS, {"object": OBJECT}, pool=away, **call)
    assert float(other.log_p_control[0, 0]) == near(0)
    numbers = ("control", "excess", "p", "n_tokens", "n_control")
    found = [float(other[name][0, 0]) for name in numbers]
    assert found == [0, 1, 0.125, 3, 4]  # four pairs of one sign: 2 / 2**4
    assert other.item_control_right.values.tolist() == [[[1]] * 4]
    low, high = float(other.decrease_low[0, 0]), float(other.decrease_high[0, 0])
    assert (low, high) == (pytest.approx(4 / (4 + 1.96**2), abs=1e-3), 1)  # Wilson
    with pytest.raises(MetricError, match="13 positions cannot be drawn from 3"):
        mv.token_ablation(vlm, DIGITS, {"rest": away}, pool=OBJECT, **call)


def test_random_sets_are_drawn_anew_for_each_item_and_again_for_a_seed():
    call = {"metric": readings.vqa(), "value": "resample", "n_random": 2}
    sets = {"all but one row": selecting.background_tokens()}
    one, same, other = (
        mv.token_ablation(hooked(), DIGITS, sets, seed=seed, **call)
        for seed in (0, 0, 7)
    )
    assert one.identical(same)
    drawn = one.item_log_p_control.values
    assert len(np.unique(drawn.round(4))) > 1
    assert (drawn != other.item_log_p_control.values).any()


# --- real architectures ---------------------------------------------------------------


def spoken(vlm, prompt, at, rows, steps):
    """Oracle: Hugging Face without a cache, rows of layer 0's input exchanged."""
    first = vlm.hf_model.get_submodule(vlm.family.language_model).layers[0]

    def put(module, args, kwargs):
        hidden = args[0].clone()
        hidden[0, at] = rows
        return (hidden, *args[1:]), kwargs

    handle = first.register_forward_pre_hook(put, with_kwargs=True)
    chosen = []
    for _ in range(steps):
        new = torch.tensor(chosen, dtype=torch.long)
        longer = prompt.extended(new, ("",) * len(chosen)) if chosen else prompt
        logits = vlm.hf_model(**longer.inputs, use_cache=False).logits[0, -1]
        if not chosen:
            first_logits = logits
        chosen.append(int(logits.argmax()))
    handle.remove()
    return vlm.tokenizer.decode(chosen, skip_special_tokens=True), first_logits


@torch.no_grad()
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_trap_06_tokens_are_replaced_in_the_prompt_alone(kind):
    """Generated tokens read what was replaced and are not replaced themselves."""
    vlm = mv.HookedVLM(*tiny.build(kind))
    for config in (vlm.hf_model.generation_config, vlm.hf_model.config.text_config):
        config.eos_token_id = None  # random models end where they like
    vlm.hf_model.lm_head.weight[vlm.processor.image_token_id] = 0  # and say what
    item = mv.Item(tiny.picture(), "what color", "red", {"it": (9, 9, 25, 20)}, "it")
    item = [item, mv.Item(tiny.picture(4), "what", "red", {"it": (0, 0, 9, 9)}, "it")]
    said, reading = heard(max_new_tokens=4, first=lambda item: "red")
    mean = mv.mean_token(vlm, [each.image for each in item])
    vector = torch.tensor(mean.values)
    sets = {"object": OBJECT, "image": selecting.image_tokens()}
    lost = mv.token_ablation(vlm, item, sets, metric=reading, n_random=1, value=vector)
    red, heard_after = vlm.to_single_token("red"), said[len(item) :]
    moved = []
    for i, each in enumerate(item):
        prompt = vlm.prompt(each.question, each.image)
        _, clean = spoken(vlm, prompt, [], vector, 4)
        for j, selector in enumerate(sets.values()):
            at = list(selector(vlm, prompt, each))
            text, logits = spoken(vlm, prompt, at, vector, 4)
            # An item's arms: object, its random set, and the image, which has none.
            assert heard_after[3 * i + 2 * j] == text
            change = logits.log_softmax(-1)[red] - clean.log_softmax(-1)[red]
            found = float(lost.item_log_p_change[0, i, j])
            assert found == pytest.approx(float(change), abs=1e-4)
            moved.append(abs(found))
    assert min(moved) > 1e-3, "it did nothing: this test shows nothing"
    own = mv.token_ablation(vlm, item, sets, metric=reading, n_random=1)
    np.testing.assert_allclose(own.item_log_p_change, lost.item_log_p_change, atol=1e-5)
    assert own.attrs["value"] == "mean of 32 image tokens of the items"


@torch.no_grad()
@pytest.mark.parametrize("kind", [*tiny.EVERY_KIND], ids=str)
def test_the_mean_token_is_what_enters_layer_0(kind):
    """Gemma's models scale what comes out of the projector: not so the mean."""
    vlm = mv.HookedVLM(*tiny.build(kind))
    images = [tiny.picture(seed) for seed in (1, 2)]
    rows = []
    first = vlm.hf_model.get_submodule(vlm.family.language_model).layers[0]
    for image in images:
        prompt = tiny.ask(vlm, "what color", image)
        at = list(prompt.layout["image"])
        keep = lambda _, args, at=at: rows.append(args[0][0, at].clone())  # noqa: E731
        handle = first.register_forward_pre_hook(keep)
        vlm.hf_model(**prompt.inputs)
        handle.remove()
    mean = mv.mean_token(vlm, iter(images))
    np.testing.assert_allclose(mean.values, torch.cat(rows).mean(dim=0), atol=1e-5)
    assert (mean.attrs["n_images"], mean.attrs["n_tokens"]) == (2, 32)
    each = mv.mean_token_per_position(vlm, images)
    assert each.dims == ("cell", "d_model")
    np.testing.assert_allclose(each.values, torch.stack(rows).mean(dim=0), atol=1e-5)


def test_a_mean_per_position_stands_where_it_was_taken():
    """Each cell by its own mean: a picture in place of itself changes nothing."""
    vlm, one = hooked(), DIGITS[:1]
    own = mv.mean_token_per_position(vlm, [one[0].image])
    call = {"metric": readings.vqa(), "n_random": 1}
    kept = mv.token_ablation(vlm, one, SETS, value=own, **call)
    assert kept.item_log_p_change.values == near(np.zeros((1, 1, 3)))
    other = mv.mean_token_per_position(vlm, [DIGITS[1].image])
    lost = mv.token_ablation(vlm, one, SETS, value=other, **call)
    assert float(lost.log_p_change.sel(set="object")[0]) == near(-4, 4 * TOLERANCE)
    with pytest.raises(InterventionError, match=r"for 15 positions.*has 16"):
        mv.token_ablation(vlm, one, SETS, value=own[1:], **call)


# --- what is counted ------------------------------------------------------------------


def test_trap_19_only_items_right_before_count():
    """A wrong answer cannot be lost: the item is told, and counts nowhere."""
    wrong = digit(0, answer="two", id="wrong")
    lost = mv.token_ablation(
        hooked(),
        [wrong, *DIGITS],
        {"object": OBJECT},
        metric=readings.vqa(),
        value="resample",
    )
    assert (lost.attrs["n_items"], lost.n_correct.item(), lost.n.item()) == (5, 4, 4)
    assert lost.item_before.sel(item="wrong").item() == 0
    for name in ("item_right", "item_n_tokens", "item_log_p_change"):
        assert np.isnan(lost[name].sel(item="wrong").item())
    assert lost.decrease.item() == 1
    with pytest.raises(MetricError, match=r"(?s)none of the 1 .*said 'zero'"):
        mv.token_ablation(hooked(), [wrong], SETS, metric=readings.vqa(), value="zero")


def test_trap_19_a_word_within_a_word_is_no_mention():
    item = mv.Item("a.png", "?", objects={"cat": (0, 0, 9, 9)}, target="cat")
    right = readings.generative().right
    assert not right(item, "A lamp is located on the table.")
    assert right(item, "A lamp, and a Cat on it.")


@pytest.mark.parametrize(
    "reading",
    [readings.generative(), readings.polling(), readings.vqa(), readings.counting()],
    ids=lambda reading: reading.name,
)
def test_an_answer_of_nothing_is_never_right(reading):
    """The empty string begins every word; it must not count as one."""
    assert not any(reading.right(digit(0), said) for said in ("", " ", "."))


def test_the_prefix_begins_the_answer_to_the_items_own_question_alone():
    """A model that has begun with "It is a" cannot say yes to another question."""
    item = digit(0, prefix="It is a")
    for reading in (readings.generative(), readings.polling(), readings.counting()):
        assert reading.prefix(item) == ""
    assert readings.vqa().prefix(item) == "It is a"
    with pytest.raises(PromptError, match="has no answer to compare with"):
        readings.vqa().right(digit(0, answer=""), "it")


def test_a_count_is_the_first_number_said():
    item = digit(0, objects={"digit": (0, 0, 9, 9), "digit 2": (5, 5, 9, 9)})
    said = {"Two.": True, "There are 2 of 3": True, "three": False, "some": False}
    assert {text: readings.counting().right(item, text) for text in said} == said
    assert readings.counting().first(item) == "two"


def test_several_readings_and_words_without_a_token():
    """A reading with no first word has no probability to watch, and says so."""
    _, free = heard(max_new_tokens=2)
    long = Reading("two words", free.question, free.right, lambda item: "zero one")
    lost = mv.token_ablation(
        hooked(), DIGITS, {"object": OBJECT}, metric=[free, long, readings.vqa()]
    )
    assert lost.reading.values.tolist() == ["heard", "two words", "VQA"]
    assert lost.n_log_p.values.tolist() == [[0], [0], [4]]
    assert np.isnan(lost.log_p_change.values[:, 0]).tolist() == [True, True, False]
    with pytest.raises(InterventionError, match="two have one name"):
        mv.token_ablation(hooked(), DIGITS, SETS, metric=[readings.vqa()] * 2)


def test_an_empty_set_is_told_and_not_counted():
    """The second item's object was "cropped away": the set has no token there."""
    seen = lambda v, p, item: OBJECT(v, p, item) if item.id != "one" else Positions()  # noqa: E731
    sets = {"object": OBJECT, "seen": Selector("seen", seen)}
    call = {"metric": readings.vqa(), "value": "resample"}
    with pytest.warns(mv.MechVLMWarning, match="'seen' has no token in 1 of the 4"):
        lost = mv.token_ablation(hooked(), DIGITS, sets, **call)
    assert lost.n.values.tolist() == [[4, 3]]
    assert lost.n_empty.values.tolist() == [[0, 1]]
    assert lost.item_n_tokens.sel(set="seen").values.tolist() == [[3, 0, 3, 3]]
    assert np.isnan(lost.item_right.sel(set="seen", item="one").item())
    never = {"never": selecting.register_tokens(k_std=50)}
    with pytest.raises(InterventionError, match=r"(?s)in 4 of the 4.*cropped"):
        mv.token_ablation(hooked(), DIGITS, never, **call)


def test_a_result_comes_back_from_disk(tmp_path):
    lost = mv.token_ablation(
        hooked(), DIGITS, SETS, metric=readings.vqa(), value="zero", progress=False
    )
    kept = mv.open_result(mv.save_result(lost, tmp_path / "lost.nc"))
    assert kept.identical(lost)
    assert kept.attrs["sets"]["background"] == "all but object"
    assert kept.decrease.attrs["units"] == "share of items right before"
    assert mv.cite(kept).startswith("Neo")


# --- grounded items -------------------------------------------------------------------


def test_noise_hides_the_target_and_nothing_else():
    """The second time, the object's cells are others, and nothing else."""
    vlm, shown = hooked(), []
    item, ask = digit(0), vlm.prompt

    class Watched(mv.HookedVLM):
        def prompt(self, text, image=None, **more):
            shown.append(image)
            return ask(text, image, **more)

    watched = Watched(vlm.hf_model, vlm.processor)
    said, reading = heard(max_new_tokens=1)
    assert mv.grounded_items(watched, [item], reading) == ()  # right in either case
    assert said[0] == "zero"
    before, after = (np.array(each) for each in shown)
    changed = (before != after).any(axis=-1)
    cells = changed.reshape(4, 14, 4, 14).mean(axis=(1, 3)).flatten()
    assert tuple(np.flatnonzero(cells > 0)) == planted.OBJECT_CELLS
    assert cells.max() > 0.9


def test_items_are_grounded_that_need_their_target():
    vlm = hooked()
    _, said_before = heard(max_new_tokens=1)
    answers = iter([True, False, False, False, True, True])
    reading = Reading("told", said_before.question, lambda item, text: next(answers))
    # `right` is asked a second time only where the first answer was right.
    kept = mv.grounded_items(vlm, DIGITS[:3], reading)
    assert [item.id for item in kept] == ["zero"]
    with pytest.raises(InterventionError, match="items is empty"):
        mv.grounded_items(vlm, [], readings.vqa())


# --- what is refused ------------------------------------------------------------------


def test_what_cannot_be_ablated_is_refused(monkeypatch):
    vlm, metric = hooked(), readings.vqa()
    same = [digit(0), digit(0, id="again")]  # two objects, drawn alike
    for items, sets, more, told in [
        ([], SETS, {}, "items is empty"),
        (DIGITS, {}, {}, "sets is empty"),
        (DIGITS, SETS, {"metric": []}, "metric is empty"),
        (DIGITS, SETS, {"n_random": 0}, "n_random=0: wanted at least 1"),
        (DIGITS, SETS, {"value": torch.ones(5)}, r"shape \[5\]; wanted \[32\]"),
        (same, SETS, {"value": "resample"}, "all items have the same one"),
    ]:
        with pytest.raises(InterventionError, match=told):
            mv.token_ablation(vlm, items, sets, **({"metric": metric} | more))
    with pytest.raises(PromptError, match=r"2 items share ids \['zero'\]"):
        mv.token_ablation(vlm, [digit(0), digit(0)], SETS, metric=metric)
    with pytest.raises(MissingImageError, match="no image was given"):
        mv.mean_token(vlm, [])
    with pytest.raises(MissingImageError, match="no image was given"):
        mv.mean_token_per_position(vlm, iter([]))


def test_tokens_of_a_picture_laid_out_otherwise_are_refused(monkeypatch):
    vlm, ask = mv.HookedVLM(*planted.build("direct")), mv.HookedVLM.prompt

    def longer(self, text, image=None, **more):
        return ask(self, text + " what" * (image is DIGITS[1].image), image, **more)

    monkeypatch.setattr(mv.HookedVLM, "prompt", longer)
    with pytest.raises(PairError, match=r"(?s)item .* cannot stand in.*of one size"):
        mv.token_ablation(
            vlm, DIGITS[:2], SETS, metric=readings.vqa(), value="resample"
        )


def test_pictures_of_other_sizes_have_no_mean_per_position(monkeypatch):
    means = "mechvlm.analyses.token_ablation.means"
    rows = iter([torch.ones(4, 32), torch.ones(5, 32)])
    monkeypatch.setattr(f"{means}._tokens", lambda vlm, image: next(rows))
    with pytest.raises(LayoutError, match="5 tokens where those before have 4"):
        mv.mean_token_per_position(hooked(), ["a", "b"])
