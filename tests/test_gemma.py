"""The Gemmas: caps on scores and logits, windows, norms behind, image read both ways.

What every kind of model must do is tested in test_hooked.py, for these as well.
"""

from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
import transformers as tf
from PIL import Image
from torch.testing import assert_close

from mechvlm import NOTHING, Knockout, reference
from mechvlm.errors import FamilyError, MissingImageError, PromptError
from mechvlm.models import families
from mechvlm.models.hooked import HookedVLM
from mechvlm.models.load import load

pytestmark = pytest.mark.tl3

LLAVA_2, GEMMA3, PALI, PALI_2 = tiny.GEMMA_KINDS
QUESTION = "what color is the cat ?"
TIGHT = 1e-5

_INSTALLED = tuple(map(int, tf.__version__.split(".")[:2]))
CAPPED = _INSTALLED >= (5, 23)
"""Whether transformers' PaliGemma bounds its logits."""
WINDOWED = _INSTALLED >= (5, 16)
"""Whether an image's positions, too, see but a window in Gemma 3's local layers."""


@pytest.fixture(scope="module", params=tiny.GEMMA_KINDS, ids=str)
def gemma(request):
    """A random model of each kind and a prompt with an image."""
    vlm = HookedVLM(*tiny.build(request.param))
    prompt = tiny.ask(vlm, QUESTION)
    vlm(prompt)
    return vlm, prompt


def model_of(kind):
    return HookedVLM(*tiny.build(kind))


def spelled(prompt):
    """Groups in the order of positions: (group, tokens)."""
    runs = []
    for at, token in enumerate(prompt.tokens):
        group = prompt.layout.group_of(at)
        if runs and runs[-1][0] == group:
            runs[-1][1].append(token)
        else:
            runs.append((group, [token]))
    return [(group, " ".join(tokens)) for group, tokens in runs]


# --- which position is what -----------------------------------------------------------

PATCHES = " ".join(["<image>"] * 16)


def test_gemma3_puts_words_around_the_image():
    vlm = model_of(GEMMA3)
    raw = vlm.prompt_raw("see <boi> the cat", tiny.picture())
    wrapped = [
        ("template", "\n\n <boi>"),
        ("image", PATCHES),
        ("template", "<eoi> \n\n"),
    ]
    assert spelled(raw) == [
        *(("bos", "<s>"), ("query", "see"), *wrapped, ("query", "the cat"))
    ]
    chat = vlm.prompt("the cat", tiny.picture(), system="see", prefix=" a")
    assert spelled(chat) == [
        *(("bos", "<s>"), ("template", "SYSTEM :"), ("system", "see")),
        ("template", "USER : \n\n <boi>"),
        *wrapped[1:],
        *(("query", "the cat"), ("template", "ASSISTANT : a")),
    ]
    assert spelled(vlm.prompt_raw("the cat")) == [("bos", "<s>"), ("query", "the cat")]


def test_paligemma_puts_bos_after_the_image_and_a_line_feed_last():
    vlm = model_of(PALI)
    raw = vlm.prompt_raw("<image> the cat", tiny.picture())
    assert spelled(raw) == [
        *(("image", PATCHES), ("bos", "<s>"), ("query", "the cat"), ("template", "\n"))
    ]
    between = vlm.prompt_raw("see <image> the cat", tiny.picture())
    assert spelled(between)[0] == ("query", "see")
    assert spelled(between)[1:] == spelled(raw)
    assert "labels" not in raw.inputs
    vlm.processor.chat_template = tiny.TEMPLATE
    chat = vlm.prompt("the cat", tiny.picture())
    assert spelled(chat) == [
        *(("template", "USER :"), *spelled(raw)[:3], ("template", "ASSISTANT : \n"))
    ]


def test_what_paligemma_cannot_be_asked_is_refused():
    vlm = model_of(PALI)
    with pytest.raises(MissingImageError, match="'paligemma' are asked about an image"):
        vlm.prompt_raw("the cat")
    with pytest.raises(PromptError, match="no chat template"):
        vlm.prompt("the cat", tiny.picture())
    vlm.processor.chat_template = tiny.TEMPLATE
    with pytest.raises(PromptError, match=r"'\\n' after the whole text, so a prefix"):
        vlm.prompt("the cat", tiny.picture(), prefix="a")


