"""Maps of attention and what is in them: hand-made maps, words, refusals, files."""

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Positions
from mechvlm.errors import (
    LayerError,
    LayoutError,
    PairError,
    PromptError,
    ResultError,
    TokenError,
)

QUESTION = "what color is the cat ?"


@pytest.fixture(scope="module")
def speaker():
    """A random model that says words and nothing else: other tokens have logit 0."""
    vlm = mv.HookedVLM(*tiny.build(tiny.Kind("llama", 2, "clip"), seed=1))
    words = [vlm.to_single_token(word) for word in tiny.WORDS if word.isalpha()]
    head = vlm.hf_model.lm_head.weight
    with torch.no_grad():
        kept = head[words].clone()
        head.zero_()
        head[words] = kept
    return vlm


def one(maps, **cells):
    """One map with some cells, r<row>c<col>=value."""
    made = maps.copy(deep=True)
    for name, value in cells.items():
        made[0, 0, int(name[1]), int(name[3])] = value
    return made


@pytest.fixture(scope="module")
def labelled_maps(tiny_vlm):
    """One map of zeros to write into, with the labels of a real one."""
    found = mv.attention_map(tiny_vlm, tiny_vlm.prompt(QUESTION, tiny.picture()))[:1]
    return found.copy(data=np.zeros(found.shape))


@pytest.mark.parametrize(
    ("cells", "wanted"),
    [
        # hit, near within one cell, mass, overlap of the two largest with two cells
        ({"r1c1": 1.0}, (1, 1, 1.0, 1 / 3)),
        ({"r1c1": 0.6, "r1c2": 0.4}, (1, 1, 1.0, 1.0)),
        ({"r2c3": 0.6, "r1c1": 0.4}, (0, 1, 0.4, 1 / 3)),
        ({"r3c3": 0.6, "r1c1": 0.3, "r0c0": 0.3}, (0, 0, 0.25, 0.0)),
        ({"r3c3": 0.6, "r3c0": 0.4}, (0, 0, 0.0, 0.0)),
    ],
)
def test_a_hand_made_map_is_measured(labelled_maps, cells, wanted):
    made = one(labelled_maps, **cells)
    at = Positions.of(*(int(made["position"][1, col]) for col in (1, 2)))
    found = mv.localization(made, at).isel(layer=0, row=0)
    names = ("hit", "near", "mass", "iou")
    assert [float(found[name]) for name in names] == pytest.approx(wanted)
    assert found.attrs["chance"] == 2 / 16
    assert found.attrs["chance_near"] == 12 / 16
    # The picture is 40 x 32 and its middle 32 x 32 is seen: 8 pixels to a cell.
    box = mv.localization(made, (4 + 8, 8, 4 + 24, 16)).isel(layer=0, row=0)
    assert box.identical(found)


def test_a_wider_tolerance_reaches_further(labelled_maps):
    made = one(labelled_maps, r3c3=1.0)
    at = Positions.of(int(made["position"][1, 1]))
    near = [
        float(mv.localization(made, at, tolerance_cells=n)["near"].item())
        for n in (0, 1, 2, 3)
    ]
    assert near == [0, 0, 1, 1]


def test_a_map_without_attention_has_no_peak(labelled_maps):
    at = Positions.of(int(labelled_maps["position"][0, 0]))
    found = mv.localization(labelled_maps, at)
    assert all(np.isnan(found[name].item()) for name in ("hit", "near", "mass", "iou"))
    assert found["image_mass"].item() == 0


def test_words_have_the_rows_that_chose_them_and_their_own(speaker):
    prompt = speaker.prompt(QUESTION, tiny.picture())
    made = speaker.generate(prompt, max_new_tokens=8)
    words = speaker.to_str_tokens(made.ids)
    plain = [(i, w) for i, w in enumerate(words) if w.isalpha() and w not in words[:i]]
    assert len(plain) > 1, "the model says too little: this test shows nothing"
    for i, word in plain:
        n = prompt.layout.n
        assert mv.word_rows(speaker, prompt, made, word) == Positions.of(n - 1 + i)
        shouted = mv.word_rows(speaker, prompt, made, word.upper(), side="at")
        assert shouted == Positions.of(n + i)
    two = " ".join(words[plain[0][0] :][:2])
    assert len(mv.word_rows(speaker, prompt, made, two)) == 2
    with pytest.raises(TokenError, match="'elephant' was not said"):
        mv.word_rows(speaker, prompt, made, "elephant")
    with pytest.raises(TokenError, match="was not said"):
        mv.word_rows(speaker, prompt, made, plain[0][1][:-1])
    with pytest.raises(TokenError, match="was not said"):
        mv.word_rows(speaker, prompt, made, "")


