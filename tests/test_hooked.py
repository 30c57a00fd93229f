"""The hooked forward is Hugging Face's forward, and hooks do what they say."""

import re

import pytest
import tiny
import torch
from torch.testing import assert_close

from mechvlm.errors import FamilyError, HookError, LayerError, PromptError
from mechvlm.models.hooked import HookedVLM

pytestmark = pytest.mark.tl3

QUESTION = "what color is the cat ?"


@pytest.fixture(scope="module", params=tiny.EVERY_KIND, ids=str)
def hooked(request):
    """A random model of each combination, and a prompt with an image."""
    vlm = HookedVLM(*tiny.build(request.param))
    prompt = tiny.ask(vlm, QUESTION)
    # At its first forward transformers hangs hooks of its own on the vision tower.
    vlm(prompt)
    return vlm, prompt


def plain(vlm, prompt):
    """The oracle: Hugging Face alone, eager, with nothing of ours near it."""
    before = vlm.hf_model.config.text_config._attn_implementation
    vlm.hf_model.set_attn_implementation("eager")
    try:
        return vlm.hf_model(**prompt.inputs, use_cache=False).logits
    finally:
        vlm.hf_model.set_attn_implementation(before)


def look(activation, hook):
    """A hook that reads and returns nothing."""


def test_hooked_is_plain(hooked):
    vlm, prompt = hooked
    assert_close(vlm(prompt), plain(vlm, prompt), rtol=0, atol=1e-5)


def test_hooked_is_plain_with_every_hook_point_active(hooked):
    vlm, prompt = hooked
    vlm.set_use_attn_result(True)
    try:
        fired = set()
        hooks = [(n, lambda x, hook: fired.add(hook.name)) for n in vlm.hook_dict]
        logits = vlm.run_with_hooks(prompt, fwd_hooks=hooks)
    finally:
        vlm.set_use_attn_result(False)
    assert_close(logits, plain(vlm, prompt), rtol=0, atol=1e-5)
    assert len(fired) == 1 + 21 * vlm.cfg.n_layers + 2 + 2 * 3 + 2
    assert "blocks.3.attn.hook_result" in fired


def test_hooks_that_give_back_a_copy_change_nothing(hooked):
    """Every write path of every tap, exercised with the value that was there."""
    vlm, prompt = hooked
    vlm.set_use_attn_result(True)
    try:
        copy = [(lambda _: True, lambda x, hook: x.clone())]
        logits = vlm.run_with_hooks(prompt, fwd_hooks=copy)
    finally:
        vlm.set_use_attn_result(False)
    assert_close(logits, plain(vlm, prompt), rtol=0, atol=2e-5)


@pytest.mark.parametrize(
    "name",
    [
        "hook_embed",
        "ln_final.hook_scale",
        "ln_final.hook_normalized",
        "vision_encoder.encoder_layers.0.hook_resid_pre",
        "vision_encoder.encoder_layers.1.hook_resid_post",
        "vision_projector.hook_in",
        "vision_projector.hook_out",
        *(
            f"blocks.2.{place}"
            for place in (
                "hook_resid_pre",
                "hook_resid_mid",
                "hook_resid_post",
                "hook_attn_out",
                "hook_mlp_out",
                "ln1.hook_scale",
                "ln1.hook_normalized",
                "ln2.hook_scale",
                "ln2.hook_normalized",
                "mlp.hook_pre",
                "mlp.hook_pre_linear",
                "mlp.hook_post",
                "attn.hook_q",
                "attn.hook_k",
                "attn.hook_v",
                "attn.hook_z",
                "attn.hook_rot_q",
                "attn.hook_rot_k",
                "attn.hook_attn_scores",
                "attn.hook_pattern",
                "attn.hook_result",
            )
        ),
    ],
)
def test_every_hook_point_can_be_written(name):
    """Scaling an activation moves the logits, and only for that forward."""
    vlm = HookedVLM(*tiny.build(tiny.KINDS[1]))
    prompt = vlm.prompt(QUESTION, tiny.picture())
    before = vlm(prompt)
    hooks = [(name, lambda x, hook: x * 0.5)]
    with vlm.attn_results(hooks):
        changed = vlm.run_with_hooks(prompt, fwd_hooks=hooks)
    assert (changed - before).abs().max() > 1e-3
    assert torch.equal(vlm(prompt), before)