@pytest.mark.parametrize("size", [(80, 40), (40, 80), (32, 32)])
@pytest.mark.parametrize("kind", [GEMMA3, PALI], ids=str)
def test_cells_cover_what_their_positions_see(kind, size):
    """Oracle: a drawn strip through the processor itself, averaged cell by cell."""
    vlm = model_of(kind)
    width, height = size
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 2, : width // 2] = True
    drawn = Image.fromarray(np.repeat(mask[..., None] * np.uint8(255), 3, axis=2))
    prompt = tiny.ask(vlm, "the cat", drawn)
    (grid,) = prompt.layout.grids
    pixels = vlm.processor.image_processor(
        drawn, do_normalize=False, resample=Image.Resampling.BOX
    )["pixel_values"][0]
    seen = np.asarray(pixels)[0].reshape(4, 8, 4, 8).mean(axis=(1, 3))
    np.testing.assert_allclose(grid.coverage(mask), seen, atol=0.02)
    assert grid.rows == grid.cols == 4
    features = vlm.hf_model.get_image_features(prompt.inputs["pixel_values"])
    assert features.pooler_output.shape[1] == len(prompt.layout["image"])


@pytest.mark.parametrize("tokens", [255, 225])
def test_an_uneven_pool_is_refused(tokens):
    """15 tokens a side do not divide 64 patches, and 255 are no square."""
    config = tf.Gemma3Config(mm_tokens_per_image=tokens)
    config.vision_config.image_size, config.vision_config.patch_size = 896, 14
    with pytest.raises(FamilyError, match=f"mm_tokens_per_image={tokens} of 64 x 64"):
        families.find(config).grid_shape(config)


def test_a_processor_that_cuts_the_image_up_is_refused():
    vlm = model_of(GEMMA3)
    vlm.processor.image_processor.do_pan_and_scan = True
    with pytest.raises(FamilyError, match=r"do_pan_and_scan.*moves pixels"):
        vlm.prompt("the cat", tiny.picture())


# --- which position reads which -------------------------------------------------------


def hand_masks(kind, prompt):
    """Per layer, as the papers say it; rows read columns."""
    n = prompt.layout.n
    row, key = np.arange(n)[:, None], np.arange(n)[None]
    causal, near = key <= row, row - key < tiny.WINDOW
    image = np.isin(np.arange(n), list(prompt.layout["image"]))
    both = image[:, None] & image[None]
    if kind == LLAVA_2:
        return [causal & near, causal] * 2
    if kind == GEMMA3:
        local = (causal | both) & near if WINDOWED else (causal & near) | both
        return [local, local, causal | both, local]
    return [np.ones((n, n), dtype=bool)] * 4


@pytest.mark.parametrize("kind", tiny.GEMMA_KINDS, ids=str)
def test_reads_are_the_masks_written_by_hand(kind):
    vlm = model_of(kind)
    prompt = tiny.ask(vlm, QUESTION)
    wanted = torch.from_numpy(np.stack(hand_masks(kind, prompt)))
    assert torch.equal(vlm.reads(prompt), wanted)
    assert prompt.layout.n >= 2 * tiny.WINDOW


@torch.no_grad()
def test_reads_are_what_a_nudge_moves(gemma):
    """Oracle: turn one position of the stream and see which rows a layer moves."""
    vlm, prompt = gemma
    reads = vlm.reads(prompt)

    def leaving(layer, source=None):
        def turn(stream, hook):
            if source is not None:
                stream[0, source] *= -1

        hooks = [
            (f"blocks.{layer}.hook_resid_pre", turn),
            (f"blocks.{layer}.hook_resid_post", lambda x, hook: NOW.update(out=x[0])),
        ]
        vlm.run_with_hooks(prompt, fwd_hooks=hooks)
        return NOW["out"]

    for layer in range(vlm.cfg.n_layers):
        clean = leaving(layer)
        for source in range(0, prompt.layout.n, 3):
            moved = (leaving(layer, source) != clean).any(dim=-1)
            assert torch.equal(moved, reads[layer, :, source]), (layer, source)


NOW = {}
"""What the pass under way has shown so far."""


# --- the same numbers as Hugging Face -------------------------------------------------


def plainly(vlm, prompt, *hooks):
    """Hugging Face alone, eager, with forward hooks of its own kind."""
    layer = vlm.hf_model.model.language_model.layers[1]
    before = vlm.hf_model.config.text_config._attn_implementation
    vlm.hf_model.set_attn_implementation("eager")
    handles = [layer.get_submodule(path).register_forward_hook(h) for path, h in hooks]
    enter = layer.register_forward_pre_hook(lambda m, a: NOW.update(stream=a[0]))
    try:
        return vlm.hf_model(**prompt.inputs, use_cache=False).logits
    finally:
        for handle in (enter, *handles):
            handle.remove()
        vlm.hf_model.set_attn_implementation(before)


