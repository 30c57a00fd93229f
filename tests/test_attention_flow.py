"""Attention by group, over the picture and through the layers, against eager passes."""

import weakref
from functools import cache

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm import Positions
from mechvlm.errors import MetricError, PairError
from mechvlm.models import planted
from mechvlm.models.planted import CIRCUITS, EXPECTED, TOLERANCE, scene

GQA = tiny.Kind("llama", 2, "clip")
GEMMA3 = tiny.GEMMA_KINDS[1]
KINDS = (GQA, tiny.Kind("mistral", 2, "clip"), tiny.GEMMA_KINDS[0], GEMMA3)
QUESTION = "what color is the cat ?"


@cache
def hooked(circuit):
    return mv.HookedVLM(*planted.build(circuit))


def ask(vlm, content=0):
    return vlm.prompt(planted.QUESTION, scene(content), system=planted.SYSTEM)


def red(picture):
    return np.array(picture)[:, :, 0] > 0


@cache
def random_model(kind):
    vlm = mv.HookedVLM(*tiny.build(kind))
    return vlm, tiny.ask(vlm, QUESTION)


def eager(vlm, prompt):
    """Oracle: what plain Hugging Face returns, [layer head target source]."""
    model = vlm.hf_model
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model(**prompt.inputs, output_attentions=True)
    finally:
        model.set_attn_implementation(before)
    return torch.cat(out.attentions).numpy()