def test_start_at_layer_runs_only_later_blocks(hooked):
    vlm, prompt = hooked
    whole, cache = vlm.run_with_cache(prompt)
    layers = vlm.hf_model.model.language_model.layers
    for start in range(vlm.cfg.n_layers + 1):
        ran = []
        handles = [
            layer.register_forward_pre_hook(lambda m, a, i=i, ran=ran: ran.append(i))
            for i, layer in enumerate(layers)
        ]
        last = start == vlm.cfg.n_layers
        name = f"blocks.{start - last}.hook_resid_{'post' if last else 'pre'}"
        logits = vlm(cache[name], prompt=prompt, start_at_layer=start)
        for handle in handles:
            handle.remove()
        assert ran == list(range(start, vlm.cfg.n_layers))
        assert_close(logits, whole, rtol=0, atol=1e-5)
    assert vlm.hf_model.model.language_model.layers is layers


def test_stop_at_layer_gives_the_stream_and_runs_no_more(hooked):
    vlm, prompt = hooked
    # Streams alone, so that both passes run the same attention.
    streams = [n for n in vlm.hook_dict if "resid_p" in n and n.startswith("blocks")]
    _, cache = vlm.run_with_cache(prompt, names_filter=streams)
    ran = []
    handle = vlm.hf_model.model.language_model.layers[2].register_forward_pre_hook(
        lambda m, a: ran.append(2)
    )
    stream = vlm(prompt, stop_at_layer=2)
    handle.remove()
    assert not ran
    assert_close(stream, cache["blocks.2.hook_resid_pre"], rtol=0, atol=1e-6)
    middle = vlm(stream, prompt=prompt, start_at_layer=2, stop_at_layer=4)
    assert_close(middle, cache["blocks.3.hook_resid_post"], rtol=0, atol=1e-5)
    one = vlm(stream, prompt=prompt, start_at_layer=2, stop_at_layer=3)
    assert_close(one, cache["blocks.2.hook_resid_post"], rtol=0, atol=1e-5)


def test_nothing_waits_so_nothing_is_tapped(hooked, monkeypatch):
    """An unhooked forward registers no hook on any module of Hugging Face's."""
    vlm, prompt = hooked

    def refuse(*args, **kwargs):
        raise AssertionError("an unhooked forward was tapped")

    monkeypatch.setattr(torch.nn.Module, "register_forward_hook", refuse)
    monkeypatch.setattr(torch.nn.Module, "register_forward_pre_hook", refuse)
    assert vlm(prompt).isfinite().all()


def test_taps_are_gone_after_an_exception(hooked):
    vlm, prompt = hooked
    before = vlm(prompt)
    attention = vlm.hf_model.config.text_config._attn_implementation
    kept = [len(m._forward_hooks) for m in vlm.hf_model.modules()]

    def fail(activation, hook):
        raise ZeroDivisionError

    hooks = [(lambda name: "blocks.1" in name, fail)]
    with pytest.raises(ZeroDivisionError):
        vlm.run_with_hooks(prompt, fwd_hooks=hooks)
    assert kept == [len(m._forward_hooks) for m in vlm.hf_model.modules()]
    assert not any(m._forward_pre_hooks for m in vlm.hf_model.modules())
    assert vlm.hf_model.config.text_config._attn_implementation == attention
    assert torch.equal(vlm(prompt), before)


def test_gradients_reach_hook_points(hooked):
    """Oracle: autograd of plain Hugging Face, with the stream itself as a leaf."""
    vlm, prompt = hooked
    found = {}
    hooks = [
        (f"blocks.1.{n}", lambda g, hook: found.__setitem__(hook.name, g.clone()))
        for n in ("hook_resid_pre", "hook_resid_mid")
    ]
    with vlm.hooks(bwd_hooks=hooks):
        vlm(prompt)[0, -1, 7].backward()
    leaf = {}

    def catch(module, args, kwargs):
        leaf["x"] = args[0].detach().requires_grad_()
        return (leaf["x"], *args[1:]), kwargs

    layer = vlm.hf_model.model.language_model.layers[1]
    handle = layer.register_forward_pre_hook(catch, with_kwargs=True)
    vlm.hf_model(**prompt.inputs).logits[0, -1, 7].backward()
    handle.remove()
    vlm.hf_model.zero_grad()
    assert_close(found["blocks.1.hook_resid_pre"], leaf["x"].grad, rtol=0, atol=1e-5)
    assert found["blocks.1.hook_resid_mid"].abs().sum() > 0


