"""The twenty traps of this field, one test each: what goes wrong silently elsewhere.

Each test does what a researcher would do and compares with a plain Hugging Face pass
or with arithmetic. Tests of single analyses against the same traps stand beside them,
under the same names.
"""

import pytest
import tiny
import torch
import transformers as tf

import mechvlm as mv
from mechvlm import Ablate, Knockout, Patch, Positions, Site, matching
from mechvlm.models import families, planted
from mechvlm.models.lowering import Sources, hooks_of

CLOSE = {"rtol": 0, "atol": 2e-5}


@pytest.fixture(scope="module", params=["sdpa", "eager"])
def asked(request):
    vlm = mv.HookedVLM(*tiny.build(tiny.KINDS[1], attention=request.param))
    return vlm, tiny.ask(vlm, "what color")


def run(vlm, prompt, *what, **more):
    return mv.intervene(vlm, prompt, list(what), progress=False, **more)


def cut_image(prompt, layers=range(1, 3)):
    return Knockout(layers, prompt.layout["last"], prompt.layout["image"])


@torch.no_grad()
def plain(vlm, prompt, **more):
    return vlm.hf_model(**prompt.inputs, **more)


def test_trap_01_mask_type_differs_by_backend():
    """None, bool and additive masks: one knockout, one answer."""
    answers = []
    for attention in ("sdpa", "eager"):
        vlm = mv.HookedVLM(*tiny.build(attention=attention))
        prompt = tiny.ask(vlm, "what color")
        for each in (prompt, prompt.left_padded(5, 0)):
            clean, done = run(vlm, each, mv.NOTHING, cut_image(each))
            assert (clean - done).abs().max() > 0.01
            answers.append(done)
    for other in answers[1:]:
        torch.testing.assert_close(other, answers[0], **CLOSE)


def test_trap_02_a_fully_blocked_row_is_refused(asked):
    vlm, prompt = asked
    everything = Positions.of(range(prompt.layout.n))
    blind = Knockout(range(1), prompt.layout["last"], everything)
    with pytest.raises(mv.BlindRowError, match="nothing to read"):
        run(vlm, prompt, blind)


def test_trap_03_a_knockout_renormalises(asked):
    """What is left gains the blocked share; zeroing after the softmax does not."""
    vlm, prompt = asked
    name, image = "blocks.0.attn.hook_pattern", list(prompt.layout["image"])
    _, cache = vlm.run_with_cache(prompt, names_filter=name)
    row = cache[name][0, :, -1].clone()
    blocked = row[:, image].sum(dim=-1, keepdim=True)
    wanted = row / (1 - blocked)
    wanted[:, image] = 0

    def cut(scores, hook):
        scores[0, :, -1, image] = -torch.inf
        return scores

    found = []
    hooks = [("blocks.0.attn.hook_attn_scores", cut)]
    hooks += [(name, lambda x, hook: found.append(x[0, :, -1].clone()))]
    by_hand = vlm.run_with_hooks(prompt, fwd_hooks=hooks)[0, -1]
    torch.testing.assert_close(found[0], wanted, **CLOSE)
    done = run(vlm, prompt, cut_image(prompt, range(1)))[0]
    torch.testing.assert_close(done, by_hand, **CLOSE)

    def zero(pattern, hook):
        pattern[0, :, -1, image] = 0
        return pattern

    without = vlm.run_with_hooks(prompt, fwd_hooks=[(name, zero)])[0, -1]
    assert (without - done).abs().max() > 1e-3


def test_trap_03_without_a_sink_a_knockout_invents_an_answer():
    vlm = mv.HookedVLM(*planted.build("direct", sink=False))
    prompt = vlm.prompt(planted.QUESTION, planted.scene(0), system=planted.SYSTEM)
    thing = Positions.of(planted.POSITIONS["object"])
    logits = run(vlm, prompt, Knockout(range(3), prompt.layout["last"], thing))
    ids = [vlm.to_single_token(word) for word in planted.ANSWERS]
    found = logits.softmax(dim=-1)[0, ids].tolist()
    assert found == pytest.approx(planted.RENORMALISED, abs=planted.TOLERANCE)


def test_trap_04_rows_of_a_kv_cache_are_absolute(asked):
    """Cached decoding under a cut is recomputing everything under that cut."""
    vlm, prompt = asked
    n = prompt.layout.n
    new = Positions.of(range(n, n + 3))
    cut = Knockout(range(1, 4), new, prompt.layout["image"])
    made = vlm.generate(prompt, max_new_tokens=4, interventions=(cut,))
    free = vlm.generate(prompt, max_new_tokens=4)
    assert torch.equal(made.logits[0], free.logits[0])
    for step in range(1, len(made.ids)):
        ids = made.ids[:step]
        longer = prompt.extended(ids, tuple(vlm.to_str_tokens(ids)))
        rows = new & longer.layout["generated"]
        again = run(vlm, longer, Knockout(range(1, 4), rows, prompt.layout["image"]))
        torch.testing.assert_close(made.logits[step], again[0], **CLOSE)