# --- planted circuits -----------------------------------------------------------------


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_the_last_position_reads_what_the_circuit_reads(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    found = mv.attention_fraction(vlm, ask(vlm))
    groups = ["bos", "system", "image", "query", "template"]
    assert found["group"].values.tolist() == groups
    for layer, reads in enumerate(truth.reads):
        at = found.isel(layer=layer, row=0)
        wanted = [float(group == reads) for group in groups]
        assert at["fraction"].values == pytest.approx(wanted, abs=TOLERANCE)
        assert at["by_head"].values == pytest.approx(
            np.array([wanted] * 2), abs=TOLERANCE
        )
        sizes = [1, 1, 16, 2, 1]
        assert at["n_sources"].values.tolist() == sizes
        each = [share / size for share, size in zip(wanted, sizes, strict=True)]
        assert at["per_token"].values == pytest.approx(each, abs=TOLERANCE)


@pytest.mark.parametrize("circuit", CIRCUITS)
def test_attention_lies_on_the_object_where_the_circuit_reads_it(circuit):
    vlm, truth = hooked(circuit), EXPECTED[circuit]
    prompt, (reader, layer) = ask(vlm), EXPECTED[circuit].locates
    rows = Positions.of(next(iter(prompt.layout[reader])))
    maps = mv.attention_map(vlm, prompt, rows=rows)
    wanted = np.zeros(16)
    wanted[list(planted.OBJECT_CELLS)] = 1 / 3
    at = maps.sel(layer=layer, row=rows.indices[0])
    assert at.values == pytest.approx(wanted.reshape(4, 4), abs=TOLERANCE)
    assert at["position"].values.ravel().tolist() == list(prompt.layout["image"])
    found = mv.localization(maps, red(prompt.image))
    here = found.sel(layer=layer).isel(row=0)
    for name in ("hit", "near", "mass", "iou", "image_mass"):
        assert float(here[name]) == pytest.approx(1, abs=TOLERANCE), name
    assert found.attrs["chance"] == 3 / 16
    assert found.attrs["n_cells"] == 3
    elsewhere = {i for i, group in enumerate(truth.reads) if group != "image"}
    if reader == "last":
        assert found["image_mass"].values[list(elsewhere), 0].max() < TOLERANCE


@pytest.mark.parametrize(
    ("circuit", "on_object"),
    [
        # Half of each layer's stream is its own, half of what it read; sinks read BOS.
        ("relay", (0, 0, 1 / 8)),
        ("direct", (0, 1 / 4, 1 / 8)),
        ("enrich", (0, 1 / 4, 1 / 8)),
        ("too_late", (1 / 2, 1 / 4, 1 / 8)),
    ],
)
def test_rollout_is_the_product_of_half_attention_half_identity(circuit, on_object):
    vlm = hooked(circuit)
    prompt = ask(vlm)
    found = mv.attention_rollout(vlm, prompt)
    at = list(prompt.layout.region(red(prompt.image)))
    for layer, share in enumerate(on_object):
        row = found["rollout"].sel(layer=layer).isel(row=0)
        each = row.sel(source=at).values
        assert each == pytest.approx([share / 3] * 3, abs=TOLERANCE)
        assert float(row.sum()) == pytest.approx(1, abs=1e-5)
        over = found["map"].sel(layer=layer).isel(row=0).values.ravel()
        assert over[list(planted.OBJECT_CELLS)] == pytest.approx(each, abs=1e-6)
        own = float(row.sel(source=prompt.layout.last))
        assert own == pytest.approx(0.5 ** (layer + 1), abs=TOLERANCE)
    assert mv.cite(found).startswith("Abnar")


@pytest.mark.parametrize("circuit", ["direct", "enrich"])
def test_objects_are_found_while_they_are_named_each_by_itself(circuit):
    vlm = hooked(circuit)
    items = [
        mv.Item(
            scene(content, cells=cells),
            "",
            objects={planted.ANSWERS[content]: red(scene(content, cells=cells))} | more,
            id=str(content),
        )
        for content, cells, more in (
            (0, (5, 6, 9), {"nothing": (0, 0, 14, 14)}),
            (1, (0, 1), {}),
        )
    ]
    reading = mv.readings.generative(planted.QUESTION, max_new_tokens=3)
    found = mv.localization_accuracy(vlm, items, reading=reading, objects="named")
    assert found["object"].values.tolist() == ["0: zero", "1: one"]
    assert found.attrs["n_named"] == 2
    assert found.attrs["n_all"] == 3
    assert found["hit"].sel(layer=1).values.tolist() == [1, 1]
    assert found["mass"].sel(layer=1).values == pytest.approx([1, 1], abs=TOLERANCE)
    other = found["other"].sel(layer=1).values
    assert other[0] == 0
    assert np.isnan(other[1])
    assert found["chance"].values.tolist() == [3 / 16, 2 / 16]
    assert float(found["accuracy"].sel(layer=1)) == 1
    assert float(found["accuracy_low"].sel(layer=1)) == pytest.approx(0.342, abs=1e-3)
    over = float(found["over_chance"].sel(layer=1))
    assert over == pytest.approx(1 - (3 / 16 + 2 / 16) / 2)
    # The first word is chosen from the prompt's last row, which still reads the image.
    with pytest.raises(MetricError, match=r"2 are named .* none is lost"):
        mv.localization_accuracy(vlm, items, reading=reading)


# --- real architectures ---------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS, ids=repr)
def test_trap_14_and_15_heads_are_query_heads_and_equal_those_of_eager_passes(kind):
    """SDPA returns no attention: the model stays what it was and is read all the same.

    Fractions, maps and rollout, each from the oracle's own patterns.
    """
    vlm, prompt = random_model(kind)
    before = vlm.hf_model.config.text_config._attn_implementation
    truth, layout = eager(vlm, prompt), prompt.layout
    assert truth.shape[1] == vlm.cfg.n_heads
    rows = Positions.of(4, layout.last)
    found = mv.attention_fraction(vlm, prompt, rows=rows)
    for group in found["group"].values:
        wanted = truth[:, :, list(rows)][..., list(layout[group])].sum(axis=-1)
        ours = found["by_head"].sel(group=group).values
        np.testing.assert_allclose(ours, wanted, atol=1e-5)
        mean = found["fraction"].sel(group=group).values
        np.testing.assert_allclose(mean, wanted.mean(axis=1), atol=1e-5)
        spread = found["head_std"].sel(group=group).values
        np.testing.assert_allclose(spread, wanted.std(axis=1), atol=1e-5)
    np.testing.assert_allclose(found["fraction"].sum("group"), 1, atol=1e-5)
    reads = vlm.reads(prompt)[:, list(rows)].numpy()
    counts = reads[..., list(layout["image"])].sum(axis=-1)
    assert found["n_sources"].sel(group="image").values.tolist() == counts.tolist()
    for reduce, by in (("mean", np.mean), ("max", np.max)):
        maps = mv.attention_map(
            vlm, prompt, rows=rows, layers=[3, 1], head_reduce=reduce
        )
        image = truth[[3, 1]][:, :, list(rows)][..., list(layout["image"])]
        flat = maps.values.reshape(2, 2, -1)
        np.testing.assert_allclose(flat, by(image, axis=1), atol=1e-5)
    joint = np.eye(layout.n)
    rollout = mv.attention_rollout(vlm, prompt, rows=rows)["rollout"]
    for layer in range(4):
        joint = (truth[layer].mean(axis=0) + np.eye(layout.n)) / 2 @ joint
        np.testing.assert_allclose(rollout[layer], joint[list(rows)], atol=1e-5)
    assert vlm.hf_model.config.text_config._attn_implementation == before


def generated_by_hand(vlm, prompt, n_new):
    """Oracle: Hugging Face's own eager generate; each step's last row, and its ids."""
    model = vlm.hf_model
    before = model.config.text_config._attn_implementation
    model.set_attn_implementation("eager")
    try:
        with torch.no_grad():
            out = model.generate(
                **prompt.inputs,
                max_new_tokens=n_new,
                do_sample=False,
                pad_token_id=0,
                output_attentions=True,
                return_dict_in_generate=True,
            )
    finally:
        model.set_attn_implementation(before)
    rows = [[layer[0, :, -1].numpy() for layer in step] for step in out.attentions]
    return out.sequences[0, prompt.layout.n :], rows


@pytest.mark.parametrize("kind", [GQA, GEMMA3], ids=repr)
def test_trap_04_kv_cache_rows_are_absolute(kind):
    """One pass over all tokens reads what each step of cached generation read."""
    vlm, prompt = random_model(kind)
    ids, steps = generated_by_hand(vlm, prompt, 5)
    made = vlm.generate(prompt, max_new_tokens=5)
    assert made.ids.tolist() == ids.tolist()
    found = mv.attention_fraction(
        vlm, prompt, generation=made, groups="paper", rows="generated"
    )
    n = prompt.layout.n
    assert found["row"].values.tolist() == [n - 1 + t for t in range(len(ids))]
    groups = {
        "image": list(prompt.layout["image"]),
        "text": list(prompt.layout["prompt_text"]),
    }
    for t, layers in enumerate(steps):
        for layer, heads in enumerate(layers):
            if heads.shape[1] < n + t:  # a window's cache holds no older keys
                continue
            sums = [heads[:, at].sum(axis=1).mean() for at in groups.values()]
            sums.append(heads[:, n:].sum(axis=1).mean())
            ours = found["fraction"].isel(layer=layer, row=t).values
            np.testing.assert_allclose(ours, sums, atol=1e-5)
    maps = mv.attention_map(vlm, prompt, generation=made, rows="generated")
    np.testing.assert_allclose(
        maps.values.reshape(*maps.shape[:2], -1).sum(-1),
        found["fraction"].sel(group="image"),
        atol=1e-5,
    )


def test_trap_05_the_first_generated_token_is_chosen_from_the_last_prompt_row():
    vlm, prompt = random_model(GQA)
    made = vlm.generate(prompt, max_new_tokens=4)
    both = mv.attention_fraction(
        vlm, prompt, generation=made, groups="paper", rows="generated"
    )
    alone = mv.attention_fraction(vlm, prompt, groups="paper", rows="last")
    np.testing.assert_allclose(
        both["fraction"].isel(row=0), alone["fraction"].isel(row=0), atol=1e-6
    )
    assert float(both["fraction"].isel(row=0).sel(group="generated").max()) == 0
    assert np.isnan(both["per_token"].isel(row=0).sel(group="generated")).all()
    assert both["n_sources"].sel(group="generated").values[0].tolist() == [0, 1, 2, 3]
    assert both["next_token"].values.tolist() == vlm.to_str_tokens(made.ids)
    assert both["row_group"].values.tolist() == ["template"] + ["generated"] * 3


def test_trap_07_padding_is_no_group_and_moves_rows():
    vlm, prompt = random_model(GQA)
    padded = prompt.left_padded(3, 0)
    plain, moved = (mv.attention_fraction(vlm, each) for each in (prompt, padded))
    assert moved["group"].values.tolist() == plain["group"].values.tolist()
    assert int(moved["row"][0]) == int(plain["row"][0]) + 3
    np.testing.assert_allclose(moved["fraction"], plain["fraction"], atol=1e-5)
    maps = [mv.attention_map(vlm, each).values for each in (prompt, padded)]
    np.testing.assert_allclose(*maps, atol=1e-5)


def test_trap_08_the_sink_is_a_group_of_its_own_and_can_be_left_out():
    vlm, prompt = random_model(GQA)
    whole = mv.attention_fraction(vlm, prompt)
    paper = mv.attention_fraction(vlm, prompt, groups="paper")
    without = mv.attention_fraction(vlm, prompt, groups="paper", exclude=("bos",))
    parts = whole["fraction"].sel(group=["bos", "query", "template"]).sum("group")
    np.testing.assert_allclose(paper["fraction"].sel(group="text"), parts, atol=1e-6)
    kept = 1 - whole["fraction"].sel(group="bos")
    np.testing.assert_allclose(without["kept"], kept, atol=1e-6)
    np.testing.assert_allclose(without["fraction"].sum("group"), 1, atol=1e-5)
    np.testing.assert_allclose(
        without["fraction"].sel(group="image"),
        whole["fraction"].sel(group="image") / kept,
        atol=1e-5,
    )
    np.testing.assert_allclose(
        without["by_head"].mean("head"),
        without["fraction"].transpose("layer", "row", "group"),
        atol=1e-5,
    )
    assert without.attrs["excluded"] == ["bos"]
    assert float(kept.max()) < 1
    np.testing.assert_allclose(whole["kept"], 1, atol=1e-5)


def test_trap_20_layers_are_told_apart_from_streams():
    vlm, prompt = random_model(GQA)
    for result in (
        mv.attention_fraction(vlm, prompt),
        mv.attention_map(vlm, prompt),
        mv.attention_rollout(vlm, prompt),
    ):
        assert result["layer"].values.tolist() == [0, 1, 2, 3]
        assert "layer l" in result.attrs["layer_convention"]


def test_no_two_layers_patterns_are_there_at_once(tiny_vlm, tiny_prompt):
    """Each layer's pattern is gone before the next but one is made."""
    alive, most = [], []

    def watch(pattern, hook):
        alive.append(weakref.ref(pattern))
        most.append(sum(each() is not None for each in alive))

    hooks = [
        (f"blocks.{i}.attn.hook_pattern", watch) for i in range(tiny_vlm.cfg.n_layers)
    ]
    with tiny_vlm.hooks(fwd_hooks=hooks):
        mv.attention_fraction(tiny_vlm, tiny_prompt)
        mv.attention_map(tiny_vlm, tiny_prompt)
        mv.attention_rollout(tiny_vlm, tiny_prompt)
    assert len(most) == 3 * tiny_vlm.cfg.n_layers
    assert max(most) <= 2


# --- groups ---------------------------------------------------------------------------


def test_groups_of_ones_own_leave_the_rest_as_other(tiny_vlm, tiny_prompt):
    layout = tiny_prompt.layout
    half = Positions.of(range(3, 11))
    found = mv.attention_fraction(
        tiny_vlm,
        tiny_prompt,
        groups={"upper": half, "lower": layout["image"] - half, "asked": "query"},
    )
    assert found["group"].values.tolist() == ["upper", "lower", "asked", "other"]
    np.testing.assert_allclose(found["fraction"].sum("group"), 1, atol=1e-5)
    plain = mv.attention_fraction(tiny_vlm, tiny_prompt)
    both = found["fraction"].sel(group=["upper", "lower"]).sum("group")
    np.testing.assert_allclose(both, plain["fraction"].sel(group="image"), atol=1e-6)


def test_fractions_of_many_prompts_are_pooled_over_rows_and_over_prompts(tiny_vlm):
    found = []
    for seed, n_new in ((0, 1), (1, 3)):
        prompt = tiny_vlm.prompt(QUESTION[: -2 * seed or None], tiny.picture(seed))
        made = tiny_vlm.generate(prompt, max_new_tokens=n_new)
        assert len(made.ids) == n_new
        one = mv.attention_fraction(
            tiny_vlm, prompt, generation=made, groups="paper", rows="generated"
        )
        found.append(one)
    pool = mv.pool_fractions(found)
    assert (pool.attrs["n_prompts"], pool.attrs["n_pairs"]) == (2, 4)
    image = [each["fraction"].sel(group="image").values for each in found]
    every = np.concatenate(image, axis=1)
    at = pool.sel(group="image")
    np.testing.assert_allclose(at["mean"], every.mean(axis=1), atol=1e-6)
    np.testing.assert_allclose(at["std"], every.std(axis=1), atol=1e-6)
    once = np.mean([each.mean(axis=1) for each in image], axis=0)
    np.testing.assert_allclose(at["prompt_mean"], once, atol=1e-6)
    often = mv.pool_fractions(found * 3).sel(group="image")
    assert (often["prompt_mean_low"] < often["prompt_mean"]).all()
    assert (often["prompt_mean"] < often["prompt_mean_high"]).all()
    other = mv.attention_fraction(tiny_vlm, prompt)
    with pytest.raises(PairError, match="of 2 kinds"):
        mv.pool_fractions([found[0], other])
    with pytest.raises(PairError, match="0 fractions"):
        mv.pool_fractions([])