def ends(vlm):
    """Modules whose outputs are added to the stream, as the model's paper draws it."""
    sandwich = vlm.hf_model.config.text_config.model_type != "gemma"
    return (
        ("post_attention_layernorm", "post_feedforward_layernorm")
        if sandwich
        else ("self_attn", "mlp")
    )


def first(change):
    """A forward hook that changes an output, be it alone or the first of several."""

    def hook(_, __, output):
        if isinstance(output, tuple):
            return (change(output[0]), *output[1:])
        return change(output)

    return hook


@torch.no_grad()
def test_zeros_in_a_layer_are_zeros_in_plain_hugging_face(gemma):
    vlm, prompt = gemma
    attention, mlp = ends(vlm)
    whole = plainly(vlm, prompt)
    cases = [
        ("hook_attn_out", (attention, first(torch.zeros_like))),
        ("hook_mlp_out", (mlp, first(torch.zeros_like))),
        # An attention that takes away what was there leaves an empty stream.
        ("hook_resid_mid", (attention, first(lambda _: -NOW["stream"]))),
    ]
    for name, hook in cases:
        wanted = plainly(vlm, prompt, hook)
        zero = [(f"blocks.1.{name}", lambda x, hook: torch.zeros_like(x))]
        found = vlm.run_with_hooks(prompt, fwd_hooks=zero)
        assert_close(found, wanted, rtol=0, atol=TIGHT, msg=name)
        assert (wanted - whole).abs().max() > 0.1, name


@pytest.mark.parametrize("kind", tiny.GEMMA_KINDS, ids=str)
def test_a_saved_model_is_loaded_and_passes_its_checks(kind, tmp_path):
    for part in tiny.build(kind):
        part.save_pretrained(tmp_path)
    vlm = load(tmp_path, attn_implementation=tiny.usual_attention(kind))
    kept = model_of(kind)
    assert vlm.hf_model.config.text_config._attn_implementation == (
        tiny.usual_attention(kind)
    )
    ours, theirs = (v(tiny.ask(v, QUESTION)) for v in (vlm, kept))
    assert_close(ours, theirs, rtol=0, atol=TIGHT)


@torch.no_grad()
def test_the_image_counts(gemma):
    vlm, prompt = gemma
    other = tiny.ask(vlm, QUESTION, tiny.picture(7))
    assert (vlm(other) - vlm(prompt)).abs().max() > 1e-2


@torch.no_grad()
def test_the_sum_of_a_layer_is_what_leaves_it(gemma):
    vlm, prompt = gemma
    _, cache = vlm.run_with_cache(prompt)
    at = {name: cache[f"blocks.1.{name}"] for name in PARTS}
    middle = at["hook_resid_pre"] + at["hook_attn_out"]
    assert_close(middle, at["hook_resid_mid"], rtol=0, atol=TIGHT)
    after = at["hook_resid_mid"] + at["hook_mlp_out"]
    assert_close(after, at["hook_resid_post"], rtol=0, atol=TIGHT)
    for norm, stream in (("ln1", "hook_resid_pre"), ("ln2", "hook_resid_mid")):
        hand = at[stream] / (at[stream].pow(2).mean(-1, keepdim=True) + 1e-6).sqrt()
        assert_close(at[f"{norm}.hook_normalized"], hand, rtol=0, atol=TIGHT)
    into = at["ln2.hook_normalized"] * vlm.blocks[1].ln2.w
    assert_close(into @ vlm.W_gate[1], at["mlp.hook_pre"], rtol=0, atol=TIGHT)


@torch.no_grad()
def test_a_norm_that_is_written_scales_in_fp32():
    """One more than a 16-bit weight needs more than 16 bits, and Gemma gives them."""
    vlm = HookedVLM(*tiny.build(PALI)).to(torch.bfloat16)
    prompt = tiny.ask(vlm, QUESTION)
    seen = {}
    mlp = vlm.blocks[1].layer.mlp
    handle = mlp.register_forward_pre_hook(lambda m, a: seen.update(into=a[0]))
    double = [
        ("blocks.1.ln2.hook_normalized", lambda x, hook: seen.update(n=x) or x * 2)
    ]
    vlm.run_with_hooks(prompt, fwd_hooks=double)
    handle.remove()
    scale = 1 + vlm.blocks[1].layer.ln2.weight.float()
    wanted = (2 * seen["n"].float() * scale).to(torch.bfloat16)
    assert torch.equal(seen["into"], wanted)
    assert not torch.equal(2 * seen["n"] * scale.to(torch.bfloat16), wanted)


