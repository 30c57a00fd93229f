"""A hooked model beside TransformerLens's own: bridge, cache tools and gradients."""

from dataclasses import replace

import pytest
import torch
from tiny import KINDS, build, picture

from mechvlm.errors import HookError, InteropError
from mechvlm.models import interop
from mechvlm.models.hooked import HookedVLM

# Measured 2e-6 at most: sums of 96 numbers in another order.
TOLERANCE = 1e-5
TEXT = "what color is the cat ?"
FLOOR = 60

# Names that mean another thing in the bridge, and why.
EXCEPTIONS = {
    "hook_embed": "the text's embedding, before the image goes in; here, after",
}
VISION = {
    *(f"vision_encoder.encoder_layers.{i}.hook_resid_pre" for i in range(3)),
    *(f"vision_encoder.encoder_layers.{i}.hook_resid_post" for i in range(3)),
    *("vision_projector.hook_in", "vision_projector.hook_out"),
}


def inputs_of(prompt):
    """A prompt's inputs as the bridge calls them."""
    rest = {name: x for name, x in prompt.inputs.items() if name != "input_ids"}
    return {"input": prompt.inputs["input_ids"], **rest}


def deviation(ours, theirs):
    """Largest difference; masked scores are -inf here, the least number there."""
    assert ours.shape == theirs.shape
    allowed = ours.isfinite()
    assert torch.equal(allowed, theirs > torch.finfo(theirs.dtype).min / 2)
    return (ours - theirs)[allowed].abs().max().item()


def name_of(kind):
    return f"{kind.backbone}-{kind.kv_heads}-{kind.tower}"


class Pair:
    """A hooked model, its bridge, and one run of both, heads apart."""

    def __init__(self, kind):
        model, processor = build(kind)
        self.vlm = HookedVLM(model, processor)
        self.prompt = self.vlm.prompt(TEXT, picture())
        self.bridge = self.vlm.to_bridge()
        self.vlm.set_use_attn_result(True)
        self.bridge.set_use_attn_result(True)
        with torch.no_grad():
            self.logits, self.cache = self.vlm.run_with_cache(self.prompt)
            self.bridge_logits, self.bridge_cache = self.bridge.run_with_cache(
                **inputs_of(self.prompt)
            )


@pytest.fixture(scope="module", params=KINDS, ids=name_of)
def pair(request):
    return Pair(request.param)


# --- the bridge -----------------------------------------------------------------------


def test_every_shared_hook_has_the_bridges_value(pair):
    shared = set(pair.vlm.hook_dict) & set(pair.bridge.hook_dict)
    assert shared == set(pair.vlm.hook_dict), "a name that the bridge does not have"
    compared = shared - set(EXCEPTIONS)
    assert len(compared) >= FLOOR
    far = {
        name: by
        for name in sorted(compared)
        if (by := deviation(pair.cache[name], pair.bridge_cache[name])) > TOLERANCE
    }
    assert not far
    assert deviation(pair.logits, pair.bridge_logits) < TOLERANCE


def test_the_comparison_sees_another_image(pair):
    """Another picture moves every stream, so that agreement above says something."""
    other = pair.vlm.prompt(TEXT, picture(seed=1))
    with torch.no_grad():
        _, cache = pair.vlm.run_with_cache(other)
    same = {
        name
        for name in set(cache.keys()) - set(EXCEPTIONS)
        if deviation(cache[name], pair.bridge_cache[name]) < TOLERANCE
    }
    assert not same


def test_hook_embed_is_the_merged_sequence(pair):
    ours, theirs = pair.cache["hook_embed"], pair.bridge_cache["hook_embed"]
    merged = pair.bridge_cache["blocks.0.hook_resid_pre"]
    assert deviation(ours, merged) < TOLERANCE
    text = list(pair.prompt.layout["text"])
    image = list(pair.prompt.layout["image"])
    assert torch.equal(ours[:, text], theirs[:, text])
    assert deviation(ours[:, image], theirs[:, image]) > 0.1


def test_the_vision_side_has_the_bridges_names(pair):
    assert set(pair.bridge.hook_dict) >= VISION
    ours = {name for name in pair.vlm.hook_dict if name.startswith("vision")}
    assert ours == VISION
    assert max(deviation(pair.cache[n], pair.bridge_cache[n]) for n in VISION) < 1e-5