def test_only_objects_that_are_lost_without_the_image_count(speaker):
    """The selection by two generations made by hand; the maps by hand as well."""
    picture, n_new = tiny.picture(), 10
    prompt = speaker.prompt("see", picture)
    n = prompt.layout.n
    said = speaker.generate(prompt, max_new_tokens=n_new)
    new = Positions.of(range(n, n + n_new - 1))
    cut = mv.Knockout(range(4), new, prompt.layout["image"])
    blind = speaker.generate(prompt, max_new_tokens=n_new, interventions=cut)
    ours = {w for w in said.text.lower().split() if w.isalpha()}
    theirs = set(blind.text.lower().split())
    lost, kept = ours - theirs, ours & theirs
    assert lost, "nothing is lost: this test shows nothing"
    objects = dict.fromkeys(sorted(lost | kept), (4, 0, 20, 16))
    item = mv.Item(picture, "", objects=objects | {"elephant": (4, 0, 12, 8)}, id="x")
    reading = mv.readings.generative("see", max_new_tokens=n_new)
    found = mv.localization_accuracy(speaker, [item], reading=reading)
    assert found["object"].values.tolist() == [f"x: {w}" for w in sorted(lost)]
    counts = [found.attrs[name] for name in ("n_objects", "n_named", "n_all")]
    assert counts == [len(lost), len(ours), len(ours) + 1]
    word = sorted(lost)[0]
    rows = mv.word_rows(speaker, prompt, said, word)
    maps = mv.attention_map(speaker, prompt, generation=said, rows=rows)
    peak = maps.values.mean(axis=1).reshape(4, -1).argmax(axis=1)
    hits = [i // 4 < 2 and i % 4 < 2 for i in peak.tolist()]
    assert found["hit"].sel(object=f"x: {word}").values.tolist() == hits


def test_results_survive_a_file(speaker, tmp_path):
    prompt = speaker.prompt(QUESTION, tiny.picture())
    made = speaker.generate(prompt, max_new_tokens=3)
    more = {"generation": made, "rows": "generated"}
    fraction = mv.attention_fraction(speaker, prompt, **more, exclude=("bos",))
    maps = mv.attention_map(speaker, prompt, **more)
    results = [
        fraction,
        mv.pool_fractions([fraction]),
        maps,
        mv.localization(maps, (4, 0, 20, 16)),
        mv.attention_rollout(speaker, prompt),
    ]
    for i, result in enumerate(results):
        kept = mv.save_result(result, tmp_path / f"{i}.nc")
        again = mv.open_result(kept)
        assert again.identical(result)
        assert mv.cite(again)
    again = mv.open_result(tmp_path / "2.nc")
    assert mv.localization(again, (4, 0, 20, 16)).identical(results[3])


def test_what_cannot_be_read_is_refused(tiny_vlm, tiny_prompt, untouched):
    blind = tiny_vlm.prompt("what color")
    made = tiny_vlm.generate(tiny_prompt, max_new_tokens=2)
    with pytest.raises(LayoutError, match="nothing was generated"):
        mv.attention_fraction(tiny_vlm, tiny_prompt, rows="generated")
    with pytest.raises(LayoutError, match=r"rows 23 were asked for"):
        mv.attention_fraction(tiny_vlm, tiny_prompt, rows=Positions.of(23))
    with pytest.raises(LayoutError, match="rows none were asked for"):
        mv.attention_map(tiny_vlm, tiny_prompt, rows=Positions())
    with pytest.raises(PairError, match="generated from another prompt"):
        mv.attention_fraction(tiny_vlm, blind, generation=made)
    with pytest.raises(LayoutError, match="group 'image' holds no position"):
        mv.attention_fraction(tiny_vlm, blind, groups="paper")
    with pytest.raises(LayoutError, match="overlap"):
        groups = {"image": "image", "cat": Positions.of(4)}
        mv.attention_fraction(tiny_vlm, tiny_prompt, groups=groups)
    with pytest.raises(LayoutError, match=r"outside 0\.\.22"):
        mv.attention_fraction(tiny_vlm, tiny_prompt, groups={"x": Positions.of(40)})
    with pytest.raises(LayoutError, match="no group is called 'sink'"):
        mv.attention_fraction(tiny_vlm, tiny_prompt, exclude=("sink",))
    with pytest.raises(LayoutError, match="leaves no position"):
        everything = Positions.of(range(23))
        mv.attention_fraction(tiny_vlm, tiny_prompt, exclude=(everything,))
    with pytest.raises(LayoutError, match="image 0 was asked for"):
        mv.attention_map(tiny_vlm, blind)
    with pytest.raises(LayoutError, match="image 0 was asked for"):
        mv.attention_rollout(tiny_vlm, blind)
    with pytest.raises(LayerError, match=r"layers \[4\]"):
        mv.attention_map(tiny_vlm, tiny_prompt, layers=[4])
    with pytest.raises(PromptError, match="has no objects"):
        mv.localization_accuracy(tiny_vlm, [mv.Item(tiny.picture(), "what")])
    with pytest.raises(PromptError, match="no item is given"):
        mv.localization_accuracy(tiny_vlm, [])


def test_what_is_no_map_or_no_object_of_it_is_refused(labelled_maps):
    with pytest.raises(ResultError, match="wants the maps of attention_map"):
        mv.localization(labelled_maps.isel(row=0), Positions.of(3))
    with pytest.raises(LayoutError, match="must be some of the map's"):
        mv.localization(labelled_maps, Positions.of(0))
    with pytest.raises(LayoutError, match="the object is at positions none"):
        mv.localization(labelled_maps, Positions())
    with pytest.raises(LayoutError, match="tolerance_cells=-1"):
        mv.localization(labelled_maps, Positions.of(3), tolerance_cells=-1)
    with pytest.raises(mv.RegionError, match="is not inside the picture"):
        mv.localization(labelled_maps, (0, 0, 99, 9))