@pytest.mark.parametrize("hooked", tiny.KINDS, indirect=True, ids=str)
def test_weights_are_in_transformerlens_layout(hooked):
    """Oracle: the projections applied to the recorded streams by hand."""
    vlm, prompt = hooked
    vlm.set_use_attn_result(True)
    _, cache = vlm.run_with_cache(prompt)
    vlm.set_use_attn_result(False)
    normed = cache["blocks.1.ln1.hook_normalized"][0] * vlm.blocks[1].ln1.w
    q = torch.einsum("pd,hde->phe", normed, vlm.W_Q[1]) + vlm.b_Q[1]
    assert_close(q, cache["blocks.1.attn.hook_q"][0], rtol=0, atol=1e-5)
    shared = vlm.cfg.n_heads // vlm.cfg.n_key_value_heads
    for w, b, name in ((vlm.W_K, vlm.b_K, "k"), (vlm.W_V, vlm.b_V, "v")):
        ours = torch.einsum("pd,hde->phe", normed, w[1]) + b[1]
        theirs = cache[f"blocks.1.attn.hook_{name}"][0]
        theirs = theirs.repeat_interleave(shared, dim=1)
        assert_close(ours, theirs, rtol=0, atol=1e-5)
    z = cache["blocks.1.attn.hook_z"][0]
    result = torch.einsum("phe,hed->phd", z, vlm.W_O[1])
    assert_close(result, cache["blocks.1.attn.hook_result"][0], rtol=0, atol=1e-5)
    into = cache["blocks.1.ln2.hook_normalized"][0] * vlm.blocks[1].ln2.w
    assert_close(into @ vlm.W_gate[1], cache["blocks.1.mlp.hook_pre"][0])
    assert_close(into @ vlm.W_in[1], cache["blocks.1.mlp.hook_pre_linear"][0])
    out = cache["blocks.1.mlp.hook_post"][0] @ vlm.W_out[1]
    assert_close(out, cache["blocks.1.hook_mlp_out"][0], rtol=0, atol=1e-5)
    final = cache["ln_final.hook_normalized"][0, -1] * vlm.ln_final.w
    assert_close(final @ vlm.W_U + vlm.b_U, vlm(prompt)[0, -1], rtol=0, atol=1e-5)
    assert torch.equal(vlm.W_E[prompt.ids[0, 0]], cache["hook_embed"][0, 0])


@pytest.mark.parametrize(
    ("call", "error", "match"),
    [
        (lambda v, p: v.run_with_hooks(p, fwd_hooks=[("blocks.1.hook_rezid", look)]),
         HookError, "no hook point is called"),
        (lambda v, p: v.run_with_hooks(p, fwd_hooks=[(lambda n: False, look)]),
         HookError, "matches no hook point"),
        (lambda v, p: v.run_with_hooks(p, fwd_hooks=[("hook_embed", look)],
                                       prompt=None, start_at_layer=1),
         PromptError, "wanted vlm"),
        (lambda v, p: v.run_with_hooks(v.prompt("what ?"), fwd_hooks=[
            ("vision_projector.hook_out", look)]), HookError, "never fired"),
        (lambda v, p: v.run_with_hooks(p, bwd_hooks=[("hook_embed", look)]),
         HookError, "before a backward pass"),
        (lambda v, p: v.run_with_cache(p, names_filter="hook_embd"),
         HookError, "hook_embed"),
        (lambda v, p: v.run_with_cache(p, names_filter="blocks.0.attn.hook_result"),
         HookError, "set_use_attn_result"),
        (lambda v, p: v(p, stop_at_layer=9), LayerError, "layer 9 is out of range"),
        (lambda v, p: v(p.ids), PromptError, "lose the image"),
        (lambda v, p: v.add_hook("nowhere", look), HookError, "nowhere"),
    ],
)  # fmt: skip
def test_what_cannot_fire_is_refused(call, error, match):
    vlm = HookedVLM(*tiny.build())
    prompt = vlm.prompt(QUESTION, tiny.picture())
    with pytest.raises(error, match=re.escape(match)):
        call(vlm, prompt)
    assert not any(point.fwd_hooks for point in vlm.hook_dict.values())


