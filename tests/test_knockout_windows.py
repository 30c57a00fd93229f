"""Cuts and windows by name, and the accuracy that each of them leaves."""

from functools import cache

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Positions
from mechvlm.errors import BlindRowError, InterventionError, MetricError, PromptError
from mechvlm.models import planted
from mechvlm.models.planted import CHANCE, CIRCUITS, EXPECTED, SURE, TOLERANCE, scene

PERCENT = 100 * TOLERANCE
LOST = 100 * (CHANCE / SURE - 1)
SINGLE = {str(layer): range(layer, layer + 1) for layer in range(3)}


@cache
def hooked(circuit, sink=True):
    return mv.HookedVLM(*planted.build(circuit, sink=sink))


def ask(vlm, content=0):
    return vlm.prompt(planted.QUESTION, scene(content), system=planted.SYSTEM)


def red(picture):
    return np.array(picture)[:, :, 0] > 0


def item(content, answer=None, cells=planted.OBJECT_CELLS, name="digit"):
    picture = scene(content, cells=cells)
    return mv.Item(
        picture,
        planted.QUESTION,
        answer or planted.ANSWERS[content],
        objects={name: red(picture)},
        target=name,
        id=f"{content} {answer} {cells}",
    )


# --- windows --------------------------------------------------------------------------


def test_windows_of_32_layers_are_the_papers_and_others_scale():
    assert mv.named_windows(32) == {
        "early": range(0, 10),
        "early-mid": range(5, 15),
        "mid": range(11, 21),
        "mid-late": range(15, 25),
        "late": range(21, 32),
        "all": range(32),
    }
    assert mv.named_windows(8) == {
        "early": range(0, 3),
        "early-mid": range(1, 4),
        "mid": range(3, 5),
        "mid-late": range(4, 6),
        "late": range(5, 8),
        "all": range(8),
    }
    assert mv.named_windows(64)["mid"] == range(22, 42)
    for n_layers in range(1, 100):
        for window in mv.named_windows(n_layers).values():
            assert window
            assert 0 <= window.start < window.stop <= n_layers
    with pytest.raises(InterventionError, match="n_layers=0"):
        mv.named_windows(0)


@pytest.mark.parametrize(("width", "wanted"), [(3, (1, 1)), (2, (1, 0)), (1, (0, 0))])
def test_centred_windows_reach_as_far_as_the_papers_code(tiny_vlm, width, wanted):
    """max(0, l - k//2) .. min(L-1, l - (-k//2) - 1), each as a named window."""
    prompt = tiny_vlm.prompt("what color", tiny.picture())
    cuts = {"image->last": ("last", "image")}
    call = {"answer": "red", "progress": False}
    centred = mv.knockout_windows(
        tiny_vlm, prompt, cuts, width=width, mode="centred", **call
    )
    before, after = wanted
    windows = {
        str(at): range(max(0, at - before), min(3, at + after) + 1) for at in range(4)
    }
    named = mv.knockout_windows(tiny_vlm, prompt, cuts, windows=windows, **call)
    assert centred.dims == ("cut", "layer")
    assert named.dims == ("cut", "window")
    np.testing.assert_allclose(centred.values, named.values, atol=1e-4)
    assert named["first"].values.tolist() == [w.start for w in windows.values()]
    assert named["last"].values.tolist() == [w.stop - 1 for w in windows.values()]
    assert centred.std() > 0.1
    for drop in (centred, named):  # trap 20
        assert "inside layer l" in drop.attrs["layer_convention"]


# --- cuts -----------------------------------------------------------------------------


def cell(prompt, *at):
    return Positions.of(prompt.layout.cell(row, col) for row, col in at)


def test_an_objects_cuts_are_rings_rests_and_the_grids_own_last_row():
    prompt = ask(hooked("direct"))
    layout = prompt.layout
    at = cell(prompt, (0, 0))
    cuts = mv.object_cuts(layout, at)
    one = cell(prompt, (0, 0), (0, 1), (1, 0), (1, 1))
    two = cell(prompt, *((r, c) for r in range(3) for c in range(3)))
    row = cell(prompt, *((3, c) for c in range(4)))
    image, last = layout["image"], layout["last"]
    assert cuts == {
        "object->last": (last, at),
        "object+1->last": (last, one),
        "object+2->last": (last, two),
        "rest of object->last": (last, image - at),
        "rest of object+1->last": (last, image - one),
        "object+1->last row": (row, one),
        "rest of last row->last row": (row, image - row),
    }
    assert cuts["object+1->last"][1] == layout.region((0, 0, 14, 14), buffer=1)
    # Rings that fill the image leave no rest, and such a cut is not there at all.
    whole = mv.object_cuts(layout, image)
    assert not [name for name in whole if name.startswith("rest of object")]