def test_trap_05_the_last_prompt_row_predicts_the_first_new_token(asked):
    vlm, prompt = asked
    at, n = prompt.layout, prompt.layout.n
    free = vlm.generate(prompt, max_new_tokens=1).logits[0]
    new = Knockout(range(4), Positions.of(range(n, n + 2)), at["image"])
    kept = vlm.generate(prompt, max_new_tokens=3, interventions=(new,)).logits[0]
    assert torch.equal(kept, free)
    last = Knockout(range(4), at["last"], at["image"])
    moved = vlm.generate(prompt, max_new_tokens=3, interventions=(last,)).logits[0]
    assert (moved - free).abs().max() > 0.01


def test_trap_06_an_ablated_prompt_stays_ablated_while_decoding(asked):
    vlm, prompt = asked
    gone = Ablate(Site("embed"), prompt.layout["image"])
    made = vlm.generate(prompt, max_new_tokens=3, interventions=(gone,))
    for step in range(len(made.ids)):
        ids = made.ids[:step]
        longer = prompt.extended(ids, tuple(vlm.to_str_tokens(ids)) if step else ())
        again = run(vlm, longer, gone)
        torch.testing.assert_close(made.logits[step], again[0], **CLOSE)


def test_trap_07_left_padding_moves_every_index(asked):
    vlm, prompt = asked
    padded = prompt.left_padded(7, 0)
    assert padded.layout["image"] == Positions.of(i + 7 for i in prompt.layout["image"])
    ours, theirs = (run(vlm, each, cut_image(each)) for each in (prompt, padded))
    torch.testing.assert_close(ours, theirs, **CLOSE)


def test_trap_08_the_tokenizer_puts_bos_first(tiny_vlm):
    assert tiny_vlm.tokenizer.encode("red")[0] == tiny_vlm.tokenizer.bos_token_id
    token = tiny_vlm.to_single_token("red")
    assert tiny_vlm.tokenizer.convert_ids_to_tokens(token) == "red"
    with pytest.raises(mv.TokenError):
        tiny_vlm.to_single_token("red cat")


def test_trap_09_one_placeholder_becomes_many_positions(asked):
    vlm, prompt = asked
    image = vlm.hf_model.config.image_token_id
    assert int((prompt.ids == image).sum()) == len(prompt.layout["image"]) == 16
    assert prompt.text.count("<image>") == 1


def test_trap_09_an_image_token_among_the_new_ones_is_refused(asked):
    vlm, prompt = asked
    image = vlm.hf_model.config.image_token_id
    with pytest.raises(mv.PromptError, match="image placeholder"):
        prompt.extended(torch.tensor([image]), ("<image>",))


def test_trap_10_the_cls_token_would_shift_the_grid():
    model, processor = tiny.build()
    model.config.vision_feature_select_strategy = "full"
    processor.vision_feature_select_strategy = "full"
    with pytest.raises(mv.FamilyError, match="keeps the CLS token"):
        tiny.ask(mv.HookedVLM(model, processor), "what color")


def test_trap_11_what_the_processor_cropped_away_has_no_tokens():
    vlm = mv.HookedVLM(*tiny.build())
    wide = vlm.prompt("what color", tiny.picture(width=96, height=32))
    with pytest.raises(mv.RegionError, match="cropped away"):
        wide.layout.region((0, 0, 20, 32))
    assert len(wide.layout.region((32, 0, 64, 32))) == 16


@pytest.mark.parametrize(
    "config",
    [
        tf.LlavaNextConfig(),  # trap 12: tiles and newline tokens
        tf.Qwen2VLConfig(),  # trap 13: three position ids for each token
        tf.MllamaConfig(),  # trap 18: image positions outside self-attention
    ],
    ids=["12_any_res", "13_m_rope", "18_cross_attention"],
)
def test_trap_of_an_architecture_that_is_not_understood_is_refused(config):
    with pytest.raises(mv.FamilyError, match=type(config).__name__):
        families.find(config)


