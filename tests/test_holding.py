"""Freezing, back-patching and cumulative knockout: hand arithmetic and plain passes."""

from functools import cache

import numpy as np
import pytest
import tiny
import whole_passes
from PIL import Image
from unchecked import check_refusals

import mechvlm as mv
from mechvlm.models import planted
from mechvlm.models.planted import (
    CHANCE,
    CIRCUITS,
    EXPECTED,
    SURE,
    TOLERANCE,
    TWICE,
    scene,
)

NEW = 5
LLAMA = tiny.Kind("llama", 2, "clip")
GEMMA3 = tiny.Kind("gemma3_text", 2, "siglip", "gemma3")
SPEAKING = [circuit for circuit in CIRCUITS if circuit != "too_late"]
"""`too_late` has nothing to say: all four words tie."""


def check_close(found, wanted):
    assert list(np.ravel(found)) == pytest.approx(wanted, rel=0, abs=TOLERANCE)


@cache
def hooked(circuit):
    return mv.HookedVLM(*planted.build(circuit))


def ask(vlm, content=0, **more):
    prompt = vlm.prompt(planted.QUESTION, scene(content), system=planted.SYSTEM)
    return mv.Posed(prompt, (planted.ANSWERS[content],), **more)


@pytest.fixture(scope="module", params=[LLAMA, GEMMA3], ids=str)
def talker(request):
    """A random model that goes on talking, its prompt, and the stream in plain passes.

    Gemma's image positions read one another both ways, and only in part are they read
    through its windows.
    """
    vlm = mv.HookedVLM(*whole_passes.talkative(request.param))
    prompt = tiny.ask(vlm, "what color", Image.new("RGB", (40, 32)))
    return vlm, prompt, whole_passes.streams(vlm, prompt)


def check_spoken(talker, found, **by_hand):
    """What an arm said, and how probable "red" was, against whole passes."""
    vlm, prompt, _ = talker
    ids, first = whole_passes.speak(vlm, prompt, NEW, **by_hand)
    text = vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
    assert found["said"].values.tolist() == [text]
    p = float(first.softmax(-1)[vlm.to_single_token("red")])
    assert float(found["p_answer"][0]) == pytest.approx(p, abs=1e-5)
    return text


