"""The logit lens: against the model's own logits, and on circuits that are known."""

from functools import cache
from importlib import import_module

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm.errors import LayerError, LayoutError, MetricError, PromptError, TokenError
from mechvlm.models import planted
from mechvlm.models.planted import CIRCUITS, EXPECTED, TOLERANCE, scene

reading = import_module("mechvlm.analyses.logit_lens.reading")
READ = tiny.Kind("llama", 4, "clip")
KINDS = (READ, tiny.Kind("llama", 2, "siglip"), *tiny.GEMMA_KINDS)


@cache
def hooked(circuit):
    return mv.HookedVLM(*planted.build(circuit))


def ask(vlm, content=0):
    return vlm.prompt(planted.QUESTION, scene(content), system=planted.SYSTEM)


def thing(prompt):
    return prompt.layout.region(np.array(prompt.image)[:, :, 0] > 0)


@cache
def random_model(kind):
    vlm = mv.HookedVLM(*tiny.build(kind))
    return vlm, tiny.ask(vlm, "what color is the cat ?")


def hidden_states(vlm, prompt):
    """Oracle: what enters each layer, caught by torch's own hooks, not ours."""
    model = vlm.hf_model.get_submodule(vlm.family.language_model)
    seen, handles = [], []
    keep = lambda _, args, kwargs: seen.append(  # noqa: E731
        (args[0] if args else kwargs["hidden_states"])[0].clone()
    )
    for module in (*model.layers, model.norm):
        handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
    with torch.no_grad():
        logits = vlm.hf_model(**prompt.inputs).logits[0]
    for handle in handles:
        handle.remove()
    return seen, logits


