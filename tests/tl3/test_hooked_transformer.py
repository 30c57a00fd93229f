"""Under TransformerLens 3.9: the hooked model, and a real HookedTransformer beside it.

`make test-tl3` runs this; under TransformerLens 4 it is passed over.
"""

from importlib.metadata import version

import pytest
import torch
import transformers as tf
from tiny import KINDS, TEXT, Kind, build, picture, text_config

from mechvlm.errors import InteropError
from mechvlm.models.hooked import HookedVLM

pytestmark = [
    pytest.mark.tl3,
    pytest.mark.skipif(
        not version("transformer-lens").startswith("3."),
        reason="HookedTransformer left TransformerLens in 4.0; run `make test-tl3`",
    ),
]

# Both are measured 2e-6 at most; the contract allows a HookedTransformer more.
TOLERANCE = 1e-5
LEGACY_TOLERANCE = 1e-4
QUESTION = "what color is the cat ?"
SIZES = TEXT | {"num_key_value_heads": 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
LINEAR = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0}
VARIANTS = {
    **{f"{k.backbone}-{k.kv_heads}-{k.tower}": text_config(k) for k in KINDS},
    "llama-3 rope": tf.LlamaConfig(**SIZES, rope_parameters=LLAMA3),
    "linear rope": tf.LlamaConfig(**SIZES, rope_parameters=LINEAR),
    "other theta, eps": tf.LlamaConfig(
        **SIZES,
        rms_norm_eps=0.1,
        rope_parameters={"rope_type": "default", "rope_theta": 100.0},
    ),
    "wide heads": tf.LlamaConfig(**SIZES, head_dim=24),
    "attention biases": tf.LlamaConfig(**SIZES, attention_bias=True),
    "gelu": tf.LlamaConfig(**SIZES, hidden_act="gelu"),
    "no window": tf.MistralConfig(**SIZES, sliding_window=None),
    "windows above": tf.Qwen2Config(
        **SIZES, use_sliding_window=True, sliding_window=7, max_window_layers=2
    ),
}


def of(config, monkeypatch):
    """A hooked tiny LLaVA with this language backbone."""
    monkeypatch.setattr("tiny.text_config", lambda kind: config)
    return HookedVLM(*build(Kind("any", 0, "clip")))


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS)
def vlm(request, monkeypatch):
    return of(request.param, monkeypatch)


def deviation(ours, theirs):
    """Largest difference; the same scores must be masked."""
    assert ours.shape == theirs.shape
    allowed = ours.isfinite()
    assert torch.equal(allowed, theirs.isfinite())
    return (ours - theirs)[allowed].abs().max().item()


@torch.no_grad()
def test_the_hooked_forward_is_hugging_faces(vlm):
    prompt = vlm.prompt(QUESTION, picture())
    plain = vlm.hf_model(**prompt.inputs).logits
    assert deviation(vlm(prompt), plain) < TOLERANCE
    assert deviation(vlm.run_with_cache(prompt)[0], plain) < TOLERANCE
    assert deviation(vlm(vlm.prompt(QUESTION, picture(seed=1))), plain) > 0.01


@torch.no_grad()
def test_every_shared_hook_has_the_hooked_transformers_value(vlm):
    vlm.set_use_attn_result(True)
    legacy = vlm.to_hooked_transformer()
    assert type(legacy).__name__ == "HookedTransformer"
    prompt = vlm.prompt(QUESTION, picture())
    assert prompt.layout.n > 12, "wider than the sliding windows"
    logits, cache = vlm.run_with_cache(prompt)
    theirs, legacy_cache = legacy.run_with_cache(cache["hook_embed"], start_at_layer=0)

    language = {name for name in vlm.hook_dict if not name.startswith("vision")}
    assert language <= set(legacy.hook_dict)
    # Its hook_embed is passed by, since it is fed what ours gave.
    shared = language - {"hook_embed"}
    assert len(shared) >= 60
    far = {
        name: by
        for name in sorted(shared)
        if (by := deviation(cache[name], legacy_cache[name])) > LEGACY_TOLERANCE
    }
    assert not far
    assert deviation(logits, theirs) < LEGACY_TOLERANCE


