"""Caption knockouts are Hugging Face's own eager passes with a mask made by hand.

The oracle runs the whole sequence again for every token, without a cache, and edits
the additive mask that each layer is called with. It shares no code with the sweep.
"""

import json

import numpy as np
import pytest
import tiny
import torch

import mechvlm as mv
from mechvlm.errors import MechVLMWarning
from mechvlm.judges import ObjectListJudge, Verdict

FLOWS = ("image->generated", "image->last+generated", "image->prompt_text")
FLOWS += ("image->both",)

NEW = 6


def speaking(kind, seed=0):
    """A random model that neither ends early nor says `<image>`; two prompts."""
    vlm = mv.HookedVLM(*tiny.build(kind, seed=seed))
    vlm.hf_model.lm_head.weight.data[vlm.hf_model.config.image_token_id] = 0
    for config in (vlm.hf_model.generation_config, vlm.hf_model.config.text_config):
        config.eos_token_id = None
    asked = [
        tiny.ask(vlm, "what color"),
        tiny.ask(vlm, "see the red dog", tiny.picture(2)),
    ]
    return vlm, asked


def by_hand(vlm, prompt, cut_rows, layers):
    """Greedy tokens by whole eager passes with an additive mask edited in each step.

    `cut_rows(n_prompt, row)` says whether an absolute row stops reading the image.
    """
    model, n = vlm.hf_model, prompt.layout.n
    image = torch.nonzero(prompt.ids[0] == model.config.image_token_id).flatten()
    low = torch.finfo(torch.float32).min

    def blinding(module, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        rows = [row for row in range(mask.shape[-2]) if cut_rows(n, row)]
        for row in rows:
            mask[..., row, image] = low
        return args, {**kwargs, "attention_mask": mask}

    decoder = model.get_submodule(vlm.family.language_model).layers
    handles = [
        decoder[layer].self_attn.register_forward_pre_hook(blinding, with_kwargs=True)
        for layer in layers
    ]
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    inputs, ids = dict(prompt.inputs), []
    try:
        for _ in range(NEW):
            logits = model(**inputs, use_cache=False).logits[0, -1]
            ids.append(int(logits.argmax()))
            new = torch.tensor([[ids[-1]]])
            inputs["input_ids"] = torch.cat([inputs["input_ids"], new], 1)
            for name in ("attention_mask", "token_type_ids"):
                if name in inputs:
                    more = torch.full_like(new, int(name == "attention_mask"))
                    inputs[name] = torch.cat([inputs[name], more], 1)
    finally:
        model.set_attn_implementation(before)
        for handle in handles:
            handle.remove()
    return ids


class Spy:
    """A judge that finds the same one object everywhere."""

    name = "spy"

    def compare(self, candidate, *, reference):
        return Verdict(("x",), ("x",), (("x", "x"),))


ROWS = {
    "image->generated": lambda image: lambda n, row: row >= n,
    "image->last+generated": lambda image: lambda n, row: row >= n - 1,
    "image->prompt_text": lambda image: lambda n, row: row < n and row not in image,
    "image->both": lambda image: lambda n, row: row not in image,
}


def kept_generations(vlm, monkeypatch):
    """What `generate_many` returned, call by call."""
    made, original = [], vlm.generate_many

    def listening(*args, **kwargs):
        # The table keeps no logits but the first; what is tested here needs them all.
        made.append(original(*args, **kwargs | {"logits": "all"}))
        return made[-1]

    monkeypatch.setattr(vlm, "generate_many", listening)
    return made


@pytest.mark.parametrize("kind", [tiny.KINDS[1], tiny.GEMMA_KINDS[1]], ids=str)
@torch.no_grad()
def test_trap_04_cached_arms_are_whole_passes_with_the_mask_of_every_step(
    kind, monkeypatch
):
    """Rows are absolute: GQA, and windows with an image that reads itself both ways."""
    vlm, asked = speaking(kind)
    made = kept_generations(vlm, monkeypatch)
    found = mv.caption_knockout(
        vlm,
        asked,
        judge=Spy(),
        flows=FLOWS,
        start_layers=[0, 2],
        bands={"middle": range(1, 3)},
        n_random=0,
        max_new_tokens=NEW,
        progress=False,
    )
    cuts = {"from 0": range(4), "from 2": (2, 3), "in middle": (1, 2)}
    cuts["not in middle"] = (0, 3)
    assert found["cut"].values.tolist() == ["nothing", *cuts]
    moved = dict.fromkeys(FLOWS, 0)
    for i, prompt in enumerate(asked):
        image = set(prompt.layout["image"])
        clean = by_hand(vlm, prompt, lambda n, row: False, ())
        assert made[i][0].ids.tolist() == made[i][1].ids.tolist() == clean
        arms = iter(made[i][2:])
        for flow in FLOWS:
            assert found["text"].sel(prompt=i, flow=flow, cut="nothing") == (
                vlm.tokenizer.decode(clean, skip_special_tokens=True).strip()
            )
            for name, layers in cuts.items():
                wanted = by_hand(vlm, prompt, ROWS[flow](image), layers)
                arm = found.sel(prompt=i, flow=flow, cut=name)
                assert next(arms).ids.tolist() == wanted, (flow, name)
                text = vlm.tokenizer.decode(wanted, skip_special_tokens=True).strip()
                assert (str(arm["text"].values), int(arm["n_tokens"])) == (text, NEW)
                moved[flow] += wanted != clean
    assert min(moved.values()) > 0, "a flow that moved no token shows nothing"


SHORT = {"judge": Spy(), "start_layers": [0], "max_new_tokens": NEW, "progress": False}


@pytest.fixture(scope="module")
def spoken():
    return speaking(tiny.KINDS[1])


@pytest.mark.parametrize("seed", range(3))
def test_trap_05_the_first_token_is_chosen_by_the_prompts_last_row(seed, monkeypatch):
    """It cannot change by what generated rows read, and can by what the last one does.

    The logits that it was chosen from tell more than the token itself.
    """
    vlm, asked = speaking(tiny.KINDS[1], seed)
    made = kept_generations(vlm, monkeypatch)
    mv.caption_knockout(vlm, asked, flows=FLOWS, **SHORT)
    for clean, _, *arms in made:
        change = {
            flow: float((arm.logits[0] - clean.logits[0]).abs().max())
            for flow, arm in zip(FLOWS, arms, strict=True)
        }
        assert change.pop("image->generated") == 0
        assert min(change.values()) > 1e-3
        later = float((arms[0].logits[1] - clean.logits[1]).abs().max())
        assert arms[0].ids[0] == clean.ids[0]
        assert later > 1e-3, "the second token's row was not cut"


@torch.no_grad()
def test_trap_06_what_the_prompt_keeps_is_what_it_was_cut_to(spoken, monkeypatch):
    """A prefill cut lives on in the cache; a cut of new rows leaves the prompt alone.

    Both at once say what neither says: each has its own part.
    """
    vlm, asked = spoken
    made = kept_generations(vlm, monkeypatch)
    mv.caption_knockout(vlm, asked[:1], flows=FLOWS, **SHORT)
    prompt, (clean, _, new, _, text, both) = asked[0], made[0]
    n, image = prompt.layout.n, set(prompt.layout["image"])
    said = prompt.extended(clean.ids[:1], ("",))
    keys = [f"blocks.{layer}.attn.hook_k" for layer in range(4)]

    def of_prompt(rows):
        cut = mv.Knockout(range(4), mv.Positions.of(rows), prompt.layout["image"])
        run = []
        point = [(name, lambda x, hook: run.append(x[0, :n].clone())) for name in keys]
        with vlm.hooks(fwd_hooks=point):
            mv.reference.intervene(vlm, said, [cut])
        return torch.stack(run)

    plain = torch.stack(
        [mv.record(vlm, prompt, keys)[mv.Site("k", i)] for i in range(4)]
    )
    kept = of_prompt([row for row in range(n) if row not in image])
    torch.testing.assert_close(of_prompt([n]), plain, rtol=0, atol=1e-5)
    assert (kept[1:] - plain[1:]).abs().max() > 1e-3
    first = [each.logits[0] for each in (clean, new, text, both)]
    assert torch.equal(first[0], first[1])
    torch.testing.assert_close(first[2], first[3], rtol=0, atol=1e-5)
    assert (text.logits[1] - both.logits[1]).abs().max() > 1e-3


def test_trap_02_no_row_is_left_with_nothing_to_read(spoken):
    """A prompt that is nothing but its image has no text to cut, and says so."""
    vlm, _ = spoken
    bare = vlm.prompt_raw("<image>", tiny.picture())
    found = mv.caption_knockout(vlm, [bare], flows=FLOWS[:2], **SHORT)
    assert found["text"].shape == (1, 2, 2)
    with pytest.warns(MechVLMWarning, match="cuts only pairs that the attention mask"):
        mv.caption_knockout(vlm, [bare], flows=[FLOWS[2]], **SHORT)


def test_trap_09_a_model_that_says_the_image_token_goes_on_talking(monkeypatch):
    """One placeholder became 16 positions; a seventeenth, said, is a word like any."""
    vlm, (prompt, _) = speaking(tiny.KINDS[1])
    image = vlm.hf_model.config.image_token_id
    assert int((prompt.ids == image).sum()) == len(prompt.layout["image"]) == 16
    seen = []
    head = vlm.hf_model.lm_head
    handle = head.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    vlm(prompt)
    handle.remove()
    head.weight.data[image] = 10 * seen[0][0, -1].detach()
    made = kept_generations(vlm, monkeypatch)
    found = mv.caption_knockout(vlm, [prompt], flows=["image->generated"], **SHORT)
    assert int(made[0][0].ids[0]) == image
    assert "<image>" not in str(found["text"].values)
    assert found["n_tokens"].values.tolist() == [[[NEW, NEW]]]
    assert made[0][0].layout["image"] == prompt.layout["image"]


def test_trap_19_nothing_is_cut_in_the_first_arm_of_every_flow(spoken):
    """The no-op is in the table, and every change is told beside it, paired, with n."""
    vlm, asked = spoken[0], spoken[1] * 3  # six: fewer have no interval
    judge = ObjectListJudge(tiny.WORDS[6:])
    found = mv.caption_knockout(vlm, asked, flows=FLOWS, **SHORT | {"judge": judge})
    still = found.sel(cut="nothing")
    assert found["cut"].values[0] == "nothing"
    assert still["f1"].values.tolist() == [[1.0] * 4] * 6
    assert still["identical"].values.all()
    assert still["change"].values.tolist() == [0.0] * 4
    assert found["n"].sel(measure="f1").values.tolist() == [[6.0, 6.0]] * 4
    by_hand = (found["f1"] - still["f1"]).mean("prompt")
    np.testing.assert_allclose(found["change"].values, by_hand.values)
    assert found["change_n"].values.tolist() == [[6.0, 6.0]] * 4
    low, mean, high = (
        found[name].sel(measure="f1") for name in ("low", "mean", "high")
    )
    assert bool(((low <= mean) & (mean <= high)).all())


def test_bands_have_random_layers_of_their_number_beside_them(spoken):
    vlm, asked = spoken
    found = mv.caption_knockout(
        vlm,
        asked[:1],
        flows=["image->both"],
        bands={"early": range(2), "late": range(2, 4)},
        n_random=2,
        **SHORT | {"start_layers": []},
    )
    names = [
        f"{way} {band}{more}"
        for band in ("early", "late")
        for more in ("", ", random 0", ", random 1")
        for way in ("in", "not in")
    ]
    assert found["cut"].values.tolist() == ["nothing", *names]
    layers = dict(zip(names, map(json.loads, found["layers"].values[1:]), strict=True))
    for band, own in (("early", [0, 1]), ("late", [2, 3])):
        for more in ("", ", random 0", ", random 1"):
            inside, outside = layers[f"in {band}{more}"], layers[f"not in {band}{more}"]
            assert sorted(inside + outside) == [0, 1, 2, 3]
            assert (inside == own) == (more == "")
    assert found["n_layers"].values.tolist() == [0, *[2] * 12]
    assert found["start"].values.tolist() == [4, *[-1] * 12]


def test_starts_are_spread_over_the_layers_unless_said(spoken):
    vlm, asked = spoken
    found = mv.caption_knockout(
        vlm, asked[:1], flows=["image->both"], **SHORT | {"start_layers": None}
    )
    assert found["start"].values.tolist() == [4, 0, 1, 2, 3]


def test_only_the_first_logits_of_an_arm_are_kept(spoken, monkeypatch):
    """All arms' logits of all steps would be gigabytes at 300 tokens."""
    vlm, asked = spoken
    kept, original = [], vlm.generate_many

    def listening(*args, **kwargs):
        kept.extend(original(*args, **kwargs))
        return kept

    monkeypatch.setattr(vlm, "generate_many", listening)
    mv.caption_knockout(vlm, asked[:1], flows=FLOWS, **SHORT)
    assert len(kept) == 6
    assert {(len(each.logits), len(each.ids)) for each in kept} == {(1, NEW)}


def test_a_base_run_is_as_good_as_its_prompt(spoken):
    vlm, asked = spoken
    ways = [asked, [mv.base_run(vlm, prompt) for prompt in asked]]
    one, other = (mv.caption_knockout(vlm, way, flows=FLOWS, **SHORT) for way in ways)
    assert one.identical(other)