# --- planted circuits -----------------------------------------------------------------


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_the_lens_names_the_object_from_the_layer_where_it_is_readable(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    prompt = ask(vlm)
    lens = mv.logit_lens(vlm, prompt)
    assert lens["word"].dims == ("layer", "position", "k")
    rate = mv.object_hit_rate(lens, ["zero"], thing(prompt))
    assert tuple(rate.values) == truth.lens
    assert rate.attrs["best_layer"] == truth.lens.index(1.0)
    # The control: the background weakly shows class 3, and never class 0.
    background = prompt.layout["image"] - thing(prompt)
    control = mv.object_hit_rate(lens, ["zero"], background)
    assert (control.values.max(), control.attrs["best_layer"]) == (0, -1)
    three = mv.object_hit_rate(lens, ["three"], background)
    assert tuple(three.values) == truth.lens


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_every_object_has_its_rate_its_layer_and_its_control(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    items = [
        mv.Item(
            scene(content, cells=cells),
            planted.QUESTION,
            objects={planted.ANSWERS[content]: mask(cells)},
            id=f"item {content}",
        )
        for content, cells in ((0, (5, 6, 9)), (1, (0, 1)), (2, (3,)))
    ]
    found = mv.object_lens(vlm, items)
    assert found["object"].values.tolist() == [
        "item 0: zero",
        "item 1: one",
        "item 2: two",
    ]
    np.testing.assert_array_equal(found["hit_rate"], [truth.lens] * 3)
    assert float(found["control_rate"].max() + found["background_rate"].max()) == 0
    assert found["n_tokens"].values.tolist() == [3, 2, 1]
    assert found["mean_best_rate"].values[[0, 3]].tolist() == [1, 3]
    first = truth.lens.index(1.0)
    assert found["mean_best_layer"].values[[0, 3]].tolist() == [first, 3]
    assert found["best_rate_over_control"].sel(estimate="mean") == 1
    assert 0 < found["best_rate_over_control"].attrs["p"] < 1


def mask(cells):
    """Pixels of cells."""
    side = planted.scene(0).width // 4
    found = np.zeros((4 * side, 4 * side), dtype=bool)
    for cell in cells:
        row, col = divmod(cell, 4)
        found[row * side : (row + 1) * side, col * side : (col + 1) * side] = True
    return found


def test_objects_that_no_layer_names_are_counted_and_left_out_of_the_means():
    vlm = hooked("enrich")
    both = {"zero": mask((5, 6, 9)), "one": mask((12, 13))}
    item = mv.Item(scene(0), planted.QUESTION, objects=both)
    found = mv.object_lens(vlm, [item])
    assert found.attrs["n_never_named"] == 1
    assert found["best_rate"].values.tolist() == [1, 0]
    assert np.isnan(found["best_layer"].values).tolist() == [False, True]
    assert found["mean_best_rate"].values[[0, 3]].tolist() == [1, 1]
    assert found["share_named"].values[[0, 3]].tolist() == [0.5, 2]


def test_an_object_that_fills_the_picture_has_no_control():
    vlm = hooked("direct")
    item = mv.Item(scene(0), planted.QUESTION, objects={"zero": (0, 0, 56, 56)})
    found = mv.object_lens(vlm, [item])
    assert np.isnan(found["control_best_rate"].item())
    assert found["best_rate_over_control"].sel(estimate="n") == 0
    assert found["best_rate"].item() == pytest.approx(3 / 16)


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_the_answer_is_decided_where_the_circuit_writes_it(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    answers = {"right": "zero", "foil": "one"}
    track = mv.answer_track(vlm, ask(vlm), answers)
    writes = {"relay": 3, "direct": 2, "enrich": 2, "too_late": 9}[circuit]
    for layer in range(4):
        p = planted.SURE if layer >= writes else planted.CHANCE
        here = track.sel(answer="right", layer=layer)
        assert float(here["probability"]) == pytest.approx(p, abs=TOLERANCE)
        assert float(here["logit"]) == pytest.approx(
            4.0 * (layer >= writes), abs=4 * TOLERANCE
        )
    p_end = float(track["probability"].sel(answer="right", layer=3))
    assert p_end == pytest.approx(truth.base, abs=TOLERANCE)
    if writes < 4:
        assert track["rank"].sel(layer=3, answer="right") == 0
        assert track["rank"].sel(layer=3, answer="foil") >= 1


def test_the_demos_image_tokens_name_what_they_show(demo):
    """A trained model: its object tokens name the object more than others do."""
    items = []
    for seed in range(3):
        drawn = mv.scenes.sample(seed=seed, n=2)
        things = enumerate(drawn.things)
        objects = {f"{i} {thing.words}": drawn.mask(i) for i, thing in things}
        ask = "how many objects are there ?"
        items.append(mv.Item(drawn.image, ask, objects=objects))
    found = mv.object_lens(demo, items, words=lambda name: name.split()[1:])
    over = found["best_rate_over_control"]
    assert float(over.sel(estimate="mean")) > 0.1
    assert over.attrs["p"] < 0.1
    assert found.attrs["n_never_named"] <= 2


# --- real architectures ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_the_last_layer_at_the_last_position_is_the_model_itself(kind):
    vlm, prompt = random_model(kind)
    with torch.no_grad():
        own = vlm.hf_model(**prompt.inputs).logits[0, -1].float()
    lens = mv.logit_lens(vlm, prompt, at="last", topk=4)
    best = own.softmax(-1).topk(4)
    end = lens.isel(layer=-1, position=0)
    assert end["token_id"].values.tolist() == best.indices.tolist()
    np.testing.assert_allclose(end["probability"], best.values, rtol=1e-4)
    words = [vlm.to_string(i) for i in best.indices.tolist()]
    assert end["word"].values.tolist() == words
    track = mv.answer_track(vlm, prompt, {"a": int(best.indices[2]), "b": "red"})
    assert track["rank"].isel(layer=-1).values[0] == 2
    np.testing.assert_allclose(
        track["logit"].isel(layer=-1),
        own[[int(best.indices[2]), vlm.to_single_token("red")]],
        rtol=1e-4,
        atol=1e-5,
    )


@pytest.mark.parametrize("kind", KINDS, ids=repr)
@pytest.mark.parametrize("norm", ["final", "none"])
def test_every_cell_is_the_head_of_what_enters_its_layer(kind, norm):
    """Also trap 14: nothing depends on how many key-value heads there are."""
    vlm, prompt = random_model(kind)
    seen, _ = hidden_states(vlm, prompt)
    language_model = vlm.hf_model.get_submodule(vlm.family.language_model)
    lens = mv.logit_lens(vlm, prompt, topk=2, norm=norm)
    image = list(prompt.layout["image"])
    assert lens["position"].values.tolist() == image
    # LLaVA has a head of its own, which caps nothing.
    cap = 2.0 if (kind.family, kind.backbone) == ("paligemma", "gemma2") else None
    for layer, hidden in enumerate(seen):
        with torch.no_grad():
            rows = hidden[image]
            rows = language_model.norm(rows) if norm == "final" else rows
            logits = vlm.hf_model.get_submodule(vlm.family.head)(rows)
            logits = logits if cap is None else cap * torch.tanh(logits / cap)
        best = logits.softmax(-1).topk(2)
        here = lens.sel(layer=layer)
        assert (here["token_id"].values == best.indices.numpy()).mean() > 0.95  # ties
        np.testing.assert_allclose(here["probability"], best.values, rtol=1e-3)


@pytest.mark.parametrize("kind", [READ, tiny.GEMMA_KINDS[1]], ids=repr)
def test_trap_17_the_final_norm_is_applied_once(kind):
    """HF's hidden_states[-1] is normed already; norming it again gives other words."""
    vlm, prompt = random_model(kind)
    language_model = vlm.hf_model.get_submodule(vlm.family.language_model)
    with torch.no_grad():
        out = vlm.hf_model(**prompt.inputs, output_hidden_states=True)
        last = out.hidden_states[-1][0]
        head = vlm.hf_model.get_submodule(vlm.family.head)
        once = head(last).softmax(-1)[-1]
        twice = head(language_model.norm(last)).softmax(-1)[-1]
    top = int(once.argmax())
    found = mv.answer_track(vlm, prompt, {"top": top})["probability"]
    assert float(found[0, -1]) == pytest.approx(float(once[top]), rel=1e-4)
    assert abs(float(once[top] / twice[top]) - 1) > 0.01, "this test shows nothing"


def test_trap_20_layers_are_inputs_of_layers_and_one_more():
    vlm, prompt = random_model(READ)
    lens = mv.logit_lens(vlm, prompt, topk=1)
    assert lens["layer"].values.tolist() == [0, 1, 2, 3, 4]
    assert "enters layer k" in lens.attrs["layer_convention"]
    # h[0] is the merged embedding: at an image token, what the projector gave.
    kept = mv.record(vlm, prompt, ["embed"])[mv.Site("embed")]
    with torch.no_grad():
        first = vlm.hf_model.lm_head(vlm.ln_final(kept[list(prompt.layout["image"])]))
    assert lens["token_id"].values[0, :, 0].tolist() == first.argmax(-1).tolist()


def test_trap_07_padding_moves_positions_and_no_word():
    vlm, prompt = random_model(READ)
    padded = prompt.left_padded(3, 0)
    plain, moved = (mv.logit_lens(vlm, each, topk=1) for each in (prompt, padded))
    assert (moved["position"] - plain["position"].values == 3).all()
    np.testing.assert_array_equal(plain["token_id"].values, moved["token_id"].values)


def test_trap_08_the_first_piece_is_never_bos():
    vlm, _ = random_model(READ)
    bos = vlm.tokenizer.bos_token_id
    assert vlm.to_tokens("red cat")[0, 0] == bos
    assert mv.first_pieces(vlm, "red cat") == (vlm.to_single_token("red"),)
    both = sorted(map(vlm.to_single_token, ("USER", "red")))
    assert sorted(mv.first_pieces(vlm, "red") + mv.first_pieces(vlm, "USER")) == both
    with pytest.raises(TokenError, match="begins with no token"):
        mv.first_pieces(vlm, "elephant")
    with pytest.raises(TokenError, match="begins with no token"):
        mv.first_pieces(vlm, " ")


def test_a_run_is_read_as_its_prompt_is(tiny_vlm, tiny_prompt):
    run = mv.base_run(tiny_vlm, tiny_prompt)
    ours, theirs = (mv.logit_lens(tiny_vlm, x, topk=2) for x in (run, tiny_prompt))
    np.testing.assert_array_equal(ours["token_id"], theirs["token_id"])
    kept = mv.record(tiny_vlm, tiny_prompt, ["resid_pre", "resid_post"])
    third = mv.logit_lens(tiny_vlm, kept, topk=2, layers=[4, 1])
    np.testing.assert_array_equal(third["token_id"], theirs["token_id"][[4, 1]])
    some = mv.logit_lens(tiny_vlm, tiny_prompt, topk=2, layers=[1])
    np.testing.assert_array_equal(some["token_id"], theirs["token_id"][[1]])
    few = mv.record(tiny_vlm, tiny_prompt, ["z"])
    with pytest.raises(mv.RunError, match=r"has no blocks\.0\.hook_resid_pre"):
        mv.logit_lens(tiny_vlm, few)
    other = mv.HookedVLM(*tiny.build(READ, seed=5))
    with pytest.raises(mv.EngineError, match="another model"):
        mv.logit_lens(other, run)


def test_logits_never_exist_for_all_layers_and_positions(
    tiny_vlm, tiny_prompt, monkeypatch
):
    """The head is called on as many rows as the budget holds, and on each row once."""
    whole = mv.logit_lens(tiny_vlm, tiny_prompt)
    rows_at_once = 7
    monkeypatch.setattr(
        reading, "CHUNK_BYTES", rows_at_once * 4 * tiny_vlm.cfg.d_vocab + 3
    )
    seen, head = [], tiny_vlm.hf_model.lm_head
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    parts = mv.logit_lens(tiny_vlm, tiny_prompt)
    mv.answer_track(tiny_vlm, tiny_prompt, {"red": "red"})
    handle.remove()
    assert max(seen) == rows_at_once
    assert sum(seen) == 5 * 16 + 5
    np.testing.assert_array_equal(parts["token_id"], whole["token_id"])
    np.testing.assert_allclose(parts["probability"], whole["probability"], rtol=1e-5)
    # And what the budget is for: LLaVA-1.5's image, in 32-bit logits.
    assert reading.CHUNK_BYTES < 33 * 576 * 32_064 * 4


def test_results_survive_a_file(tiny_vlm, tiny_prompt, tmp_path):
    lens = mv.logit_lens(tiny_vlm, tiny_prompt, topk=3)
    rate = mv.object_hit_rate(lens, ["red"])
    track = mv.answer_track(tiny_vlm, tiny_prompt, {"a": "red", "b": "blue"})
    item = mv.Item(tiny.picture(), "what", objects={"cat": (4, 0, 20, 16)})
    table = mv.object_lens(tiny_vlm, [item])
    for i, result in enumerate((lens, rate, track, table)):
        kept = mv.save_result(result, tmp_path / f"{i}.nc")
        assert mv.open_result(kept).identical(result)
        assert mv.cite(result)
    assert set(lens["group"].values) == {"image"}


def test_strict_words_are_whole_tokens_and_ids_are_lenient(tiny_vlm, tiny_prompt):
    lens = mv.logit_lens(tiny_vlm, tiny_prompt, topk=5)
    word = str(lens["word"].values[2, 0, 1])
    at = mv.Positions.of(int(lens["position"][0]))
    for topk, wanted in ((1, 0), (2, 1)):
        rate = mv.object_hit_rate(lens, [f" {word.upper()} "], at, topk=topk)
        assert rate.values[2] == wanted
        ids = [int(lens["token_id"].values[2, 0, 1])]
        by_id = mv.object_hit_rate(lens, ids, at, topk=topk)
        assert by_id.values[2] == wanted
    part = word[:-1]
    if part:
        assert mv.object_hit_rate(lens, [part], at, topk=2).values[2] == 0


def test_what_cannot_be_read_is_refused(tiny_vlm, tiny_prompt, untouched):
    lens = mv.logit_lens(tiny_vlm, tiny_prompt, topk=1)
    with pytest.raises(TokenError, match="have several parts"):
        mv.object_hit_rate(lens, ["traffic light"])
    with pytest.raises(MetricError, match="no word is given"):
        mv.object_hit_rate(lens, [])
    with pytest.raises(MetricError, match="topk=2: this lens kept 1 words"):
        mv.object_hit_rate(lens, ["red"], topk=2)
    with pytest.raises(PromptError, match=r"asked at positions 3\.\.18, and"):
        mv.object_hit_rate(lens, ["red"], mv.Positions.of(2, 3))
    with pytest.raises(LayoutError, match="at='system': no such position"):
        mv.logit_lens(tiny_vlm, tiny_prompt, at="system")
    with pytest.raises(LayoutError, match="no such position"):
        mv.logit_lens(tiny_vlm, tiny_prompt, at=mv.Positions.of(23))
    with pytest.raises(LayoutError, match="no such position"):
        mv.logit_lens(tiny_vlm, tiny_vlm.prompt("what color"))
    with pytest.raises(LayerError, match=r"layers \[5\]"):
        mv.logit_lens(tiny_vlm, tiny_prompt, layers=[0, 5])
    with pytest.raises(MetricError, match="topk=0"):
        mv.logit_lens(tiny_vlm, tiny_prompt, topk=0)
    with pytest.raises(MetricError, match="no answer is given"):
        mv.answer_track(tiny_vlm, tiny_prompt, {})
    with pytest.raises(TokenError, match="outside the vocabulary"):
        mv.answer_track(tiny_vlm, tiny_prompt, {"x": 64})
    with pytest.raises(PromptError, match="needs objects to look for"):
        mv.object_lens(tiny_vlm, [mv.Item(tiny.picture(), "what")])