def test_trap_14_grouped_heads(asked):
    """A knockout is of one query head; a key patch reaches all heads of its group."""
    vlm, prompt = asked
    cfg = vlm.cfg
    assert (cfg.n_heads, cfg.n_key_value_heads) == (4, 2)
    name = "blocks.2.attn.hook_z"
    clean = mv.record(vlm, prompt, [name])[Site("z", 2)]
    other = mv.record(vlm, tiny.ask(vlm, "what color", tiny.picture(3)), ["k"])

    sources = Sources({"other": other}, {})

    def moved(what):
        found = []
        hooks = hooks_of(what, range(prompt.layout.n), sources)
        look = (name, lambda x, hook: found.append(x[0].clone()))
        with torch.no_grad():
            vlm.run_with_hooks(prompt, fwd_hooks=[*hooks, look])
        change = (found[0] - clean).abs().amax(dim=(0, 2))
        return [head for head in range(4) if change[head] > 1e-6]

    at = prompt.layout
    assert moved(Knockout((2,), at["last"], at["image"], heads=(1,))) == [1]
    assert moved(Patch(Site("k", 2, head=1), at["image"], "other")) == [2, 3]


def test_trap_15_reading_attention_switches_no_backend(asked):
    vlm, prompt = asked
    before = vlm.hf_model.config.text_config._attn_implementation
    seen = []
    hook = ("blocks.1.attn.hook_pattern", lambda x, hook: seen.append(x.shape))
    hooked = vlm.run_with_hooks(prompt, fwd_hooks=[hook])
    assert seen
    assert vlm.hf_model.config.text_config._attn_implementation == before
    torch.testing.assert_close(hooked, plain(vlm, prompt).logits, **CLOSE)


def test_trap_16_a_layer_gives_a_tensor_and_hooks_write_copies(asked):
    vlm, prompt = asked
    site = Site("resid_post", 1)
    run_ = mv.record(vlm, prompt, [site])
    kept = run_[site].clone()
    assert kept.shape == (prompt.layout.n, vlm.cfg.d_model)

    def spoil(value, hook):
        value.zero_()
        return value

    vlm.run_with_hooks(prompt, fwd_hooks=[(site.hook_name, spoil)])
    assert torch.equal(run_[site], kept)


def test_trap_17_the_last_hidden_state_is_normed_already(asked):
    vlm, prompt = asked
    out = plain(vlm, prompt, output_hidden_states=True)
    left = mv.record(vlm, prompt, [Site("resid_post", 3)])[Site("resid_post", 3)]
    norm = vlm.hf_model.model.language_model.norm
    with torch.no_grad():
        torch.testing.assert_close(norm(left), out.hidden_states[-1][0], **CLOSE)
        logits = vlm.hf_model.lm_head(norm(left))
    torch.testing.assert_close(logits, out.logits[0], **CLOSE)


def test_trap_18_image_positions_that_read_each_other_both_ways():
    vlm = mv.HookedVLM(*tiny.build(tiny.GEMMA_KINDS[1]))
    prompt = tiny.ask(vlm, "what color")
    first, last = min(prompt.layout["image"]), max(prompt.layout["image"])
    assert bool(vlm.reads(prompt)[1, first, last])
    cut = Knockout(range(4), Positions.of(first), Positions.of(last))
    clean, done = run(vlm, prompt, mv.NOTHING, cut)
    assert (clean - done).abs().max() > 1e-4


def test_trap_19_a_substring_is_no_answer():
    assert not matching.mentions("it is located here", ["cat"])
    assert not matching.names("this is a submarine", ["IBM"])
    assert matching.yes_or_no("nothing") is None


def test_trap_20_the_input_of_a_layer_is_the_output_of_the_one_before(asked):
    vlm, prompt = asked
    hidden = plain(vlm, prompt, output_hidden_states=True).hidden_states
    found = mv.record(vlm, prompt, ["resid_pre", "resid_post"])
    for layer in range(vlm.cfg.n_layers):
        into = found[Site("resid_pre", layer)]
        torch.testing.assert_close(into, hidden[layer][0], **CLOSE)
        if layer:
            assert torch.equal(into, found[Site("resid_post", layer - 1)])


@torch.no_grad()
def test_trap_15_transformers_own_capture_hooks_are_no_hooks_of_the_users():
    """Asked once for attentions, transformers leaves sleeping hooks on every layer."""
    vlm = mv.HookedVLM(*tiny.build(attention="eager"))
    prompt = tiny.ask(vlm, "what color")
    before = run(vlm, prompt, cut_image(prompt))
    plain(vlm, prompt, output_attentions=True, output_hidden_states=True)
    layers = vlm.hf_model.model.language_model.layers
    assert any(module._forward_hooks for module in layers.modules())
    assert not vlm.has_hooks
    torch.testing.assert_close(run(vlm, prompt, cut_image(prompt)), before, **CLOSE)
    handle = layers[0].register_forward_hook(lambda *_: None)
    assert vlm.has_hooks
    handle.remove()