def test_no_gradients_no_backward_hooks():
    vlm = HookedVLM(*tiny.build())
    with (
        torch.no_grad(),
        pytest.raises(HookError, match="gradients are off"),
        vlm.hooks(bwd_hooks=[("hook_embed", look)]),
    ):
        pass


def test_an_unknown_config_key_is_refused():
    model, processor = tiny.build()
    model.config.text_config.use_magic = True
    with pytest.raises(FamilyError, match="use_magic"):
        HookedVLM(model, processor)


def test_the_middle_of_a_layer_reaches_its_end():
    """What is written to resid_mid is in the sum that resid_post sees."""
    vlm = HookedVLM(*tiny.build())
    prompt = vlm.prompt(QUESTION, tiny.picture())
    seen = {}
    hooks = [
        ("blocks.1.hook_resid_mid", lambda x, hook: x + 1),
        ("blocks.1.hook_mlp_out", lambda x, hook: torch.zeros_like(x)),
        ("blocks.1.hook_resid_post", lambda x, hook: seen.update(post=x)),
    ]
    _, cache = vlm.run_with_cache(prompt, names_filter="blocks.1.hook_resid_mid")
    vlm.run_with_hooks(prompt, fwd_hooks=hooks)
    ours = cache["blocks.1.hook_resid_mid"] + 1
    assert_close(seen["post"], ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("reset", [True, False])
def test_a_hook_that_never_fired_is_gone_after_it_is_told(reset):
    vlm = HookedVLM(*tiny.build())
    text = vlm.prompt("what color ?")
    vision = [("vision_projector.hook_out", look)]
    with pytest.raises(HookError, match="never fired"):
        vlm.run_with_hooks(text, fwd_hooks=vision, reset_hooks_end=reset)
    assert not any(point.fwd_hooks for point in vlm.hook_dict.values())


def test_hooks_may_write_in_place():
    """A hook that writes into its activation does what one that returns a copy does."""

    def copied(x, hook):
        return written(x.clone(), hook)

    def written(x, hook):
        x[..., 0] *= 3
        return x

    vlm = HookedVLM(*tiny.build(tiny.KINDS[1]))
    prompt = vlm.prompt(QUESTION, tiny.picture())
    vlm.set_use_attn_result(True)
    names = [n for n in vlm.hook_dict if not n.startswith("vision_encoder")]
    with torch.no_grad():
        before = vlm(prompt)
        for name in names:
            new = vlm.run_with_hooks(prompt, fwd_hooks=[(name, copied)])
            same = vlm.run_with_hooks(prompt, fwd_hooks=[(name, written)])
            assert_close(same, new, rtol=0, atol=2e-6, msg=name)
            assert (same - before).abs().max() > 1e-4, name


def test_results_that_are_turned_off_take_their_hooks_along():
    vlm = HookedVLM(*tiny.build())
    prompt = vlm.prompt(QUESTION, tiny.picture())
    before = vlm(prompt)
    vlm.set_use_attn_result(True)
    vlm.add_hook("blocks.1.attn.hook_result", lambda x, hook: x * 0, is_permanent=True)
    assert (vlm(prompt) - before).abs().max() > 1e-3
    vlm.set_use_attn_result(False)
    assert torch.equal(vlm(prompt), before)


def test_a_backward_hook_that_no_backward_reached_is_told():
    vlm = HookedVLM(*tiny.build())
    prompt = vlm.prompt(QUESTION, tiny.picture())
    with (
        pytest.raises(HookError, match=r"hook_embed \(backward\) never fired"),
        vlm.hooks(bwd_hooks=[("hook_embed", look)]),
    ):
        vlm(prompt)
    with vlm.hooks(bwd_hooks=[("hook_embed", look)], reset_hooks_end=False):
        vlm(prompt)
    vlm.reset_hooks()