@pytest.mark.parametrize(
    "name",
    ["resid_pre", "attn_out", "mlp_out", "resid_post"]
    + [f"attn.{part}" for part in ("q", "k", "v", "rot_q", "rot_k", "z", "result")]
    + ["attn.attn_scores", "attn.pattern", "mlp.pre", "mlp.pre_linear", "mlp.post"],
)
def test_a_write_does_what_it_does_in_the_bridge(pair, name):
    """Not resid_mid and the norms' two: writes there are lost or warned of there."""
    head, _, last = f"blocks.1.{name}".rpartition(".")
    hook = (f"{head}.hook_{last}", lambda x, hook: x * 0.5)
    with torch.no_grad():
        ours = pair.vlm.run_with_hooks(pair.prompt, fwd_hooks=[hook])
        theirs = pair.bridge.run_with_hooks(**inputs_of(pair.prompt), fwd_hooks=[hook])
    assert deviation(ours, theirs) < TOLERANCE
    assert deviation(ours, pair.logits) > 0.01, "it did nothing: this shows nothing"


def test_the_bridge_reads_the_same_weights_and_leaves_the_model_alone():
    model, processor = build(KINDS[1])
    vlm = HookedVLM(model, processor)
    prompt = vlm.prompt(TEXT, picture())
    modules = [(name, type(module)) for name, module in model.named_modules()]
    attention = model.config.text_config._attn_implementation
    before = {name: x.clone() for name, x in model.state_dict().items()}
    logits = vlm(prompt)

    bridge = vlm.to_bridge()
    ours = {x.data_ptr() for x in model.parameters()}
    assert {x.data_ptr() for x in bridge.original_model.parameters()} == ours
    bridge.enable_compatibility_mode(disable_warnings=True)  # folds the norms

    assert [(name, type(module)) for name, module in model.named_modules()] == modules
    assert model.config.text_config._attn_implementation == attention
    assert all(torch.equal(x, before[name]) for name, x in model.state_dict().items())
    assert torch.equal(vlm(prompt), logits)


def test_the_bridge_has_the_words(pair):
    assert pair.bridge.processor is pair.vlm.processor
    assert torch.equal(pair.bridge.to_tokens(TEXT), pair.vlm.to_tokens(TEXT))
    bare = pair.bridge.to_tokens(TEXT, prepend_bos=False)
    assert torch.equal(bare, pair.vlm.to_tokens(TEXT, prepend_bos=False))


@pytest.fixture
def tiny():
    return HookedVLM(*build())


def test_an_old_transformer_lens_has_no_bridge(tiny, monkeypatch):
    monkeypatch.setattr(interop, "version", lambda package: "3.9.0")
    with pytest.raises(
        InteropError,
        match=r"TransformerBridge needs transformer-lens>=4,<5, and transformer-lens"
        r" 3\.9\.0 is installed(.|\n)*pip install",
    ):
        tiny.to_bridge()


def test_an_architecture_without_a_bridge_is_refused(tiny):
    tiny.family = replace(tiny.family, architecture="NoSuchForConditionalGeneration")
    with pytest.raises(InteropError, match="no bridge for NoSuchForConditional"):
        tiny.to_bridge()


def test_transformer_lens_4_has_no_hooked_transformer(tiny):
    with pytest.raises(
        InteropError,
        match=r"HookedTransformer needs transformer-lens==3\.9\.0, and"
        r' transformer-lens 4\.[\d.]+ is installed(.|\n)*"transformer-lens==3\.9\.0"',
    ):
        tiny.to_hooked_transformer()


# --- TransformerLens's tools, against plain Hugging Face ------------------------------


class Plain:
    """What a plain Hugging Face forward gives, by forward hooks of our own."""

    def __init__(self, vlm, prompt):
        self.seen = {}
        self.model = vlm.hf_model
        self.layers = self.model.model.language_model.layers
        for i, layer in enumerate(self.layers):
            self._keep(layer.self_attn.o_proj, f"z{i}", f"attn_out{i}")
            self._keep(layer.self_attn.v_proj, "", f"v{i}")
            self._keep(layer.mlp, f"ln2{i}", f"mlp_out{i}")
            self._keep(layer.post_attention_layernorm, f"resid_mid{i}", "")
        self._keep(self.model.model.language_model.norm, "last", "")
        with torch.no_grad():
            out = self.model(**prompt.inputs, output_hidden_states=True)
        for handle in self.handles:
            handle.remove()
        self.logits = out.logits
        self.stream = [*out.hidden_states[:-1], self.seen["last"]]

    handles = ()

    def _keep(self, module, before, after):
        def hook(_, args, output):
            if before:
                self.seen[before] = args[0]
            if after:
                self.seen[after] = output

        self.handles = [*self.handles, module.register_forward_hook(hook)]

    def heads(self, layer):
        """What each head of a layer adds to the stream."""
        weight = self.layers[layer].self_attn.o_proj.weight
        z = self.seen[f"z{layer}"]
        width = z.shape[-1] // 4
        return [
            z[..., at : at + width] @ weight[:, at : at + width].T
            for at in range(0, 4 * width, width)
        ]


@pytest.fixture(scope="module")
def plain(pair):
    return Plain(pair.vlm, pair.prompt)