def test_flows_are_the_papers_and_the_question_is_the_users_text():
    prompt = ask(hooked("direct"))
    layout = prompt.layout
    at = layout.region(red(prompt.image))
    query, last, image = layout["query"], layout["last"], layout["image"]
    assert tuple(query) == planted.POSITIONS["query"]
    assert mv.flow_cuts(layout, at) == {
        "image->question": (query, image),
        "image->last": (last, image),
        "question->last": (last, query),
        "last->last": (last, last),
        "object->question": (query, at),
        "other patches->question": (query, image - at),
    }
    assert len(mv.flow_cuts(layout)) == 4


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_named_cuts_find_the_circuit_layer_by_layer(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    prompt = ask(vlm)
    at = prompt.layout.region(red(prompt.image))
    cuts = mv.object_cuts(prompt.layout, at) | mv.flow_cuts(prompt.layout, at)
    drop = mv.knockout_windows(
        vlm, prompt, cuts, answer="zero", windows=SINGLE | {"all": range(3)}
    )
    same = {
        "object->last": "object->last",
        "object+1->last": "object->last",
        "object+2->last": "object->last",
        "image->last": "image->last",
        "image->question": "image->query",
        "object->question": "object->query",
        "question->last": "query->last",
    }
    for name, row in same.items():
        wanted = [100 * (p / truth.base - 1) for p in truth.knockout[row]]
        wanted.append(min(wanted))
        assert drop.sel(cut=name).values == pytest.approx(wanted, abs=2 * PERCENT), name
    idle = [name for name in cuts if name not in same]
    assert set(idle) >= {"last->last", "rest of object->last", "object+1->last row"}
    for name in idle:  # a cut that changes nothing is there to be seen, as 0
        assert drop.sel(cut=name).values == pytest.approx([0] * 4, abs=PERCENT), name


def test_trap_03_without_a_sink_a_cut_row_spreads_over_the_rest():
    """The knockout renormalises: the last position's reading turns to what is left."""
    at = Positions.of(planted.POSITIONS["object"])
    for sink, wanted in ((False, planted.RENORMALISED), (True, [CHANCE] * 4)):
        vlm = hooked("direct", sink)
        prompt = ask(vlm)
        for answer, p in zip(planted.ANSWERS, wanted, strict=True):
            drop = mv.knockout_windows(
                vlm,
                prompt,
                {"object->last": ("last", at)},
                answer=answer,
                windows={"all": range(3)},
            )
            left = drop.attrs["clean"] * (1 + drop.item() / 100)
            assert left == pytest.approx(p, abs=TOLERANCE)


# --- accuracy over items --------------------------------------------------------------


@pytest.mark.parametrize("circuit", ["relay", "direct", "enrich"])
def test_accuracy_is_lost_where_the_circuit_reads_and_never_in_the_control(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    items = [
        item(0),
        item(1, cells=(0, 1)),
        item(2, answer="three"),  # wrong with nothing cut: counts for nothing
        item(3, cells=(12, 13, 14)),
    ]
    table = mv.knockout_accuracy(vlm, items, windows=SINGLE)
    assert (table.attrs["n_items"], table.attrs["n_right"]) == (4, 3)
    assert table["item"].values.tolist() == [items[i].id for i in (0, 1, 3)]
    # Without the object all four words tie, and the model says the first: zero.
    stays = (1.0, 1 / 3)
    wanted = [stays[p == CHANCE] for p in truth.knockout["object->last"]]
    at = table.sel(cut="object->last")
    np.testing.assert_allclose(at["accuracy"], wanted)
    assert (at["control"] == 1).all()
    np.testing.assert_allclose(at["difference"], np.array(wanted) - 1)
    assert (at["n"] == 3).all()
    ours = [100 * (p / truth.base - 1) for p in truth.knockout["object->last"]]
    np.testing.assert_allclose(at["change"], ours, atol=2 * PERCENT)
    np.testing.assert_allclose(at["control_change"], 0, atol=PERCENT)
    # Wilson's interval is not empty where all agree.
    all_right = at["accuracy"] == 1
    low, high = at["accuracy_low"].values, at["accuracy_high"].values
    np.testing.assert_allclose(low[all_right], 0.4385, atol=1e-3)
    np.testing.assert_allclose(high[all_right], 1)
    rest = table.sel(cut="rest of object->last")
    assert (rest["accuracy"] == 1).all()


def test_the_demos_text_reads_the_objects_own_tokens(demo):
    """A trained model: without the object's tokens the answer is gone."""
    items = []
    for seed in range(3):
        drawn = mv.scenes.sample(seed=seed, n=3)
        asked = mv.scenes.questions(drawn, "color")[0]
        items.append(
            mv.Item(
                drawn.image,
                asked.text,
                asked.answer,
                objects={"it": drawn.mask(asked.about)},
                target="it",
                id=str(seed),
            )
        )

    def cuts(layout, at):
        text = Positions.of(range(max(layout["image"]) + 1, layout.n))
        return {"object->text": (text, at)}

    windows = {"all": range(demo.cfg.n_layers)}
    table = mv.knockout_accuracy(demo, items, cuts=cuts, windows=windows)
    assert table.attrs["n_right"] >= 2
    assert table["difference"].item() < -0.3
    assert table["change"].item() < table["control_change"].item() - 30


def test_the_control_is_as_large_as_the_cut_and_beside_it(monkeypatch):
    """What is swept: each cut and its control, with the same target and size.

    A cut of more than half the image has no random set without its own tokens, and no
    twin is run for it.
    """
    from mechvlm.analyses.knockout_table import accuracy

    swept = []

    def spy(vlm, prompt, interventions, **more):
        if isinstance(interventions, list):
            swept.extend(interventions)
        return mv.intervene(vlm, prompt, interventions, **more)

    monkeypatch.setattr(accuracy, "intervene", spy)
    vlm = hooked("direct")
    table = mv.knockout_accuracy(vlm, [item(0, cells=(0, 1))], windows={"x": range(1)})
    image = vlm.prompt(planted.QUESTION, scene(0)).layout["image"]
    at = iter(swept)
    controlled = []
    for name in table["cut"].values:
        ours = next(at)
        alone = 2 * len(ours.source) > len(image)
        assert np.isnan(table["control_change"].sel(cut=name)).all() == alone
        assert table["n_control"].sel(cut=name).item() == (not alone)
        if alone:
            continue
        theirs = next(at)
        controlled.append(name)
        assert ours.target == theirs.target
        assert len(ours.source) == len(theirs.source)
        assert not theirs.source - image
        assert not ours.source & theirs.source, name
    assert next(at, None) is None
    assert {"object->last", "object+1->last"} <= set(controlled)
    assert 0 < len(controlled) < table.sizes["cut"]


def test_cuts_that_only_some_items_have_say_how_many():
    vlm = hooked("direct")
    everywhere = item(0, cells=range(16))
    table = mv.knockout_accuracy(vlm, [everywhere, item(1, cells=(0,))], windows=SINGLE)
    n = table["n"].sel(window="1")
    assert n.sel(cut="object->last") == 2
    assert n.sel(cut="rest of object+1->last") == 1
    assert np.isnan(table["right"].sel(cut="rest of object->last")[0]).all()
    assert np.isfinite(table["accuracy"]).all()


def test_a_table_survives_a_file(tmp_path):
    vlm = hooked("direct")
    table = mv.knockout_accuracy(vlm, [item(0)], cuts=mv.flow_cuts)
    assert table["window"].values.tolist()[-1] == "all"
    kept = mv.save_result(table, tmp_path / "table.nc")
    assert mv.open_result(kept).identical(table)
    assert "Neo" in mv.cite(table)


# --- other architectures and the known faults of others -------------------------------


GEMMA2 = tiny.Kind("gemma2", 2, "clip")


def by_hand(vlm, prompt, layers, target, source):
    """Oracle: Hugging Face alone, eager, minus infinity added to the mask it builds."""
    model, low = vlm.hf_model, torch.finfo(torch.float32).min

    def cut(module, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        assert mask.is_floating_point()
        for row in target:
            for column in source:
                mask[..., row, column] = low
        return args, {**kwargs, "attention_mask": mask}

    decoder = model.get_submodule(vlm.family.language_model)
    handles = [
        decoder.layers[i].self_attn.register_forward_pre_hook(cut, with_kwargs=True)
        for i in layers
    ]
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            return model(**prompt.inputs).logits[0, -1].float()
    finally:
        model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()


@pytest.mark.filterwarnings("ignore:.*already forbids")  # windowed layers reach less
@pytest.mark.parametrize(
    "kind",
    [GEMMA2, tiny.Kind("llama", 2, "clip"), tiny.GEMMA_KINDS[1]],
    ids=repr,
)
def test_trap_01_and_neos_hook_bug_a_cut_blocks_on_every_kind_of_mask(kind):
    """`mask[i, j] = False` on an additive mask means allowed: the cut that was none.

    Also trap 1: SDPA without padding has no mask at all, with padding a boolean one,
    eager an additive one; trap 14: grouped heads; trap 18: images read both ways.
    """
    vlm = mv.HookedVLM(*tiny.build(kind))
    prompt = tiny.ask(vlm, "what color is the cat ?")
    at = prompt.layout.region((10, 0, 20, 16))
    cuts = mv.object_cuts(prompt.layout, at)
    cuts = {name: cuts[name] for name in ("object+1->last", "object+1->last row")}
    answer = int(vlm(prompt)[0, -1].argmax())
    windows = {"early": range(2), "late": range(2, 4)}
    drop = mv.knockout_windows(vlm, prompt, cuts, answer=answer, windows=windows)
    clean = by_hand(vlm, prompt, (), (), ()).softmax(-1)[answer]
    for name, (target, source) in cuts.items():
        for window, layers in windows.items():
            p = by_hand(vlm, prompt, layers, target, source).softmax(-1)[answer]
            wanted = float(100 * (p / clean - 1))
            found = float(drop.sel(cut=name, window=window))
            assert found == pytest.approx(wanted, abs=0.05), (name, window)
    assert abs(drop.sel(cut="object+1->last")).max() > 0.1
    padded = prompt.left_padded(3, 0)
    moved = {
        name: tuple(Positions.of(p + 3 for p in each) for each in cut)
        for name, cut in cuts.items()
    }
    again = mv.knockout_windows(vlm, padded, moved, answer=answer, windows=windows)
    np.testing.assert_allclose(again.values, drop.values, atol=0.05)


def test_a_cut_that_the_mask_already_forbids_changes_nothing_and_warns(tiny_vlm):
    prompt = tiny_vlm.prompt("what color", tiny.picture())
    swapped = {"swapped": (prompt.layout["image"], prompt.layout["query"])}
    with pytest.warns(mv.MechVLMWarning, match="already forbids"):
        drop = mv.knockout_windows(
            tiny_vlm, prompt, swapped, answer="red", windows={"all": range(4)}
        )
    assert drop.item() == pytest.approx(0, abs=1e-3)


def test_trap_02_a_row_with_nothing_to_read_is_refused(tiny_vlm, no_forward):
    prompt = tiny_vlm.prompt("what color", tiny.picture())
    everything = Positions.of(range(prompt.layout.n))
    with pytest.raises(BlindRowError, match="nothing to read"):
        mv.knockout_windows(
            tiny_vlm,
            prompt,
            {"blind": ("last", everything)},
            answer="red",
            windows={"all": range(4)},
        )


def test_what_cannot_be_cut_is_refused(tiny_vlm, untouched):
    prompt = tiny_vlm.prompt("what color", tiny.picture())
    cuts = {"image->last": ("last", "image")}
    with pytest.raises(InterventionError, match="windows are given by name, and width"):
        mv.knockout_windows(
            tiny_vlm, prompt, cuts, answer="red", windows={"a": range(2)}, width=2
        )
    for windows in ({}, {"none": range(2, 2)}):
        with pytest.raises(InterventionError, match="hold no layer"):
            mv.knockout_windows(tiny_vlm, prompt, cuts, answer="red", windows=windows)
    with pytest.raises(InterventionError, match="is empty"):
        mv.knockout_windows(
            tiny_vlm, prompt, {"x": ("last", "system")}, answer="red", width=1
        )
    with pytest.raises(InterventionError, match="the object is at positions none"):
        mv.object_cuts(prompt.layout, Positions())
    with pytest.raises(InterventionError, match="must be some of the image's"):
        mv.flow_cuts(prompt.layout, prompt.layout["query"])
    with pytest.raises(InterventionError, match="has no image"):
        mv.flow_cuts(tiny_vlm.prompt("what color").layout)
    with pytest.raises(InterventionError, match="no window is given"):
        mv.knockout_accuracy(tiny_vlm, [item(0)], windows={})
    with pytest.raises(PromptError, match="no item is given"):
        mv.knockout_accuracy(tiny_vlm, [])
    with pytest.raises(MetricError, match="no word that a right answer begins with"):
        mv.knockout_accuracy(
            hooked("direct"), [item(0)], reading=mv.readings.generative()
        )
    with pytest.raises(MetricError, match="none of 1 items is answered right"):
        mv.knockout_accuracy(hooked("direct"), [item(0, answer="two")])
    with pytest.raises(PromptError, match="share ids"):
        mv.knockout_accuracy(hooked("direct"), [item(0), item(0)])
    with pytest.raises(InterventionError, match="there is no cut for item"):
        mv.knockout_accuracy(hooked("direct"), [item(0)], cuts=lambda *_: {})