@torch.no_grad()
def test_words_alone_go_in_as_token_ids(vlm):
    prompt = vlm.prompt(QUESTION)
    legacy = vlm.to_hooked_transformer()
    logits, cache = vlm.run_with_cache(prompt)
    theirs, legacy_cache = legacy.run_with_cache(prompt.inputs["input_ids"])
    assert deviation(logits, theirs) < LEGACY_TOLERANCE
    assert torch.equal(cache["hook_embed"], legacy_cache["hook_embed"])
    assert torch.equal(legacy.to_tokens(QUESTION), vlm.to_tokens(QUESTION))


@pytest.mark.parametrize("kind", KINDS[1:4], ids=lambda kind: kind.backbone)
@torch.no_grad()
def test_every_write_does_what_it_does_in_a_hooked_transformer(kind):
    vlm = HookedVLM(*build(kind))
    vlm.set_use_attn_result(True)
    legacy = vlm.to_hooked_transformer()
    prompt = vlm.prompt(QUESTION, picture())
    clean, cache = vlm.run_with_cache(prompt, names_filter="hook_embed")
    names = [name for name in vlm.hook_dict if name.startswith(("blocks.1.", "ln_fin"))]
    assert len(names) == 23

    def halve(x, hook):
        halved = x.clone()
        halved[:, 1:] *= 0.5  # all positions, or heads, but one
        return halved

    for name in names:
        hooks = [(name, halve)]
        ours = vlm.run_with_hooks(prompt, fwd_hooks=hooks)
        theirs = legacy.run_with_hooks(
            cache["hook_embed"], start_at_layer=0, fwd_hooks=hooks
        )
        assert deviation(ours, theirs) < LEGACY_TOLERANCE, name
        assert deviation(ours, clean) > 0.001, f"{name}: it did nothing"


@torch.no_grad()
def test_the_copy_is_its_own(monkeypatch):
    """TransformerLens folds the norms into the weights in place: not into ours."""
    # As many words as directions, and it would fold along the wrong axis of W_U.
    vlm = of(tf.LlamaConfig(**SIZES | {"vocab_size": 60}), monkeypatch)
    prompt = vlm.prompt(QUESTION, picture())
    before = {name: x.clone() for name, x in vlm.hf_model.state_dict().items()}
    legacy = vlm.to_hooked_transformer()
    for name in ("W_E", "W_U", "W_Q", "W_K", "W_V", "W_O", "W_in", "W_gate", "W_out"):
        assert torch.equal(getattr(legacy, name), getattr(vlm, name)), name
    legacy.load_and_process_state_dict(
        legacy.state_dict(), center_writing_weights=False, center_unembed=False
    )
    after = vlm.hf_model.state_dict()
    assert all(torch.equal(x, before[name]) for name, x in after.items())

    # With the final norm folded into W_U both have one direction for each token.
    ours = vlm.tokens_to_residual_directions(torch.tensor([3, 5, 8]))
    theirs = legacy.tokens_to_residual_directions(torch.tensor([3, 5, 8]))
    assert deviation(ours, theirs) < TOLERANCE
    logits, cache = vlm.run_with_cache(prompt, names_filter="hook_embed")
    folded = legacy(cache["hook_embed"], start_at_layer=0)
    assert deviation(logits, folded) < LEGACY_TOLERANCE


BEYOND = {
    "rotary embedding of type 'dynamic'": tf.LlamaConfig(
        **SIZES,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0},
    ),
    "biases inside the gated MLP": tf.LlamaConfig(**SIZES, mlp_bias=True),
    "activation 'tanh'": tf.LlamaConfig(**SIZES, hidden_act="tanh"),
    "a scaled rotary embedding in a sliding window": tf.MistralConfig(
        **SIZES, sliding_window=7, rope_parameters=LINEAR
    ),
}


@pytest.mark.parametrize("what", BEYOND)
def test_what_a_hooked_transformer_cannot_compute_is_refused(what, monkeypatch):
    vlm = of(BEYOND[what], monkeypatch)
    with pytest.raises(InteropError, match=f"cannot compute what this .*{what}"):
        vlm.to_hooked_transformer()


def test_the_bridge_is_for_transformer_lens_4():
    with pytest.raises(
        InteropError,
        match=r"TransformerBridge needs transformer-lens>=4,<5, and .* 3\.",
    ):
        HookedVLM(*build()).to_bridge()