def check_close(ours, theirs):
    torch.testing.assert_close(ours, theirs, rtol=0, atol=TOLERANCE)


def test_decomposed_residuals_add_up(pair, plain):
    for layer, mlp_input in ((0, True), (2, False), (2, True), (4, False)):
        parts, labels = pair.cache.decompose_resid(
            layer, mlp_input=mlp_input, return_labels=True
        )
        by_hand = plain.seen[f"resid_mid{layer}"] if mlp_input else plain.stream[layer]
        check_close(parts.sum(dim=0), by_hand)
        for part, label in zip(parts[1:], labels[1:], strict=True):
            at, _, component = label.partition("_")
            check_close(part, plain.seen[f"{component}{at}"])
        check_close(parts[0], plain.stream[0])


def test_accumulated_residuals_are_the_stream(pair, plain):
    stack = pair.cache.accumulated_resid(layer=-1)
    check_close(stack, torch.stack(plain.stream))
    both = pair.cache.accumulated_resid(layer=2, incl_mid=True, mlp_input=True)
    mids = [plain.seen[f"resid_mid{i}"] for i in range(3)]
    between = [x for at in range(3) for x in (plain.stream[at], mids[at])]
    check_close(both, torch.stack(between))


def test_heads_add_up_to_the_attention_output(pair, plain):
    pair.vlm.set_use_attn_result(False)
    with torch.no_grad():
        _, computed = pair.vlm.run_with_cache(pair.prompt)  # results made from z
    pair.vlm.set_use_attn_result(True)
    assert "blocks.0.attn.hook_result" not in computed
    for cache in (pair.cache, computed):
        stack, labels = cache.stack_head_results(return_labels=True)
        assert labels[5] == "L1H1"
        check_close(stack, torch.stack([x for at in range(4) for x in plain.heads(at)]))
        for layer in range(4):
            heads = stack[4 * layer : 4 * layer + 4].sum(dim=0)
            whole = heads + pair.vlm.b_O[layer]
            check_close(whole, plain.seen[f"attn_out{layer}"])


def test_the_final_norms_scale_is_applied(pair, plain):
    eps = plain.model.config.text_config.rms_norm_eps
    parts = pair.cache.decompose_resid(-1)
    scale = plain.stream[-1].pow(2).mean(dim=-1, keepdim=True).add(eps).sqrt()
    check_close(pair.cache.apply_ln_to_stack(parts), parts / scale)
    at_mlp = pair.cache.apply_ln_to_stack(parts, layer=1, mlp_input=True)
    weight = plain.layers[1].post_attention_layernorm.weight
    mid = pair.cache.decompose_resid(1, mlp_input=True)
    normed = pair.cache.apply_ln_to_stack(mid, layer=1, mlp_input=True)
    assert at_mlp.shape == parts.shape
    check_close(normed.sum(dim=0) * weight, plain.seen["ln21"])


def test_logit_attributions_add_up_to_the_logit(pair, plain):
    red, blue = (pair.vlm.to_single_token(word) for word in ("red", "blue"))
    parts = pair.cache.decompose_resid(-1)
    check_close(
        pair.cache.logit_attrs(parts, tokens=red).sum(dim=0), plain.logits[..., red]
    )
    each = pair.cache.logit_attrs(parts, tokens="red", incorrect_tokens="blue")
    check_close(each.sum(dim=0), plain.logits[..., red] - plain.logits[..., blue])
    weight = plain.model.model.language_model.norm.weight
    direction = plain.model.lm_head.weight[red] * weight
    scale = plain.stream[-1].pow(2).mean(dim=-1, keepdim=True).add(1e-6).sqrt()
    by_hand = (plain.seen["mlp_out2"] / scale) @ direction
    check_close(pair.cache.logit_attrs(parts, tokens=red)[6], by_hand)


def test_factored_matrices_are_the_projections(pair, plain):
    layer, head, shared = 1, 3, 4 // pair.vlm.cfg.n_key_value_heads
    attn = plain.layers[layer].self_attn
    query = attn.q_proj.weight[head * 16 : head * 16 + 16]
    group = head // shared * 16
    key, value = (w.weight[group : group + 16] for w in (attn.k_proj, attn.v_proj))
    out = attn.o_proj.weight[:, head * 16 : head * 16 + 16]
    # On weights of size 4 the products reach 200, so the tolerance is relative.
    torch.testing.assert_close(pair.vlm.QK[layer, head].AB, query.T @ key)
    torch.testing.assert_close(pair.vlm.OV[layer, head].AB, value.T @ out.T)
    assert pair.vlm.QK.AB.shape == (4, 4, 64, 64)
    norm = torch.linalg.matrix_norm(query.T @ key)
    torch.testing.assert_close(pair.vlm.QK[layer, head].norm(), norm)


# --- ways to ask for less -------------------------------------------------------------