# --- freezing -------------------------------------------------------------------------


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_freezing_in_the_planted_table(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    found = mv.freeze(vlm, [ask(vlm)], until=2, max_new_tokens=2)
    assert found["source"].values.tolist() == [0, 1, 2]
    check_close(found["p_answer"], [truth.frozen[0], truth.frozen[1], truth.base])
    check_close(found["p_answer_clean"], [truth.base])
    if circuit in SPEAKING:
        wanted = [truth.frozen[0] > 0.5, truth.frozen[1] > 0.5, True]
        assert found["right"][0].values.tolist()[1:] == wanted[1:]
        assert wanted[0] or not found["p_answer"][0, 0] > 0.5


def test_freezing_holds_the_inputs_up_to_until_and_no_further():
    """Enrich decodes in layer 0 and reads in layer 1: held at h[1] or not at all."""
    vlm = hooked("enrich")
    for until, wanted in ((0, [SURE]), (1, [CHANCE, SURE]), (2, [CHANCE, SURE, SURE])):
        found = mv.freeze(vlm, [ask(vlm)], until=until, max_new_tokens=1)
        check_close(found["p_answer"], wanted)


def test_until_is_the_papers_share_of_the_layers(talker):
    found = mv.freeze(talker[0], [mv.Posed(talker[1], ("red",))], max_new_tokens=1)
    assert found.attrs["until"] == 2  # 20 of 32 layers are 2.5 of 4
    assert found["source"].values.tolist() == [0, 1, 2]


def test_trap_04_and_06_freezing_in_the_prefill_is_freezing_in_every_pass(talker):
    vlm, prompt, rows = talker
    image, until = prompt.layout["image"], 3
    found = mv.freeze(
        vlm, [mv.Posed(prompt, ("red",))], until=until, max_new_tokens=NEW
    )
    said = set()
    for source in range(until + 1):
        held = image, rows[source][list(image)]
        writes = dict.fromkeys(range(source + 1, until + 1), held)
        said.add(check_spoken(talker, found.sel(source=source), writes=writes))
    assert len(said) > 1, "freezing did nothing: this test shows nothing"


def test_frozen_until_its_source_is_the_clean_run(talker):
    vlm, prompt, _ = talker
    found = mv.freeze(
        vlm, [mv.Posed(prompt, ("red",))], sources=[2], until=2, max_new_tokens=NEW
    )
    assert float(found["p_answer"][0, 0]) == float(found["p_answer_clean"][0])
    assert found["said"][0, 0].item() == found["said_clean"][0].item()
    assert float(found["change"][0]) == 0


# --- back-patching --------------------------------------------------------------------


@pytest.mark.parametrize("later", ["recomputed", "clean"])
@pytest.mark.parametrize("circuit", CIRCUITS)
def test_back_patching_in_the_planted_table(circuit, later):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    grid = mv.back_patch(vlm, [ask(vlm)], later=later, max_new_tokens=2)
    p = grid["p_answer"].isel(item=0)
    assert (p["source"].values.tolist(), p["target"].values.tolist()) == (
        [0, 1, 2, 3],
        [0, 1, 2],
    )
    for (source, target), wanted in truth.back_patched.items():
        # Held at its clean values the image is made readable only once.
        once = SURE if later == "clean" and wanted == TWICE else wanted
        check_close(p.sel(source=source, target=target), [once])
    for layer in range(3):
        check_close(p.sel(source=layer, target=layer), [truth.base])
    assert np.isnan(p.sel(source=0, target=1)) and not np.isnan(p.sel(source=3)).any()
    # h[3] is what leaves the last layer: readable in all circuits, as h[2] is.
    check_close(p.sel(source=3, target=0), [float(p.sel(source=2, target=0))])


def test_a_window_patches_neighbours_together():
    """Enrich, h[0] <- h[1]: layer 0 decodes again, and h[1] <- h[2] takes that back."""
    vlm = hooked("enrich")
    call = {"sources": [1], "targets": [0], "max_new_tokens": 1}
    for window, wanted in ((1, TWICE), (2, SURE)):
        grid = mv.back_patch(vlm, [ask(vlm)], window=window, **call)
        check_close(grid["p_answer"], [wanted])


def test_trap_20_back_patching_says_which_layers_input_is_written():
    """Too late: layer 0 reads, and what is readable leaves layer 1, which is h[2]."""
    vlm = hooked("too_late")
    grid = mv.back_patch(vlm, [ask(vlm)], targets=[0], max_new_tokens=1)
    check_close(grid["p_answer"], [CHANCE, CHANCE, SURE, SURE])
    assert "input of layer target+k" in grid.attrs["layer_convention"]


@pytest.mark.parametrize("later", ["recomputed", "clean"])
def test_back_patching_is_the_whole_passes(talker, later):
    vlm, prompt, rows = talker
    image, n_layers = prompt.layout["image"], vlm.cfg.n_layers
    posed = [mv.Posed(mv.base_run(vlm, prompt), ("red",))]
    grid = mv.back_patch(vlm, posed, window=2, later=later, max_new_tokens=NEW)
    said = set()
    assert grid["source"].values.tolist() == [0, 1, 2, 3]
    assert grid["target"].values.tolist() == [0, 1, 2]
    for source in grid["source"].values.tolist():
        for target in range(min(source, 2) + 1):
            taken = {target: source, target + 1: source + 1}
            if later == "clean":
                taken |= {layer: layer for layer in range(target + 2, n_layers)}
            writes = {to: (image, rows[x][list(image)]) for to, x in taken.items()}
            cell = grid.sel(source=source, target=target)
            said.add(check_spoken(talker, cell, writes=writes))
    assert len(said) > 1, "nothing was patched: this test shows nothing"


# --- cumulative knockout --------------------------------------------------------------


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_cumulative_knockout_in_the_planted_table(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    call = {"max_new_tokens": 2, "progress": False}
    down = mv.cumulative_knockout(vlm, [ask(vlm)], direction="top-down", **call)
    check_close(down["p_answer"], list(truth.knockout_from)[::-1])
    assert down["layer"].values.tolist() == [-1, 2, 1, 0]
    up = mv.cumulative_knockout(vlm, [ask(vlm)], direction="bottom-up", **call)
    _, reader = truth.locates
    blind = [n_cut > reader for n_cut in range(4)]
    check_close(up["p_answer"], [CHANCE if cut else truth.base for cut in blind])
    assert up["layer"].values.tolist() == [-1, 0, 1, 2]
    for found in (down, up):
        assert float(found["p_answer"][0, 0]) == float(found["p_answer_clean"][0])


@pytest.mark.filterwarnings("ignore:Knockout.*already forbids")
@pytest.mark.parametrize("direction", ["top-down", "bottom-up"])
def test_trap_04_and_05_the_cut_is_one_mask_over_prompt_and_answer(talker, direction):
    """Oracle: eager passes without a cache, rows of the mask by absolute position.

    The last prompt row, which chooses the first word, is cut like every later one.
    """
    vlm, prompt, _ = talker
    image, n_layers = prompt.layout["image"], vlm.cfg.n_layers
    rows = range(max(image) + 1, prompt.layout.n + NEW)
    found = mv.cumulative_knockout(
        vlm, [mv.Posed(prompt, ("red",))], direction=direction, max_new_tokens=NEW
    )
    said = set()
    for n_cut in range(n_layers + 1):
        top = direction == "top-down"
        window = range(n_layers - n_cut, n_layers) if top else range(n_cut)
        cuts = dict.fromkeys(window, (rows, image))
        said.add(check_spoken(talker, found.sel(n_cut=n_cut), cuts=cuts))
    assert len(said) > 1, "the cut changed nothing: this test shows nothing"


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_trap_paper_knockout_is_no_silent_no_op_where_a_mask_comes_in(attention):
    """Eager hands every layer an additive mask, SDPA none at all."""
    model, processor = tiny.build(LLAMA, attention=attention)
    vlm = mv.HookedVLM(model, processor)
    posed = [mv.Posed(tiny.ask(vlm, "what color"), ("red",))]
    found = mv.cumulative_knockout(vlm, posed, max_new_tokens=1)
    assert np.ptp(found["p_answer"].values) > 1e-4
    sdpa = mv.HookedVLM(*tiny.build(LLAMA, attention="sdpa"))
    other = [mv.Posed(tiny.ask(sdpa, "what color"), ("red",))]
    wanted = mv.cumulative_knockout(sdpa, other, max_new_tokens=1)["p_answer"].values
    np.testing.assert_allclose(found["p_answer"].values, wanted, atol=1e-5)


# --- rates over items -----------------------------------------------------------------


def test_trap_19_every_rate_has_its_denominator_and_its_control():
    """Two answers that stand in the picture, and two that do not and never will."""
    vlm = hooked("direct")
    wrong = [mv.Posed(ask(vlm).prompt, (word,), id=word) for word in ("two", "one")]
    posed = [ask(vlm, id="a"), ask(vlm, 2, id="b"), *wrong]
    found = mv.cumulative_knockout(vlm, posed, max_new_tokens=1, matcher=strictly)
    clean = found["right_clean"].values.tolist()
    assert clean == [True, True, False, False]
    no_op = {name: float(found[name][0]) for name in ("rate", "kept", "gained")}
    assert no_op == {"rate": 0.5, "kept": 1, "gained": 0}
    right = found["right"].sel(n_cut=3).values
    wanted = [np.mean(right), np.mean(right[:2]), np.mean(right[2:])]
    blind = [float(found[name][-1]) for name in ("rate", "kept", "gained")]
    assert blind == pytest.approx(wanted)
    assert float(found["change"][-1]) == pytest.approx(wanted[0] - 0.5)
    assert float(found["kept_low"][0]) == pytest.approx(1 / (1 + 1.959964**2 / 2))
    # Four items are too few for a bootstrap; Wilson's interval has its width at once.
    assert float(found["change"][0]) == 0 and np.isnan(found["change_low"]).all()
    assert found["item"].values.tolist() == ["a", "b", "two", "one"]
    assert (
        "USER" not in found["asked"][0].item() and "digit" in found["asked"][0].item()
    )


def strictly(said, golds):
    return said in golds


def test_without_a_wrong_item_there_is_nothing_to_gain():
    vlm = hooked("direct")
    found = mv.freeze(vlm, [ask(vlm)], until=1, max_new_tokens=1)
    assert np.isnan(found["gained"]).all() and not np.isnan(found["kept"]).any()


@pytest.mark.parametrize("analysis", [mv.freeze, mv.back_patch, mv.cumulative_knockout])
def test_results_are_saved_and_opened(analysis, tmp_path):
    vlm = hooked("relay")
    result = analysis(vlm, [ask(vlm, id="é")], max_new_tokens=2)
    again = mv.open_result(mv.save_result(result, tmp_path / "held.nc"))
    assert again.identical(result)
    assert "Cohen" in mv.cite(result)
    assert {"layer_convention", "n", "model"} <= set(result.attrs)
    assert all(each.attrs["units"] for each in result.values())


# --- refusals -------------------------------------------------------------------------


def test_what_cannot_be_held_is_refused(tiny_vlm, no_forward):
    vlm = tiny_vlm
    it = mv.Posed(tiny.ask(vlm, "what color"), ("red",), id="it")
    blind = mv.Posed(vlm.prompt("what color"), ("red",))
    longer = mv.Posed(tiny.ask(vlm, "what color is"), ("red",))
    for analysis in (mv.freeze, mv.back_patch):
        with pytest.raises(mv.PromptError, match="no prompt is given"):
            analysis(vlm, [])
        with pytest.raises(mv.PromptError, match=r"share ids \['it'\]"):
            analysis(vlm, [it, it])
        with pytest.raises(mv.InterventionError, match="built without its image"):
            analysis(vlm, [it, blind])
        with pytest.raises(mv.PairError, match="cannot be matched one to one"):
            analysis(vlm, [it, longer], at=mv.Positions.of(3, 4))
    with pytest.raises(mv.LayerError, match="until=4: wanted the last layer"):
        mv.freeze(vlm, [it], until=4)
    with pytest.raises(mv.LayerError, match=r"sources \[2\] cannot be used here"):
        mv.freeze(vlm, [it], sources=[0, 2], until=1)
    with pytest.raises(mv.LayerError, match=r"targets \[4\] cannot be used here"):
        mv.back_patch(vlm, [it], targets=[4])
    with pytest.raises(mv.LayerError, match=r"sources \[4\] .* layers 0\.\.3"):
        mv.back_patch(vlm, [it], sources=[4], window=2)
    with pytest.raises(mv.LayerError, match="window=5: a window has 1 to 4"):
        mv.back_patch(vlm, [it], window=5)
    with pytest.raises(mv.LayerError, match=r"no source of \[0\] lies at or behind"):
        mv.back_patch(vlm, [it], sources=[0], targets=[1])
    with pytest.raises(mv.PromptError, match="without a right answer"):
        mv.Posed(it.prompt, ())


def test_what_cannot_be_cut_is_refused(tiny_vlm):
    it = mv.Posed(tiny.ask(tiny_vlm, "what color"), ("red",))
    end = it.prompt.layout["last"]
    with pytest.raises(mv.InterventionError, match="no text position stands behind"):
        mv.cumulative_knockout(tiny_vlm, [it], source=end)
    blind = mv.Posed(tiny_vlm.prompt("what"), ("red",))
    with pytest.raises(mv.InterventionError, match="is empty in the prompt of '0'"):
        mv.cumulative_knockout(tiny_vlm, [blind])
    beyond = mv.Positions.of(3, it.prompt.layout.n)
    with pytest.raises(mv.InterventionError, match=r"has positions 0\.\.22"):
        mv.freeze(tiny_vlm, [it], at=beyond, max_new_tokens=1)


# Here beartype would say so first; a user's calls go unchecked.
WRONG_KINDS = """
import mechvlm as mv
vlm = mv.load("demo")
prompt = vlm.prompt("how many objects are there ?", mv.scenes.sample(seed=0).image)
it = mv.Posed(prompt, ["one"])
assert it.answers == ("one",)
swap = mv.Swap(prompt, prompt, ["red"], ["blue"])
assert (swap.original, swap.injected) == (("red",), ("blue",))
cases = [
    (lambda: mv.Posed(prompt, "zorblax"), "read letter by letter"),
    (lambda: mv.Posed("how many ?", ("one",)), "Posed.prompt is 'how many ?' (str)"),
    (lambda: mv.Swap(prompt, prompt, "red", ("blue",)), "Swap.original is the one str"),
    (lambda: mv.Swap(prompt, prompt, ("red",), "blue"), "Swap.injected is the one str"),
    (lambda: mv.Swap(prompt, 3, ("red",), ("blue",)), "Swap.donor is 3 (int)"),
    (lambda: mv.freeze(vlm, it), "posed is "),
    (lambda: mv.freeze(vlm, [prompt]), "posed[0] is "),
    (lambda: mv.freeze(vlm, [it], sources=3), "sources is 3 (int); wanted a list"),
    (lambda: mv.freeze(vlm, [it], at=3), "where to act is 3 (int); wanted str or Pos"),
    (lambda: mv.back_patch(vlm, it), "posed is "),
    (lambda: mv.back_patch(vlm, [it], targets="3"), "targets is '3' (str)"),
    (lambda: mv.cumulative_knockout(vlm, it), "posed is "),
    (lambda: mv.cumulative_knockout(vlm, [prompt]), "posed[0] is "),
    (lambda: mv.cross_patch(vlm, swap), "swaps is "),
    (lambda: mv.cross_patch(vlm, [it]), "swaps[0] is "),
    (lambda: mv.cross_patch(vlm, [swap], layers=3), "layers is 3 (int)"),
]
"""


def test_arguments_of_another_kind_are_named():
    check_refusals(WRONG_KINDS)
