"""Cross patching against hand arithmetic, and against plain passes without a cache."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import tiny
import torch
import whole_passes
from PIL import Image

import mechvlm as mv
from mechvlm.models import planted
from mechvlm.models.planted import CIRCUITS, EXPECTED, SURE, TOLERANCE, WRONG, scene

NEW = 6
LLAMA = tiny.Kind("llama", 2, "clip")
GEMMA3 = tiny.Kind("gemma3_text", 2, "siglip", "gemma3")


@cache
def hooked(circuit):
    return mv.HookedVLM(*planted.build(circuit))


def posed(vlm, picture, **more):
    return vlm.prompt(planted.QUESTION, picture, system=planted.SYSTEM, **more)


def planted_swap(vlm, target=None, donor=None, **more):
    target = posed(vlm, scene(0) if target is None else target)
    donor = posed(vlm, scene(1) if donor is None else donor)
    return mv.Swap(target, donor, ("zero",), ("one",), **more)


@cache
def random_vlm(kind):
    return mv.HookedVLM(*whole_passes.talkative(kind))


def never(said, golds):
    return False


# --- hand arithmetic ------------------------------------------------------------------

CRITICAL = {"relay": 1, "direct": 2, "enrich": 2}
"""The layer behind the one in which each circuit reads the image."""


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_the_planted_table(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    found = mv.cross_patch(vlm, [planted_swap(vlm)], max_new_tokens=2)
    for name, wanted in (("original", truth.original), ("injected", truth.injected)):
        assert found[f"p_{name}"].dims == ("swap", "layer")
        assert tuple(found[f"p_{name}"][0].values) == pytest.approx(
            wanted, rel=0, abs=TOLERANCE
        )
        if circuit != "too_late":  # which has nothing to say: all four words tie
            says = [p > 0.5 for p in wanted]
            assert found[name].values.tolist() == [float(each) for each in says]
            assert found[f"says_{name}"][0].values.tolist() == says
    clean = float(found["p_original_clean"][0])
    assert clean == pytest.approx(truth.base, rel=0, abs=TOLERANCE)
    if circuit in CRITICAL:
        assert float(found["critical_layer"]) == CRITICAL[circuit]
        assert found["said_clean"].values.tolist() == ["zero"]
        assert found["donor_said"].values.tolist() == ["one"]
        assert found["donor_right"].values.tolist() == [True]


@pytest.mark.parametrize("cell", [0, 15])
def test_trap_paper_slices_the_first_and_the_last_patch_are_exchanged(cell):
    """A slice one short of the image leaves the object where it was."""
    vlm = hooked("direct")
    pictures = [scene(content, cells=[cell]) for content in (0, 1)]
    found = mv.cross_patch(vlm, [planted_swap(vlm, *pictures)], max_new_tokens=1)
    p = found["p_injected"][0].values
    assert tuple(p) == pytest.approx((SURE, SURE, WRONG), rel=0, abs=TOLERANCE)


def test_trap_20_the_layer_is_the_one_whose_input_is_written():
    """The direct circuit reads in layer 1: written at its input counts, behind not."""
    vlm = hooked("direct")
    found = mv.cross_patch(vlm, [planted_swap(vlm)], layers=[2, 1], max_new_tokens=1)
    assert found["layer"].values.tolist() == [1, 2]
    assert found["injected"].values.tolist() == [1, 0]
    assert "input, h[l]: the output of layer l-1" in found.attrs["layer_convention"]


def test_rates_have_wilsons_interval_over_the_swaps():
    vlm = hooked("direct")
    swaps = [planted_swap(vlm, id="a"), planted_swap(vlm, id="b")]
    swaps.append(planted_swap(vlm, donor=scene(2), id="c"))
    found = mv.cross_patch(vlm, swaps, max_new_tokens=1)
    assert found["swap"].values.tolist() == ["a", "b", "c"]
    assert found["injected"].values == pytest.approx([2 / 3, 2 / 3, 0])
    assert found["donor_right"].values.tolist() == [True, True, False]
    # (p + z^2 / 2n -+ z sqrt(p (1 - p) / n + z^2 / 4n^2)) / (1 + z^2 / n)
    z, n, p = 1.959964, 3, 2 / 3
    middle, half = p + z**2 / (2 * n), z * np.sqrt(p * (1 - p) / n + (z / n) ** 2 / 4)
    ends = [(middle + sign * half) / (1 + z**2 / n) for sign in (-1, 1)]
    assert float(found["injected_low"][0]) == pytest.approx(ends[0], abs=1e-5)
    assert float(found["injected_high"][0]) == pytest.approx(ends[1], abs=1e-5)
    # At layers 0 and 1 nobody says the original, and most say the injected name.
    assert float(found["critical_layer"]) == 2


def test_the_critical_layer_is_nan_where_the_original_never_comes_back():
    vlm = hooked("direct")
    found = mv.cross_patch(vlm, [planted_swap(vlm)], layers=[0, 1], max_new_tokens=1)
    assert np.isnan(float(found["critical_layer"]))


def test_names_of_several_words_have_no_probability_of_their_own():
    vlm = hooked("direct")
    swap = replace(
        planted_swap(vlm), original=("zero", "look zero"), injected=("one two",)
    )
    found = mv.cross_patch(vlm, [swap], layers=[2], max_new_tokens=1)
    assert float(found["p_original"][0, 0]) == pytest.approx(SURE, abs=TOLERANCE)
    assert np.isnan(float(found["p_injected"][0, 0]))


# --- plain passes ---------------------------------------------------------------------


@pytest.mark.parametrize("kind", [LLAMA, GEMMA3], ids=str)
def test_trap_04_and_06_one_injection_in_the_prefill_is_one_in_every_pass(kind):
    """Oracle: no cache, so the donor's rows are written again for every word.

    The donor's prompt is longer, and in LLaVA its image stands elsewhere.
    """
    vlm = random_vlm(kind)
    system = "see" if kind is LLAMA else None
    target = tiny.ask(vlm, "what color", tiny.picture(1))
    black = Image.new("RGB", (40, 32))
    donor = vlm.prompt("what is the cat", black, system=system)
    to, from_ = target.layout["image"], donor.layout["image"]
    assert (kind is LLAMA) == (to != from_)
    red, blue = (vlm.to_single_token(word) for word in ("red", "blue"))
    swap = mv.Swap(target, donor, ("red",), ("blue",))
    found = mv.cross_patch(vlm, [swap], max_new_tokens=NEW)
    rows = whole_passes.streams(vlm, donor)
    said = set()
    for layer in range(vlm.cfg.n_layers):
        writes = {layer: (to, rows[layer][list(from_)])}
        ids, first = whole_passes.speak(vlm, target, NEW, writes=writes)
        text = vlm.tokenizer.decode(ids, skip_special_tokens=True).strip()
        assert str(found["said"].sel(layer=layer)[0].values) == text
        for name, token in (("p_original", red), ("p_injected", blue)):
            wanted = float(first.softmax(-1)[token])
            assert float(found[name].sel(layer=layer)[0]) == pytest.approx(
                wanted, abs=1e-5
            )
        said.add(text)
    clean, _ = whole_passes.speak(vlm, target, NEW)
    text = vlm.tokenizer.decode(clean, skip_special_tokens=True).strip()
    assert str(found["said_clean"][0].values) == text
    assert said != {text}, "nothing was ever injected: this test shows nothing"


@pytest.mark.parametrize("kind", [LLAMA, GEMMA3], ids=str)
def test_a_picture_exchanged_for_itself_changes_nothing(kind):
    vlm = random_vlm(kind)
    target = tiny.ask(vlm, "what color", tiny.picture(1))
    again = tiny.ask(vlm, "what color", tiny.picture(1))
    other = tiny.ask(vlm, "what color", tiny.picture(2))
    swaps = [
        mv.Swap(target, donor, ("red",), ("blue",), id=name)
        for name, donor in (("same", again), ("other", other))
    ]
    found = mv.cross_patch(vlm, swaps, max_new_tokens=NEW)
    moved = np.abs(found["p_original"] - found["p_original_clean"]).max("layer")
    assert float(moved.sel(swap="same")) < 1e-5 < float(moved.sel(swap="other"))
    assert set(found["said"].sel(swap="same").values) == {
        str(found["said_clean"].sel(swap="same").values)
    }


def test_swaps_that_share_targets_and_donors_are_as_by_themselves():
    """Donors in the order a, b, a, and of a target with its base run at hand."""
    vlm = random_vlm(LLAMA)
    targets = [tiny.ask(vlm, "what color", tiny.picture(i)) for i in (1, 2)]
    a, b = (tiny.ask(vlm, "what color", tiny.picture(i)) for i in (3, 4))
    whole = mv.record(vlm, a)
    pairs = [(targets[0], a), (targets[1], b), (targets[1], a), (targets[0], b)]
    pairs += [(mv.base_run(vlm, targets[0]), whole)]
    swaps = [
        mv.Swap(target, donor, ("red",), ("blue",), id=str(i))
        for i, (target, donor) in enumerate(pairs)
    ]
    together = mv.cross_patch(vlm, swaps, max_new_tokens=NEW)
    for i, swap in enumerate(swaps):
        alone = mv.cross_patch(vlm, [swap], max_new_tokens=NEW)
        for name in ("said", "p_original", "donor_said"):
            ours, theirs = together[name].isel(swap=i), alone[name].isel(swap=0)
            if name.startswith("p_"):
                np.testing.assert_allclose(ours, theirs, atol=1e-6)
            else:
                assert ours.values.tolist() == theirs.values.tolist()
    assert float(np.ptp(together["p_original"].values, axis=0).max()) > 1e-4


def test_trap_paper_matcher_reads_the_answer_and_never_the_prompt():
    """The question says "look", which would count as said."""
    vlm, heard = hooked("direct"), []

    def listening(said, golds):
        heard.append(said)
        return said in golds

    swap = replace(planted_swap(vlm), injected=(planted.SYSTEM,))
    found = mv.cross_patch(vlm, [swap], matcher=listening, max_new_tokens=2)
    assert found["injected"].values.tolist() == [0, 0, 0]
    assert set(heard) == {"zero", "one", planted.SYSTEM}  # the last as a name alone
    assert not any(planted.QUESTION in said for said in heard)


def test_the_demo_follows_the_donor_first_and_the_target_last(demo):
    red = mv.scenes.sample(seed=3, n=1).recolored(0, "red")
    ask = f"what color is the {red.things[0].shape} ?"
    donor = demo.prompt(ask, red.recolored(0, "blue").image)
    swap = mv.Swap(demo.prompt(ask, red.image), donor, ("red",), ("blue",))
    found = mv.cross_patch(demo, [swap], max_new_tokens=2, progress=False)
    gap = (found["p_injected"] - found["p_original"])[0].values
    assert gap[0] > 0 > gap[-1]


# --- what comes back, and what is refused ---------------------------------------------


def test_the_result_is_saved_and_opened(tmp_path):
    vlm = hooked("relay")
    found = mv.cross_patch(vlm, [planted_swap(vlm, id="é")], max_new_tokens=2)
    again = mv.open_result(mv.save_result(found, tmp_path / "swap.nc"))
    assert again.identical(found)
    assert "Cohen" in mv.cite(found)
    assert (found.attrs["n"], found.attrs["at"]) == (1, "image")
    assert all(each.attrs["units"] for each in found.values())


def test_what_cannot_be_exchanged_is_refused(no_forward, tiny_vlm):
    vlm = tiny_vlm
    target, donor = (tiny.ask(vlm, "what color", tiny.picture(i)) for i in (1, 2))
    good = mv.Swap(target, donor, ("red",), ("blue",), id="it")
    with pytest.raises(mv.PromptError, match="no swap is given"):
        mv.cross_patch(vlm, [])
    with pytest.raises(mv.PromptError, match=r"2 swaps share ids \['it'\]"):
        mv.cross_patch(vlm, [good, good])
    with pytest.raises(mv.LayerError, match=r"layers \[4\] have no input"):
        mv.cross_patch(vlm, [good], layers=[0, 4])
    with pytest.raises(mv.LayerError, match=r"layers \[\] have no input"):
        mv.cross_patch(vlm, [good], layers=[])
    blind = replace(good, donor=vlm.prompt("what color"))
    with pytest.raises(mv.InterventionError, match="built without its image"):
        mv.cross_patch(vlm, [blind])
    with pytest.raises(mv.PairError, match="'Red' counts as the original and as the"):
        mv.cross_patch(vlm, [replace(good, original=("cat", "Red"), injected=("red",))])
    with pytest.raises(mv.PairError, match=r"2 positions of 'query' and the donor 3"):
        longer = replace(good, donor=vlm.prompt("what color is", tiny.picture()))
        mv.cross_patch(vlm, [longer], at="query")
    (grid,) = donor.layout.grids
    wide = replace(donor.layout, grids=(replace(grid, rows=2, cols=8),))
    with pytest.raises(mv.PairError, match=r"other grids, \[\(4, 4\)\] and \[\(2, 8\)"):
        mv.cross_patch(vlm, [replace(good, donor=replace(donor, layout=wide))])
    with pytest.raises(mv.PromptError, match=r"Swap.injected of 'it' is \(\)"):
        replace(good, injected=())
    with pytest.raises(mv.PromptError, match=r"Swap.original of 'it' is \(' ',\)"):
        replace(good, original=(" ",))


def test_positions_must_mean_the_same_in_targets_and_donors(no_forward, tiny_vlm):
    """A query one word longer, and a system message before the image."""
    vlm, at = tiny_vlm, mv.Positions.of(range(3, 5))

    def swap(target, donor, name):
        return mv.Swap(target, donor, ("red",), ("blue",), id=name)

    short, longer = (tiny.ask(vlm, words) for words in ("what color", "what color is"))
    shifted = vlm.prompt("what", tiny.picture(), system="see")
    alike = tiny.ask(vlm, "what color is the")
    assert shifted.layout.n == alike.layout.n, "only their groups differ"
    for swaps in (
        [swap(short, longer, "a")],
        [swap(longer, short, "a")],
        [swap(alike, shifted, "a")],
        [swap(short, short, "a"), swap(longer, longer, "b")],
        [swap(alike, alike, "a"), swap(shifted, shifted, "b")],
    ):
        with pytest.raises(mv.PairError, match=r"one to one|do not mean the same"):
            mv.cross_patch(vlm, swaps, at=at)
    with pytest.raises(mv.InterventionError, match=r"of 'a', which has positions 0"):
        mv.cross_patch(vlm, [swap(short, short, "a")], at=mv.Positions.of(3, 99))


def test_positions_and_the_group_that_they_are_exchange_the_same():
    vlm = hooked("direct")
    swap = planted_swap(vlm)
    image = swap.target.layout["image"]
    by_group, by_place = (
        mv.cross_patch(vlm, [swap], at=at, max_new_tokens=1) for at in ("image", image)
    )
    np.testing.assert_array_equal(by_group["p_injected"], by_place["p_injected"])
    assert by_place["injected"].values.tolist() == [1, 1, 0]


@torch.no_grad()
def test_a_donors_run_that_lacks_a_layer_is_refused():
    vlm = random_vlm(LLAMA)
    target = tiny.ask(vlm, "what color", tiny.picture(1))
    donor = mv.record(vlm, target, [mv.Site("resid_pre", 1)])
    swap = mv.Swap(target, donor, ("red",), ("blue",))
    assert mv.cross_patch(vlm, [swap], layers=[1], max_new_tokens=1, matcher=never)
    with pytest.raises(mv.RunError, match=r"no blocks\.2\.hook_resid_pre"):
        mv.cross_patch(vlm, [swap], layers=[1, 2], max_new_tokens=1)