@torch.no_grad()
def test_the_batch_dimension_comes_off(pair):
    _, bare = pair.vlm.run_with_cache(pair.prompt, remove_batch_dim=True)
    assert not bare.has_batch_dim
    assert bare.keys() == pair.cache.keys()
    for name in bare:
        assert torch.equal(bare[name], pair.cache[name][0])
    parts = bare.decompose_resid(-1)
    check_close(parts.sum(dim=0), pair.cache["resid_post", 3][0])


@torch.no_grad()
def test_positions_can_be_sliced(pair):
    """TransformerLens alone would cut the heads of rot_q, and the patches, as well."""
    _, part = pair.vlm.run_with_cache(pair.prompt, pos_slice=(3, 7))
    _, last = pair.vlm.run_with_cache(pair.prompt, pos_slice=-1)
    heads = ("q", "k", "v", "z", "rot_q", "rot_k", "result")
    for name, whole in pair.cache.items():
        by_head = name.rpartition("hook_")[2] in heads
        axis = whole.ndim - (3 if by_head else 2)  # a pattern's targets are sliced
        end = whole.shape[axis] - 1
        wanted, wanted_last = whole.narrow(axis, 3, 4), whole.narrow(axis, end, 1)
        if name in VISION:
            wanted = wanted_last = whole
        assert torch.equal(part[name], wanted), name
        assert torch.equal(last[name], wanted_last), name


@torch.no_grad()
def test_names_can_be_filtered(pair):
    name = "blocks.2.attn.hook_z"
    two = [name, "ln_final.hook_scale"]
    for names, wanted in (
        (name, [name]),
        (two, two),
        (lambda name: name.endswith("hook_pattern"), None),
    ):
        logits, cache = pair.vlm.run_with_cache(pair.prompt, names_filter=names)
        wanted = wanted or [f"blocks.{i}.attn.hook_pattern" for i in range(4)]
        assert sorted(cache.keys()) == sorted(wanted)
        assert all(deviation(cache[n], pair.cache[n]) < TOLERANCE for n in cache)
        check_close(logits, pair.logits)
    assert torch.equal(pair.cache["z", 2], pair.cache[name])
    with pytest.raises(HookError, match=r"Near it: blocks\.2\.attn\.hook_z"):
        pair.vlm.run_with_cache(pair.prompt, names_filter="blocks.2.attn.hook_zz")


# --- gradients ------------------------------------------------------------------------


def loss_of(logits):
    """A number that every position's logits go into."""
    return (logits * torch.linspace(-1, 1, logits.numel()).view_as(logits)).sum()


def plain_gradient(pair, module, *, before):
    """Autograd's own answer: the gradient of a zero added to what a module is given.

    With `before` off it is added to what the module gives.
    """
    deltas = []

    def add(x):
        deltas.append(torch.zeros_like(x, requires_grad=True))
        return x + deltas[0]

    if before:
        handle = module.register_forward_pre_hook(lambda _, args: (add(args[0]),))
    else:
        handle = module.register_forward_hook(lambda _, __, output: add(output))
    try:
        loss = loss_of(pair.vlm.hf_model(**pair.prompt.inputs).logits)
    finally:
        handle.remove()
    return torch.autograd.grad(loss, deltas)[0]


def test_backward_hooks_see_autograds_gradients(pair, plain):
    layers, got = plain.layers, {}
    names = ["hook_resid_pre", "hook_resid_mid", "attn.hook_q", "attn.hook_z"]
    names = [f"blocks.2.{name}" for name in [*names, "attn.hook_pattern"]]

    def keep(gradient, hook):
        got[hook.name] = gradient.clone()

    with pair.vlm.hooks(bwd_hooks=[(name, keep) for name in names]):
        loss_of(pair.vlm(pair.prompt)).backward()
    pair.vlm.hf_model.zero_grad()

    attn = layers[2].self_attn
    z = plain_gradient(pair, attn.o_proj, before=True).unflatten(-1, (4, 16))
    value = plain.seen["v2"].unflatten(-1, (-1, 16))
    value = value.repeat_interleave(4 // value.shape[2], dim=2)
    by_hand = {
        "hook_resid_pre": plain_gradient(pair, layers[1], before=False),
        # The stream is a sum: what enters it after attention has its gradient.
        "hook_resid_mid": plain_gradient(pair, attn.o_proj, before=False),
        "attn.hook_q": plain_gradient(pair, attn.q_proj, before=False),
        "attn.hook_z": z,
        "attn.hook_pattern": torch.einsum("bthd,bshd->bhts", z, value),
    }
    for name, gradient in by_hand.items():
        ours = got[f"blocks.2.{name}"]
        assert gradient.abs().max() > 0.1
        ours = ours.reshape(gradient.shape)
        torch.testing.assert_close(ours, gradient, rtol=1e-4, atol=1e-4)