PARTS = (
    *("hook_resid_pre", "hook_attn_out", "hook_resid_mid", "hook_mlp_out"),
    *("hook_resid_post", "ln1.hook_normalized", "ln2.hook_normalized", "mlp.hook_pre"),
)


@torch.no_grad()
def test_the_cap_on_the_logits_is_the_familys(gemma):
    """Only PaliGemma's forward applies the cap of a Gemma-2 backbone's config."""
    vlm, prompt = gemma
    _, cache = vlm.run_with_cache(prompt, names_filter="ln_final.hook_normalized")
    logits = cache["ln_final.hook_normalized"] * vlm.ln_final.w @ vlm.W_U
    bound = vlm.family.softcap(vlm.hf_model.config)
    if bound is not None:
        assert logits.abs().max() > bound / 2, "the cap does nothing here"
        logits = bound * (logits / bound).tanh()
    assert_close(vlm(prompt), logits, rtol=0, atol=TIGHT)


def test_which_family_caps():
    caps = [
        families.find(config).softcap(config)
        for config in map(tiny.model_config, tiny.GEMMA_KINDS)
    ]
    assert caps == [None, None, None, 2.0 if CAPPED else None]


@torch.no_grad()
def test_a_cut_is_a_cut_in_plain_hugging_face(gemma):
    """Oracle: eager attention whose additive mask is written over by hand."""
    vlm, prompt = gemma
    layout = prompt.layout
    target, source = layout["query"], layout["image"]
    cut = Knockout(range(1, 3), target, source)
    clean, found = reference.intervene(vlm, prompt, [NOTHING, cut])

    def closed(_, args, kwargs):
        mask = kwargs["attention_mask"].clone()
        for row in target:
            mask[..., row, list(source)] = torch.finfo(mask.dtype).min
        return args, kwargs | {"attention_mask": mask}

    handles = [
        layer.self_attn.register_forward_pre_hook(closed, with_kwargs=True)
        for layer in vlm.hf_model.model.language_model.layers[1:3]
    ]
    try:
        wanted = plainly(vlm, prompt)[0, -1]
    finally:
        for handle in handles:
            handle.remove()
    assert_close(found, wanted, rtol=0, atol=TIGHT)
    assert (found - clean).abs().max() > 1e-2


# --- what comes after the prompt ------------------------------------------------------


@torch.no_grad()
def said(vlm, prompt, n):
    """Oracle: what Hugging Face generates, with the logits of every step."""
    out = vlm.hf_model.generate(
        **prompt.inputs,
        do_sample=False,
        max_new_tokens=n,
        output_logits=True,
        return_dict_in_generate=True,
    )
    return out.sequences[0, prompt.layout.n :], torch.cat(out.logits)


def test_generation_is_hugging_faces(gemma):
    vlm, prompt = gemma
    ids, logits = said(vlm, prompt, 8)
    ours = vlm.generate(prompt, max_new_tokens=8)
    assert ours.ids.tolist() == ids.tolist()
    assert len(ids) == 8
    assert_close(ours.logits, logits, rtol=0, atol=TIGHT)


@torch.no_grad()
def test_an_extended_prompt_reads_as_a_cached_decode_does(gemma):
    vlm, prompt = gemma
    ids, logits = said(vlm, prompt, 8)
    longer = prompt.extended(ids[:-1], tuple(vlm.to_str_tokens(ids[:-1])))
    assert_close(vlm(longer)[0, -8:], logits, rtol=0, atol=TIGHT)
    old = prompt.layout.n
    assert torch.equal(vlm.reads(longer)[:, :old, :old], vlm.reads(prompt))
    assert not vlm.reads(longer)[:, :old, old:].any()
    lying = replace(prompt, fills={name: 1 - x for name, x in prompt.fills.items()})
    if lying.fills:
        wrong = vlm(lying.extended(ids[:-1], longer.tokens[old:]))
        assert (wrong[0, -8:] - logits).abs().max() > 1e-3


@torch.no_grad()
def test_padding_on_the_left_changes_no_answer(gemma):
    vlm, prompt = gemma
    padded = prompt.left_padded(3, 0)
    assert_close(vlm(padded)[:, 3:], vlm(prompt), rtol=0, atol=TIGHT)
    assert not vlm.reads(padded)[:, 3:, :3].any()


def test_an_input_that_nobody_can_extend_is_refused(gemma):
    _, prompt = gemma
    odd = replace(prompt, inputs={**prompt.inputs, "odd": prompt.ids})
    with pytest.raises(PromptError, match=r"\['odd'\] are given per position"):
        odd.extended(prompt.ids[0, -1:], ("a",))
    with pytest.raises(PromptError, match="odd"):
        odd.left_padded(1, 0)
